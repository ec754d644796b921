"""Which rows of which files a virtual dataset shows, asked window by window."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows ``start + i*stride + j``, i < count, j < block, in this order."""

    start: int
    stride: int
    count: int
    block: int

    def __len__(self) -> int:
        return self.count * self.block

    def at(self, order: Rows) -> Rows:
        """The rows at places ``order`` of the selection."""
        group, inside = np.divmod(order, max(1, self.block))
        return self.start + group * self.stride + inside

    def below(self, row: int) -> int:
        """How many selected rows come before a row."""
        if row <= self.start:
            return 0
        group = min((row - self.start) // max(1, self.stride), self.count - 1)
        return group * self.block + min(row - self.start - group * self.stride, self.block)

    @property
    def last(self) -> int:
        """The last row; before the first where there is none."""
        return self.start + (self.count - 1) * self.stride + self.block - 1 if len(self) else self.start - 1


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Rows of several runs, in this order: the first row of each, (n,), and how many rows end with it, (n,)."""

    starts: Rows
    ends: Rows

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def start(self) -> int:
        """The first row."""
        return int(self.starts[0])

    @property
    def last(self) -> int:
        """The last row."""
        return int(self.starts[-1] + np.diff(self.ends, prepend=0)[-1]) - 1

    def at(self, order: Rows) -> Rows:
        """The rows at places ``order`` of the selection."""
        run = np.searchsorted(self.ends, order, "right")
        rows: Rows = self.starts[run] + order - np.concatenate(([0], self.ends))[run]
        return rows

    def below(self, row: int) -> int:
        """How many selected rows come before a row."""
        runs = int(np.searchsorted(self.starts, row))
        if not runs:
            return 0
        before = int(self.ends[runs - 2]) if runs > 1 else 0
        return min(before + row - int(self.starts[runs - 1]), int(self.ends[runs - 1]))


def _selection(space: Any) -> Selection | Runs:
    """The rows that a selection of an HDF5 dataspace takes: the same columns and lines of each."""
    if space.get_select_type() == 3:  # H5S_SEL_ALL
        return Selection(0, space.shape[0], 1, space.shape[0])
    if space.is_regular_hyperslab():
        return Selection(*(int(axis[0]) for axis in space.get_regular_hyperslab()))
    blocks = space.get_select_hyper_blocklist().astype(np.int64)
    first, last = np.sort(blocks[:, 0, 0]), np.sort(blocks[:, 1, 0])
    return Runs(first, np.cumsum(last - first + 1))


Area = tuple[int, int, int, int]
"""First line and column, and how many of them."""


def _area(space: Any) -> Area:
    """The lines and columns of a selection of frames."""
    (_, top, left), (_, bottom, right) = space.get_select_bounds()
    return int(top), int(left), int(bottom - top + 1), int(right - left + 1)


@dataclass(frozen=True, slots=True)
class Source:
    """Rows of a file and the rows of the virtual dataset that show them; which lines and columns of them.

    part, place   y, x, height and width in the file, and in the virtual dataset
    """

    name: str
    origin: Selection | Runs
    target: Selection | Runs
    part: Area
    place: Area


def _source(name: str, origin: Any, target: Any) -> Source:
    """One mapping, from the selections of the file's dataset and of the virtual one."""
    rows, place = _selection(target), _area(target)
    if not origin.shape:  # all of a dataset, whatever it has: as much as is shown
        return Source(name, Selection(0, len(rows), 1, len(rows)), rows, (0, 0, *place[2:]), place)
    return Source(name, _selection(origin), rows, _area(origin), place)


class Sources:
    """The sources of a virtual dataset; none of another one."""

    def __init__(self, dataset: Any) -> None:
        self.all = [
            _source(source.file_name.replace("%%", "%"), source.src_space, source.vspace)
            for source in (dataset.virtual_sources() if dataset.is_virtual else ())
        ]
        self._targets = _extents([source.target for source in self.all])
        self._by_name: dict[str, list[Source]] = {}
        for source in self.all:
            self._by_name.setdefault(source.name, []).append(source)
        self._origins = {name: _extents([source.origin for source in own]) for name, own in self._by_name.items()}

    def shown(self, first: int, last: int) -> Rows:
        """How many files each row of ``first`` to ``last - 1`` of the virtual dataset shows a part of."""
        shown = np.zeros(last - first, np.int64)
        for i in _overlapping(self._targets, first, last):
            target = self.all[i].target
            shown[target.at(np.arange(target.below(first), target.below(last))) - first] += 1
        return shown

    def expected(self, name: str, first: int, last: int) -> Iterator[tuple[Rows, Rows]]:
        """Rows of file ``name`` among ``first`` to ``last - 1``, and the rows that show them."""
        if name in self._origins:
            for i in _overlapping(self._origins[name], first, last):
                source = self._by_name[name][i]
                order = np.arange(source.origin.below(first), source.origin.below(last))
                yield source.origin.at(order), source.target.at(order)


def _extents(selections: list[Selection | Runs]) -> Rows:
    """First and last row (2, n) of each."""
    return np.array([(it.start, it.last) for it in selections], np.int64).reshape(-1, 2).T


def _overlapping(extents: Rows, first: int, last: int) -> list[int]:
    overlapping: list[int] = np.flatnonzero((extents[0] < last) & (extents[1] >= first)).tolist()
    return overlapping
