"""Kernels: what the compiler puts together gives what the nodes give one by one."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.cli.plan_text import show_plan
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, FrameSpec, Invalid
from lima2cli.graph.fused import BoundChain
from lima2cli.graph.protocol import Arrival, PartFailed
from lima2cli.kernels.chain import Chain, Recipe, StripReader, settle
from lima2cli.kernels.formula import read_formula
from lima2cli.kernels.statistics import RegionSums
from lima2cli.kernels.strips import TILE_PIXELS, Pass, Stage, Turn
from lima2cli.nodes.base import Inputs, Reduce
from lima2cli.nodes.expression import linear
from lima2cli.nodes.flatfield import Flatfield
from lima2cli.plan.fuse import fuse_steps, verify
from lima2cli.plan.ir import Kernel, Plan
from lima2cli.ranks.loop import run_inline
from tests.compiling import compiled, figures, plan_of
from tests.node_inputs import DTYPES, MemoryFiles, block, node, padded, pixels, spec_of, splits
from tests.running import EXAMPLES, lima2, run

HEAD = """
lima2: 1
detector:
  remu: {image: {width: 60, height: 40}, datasets: {D: {dtype: uint16}}, scene: {noise: {seed: 3}}}
acquisition: {frames: 23}
receivers: 2
flows: {F: {dataset: D, rules: {blocks_per_group: 3}, buffers: {frames: 6}}}
nodes:
"""

CHAIN = """
  dark: {input: F, background_sub: {image: 10}}
  flat: {input: dark, flatfield: {image: 0.5}}
  good: {input: flat, mask: {image: bad.npy, fill: -1}}
"""

COUNTERS = "  counters: {input: good, roi_counters: {rois: {r: {rect: {x: 3, y: 2, width: 50, height: 30}}}}}\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory with the mask of `CHAIN`."""
    bad = np.zeros((40, 60), np.uint8)
    bad[5:9, 7] = 1
    np.save(tmp_path / "bad.npy", bad)
    return tmp_path


def kernels(plan: Plan) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Nodes, and whose frames are made."""
    return [(kernel.nodes, kernel.makes) for kernel in plan.kernels]


# What is put together


def test_neighbours_and_their_counters_are_one_kernel(base: Path) -> None:
    plan = plan_of(HEAD + CHAIN + COUNTERS + "  save: {input: good, io_hdf5: {}}\n", base)
    assert kernels(plan) == [(("dark", "flat", "good", "counters"), ("good",)), (("save",), ())]
    fused = figures(plan)["kernels"][0]
    assert fused == {
        "flow": "F",
        "input": "F",
        "nodes": ["dark", "flat", "good", "counters"],
        "fused": True,
        "first": [],
        "strips": ["counters"],
        "materialised": ["good"],
        "computed": 1.0,
    }
    assert [it["name"] for it in figures(plan)["nodes"]] == ["dark", "flat", "good", "counters", "save"]
    assert "  F  dark + flat + good + counters  fused; makes the frames of good\n" in show_plan(plan)


def test_frames_that_only_counters_read_are_not_made(base: Path) -> None:
    plan = plan_of(HEAD + CHAIN + COUNTERS, base)
    assert kernels(plan) == [(("dark", "flat", "good", "counters"), ())]
    assert figures(plan)["kernels"][0]["materialised"] == []


def test_what_is_saved_between_is_made(base: Path) -> None:
    plan = plan_of(HEAD + CHAIN + COUNTERS + "  save: {input: dark, io_hdf5: {}}\n", base)
    assert kernels(plan) == [(("dark",), ("dark",)), (("flat", "good", "counters"), ()), (("save",), ())]


def test_two_branches_begin_with_the_same_frames(base: Path) -> None:
    branches = """
  flat2: {input: dark, flatfield: {image: 2}}
  one: {input: flat2, io_hdf5: {}}
  counts: {input: dark, roi_counters: {rois: {r: {rect: {x: 0, y: 0, width: 5, height: 5}}}}}
