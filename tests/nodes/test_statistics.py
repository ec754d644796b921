"""Sums over regions of frames larger than a tile: strips, masks of every density, values at the ends of float32."""

from typing import Any

import numpy as np
import pytest

from lima2cli.frames import Array
from lima2cli.kernels.strips import TILE_PIXELS
from tests.node_inputs import DTYPES, padded, pixels, spec_of
from tests.nodes.test_nodes_roi_counters import ALL, check, compare, counters, expected_of

SHAPES = [(3, 500, 300), (7, 150, 200), (1, 3, TILE_PIXELS + 7)]


def whole(frames: Array) -> dict[str, Any]:
    """A region of all pixels, and a part."""
    height, width = frames.shape[1:]
    part = {"x": 1, "y": 1, "width": width - 2, "height": height - 1}
    return {"all": {"rect": {"x": 0, "y": 0, "width": width, "height": height}}, "part": {"rect": part}}


CASES = [(dtype, (1, 400, 401)) for dtype in DTYPES] + [(dtype, s) for dtype in ("uint16", "float32") for s in SHAPES]


@pytest.mark.parametrize(("dtype", "shape"), CASES)
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.03, 0.2, 0.9])
def test_strips_and_masks(dtype: str, shape: tuple[int, int, int], share: float) -> None:
    frames = pixels(dtype, shape)
    mask = np.random.default_rng(2).uniform(size=shape[1:]) < share
    mask[: shape[1] // 3, 0] = share > 0  # the first pixels of a strip, too
    spec = spec_of(dtype, *shape[1:], mask=mask if share else None, saturation=100.0)
    part = (slice(1, None), slice(1, -1))
    wanted = {
        "all": expected_of([frame[~mask] for frame in frames], 100.0),
        "part": expected_of([frame[part][~mask[part]] for frame in frames], 100.0),
    }
    for layout in (frames, padded(frames)):
        rows = counters(spec, layout, rois=whole(frames), statistics=ALL)
        for roi, expected in wanted.items():
            compare(rows, roi, expected)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.2])
def test_nan_in_some_strips(share: float) -> None:
    frames = pixels("float32", (2, 700, 401)).copy()
    frames[0, 3, 5:9] = np.nan
    frames[1, 400:, 7] = np.nan
    mask = np.random.default_rng(2).uniform(size=(700, 401)) < share
    spec = spec_of("float32", 700, 401, mask=mask if share else None, saturation=100.0)
    rows = counters(spec, frames, rois=whole(frames), statistics=ALL)
    check(rows, "all", [frame[~mask] for frame in frames], 100.0)


@pytest.mark.parametrize("scale", [1e30, 3e17, 1e-15, 1e-22, 1e-37])
@pytest.mark.parametrize("share", [0.0, 0.03])
def test_values_whose_squares_are_no_float32(scale: float, share: float) -> None:
    frames = (np.random.default_rng(1).uniform(-1, 1, (1, 500, 401)) * scale).astype(np.float32)
    mask = np.random.default_rng(2).uniform(size=(500, 401)) < share
    spec = spec_of("float32", 500, 401, mask=mask if share else None)
    rows = counters(spec, frames, rois=whole(frames))
    good = frames[0][~mask].astype(np.float64)
    np.testing.assert_allclose(rows["all_std"][0], good.std(), rtol=3e-7)
    np.testing.assert_allclose(rows["all_sum"][0], good.sum(), rtol=1e-9)


@pytest.mark.parametrize("mean", [1e3, 1e6, 12345678.0])
def test_a_small_spread_about_a_large_mean(mean: float) -> None:
    """Neighbouring float32 values: what is nearly equal is subtracted exactly."""
    frames = np.full((1, 500, 401), mean, np.float32)
    frames[0, ::3, ::2] = np.nextafter(np.float32(mean), np.float32(np.inf))
    rows = counters(spec_of("float32", 500, 401), frames, rois=whole(frames))
    np.testing.assert_allclose(rows["all_std"][0], frames.astype(np.longdouble).std(), rtol=3e-7)


def test_one_hot_pixel_among_small_ones() -> None:
    """It stands where a masked pixel takes its value from."""
    frames = np.full((1, 500, 401), 1e-3, np.float32)
    frames[0, 0, 0] = 1e6
    frames[0, 1::2] *= 3
    mask = np.zeros((500, 401), bool)
    mask[3:200, 5] = True
    rows = counters(spec_of("float32", 500, 401, mask=mask), frames, rois=whole(frames))
    good = frames[0][~mask].astype(np.longdouble)
    np.testing.assert_allclose(rows["all_sum"][0], float(good.sum()), rtol=1e-12)
    np.testing.assert_allclose(rows["all_std"][0], float(good.std()), rtol=3e-7)
    np.testing.assert_allclose(rows["part_std"][0], float(frames[0, 1:, 1:-1][~mask[1:, 1:-1]].std(dtype="f8")), 3e-7)
