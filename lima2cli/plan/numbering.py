"""Number the frames that travel along each edge, and place them: of flows, of joins, and behind every node."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import LARGEST
from lima2cli.errors import NodeMisuse
from lima2cli.geometry import Rule
from lima2cli.nodes.base import Select, Transform
from lima2cli.plan.ir import Gdt, Numbering, Step

LONGEST_PATTERN = 1 << 20
"""Most frames that are compared to see if two flows put them at the same receivers."""


def of_flow(gdts: Sequence[Gdt]) -> Numbering:
    """Return the numbering of a data flow: one GDT, or those of its places, each of which has a part of all frames."""
    first = gdts[0]
    receivers = tuple(buffer.receiver for gdt in gdts for buffer in gdt.buffers)
    return Numbering(first.rule, receivers, first.selected, (first.flow,), parts=first.place is not None)


def after(step: Step) -> Numbering:
    """Return the numbering of a node's output.

    Raises: NodeMisuse where frames that belong together are apart.
    """
    before, node = step.numbering, step.node
    if step.gathers:
        return replace(before, rule=replace(before.rule, buffers=len(before.receivers)), parts=False)
    if step.workers is not None and step.workers.reply:
        return replace(before, upstream=(*before.upstream, step.name))
    if isinstance(node, Select):
        return replace(before, filters=(*before.filters, step.name))
    if len(step.sources) > 1:
        return replace(before, unmatched=(*before.unmatched, step.name))
    if not isinstance(node, Transform):
        return before
    rule, receivers, window = node.numbering(before.rule, before.receivers)
    if window != 1 and before.filters:
        message = f"which frames `{before.filters[-1]}` lets pass is not known in advance: they cannot form windows"
        raise NodeMisuse("edge-mismatch", message, (), "accumulate before the filter")
    selected = 1 if not window else None if before.selected is None else before.selected // window
    return replace(
        before,
        rule=rule,
        receivers=tuple(receivers),
        selected=selected,
        window=before.window * window,
        upstream=(*before.upstream, step.name),
    )


def paired(numberings: Mapping[str, Numbering], names: Sequence[str]) -> Numbering:
    """Return the numbering of the frames that are in all inputs, by name; ``names`` are the receivers'.

    Raises: NodeMisuse where frames cannot be paired, or are not at the same receivers.
    """
    (first, one), *others = numberings.items()
    unlike = {name: other for name, other in others if _numbers(other) != _numbers(one)}
    same = _common(first, one, unlike, names) if unlike else one
    inputs = list(numberings.values())
    common = tuple(name for name in one.upstream if all(name in each.upstream for each in inputs))
    apart = [name for each in inputs for name in (*each.upstream, *each.unmatched) if name not in common]
    return replace(
        same,
        flows=_each([flow for each in inputs for flow in each.flows]),
        upstream=common,
        unmatched=_each(apart),
        filters=_each([name for each in inputs for name in each.filters]),
    )


def _each(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _numbers(edge: Numbering) -> tuple[object, ...]:
    return (
        edge.rule,
        edge.receivers,
        edge.selected,
        edge.window,
        edge.parts,
        edge.everywhere,
    )


def _common(first: str, one: Numbering, others: Mapping[str, Numbering], names: Sequence[str]) -> Numbering:
    """Return the numbering of the frames that are in all inputs.

    Raises: NodeMisuse.
    """
    rule, selected, before = one.rule, one.selected, [first]
    for name, other in others.items():
        _check_alike(first, one, name, other)
        rule, selected = _both(before, rule, selected, name, other)
        before.append(name)
        if other.everywhere and (rule.start, rule.step, selected) != (one.rule.start, one.rule.step, one.selected):
            message = f"`{name}` has no rows for some of the frames"
            raise NodeMisuse("edge-mismatch", message, ("inputs", name), "give both the same slices")
    bound = {name: other for name, other in others.items() if not other.everywhere}
    if not bound:
        return one
    if one.parts:
        return replace(one, rule=_grouped({first: one, **bound}, rule), selected=selected)
    frames = _one_round(rule, selected, [one, *bound.values()])
    here = _places(one, frames)
    for name, other in bound.items():
        if (here != _places(other, frames)).any():
            raise _apart(first, one, name, other, frames, names)
    blocks, pattern = _pattern(here)
    return replace(one, rule=replace(rule, blocks=blocks, buffers=len(pattern)), receivers=pattern, selected=selected)


def _check_alike(first: str, one: Numbering, name: str, other: Numbering) -> None:
    """Check that frames are of the same sort, and at the same receivers as far as these have parts of them.

    Raises: NodeMisuse.
    """
    if one.window != 1 or other.window != 1:
        message = f"`{first}` has {_counted(one)}, `{name}` {_counted(other)}: they cannot be paired"
        raise NodeMisuse(
            "edge-mismatch", message, ("inputs", name), "accumulate after the join, or accumulate both in the same way"
        )
    if other.everywhere and set(one.receivers) <= set(other.receivers):
        return
    if other.everywhere or one.parts != other.parts or (one.parts and one.receivers != other.receivers):
        message = f"`{first}` and `{name}` do not have the same parts of frames at the same receivers"
        raise NodeMisuse("edge-mismatch", message, ("inputs", name), "reconstruct the frames before they are joined")


def _grouped(inputs: Mapping[str, Numbering], common: Rule) -> Rule:
    """Return the rule of common frames of flows of parts, in groups.

    Results that are gathered at once are of one group of each flow, and must be of one group here, for all of it is
    gathered at one receiver.

    Raises: NodeMisuse.
    """
    for rule in (each.rule for each in inputs.values()):
        span = rule.step * rule.blocks
        if common.step >= span:
            return common
        if span % common.step == 0 and (common.start - rule.start) % span < common.step:
            return replace(common, blocks=span // common.step)
    listed = ", ".join(f"`{name}`" for name in inputs)
    message = f"the groups of {listed} overlap: it is not known where their frames would be gathered"
    help = "the same slices and blocks_per_group for all, or reconstruct the frames before they are joined"
    raise NodeMisuse("edge-mismatch", message, ("inputs", list(inputs)[-1]), help)


def _one_round(rule: Rule, selected: int | None, inputs: Sequence[Numbering]) -> NDArray[np.int64]:
    """Return the common frames until the places come round again, int64 (n,)."""
    period = reduce(lcm, (each.rule.step * each.rule.blocks * each.rule.buffers for each in inputs)) // rule.step
    within = -(-(LARGEST - rule.start) // rule.step)
    count = min(n for n in (selected, period, LONGEST_PATTERN, within) if n is not None)
    return rule.start + rule.step * np.arange(count, dtype=np.int64)


def _both(before: Sequence[str], a: Rule, of_a: int | None, name: str, other: Numbering) -> tuple[Rule, int | None]:
    """Return the common frames, at most ``of_a`` of one, as a progression (the Chinese remainder theorem).

    Raises: NodeMisuse where there are none.
    """
    b = other.rule
    apart, common = b.start - a.start, gcd(a.step, b.step)
    step, latest = lcm(a.step, b.step), max(a.start, b.start)
    start = None
    if apart % common == 0:
        inverse = pow(a.step // common, -1, b.step // common) if b.step > common else 0
        start = a.start + a.step * (apart // common * inverse % (b.step // common))
        start += -(-(latest - start) // step) * step
    selected = _count(start, step, a, of_a, b, other.selected)
    rule = Rule(start or 0, step, _count(start, step, a, a.count, b, b.count), 1, 1, 1, 1)
    if start is None or selected == 0 or start >= LARGEST or step >= LARGEST:
        message = f"`{name}` has no frame in common with {' and '.join(f'`{one}`' for one in before)}"
        raise NodeMisuse("edge-mismatch", message, ("inputs", name), "use flows whose slices have frames in common")
    return rule, selected


def _count(start: int | None, step: int, a: Rule, of_a: int | None, b: Rule, of_b: int | None) -> int | None:
    """Return the number of common frames of so many of each; None where both are endless."""
    lasts = [rule.frame(count - 1) for rule, count in ((a, of_a), (b, of_b)) if count is not None]
    if start is None or not lasts:
        return None
    return max(0, (min(lasts) - start) // step + 1)


def _places(numbering: Numbering, frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the receiver of each frame, int64 (n,)."""
    return np.asarray(numbering.receivers)[numbering.rule.place(frames).buffer]


