"""Frames of several flows that are joined: those of one flow are held until the others have reported the same frames.

With an event every n groups of each of L local buffers of B blocks, a flow reports a frame with the last frame of the
group that comes (n-1) L groups after its own at the latest. Until then the other flow's local buffers must hold theirs
and the frames that arrive meanwhile, with whole groups, and as many of these as a receiver takes and gives back
together; else its source would wait for memory that waits for the source. Groups without an event, at the end of a
flow, are reported at the end of the run: until then the other flow must hold all that it still has.
"""

from collections.abc import Sequence

from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import Findings, KeyPath, Related
from lima2cli.nodes.base import Select, Sink
from lima2cli.plan.ir import Gdt, Step

BATCHES = 4
"""Divisor of the groups that a local buffer holds: a receiver takes up to one in so many of them together."""


@dataclass(frozen=True)
class Skew:
    """The frames that a flow must hold because of another that it is joined with.

    frames  acquired frames, None = endless;  other  the flow that is late;  late  how late, for people
    """

    frames: int | None
    other: str
    late: str


@dataclass(frozen=True)
class Unreleased:
    """Acquired frames of a flow that may stay in its local buffers until other flows or receivers have theirs, and the
    nodes that wait for these.
    """

    frames: int
    nodes: tuple[str, ...]


def unreleased(steps: Sequence[Step], gdt: Gdt, gdts: Sequence[Gdt]) -> Unreleased:
    """Return the unreleased frames of a flow, at most, where sources write as they should.

    They wait in joins, and in collectives on parts of frames, each of which has to wait for the event of the same group
    at the others. Results of nodes have memory of their own.
    """
    views, waits = {gdt.flow}, dict[str, int]()
    together = {step.name for step in steps if step.collective and step.numbering.parts}
    for step in steps:
        if views.isdisjoint(step.sources):
            continue
        if isinstance(step.node, Select | Sink):
            views.add(step.name)
        skew = skew_at(step, gdt, gdts) if len(step.sources) + len(step.tables) > 1 else None
        if skew is not None and skew.frames is not None:
            waits[step.name] = skew.frames
        elif step.gathers or not together.isdisjoint(step.tables):
            waits[step.name] = _latest(gdt) + gdt.rule.step
    return Unreleased(min(max(waits.values(), default=0), held_frames(gdt)), tuple(waits))


def check_skew(steps: Sequence[Step], gdts: Sequence[Gdt], findings: Findings) -> None:
    """Report local buffers that are too shallow for a join, once for each flow."""
    reported: set[str] = set()
    for step in steps:
        for gdt in _joined(step, gdts):
            skew = skew_at(step, gdt, gdts)
            short = skew is not None and (skew.frames is None or skew.frames > held_frames(gdt))
            if skew is not None and short and not gdt.rule.bounded and gdt.flow not in reported:
                reported.add(gdt.flow)
                _report(step, gdt, skew, findings)


def skew_at(step: Step, gdt: Gdt, gdts: Sequence[Gdt]) -> Skew | None:
    """Return the largest skew of a flow against the others that a node reads with it; None without others."""
    skews = [_skew(gdt, other) for other in _joined(step, gdts) if other.flow != gdt.flow]
    return max(skews, key=lambda skew: float("inf") if skew.frames is None else skew.frames, default=None)


def held_frames(gdt: Gdt) -> int:
    """Return the acquired frames from the first that a flow's local buffers hold to the next that finds no place."""
    return gdt.rule.depth * _round(gdt)


def _joined(step: Step, gdts: Sequence[Gdt]) -> list[Gdt]:
    """Return a GDT of each flow that all frames of a node come from."""
    by_flow = {gdt.flow: gdt for gdt in gdts}
    return [by_flow[flow] for flow in step.numbering.flows]


def _round(gdt: Gdt) -> int:
    """Return the acquired frames from one group of a local buffer to the next."""
    return gdt.rule.buffers * gdt.rule.blocks * gdt.rule.step


def _skew(gdt: Gdt, other: Gdt) -> Skew:
    last = None if gdt.selected is None else gdt.rule.frame(gdt.selected - 1)
    total = None if last is None else last + 1 - gdt.rule.start
    if not other.group_event:
        return Skew(total, other.flow, "at the end only")
    late = _latest(other)
    groups = 1 if gdt.place is not None else max(1, gdt.rule.depth // BATCHES)
    own = gdt.rule.blocks * gdt.rule.step + (groups - 1) * _round(gdt)
    unreported = _first_unreported(other)
    if unreported is not None and (last is None or last - unreported + 1 > late + 1):
        rest = None if last is None or total is None else min(total, last - max(unreported, gdt.rule.start) + 1 + own)
        return Skew(rest, other.flow, f"from frame {unreported} on at the end only")
    needed = late + own
    return Skew(needed if total is None else min(total, needed), other.flow, f"up to {late} frames late")


def _latest(gdt: Gdt) -> int:
    """Return the most acquired frames from a frame to its event; the flow has group events."""
    rule = gdt.rule
    return (((max(1, gdt.group_event) - 1) * rule.buffers + 1) * rule.blocks - 1) * rule.step


def _first_unreported(gdt: Gdt) -> int | None:
    """Return the number of the first frame that no group event reports, None where there is none."""
    if gdt.selected is None:
        return None
    rule, first = gdt.rule, []
    for buffer in range(rule.buffers):
        reported = rule.full_visits(buffer, gdt.selected) // gdt.group_event * gdt.group_event
        if reported < rule.visits(buffer, gdt.selected):
            first.append(rule.frame(rule.group_of(buffer, reported) * rule.blocks))
    return min(first, default=None)


def _report(step: Step, gdt: Gdt, skew: Skew, findings: Findings) -> None:
    at: KeyPath = ("flows", gdt.flow, "buffers")
    findings.error(
        "join-too-shallow",
        f"`{step.name}` joins {gdt.flow} with {skew.other}, which reports its frames {skew.late}: until then the "
        f"local buffers of {gdt.flow} must hold {'all' if skew.frames is None else skew.frames} frames, they hold "
        f"{held_frames(gdt)}",
        at,
        help=f"larger buffers for {gdt.flow}, or more frequent events of {skew.other}",
        related=[Related(("flows", skew.other), "the late flow"), Related(("nodes", step.name), "the join")],
    )
