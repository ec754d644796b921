"""Frames of several flows that are joined: those of one flow are held until the other has told of the same frames.

A flow tells of a frame with the event of its group, or of a later one: with an event every n groups of each of L local
buffers of B blocks, up to n L B selected frames after it was acquired. So long must the other flow's local buffers hold
theirs; otherwise the source would wait for memory that waits for the source.
"""

from collections.abc import Mapping, Sequence

from lima2cli.diagnostics import Findings, Path, Related
from lima2cli.plan.records import Gdt, Step


def check_skew(steps: Sequence[Step], gdts: Sequence[Gdt], findings: Findings) -> None:
    """Local buffers that are too shallow for a join; each flow is told of once."""
    by_flow = {gdt.flow: gdt for gdt in gdts}
    told: set[str] = set()
    for step in steps:
        for flow in step.numbering.flows:
            others = [by_flow[name] for name in step.numbering.flows if name != flow]
            if others and flow not in told and not _holds(step, by_flow[flow], others, findings):
                told.add(flow)


def _holds(step: Step, gdt: Gdt, others: Sequence[Gdt], findings: Findings) -> bool:
    if gdt.rule.bounded:  # never waits for memory
        return True
    late = {other.flow: _lateness(other) for other in others}
    slowest = max(late, key=lambda name: _endless(late, name))
    held, own = _span(gdt, gdt.rule.depth), _span(gdt, 1)
    worst = late[slowest]
    if worst is None:
        last = None if gdt.selected is None else gdt.rule.frame(gdt.selected - 1) + 1 - gdt.rule.start
        if last is not None and last <= held:
            return True
        words, needed = "at the end only", "all"
    else:
        if worst + own <= held:
            return True
        words, needed = f"up to {worst} frames late", str(worst + own)
    at: Path = ("flows", gdt.flow, "buffers")
    findings.error(
        "join-too-shallow",
        f"`{step.name}` joins {gdt.flow} with {slowest}, which tells of its frames {words}: until then the local "
        f"buffers of {gdt.flow} must hold {needed} frames, they hold {held}",
        at,
        help=f"larger buffers for {gdt.flow}, or more frequent events of {slowest}",
        related=[Related(("flows", slowest), "the late one"), Related(("nodes", step.name), "the join")],
    )
    return False


def _span(gdt: Gdt, groups: int) -> int:
    """Acquired frames from one group of each local buffer to the one ``groups`` later."""
    return groups * gdt.rule.buffers * gdt.rule.blocks * gdt.rule.step


def _lateness(gdt: Gdt) -> int | None:
    """Acquired frames after which a frame is told of; None = at the end only."""
    return _span(gdt, gdt.group_event) if gdt.group_event else None


def _endless(late: Mapping[str, int | None], name: str) -> float:
    frames = late[name]
    return float("inf") if frames is None else frames
