"""Collectives of receivers by MPI: non-blocking collectives, messages, and collective MPI-IO."""

import errno
import os
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from lima2cli.frames import Array
from lima2cli.geometry import Rect
from lima2cli.transport.base import Stripes

LARGE_BYTES = 1 << 16
"""Stripes of this size each rank writes itself: moving them to another first costs more than it gains."""


class _Writing:
    """See `Pending`."""

    def __init__(self, first: int, rows: NDArray[np.uint8]) -> None:
        self.first, self.rows = first, rows
        self.ended = threading.Event()
        self.error: OSError | None = None

    def done(self) -> bool:
        """See `SharedFile.begin`."""
        if self.error is not None:
            raise self.error
        return self.ended.is_set()


class MpiFile:
    """See `SharedFile`. OSError where the file can't be opened; making one is collective over ``communicator``."""

    def __init__(self, communicator: MPI.Intracomm, path: str, stripes: Stripes) -> None:
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise OSError("this MPI does not provide THREAD_MULTIPLE, which common files need")
        merge = "disable" if stripes.block * stripes.row_bytes >= LARGE_BYTES else "enable"
        every = {"cb_nodes": str(communicator.Get_size()), "cb_config_list": "*:*"}  # each rank may put together
        hints = MPI.Info.Create({"romio_cb_write": merge, "romio_ds_write": "disable"} | every)
        try:
            self._file = MPI.File.Open(communicator, path, MPI.MODE_WRONLY, hints)
        except MPI.Exception as error:
            raise _as_os_error(error, path) from error
        finally:
            hints.Free()
        self._path = path
        self._row = MPI.BYTE.Create_contiguous(stripes.row_bytes).Commit()
        stripe = self._row.Create_indexed_block(stripes.block, [place * stripes.block for place in stripes.own])
        self._view = stripe.Create_resized(0, stripes.row_bytes * stripes.block * stripes.count).Commit()
        stripe.Free()
        self._file.Set_view(stripes.offset, self._row, self._view)
        self._queue: queue.SimpleQueue[_Writing | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="mpi-file", daemon=True)
        self._thread.start()

    def begin(self, first: int, rows: NDArray[np.uint8]) -> _Writing:
        """See `SharedFile.begin`."""
        writing = _Writing(first, rows)
        self._queue.put(writing)
        return writing

    def close(self) -> None:
        """See `SharedFile.close`."""
        self._queue.put(None)
        self._thread.join()
        self._file.Close()
        self._view.Free()
        self._row.Free()

    def _write(self) -> None:
        while (writing := self._queue.get()) is not None:
            buffer: Any = [writing.rows, len(writing.rows), self._row]
            try:
                self._file.Write_at_all(writing.first, buffer)
            except MPI.Exception as error:
                writing.error = _as_os_error(error, self._path)
            writing.ended.set()


def _as_os_error(error: MPI.Exception, path: str) -> OSError:
    """Return MPI's error of a file as the system would raise it."""
    known = {
        MPI.ERR_NO_SPACE: errno.ENOSPC,
        MPI.ERR_QUOTA: errno.EDQUOT,
        MPI.ERR_ACCESS: errno.EACCES,
        MPI.ERR_READ_ONLY: errno.EROFS,
        MPI.ERR_NO_SUCH_FILE: errno.ENOENT,
    }
    words = error.Get_error_string().strip().rpartition("\n")[2].rpartition("error ")[2]
    return OSError(known.get(error.Get_error_class(), errno.EIO), words.removesuffix(f": '{path}'"), path)


PATIENCE_NS = 300_000
"""Nanoseconds for which a caller keeps asking: data move only while some rank asks for them."""


class _Pending:
    """A request, and the arrays that it reads and writes, which must live as long. See `PATIENCE_NS`."""

    def __init__(self, request: MPI.Request, *held: Any, patience_ns: int = 0) -> None:
        self._request, self._held, self._patience_ns = request, held, patience_ns
        self.words: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self.parts: list[NDArray[np.uint8]] = []

    def done(self) -> bool:
        """See `Pending`."""
        if self._request.Test():
            return True
        end = time.perf_counter_ns() + self._patience_ns
        while time.perf_counter_ns() < end:
            os.sched_yield()
            if self._request.Test():
                return True
        return False


