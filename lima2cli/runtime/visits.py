"""Frames given as ranges of visits of local buffers, looked at a window at a time: no array grows with a run."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lima2cli.geometry import Rule

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Visits:
    """Distinct frames of one flow; a frame is its index k < ``expected`` among the selected ones.

    ranges    (local buffer, first visit, visits); what lies beyond the last group does not count
    rows      (first, last) index of frames of other visits, in order; what lies beyond the last frame does not count
    """

    rule: Rule
    expected: int
    ranges: tuple[tuple[int, int, int], ...]
    rows: tuple[tuple[int, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ranges or self.rows)

    def __len__(self) -> int:
        apart = sum(min(last, self.expected - 1) + 1 - first for first, last in self.rows if first < self.expected)
        return (
            apart
            + int(sum((last - first).sum() for first, last in self._by_buffer.values())) * self.rule.blocks
            - (self._short() if self.expected else 0)
        )

    def mark(self, status: NDArray[np.uint8], first: int, value: int) -> None:
        """Set ``status`` (n,) of the frames from ``first`` on where they are among these."""
        rule = self.rule
        begin, end = rule.group(first), rule.groups(first + len(status))
        groups = np.zeros(end - begin, bool)
        for buffer, (lows, highs) in self._by_buffer.items():
            low, high = rule.visits_before(buffer, begin), rule.visits_before(buffer, end)
            inside = slice(np.searchsorted(highs, low, "right"), np.searchsorted(lows, high))
            if inside.start < inside.stop:
                # +1 where a range begins and -1 where it ends: the sum so far tells what is inside
                edges = np.bincount(np.maximum(lows[inside], low) - low, minlength=high - low + 1)
                edges -= np.bincount(np.minimum(highs[inside], high) - low, minlength=high - low + 1)
                groups[rule.group_of(buffer, low) - begin :: rule.buffers] = np.cumsum(edges[:-1]) > 0
        if groups.any():
            status[groups[rule.group(np.arange(first, first + len(status))) - begin]] = value
        for low, high in self.rows[bisect_left(self.rows, first, key=lambda row: row[1]) :]:
            if low >= first + len(status):
                break
            status[max(low, first) - first : high + 1 - first] = value

    @cached_property
    def _by_buffer(self) -> dict[int, tuple[Indices, Indices]]:
        """First visits and those after the last, ascending, of each local buffer."""
        kept: dict[int, list[tuple[int, int]]] = {}
        for buffer, first, count in self.ranges:
            last = min(first + count, self.rule.visits(buffer, self.expected))
            if first < last:
                kept.setdefault(buffer, []).append((first, last))
        return {buffer: _columns(sorted(pairs)) for buffer, pairs in kept.items()}

    def _short(self) -> int:
        """Blocks that the last group lacks, where it is among these."""
        group = self.rule.groups(self.expected) - 1
        buffer, visit = self.rule.turn(group)
        _, highs = self._by_buffer.get(buffer, (None, np.zeros(0, np.int64)))
        held = len(highs) and int(highs[-1]) == visit + 1
        return self.rule.blocks - self.rule.blocks_of_group(group, self.expected) if held else 0


@dataclass(frozen=True, eq=False)
class Statuses:
    """``frame_status`` of each selected frame of a flow, for slices: 0 but where some visits have another value."""

    expected: int
    values: tuple[tuple[int, Visits], ...]

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]:
        first, last, _ = rows.indices(self.expected)
        status = np.zeros(max(0, last - first), np.uint8)
        for value, visits in self.values:
            if visits:
                visits.mark(status, first, value)
        return status


def _columns(pairs: Iterable[tuple[int, int]]) -> tuple[Indices, Indices]:
    low, high = np.array(list(pairs), np.int64).T
    return low, high
