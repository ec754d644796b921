"""What became of every frame of every flow, from what the ranks reported and the plan's own arithmetic."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lima2cli.geometry import Rule
from lima2cli.plan.records import Gdt, Plan
from lima2cli.runtime.control import Outcome
from lima2cli.runtime.messages import FlowCount

SAVED, LOST, DROPPED, INCOMPLETE = 0, 1, 2, 3
"""Values of ``frame_status`` in the files."""

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FlowAccount:
    """One flow: expected = received + lost + dropped + missing.

    Absent frames are given by index k among the selected ones: ``lost`` overwritten before they were used,
    ``dropped`` found a oneshot buffer full, ``missing`` never came.
    """

    name: str
    rule: Rule
    expected: int
    received: int
    lost: Indices
    dropped: Indices
    missing: Indices
    waited_s: float
    by_receiver: dict[int, int]
    group_events: dict[int, int]
    end_events: dict[int, int]
    peak_fill: dict[int, float]

    @property
    def absent(self) -> Indices:
        """All frames that were not received, in order."""
        return np.sort(np.concatenate([self.lost, self.dropped, self.missing]))

    def statuses(self) -> NDArray[np.uint8]:
        """(expected,) ``frame_status`` of each selected frame, as far as the flow knows: saved where received."""
        status = np.zeros(self.expected, np.uint8)
        status[self.lost] = LOST
        status[self.dropped] = DROPPED
        status[self.missing] = INCOMPLETE
        return status


def flow_accounts(plan: Plan, outcome: Outcome) -> dict[str, FlowAccount]:
    """Accounts of all flows of a run that ended in order."""
    return {gdt.name: _account(gdt, outcome) for gdt in plan.gdts}


def _account(gdt: Gdt, outcome: Outcome) -> FlowAccount:
    expected = gdt.rule.selected(outcome.frames) or 0
    counts: dict[int, FlowCount] = {
        number: report.flows[gdt.name] for number, report in outcome.receivers.items() if gdt.name in report.flows
    }
    silent = [
        (index, 0, gdt.rule.visits(index, expected))
        for index, buffer in enumerate(gdt.buffers)
        if buffer.receiver not in counts
    ]
    dropped = [
        (index, gdt.rule.groups_per_buffer, gdt.rule.visits(index, expected) - gdt.rule.groups_per_buffer)
        for index in range(gdt.rule.buffers)
        if gdt.rule.bounded
    ]
    return FlowAccount(
        name=gdt.name,
        rule=gdt.rule,
        expected=expected,
        received=sum(count.received for count in counts.values()),
        lost=_indices(gdt.rule, [visit for count in counts.values() for visit in count.lost], expected),
        dropped=_indices(gdt.rule, dropped, expected),
        missing=_indices(gdt.rule, [v for count in counts.values() for v in count.missing] + silent, expected),
        waited_s=max((source.waited_s.get(gdt.name, 0.0) for source in outcome.sources.values()), default=0.0),
        by_receiver={number: count.received for number, count in counts.items()},
        group_events={number: count.group_events for number, count in counts.items()},
        end_events={number: count.end_events for number, count in counts.items()},
        peak_fill={number: count.peak_fill for number, count in counts.items()},
    )


def _indices(rule: Rule, visits: list[tuple[int, int, int]], expected: int) -> Indices:
    """Indices of the blocks of (local buffer, first visit, visits), sorted, below ``expected``."""
    pieces = []
    for buffer, first, count in visits:
        if count > 0:
            groups = (np.arange(first, first + count, dtype=np.int64) * rule.buffers + buffer) * rule.blocks
            pieces.append(np.add.outer(groups, np.arange(rule.blocks, dtype=np.int64)).ravel())
    if not pieces:
        return np.zeros(0, np.int64)
    found = np.sort(np.concatenate(pieces))
    return found[found < expected]
