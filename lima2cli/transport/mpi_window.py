"""MPI: one window per memspace, modules `Put` their rectangles straight into the slots (passive target).

The protocol per group is that of the data-flow model: the odd mark, flushed, the payload, flushed, the even mark,
flushed. Marks are `Accumulate(REPLACE)`, since an 8-byte `Put` is not atomic in MPI; they are read by
`Get_accumulate(NO_OP)`. Windows over mapped files are emulated by messages and move only while their owner is inside
MPI: then, and where ranks are on several hosts, a progress thread looks in.
"""

import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from lima2cli.frames import Array
from lima2cli.transport.base import MemorySpec, Message
from lima2cli.transport.mapped import MappedFile, map_file
from lima2cli.transport.mpi_collective import MpiCollectiveGroup, MpiMailbox

TAG = 1
PROGRESS_PERIOD_S = 5e-4
CLOSING_SLEEP_S = 1e-4


class MpiPutChannel:
    """See `PutChannel`. Datatypes are made once per (number of frames, strides of the source)."""

    def __init__(
        self, window: MPI.Win, rank: int, limit: int, rows: int, row_bytes: int, pitch: int, stride: int
    ) -> None:
        self._window, self._rank, self._limit = window, rank, limit
        self._rows, self._row_bytes, self._pitch, self._stride = rows, row_bytes, pitch, stride
        self._types: dict[tuple[int, ...], tuple[MPI.Datatype, MPI.Datatype, int, int]] = {}

    def put(self, frames: Array, offset: int) -> None:
        """See `PutChannel.put`."""
        key = (len(frames), *frames.strides)
        known = self._types.get(key)
        if known is None:
            known = self._types[key] = self._make(len(frames), frames)
        origin, target, source_bytes, end = known
        if not 0 <= offset <= self._limit - end:
            raise IndexError(f"bytes {offset} to {offset + end} of a region of {self._limit}")
        buffer: Any = frames
        if source_bytes:  # not contiguous: the datatype walks over the strides
            buffer = MPI.buffer.fromaddress(frames.__array_interface__["data"][0], source_bytes, readonly=True)
        self._window.Put([buffer, 1, origin], self._rank, [offset, 1, target])

    def put_bytes(self, data: bytes | NDArray[np.uint8], offset: int) -> None:
        """See `PutChannel.put_bytes`."""
        end = offset + len(data)
        if not 0 <= offset <= end <= self._limit:
            raise IndexError(f"bytes {offset} to {end} of a region of {self._limit}")
        self._window.Put([data, len(data), MPI.BYTE], self._rank, [offset, len(data), MPI.BYTE])

    def flush(self) -> None:
        """See `PutChannel.flush`."""
        self._window.Flush(self._rank)

    def _make(self, n: int, frames: Array) -> tuple[MPI.Datatype, MPI.Datatype, int, int]:
        if frames.strides[2] != frames.itemsize:
            raise ValueError("rows of a source must be contiguous")
        origin = _rectangles(n, self._rows, self._row_bytes, frames.strides[1], frames.strides[0])
        target = _rectangles(n, self._rows, self._row_bytes, self._pitch, self._stride)
        span = (n - 1) * frames.strides[0] + (self._rows - 1) * frames.strides[1] + self._row_bytes
        end = (n - 1) * self._stride + (self._rows - 1) * self._pitch + self._row_bytes
        return origin, target, 0 if frames.flags.c_contiguous else span, end


def _rectangles(n: int, rows: int, row_bytes: int, pitch: int, stride: int) -> MPI.Datatype:
    """Return the datatype of n rectangles; plain bytes wherever they are contiguous, which MPI copies fastest."""
    if pitch == row_bytes or rows == 1:
        block = MPI.BYTE.Create_contiguous(rows * row_bytes)
        contiguous = stride == rows * row_bytes
    else:
        block, contiguous = MPI.BYTE.Create_hvector(rows, row_bytes, pitch), False
    if n == 1:
        return block.Commit()
    whole = MPI.BYTE.Create_contiguous(n * rows * row_bytes) if contiguous else block.Create_hvector(n, 1, stride)
    return whole.Commit()


