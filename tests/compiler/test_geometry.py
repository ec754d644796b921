"""The addressing of data flows: worked cases, and every count against a slow walk over all frames."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lima2cli.geometry import Rect, Rule, lay_out_block, locate
from tests.compiling import compiled, figures

CASES = json.loads((Path(__file__).parent / "gdt_cases.json").read_text())


def pipeline_of(case: dict[str, Any]) -> str:
    """A worked case in the pipeline language."""
    receivers: dict[str, Any] = {}
    for place in case["buffers"]["at"]:
        receiver, memspace = place.split(".")
        receivers.setdefault(receiver, {"memspaces": {}})["memspaces"][memspace] = {"host": {}}
    flow = {key: case[key] for key in ("source", "alignment", "slices", "rules", "events", "buffers")}
    return yaml.safe_dump(
        {
            "lima2": 1,
            "name": "case",
            "detector": {
                "remu": {
                    "image": case["image"],
                    "datasets": {"D": {"dtype": f"uint{8 * case['bytes_per_pixel']}"}},
                    "modules": case["modules"],
                    "scene": {"counter": {}},
                }
            },
            "acquisition": {"frames": case["frames"]},
            "receivers": {name: receivers[name] for name in sorted(receivers)},
            "flows": {"F": {"dataset": "D"} | flow},
        }
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_worked_case_through_the_compiler(case: dict[str, Any]) -> None:
    plan, findings = compiled(pipeline_of(case))
    if case["expect"].get("error"):
        assert plan is None
        (found,) = [item for item in findings if item.severity == "error"]
        assert found.rule == "buffer-too-small"
        assert "500 000 bytes" in found.message
        assert "16 KiB" in found.message
        return
    assert plan is not None, list(findings)
    got = figures(plan)["gdts"]["F"]
    expect = {key: value for key, value in case["expect"].items() if key != "locations"}
    assert {key: got[key] for key in expect} == expect
    (rule,) = [gdt.rule for gdt in plan.gdts if gdt.name == "F"]
    for expected in case["expect"]["locations"]:
        where = locate(rule, expected["frame"])
        if expected.get("dropped"):
            assert where is None
        else:
            assert where is not None
            found_at = (where.group, where.visit, where.buffer, where.slot, where.offset)
            assert found_at == tuple(expected[key] for key in ("group", "visit", "buffer", "slot", "offset"))


RULES = st.builds(
    Rule,
    start=st.integers(0, 9),
    step=st.integers(1, 5),
    count=st.none() | st.integers(0, 40),
    blocks=st.integers(1, 5),
    buffers=st.integers(1, 4),
    slots=st.integers(6, 30),
    stride=st.integers(1, 100),
    start_slot=st.integers(0, 1),
    overwrite=st.booleans(),
    circular=st.booleans(),
)


def walk(rule: Rule, frames: int) -> list[int]:
    """The selected frames, one after another."""
    chosen = [f for f in range(frames) if f >= rule.start and (f - rule.start) % rule.step == 0]
    return chosen if rule.count is None else chosen[: rule.count]


@given(RULES, st.integers(0, 120))
def test_counts_equal_a_walk_over_all_frames(rule: Rule, frames: int) -> None:
    chosen = walk(rule, frames)
    selected = rule.selected(frames)
    assert selected == len(chosen)
    written = [0] * rule.buffers
    visits: list[dict[int, int]] = [{} for _ in range(rule.buffers)]
    for index, frame in enumerate(chosen):
        where = locate(rule, frame)
        group = index // rule.blocks
        visits[group % rule.buffers].setdefault(group // rule.buffers, 0)
        if where is None:
            assert rule.bounded
            continue
        written[where.buffer] += 1
        visits[where.buffer][where.visit] += 1
        assert (where.index, where.group) == (index, group)
        assert rule.start_slot <= where.slot < rule.slots
        assert where.offset == rule.group_offset(where.visit) + where.block * rule.stride
    assert [rule.written(b, selected) for b in range(rule.buffers)] == written
    assert [rule.visits(b, selected) for b in range(rule.buffers)] == [len(v) for v in visits]
    full = [sum(blocks == rule.blocks for blocks in v.values()) for v in visits]
    assert [rule.full_visits(b, selected) for b in range(rule.buffers)] == full


@given(RULES, st.lists(st.integers(-10, 200) | st.integers(0, 2**62), min_size=1, max_size=40))
def test_many_frames_are_placed_as_each_is_located(rule: Rule, frames: list[int]) -> None:
    places = rule.place(np.array(frames, np.int64))
    for i, frame in enumerate(frames):
        where = locate(rule, frame)
        assert bool(places.kept[i]) == (where is not None)
        if where is not None:
            got = {name: int(getattr(places, name)[i]) for name in where.__dataclass_fields__}
            assert got == vars(where)
            assert rule.index(frame) == where.index
            assert rule.turn(rule.group(where.index)) == (where.buffer, where.visit)
            assert rule.group_of(where.buffer, where.visit) == where.group


@given(RULES, st.integers(-3, 100), st.integers(0, 3), st.integers(0, 40))
def test_counts_below_a_frame_and_before_a_group(rule: Rule, frame: int, buffer: int, group: int) -> None:
    assert rule.before(frame) == len([f for f in range(rule.start, frame) if (f - rule.start) % rule.step == 0])
    buffer %= rule.buffers
    assert rule.visits_before(buffer, group) == len([g for g in range(group) if g % rule.buffers == buffer])


@given(RULES, st.integers(0, 3), st.integers(0, 6), st.integers(1, 6))
def test_numbers_of_consecutive_visits(rule: Rule, buffer: int, visit: int, visits: int) -> None:
    buffer %= rule.buffers
    expected = [
        rule.frame(((v * rule.buffers) + buffer) * rule.blocks + j)
        for v in range(visit, visit + visits)
        for j in range(rule.blocks)
    ]
    assert rule.numbers(buffer, visit, visits).tolist() == expected
    assert rule.numbers(buffer, visit, visits).dtype == np.uint64


@given(RULES)
def test_two_groups_in_memory_never_share_a_slot(rule: Rule) -> None:
    unbounded = Rule(**{**vars_of(rule), "count": None})
    seen: dict[tuple[int, int], int] = {}
    for frame in range(unbounded.start, unbounded.start + 60 * unbounded.step, unbounded.step):
        where = locate(unbounded, frame)
        if where is None:
            continue
        before = seen.get((where.buffer, where.slot))
        assert before is None or where.visit - before >= unbounded.depth
        seen[where.buffer, where.slot] = where.visit


def vars_of(rule: Rule) -> dict[str, Any]:
    return {name: getattr(rule, name) for name in rule.__dataclass_fields__}


@given(
    st.integers(1, 50),
    st.integers(1, 20),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 8, 64, 256]),
    st.sampled_from([1, 8, 32, 512]),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_block_layout_holds_its_pixels(
    w: int, h: int, bpp: int, block: int, row: int, header: int, footer: int
) -> None:
    layout = lay_out_block(w, h, bpp, block_bits=block, row_bits=row, header=header, footer=footer)
    assert layout.pitch >= w * bpp
    assert layout.pitch % max(1, row // 8) == 0
    assert layout.payload_offset >= header
    assert layout.payload_offset % max(1, block // 8) == 0
    assert layout.stride >= layout.payload_offset + layout.pitch * h + footer
    assert layout.stride % max(1, block // 8) == 0
    assert layout.stride - (layout.payload_offset + layout.pitch * h + footer) < max(1, block // 8)


RECTS = st.builds(Rect, st.integers(0, 20), st.integers(0, 20), st.integers(0, 10), st.integers(0, 10))


@given(RECTS, RECTS)
def test_intersection_is_the_common_pixels(a: Rect, b: Rect) -> None:
    def pixels(rect: Rect) -> set[tuple[int, int]]:
        return {(x, y) for x in range(rect.x, rect.right) for y in range(rect.y, rect.bottom)}

    assert pixels(a & b) == pixels(a) & pixels(b)
    assert (a & b).area == len(pixels(a) & pixels(b))
