"""The account of a run: of every frame of every flow and channel.

It is computed by one function, of what the receivers have counted: in their reports, or, where ranks died, in their
ledgers and in the files, which may hold frames that came after the last line of a ledger.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property, reduce
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lima2cli.accounting.holdings import Holding, holdings_of
from lima2cli.accounting.record import GdtRecord, Kept, RunRecord, read_ledger
from lima2cli.dataclass import dataclass
from lima2cli.files.channel import Channel
from lima2cli.files.inspection import Inspection
from lima2cli.files.nexus import ChannelRecord, ledger_file
from lima2cli.files.rows import DROPPED, INCOMPLETE, LOST, SAVED, last_row, runs, union, windows
from lima2cli.files.run_file import FlowRecord, cut_short, kept_flows
from lima2cli.geometry import Rule
from lima2cli.messages import Counts, FlowCount

Indices = NDArray[np.int64]

NONE: Indices = np.empty((0, 2), np.int64)
"""No ranges."""


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


@dataclass(frozen=True, eq=False)
class VisitStatuses:
    """``frame_status`` of each selected frame of a flow, for slices: 0, or the value of the last visits with it."""

    expected: int
    values: tuple[tuple[int, Visits], ...]

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]:
        first, last, _ = rows.indices(self.expected)
        status = np.zeros(max(0, last - first), np.uint8)
        for value, visits in self.values:
            visits.mark(status, first, value)
        return status


@dataclass(frozen=True, eq=False)
class WorstPart:
    """The worst status of the parts of each selected frame, for slices."""

    parts: tuple[VisitStatuses, ...]

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]:
        return reduce(np.maximum, (part[rows] for part in self.parts))


def _columns(pairs: Iterable[tuple[int, int]]) -> tuple[Indices, Indices]:
    low, high = np.array(list(pairs), np.int64).T
    return low, high


RowRanges = tuple[tuple[int, int], ...]
"""First and last row of each range."""


@dataclass(frozen=True, eq=False)
class WorstStatus:
    """``frame_status`` of the frames of a progression that are in all of some flows: the worst of these; for slices."""

    flows: tuple[FlowRecord, ...]
    start: int
    step: int

    @cached_property
    def count(self) -> int:
        """Return how many they are."""
        lasts = [flow.start + (flow.expected - 1) * flow.step if flow.expected else -1 for flow in self.flows]
        return max(0, (min(lasts) - self.start) // self.step + 1)

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]:
        first, last, _ = rows.indices(self.count)
        if first >= last:
            return np.zeros(0, np.uint8)
        return reduce(np.maximum, (self._of(flow, first, last) for flow in self.flows))

    def _of(self, flow: FlowRecord, first: int, last: int) -> NDArray[np.uint8]:
        begin = (self.start + first * self.step - flow.start) // flow.step
        stride = self.step // flow.step
        return flow[begin : begin + (last - first - 1) * stride + 1][::stride]


@dataclass(frozen=True, eq=False)
class ChannelAccount:
    """Account of the frames of a channel, by row; a frame that several make is worth its worst part.

    flows      accounts of the flows that all of its frames come from;  frames  those of them that make the rows
    expected   rows: frames that should be saved; a last incomplete window among them, which is dropped and has no row
               in files
    dropped    (first, last) rows that transforms on the way gave up
    unmatched  (first, last) rows that were not in all inputs of a join; they count as lost
    vetoed     frames that filters on the way did not let pass
    known      whether all of this is: no ledger of a receiver that died is absent or damaged
    """

    channel: Channel
    flows: tuple[FlowRecord, ...]
    frames: WorstStatus
    expected: int
    dropped: RowRanges
    unmatched: RowRanges
    vetoed: int
    known: bool = True

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


@dataclass(frozen=True, eq=False)
class RunAccount:
    """Account of every frame of an acquisition, as far as it is known.

    frames     before which frame it ended, None where its receivers had not been told
    flows      by name; those of whose frames nothing is known are left out
    channels   by node
    unmatched  by node behind joins, how many frames were not in all inputs, where it is known
    warnings   plain sentences: ledgers that are absent or damaged
    """

    frames: int | None
    flows: Mapping[str, FlowRecord]
    channels: Mapping[str, ChannelAccount]
    unmatched: Mapping[str, int]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that is known of an acquisition.

    counts    of receivers, by index
    frames    before which frame it ended, None = not known
    doubtful  receivers that may have known more
    found     by flow, (first, last) index (n, 2) of frames that are in files, as far as they are not counted
    kept      accounts of flows that files have, by name
    """

    counts: Mapping[int, Counts]
    frames: int | None
    doubtful: frozenset[int] = frozenset()
    found: Mapping[str, Indices] = field(default_factory=dict)
    kept: Mapping[str, FlowRecord] = field(default_factory=dict)


