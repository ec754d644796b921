"""Only pixels that some node reads are computed, and the rows are those of whole frames."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.cli.plan_text import show_plan
from lima2cli.frames import Array, Block
from lima2cli.geometry import Rect
from lima2cli.graph.changes import Changes
from lima2cli.graph.fused import BoundChain
from lima2cli.graph.operators import BoundReduce
from lima2cli.graph.protocol import Arrival
from lima2cli.inputs.stacks import FileStore
from lima2cli.kernels.chain import Chain
from lima2cli.kernels.strips import WINDOW_PIXELS, demanded
from lima2cli.messages import Change
from lima2cli.nodes.base import Partial
from lima2cli.plan.ir import Plan
from lima2cli.program import ReceiverProgram, lower
from tests.compiling import figures, plan_of
from tests.node_inputs import block

HEIGHT, WIDTH = 300, 500

HEAD = """
lima2: 1
detector:
  remu: {image: {width: 500, height: 300}, datasets: {D: {dtype: uint16}}}
acquisition: {frames: 23}
nodes:
  dark: {input: D, background_sub: {image: dark.npy}}
  flat: {input: dark, flatfield: {image: flat.npy}}
  good: {input: flat, mask: {image: bad.npy, fill: nan}}
"""

COUNTERS = """
  counters:
    input: good
    roi_counters:
      rois:
        corner: {x: 0, y: 0, width: 40, height: 30}
        spot: {x: 300, y: 180, width: 25, height: 60}
        ring: {arc: {x: 310, y: 200, r1: 10, r2: 35}}
"""

PROFILES = """
  profiles: {input: good, roi_profiles: {direction: vertical, rois: {line: {x: 450, y: 100, width: 20, height: 100}}}}
"""

rects = st.builds(Rect, st.integers(0, WIDTH - 40), st.integers(0, HEIGHT - 40), st.integers(0, 40), st.integers(1, 40))


@given(st.lists(st.lists(rects, max_size=9), min_size=1, max_size=3))
def test_each_rectangle_lies_in_one_of_some_disjoint_parts(reads: list[list[Rect]]) -> None:
    parts = demanded((HEIGHT, WIDTH), reads)
    read = {rect for each in reads for rect in each if rect.area}
    assert all(sum(part.contains(rect) for part in parts) == 1 for rect in read)
    assert not any((one & other).area for one in parts for other in parts if one is not other)
    assert all(Rect(0, 0, WIDTH, HEIGHT).contains(part) and part.area for part in parts)


@pytest.mark.parametrize(
    "reads",
    [
        None,
        [],
        [None],
        [[Rect(0, 0, 5, 5)], None],
        [[Rect(0, 0, 240, 300), Rect(250, 0, 120, 300), Rect(380, 0, 120, 300)]],
    ],
)
def test_whole_frames_are_computed_where_they_are_read_or_cost_as_much(reads: Any) -> None:
    assert demanded((HEIGHT, WIDTH), reads) == (Rect(0, 0, WIDTH, HEIGHT),)


def test_nothing_is_computed_where_nothing_is_read() -> None:
    assert demanded((HEIGHT, WIDTH), [[Rect(0, 0, 0, 0)], []]) == ()


def test_many_small_regions_become_few_parts() -> None:
    reads = [Rect(x, y, 3, 3) for x in range(0, 100, 10) for y in range(0, 100, 10)]
    (part,) = demanded((HEIGHT, WIDTH), [reads])
    assert part == Rect(0, 0, 93, 93)
    assert part.area < 100 * (9 + WINDOW_PIXELS)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory with the calibrations of `HEAD`."""
    random = np.random.default_rng(1)
    np.save(tmp_path / "dark.npy", random.uniform(90, 110, (HEIGHT, WIDTH)).astype(np.float32))
    np.save(tmp_path / "flat.npy", random.uniform(0.9, 1.1, (HEIGHT, WIDTH)).astype(np.float32))
    np.save(tmp_path / "bad.npy", (random.uniform(size=(HEIGHT, WIDTH)) < 0.01).astype(np.uint8))
    return tmp_path


class Bound:
    """The first kernel of a plan as a receiver binds it; without ``demand`` all pixels are computed."""

    def __init__(self, plan: Plan, base: Path, threads: int = 1, *, demand: bool = True) -> None:
        program = lower(plan)[1][-1]
        assert isinstance(program, ReceiverProgram)
        steps, files = {step.name: step for step in plan.steps}, FileStore(base)
        self.changes = Changes(plan.steps, dict.fromkeys(steps, "D"), files)
        kernel = plan.kernels[0]
        self.chain = BoundChain(kernel, steps, files, threads)
        self.reductions = [BoundReduce(steps[name], program, files) for name in kernel.ends]
        for one in self.reductions:
            node: Any = steps[one.name].node
            more = [node.bind(steps[one.name].given(files)) for _ in range(threads - 1)]
            self.chain.add(one.name, one.strips if threads == 1 else [*one.strips, *more],
                           reads=one.reads if demand else None)  # fmt: skip

    def rows(self, frames: Block) -> Mapping[str, Partial]:
        """The partial results of each reduction."""
        return self.chain.push(Arrival("D", int(frames.numbers[-1]), frames)).rows or {}

    def change(self, node: str, parameter: str, value: Any) -> None:
        """Make a change ready, and settle that it is due at the first frame."""
        self.changes.prepare(Change(1, node, parameter, value), [self.chain, *self.reductions])
        self.changes.settle(0)


