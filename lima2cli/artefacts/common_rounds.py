"""Frames of one receiver, held in memory by the rounds in which they are written."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.channel import Channel
from lima2cli.artefacts.checksums import row_sums
from lima2cli.artefacts.tree import fill_value
from lima2cli.spec import Array
from lima2cli.transport.shared_file import Stripes

ROUND_BYTES = 8 << 20
"""Of each receiver in a round, where it has an equal share: large enough for any file system."""

SPARE = 4
"""Rounds whose memory is kept for the next ones."""

Part = tuple["Round", Any, slice]
"""A round, the places in it, and the part of a block that belongs there."""


@dataclass(slots=True)
class Round:
    """Own frames (n, height, width) of consecutive rows, the ``first``-th own row the first of them.

    filled   those that are there;  times   ns since the epoch;  whole   the memory, which may be longer
    sums     checksums of the frames, where they are taken
    """

    first: int
    whole: Array
    frames: Array
    times: NDArray[np.uint64]
    filled: NDArray[np.bool_]
    sums: NDArray[np.uint64]


class Rounds:
    """Rounds of ``rows`` consecutive rows of all receivers, up to ``total`` rows."""

    def __init__(self, channel: Channel, stripes: Stripes, total: int) -> None:
        self.stripes, self.total = stripes, total
        self.rows = max(1, round(ROUND_BYTES * len(set(channel.receivers)) / stripes.row_bytes))
        self._frame, self._dtype = (channel.height, channel.width), np.dtype(channel.dtype)
        self._fill = fill_value(channel)
        self._summed = channel.checksum
        self._held: dict[int, Round] = {}
        self._spare: list[Array] = []

    def __len__(self) -> int:
        """How many rounds hold frames."""
        return len(self._held)

    def last(self, number: int) -> int:
        """The row after the last of a round."""
        return min((number + 1) * self.rows, self.total)

    def parts(self, rows: NDArray[np.int64]) -> Iterator[Part]:
        """The parts of a block of frames whose rows these are (n,), increasing."""
        own, rounds = self.stripes.index(rows), rows // self.rows
        for begin, end in pairwise([0, *(np.flatnonzero(np.diff(rounds)) + 1).tolist(), len(rows)]):
            held = self._round(int(rounds[begin]))
            places = own[begin:end] - held.first
            neighbours = int(places[-1] - places[0]) == end - begin - 1
            yield held, slice(int(places[0]), int(places[-1]) + 1) if neighbours else places, slice(begin, end)

    def bytes(self, number: int) -> tuple[int, NDArray[np.uint8]]:
        """The first own row of a round, and all of them (n, row_bytes); the fill value where there is no frame."""
        first, last = self._own(number)
        held = self._round(number)
        held.frames[~held.filled] = self._fill
        rows = held.frames[: last - first].view(np.uint8).reshape(last - first, self.stripes.row_bytes)
        if self._summed:
            held.sums[: len(rows)] = row_sums(rows)
        return first, rows

    def nothing(self, number: int) -> tuple[int, NDArray[np.uint8]]:
        """As `bytes`, without any row."""
        return self._own(number)[0], np.empty((0, self.stripes.row_bytes), np.uint8)

    def end(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]:
        """Rows, times and checksums of the frames of a round, whose memory is given back."""
        held = self._held.pop(number, None)
        if held is None:
            nothing = np.empty(0, np.uint64)
            return np.empty(0, np.int64), nothing, nothing
        self._spare = [*self._spare, held.whole][-SPARE:]
        filled = held.filled
        rows = self.stripes.rows(held.first, held.first + len(filled))[filled]
        return rows, held.times[filled], held.sums[filled]

    def _own(self, number: int) -> tuple[int, int]:
        """Own rows of a round, (first, last + 1), counted among own rows."""
        return self.stripes.below(number * self.rows), self.stripes.below(self.last(number))

    def _round(self, number: int) -> Round:
        """A round, in memory that was used before where there is such."""
        if number not in self._held:
            first, last = self._own(number)
            fitting = [it for it in self._spare if len(it) >= last - first]
            whole = fitting[0] if fitting else np.empty((last - first, *self._frame), self._dtype)
            self._spare = [it for it in self._spare if it is not whole]
            count = last - first
            times, sums = np.zeros((2, count), np.uint64)
            self._held[number] = Round(first, whole, whole[:count], times, np.zeros(count, bool), sums)
        return self._held[number]