def recovered_account(record: RunRecord, directory: Path) -> RunAccount:
    """Return the account of an acquisition from its directory: from ledgers and files.

    Frames that are in files were received, whatever the ledgers say. A run whose end is not known ends with the last
    frame that any of them has.
    """
    inspection = Inspection(str(directory), False)
    ledgers, warnings = _ledgers(record, directory, bool(inspection.files))
    counts = {receiver: ledger.counts for receiver, ledger in ledgers.items()}
    ends = [ledger.frames for ledger in ledgers.values() if ledger.frames is not None]
    receivers = {receiver for gdt in record.gdts for receiver in gdt.receivers}
    holdings = holdings_of(inspection)
    evidence = Evidence(
        counts,
        min(ends, default=record.frames),
        frozenset(receiver for receiver in receivers if receiver not in ledgers or ledgers[receiver].damaged),
        {flow: _found(record.gdts_of(flow), counts, holdings) for flow in record.flows},
        kept_flows(inspection),
    )
    return replace(account(record, evidence), warnings=tuple(warnings))


def _ledgers(record: RunRecord, directory: Path, started: bool) -> tuple[dict[int, Kept], list[str]]:
    """Return the ledgers of a directory by receiver, and a warning for each that is absent or damaged.

    ``started``: the run has files, so that there should be ledgers.
    """
    ledgers: dict[int, Kept] = {}
    warnings = []
    for receiver in sorted({receiver for gdt in record.gdts for receiver in gdt.receivers}):
        name = ledger_file(record.name, receiver)
        try:
            ledger = ledgers[receiver] = read_ledger(directory / name)
            doubt = None if ledger.damaged is None else f"is damaged from line {ledger.damaged} on"
        except OSError as error:
            doubt = f"can't be read ({error.strerror})" if started else None
        if doubt is not None:
            warnings.append(f"{name} {doubt}: not all reasons why frames are not saved are known")
    return ledgers, warnings


def account(record: RunRecord, evidence: Evidence) -> RunAccount:
    """Return the account of an acquisition from all that is known of it."""
    frames = evidence.frames
    end = frames if frames is not None else max((_end(gdt, evidence) for gdt in record.gdts), default=0)
    flows: dict[str, FlowRecord] = {}
    saved = {node.flow for node in record.nodes.values() if node.complete}
    unknown, doubted = set(), set()
    for flow in record.flows:
        gdts = record.gdts_of(flow)
        if not evidence.doubtful.isdisjoint(receiver for gdt in gdts for receiver in gdt.receivers):
            doubted.add(flow)
            unknown |= {flow} - saved - evidence.kept.keys()
        if flow in doubted and flow in evidence.kept:
            flows[flow] = evidence.kept[flow]
        else:
            flows[flow] = _flow(gdts, evidence, gdts[0].rule.selected(end) or 0)
    channels = {
        name: _channel(record, channel, flows, evidence.counts, doubted) for name, channel in record.channels.items()
    }
    lost = {name: one.unmatched for name, one in channels.items()}
    for name, table in record.tables.items():
        lost[name] = given_up(table.rule, table.unmatched, evidence.counts, table.window)
    unmatched = {
        name: _count_unmatched(record, lost[name], node.unmatched, evidence.counts)
        for name, node in record.nodes.items()
        if node.unmatched and doubted.isdisjoint(node.flows or (node.flow,))
    }
    return RunAccount(frames, {name: flow for name, flow in flows.items() if name not in unknown}, channels, unmatched)


