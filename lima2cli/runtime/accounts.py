"""What became of every frame of every flow, from what the ranks reported and the plan's own arithmetic."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.channel import Channel
from lima2cli.artefacts.progressions import ranges_of
from lima2cli.artefacts.rows import windows
from lima2cli.geometry import Rule
from lima2cli.plan.records import Gdt, Plan
from lima2cli.runtime.control import Outcome
from lima2cli.runtime.messages import FlowCount
from lima2cli.runtime.visits import Statuses, Visits

SAVED, LOST, DROPPED, INCOMPLETE = 0, 1, 2, 3
"""Values of ``frame_status`` in the files."""


RowRanges = tuple[tuple[int, int], ...]
"""First and last row of each range."""

STATUSES = ("ok", "full", "incomplete")
"""Of a flow, the worse later; see `FlowCount`."""


@dataclass(frozen=True, eq=False)
class FlowAccount:
    """One flow: expected = received + lost + dropped + missing.

    Of the absent frames ``lost`` were overwritten before they were used, ``dropped`` found a oneshot buffer full,
    ``missing`` never came, or not whole.
    """

    name: str
    rule: Rule
    expected: int
    received: int
    lost: Visits
    dropped: Visits
    missing: Visits
    waited_s: float
    status: str
    by_receiver: dict[int, int]
    group_events: dict[int, int]
    end_events: dict[int, int]
    peak_fill: dict[int, float]

    @property
    def statuses(self) -> Statuses:
        """``frame_status`` of each selected frame, as far as the flow knows: saved where received."""
        return Statuses(self.expected, ((LOST, self.lost), (DROPPED, self.dropped), (INCOMPLETE, self.missing)))

    def absent(self) -> list[list[int]]:
        """Numbers of all frames that were not received, in order, as ``[first, last, step]``."""
        if not (self.lost or self.dropped or self.missing):
            return []
        return ranges_of(self._absent())

    def _absent(self) -> Iterator[NDArray[np.int64]]:
        for first, last in windows(self.expected):
            rows = np.flatnonzero(self.statuses[first:last]) + first
            yield rows * self.rule.step + self.rule.start

    def last_row(self) -> int:
        """Index after the last frame that is not missing."""
        for first, last in reversed(list(windows(self.expected))):
            if len(kept := np.flatnonzero(self.statuses[first:last] != INCOMPLETE)):
                return first + int(kept[-1]) + 1
        return 0


@dataclass(frozen=True, eq=False)
class ChannelAccount:
    """What became of the frames of a channel, by row; a frame that several make is worth its worst part.

    expected   rows: frames that should be saved, a last incomplete window among them
    dropped    (first, last) rows that transforms on the way gave up
    unmatched  (first, last) rows that were not in all inputs of a join; they count as lost
    """

    channel: Channel
    flow: FlowAccount
    expected: int
    dropped: RowRanges
    unmatched: RowRanges

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]:
        """``frame_status`` of rows, as far as flow and transforms know: saved where neither lost them."""
        first, last, _ = rows.indices(self.expected)
        window = self.channel.window
        if window == 1:
            status = self.flow.statuses[first:last]
        elif window == 0:
            status = np.zeros(last - first, np.uint8)  # all frames that came are one, whichever they were
        else:
            frames = self.flow.statuses[first * window : last * window]
            short = (last - first) * window - len(frames)
            status = np.pad(frames, (0, short), constant_values=DROPPED).reshape(-1, window).max(axis=1)
        for value, ranges in ((DROPPED, self.dropped), (LOST, self.unmatched)):
            for begin, end in ranges:
                status[max(begin, first) - first : max(0, end + 1 - first)] = value
        return status

    def count_dropped(self) -> int:
        """Rows that were dropped, by a full buffer or by a transform."""
        return sum(int((self[first:last] == DROPPED).sum()) for first, last in windows(self.expected))

    def rows(self) -> int:
        """Rows of the master: cut after the last that is not missing."""
        if self.channel.window == 1:
            return self.flow.last_row()
        if self.channel.window == 0:
            return self.expected
        return -(-self.flow.last_row() // self.channel.window)


def channel_account(channel: Channel, flow: FlowAccount, outcome: Outcome) -> ChannelAccount:
    """The account of a channel from that of its flow."""
    window = channel.window
    expected = -(-flow.expected // window) if window else min(1, flow.expected)
    rule = channel.rule
    dropped, unmatched = (given_up(rule, names, outcome) for names in (channel.upstream, channel.unmatched))
    return ChannelAccount(channel, flow, expected, dropped, unmatched)


def given_up(rule: Rule, nodes: Sequence[str], outcome: Outcome) -> RowRanges:
    """(first, last) rows of the frames that nodes gave up on any receiver, in order, none twice."""
    found = [
        ((first - rule.start) // rule.step, (last - rule.start) // rule.step)
        for report in outcome.receivers.values()
        for name in nodes
        for first, last in report.dropped.get(name, ())
    ]
    apart: list[tuple[int, int]] = []
    for first, last in sorted(found):
        if apart and first <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(last, apart[-1][1]))
        else:
            apart.append((first, last))
    return tuple(apart)


def count_rows(ranges: RowRanges) -> int:
    """How many rows they are."""
    return sum(last + 1 - first for first, last in ranges)


def flow_accounts(plan: Plan, outcome: Outcome) -> dict[str, FlowAccount]:
    """Accounts of all flows of a run that ended in order."""
    return {gdt.name: _account(gdt, outcome) for gdt in plan.gdts}


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
        lost=_visits(gdt, lost, expected),
        dropped=_visits(gdt, dropped, expected),
        missing=replace(_visits(gdt, missing, expected), rows=incomplete),
        waited_s=max((source.waited_s.get(gdt.name, 0.0) for source in outcome.sources.values()), default=0.0),
        status=max((count.status for count in counts.values()), key=STATUSES.index, default="incomplete"),
        by_receiver={number: count.received for number, count in counts.items()},
        group_events={number: count.group_events for number, count in counts.items()},
        end_events={number: count.end_events for number, count in counts.items()},
        peak_fill={number: count.peak_fill for number, count in counts.items()},
    )


def _visits(gdt: Gdt, ranges: list[tuple[int, int, int]], expected: int) -> Visits:
    return Visits(gdt.rule, expected, tuple(it for it in ranges if it[2] > 0))