"""
    plan = plan_of(HEAD + CHAIN + COUNTERS + branches, base)
    assert kernels(plan) == [
        (("dark", "counts"), ("dark",)),
        (("flat", "good", "counters"), ()),
        (("flat2",), ("flat2",)),
        (("one",), ()),
    ]


def test_counters_of_the_flow_itself_stay_alone(base: Path) -> None:
    nodes = "  c: {input: F, roi_counters: {rois: {r: {rect: {x: 0, y: 0, width: 5, height: 5}}}}}\n"
    assert kernels(plan_of(HEAD + nodes, base)) == [(("c",), ())]


def test_all_pixelwise_neighbours_are_one_kernel(base: Path) -> None:
    nodes = """
  charge: {input: F, gain: {pedestal: pedestals.npy, gain: gains.npy}}
  good: {input: charge, mask: {image: bad.npy}}
  keV: {inputs: {a: good}, expression: {expr: 12.4*a}}
  cut: {input: keV, roi_flip_rot: {roi: {x: 3, y: 2, width: 50, height: 30}, flip: both}}
  dark: {input: cut, background_sub: {image: 1}}
  counters: {input: dark, roi_counters: {rois: {r: {rect: {x: 3, y: 2, width: 20, height: 10}}}}}
  both: {inputs: {a: dark, b: dark}, expression: {expr: a*b}}
  save: {input: both, io_hdf5: {}}
"""
    np.save(base / "pedestals.npy", np.full((3, 40, 60), 700.0))
    np.save(base / "gains.npy", np.full((3, 40, 60), 40.0))
    plan = plan_of(HEAD + nodes, base)
    assert kernels(plan) == [
        (("charge", "good", "keV", "cut", "dark", "counters"), ("dark",)),
        (("both",), ("both",)),
        (("save",), ()),
    ]
    assert "fused; cut and flipped first: cut; makes the frames of dark\n" in show_plan(plan)


def test_a_formula_of_two_sources_stays_alone(base: Path) -> None:
    nodes = """
  one: {input: F, background_sub: {image: 1}}
  both: {inputs: {a: F, b: one}, expression: {expr: a - b}}
  again: {input: both, background_sub: {image: 1}}
  save: {input: again, io_hdf5: {}}
"""
    assert [kernel.nodes for kernel in plan_of(HEAD + nodes, base).kernels] == [
        ("one",),
        ("both",),
        ("again",),
        ("save",),
    ]


def test_other_maps_and_tables_stay_alone(base: Path) -> None:
    nodes = """
  turned: {input: good, roi_flip_rot: {binning: {x: 2, y: 2}}}
  again: {input: turned, background_sub: {image: 1}}
  save: {input: again, io_hdf5: {}}
  log: {input: good, checkpoint: {}}