class MpiCollectiveGroup:
    """See `CollectiveGroup`. Making one is collective over ``members``, ranks of ``communicator``."""

    def __init__(self, communicator: MPI.Intracomm, members: Sequence[int], tag: int) -> None:
        group = communicator.Get_group().Incl(list(members))
        self._tells = communicator.Create_group(group, tag)
        self._moves = self._tells.Dup()
        self.rank, self.size = self._tells.Get_rank(), self._tells.Get_size()
        self._types: dict[tuple[int, ...], MPI.Datatype] = {}

    def agree(self, word: int) -> _Pending:
        """See `CollectiveGroup.agree`."""
        own, words = np.array([word], np.uint64), np.zeros(self.size, np.uint64)
        pending = _Pending(self._tells.Iallgather([own, MPI.UINT64_T], [words, 1, MPI.UINT64_T]), own)
        pending.words = words
        return pending

    def share(self, own: NDArray[np.uint8], sizes: Sequence[int]) -> _Pending:
        """See `CollectiveGroup.share`."""
        starts = [sum(sizes[:member]) for member in range(self.size)]
        everything = np.empty(sum(sizes), np.uint8)
        request = self._moves.Iallgatherv([own, MPI.BYTE], [everything, (sizes, starts), MPI.BYTE])
        pending = _Pending(request, own, patience_ns=PATIENCE_NS)
        pending.parts = [everything[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        return pending

    def open_file(self, path: str, stripes: Stripes) -> MpiFile:
        """See `CollectiveGroup.open_file`."""
        return MpiFile(self._moves, path, stripes)

    def collect(self, root: int, part: Array, whole: Array, places: Sequence[Rect]) -> _Pending:
        """See `CollectiveGroup.collect`: parts go straight to their places, rows by rows, without a copy."""
        none, pixel = [0] * self.size, part.itemsize
        sent, send_types = list(none), [MPI.BYTE] * self.size
        sent[root], send_types[root] = 1, self._type(len(part), part.shape[1], part.shape[2], pixel, part.strides)
        received, starts, types = list(none), list(none), [MPI.BYTE] * self.size
        target: Any = None
        if self.rank == root:
            target, received = whole, [1] * self.size
            starts = [place.y * whole.strides[1] + place.x * pixel for place in places]
            types = [self._type(len(whole), place.height, place.width, pixel, whole.strides) for place in places]
        source = _memory(part)
        request = self._moves.Ialltoallw([source, (sent, none), send_types], [target, (received, starts), types])
        return _Pending(request, part, whole, patience_ns=PATIENCE_NS)

    def _type(self, n: int, rows: int, columns: int, pixel: int, strides: tuple[int, ...]) -> MPI.Datatype:
        """Return the datatype of n rectangles with these strides between frames and rows; made once."""
        key = (n, rows, columns, *strides)
        if key not in self._types:
            rectangle = MPI.BYTE.Create_hvector(rows, columns * pixel, strides[1])
            self._types[key] = rectangle.Create_hvector(n, 1, strides[0]).Commit()
            rectangle.Free()
        return self._types[key]

    def close(self) -> None:
        """Release the communicators; collective."""
        for datatype in self._types.values():
            datatype.Free()
        self._moves.Free()
        self._tells.Free()


def _memory(frames: Array) -> Any:
    """Return the memory from the first byte of frames to the last, whatever lies between."""
    span = sum((n - 1) * stride for n, stride in zip(frames.shape, frames.strides, strict=True)) + frames.itemsize
    return MPI.buffer.fromaddress(frames.__array_interface__["data"][0], span, readonly=True)


HEAD, FRAMES = 1, 2


class _Sending:
    """See `Pending`: requests, and the arrays that they read, which must live as long."""

    def __init__(self, requests: list[MPI.Request], frames: Array | None) -> None:
        self._requests, self._frames = requests, frames

    def done(self) -> bool:
        """See `Pending.done`."""
        self._requests = [request for request in self._requests if not request.Test()]
        return not self._requests


class _Coming:
    """A head that has arrived, and its frames, which may still be under way."""

    def __init__(self, member: int, head: Any, frames: Array | None, request: MPI.Request | None) -> None:
        self.member, self.head, self.frames, self._request = member, head, frames, request

    def here(self) -> bool:
        return self._request is None or bool(self._request.Test())


class MpiMailbox:
    """See `Mailbox`. Making one is collective over ``members``, ranks of ``communicator``."""

    def __init__(self, communicator: MPI.Intracomm, members: Sequence[int], tag: int) -> None:
        group = communicator.Get_group().Incl(list(members))
        self._communicator = communicator.Create_group(group, tag)
        self._coming: list[_Coming] = []

    def send(self, member: int, head: Any, frames: Array | None = None) -> _Sending:
        """See `Mailbox.send`. Heads are our own records, pickled by mpi4py; nothing that users send."""
        kind = None if frames is None else (frames.shape, frames.dtype.str)
        requests = [self._communicator.isend((head, kind), member, HEAD)]
        if frames is not None:
            requests.append(self._send_frames(member, frames))
        return _Sending(requests, frames)

    def _send_frames(self, member: int, frames: Array) -> MPI.Request:
        """Send without a copy: where rows or frames lie apart, the datatype walks over the strides."""
        if frames.flags.c_contiguous:
            return self._communicator.Isend([frames, frames.nbytes, MPI.BYTE], member, FRAMES)
        rows, columns = frames.shape[1:]
        block = MPI.BYTE.Create_hvector(rows, columns * frames.itemsize, frames.strides[1])
        whole = block.Create_hvector(len(frames), 1, frames.strides[0]).Commit()
        span = sum((n - 1) * stride for n, stride in zip(frames.shape, frames.strides, strict=True)) + frames.itemsize
        memory = MPI.buffer.fromaddress(frames.__array_interface__["data"][0], span, readonly=True)
        request = self._communicator.Isend([memory, 1, whole], member, FRAMES)
        block.Free()
        whole.Free()  # MPI keeps it until the message is sent
        return request

    def receive(self) -> tuple[int, Any, Array | None] | None:
        """See `Mailbox.receive`."""
        status = MPI.Status()
        if self._communicator.Iprobe(MPI.ANY_SOURCE, HEAD, status):
            self._coming.append(self._expect(status.Get_source()))
        before: set[int] = set()
        for i, coming in enumerate(self._coming):
            if coming.member not in before and coming.here():
                del self._coming[i]
                return coming.member, coming.head, coming.frames
            before.add(coming.member)
        return None

    def _expect(self, member: int) -> _Coming:
        head, kind = self._communicator.recv(source=member, tag=HEAD)
        if kind is None:
            return _Coming(member, head, None, None)
        shape, dtype = kind
        frames: Array = np.empty(shape, dtype)
        request = self._communicator.Irecv([frames, frames.nbytes, MPI.BYTE], member, FRAMES)
        return _Coming(member, head, frames, request)

    def close(self) -> None:
        """Release the communicator, when no member sends any more; collective."""
        while self.receive() is not None:  # unread messages make MPI's own end fail
            pass
        self._communicator.Free()
