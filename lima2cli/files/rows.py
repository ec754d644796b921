"""Rows of files: read in order and in pieces, with the status of each; and regular sequences of any length."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

WINDOW = 65_536
"""Rows of a whole run that are looked at together."""

READ = 16_384
"""Rows of one file that are read together."""

RowIndices = NDArray[np.int64]


def windows(count: int, size: int = WINDOW) -> Iterator[tuple[int, int]]:
    """Return an iterator of consecutive pieces (first, last + 1) of ``count`` rows."""
    return ((first, min(count, first + size)) for first in range(0, count, size))


def rows_of(numbers: NDArray[np.uint64], start: int, step: int) -> RowIndices:
    """Return the row k of each frame number, int64 (n,) for ``numbers`` (n,).

    Raises:
        ValueError: a frame is not among the selected ones.
    """
    row, rest = np.divmod(numbers.astype(np.int64) - start, step)
    if len(row) and (rest.any() or row.min() < 0):
        bad = numbers[(rest != 0) | (row < 0)][0]
        raise ValueError(f"frame {bad} is not one of {start}, {start + step}, ...")
    return row


class InOrder:
    """Columns that are read piece by piece and taken up to some row; the first column holds the rows.

    At most one piece is held. Exceptions of the iterator pass through `take`.
    """

    def __init__(self, pieces: Iterator[Sequence[NDArray[Any]]]) -> None:
        self._pieces = pieces
        self._held: Sequence[NDArray[Any]] | None = next(pieces, None)

    def take(self, until: int) -> Iterator[Sequence[NDArray[Any]]]:
        """Yield the columns, each (n, …), piece by piece, as far as the rows are below ``until``."""
        while self._held is not None:
            beyond = self._held[0] >= until
            count = int(beyond.argmax()) if beyond.any() else len(beyond)
            if count:
                yield [column[:count] for column in self._held]
            if count < len(beyond):
                self._held = [column[count:] for column in self._held]
                return
            self._held = next(self._pieces, None)


SAVED, LOST, DROPPED, INCOMPLETE = 0, 1, 2, 3
"""Values of ``frame_status``."""

Status = NDArray[np.uint8]


class Statuses(Protocol):
    """``frame_status`` of rows, uint8: an array, or what gives one for a slice of rows."""

    def __getitem__(self, rows: slice, /) -> Status:
        """Return the statuses of the rows of a slice."""
        ...


def told(statuses: Statuses | None, first: int, last: int) -> Status:
    """Return the statuses of rows ``first`` to ``last - 1``; rows without one are incomplete."""
    known = np.full(last - first, INCOMPLETE, np.uint8)
    if statuses is not None:
        some = statuses[first:last]
        known[: len(some)] = some
    return known


def last_row(statuses: Statuses, count: int) -> int:
    """Return the index after the last of ``count`` rows that arrived, even if in vain: that one is not missing."""
    for first, last in reversed(list(windows(count))):
        if len(kept := np.flatnonzero(statuses[first:last] != INCOMPLETE)):
            return first + int(kept[-1]) + 1
    return 0


Integers = NDArray[np.int64]
Joins = Callable[[Integers, Integers], NDArray[np.bool_]]


class Progressions:
    """Division of a sequence of vectors into progressions ``first + i*step``, i < count.

    Runs of equal steps become progressions; an element between two runs goes to the longer one, to the later only
    where that is longer. ``joins(elements, steps)`` (n, width) each marks steps that may be part of one.
    """

    def __init__(self, width: int = 1, joins: Joins | None = None) -> None:
        self._joins = joins
        self._last = np.empty((0, width), np.int64)
        # Runs that may still change: first element, step, number of steps, and whether those join. The sequence
        # begins with a run of no steps. The last run is open; of the others it is known who owns the first element.
        self._first = self._step = self._last
        self._steps, self._valid = np.zeros(0, np.int64), np.zeros(0, bool)
        self._owns = True
        self._done: list[Integers] = []

    def add(self, values: Integers) -> None:
        """Add the next elements (n, width)."""
        if not len(values):
            return
        if not len(self._last):
            self._first, self._step = values[:1], np.zeros_like(values[:1])
            self._steps, self._valid = np.zeros(1, np.int64), np.zeros(1, bool)
        elements = np.concatenate((self._last, values))
        self._last = elements[-1:]
        steps, elements = np.diff(elements, axis=0), elements[:-1]
        if not len(steps):
            return
        valid = np.ones(len(steps), bool) if self._joins is None else self._joins(elements, steps)
        differs = (steps[1:] != steps[:-1]).any(axis=1) | ~valid[1:] | ~valid[:-1]
        begin = np.concatenate(([0], np.flatnonzero(differs) + 1))
        length = np.diff(np.concatenate((begin, [len(steps)])))
        if self._valid[-1] and valid[0] and (self._step[-1] == steps[0]).all():
            self._steps[-1] += length[0]
            begin, length = begin[1:], length[1:]
        self._first = np.concatenate((self._first, elements[begin]))
        self._step = np.concatenate((self._step, steps[begin]))
        self._steps = np.concatenate((self._steps, length))
        self._valid = np.concatenate((self._valid, valid[begin]))
        self._settle(2)

    def finish(self) -> Integers:
        """Return all progressions (n, 2*width + 1): first, step, count; the step of a single element is 0."""
        self._settle(0)
        width = self._last.shape[1]
        return np.concatenate([np.empty((0, 2 * width + 1), np.int64), *self._done])

    def _settle(self, kept: int) -> None:
        """Close all runs but the last ``kept``: which run owns an element depends on the lengths of both its runs."""
        done = len(self._steps) - kept
        if done <= 0:
            return
        weight = self._steps * self._valid
        owns = np.concatenate(([self._owns], weight[1:] > weight[:-1], [False]))
        count = (self._steps + owns[:-1] - owns[1:])[:done]
        first = self._first[:done] + self._step[:done] * ~owns[:done, None]
        step = self._step[:done] * (count > 1)[:, None]
        if count.any():
            self._done.append(np.concatenate((first, step, count[:, None]), axis=1)[count > 0])
        self._owns = bool(owns[done])
        self._first, self._step = self._first[done:].copy(), self._step[done:].copy()
        self._steps, self._valid = self._steps[done:].copy(), self._valid[done:].copy()


def ranges(numbers: ArrayLike) -> list[list[int]]:
    """Return sorted, distinct numbers as few ``[first, last, step]``, last included; ``[n, n, 1]`` for one alone."""
    return ranges_of([np.asarray(numbers, dtype=np.int64)])


def ranges_of(pieces: Iterable[Integers]) -> list[list[int]]:
    """Return the same as `ranges`, of numbers that come piece by piece."""
    progressions = Progressions()
    for piece in pieces:
        progressions.add(piece[:, None])
    return range_list(progressions)


def runs(numbers: Integers) -> Integers:
    """Return sorted, distinct numbers (n,) as ranges (first, last), last included, of consecutive ones: (m, 2)."""
    begins = np.diff(numbers, prepend=numbers[:1] - 2) != 1
    return np.stack((numbers[begins], numbers[np.roll(begins, -1)]), axis=1)


def union(ranges: ArrayLike) -> Integers:
    """Return ranges (first, last), last included, in any order, as few of them, in order and apart: (m, 2)."""
    pairs = np.asarray(ranges, np.int64).reshape(-1, 2)
    low, high = pairs[np.argsort(pairs[:, 0], kind="stable")].T
    high = np.maximum.accumulate(high)
    begins = low > np.concatenate((low[:1] - 2, high[:-1])) + 1
    return np.stack((low[begins], high[np.roll(begins, -1)]), axis=1)


def range_list(found: Progressions) -> list[list[int]]:
    """Return progressions of numbers as ``[first, last, step]``."""
    first, step, count = found.finish().T
    listed: list[list[int]] = np.stack((first, first + step * (count - 1), np.maximum(step, 1)), axis=1).tolist()
    return listed


LISTED = 3
"""Ranges that a message lists."""


def range_words(ranges: Sequence[Sequence[int]]) -> str:
    """Return ranges ``[first, last, step]`` in words: ``3, 7-9, 20-30 step 2, ...``."""
    words = [f"{a}" if a == b else f"{a}-{b}" + (f" step {s}" if s > 1 else "") for a, b, s in ranges[:LISTED]]
    return ", ".join(words) + (", ..." if len(ranges) > LISTED else "")