"""
    assert kernels(plan_of(HEAD + CHAIN + nodes, base)) == [
        (("dark", "flat", "good"), ("good",)),
        (("turned",), ("turned",)),
        (("again",), ("again",)),
        (("save",), ()),
        (("log",), ()),
    ]


def test_what_nobody_reads_is_left_out(base: Path) -> None:
    """A map that only such a map reads, too; the compiler warns, and the plan says so."""
    plan, findings = compiled(HEAD + CHAIN + "  save: {input: F, io_hdf5: {}}\n", base)
    assert plan is not None
    assert kernels(plan) == [(("save",), ())]
    assert "unused-node" in [item.rule for item in findings]
    assert "  F  good  left out: no node reads it\n" in show_plan(plan)


def test_without_fusion_every_node_is_a_kernel(base: Path) -> None:
    plan = plan_of(HEAD + CHAIN + COUNTERS, base)
    assert [kernel.nodes for kernel in fuse_steps(plan.steps, on=False)] == [(step.name,) for step in plan.steps]
    (base / "p.yaml").write_text(HEAD + CHAIN + COUNTERS)
    shown = json.loads(lima2("plan", "p.yaml", "--no-fuse", "--format", "json", cwd=base).stdout)
    assert [it["nodes"] for it in shown["kernels"]] == [["dark"], ["flat"], ["good"], ["counters"]]


def test_the_compiler_looks_at_its_own_work(base: Path) -> None:
    plan = plan_of(HEAD + CHAIN + COUNTERS, base)
    steps = {step.name: step for step in plan.steps}
    whole = plan.kernels[0]
    verify((whole,), steps)
    wrong = [
        (),  # counters are gone
        (dataclasses.replace(whole, maps=("flat", "dark", "good")),),
        (dataclasses.replace(whole, source="elsewhere"),),
        (whole, Kernel("F", "F", ("dark",), (), ("dark",))),
        (dataclasses.replace(whole, makes=("dark",)),),
        (Kernel("F", "F", ("dark", "flat"), (), ()), Kernel("F", "flat", ("good",), ("counters",), ())),
    ]
    for kernels_ in wrong:
        with pytest.raises(AssertionError):
            verify(kernels_, steps)


def test_the_maze(base: Path) -> None:
    plan = plan_of((EXAMPLES / "maze.yaml").read_text(), EXAMPLES)
    assert (("dark", "flat", "good", "counters"), ("good",)) in kernels(plan)


# Fused as one by one


def joined(
    chain: Sequence[tuple[str, dict[str, Any]]], spec: FrameSpec, files: MemoryFiles, frames: Array
) -> tuple[Recipe, FrameSpec, Array]:
    """The product of nodes together, the frames that leave the last, and what they give one by one; nodes that do not
    fit where they stand are left out.
    """
    parts: list[Stage | Turn] = []
    before = spec
    for kind, parameters in chain:
        use = node(kind, **{key: part_of(value, spec) if key == "roi" else value for key, value in parameters.items()})
        try:
            after = use.infer(Inputs({"a": spec}, files))
        except NodeMisuse:
            continue
        parts.append(use.stage_of(Inputs({"a": spec}, files)))
        frames = use.bind(Inputs({"a": spec}, files))(frames)
        spec = after
    return settle(parts, before.dtype, *before.shape), spec, frames


def part_of(shares: Sequence[float], spec: FrameSpec) -> dict[str, int]:
    """A rectangle in the frames, from where in them its corners are, 0 to 1."""
    height, width = spec.shape
    (left, right), (top, bottom) = sorted(shares[:2]), sorted(shares[2:])
    x, y = int(left * (width - 1)), int(top * (height - 1))
    return {"x": x, "y": y, "width": int(right * (width - 1)) - x + 1, "height": int(bottom * (height - 1)) - y + 1}


CORNERS = st.lists(st.floats(0, 1), min_size=4, max_size=4)

FLIPS = st.sampled_from(["none", "horizontal", "vertical", "both"])

TURNS = st.builds(
    lambda roi, flip, rotation: ("roi_flip_rot", {"flip": flip, "rotation": rotation, **({"roi": roi} if roi else {})}),
    st.none() | CORNERS,
    FLIPS,
    st.sampled_from([0, 180]),
)

PIXELWISE = st.sampled_from(
    [
        ("background_sub", {"image": "dark"}),
        ("background_sub", {"image": "dark", "dtype": "keep"}),
        ("background_sub", {"image": 3}),
        ("background_sub", {"image": 0}),
        ("background_sub", {"image": "holes", "dtype": "keep"}),
        ("background_sub", {"image": "holes"}),
        ("flatfield", {"image": "flat"}),
        ("flatfield", {"image": "flat", "dtype": "keep"}),
        ("flatfield", {"image": 0.7, "dtype": "keep"}),
        ("flatfield", {"image": 1}),
        ("mask", {"image": "bad", "fill": 7}),
        ("mask", {"image": "other", "fill": 0}),
        ("mask", {"image": 0}),
        ("gain", {"pedestal": "pedestals", "gain": "gains"}),
        ("gain", {"pedestal": "pedestals", "gain": "gains", "photon_energy": "8 keV"}),
        ("expression", {"expr": "3 - 2*a/7"}),
        ("expression", {"expr": "-(a + 0.1) * 1.7", "dtype": "float64"}),
        ("expression", {"expr": "a - 5", "dtype": "uint16"}),
        ("expression", {"expr": "where(a > 100, sqrt(abs(a)), a % 7)"}),
        ("expression", {"expr": "where(a > 1000, a / (a - 1001), 3)", "dtype": "int16"}),
    ]
)

MAPS = st.one_of(PIXELWISE, PIXELWISE, TURNS)


def calibrations(height: int, width: int, seed: int) -> MemoryFiles:
    random = np.random.default_rng(seed)
    holes = random.uniform(0, 9, (height, width))
    holes[random.uniform(size=holes.shape) < 0.1] = np.nan
    flat = random.uniform(0.5, 2, (height, width))
    flat[random.uniform(size=flat.shape) < 0.05] = 0
    gains = random.uniform(0.5, 2, (3, height, width))
    gains[random.uniform(size=gains.shape) < 0.05] = 0
    return MemoryFiles(
        pedestals=random.uniform(500, 15000, gains.shape),
        gains=gains,
        dark=random.uniform(0, 50, (height, width)),
        holes=holes,
        flat=flat,
        bad=(random.uniform(size=(height, width)) < 0.03).astype(np.uint8),
        other=(random.uniform(size=(height, width)) < 0.4).astype(np.uint8),
    )


RULES = st.sampled_from([Invalid(), Invalid((100, 7)), Invalid((1, 2, 255)), Invalid(below=3), Invalid((5,), above=99)])


def masked_spec(dtype: str, height: int, width: int, rule: Invalid, seed: int) -> FrameSpec:
    """Frames with a rule, and where there is one with a static mask."""
    mask = None if rule == Invalid() else np.random.default_rng(seed).uniform(size=(height, width)) < 0.1
    return spec_of(dtype, height, width, mask=mask, invalid=rule, gap=4.0, saturation=200.0)


def specked(dtype: str, shape: tuple[int, int, int], seed: int, nan: bool) -> Array:
    """Frames with small values, and NaN here and there, where there can be any."""
    frames = pixels(dtype, shape, seed).copy()
    frames[np.random.default_rng(seed).uniform(size=shape) < 0.3] %= 110
    if nan and frames.dtype.kind == "f":
        frames[np.random.default_rng(seed).uniform(size=shape) < 0.05] = np.nan
    return frames


@settings(max_examples=80)
@given(
    dtype=st.sampled_from(["uint16", *DTYPES]),
    chain=st.lists(MAPS, min_size=1, max_size=5),
    count=st.integers(1, 7),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    cuts=st.lists(st.integers(1, 6), max_size=3),
    seed=st.integers(0, 9),
    nan=st.booleans(),
    gaps=st.booleans(),
    rule=RULES,
)
def test_any_chain_gives_the_same_bit_for_bit(
    dtype: str,
    chain: list[tuple[str, dict[str, Any]]],
    count: int,
    height: int,
    width: int,
    cuts: list[int],
    seed: int,
    nan: bool,
    gaps: bool,
    rule: Invalid,
) -> None:
    files, spec = calibrations(height, width, seed), masked_spec(dtype, height, width, rule, seed)
    frames = specked(dtype, (count, height, width), seed, nan)
    recipe, after, expected = joined(chain, spec, files, frames)
    assert (recipe.shape, recipe.target.name) == (after.shape, after.dtype)
    whole, strips = Chain(recipe), Chain(recipe, keeps=False)
    given_frames = padded(frames) if gaps else frames
    for part in splits(count, cuts):
        got = whole(given_frames[part])
        assert got.dtype == after.dtype
        np.testing.assert_array_equal(got, expected[part])
        seen = np.zeros_like(expected[part])
        strips(given_frames[part], [copier(seen)])
        np.testing.assert_array_equal(seen, expected[part])


@pytest.mark.parametrize(
    ("expr", "steps"),
    [
        ("a", []),
        ("2*a + 3", ["multiply", "add"]),
        ("3 - a / 2", ["divide", "multiply", "add"]),
        ("-(a - 1) * 4", ["subtract", "multiply", "multiply"]),
        ("2 / a", None),
        ("a + b", None),
        ("a*a + 1", None),
        ("sqrt(a)", None),
        ("where(a > 1, a, 0)", None),
    ],
)
def test_formulae_that_are_steps_of_numbers(expr: str, steps: list[str] | None) -> None:
    found = linear(read_formula(expr, ("a", "b")))
    assert (None if found is None else [ufunc.__name__ for ufunc, _ in found]) == steps


def test_what_is_cut_out_is_cut_first() -> None:
    """The images are cut instead; arithmetic in one dtype is one pass; nothing copies raw pixels before it."""
    files, spec = calibrations(30, 50, 1), spec_of("uint16", 30, 50)
    chain: list[tuple[str, dict[str, Any]]] = [
        ("background_sub", {"image": "dark"}),
        ("expression", {"expr": "2*a"}),
        ("flatfield", {"image": "flat"}),
        ("mask", {"image": "bad", "fill": -1}),
        ("roi_flip_rot", {"roi": (0.2, 0.6, 0.5, 0.9), "flip": "horizontal"}),
    ]
    recipe, after, _ = joined(chain, spec, files, pixels("uint16", (1, 30, 50)))
    (step,) = recipe.steps
    assert isinstance(step.compute, Pass)
    operands = step.compute.operands
    assert [ufunc.__name__ for ufunc, _ in operands] == ["subtract", "multiply", "divide"]
    assert [operand.shape for _, operand in operands] == [after.shape, (), after.shape]
    assert np.shares_memory(recipe.seen(frames := pixels("uint16", (2, 30, 50))), frames)


def copier(into: Array) -> StripReader:
    """Puts strips where they belong."""

    def copy(strip: Array, frames: slice, rows: slice) -> None:
        into[frames, rows] = strip

    return copy


@settings(max_examples=30)
@given(
    dtype=st.sampled_from(DTYPES),
    chain=st.lists(MAPS, min_size=1, max_size=3),
    shape=st.sampled_from([(5, 9, 13), (1, 700, 401), (2, 3, 2 * TILE_PIXELS + 5), (3, 300, 500)]),
    seed=st.integers(0, 9),
    nan=st.booleans(),
    rule=RULES,
)
def test_counters_of_strips_are_those_of_frames(
    dtype: str,
    chain: list[tuple[str, dict[str, Any]]],
    shape: tuple[int, int, int],
    seed: int,
    nan: bool,
    rule: Invalid,
) -> None:
    count, height, width = shape
    files, spec = calibrations(height, width, seed), masked_spec(dtype, height, width, rule, seed)
    frames = specked(dtype, shape, seed, nan)
    recipe, after, whole = joined(chain, spec, files, frames)
    height, width = after.shape
    rois = {
        "all": {"rect": {"x": 0, "y": 0, "width": width, "height": height}},
        "part": {
            "rect": {"x": 0, "y": min(1, height // 2), "width": max(1, width // 2), "height": max(1, height // 2)}
        },
        "arc": {"arc": {"x": width / 2, "y": height / 2, "r1": 0, "r2": height, "a1": 10, "a2": 300}},
    }
    counters: Reduce = node("roi_counters", rois=rois)
    together: Any = counters.bind(Inputs.of(after, files))
    alone = counters.bind(Inputs.of(after, files))
    together.begin(count)
    Chain(recipe, keeps=False)(frames, [lambda *strip: together.strip(*strip, slice(0, width))])
    got = counters.finish(together.end(block(frames), 0))
    expected = counters.finish(alone.step(block(whole), 0))
    wide = np.abs(whole.astype(np.float64))
    largest = float(np.max(wide, initial=1.0, where=np.isfinite(wide)))
    for name, values in expected.items():
        if name.endswith(("_min", "_max", "frame_number")):
            np.testing.assert_array_equal(got[name], values, err_msg=name)
        else:
            scale = 1e-15 * height * width if name.endswith("_sum") else 1e-7
            np.testing.assert_allclose(got[name], values, rtol=1e-6, atol=scale * largest, err_msg=name)


def test_a_reduction_that_fails_is_named(base: Path) -> None:
    plan = plan_of(HEAD + CHAIN + COUNTERS, base)
    steps = {step.name: step for step in plan.steps}

    class Broken:
        def begin(self, frames: int) -> None: ...

        def strip(self, pixels: Array, frames: slice, rows: slice, columns: slice) -> None:
            raise ValueError("no")

    chain = BoundChain(plan.kernels[0], steps, MemoryFiles({"bad.npy": np.load(base / "bad.npy")}))
    broken: Any = Broken()
    chain.add("counters", [broken])
    with pytest.raises(PartFailed) as failed:
        chain.push(Arrival("data", 0, block(pixels("uint16", (2, 40, 60)))))
    assert (failed.value.name, str(failed.value.error)) == ("counters", "no")


@pytest.mark.parametrize(("broken", "named", "goes_on"), [("strip", "counters", True), ("stage", "flat", False)])
def test_in_a_run_only_what_failed_is_left_out(
    base: Path, monkeypatch: pytest.MonkeyPatch, broken: str, named: str, goes_on: bool
) -> None:
    """A reduction leaves its kernel, whose frames go on; a map takes along what reads it."""
    plan = plan_of(HEAD + CHAIN + COUNTERS + "  save: {input: good, io_hdf5: {}}\n", base)

    def fail(*_: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr(*((RegionSums, "strip", fail) if broken == "strip" else (Flatfield, "stage", fail)))
    (base / "out").mkdir()
    told: list[dict[str, Any]] = []
    outcome = run_inline(plan, base, str(base / "out"), told.append, lambda: False)
    assert {failure.node for failure in outcome.failures} == {named}
    assert "no" in outcome.failures[0].message
    frames = sum(report.saved.get("save", 0) for report in outcome.receivers.values())
    assert (frames > 0) == goes_on  # the control rank stops the run, so not all


# Runs


def test_a_run_saves_the_same_with_and_without(base: Path) -> None:
    text = HEAD + CHAIN + COUNTERS + "  save: {input: good, io_hdf5: {}}\n"
    saved = []
    for options in ((), ("--no-fuse",)):
        ran = run(text, base, "inline", *options)
        assert ran.code == 0, ran.output
        frames, numbers, _ = ran.saved("save")
        assert numbers.tolist() == list(range(23))
        saved.append((frames, table(ran.directory / "pipeline_counters.h5")))
    np.testing.assert_array_equal(saved[0][0], saved[1][0])
    for name, values in saved[1][1].items():
        np.testing.assert_allclose(saved[0][1][name], values, rtol=1e-6, err_msg=name)


def table(path: Path) -> dict[str, Array]:
    import h5py

    with h5py.File(path) as file:
        return {name: values[()] for name, values in file["entry_0000/measurement"].items()}