def _pattern(places: NDArray[np.int64]) -> tuple[int, tuple[int, ...]]:
    """Return, for one whole round, the frames that follow each other at one receiver, and the receivers in turn."""
    changes = np.flatnonzero(np.diff(places)) + 1
    if not len(changes):
        return 1, (int(places[0]),)
    blocks = int(np.gcd.reduce([*changes, len(places)]))
    turns = places[::blocks]
    shorter = (n for n in range(1, len(turns)) if len(turns) % n == 0)
    length = next((n for n in shorter if np.array_equal(turns[n:], turns[:-n])), len(turns))
    return blocks, tuple(turns[:length].tolist())


def _apart(
    first: str, one: Numbering, name: str, other: Numbering, frames: NDArray[np.int64], names: Sequence[str]
) -> NodeMisuse:
    """Return the misuse of the same frame being at different receivers."""
    here, there = _places(one, frames), _places(other, frames)
    at = int(np.flatnonzero(here != there)[0])
    message = (
        f"frame {frames[at]} of `{first}` is on {names[here[at]]}, that of `{name}` on {names[there[at]]}: "
        "frames are joined where they are"
    )
    return NodeMisuse("not-co-located", message, ("inputs", name), _order(first, one, name, other, frames, names))


def _order(
    first: str, one: Numbering, name: str, other: Numbering, frames: NDArray[np.int64], names: Sequence[str]
) -> str:
    """Return help: the order of one flow's local buffers that would put its frames where the other has them."""
    for fixed, moved, of in ((one, other, name), (other, one, first)):
        buffer = moved.rule.place(frames).buffer
        wanted = _places(fixed, frames)
        owners = [set(wanted[buffer == index].tolist()) or {own} for index, own in enumerate(moved.receivers)]
        if len(moved.flows) == 1 and all(len(places) == 1 for places in owners):
            places = ", ".join(f"{names[place]}.…" for (place,) in owners)
            return f"of `{moved.flows[0]}`, from which `{of}` comes: buffers: {{at: [{places}]}}"
    return "the same slices, blocks_per_group and order of `at` for both flows"


def _counted(numbering: Numbering) -> str:
    """Return frames in words: those of the flow, or windows of them."""
    if numbering.window == 1:
        return "the frames of the flow"
    return f"one frame made of {numbering.window}" if numbering.window else "one frame made of all"
