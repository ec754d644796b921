"""Frames that several inputs have in common, and where: the rules of a plan against frames counted one by one."""

import re
from dataclasses import replace
from itertools import pairwise
from math import lcm

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.errors import NodeMisuse
from lima2cli.geometry import Rule
from lima2cli.plan.ir import Numbering
from lima2cli.plan.numbering import paired

NAMES = ("receiver0", "receiver1", "receiver2")


def numbering(
    start: int, step: int, count: int | None, blocks: int, receivers: tuple[int, ...], flow: str, *, parts: bool = False
) -> Numbering:
    buffers = 1 if parts else len(receivers)
    rule = Rule(start, step, count, blocks, buffers, 100, 10)
    return Numbering(rule, receivers, count, (flow,), parts=parts)


def place(it: Numbering, frame: int) -> tuple[int, int] | None:
    """Receiver and group of a frame, counted from its number; None where it is not among these."""
    k, rest = divmod(frame - it.rule.start, it.rule.step)
    if rest or k < 0 or (it.selected is not None and k >= it.selected):
        return None
    group = k // it.rule.blocks
    return it.receivers[group % it.rule.buffers], group


@st.composite
def flows(draw: st.DrawFn, *, parts: bool = False) -> dict[str, Numbering]:
    """Two or three inputs; related often enough that their frames are at the same receivers."""
    base = draw(st.permutations(range(3)))[: draw(st.integers(1, 3))]
    inputs = {}
    for name in "abc"[: draw(st.integers(2, 3))]:
        receivers = tuple(base)
        if not parts and draw(st.booleans()):
            receivers = tuple(draw(st.lists(st.integers(0, 2), min_size=1, max_size=4)))
        inputs[name] = numbering(
            draw(st.integers(0, 12)),
            draw(st.sampled_from((1, 1, 2, 3, 4, 6))),
            draw(st.none() | st.integers(1, 40)),
            draw(st.sampled_from((1, 1, 2, 3, 4, 6))),
            receivers,
            f"flow_{name}",
            parts=parts,
        )  # fmt: skip
    return inputs


def outcome(inputs: dict[str, Numbering]) -> Numbering | NodeMisuse:
    """Return the frames of a pairing."""
    try:
        return paired(inputs, NAMES)
    except NodeMisuse as misfit:
        return misfit


def horizon(inputs: dict[str, Numbering]) -> int:
    """Beyond it nothing new happens: all that has an end has ended, or all places have come round several times."""
    ends = [it.rule.frame(it.selected) for it in inputs.values() if it.selected is not None]
    if ends:
        return min(ends)
    return 12 + 2 * lcm(*(it.rule.step * it.rule.blocks * it.rule.buffers for it in inputs.values()))


def common_frames(inputs: dict[str, Numbering]) -> list[int]:
    return [f for f in range(horizon(inputs)) if all(place(it, f) is not None for it in inputs.values())]


@given(flows())
@settings(max_examples=80, deadline=None)
def test_common_frames_and_their_receivers(inputs: dict[str, Numbering]) -> None:
    frames = common_frames(inputs)
    apart = [f for f in frames if len({place(it, f)[0] for it in inputs.values()}) > 1]  # type: ignore[index]
    found = outcome(inputs)
    if isinstance(found, NodeMisuse):
        assert found.rule == ("not-co-located" if frames else "edge-mismatch"), found.message
        if frames:
            assert apart
            check_proposal(inputs, found)
        return
    assert not apart
    endless = all(it.selected is None for it in inputs.values())
    assert found.selected == (None if endless else len(frames))
    assert found.rule.count == found.selected or found == inputs["a"]
    for k, frame in enumerate(frames):
        assert found.rule.frame(k) == frame
        assert place(found, frame)[0] == place(inputs["a"], frame)[0]  # type: ignore[index]


def check_proposal(inputs: dict[str, Numbering], misfit: NodeMisuse) -> None:
    """The order of local buffers that the help names is right."""
    said = re.fullmatch(r"of `flow_(\w)`, from which `(\w)` comes: buffers: \{at: \[(.*)\]\}", misfit.help or "")
    if said is None:
        assert misfit.help == "the same slices, blocks_per_group and order of `at` for both flows"
        return
    flow, name, places = said.groups()
    assert flow == name
    receivers = tuple(NAMES.index(place.removesuffix(".…")) for place in places.split(", "))
    moved = replace(inputs[name], receivers=receivers)
    after = {key: moved if key == name else it for key, it in inputs.items()}
    again = outcome(after)
    if isinstance(again, NodeMisuse):  # of the next input, or of an earlier one where the first was moved
        assert len(inputs) == 3
        assert again.key != misfit.key


def test_a_proposal_is_made_where_there_is_one() -> None:
    one = numbering(0, 1, None, 2, (0, 1), "flow_a")
    with pytest.raises(NodeMisuse) as caught:
        paired({"a": one, "b": numbering(0, 1, 12, 2, (1, 0), "flow_b")}, NAMES)
    assert caught.value.help == "of `flow_b`, from which `b` comes: buffers: {at: [receiver0.…, receiver1.…]}"
    with pytest.raises(NodeMisuse) as caught:  # one flow has frames of both at the same local buffer
        paired({"a": one, "b": numbering(0, 1, 12, 1, (1, 0), "flow_b")}, NAMES)
    assert "from which" not in (caught.value.help or "")


@given(flows(parts=True))
@settings(max_examples=60, deadline=None)
def test_groups_of_joined_parts(inputs: dict[str, Numbering]) -> None:
    """Parts of frames come in groups, each at the next receiver once they are gathered: those of the joined frames
    are never larger than those that come, and all frames of such a group are of one group of the rule.
    """
    frames = common_frames(inputs)
    found = outcome(inputs)
    if isinstance(found, NodeMisuse):
        assert found.rule == "edge-mismatch"
        return
    endless = all(it.selected is None for it in inputs.values())
    assert found.parts
    assert found.selected == (None if endless else len(frames))
    for k, frame in enumerate(frames):
        assert found.rule.frame(k) == frame
    for one, other in pairwise(frames):
        together = all(place(it, one)[1] == place(it, other)[1] for it in inputs.values())  # type: ignore[index]
        if together:
            assert place(found, one)[1] == place(found, other)[1]  # type: ignore[index]


def test_groups_of_parts_that_do_not_fit() -> None:
    one = numbering(0, 1, None, 4, (0, 1), "flow_a", parts=True)
    same = paired({"a": one, "b": replace(numbering(0, 1, 10, 4, (0, 1), "flow_b", parts=True))}, NAMES)
    assert (same.rule.blocks, same.selected) == (4, 10)
    halves = paired({"a": one, "b": numbering(4, 2, 10, 2, (0, 1), "flow_b", parts=True)}, NAMES)
    assert (halves.rule.start, halves.rule.step, halves.rule.blocks) == (4, 2, 2)
    with pytest.raises(NodeMisuse) as caught:
        paired(
            {
                "a": numbering(0, 3, None, 3, (0, 1), "flow_a", parts=True),
                "b": numbering(1, 2, None, 5, (0, 1), "flow_b", parts=True),
            },
            NAMES,
        )
    assert "group" in caught.value.message
