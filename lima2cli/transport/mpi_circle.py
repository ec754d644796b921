"""A circle of ranks by MPI's non-blocking collectives, on communicators of its own.

Two of them, since collectives on one communicator must be begun in the same order by all: what is told, and what is
moved, each keep an order of their own.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from lima2cli.geometry import Rect
from lima2cli.spec import Array
from lima2cli.transport.mpi_file import MpiFile
from lima2cli.transport.shared_file import Stripes

PATIENCE_NS = 300_000
"""Data move only while somebody asks for them: whoever asks does so for this long."""


class _Pending:
    """A request, and what it reads and writes, which must live as long. ``patience_ns``: see `PATIENCE_NS`."""

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


class MpiCircle:
    """See `Circle`. Making one is collective over ``members``, ranks of ``communicator``."""

    def __init__(self, communicator: MPI.Intracomm, members: Sequence[int], tag: int) -> None:
        group = communicator.Get_group().Incl(list(members))
        self._tells = communicator.Create_group(group, tag)
        self._moves = self._tells.Dup()
        self.rank, self.size = self._tells.Get_rank(), self._tells.Get_size()
        self._types: dict[tuple[int, ...], MPI.Datatype] = {}

    def tell(self, word: int) -> _Pending:
        """See `Circle.tell`."""
        own, words = np.array([word], np.uint64), np.zeros(self.size, np.uint64)
        pending = _Pending(self._tells.Iallgather([own, MPI.UINT64_T], [words, 1, MPI.UINT64_T]), own)
        pending.words = words
        return pending

    def share(self, own: NDArray[np.uint8], sizes: Sequence[int]) -> _Pending:
        """See `Circle.share`."""
        starts = [sum(sizes[:member]) for member in range(self.size)]
        everything = np.empty(sum(sizes), np.uint8)
        request = self._moves.Iallgatherv([own, MPI.BYTE], [everything, (sizes, starts), MPI.BYTE])
        pending = _Pending(request, own, patience_ns=PATIENCE_NS)
        pending.parts = [everything[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        return pending

    def open_file(self, path: str, stripes: Stripes) -> MpiFile:
        """See `Circle.open_file`."""
        return MpiFile(self._moves, path, stripes)

    def collect(self, root: int, part: Array, whole: Array, places: Sequence[Rect]) -> _Pending:
        """See `Circle.collect`: parts go from where they lie to where they belong, rows by rows, without a copy."""
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
        """n rectangles with these strides between frames and rows; made once."""
        key = (n, rows, columns, *strides)
        if key not in self._types:
            rectangle = MPI.BYTE.Create_hvector(rows, columns * pixel, strides[1])
            self._types[key] = rectangle.Create_hvector(n, 1, strides[0]).Commit()
            rectangle.Free()
        return self._types[key]

    def close(self) -> None:
        """Give the communicators back; collective."""
        for datatype in self._types.values():
            datatype.Free()
        self._moves.Free()
        self._tells.Free()


def _memory(frames: Array) -> Any:
    """From the first byte of frames to the last, whatever lies between."""
    span = sum((n - 1) * stride for n, stride in zip(frames.shape, frames.strides, strict=True)) + frames.itemsize
    return MPI.buffer.fromaddress(frames.__array_interface__["data"][0], span, readonly=True)