def _array(window: MPI.Win, dtype: type[Any]) -> NDArray[Any]:
    """Return the rank's own part of a window."""
    memory: Any = window.tomemory()
    return np.frombuffer(memory, dtype)


def _unlink_shared_memory() -> None:
    """Unlink MPICH's shared memory in /dev/shm once all ranks have mapped it, so that a kill leaves nothing there.

    MPICH does so itself with windows, and with this one, which carries its messages, only in MPI_Finalize.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return
    for name in set(re.findall(r"/dev/shm/mpich_shm_\w+", maps)):
        Path(name).unlink(missing_ok=True)


class MpiPort:
    """See `Port`. Making one is collective over ``communicator``."""

    def __init__(self, spec: MemorySpec, communicator: MPI.Intracomm = MPI.COMM_WORLD) -> None:
        self._communicator = communicator
        self.rank, self.size = communicator.Get_rank(), communicator.Get_size()
        self._limits = [region.size for region in spec.regions]
        self._owners = [region.owner for region in spec.regions]
        self._maps: list[MappedFile] = []
        self._windows = [self._make_window(index, spec) for index in range(len(spec.regions))]
        self._control = MPI.Win.Allocate(8 * spec.control_words[self.rank], 8, comm=communicator)
        self._own: NDArray[np.uint64] = _array(self._control, np.uint64)
        self._own[:] = 0
        self._word = np.zeros(1, np.uint64)
        self._word_message = [self._word, 1, MPI.UINT64_T]
        self._apart: dict[tuple[int, int], MPI.Datatype] = {}
        self._none = np.zeros(1, np.uint64)
        self._result = np.zeros(1, np.uint64)
        self._results = np.zeros(64, np.uint64)
        self._sending: list[MPI.Request] = []
        communicator.Barrier()  # all memory is zero before any rank writes
        _unlink_shared_memory()
        for window in (*self._windows, self._control):
            window.Lock_all(MPI.MODE_NOCHECK)
        self._collectives = {
            index: MpiCollectiveGroup(communicator, members, index)
            for index, members in enumerate(spec.collectives)
            if self.rank in members
        }
        self._mailboxes = {
            index: MpiMailbox(communicator, members, len(spec.collectives) + index)
            for index, members in enumerate(spec.mailboxes)
            if self.rank in members
        }
        self._stop = threading.Event()
        self._progress = self._start_progress(spec)

    def _make_window(self, index: int, spec: MemorySpec) -> MPI.Win:
        region = spec.regions[index]
        mine = region.owner == self.rank
        if region.path is None:
            return MPI.Win.Allocate(region.size if mine else 0, 1, comm=self._communicator)
        if mine:
            self._maps.append(map_file(region.path, region.size))
        memory = self._maps[-1].memory if mine else None
        return MPI.Win.Create(memory, 1, comm=self._communicator)

    def _start_progress(self, spec: MemorySpec) -> threading.Thread | None:
        """Start the thread for owners of memory that needs it (emulated windows, other hosts); else None.

        Raises: RuntimeError where this MPI does not provide THREAD_MULTIPLE.
        """
        local = self._communicator.Split_type(MPI.COMM_TYPE_SHARED)
        remote = local.Get_size() < self.size
        local.Free()
        owned = [region for region in spec.regions if region.owner == self.rank]
        if not any(region.path is not None or remote for region in owned):
            return None
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise RuntimeError("this MPI does not provide THREAD_MULTIPLE, which mapped or remote memspaces need")
        thread = threading.Thread(target=self._look_in, name="mpi-progress", daemon=True)
        thread.start()
        return thread

    def _look_in(self) -> None:
        while not self._stop.wait(PROGRESS_PERIOD_S):
            self._communicator.Iprobe(MPI.ANY_SOURCE, TAG + 1)

    def memory(self, region: int) -> NDArray[np.uint8]:
        """See `Port.memory`."""
        return _array(self._windows[region], np.uint8)

    def put_channel(self, region: int, rows: int, row_bytes: int, pitch: int, stride: int) -> MpiPutChannel:
        """See `Port.put_channel`."""
        return MpiPutChannel(
            self._windows[region], self._owners[region], self._limits[region], rows, row_bytes, pitch, stride
        )

    def store(self, rank: int, word: int, value: int) -> None:
        """See `Port.store`."""
        self._word[0] = value
        self._control.Accumulate(self._word_message, rank, [word, 1, MPI.UINT64_T], MPI.REPLACE)
        self._control.Flush(rank)

    def store_words(self, rank: int, word: int, values: NDArray[np.uint64], step: int = 1) -> None:
        """See `Port.store_words`."""
        count = len(values)
        target: Any = [word, count, MPI.UINT64_T]
        if step > 1:
            if (count, step) not in self._apart:
                self._apart[count, step] = MPI.UINT64_T.Create_vector(count, 1, step).Commit()
            target = [word, 1, self._apart[count, step]]
        self._control.Accumulate([values, count, MPI.UINT64_T], rank, target, MPI.REPLACE)
        self._control.Flush(rank)

    def put_words(self, rank: int, word: int, values: NDArray[np.uint64]) -> None:
        """See `Port.put_words`."""
        self._control.Put([values, len(values), MPI.UINT64_T], rank, [word, len(values), MPI.UINT64_T])
        self._control.Flush(rank)

    def read(self, word: int, count: int) -> NDArray[np.uint64]:
        """See `Port.read`."""
        if count == 1:
            self._control.Fetch_and_op(self._none, self._result, self.rank, word, MPI.NO_OP)
            self._control.Flush(self.rank)
            return self._result
        if count > len(self._results):
            self._results = np.zeros(count, np.uint64)
        result: NDArray[np.uint64] = self._results[:count]
        self._control.Get_accumulate(
            [self._none, 0, MPI.UINT64_T],
            [result, count, MPI.UINT64_T],
            self.rank,
            [word, count, MPI.UINT64_T],
            MPI.NO_OP,
        )
        self._control.Flush(self.rank)
        return result

    def words(self, word: int, count: int) -> NDArray[np.uint64]:
        """See `Port.words`."""
        return self._own[word : word + count]

    def sync(self) -> None:
        """See `Port.sync`."""
        self._control.Sync()
        for window, owner in zip(self._windows, self._owners, strict=True):
            if owner == self.rank:
                window.Sync()

    def collective(self, index: int) -> MpiCollectiveGroup:
        """See `Port.collective`."""
        return self._collectives[index]

    def mailbox(self, index: int) -> MpiMailbox:
        """See `Port.mailbox`."""
        return self._mailboxes[index]

    def send(self, rank: int, message: Message) -> None:
        """See `Port.send`. Messages are our own records, pickled by mpi4py; nothing that users send."""
        self._sending = [request for request in self._sending if not request.Test()]
        self._sending.append(self._communicator.isend(message, rank, TAG))

    def receive(self) -> tuple[int, Message] | None:
        """See `Port.receive`."""
        status = MPI.Status()
        if not self._communicator.Iprobe(MPI.ANY_SOURCE, TAG, status):
            return None
        source = status.Get_source()
        return source, self._communicator.recv(source=source, tag=TAG)

    def _wait(self, request: MPI.Request) -> None:
        """Wait for a request, and read what comes meanwhile: a large message is sent only while it is received."""
        while not request.Test():
            if self.receive() is None:
                time.sleep(CLOSING_SLEEP_S)

    def close(self) -> None:
        """See `Port.close`."""
        for request in self._sending:
            self._wait(request)
        self._wait(self._communicator.Ibarrier())  # all that others sent is here
        while self.receive() is not None:  # messages unread by now make MPI's own end fail
            pass
        self._stop.set()
        if self._progress is not None:
            self._progress.join()
        for collective in self._collectives.values():
            collective.close()
        for mailbox in self._mailboxes.values():
            mailbox.close()
        del self._own
        for window in (*self._windows, self._control):
            window.Unlock_all()
            window.Free()
        for mapped in self._maps:
            mapped.close()
