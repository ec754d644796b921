"""background_sub, flatfield, mask against numpy's one-liners."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, FrameSpec
from lima2cli.geometry import Rect
from lima2cli.nodes.base import Inputs
from lima2cli.view import View
from tests.node_inputs import DTYPES, MemoryFiles, node, padded, pixels, spec_of, splits

NONE = MemoryFiles()


@pytest.fixture(autouse=True)
def _no_numpy_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def run(use: Any, spec: FrameSpec, files: MemoryFiles, frames: Array) -> Array:
    """The node's output for one block, checked against what it inferred."""
    result: Array = use.bind(Inputs.of(spec, files))(frames)
    after = use.infer(Inputs.of(spec, files))
    assert result.shape == (len(frames), *after.shape)
    assert result.dtype == after.dtype
    return result


def kept(values: Array, dtype: str) -> Array:
    """Rounded half to even and clipped, by Python's own integers."""
    if np.dtype(dtype).kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    exact = [min(max(round(float(v)), int(limits.min)), int(limits.max)) for v in values.ravel()]
    return np.array(exact, dtype).reshape(values.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 7, 11), (1, 1, 1), (2, 150, 301), (1, 3, 40000)])
def test_background_is_subtracted_in_float32(dtype: str, shape: tuple[int, int, int]) -> None:
    frames = pixels(dtype, shape)
    dark = np.random.default_rng(2).uniform(0, 100, shape[1:]).astype(np.float32)
    use, spec = node("background_sub", image="dark"), spec_of(dtype, *shape[1:])
    wide: Any = np.float32 if np.can_cast(dtype, np.float32) else np.float64
    expected = (frames.astype(wide) - dark).astype(np.float32)
    for layout in (frames, padded(frames)):
        np.testing.assert_array_equal(run(use, spec, MemoryFiles(dark=dark), layout), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keep_rounds_half_to_even_then_clips(dtype: str) -> None:
    frames = pixels(dtype, (2, 5, 9))
    dark = np.arange(45, dtype=np.float64).reshape(5, 9) / 2 - 5
    result = run(node("background_sub", image="d", dtype="keep"), spec_of(dtype, 5, 9), MemoryFiles(d=dark), frames)
    np.testing.assert_array_equal(result, kept(frames.astype(np.float64) - dark, dtype))


def test_keep_of_halves() -> None:
    frames = np.array([[[1, 2, 3, 4, 0]]], np.uint8)
    result = run(node("background_sub", image=0.5, dtype="keep"), spec_of("uint8", 1, 5), NONE, frames)
    assert result.tolist() == [[[0, 2, 2, 4, 0]]]


def test_keep_rounds_once() -> None:
    """40000 - 10.500001 is just below a half; in float32 it would be one."""
    frames = np.array([[[40000]]], np.uint16)
    result = run(node("background_sub", image=10.500001, dtype="keep"), spec_of("uint16", 1, 1), NONE, frames)
    assert result.tolist() == [[[39989]]]


@pytest.mark.parametrize("dtype", ["uint64", "int64"])
def test_keep_clips_64_bit_integers_to_their_range(dtype: str) -> None:
    limits = np.iinfo(dtype)
    frames = np.array([[[limits.max, limits.min]]], dtype)
    up = run(node("background_sub", image=-1e19, dtype="keep"), spec_of(dtype, 1, 2), NONE, frames)
    assert up[0, 0, 0] == limits.max
    down = run(node("background_sub", image=1e19, dtype="keep"), spec_of(dtype, 1, 2), NONE, frames)
    assert down[0, 0, 1] == limits.min


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("result", ["float32", "keep"])
def test_flat_divides_and_masks_what_has_no_value(dtype: str, result: str) -> None:
    frames = pixels(dtype, (2, 6, 7))
    flat = np.random.default_rng(3).uniform(0.5, 2, (6, 7))
    flat[0, 0], flat[1, 2], flat[3, 3] = 0, np.nan, 1.25
    dark = np.full((6, 7), 0.25)
    dark[3, 3] = 1.25
    files = MemoryFiles(flat=flat, dark=dark)
    use, spec = node("flatfield", image="flat", background="dark", dtype=result), spec_of(dtype, 6, 7)
    bad = np.isnan(flat) | (flat - dark == 0)
    flat0 = use.infer(Inputs.of(spec, files))
    np.testing.assert_array_equal(flat0.mask, bad)
    got = run(use, spec, files, frames)
    wide = np.float32 if np.can_cast(dtype, np.float32) and got.dtype == np.float32 else np.float64
    quotient = frames.astype(wide) / np.where(bad, 1, flat - dark).astype(wide)
    expected = quotient.astype(np.float32) if result == "float32" else kept(quotient, dtype)
    np.testing.assert_array_equal(got[:, ~bad], expected[:, ~bad])
    hole = got[:, bad]
    assert np.isnan(hole).all() if got.dtype.kind == "f" else (hole == frames[:, bad]).all()


def test_flat_zero_of_the_flat_itself_masks_without_background() -> None:
    flat = np.array([[0.0, 2.0]])
    got = run(node("flatfield", image="f"), spec_of("uint8", 1, 2), MemoryFiles(f=flat), np.array([[[8, 8]]], np.uint8))
    assert np.isnan(got[0, 0, 0])
    assert got[0, 0, 1] == 4


@pytest.mark.parametrize("background", [None, 3])
def test_flat_of_a_number_that_is_zero_is_refused(background: Any) -> None:
    use = node("flatfield", image=background or 0, background=background)
    with pytest.raises(NodeMisuse) as refused:
        use.infer(Inputs.of(spec_of("uint8", 2, 2), NONE))
    assert (refused.value.rule, refused.value.key) == ("calibration-value", ("image",))


@pytest.mark.parametrize("result", ["float32", "keep"])
def test_nan_of_the_background_masks(result: str) -> None:
    dark = np.array([[1.0, np.nan]])
    use, spec, files = node("background_sub", image="d", dtype=result), spec_of("uint16", 1, 2), MemoryFiles(d=dark)
    got = run(use, spec, files, np.array([[[5, 5]]], np.uint16))
    assert use.infer(Inputs.of(spec, files)).mask.tolist() == [[False, True]]
    assert got[0, 0, 0] == 4
    assert np.isnan(got[0, 0, 1]) if result == "float32" else got[0, 0, 1] == 5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masked_pixels_are_nan_and_infinite_ones_are_computed_like_any_other(dtype: str) -> None:
    frames = np.array([[[np.nan, np.inf, -np.inf, 7.0]]], dtype)
    spec = spec_of(dtype, 1, 4, mask=np.array([[False, False, False, True]]))
    np.testing.assert_array_equal(
        run(node("background_sub", image=2), spec, NONE, frames), np.array([[[np.nan, np.inf, -np.inf, np.nan]]], "f4")
    )
    assert np.isnan(run(node("flatfield", image=2), spec, NONE, frames)[0, 0, 3])
    assert node("background_sub", image=2).infer(Inputs.of(spec, NONE)).mask is spec.mask


def test_values_beyond_float32_become_infinite() -> None:
    frames = np.array([[[1e300, -1e300]]])
    got = run(node("background_sub", image=1), spec_of("float64", 1, 2), NONE, frames)
    assert got.tolist() == [[[np.inf, -np.inf]]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.01, 0.4])
