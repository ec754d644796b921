"""roi_flip_rot against numpy doing one thing after the other; calibration and ROIs that follow."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, FrameSpec
from lima2cli.geometry import Rect
from lima2cli.kernels.regions import regions
from lima2cli.nodes.base import Inputs
from lima2cli.nodes.calibration import bad_pixels, calibration
from lima2cli.view import View
from tests.geometry_chains import CHAINS, Chain, do
from tests.node_inputs import DTYPES, MemoryFiles, node, padded, pixels, spec_of

NONE = MemoryFiles()


@pytest.fixture(autouse=True)
def _no_numpy_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def oracle(
    frames: Array, *, binning: Any = (1, 1), roi: Rect | None = None, flip: str = "none", rotation: int = 0
) -> Any:
    """Frames (n, height, width), of Python's numbers where they are integers."""
    x, y = binning
    if binning != (1, 1):
        wide = frames.astype(object if frames.dtype.kind in "iu" else frames.dtype)
        height, width = frames.shape[1] // y * y, frames.shape[2] // x * x
        wide = wide[:, :height, :width].reshape(len(frames), height // y, y, width // x, x)
        frames = wide.sum(axis=(2, 4))
    if roi is not None:
        frames = frames[:, roi.y : roi.bottom, roi.x : roi.right]
    frames = frames[:, :, ::-1] if flip in ("horizontal", "both") else frames
    frames = frames[:, ::-1] if flip in ("vertical", "both") else frames
    return np.rot90(frames, -rotation // 90, axes=(1, 2))


def written(*, binning: Any = (1, 1), roi: Rect | None = None, **more: Any) -> Any:
    """The node as a user writes it."""
    part = {} if roi is None else {"roi": {"x": roi.x, "y": roi.y, "width": roi.width, "height": roi.height}}
    return node("roi_flip_rot", binning={"x": binning[0], "y": binning[1]}, **part, **more)


GIVEN = [
    {"binning": (2, 2)},
    {"binning": (3, 1), "flip": "vertical"},
    {"binning": (1, 4), "rotation": 90},
    {"binning": (5, 3), "roi": Rect(1, 2, 1, 3), "flip": "both", "rotation": 270},
    {"binning": (13, 17)},
    {"roi": Rect(2, 1, 7, 9)},
    {"flip": "horizontal"},
    {"flip": "horizontal", "rotation": 90, "roi": Rect(0, 3, 13, 9)},
    {"rotation": 180},
    {"rotation": 270},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", GIVEN, ids=str)
@pytest.mark.parametrize("layout", [np.asarray, padded])
def test_frames_are_what_numpy_says(dtype: str, given: dict[str, Any], layout: Any) -> None:
    use, spec = written(**given), spec_of(dtype, 17, 13)
    frames = pixels(dtype, (3, 17, 13))
    function, after = use.bind(Inputs.of(spec, NONE)), use.infer(Inputs.of(spec, NONE))
    for count in (2, 3, 1):
        got = function(layout(frames[:count]))
        expected = oracle(frames[:count], **given)
        assert (str(got.dtype), got.shape) == (after.dtype, (count, *after.shape))
        if got.dtype.kind == "f":
            exact, tolerance = expected.astype(np.float64), 1e-5 if dtype == "float32" else 1e-12
            np.testing.assert_allclose(got, exact, rtol=tolerance, atol=tolerance * 1e4)
        else:
            assert got.tolist() == expected.tolist()


@pytest.mark.parametrize("shape", [(1, 300, 333), (7, 60, 128), (2, 3, 40000)])
@pytest.mark.parametrize("given", [{"binning": (2, 2)}, {"binning": (3, 2), "rotation": 90}, {"rotation": 90}], ids=str)
def test_blocks_of_many_tiles(shape: tuple[int, int, int], given: dict[str, Any]) -> None:
    frames = pixels("uint16", shape)
    got = written(**given).bind(Inputs.of(spec_of("uint16", *shape[1:]), NONE))(frames)
    assert got.tolist() == oracle(frames, **given).tolist()


def test_binning_widens_as_far_as_needed() -> None:
    def dtype(source: str, x: int, y: int) -> str:
        return str(written(binning=(x, y)).infer(Inputs.of(spec_of(source, 300, 300), NONE)).dtype)

    assert [dtype("uint8", 2, 2), dtype("uint8", 257, 1), dtype("uint8", 129, 2)] == ["uint16", "uint16", "uint32"]
    assert [dtype("int8", 128, 2), dtype("int8", 129, 2)] == ["int16", "int32"]
    assert [dtype("uint16", 2, 2), dtype("uint32", 2, 1), dtype("int32", 1, 2)] == ["uint32", "uint64", "int64"]
    assert [dtype("uint64", 2, 1), dtype("int64", 1, 2), dtype("float32", 2, 2)] == ["float64", "float64", "float32"]
    assert dtype("uint64", 1, 1) == "uint64"


def test_nothing_to_do_is_no_copy_and_a_part_is_a_view() -> None:
    frames = pixels("uint16", (2, 6, 5))
    spec = spec_of("uint16", 6, 5)
    assert written().bind(Inputs.of(spec, NONE))(frames) is frames
    assert np.shares_memory(written(roi=Rect(1, 1, 3, 3)).bind(Inputs.of(spec, NONE))(frames), frames)


def test_nan_and_mask_and_saturation() -> None:
    mask = np.zeros((4, 4), bool)
    mask[0, 3] = True
    spec = spec_of("float32", 4, 4, mask=mask, saturation=100.0)
    frames = np.ones((1, 4, 4), np.float32)
    frames[0, 3, 0] = np.nan
    use = written(binning=(2, 2), rotation=90)
    np.testing.assert_array_equal(use.bind(Inputs.of(spec, NONE))(frames)[0], [[np.nan, 4], [4, np.nan]])
    after = use.infer(Inputs.of(spec, NONE))
    assert after.mask is not None
    assert after.mask.tolist() == [[False, False], [False, True]]
    assert after.saturation is None
    assert written(rotation=90).infer(Inputs.of(spec, NONE)).saturation == 100.0
    assert written(roi=Rect(0, 1, 4, 3)).infer(Inputs.of(spec, NONE)).mask is None


@pytest.mark.parametrize(
    ("given", "rule", "key"),
    [
        ({"binning": (14, 1)}, "binning-too-large", "binning"),
        ({"binning": (1, 18)}, "binning-too-large", "binning"),
        ({"binning": (2, 2), "roi": Rect(0, 0, 7, 8)}, "roi-outside", "roi"),
        ({"roi": Rect(13, 0, 1, 1)}, "roi-outside", "roi"),
    ],
)
def test_misfits(given: dict[str, Any], rule: str, key: str) -> None:
    with pytest.raises(NodeMisuse) as refused:
        written(**given).infer(Inputs.of(spec_of("uint16", 17, 13), NONE))
    assert (refused.value.rule, refused.value.key) == (rule, (key,))


def shown(chain: Chain) -> FrameSpec:
    """Frames that nodes have made of a detector's."""
    spec = spec_of("uint16", chain.height, chain.width)
    keys = {"bin": "binning", "cut": "roi", "flip": "flip", "rotate": "rotation"}
    flips = {(False, False): "none", (True, False): "horizontal", (False, True): "vertical", (True, True): "both"}
    for kind, value in chain.steps:
        given: dict[str, Any] = {keys[kind]: flips[value] if kind == "flip" else value}
        spec = written(**given).infer(Inputs.of(spec, NONE))
    return spec


@given(CHAINS)
def test_a_node_shows_what_the_view_says(chain: Chain) -> None:
    view = View(Rect(0, 0, chain.width, chain.height))
    for step in chain.steps:
        view = do(view, step)
    assert shown(chain).view == view


@given(CHAINS)
def test_calibration_images_go_the_way_of_the_frames(chain: Chain) -> None:
    spec = shown(chain)
    image = np.random.default_rng(2).normal(size=(chain.height, chain.width))
    files = MemoryFiles(i=image, m=image > 1.5, s=np.stack([image, image + 2]))
    sums, means = (
        calibration("i", Inputs.of(spec, files), "image", "sum"),
        calibration("i", Inputs.of(spec, files), "image", "mean"),
    )
    np.testing.assert_allclose(sums, chain.oracle(image, np.sum), atol=1e-12)
    np.testing.assert_allclose(means, chain.oracle(image, np.mean), atol=1e-12)  # means of means of as many pixels
    stack = calibration("s", Inputs.of(spec, files), "image", "mean")
    np.testing.assert_allclose(stack, chain.oracle(image + 1, np.mean), atol=1e-12)
    bad = bad_pixels("m", Inputs.of(spec, files), "image")
    np.testing.assert_array_equal(np.zeros(spec.shape, bool) if bad is None else bad, chain.oracle(image > 1.5, any))


def test_an_image_of_a_square_detector_is_in_its_coordinates() -> None:
    spec = written(rotation=90).infer(Inputs.of(spec_of("uint16", 2, 2), NONE))
    got = calibration("i", Inputs.of(spec, MemoryFiles(i=np.array([[1, 2], [3, 4]]))), "image", "sum")
    assert np.asarray(got).tolist() == [[3, 1], [4, 2]]


def test_an_image_of_the_inputs_shape_is_not_turned_again() -> None:
    spec = written(binning=(2, 1), rotation=90).infer(Inputs.of(spec_of("uint16", 3, 4), NONE))
    image = np.arange(6.0).reshape(spec.shape)
    np.testing.assert_array_equal(calibration("i", Inputs.of(spec, MemoryFiles(i=image)), "image", "sum"), image)


ROI = {"x": st.integers(0, 8), "y": st.integers(0, 8), "width": st.integers(1, 9), "height": st.integers(1, 9)}


@given(CHAINS, st.fixed_dictionaries(ROI))
def test_rects_in_detector_coordinates_are_the_bins_inside(chain: Chain, rect: dict[str, int]) -> None:
    spec, asked = shown(chain), Rect(**rect)
    use = node("roi_counters", rois={"r": {"rect": rect}}, coordinates="detector")
    inside = np.zeros((chain.height, chain.width), bool)
    inside[asked.within(Rect(0, 0, 0, 0))] = True
    expected = chain.oracle(inside, all)
    if not spec.view.area.contains(asked) or not expected.any():
        with pytest.raises(NodeMisuse) as refused:
            use.infer(Inputs.of(spec, NONE))
        assert refused.value.rule == ("roi-empty" if spec.view.area.contains(asked) else "roi-outside")
        return
    np.testing.assert_array_equal(counted(use, spec), expected)
    cut = bool(asked.area != expected.sum() * spec.view.binning[0] * spec.view.binning[1])
    assert [warning.rule for warning in use.warnings(Inputs.of(spec, NONE))] == ["roi-unaligned"] * cut


ARC = {"x": st.floats(-3, 12), "y": st.floats(-3, 12), "r1": st.floats(0, 4), "r2": st.floats(4.5, 12)}


@given(CHAINS, st.fixed_dictionaries(ARC), st.floats(0, 360), st.floats(10, 400))
def test_arcs_in_detector_coordinates_hold_the_centres_inside(
    chain: Chain, circle: dict[str, float], angle: float, span: float
) -> None:
    spec = shown(chain)
    use = node("roi_counters", rois={"r": {"arc": circle | {"a1": angle, "a2": angle + span}}}, coordinates="detector")
    y, x = np.mgrid[: chain.height, : chain.width].astype(float)
    dx, dy = chain.oracle(x, np.mean) - circle["x"], chain.oracle(y, np.mean) - circle["y"]
    radius, turned = np.hypot(dx, dy), (np.degrees(np.arctan2(dy, dx)) - angle) % 360
    expected = (circle["r1"] <= radius) & (radius < circle["r2"]) & ((turned < span % 360) | (span >= 360))
    # within rounding either is right
    edges = [radius - circle["r1"], radius - circle["r2"], turned, turned - span, turned - span + 360, 360 - turned]
    if not expected.any() or (np.abs(edges) < 1e-9).any():
        return
    np.testing.assert_array_equal(counted(use, spec), expected)


def counted(use: Any, spec: FrameSpec) -> Array:
    """Return the pixels of its input that count in the one ROI of a node."""
    region = regions(use.rois, use.coordinates, spec)["r"]
    pixels = np.zeros(spec.shape, bool)
    pixels[region.box.within(Rect(0, 0, 0, 0))] = True if region.pixels is None else region.pixels
    return pixels