def pixels(count: int = 7) -> Block:
    """Frames of noise."""
    return block(np.random.default_rng(2).poisson(1000, (count, HEIGHT, WIDTH)).astype(np.uint16))


def check_same(got: Mapping[str, Partial], expected: Mapping[str, Partial]) -> None:
    """Check that rows are the same, sums but for the order of their terms."""
    assert got.keys() == expected.keys()
    for name, partial in expected.items():
        assert got[name].keys() == partial.keys()
        for key, values in partial.items():
            if key.endswith(("sum", "m2")):
                np.testing.assert_allclose(got[name][key], values, rtol=1e-6, atol=1e-3, err_msg=f"{name} {key}")
            else:
                np.testing.assert_array_equal(got[name][key], values, err_msg=f"{name} {key}")


@pytest.mark.parametrize(("turn", "threads"), [("", 1), ("horizontal", 2), ("both", 1), ("", 2)])
def test_rows_are_those_of_whole_frames(base: Path, turn: str, threads: int) -> None:
    text = HEAD + COUNTERS + PROFILES
    if turn:
        cut = f"{{flip: {turn}, roi: {{x: 7, y: 3, width: 480, height: 290}}}}"
        behind = (COUNTERS + PROFILES).replace("input: good", "input: turned")
        text = f"{HEAD}  turned: {{input: good, roi_flip_rot: {cut}}}\n{behind}"
    plan = plan_of(text, base)
    assert len(plan.kernels) == 1
    some, whole = Bound(plan, base, threads), Bound(plan, base, threads, demand=False)
    for frames in (pixels(), pixels(1), pixels(30)):
        check_same(some.rows(frames), whole.rows(frames))


def test_only_what_is_read_is_computed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    strip = Chain._strip

    def counting(self: Chain, raw: Array, out: Array | None, rows: slice) -> Array:
        computed.append(raw.size)
        return strip(self, raw, out, rows)

    monkeypatch.setattr(Chain, "_strip", counting)
    plan = plan_of(HEAD + COUNTERS + PROFILES, base)
    Bound(plan, base).rows(pixels(4))
    share = figures(plan)["kernels"][0]["computed"]
    assert sum(computed) / 4 == pytest.approx(share * HEIGHT * WIDTH, abs=10)
    assert 40 * 30 + 70 * 70 + 20 * 100 <= sum(computed) / 4 < 0.1 * HEIGHT * WIDTH
    assert f"fused; computes {100 * share:.2g} % of the pixels\n" in show_plan(plan)


def test_frames_that_are_saved_are_made_whole(base: Path) -> None:
    plan = plan_of(HEAD + COUNTERS + "  save: {input: good, io_hdf5: {}}\n", base)
    assert figures(plan)["kernels"][0]["computed"] == 1


def test_regions_that_are_changed_are_computed_from_then_on(base: Path) -> None:
    bound = Bound(plan_of(HEAD + COUNTERS, base), base)
    bound.rows(pixels())
    rois = {
        "corner": {"x": 460, "y": 270, "width": 40, "height": 30},
        "spot": {"x": 100, "y": 180, "width": 25, "height": 60},
        "ring": {"x": 110, "y": 100, "width": 30, "height": 30},
    }
    bound.change("counters", "rois", rois)
    bound.changes.apply("D", 0)
    written = "".join(f"        {name}: {roi}\n".replace("'", "") for name, roi in rois.items())
    other = plan_of(HEAD + "  counters:\n    input: good\n    roi_counters:\n      rois:\n" + written, base)
    check_same(bound.rows(pixels()), Bound(other, base).rows(pixels()))


def test_changes_that_are_due_together_are_all_made(base: Path) -> None:
    bound = Bound(plan_of(HEAD + COUNTERS, base), base)
    bound.change("dark", "image", 5)
    bound.change("flat", "image", 2)
    bound.changes.apply("D", 0)
    text = HEAD.replace("{image: dark.npy}", "{image: 5}").replace("{image: flat.npy}", "{image: 2}")
    check_same(bound.rows(pixels()), Bound(plan_of(text + COUNTERS, base), base).rows(pixels()))


@settings(max_examples=15, deadline=None)
@given(st.lists(rects.filter(lambda rect: rect.area > 1), min_size=1, max_size=6), st.integers(1, 9))
def test_any_regions_have_the_rows_of_whole_frames(regions: list[Rect], count: int) -> None:
    text = HEAD.replace("{image: dark.npy}", "{image: 5.5}").replace("flat.npy", "2.5").replace("bad.npy", "0")
    rois = ", ".join(
        f"r{i}: {{x: {one.x}, y: {one.y}, width: {one.width}, height: {one.height}}}" for i, one in enumerate(regions)
    )
    plan = plan_of(text + f"  counters: {{input: good, roi_counters: {{rois: {{{rois}}}}}}}\n")
    some, whole = Bound(plan, Path()), Bound(plan, Path(), demand=False)
    check_same(some.rows(pixels(count)), whole.rows(pixels(count)))