def test_mask_fills_all_masked_pixels_and_no_other(dtype: str, share: float) -> None:
    frames = pixels(dtype, (3, 21, 33))
    bad = np.random.default_rng(5).uniform(size=(21, 33)) < share
    before = np.zeros((21, 33), bool)
    before[4] = True
    spec, files = spec_of(dtype, 21, 33, mask=before), MemoryFiles(m=bad.astype(np.uint32) * 8)
    use = node("mask", image="m", fill=7)
    for layout in (frames, padded(frames)):
        expected = np.where(bad | before, np.array(7, dtype), frames)
        np.testing.assert_array_equal(run(use, spec, files, layout), expected)
    np.testing.assert_array_equal(use.infer(Inputs.of(spec, files)).mask, bad | before)


def test_mask_of_nothing_hands_the_frames_on() -> None:
    frames = pixels("uint16", (1, 4, 4))
    use, spec = node("mask", image=0), spec_of("uint16", 4, 4)
    assert use.bind(Inputs.of(spec, NONE))(frames) is frames
    assert use.infer(Inputs.of(spec, NONE)).mask is None
    assert not use.warnings(Inputs.of(spec, NONE))


def test_mask_fill_nan_in_float_frames() -> None:
    frames, files = pixels("float32", (1, 1, 2)), MemoryFiles(m=np.array([[0, 1]]))
    got = run(node("mask", image="m", fill="nan"), spec_of("float32", 1, 2), files, frames)
    assert got[0, 0, 0] == frames[0, 0, 0]
    assert np.isnan(got[0, 0, 1])


@pytest.mark.parametrize(
    ("dtype", "fill"), [("uint16", "nan"), ("uint8", 256), ("uint8", -1), ("int32", 0.5), ("float32", 1e39)]
)
def test_mask_fill_must_fit_the_dtype(dtype: str, fill: Any) -> None:
    with pytest.raises(NodeMisuse) as refused:
        node("mask", image=1, fill=fill).infer(Inputs.of(spec_of(dtype, 2, 2), NONE))
    assert (refused.value.rule, refused.value.key) == ("mask-fill", ("fill",))


