"""Pixels that hold no measurement, in nodes: what numpy says of them, whatever is masked and however it is written."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lima2cli.frames import Array, FrameSpec, Invalid
from lima2cli.geometry import Rect, Rule
from lima2cli.kernels.masked import NAN, carried, fits, kept, may_collide, of_sums, valid_range
from lima2cli.nodes.base import Inputs, Reduce
from lima2cli.testing.inputs import parts_of
from tests.node_inputs import DTYPES, MemoryFiles, block, node, padded, spec_of, splits

NONE = MemoryFiles()
HEIGHT, WIDTH = 12, 15
INTEGERS = [dtype for dtype in DTYPES if "int" in dtype]

RULES = st.one_of(
    st.just(Invalid()),
    st.sampled_from([Invalid((7,)), Invalid((100, 101)), Invalid(below=3), Invalid(above=120), Invalid((9,), 2, 110)]),
)


def invalid(frames: Array, rule: Invalid) -> NDArray[np.bool_]:
    """Apply a rule to pixels by numpy, in float64 (values are small)."""
    wide = frames.astype(np.float64)
    found = np.isnan(wide) | np.isin(wide, [value for value in rule.values if math.isfinite(value)])
    if rule.below is not None:
        found |= wide < rule.below
    return found if rule.above is None else found | (wide > rule.above)


def given_frames(dtype: str, count: int, seed: int, high: int = 127) -> Array:
    """Small values from 0 on, floats with a few NaN."""
    random = np.random.default_rng(seed)
    frames: Array = random.integers(0, high, (count, HEIGHT, WIDTH), endpoint=True).astype(dtype)
    if frames.dtype.kind == "f":
        frames[random.uniform(size=frames.shape) < 0.05] = np.nan
    frames.flags.writeable = False
    return frames


def mask_of(seed: int, share: float = 0.15) -> NDArray[np.bool_]:
    return np.random.default_rng(seed + 100).uniform(size=(HEIGHT, WIDTH)) < share


def calibrations() -> MemoryFiles:
    random = np.random.default_rng(5)
    flat = random.uniform(0.5, 2, (HEIGHT, WIDTH))
    flat[2, 3:6] = 0
    flat[4, 4] = np.nan
    dark = random.uniform(0, 20, (HEIGHT, WIDTH))
    dark[7, 7] = np.nan
    return MemoryFiles(flat=flat, dark=dark, good=np.zeros((HEIGHT, WIDTH)))


POINTWISE: list[tuple[str, dict[str, Any]]] = [
    ("background_sub", {"image": "dark"}),
    ("background_sub", {"image": 3}),
    ("background_sub", {"image": 0}),
    ("background_sub", {"image": "dark", "dtype": "keep"}),
    ("flatfield", {"image": "flat"}),
    ("flatfield", {"image": "flat", "dtype": "keep"}),
    ("flatfield", {"image": 0.5}),
    ("expression", {"expr": "a > 50"}),
    ("expression", {"expr": "where(a > 50, 1, a*a)"}),
    ("expression", {"expr": "2*a - 1"}),
    ("expression", {"expr": "a**0"}),
    ("expression", {"expr": "a + 1", "dtype": "int16"}),
]


@settings(max_examples=150)
@given(
    kind=st.sampled_from(POINTWISE),
    dtype=st.sampled_from(DTYPES),
    rule=RULES,
    static=st.booleans(),
    seed=st.integers(0, 9),
    gaps=st.booleans(),
)
def test_arithmetic_makes_up_no_value(
    kind: tuple[str, dict[str, Any]], dtype: str, rule: Invalid, static: bool, seed: int, gaps: bool
) -> None:
    """Valid pixels are those without any rule; masked ones NaN, in integers what they held."""
    files, frames, mask = calibrations(), given_frames(dtype, 3, seed), mask_of(seed) if static else None
    use, bare = node(kind[0], **kind[1]), spec_of(dtype, HEIGHT, WIDTH, gap=5.0)
    spec = replace(bare, mask=mask, invalid=rule)

    def computed(spec: FrameSpec) -> tuple[FrameSpec, Array]:
        shown = padded(frames) if gaps else frames
        inputs = Inputs({"a": spec}, files)
        return use.infer(inputs), use.bind(inputs)(shown).copy()

    after, got = computed(spec)
    plain_after, plain = computed(bare)
    masked = invalid(frames, rule) | (np.zeros((HEIGHT, WIDTH), bool) if after.mask is None else after.mask)
    if mask is not None:
        assert after.mask is not None
        assert (after.mask | ~mask).all()
    if got.dtype.kind == "f":
        assert np.isnan(got[masked]).all()
    else:
        held = kept(frames, got.dtype.name, 5.0)
        np.testing.assert_array_equal(got[masked], held[masked])
    np.testing.assert_array_equal(got[~masked], plain[~masked])
    assert after.dtype == plain_after.dtype
    still = invalid(got, after.invalid)  # what is no measurement stays none
    assert still[invalid(frames, rule) & ~np.isnan(frames.astype(float))].all()


@pytest.mark.parametrize("dtype", ["int32", "uint16", "float32"])
def test_a_fill_goes_to_all_masked_pixels(dtype: str) -> None:
    frames, mask, rule = given_frames(dtype, 2, 1), mask_of(1), Invalid((7, 9))
    bad = np.zeros((HEIGHT, WIDTH), np.uint8)
    bad[0, 0] = 1
    use, spec = node("mask", image="bad", fill=99), spec_of(dtype, HEIGHT, WIDTH, mask=mask, invalid=rule)
    files = MemoryFiles(bad=bad)
    filled = invalid(frames, rule) | mask | (bad > 0)
    np.testing.assert_array_equal(
        use.bind(Inputs.of(spec, files))(frames), np.where(filled, np.array(99, dtype), frames)
    )
    assert [it.rule for it in use.warnings(Inputs.of(spec, files))] == ["invalid-unmarked"]
    assert use.infer(Inputs.of(spec, files)).invalid == Invalid()
    keeps = node("mask", image="bad", fill=9)
    assert not keeps.warnings(Inputs.of(spec, files))
    kept = keeps.bind(Inputs.of(spec, files))(frames)
    assert invalid(kept, keeps.infer(Inputs.of(spec, files)).invalid)[filled].all()


def test_a_formula_that_asks_for_nan_decides() -> None:
    frames = np.array([[[1, np.nan, 3, np.nan]]], np.float32)
    spec = spec_of("float32", 1, 4, mask=np.array([[False, False, True, True]]))
    use = node("expression", expr="where(isnan(a), 0, a)")
    np.testing.assert_array_equal(use.bind(Inputs({"a": spec}, NONE))(frames), [[[1, 0, np.nan, np.nan]]])


@pytest.mark.parametrize("target", ["float32", "int16"])
@pytest.mark.parametrize("expr", ["a - b", "where(a > b, 1, 0)", "a"])
def test_joins_take_the_union(expr: str, target: str) -> None:
    a, b = given_frames("int32", 3, 1), given_frames("uint16", 3, 2)
    specs = {
        "a": spec_of("int32", HEIGHT, WIDTH, mask=mask_of(1), invalid=Invalid((7,))),
        "b": spec_of("uint16", HEIGHT, WIDTH, mask=mask_of(2), invalid=Invalid(above=120)),
    }
    use = node("expression", expr=expr, dtype=target)
    after, got = use.infer(Inputs(specs, NONE)), use.bind(Inputs(specs, NONE))(a, b)
    in_a, in_b = invalid(a, specs["a"].invalid) | mask_of(1), invalid(b, specs["b"].invalid) | mask_of(2)
    np.testing.assert_array_equal(after.mask, mask_of(1) | mask_of(2))
    valid = {"a - b": a - b.astype(int), "where(a > b, 1, 0)": (a > b).astype(int), "a": a}[expr]
    held = np.where(in_a, a, b)
    expected = np.where(in_a | in_b, np.nan if target == "float32" else held, valid)
    np.testing.assert_array_equal(got, expected.astype(target))
    rules = {it.rule for it in use.warnings(Inputs(specs, NONE))} - {"unused-input"}
    assert rules == (set() if target == "float32" else {"invalid-collision"})


@pytest.mark.parametrize(
    ("parameters", "rule", "warned"),
    [
        ({"image": 10, "dtype": "keep"}, Invalid((-1, -2)), True),
        ({"image": 10}, Invalid((-1, -2)), False),
        ({"image": 10, "dtype": "keep"}, Invalid(), False),
        ({"image": -10, "dtype": "keep"}, Invalid(above=2**31 - 2), True),
        ({"image": 10, "dtype": "keep"}, Invalid((2**31 - 1,)), False),
        ({"image": 10, "dtype": "keep"}, Invalid(below=0), True),
        ({"image": -10, "dtype": "keep"}, Invalid(below=0), False),
    ],
)
def test_results_that_could_be_mistaken_are_a_warning(parameters: Any, rule: Invalid, warned: bool) -> None:
    use, spec = node("background_sub", **parameters), spec_of("int32", 4, 4, invalid=rule)
    assert [it.rule for it in use.warnings(Inputs.of(spec, NONE))] == ["invalid-collision"] * warned


@settings(max_examples=80)
@given(dtype=st.sampled_from(DTYPES), rule=RULES, x=st.integers(1, 4), y=st.integers(1, 4), seed=st.integers(0, 9))
def test_bins_with_a_masked_pixel_are_no_sums(dtype: str, rule: Invalid, x: int, y: int, seed: int) -> None:
    frames, mask = given_frames(dtype, 3, seed), mask_of(seed, 0.05)
    spec = spec_of(dtype, HEIGHT, WIDTH, mask=mask, invalid=rule)
    use = node("roi_flip_rot", binning={"x": x, "y": y}, flip="horizontal", rotation=90)
    after, got = use.infer(Inputs.of(spec, NONE)), use.bind(Inputs.of(spec, NONE))(frames)
    got = np.rot90(got, 1, axes=(1, 2))[:, :, ::-1]  # as it was
    rows, columns = HEIGHT // y, WIDTH // x

    def bins(values: Array) -> Array:
        cut = values[:, : rows * y, : columns * x].reshape(len(values), rows, y, columns, x)
        return cut.transpose(0, 1, 3, 2, 4).reshape(len(values), rows, columns, x * y)

    masked = bins(invalid(frames, rule) | mask)
    sums = np.where(masked, 0, bins(frames).astype(np.float64)).sum(axis=3)
    np.testing.assert_array_equal(got[~masked.any(axis=3)], sums[~masked.any(axis=3)])
    if got.dtype.kind == "f":
        assert np.isnan(got[masked.any(axis=3)]).all() or (x, y) == (1, 1)
        return
    held = np.take_along_axis(bins(frames), masked.argmax(axis=3)[..., None], 3)[..., 0]
    _, top = of_sums(rule, dtype, after.dtype) if x * y > 1 else (rule, None)
    if top is not None:
        held = np.where(held > valid_range(rule, dtype)[1], np.array(top, after.dtype), held)
    np.testing.assert_array_equal(got[masked.any(axis=3)], held[masked.any(axis=3)])
    found = invalid(got, after.invalid)
    of_frames = bins(invalid(frames, rule)).any(axis=3) & ~bins(np.broadcast_to(mask, frames.shape)).any(axis=3)
    assert found[of_frames].all()


def test_the_largest_value_stays_the_largest() -> None:
    """Four pixels of 65535 - 1 are a sum, and no invalid value."""
    frames = np.full((1, 2, 4), 40000, np.uint16)
    frames[0, 0, 0] = 65535
    spec, use = spec_of("uint16", 2, 4, invalid=Invalid((65535,))), node("roi_flip_rot", binning={"x": 2, "y": 2})
    assert use.bind(Inputs.of(spec, NONE))(frames).tolist() == [[[2**32 - 1, 160000]]]
    assert use.infer(Inputs.of(spec, NONE)).invalid == Invalid((2**32 - 1,))
    assert not use.warnings(Inputs.of(spec, NONE))
    below = spec_of("int32", 2, 4, invalid=Invalid((-1,)))
    assert [it.rule for it in use.warnings(Inputs.of(below, NONE))] == ["invalid-collision"]


OPERATIONS = {"sum": np.sum, "mean": np.mean, "max": np.max, "std": np.std}


@settings(max_examples=100)
@given(
    dtype=st.sampled_from(DTYPES),
    operation=st.sampled_from(list(OPERATIONS)),
    target=st.sampled_from([None, "int32", "float64"]),
    rule=RULES,
    frames=st.integers(1, 5),
    cuts=st.lists(st.integers(1, 11), max_size=4),
    seed=st.integers(0, 9),
)
def test_accumulated_frames(
    dtype: str, operation: str, target: str | None, rule: Invalid, frames: int, cuts: list[int], seed: int
) -> None:
    data, mask = given_frames(dtype, 12, seed), mask_of(seed)
    spec = spec_of(dtype, HEIGHT, WIDTH, mask=mask, invalid=rule, gap=3.0)
    use = node("accumulate", frames=frames, operation=operation, **({"dtype": target} if target else {}))
    after = use.infer(Inputs.of(spec, NONE))
    started = use.bind(Inputs.of(spec, NONE, rule=RULE))
    got = [out.frames.copy() for part in splits(12, cuts) if (out := started.step(whole(data, part))) is not None]
    found = np.concatenate(got)
    windows = len(found)
    assert windows == 12 // frames
    groups = data[: windows * frames].reshape(windows, frames, HEIGHT, WIDTH)
    out = invalid(groups, rule)
    there = ~out
    wide = groups.astype(np.float64)
    with np.errstate(all="ignore"):
        if operation == "max":
            valid = np.where(there, wide, -np.inf).max(axis=1)
        elif operation == "std":
            mean = np.where(there, wide, 0).sum(axis=1) / there.sum(axis=1)
            apart = np.where(there, wide - mean[:, None], 0)
            valid = np.sqrt((apart**2).sum(axis=1) / there.sum(axis=1))
        else:
            valid = np.where(there, wide, 0).sum(axis=1)
            valid = valid / there.sum(axis=1) if operation == "mean" else valid
    masked = (out.any(axis=1) if operation == "sum" else out.all(axis=1)) | mask
    result = np.dtype(after.dtype)
    good = np.where(masked, 0, valid)
    expected = np.rint(good).astype(result) if result.kind != "f" else good.astype(result)
    slack = 1 if operation == "std" and result.kind != "f" else 0  # rounded from float64 both, half to even
    np.testing.assert_allclose(found[~masked], expected[~masked], rtol=1e-6, atol=slack)
    if result.kind == "f":
        assert np.isnan(found[masked]).all()
    elif np.dtype(dtype).kind == "f":
        assert (found[masked] == 3).all()
    else:
        static = np.broadcast_to(mask, masked.shape)
        np.testing.assert_array_equal(found[static], move(groups[:, 0], rule, dtype, after, operation)[static])
        first = np.take_along_axis(groups, out.argmax(axis=1)[:, None], 1)[:, 0]
        np.testing.assert_array_equal(
            found[masked & ~static], move(first, rule, dtype, after, operation)[masked & ~static]
        )
        assert invalid(found, after.invalid)[masked & ~static].all()


RULE = Rule(start=0, step=1, count=12, blocks=1, buffers=1, slots=4, stride=1)


def whole(data: Array, part: slice) -> Any:
    return block(data[part], part.start)


def move(values: Array, rule: Invalid, dtype: str, after: FrameSpec, operation: str) -> Array:
    """Masked values as the result holds them."""
    if operation == "sum" and (top := of_sums(rule, dtype, after.dtype)[1]) is not None:
        values = np.where(values > valid_range(rule, dtype)[1], np.int64(top), values.astype(np.int64))
    return kept(values, after.dtype, 3.0)


STATISTICS = ("avg", "std", "min", "max", "sum", "saturated")


@settings(max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES), rule=RULES, static=st.booleans(), seed=st.integers(0, 9),
    cuts=st.lists(st.integers(1, 4), max_size=2), kind=st.sampled_from(["roi_counters", "horizontal", "vertical"]),
    parts=st.booleans(), size=st.sampled_from([1, 40]),
)  # fmt: skip
def test_statistics_count_what_is_valid(
    dtype: str, rule: Invalid, static: bool, seed: int, cuts: list[int], kind: str, parts: bool, size: int
) -> None:
    small = given_frames(dtype, 5, seed)
    frames = np.tile(small, (1, size, size)) if size > 1 else small  # large ones take another way
    mask = np.tile(mask_of(seed), (size, size)) if static else None
    height, width = frames.shape[1:]
    spec = spec_of(dtype, height, width, mask=mask, invalid=rule, saturation=110.0)
    box = Rect(1, 2, width - 3, height - 4)
    rois = {"r": {"rect": {"x": box.x, "y": box.y, "width": box.width, "height": box.height}}}
    more = {} if kind == "roi_counters" else {"direction": kind}
    use: Reduce = node("roi_counters" if not more else "roi_profiles", rois=rois, statistics=STATISTICS, **more)
    if parts:
        upper, lower = parts_of(spec)
        halves = [(upper, frames[:, : height // 2]), (lower, frames[:, height // 2 :])]
        given = [use.bind(Inputs.of(it, NONE)).step(block(np.ascontiguousarray(part)), 0) for it, part in halves]
        rows = use.finish(use.merge(*given))
    else:
        started = use.bind(Inputs.of(spec, NONE))
        steps = [started.step(block(frames[part], part.start), 0) for part in splits(5, cuts)]
        rows = use.finish({key: np.concatenate([step[key] for step in steps]) for key in steps[0]})
    there = ~invalid(frames, rule) & (True if mask is None else ~mask)
    cut = (slice(None), slice(box.y, box.bottom), slice(box.x, box.right))
    values, good = frames[cut].astype(np.float64), there[cut]
    axis = {"roi_counters": (1, 2), "horizontal": (1,), "vertical": (2,)}[kind]
    values = np.where(good, values, 0)
    count = good.sum(axis=axis)
    total = values.sum(axis=axis)
    with np.errstate(all="ignore"):
        mean = total / count
        std = np.sqrt(np.where(good, (values - np.expand_dims(mean, axis)) ** 2, 0).sum(axis=axis) / count)
    np.testing.assert_allclose(rows["r_sum"], total, rtol=1e-9)
    np.testing.assert_allclose(rows["r_avg"], mean, rtol=1e-5)
    np.testing.assert_allclose(rows["r_std"], std, rtol=1e-4, atol=1e-4)
    some = count > 0
    least, most = np.where(good, values, np.inf).min(axis=axis), np.where(good, values, -np.inf).max(axis=axis)
    np.testing.assert_array_equal(rows["r_min"][some], least[some])
    np.testing.assert_array_equal(rows["r_max"][some], most[some])
    np.testing.assert_array_equal(rows["r_saturated"], (good & (values >= 110)).sum(axis=axis))


@settings(max_examples=40)
@given(dtype=st.sampled_from(DTYPES), rule=RULES, above=st.integers(-5, 130), seed=st.integers(0, 9))
def test_sparse_frames_hold_no_masked_pixel(dtype: str, rule: Invalid, above: int, seed: int) -> None:
    frames, mask = given_frames(dtype, 3, seed), mask_of(seed)
    spec = spec_of(dtype, HEIGHT, WIDTH, mask=mask, invalid=rule)
    found = node("sparsify", above=above).bind(Inputs.of(spec, NONE))(frames)
    there = ~invalid(frames, rule) & ~mask
    with np.errstate(all="ignore"):
        expected = np.flatnonzero(there & (frames.astype(float) > above))
    rows = np.repeat(np.arange(3), np.diff(found.frame_ptr.astype(int)))
    np.testing.assert_array_equal(rows * HEIGHT * WIDTH + found.index, expected)
    np.testing.assert_array_equal(found.frames, frames.ravel()[expected])


@pytest.mark.parametrize(
    ("rule", "source", "target", "expected"),
    [
        (Invalid((-1, -2)), "int32", "int64", Invalid((-1, -2))),
        (Invalid((-1, -2)), "int32", "uint16", Invalid((0,))),
        (Invalid((70000,)), "int32", "uint16", Invalid((65535,))),
        (Invalid(below=0), "int32", "int16", Invalid(below=0)),
        (Invalid(below=0), "int32", "uint8", Invalid((0,))),
        (Invalid(above=65534), "uint32", "uint16", Invalid(above=65534)),
        (Invalid(above=65534), "uint32", "uint8", Invalid((255,))),
        (Invalid((-1,)), "uint16", "float32", Invalid()),
        (Invalid((5,)), "uint16", "float32", NAN),
        (NAN, "float32", "int16", Invalid()),
    ],
)
def test_what_becomes_of_a_rule(rule: Invalid, source: str, target: str, expected: Invalid) -> None:
    assert carried(rule, source, target) == expected


@pytest.mark.parametrize("dtype", INTEGERS)
def test_limits_of_a_rule(dtype: str) -> None:
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    assert valid_range(Invalid((most, most - 1)), dtype) == (least, most - 2)
    assert valid_range(Invalid((5,)), dtype) == (least, most)
    assert not fits(Invalid((most + 1,)), dtype)
    assert not fits(Invalid(below=most + 1), dtype)
    assert not fits(Invalid((1.5,)), dtype)
    assert fits(Invalid(above=most - 1), dtype)
    assert may_collide(Invalid((most,)), dtype, 0, math.inf)
    assert not may_collide(Invalid((most,)), dtype, 0, most - 1)
