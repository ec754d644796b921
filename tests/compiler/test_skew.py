"""Joins of flows that tell of their frames late: what the plan lets pass never ends in mutual waiting."""

import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lima2cli.cli.plan_text import show_plan
from lima2cli.plan.ir import Plan
from lima2cli.ranks.loop import run_inline
from tests.compiling import compiled, figures, plan_of
from tests.golden import FOLDER, agrees

PATIENCE_S = 10.0
HEAD = """
lima2: 1
detector: {remu: {image: {width: 4, height: 2}, datasets: {D: {dtype: uint8}, E: {dtype: uint8}}}}
acquisition: {frames: 60}
receivers: 2
"""
JOIN = """
nodes:
  j: {inputs: {a: F, b: G}, expression: {expr: a + b}}
  times: {input: j, checkpoint: {}}
"""


def flow(name: str, dataset: str, blocks: int, step: int, count: int | None, period: int, depth: int, at: int) -> str:
    """A flow of ``depth`` groups in each of ``at`` local buffers, at both receivers in turn."""
    places = ", ".join(f"receiver{index % 2}.host" for index in range(at))
    slices = f"{{step: {step}" + (f", count: {count}}}" if count else "}")
    return (
        f"  {name}: {{dataset: {dataset}, slices: {slices}, rules: {{blocks_per_group: {blocks}}}, "
        f"events: {{group: {period}, end: true}}, buffers: {{frames: {depth * blocks}, at: [{places}]}}}}\n"
    )


class Stuck(Exception):
    """Nothing went on."""


def ends(plan: Plan) -> bool:
    """Return whether a run comes to its end in time."""
    limit = time.monotonic() + PATIENCE_S

    def patience() -> bool:
        if time.monotonic() > limit:
            raise Stuck
        return False

    with tempfile.TemporaryDirectory() as folder:
        try:
            run_inline(plan, Path(folder), folder, lambda event: None, patience)
        except Stuck:
            return False
    return True


one = st.tuples(
    st.sampled_from((1, 2, 3, 4)), st.sampled_from((1, 1, 2, 3)), st.none() | st.integers(1, 20), st.integers(0, 4),
    st.integers(1, 24), st.sampled_from((1, 2, 4)),
)  # fmt: skip


@given(one, one)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_what_is_accepted_ends(f: tuple[int, ...], g: tuple[int, ...]) -> None:
    plan, _ = compiled(f"{HEAD}flows:\n{flow('F', 'D', *f)}{flow('G', 'E', *g)}{JOIN}")
    if plan is not None:
        assert ends(plan)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("period", [1, 5])
def test_it_is_not_much_too_strict(blocks: int, period: int) -> None:
    """The shallowest buffers that are accepted, and those that really run, differ by what is taken together."""

    def plan(depth: int) -> Plan | None:
        text = flow("F", "D", blocks, 1, None, 1, depth, 1) + flow("G", "E", blocks, 1, None, period, 24, 1)
        return compiled(f"{HEAD}flows:\n{text}{JOIN}")[0]

    accepted = next(depth for depth in range(1, 24) if plan(depth) is not None)
    assert accepted <= period * 4 // 3 + 1
    found = plan(accepted)
    assert found is not None
    assert ends(found)
    assert all(plan(depth) is not None for depth in range(accepted, 24)), "deeper is never worse"


def test_groups_that_no_event_tells_of() -> None:
    """The last frames of a flow that ends early are told of at the end of the run: the other would wait till then."""
    few = flow("G", "E", 4, 1, 30, 1, 4, 1)
    _, findings = compiled(f"{HEAD}flows:\n{flow('F', 'D', 4, 1, None, 1, 4, 1)}{few}{JOIN}")
    (found,) = [item for item in findings if item.rule == "join-too-shallow"]
    assert found.at == ("flows", "F", "buffers")
    assert "reports its frames from frame 28 on at the end only" in found.message
    assert "must hold 36 frames, they hold 16" in found.message
    plan, _ = compiled(f"{HEAD}flows:\n{flow('F', 'D', 4, 1, None, 1, 4, 1)}{few.replace('30', '28')}{JOIN}")
    assert plan is not None
    assert ends(plan)


TOGETHER = """
lima2: 1
name: together
detector:
  remu:
    image: {width: 24, height: 16}
    datasets: {CTR1: {dtype: uint16}, CTR2: {dtype: uint16}}
    modules: {columns: 1, rows: 2, width: 24, height: 8}
acquisition: {frames: 100, period: 1 ms}
receivers: 2
flows:
  parts: {dataset: CTR1, dispatch: modules, rules: {blocks_per_group: 4}, buffers: {frames: 32}}
  full: {dataset: CTR2, rules: {blocks_per_group: 4}, events: {group: 2, end: true}, buffers: {frames: 64}}
nodes:
  counters: {input: parts, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 24, height: 16}}}}}
  some: {input: parts, filter: {keep: counters.all_sum > 5}}
  whole: {input: some, reconstruction: {}}
  both: {inputs: {a: whole, b: full}, expression: {expr: a + b}}
  save: {input: both, io_hdf5: {}}
"""


def test_the_plan_shows_what_waits_for_others() -> None:
    """Blocks that stay unreleased until all flows and receivers have theirs are not slack."""
    plan = plan_of(TOGETHER)
    agrees(FOLDER / "together.txt", show_plan(plan))
    gdts = figures(plan)["gdts"]
    assert gdts["parts[1]"]["unreleased"] == {"frames": 4, "nodes": ["some", "whole"]}
    assert gdts["parts[1]"]["slack_s"] == pytest.approx((32 - 4) * 1e-3)
    assert gdts["full"]["unreleased"] == {"frames": 31, "nodes": ["both"]}
    assert gdts["full"]["slack_s"] == pytest.approx((128 - 31) * 1e-3)
    assert [node["name"] for node in figures(plan)["nodes"] if node["collective"]] == ["counters", "whole"]