def test_most_pixels_masked_is_a_warning() -> None:
    spec = spec_of("uint16", 2, 2)
    (warning,) = node("mask", image=1).warnings(Inputs.of(spec, NONE))
    assert (warning.rule, warning.key) == ("mask-most", ("image",))
    assert "0 means good" in str(warning.help)
    half = MemoryFiles(m=np.array([[0, 0], [1, 1]]))
    assert not node("mask", image="m").warnings(Inputs.of(spec, half))
    flat = MemoryFiles(f=np.array([[0.0, 0.0], [0.0, 1.0]]))
    assert [w.rule for w in node("flatfield", image="f").warnings(Inputs.of(spec, flat))] == ["mask-most"]


@settings(max_examples=40)
@given(
    dtype=st.sampled_from(DTYPES),
    count=st.integers(1, 9),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    cuts=st.lists(st.integers(1, 8), max_size=3),
    result=st.sampled_from(["float32", "keep"]),
)
def test_any_split_into_blocks_gives_the_same(
    dtype: str, count: int, height: int, width: int, cuts: list[int], result: str
) -> None:
    frames = pixels(dtype, (count, height, width))
    spec, dark = spec_of(dtype, height, width), np.random.default_rng(7).uniform(0, 50, (height, width))
    kernel = node("background_sub", image="d", dtype=result).bind(Inputs.of(spec, MemoryFiles(d=dark)))
    whole = kernel(frames).copy()
    parts = [kernel(frames[part]).copy() for part in splits(count, cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_output_array_is_kept() -> None:
    kernel = node("background_sub", image=1).bind(Inputs.of(spec_of("uint16", 8, 8), NONE))
    large = kernel(pixels("uint16", (4, 8, 8)))
    small = kernel(pixels("uint16", (2, 8, 8)))
    assert np.shares_memory(large, small)


@pytest.mark.parametrize(
    ("kind", "image", "result", "level"),
    [
        ("background_sub", 10, "float32", 990.0),
        ("background_sub", 10.5, "keep", 990.0),  # 989.5, as the pixels themselves: half to even
        ("flatfield", 2, "float32", 500.0),
        ("flatfield", -2, "float32", None),
        ("background_sub", "image", "float32", None),
        ("mask", "image", None, 1000.0),
    ],
)
def test_saturation_follows_one_number(kind: str, image: Any, result: str | None, level: float | None) -> None:
    parameters = {"image": image} | ({"dtype": result} if result else {})
    files = MemoryFiles(image=np.array([[0.0, 1.0]]))
    after = node(kind, **parameters).infer(Inputs.of(spec_of("uint16", 1, 2, saturation=1000.0), files))
    assert after.saturation == level


def test_area_of_a_region_of_the_detector() -> None:
    """An image of the detector's shape is cut to the flow's source."""
    dark = np.arange(30.0).reshape(5, 6)
    spec = FrameSpec("uint16", View(Rect(2, 1, 3, 2)), (6, 5))
    got = run(node("background_sub", image="d"), spec, MemoryFiles(d=dark), np.full((1, 2, 3), 100, np.uint16))
    np.testing.assert_array_equal(got[0], 100 - dark[1:3, 2:5])


def test_real_projections(data_dir: Path) -> None:
    """Dark, flat and mask of a tomography scan; pixel (0, 0) is 0 in dark and flat."""
    import h5py
    import hdf5plugin  # noqa: F401  # its filters; comes before h5py opens the file

    with h5py.File(data_dir / "tomo_pco_raw_dark_flat.h5") as file:
        raw, dark, flat = (file[f"/entry/data/{name}"][()] for name in ("data", "dark", "flat"))
    hot = (dark > np.percentile(dark, 99.5)).astype(np.uint8)
    files = MemoryFiles(dark=dark, flat=flat, hot=hot)
    chain = [
        node("background_sub", image="dark"),
        node("flatfield", image="flat", background="dark"),
        node("mask", image="hot", fill=0),
    ]
    spec, frames = spec_of("uint16", *raw.shape[1:]), raw
    for use in chain:
        spec, frames = use.infer(Inputs.of(spec, files)), run(use, spec, files, frames)
    with np.errstate(all="ignore"):
        expected = (raw.astype(np.float32) - dark) / (flat - dark)
    expected[:, hot != 0] = 0
    dead = (flat == dark) & (hot == 0)
    assert dead[0, 0]
    expected[:, dead] = 0  # all that is masked so far is filled
    np.testing.assert_array_equal(frames, expected)
    np.testing.assert_array_equal(spec.mask, (flat == dark) | (hot != 0))