def _channel(
    record: RunRecord,
    channel: Channel,
    flows: Mapping[str, FlowRecord],
    counts: Mapping[int, Counts],
    doubted: set[str],
) -> ChannelAccount:
    """Return the account of a channel from those of all flows."""
    own = tuple(flows[name] for name in channel.flows or (channel.flow,))
    window, rule = channel.window, channel.rule
    frames = WorstStatus(own, rule.start, rule.step // max(1, window))
    expected = -(-frames.count // window) if window else min(1, frames.count)
    dropped, unmatched = (given_up(rule, names, counts, window) for names in (channel.upstream, channel.unmatched))
    vetoed = sum(
        counted(record, name, [each.vetoed.get(name, 0) for each in counts.values()])
        for name in record.filters[channel.node]
    )
    known = channel.complete or doubted.isdisjoint(flow.name for flow in own)
    return ChannelAccount(channel, own, frames, expected, dropped, unmatched, vetoed, known)


def _count_unmatched(record: RunRecord, rows: RowRanges, nodes: Sequence[str], counts: Mapping[int, Counts]) -> int:
    """Return the number of frames that were not in all inputs of the joins ``nodes``, those given up among them."""
    single = sum(counted(record, name, [each.beside.get(name, 0) for each in counts.values()]) for name in nodes)
    return sum(last + 1 - first for first, last in rows) + single


def counted(record: RunRecord, node: str, counts: Sequence[int]) -> int:
    """Return the number of frames that all receivers together have counted at a node, each ``counts``.

    Where they hold parts of frames, each of them counts the same frames.
    """
    return max(counts, default=0) if node in record.divided else sum(counts)


def given_up(rule: Rule, nodes: Sequence[str], counts: Mapping[int, Counts], window: int = 1) -> RowRanges:
    """Return (first, last) rows of the frames that nodes gave up on any receiver, in order, none twice.

    window  frames that make a row (0 = all); frames that make none, since they are not in all flows, are left out
    """
    step, frames = rule.step // max(1, window), []
    for each in counts.values():
        for name in nodes:
            for first, last in each.dropped.get(name, ()):
                frames.append((max(0, -(-(first - rule.start) // step)), (last - rule.start) // step))
    return _tuples(union([(low // max(1, window), high // max(1, window)) for low, high in frames if low <= high]))


def _tuples(ranges: Indices) -> RowRanges:
    return tuple((first, last) for first, last in ranges.tolist())


def _flow(gdts: Sequence[GdtRecord], evidence: Evidence, expected: int) -> FlowRecord:
    """Return the account of a flow, which has a GDT for each place where its receivers hold parts of frames.

    A frame was received where all its parts were. One of which parts are absent for several reasons is of the last of
    these: lost, dropped, missing.
    """
    parts = [_statuses(gdt, evidence, expected) for gdt in gdts]
    statuses, counts = WorstPart(tuple(parts)), np.array([expected, 0, 0, 0])
    if any(part.values for part in parts):
        counts = sum((np.bincount(statuses[a:b], minlength=4) for a, b in windows(expected)), np.zeros(4, np.int64))
    received, lost, dropped, missing = (int(counts[value]) for value in (SAVED, LOST, DROPPED, INCOMPLETE))
    rule = gdts[0].rule
    return FlowRecord(gdts[0].flow, rule.start, rule.step, expected, received, lost, dropped, missing, statuses)


def _statuses(gdt: GdtRecord, evidence: Evidence, expected: int) -> VisitStatuses:
    """Return the statuses of the frames of a GDT: those that nobody has counted are missing, unless files have them."""
    rule, count = gdt.rule, _together(gdt, evidence.counts)
    visits = [rule.visits(buffer, expected) for buffer in range(rule.buffers)]
    room = [min(each, rule.groups_per_buffer) if rule.bounded else each for each in visits]
    open_ = [(buffer, done, room[buffer] - done) for buffer, done in count.done.items()]
    dropped = [(buffer, room[buffer], visits[buffer] - room[buffer]) for buffer in range(rule.buffers)]
    missing = replace(_visits(rule, expected, count.missing), rows=tuple(sorted(count.incomplete)))
    marks = [
        (LOST, _visits(rule, expected, count.lost)), (DROPPED, _visits(rule, expected, dropped)), (INCOMPLETE, missing)
    ]  # fmt: skip
    if uncounted := _visits(rule, expected, open_):
        found = Visits(rule, expected, (), _tuples(evidence.found.get(gdt.flow, NONE)))
        marks = [(INCOMPLETE, uncounted), (SAVED, found), *marks]
    return VisitStatuses(expected, tuple((value, visits) for value, visits in marks if visits))


def _visits(rule: Rule, expected: int, ranges: Iterable[tuple[int, int, int]]) -> Visits:
    return Visits(rule, expected, tuple(span for span in ranges if span[2] > 0))


def _together(gdt: GdtRecord, counts: Mapping[int, Counts]) -> FlowCount:
    """Return what all receivers of a GDT have counted together; of one that has not nothing is done."""
    own = [each.flows[gdt.name] for each in counts.values() if gdt.name in each.flows]
    return FlowCount(
        done=dict.fromkeys(range(gdt.rule.buffers), 0)
        | {key: done for count in own for key, done in count.done.items()},
        lost=[visits for count in own for visits in count.lost],
        missing=[visits for count in own for visits in count.missing],
        incomplete=[rows for count in own for rows in count.incomplete],
    )


def _end(gdt: GdtRecord, evidence: Evidence) -> int:
    """Return the number after the last frame that is counted or in a file."""
    rule, count = gdt.rule, _together(gdt, evidence.counts)
    used = [(buffer, done - 1) for buffer, done in count.done.items() if done]
    used += [(buffer, visit + visits - 1) for buffer, visit, visits in (*count.lost, *count.missing)]
    rows = [(rule.group_of(*each) + 1) * rule.blocks - 1 for each in used]
    rows += [last for _, last in (*count.incomplete, *evidence.found.get(gdt.flow, NONE).tolist())]
    return rule.frame(max(rows)) + 1 if rows else 0


def _found(gdts: Sequence[GdtRecord], counts: Mapping[int, Counts], holdings: Sequence[Holding]) -> Indices:
    """Return (first, last) index (n, 2) of frames of a flow that are in files, whole, and may not have been counted.

    What can't be read of files is not found; an inspection reports it.
    """
    rule, rows = gdts[0].rule, [NONE]
    done = [visit for gdt in gdts for visit in _together(gdt, counts).done.items()]
    first = min(rule.group_of(*each) for each in done) * rule.blocks
    for holding in holdings:
        if gdts[0].flow in holding.record.flows and holding.record.window == 1:
            for held in holding.held_rows():
                index = (held * holding.record.step + holding.record.start - rule.start) // rule.step
                rows.append(runs(index[index >= first]))
    return union(np.concatenate(rows))
