"""A line of ranks by MPI's two-sided messages, on a communicator of its own.

A block is two messages: the head, with shape and dtype of the frames, and the frames, straight from where they lie.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from lima2cli.spec import Array

HEAD, FRAMES = 1, 2


class _Sending:
    """See `Pending`: requests, and what they read, which must live as long."""

    def __init__(self, requests: list[MPI.Request], frames: Array | None) -> None:
        self._requests, self._frames = requests, frames

    def done(self) -> bool:
        """See `Pending.done`."""
        self._requests = [request for request in self._requests if not request.Test()]
        return not self._requests


class _Coming:
    """A head that has come, and its frames, which may still be coming."""

    def __init__(self, member: int, head: Any, frames: Array | None, request: MPI.Request | None) -> None:
        self.member, self.head, self.frames, self._request = member, head, frames, request

    def here(self) -> bool:
        return self._request is None or bool(self._request.Test())


class MpiLine:
    """See `Line`. Making one is collective over ``members``, ranks of ``communicator``."""

    def __init__(self, communicator: MPI.Intracomm, members: Sequence[int], tag: int) -> None:
        group = communicator.Get_group().Incl(list(members))
        self._communicator = communicator.Create_group(group, tag)
        self._coming: list[_Coming] = []

    def send(self, member: int, head: Any, frames: Array | None = None) -> _Sending:
        """See `Line.send`. Heads are our own records, pickled by mpi4py; nothing that users send."""
        kind = None if frames is None else (frames.shape, frames.dtype.str)
        requests = [self._communicator.isend((head, kind), member, HEAD)]
        if frames is not None:
            requests.append(self._send_frames(member, frames))
        return _Sending(requests, frames)

    def _send_frames(self, member: int, frames: Array) -> MPI.Request:
        """Without a copy: where rows or frames lie apart, the datatype walks over the strides."""
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
        """See `Line.receive`."""
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
        """Give the communicator back, when no member sends any more; collective."""
        while self.receive() is not None:  # what nobody has read makes MPI's own end fail
            pass
        self._communicator.Free()
