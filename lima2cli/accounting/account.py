"""Accounting of every frame of every flow, from the reports of the ranks and the plan's arithmetic."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from lima2cli.accounting.acquisitions import Outcome
from lima2cli.files.channel import Channel
from lima2cli.files.nexus import ChannelRecord
from lima2cli.files.rows import DROPPED, INCOMPLETE, LOST, last_row, ranges_of, windows
from lima2cli.files.run_file import FlowRecord, cut_short
from lima2cli.geometry import Rule
from lima2cli.messages import FlowCount
from lima2cli.plan.ir import Gdt, Plan

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Visits:
    """Distinct frames of one flow; a frame is its index k < ``expected`` among the selected ones.

    ranges    (local buffer, first visit, visits); those beyond the last group do not count
    rows      (first, last) index of frames of other visits, in order; those beyond the last frame do not count
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
        """Set ``status`` (n,) uint8 of the frames from ``first`` on where they are among these."""
        rule = self.rule
        begin, end = rule.group(first), rule.groups(first + len(status))
        groups = np.zeros(end - begin, bool)
        for buffer, (lows, highs) in self._by_buffer.items():
            low, high = rule.visits_before(buffer, begin), rule.visits_before(buffer, end)
            inside = slice(np.searchsorted(highs, low, "right"), np.searchsorted(lows, high))
            if inside.start < inside.stop:
                # +1 where a range begins and -1 where it ends: the sum so far shows what is inside
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
        """Return the first visits and those after the last, ascending, of each local buffer."""
        kept: dict[int, list[tuple[int, int]]] = {}
        for buffer, first, count in self.ranges:
            last = min(first + count, self.rule.visits(buffer, self.expected))
            if first < last:
                kept.setdefault(buffer, []).append((first, last))
        return {buffer: _columns(sorted(pairs)) for buffer, pairs in kept.items()}

    def _short(self) -> int:
        """Return the number of blocks that the last group lacks, where it is among these."""
        group = self.rule.groups(self.expected) - 1
        buffer, visit = self.rule.turn(group)
        _, highs = self._by_buffer.get(buffer, (None, np.zeros(0, np.int64)))
        held = len(highs) and int(highs[-1]) == visit + 1
        return self.rule.blocks - self.rule.blocks_of_group(group, self.expected) if held else 0


@dataclass(frozen=True, eq=False)
class VisitStatuses:
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


RowRanges = tuple[tuple[int, int], ...]
"""First and last row of each range."""

STATUSES = ("ok", "full", "incomplete")
"""Order of statuses in a flow, the worse later; see `FlowCount`."""


@dataclass(frozen=True, eq=False)
class FlowAccount:
    """Account of one flow: expected = received + lost + dropped + missing.

    Of the absent frames ``lost`` were overwritten before they were used, ``dropped`` found a oneshot buffer full,
    ``missing`` never came, or not whole. Each holds as many as there are places where receivers hold parts of frames: a
    frame of which parts are absent for several reasons is of the last of these.
    """

    name: str
    rule: Rule
    expected: int
    received: int
    lost: tuple[Visits, ...]
    dropped: tuple[Visits, ...]
    missing: tuple[Visits, ...]
    waited_s: float
    status: str
    by_receiver: dict[int, int]
    group_events: dict[int, int]
    end_events: dict[int, int]
    peak_fill: dict[int, float]

    @property
    def statuses(self) -> VisitStatuses:
        """Return the ``frame_status`` of each selected frame, as far as the flow knows: saved where received."""
        kinds = ((LOST, self.lost), (DROPPED, self.dropped), (INCOMPLETE, self.missing))
        return VisitStatuses(self.expected, tuple((value, visits) for value, each in kinds for visits in each))

    @cached_property
    def counts(self) -> dict[int, int]:
        """Return how many frames are lost, dropped and missing, by these values of ``frame_status``."""
        if len(self.lost) == 1:
            return {LOST: len(self.lost[0]), DROPPED: len(self.dropped[0]), INCOMPLETE: len(self.missing[0])}
        counts = np.zeros(4, np.int64)
        for first, last in windows(self.expected):
            counts += np.bincount(self.statuses[first:last], minlength=4)
        return {value: int(counts[value]) for value in (LOST, DROPPED, INCOMPLETE)}

    @property
    def totals(self) -> dict[str, int]:
        """Return the number of frames expected, received, and absent for each reason, by the names that users see."""
        return {
            "expected": self.expected,
            "received": self.received,
            "lost": self.counts[LOST],
            "dropped": self.counts[DROPPED],
            "missing": self.counts[INCOMPLETE],
        }

    def absent(self) -> list[list[int]]:
        """Return the numbers of all frames that were not received, in order, as ``[first, last, step]``."""
        if not any(visits for each in (self.lost, self.dropped, self.missing) for visits in each):
            return []
        return ranges_of(self._absent())

    def _absent(self) -> Iterator[NDArray[np.int64]]:
        for first, last in windows(self.expected):
            rows = np.flatnonzero(self.statuses[first:last]) + first
            yield rows * self.rule.step + self.rule.start

    def last_row(self) -> int:
        """Return the index after the last frame that arrived, even if in vain."""
        return last_row(self.statuses, self.expected)

    def record(self) -> FlowRecord:
        """Return the record that files of the run keep of it."""
        counts = (self.counts[LOST], self.counts[DROPPED], self.counts[INCOMPLETE])
        return FlowRecord(
            self.name, self.rule.start, self.rule.step, self.expected, self.received, *counts, self.statuses
        )


@dataclass(frozen=True, eq=False)
class WorstStatus:
    """``frame_status`` of the frames of a progression that are in all of some flows: the worst of these; for slices."""

    flows: tuple[FlowAccount, ...]
    start: int
    step: int

    @cached_property
    def count(self) -> int:
        """Return how many they are."""
        lasts = [flow.rule.frame(flow.expected - 1) if flow.expected else -1 for flow in self.flows]
        return max(0, (min(lasts) - self.start) // self.step + 1)

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]:
        first, last, _ = rows.indices(self.count)
        if first >= last:
            return np.zeros(0, np.uint8)
        return reduce(np.maximum, (self._of(flow, first, last) for flow in self.flows))

    def _of(self, flow: FlowAccount, first: int, last: int) -> NDArray[np.uint8]:
        begin = flow.rule.index(self.start + first * self.step)
        stride = self.step // flow.rule.step
        return flow.statuses[begin : begin + (last - first - 1) * stride + 1][::stride]


@dataclass(frozen=True, eq=False)
class ChannelAccount:
    """Account of the frames of a channel, by row; a frame that several make is worth its worst part.

    flows      accounts of the flows that all of its frames come from;  frames  those of them that make the rows
    expected   rows: frames that should be saved; a last incomplete window among them, which is dropped and has no row
               in files
    dropped    (first, last) rows that transforms on the way gave up
    unmatched  (first, last) rows that were not in all inputs of a join; they count as lost
    vetoed     frames that filters on the way did not let pass
    """

    channel: Channel
    flows: tuple[FlowAccount, ...]
    frames: WorstStatus
    expected: int
    dropped: RowRanges
    unmatched: RowRanges
    vetoed: int

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]:
        """Return the ``frame_status`` of rows, as far as flows and transforms know: saved where none lost them."""
        first, last, _ = rows.indices(self.expected)
        window = self.channel.window
        if window == 0:
            status = np.zeros(last - first, np.uint8)  # all frames that came are one, whichever they were
        else:
            frames = self.frames[first * window : last * window]
            short = (last - first) * window - len(frames)
            status = np.pad(frames, (0, short)).reshape(-1, window).max(axis=1)
        last_window = ((self.whole, self.expected - 1),)
        for value, ranges in ((DROPPED, self.dropped), (LOST, self.unmatched), (DROPPED, last_window)):
            for begin, end in ranges:
                status[max(begin, first) - first : max(0, end + 1 - first)] = value
        return status

    @property
    def whole(self) -> int:
        """Number of rows without a last incomplete window."""
        return self.frames.count // self.channel.window if self.channel.window else self.expected

    def count_dropped(self) -> int:
        """Return the number of rows that were dropped, by a full buffer or by a transform."""
        return sum(int((self[first:last] == DROPPED).sum()) for first, last in windows(self.expected))

    def rows(self) -> int:
        """Return the number of rows of the master.

        All that are expected; where the run was cut short, those up to the last that arrived.
        """
        expected = {flow.name: flow.expected for flow in self.flows}
        if self.channel.window == 0 or not cut_short(ChannelRecord.of(self.channel, "master"), expected):
            return self.whole if self.channel.window > 1 else self.expected
        if self.channel.window > 1:
            return min(self.whole, -(-last_row(self.frames, self.frames.count) // self.channel.window))
        return last_row(self, self.expected)


def channel_account(plan: Plan, channel: Channel, flows: Mapping[str, FlowAccount], outcome: Outcome) -> ChannelAccount:
    """Return the account of a channel from those of all flows."""
    own = tuple(flows[name] for name in channel.flows or (channel.flow,))
    window, rule = channel.window, channel.rule
    frames = WorstStatus(own, rule.start, rule.step // max(1, window))
    expected = -(-frames.count // window) if window else min(1, frames.count)
    dropped, unmatched = (given_up(rule, names, outcome, window) for names in (channel.upstream, channel.unmatched))
    return ChannelAccount(channel, own, frames, expected, dropped, unmatched, _vetoed(plan, channel, outcome))


def _vetoed(plan: Plan, channel: Channel, outcome: Outcome) -> int:
    filters = next(step.numbering.filters for step in plan.steps if step.name == channel.node)
    return sum(
        counted(plan, name, [report.vetoed.get(name, 0) for report in outcome.receivers.values()]) for name in filters
    )


def counted(plan: Plan, node: str, counts: Sequence[int]) -> int:
    """Return the number of frames that all receivers together have counted at a node, each ``counts``.

    Where they hold parts of frames, each of them counts the same frames.
    """
    parts = next(step.numbering.parts for step in plan.steps if step.name == node)
    return max(counts, default=0) if parts else sum(counts)


def given_up(rule: Rule, nodes: Sequence[str], outcome: Outcome, window: int = 1) -> RowRanges:
    """Return (first, last) rows of the frames that nodes gave up on any receiver, in order, none twice.

    window  frames that make a row (0 = all); frames that make none, since they are not in all flows, are left out
    """
    step, frames = rule.step // max(1, window), []
    for report in outcome.receivers.values():
        for name in nodes:
            for first, last in report.dropped.get(name, ()):
                frames.append((max(0, -(-(first - rule.start) // step)), (last - rule.start) // step))
    rows = [(low // max(1, window), high // max(1, window)) for low, high in frames if low <= high]
    apart: list[tuple[int, int]] = []
    for first, last in sorted(rows):
        if apart and first <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(last, apart[-1][1]))
        else:
            apart.append((first, last))
    return tuple(apart)


def count_rows(ranges: RowRanges) -> int:
    """Return how many rows they are."""
    return sum(last + 1 - first for first, last in ranges)


def flow_accounts(plan: Plan, outcome: Outcome) -> dict[str, FlowAccount]:
    """Return the accounts of all flows of a run that ended in order."""
    flows = dict.fromkeys(gdt.flow for gdt in plan.gdts)
    return {flow: _joined(flow, [_account(gdt, outcome) for gdt in plan.gdts_of(flow)]) for flow in flows}


def _joined(flow: str, parts: Sequence["FlowAccount"]) -> "FlowAccount":
    """Return the account of a flow whose receivers hold parts of frames.

    A frame was received where all its parts were.
    """
    if len(parts) == 1:
        return replace(parts[0], name=flow)
    whole = replace(
        parts[0],
        name=flow,
        lost=tuple(part.lost[0] for part in parts),
        dropped=tuple(part.dropped[0] for part in parts),
        missing=tuple(part.missing[0] for part in parts),
        waited_s=max(part.waited_s for part in parts),
        status=max((part.status for part in parts), key=STATUSES.index),
        by_receiver={number: count for part in parts for number, count in part.by_receiver.items()},
        group_events={number: count for part in parts for number, count in part.group_events.items()},
        end_events={number: count for part in parts for number, count in part.end_events.items()},
        peak_fill={number: fill for part in parts for number, fill in part.peak_fill.items()},
    )
    return replace(whole, received=whole.expected - sum(whole.counts.values()))


def _account(gdt: Gdt, outcome: Outcome) -> FlowAccount:
    expected = gdt.rule.selected(outcome.frames) or 0
    counts: dict[int, FlowCount] = {
        number: report.flows[gdt.name] for number, report in outcome.receivers.items() if gdt.name in report.flows
    }
    rule, visits = gdt.rule, [gdt.rule.visits(index, expected) for index in range(gdt.rule.buffers)]
    room = [min(count, rule.groups_per_buffer) if rule.bounded else count for count in visits]
    silent = [(index, 0, room[index]) for index, buffer in enumerate(gdt.buffers) if buffer.receiver not in counts]
    dropped = [(index, room[index], visits[index] - room[index]) for index in range(rule.buffers)]
    lost = [visit for count in counts.values() for visit in count.lost]
    missing = [visit for count in counts.values() for visit in count.missing] + silent
    incomplete = tuple(sorted(row for count in counts.values() for row in count.incomplete))
    return FlowAccount(
        name=gdt.name,
        rule=gdt.rule,
        expected=expected,
        received=sum(count.received for count in counts.values()),
        lost=(_visits(gdt, lost, expected),),
        dropped=(_visits(gdt, dropped, expected),),
        missing=(replace(_visits(gdt, missing, expected), rows=incomplete),),
        waited_s=max((source.waited_s.get(gdt.name, 0.0) for source in outcome.sources.values()), default=0.0),
        status=max((count.status for count in counts.values()), key=STATUSES.index, default="incomplete"),
        by_receiver={number: count.received for number, count in counts.items()},
        group_events={number: count.group_events for number, count in counts.items()},
        end_events={number: count.end_events for number, count in counts.items()},
        peak_fill={number: count.peak_fill for number, count in counts.items()},
    )


def _visits(gdt: Gdt, ranges: list[tuple[int, int, int]], expected: int) -> Visits:
    return Visits(gdt.rule, expected, tuple(span for span in ranges if span[2] > 0))
