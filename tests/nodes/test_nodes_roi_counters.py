"""roi_counters against numpy's one-liners."""

import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, FrameSpec, Invalid
from lima2cli.geometry import Rect
from lima2cli.kernels.regions import regions
from lima2cli.kernels.strips import TILE_PIXELS
from lima2cli.nodes.base import Inputs, Partial
from lima2cli.view import View
from tests.node_inputs import DTYPES, TWO_MODULES, MemoryFiles, block, node, padded, pixels, spec_of, splits
from tests.running import TRANSPORTS, run

NONE = MemoryFiles()
ALL = ["avg", "std", "min", "max", "sum", "saturated"]


@pytest.fixture(autouse=True)
def _no_numpy_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def counters(spec: FrameSpec, frames: Array, **parameters: Any) -> dict[str, Array]:
    """The rows of one block, checked against what was inferred."""
    use = node("roi_counters", **parameters)
    table = use.infer(Inputs.of(spec, NONE))
    rows = dict(use.finish(use.bind(Inputs.of(spec, NONE)).step(block(frames), 0)))
    numbers = rows.pop("frame_number")
    assert numbers.tolist() == list(range(len(frames)))
    assert {name: str(values.dtype) for name, values in rows.items()} == dict(table.columns)
    assert all(values.shape == (len(frames),) for values in rows.values())
    return rows


def oracle(values: Array, saturation: float = np.inf) -> dict[str, Any]:
    """Statistics of the pixels (1-D) of one frame, by Python's integers and numpy's two passes."""
    values = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    if not len(values):
        lowest = np.nan if values.dtype.kind == "f" else 0
        return {"avg": np.nan, "std": np.nan, "min": lowest, "max": lowest, "sum": 0.0, "saturated": 0}
    numbers = values.tolist()
    total = sum(numbers)
    return {
        "avg": total / len(values),
        "std": np.std(values.astype(np.longdouble)),
        "min": values.min(),
        "max": values.max(),
        "sum": float(total),
        "saturated": sum(map(saturation.__le__, numbers)),
    }


Expected = list[tuple[dict[str, Any], float, int]]
"""The statistics of each frame, the largest value and the number of its pixels."""


def expected_of(frames: list[Array], saturation: float = np.inf) -> Expected:
    """Return what the oracle says of the pixels (1-D) of frames."""
    return [
        (oracle(values, saturation), float(np.nanmax(np.abs(values.astype(np.float64)), initial=1.0)), len(values))
        for values in frames
    ]


def compare(rows: dict[str, Array], roi: str, wanted: Expected) -> None:
    """Compare rows with those that are expected."""
    for i, (expected, scale, count) in enumerate(wanted):
        for name in ("min", "max", "saturated"):
            np.testing.assert_array_equal(rows[f"{roi}_{name}"][i], expected[name], err_msg=name)
        for name in ("avg", "std"):
            np.testing.assert_allclose(rows[f"{roi}_{name}"][i], float(expected[name]), rtol=3e-7, atol=1e-7 * scale)
        np.testing.assert_allclose(rows[f"{roi}_sum"][i], expected["sum"], rtol=1e-12, atol=1e-12 * scale * count)


def check(rows: dict[str, Array], roi: str, frames: list[Array], saturation: float = np.inf) -> None:
    """Compare rows with what the oracle says of the pixels (1-D) of frames."""
    compare(rows, roi, expected_of(frames, saturation))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 13, 17), (1, 300, 211), (20, 60, 61), (2, 2, 40000)])
def test_rect(dtype: str, shape: tuple[int, int, int]) -> None:
    frames = pixels(dtype, shape)
    height, width = shape[1:]
    level = float(np.quantile(frames.astype(np.float64), 0.9))
    rois = {
        "all": {"rect": {"x": 0, "y": 0, "width": width, "height": height}},
        "part": {"rect": {"x": 2, "y": 1, "width": width - 3, "height": height - 1}},
        "last": {"rect": {"x": width - 1, "y": height - 1, "width": 1, "height": 1}},
    }
    spec = spec_of(dtype, height, width, saturation=level)
    wanted = {
        "all": expected_of([frame.ravel() for frame in frames], level),
        "part": expected_of([frame[1:, 2 : width - 1].ravel() for frame in frames], level),
        "last": expected_of([frame[-1:, -1] for frame in frames], level),
    }
    for layout in (frames, padded(frames)):
        rows = counters(spec, layout, rois=rois, statistics=ALL)
        for roi, expected in wanted.items():
            compare(rows, roi, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_pixels_do_not_count(dtype: str) -> None:
    frames = pixels(dtype, (2, 190, 210))
    mask = np.random.default_rng(4).uniform(size=(190, 210)) < 0.2
    spec = spec_of(dtype, 190, 210, mask=mask, saturation=1e3)
    rois = {"r": {"rect": {"x": 3, "y": 4, "width": 200, "height": 180}}}
    part = (slice(4, 184), slice(3, 203))
    wanted = expected_of([frame[part][~mask[part]] for frame in frames], 1e3)
    for layout in (frames, padded(frames)):
        compare(counters(spec, layout, rois=rois, statistics=ALL), "r", wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 9, 9), (2, 300, 200)])
def test_nan_pixels_do_not_count_in_their_frame(dtype: str, shape: tuple[int, int, int]) -> None:
    frames = pixels(dtype, shape).copy()
    frames[0, 2:5, 1:8] = np.nan
    frames[-1] = np.nan
    rois = {"r": {"rect": {"x": 0, "y": 0, "width": shape[2], "height": shape[1]}}}
    rows = counters(spec_of(dtype, *shape[1:], saturation=500.0), frames, rois=rois, statistics=ALL)
    check(rows, "r", [frame.ravel() for frame in frames], 500.0)
    assert np.isnan(rows["r_avg"][-1])
    assert rows["r_sum"][-1] == 0


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_without_any_pixel(dtype: str) -> None:
    spec = spec_of(dtype, 4, 4, mask=np.ones((4, 4), bool), saturation=1.0)
    rois = {"r": {"rect": {"x": 0, "y": 0, "width": 2, "height": 2}}}
    rows = counters(spec, pixels(dtype, (2, 4, 4)), rois=rois, statistics=ALL)
    check(rows, "r", [np.empty(0, dtype)] * 2)
    (warning,) = node("roi_counters", rois=rois).warnings(Inputs.of(spec, NONE))
    assert (warning.rule, warning.key) == ("roi-masked", ("rois", "r"))


def test_infinite_pixels_count() -> None:
    frames = np.array([[[1.0, np.inf]], [[-np.inf, np.inf]]])
    rows = counters(spec_of("float64", 1, 2), frames, rois={"r": {"rect": {"x": 0, "y": 0, "width": 2, "height": 1}}})
    assert (rows["r_sum"][0], rows["r_max"][0], rows["r_min"][0], rows["r_min"][1]) == (np.inf, np.inf, 1, -np.inf)


def test_sums_are_exact_and_std_is_stable() -> None:
    width = 3 * TILE_PIXELS
    frames = np.full((1, 2, width), 2**32 - 1, np.uint32)
    frames[0, 0, 0] = 0
    rois = {"r": {"rect": {"x": 0, "y": 0, "width": width, "height": 2}}}
    assert counters(spec_of("uint32", 2, width), frames, rois=rois)["r_sum"][0] == (2**32 - 1) * (2 * width - 1)
    shifted = 1e9 + np.where(np.arange(2 * width).reshape(1, 2, width) % 2, 1.0, -1.0)
    rows = counters(spec_of("float64", 2, width), shifted, rois=rois)
    assert rows["r_std"][0] == 1
    assert rows["r_sum"][0] == 1e9 * 2 * width
    constant = counters(spec_of("uint16", 2, width), np.full((1, 2, width), 65535, np.uint16), rois=rois)
    assert constant["r_std"][0] == 0
    assert constant["r_avg"][0] == 65535


def com_oracle(frame: Array, good: Array, place: Any = lambda x, y: (x, y)) -> tuple[float, float]:
    """The centre of mass of (height, width), pixel by pixel, of those that are good; exact of integers."""
    exact = Fraction if frame.dtype.kind != "f" else np.longdouble
    total, moments = exact(0), [exact(0), exact(0)]
    for row, column in zip(*np.nonzero(good), strict=True):
        value = exact(frame[row, column].item())
        total += value
        for i, at in enumerate(place(float(column), float(row))):
            moments[i] += value * exact(at)
    return (float(moments[0] / total), float(moments[1] / total)) if total else (np.nan, np.nan)


@settings(max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["rect", "arc"]),
    share=st.sampled_from([0.0, 0.02, 0.4, 1.0]),
    invalid=st.booleans(),
    view=st.sampled_from(
        [View(Rect(0, 0, 19, 14)), View(Rect(5, 3, 14, 19), rotation=90), View(Rect(2, 4, 38, 42), (2, 3), True, 180)]
    ),
    coordinates=st.sampled_from(["input", "detector"]),
    level=st.sampled_from([-1e9, -3.5, 0, 17, 100.5, 254.9, 255, 1e9, 2.0**62]),
)
def test_counts_and_centres_of_mass(
    dtype: str, kind: str, share: float, invalid: bool, view: View, coordinates: str, level: float
) -> None:
    height, width = view.shape
    frames = pixels(dtype, (3, height, width)).copy()
    frames[1] %= 7
    frames[2] = 0
    if frames.dtype.kind == "f":
        frames[0, 3:5] = np.nan
    random = np.random.default_rng(3)
    mask = random.uniform(size=(height, width)) < share
    values = Invalid((frames[0, 7, 6].item(),)) if invalid else Invalid()
    spec = FrameSpec(dtype, view, (60, 60), mask if share else None, invalid=values)
    area = view.area if coordinates == "detector" else Rect(0, 0, width, height)
    arc = {
        "x": area.x + area.width / 2,
        "y": area.y + area.height / 2,
        "r1": 2,
        "r2": area.height / 2,
        "a1": 0,
        "a2": 200,
    }
    rect = {"x": area.x, "y": area.y, "width": area.width, "height": area.height}
    rois = {"r": {kind: arc if kind == "arc" else rect}}
    asked = ["valid", {"above": level}, "com_x", "com_y"]
    place = view.place if coordinates == "detector" else lambda x, y: (x, y)
    (region,) = regions(node("roi_counters", rois=rois).rois, coordinates, replace(spec, mask=None)).values()
    inside = np.zeros((height, width), bool)
    box = region.box
    inside[box.y : box.bottom, box.x : box.right] = True if region.pixels is None else region.pixels
    for layout in (frames, padded(frames)):
        rows = counters(spec, layout, rois=rois, coordinates=coordinates, statistics=asked)
        for i, frame in enumerate(frames):
            good = inside & ~mask & ~np.isnan(frame)
            if invalid:
                good &= frame != values.values[0]
            assert rows["r_valid"][i] == good.sum()
            limit = frame.dtype.type(level) if frame.dtype.kind == "f" else Fraction(level)
            assert rows["r_above"][i] == sum(value > limit for value in frame[good].tolist())
            x, y = com_oracle(frame, good, place)
            exact = {"rtol": 1e-15} if frame.dtype.itemsize < 4 else {"rtol": 1e-9, "atol": 1e-9}
            np.testing.assert_allclose([rows["r_com_x"][i], rows["r_com_y"][i]], [x, y], **exact)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("roi", ["rect", "ring"])
def test_centres_of_mass_of_large_regions(roi: str, share: float) -> None:
    """Strip by strip, with few masked pixels and with many."""
    frames = pixels("uint16", (2, 700, 501))
    mask = np.random.default_rng(4).uniform(size=(700, 501)) < share
    shapes = {
        "rect": {"rect": {"x": 3, "y": 5, "width": 490, "height": 690}},
        "ring": {"ring": {"x": 240, "y": 350, "r1": 20, "r2": 245}},
    }
    y, x = np.ogrid[:700, :501]
    radius = np.hypot(x - 240, y - 350)
    inside = (radius >= 20) & (radius < 245) if roi == "ring" else (x >= 3) & (x < 493) & (y >= 5) & (y < 695)
    good = inside & ~mask
    spec = spec_of("uint16", 700, 501, mask=mask if share else None)
    rows = counters(spec, frames, rois={"r": shapes[roi]}, statistics=["com_x", "com_y", "valid", {"above": 4e4}])
    for i, frame in enumerate(frames):
        weights = np.where(good, frame, 0).astype(np.int64)
        assert rows["r_com_x"][i] == (weights * x).sum() / weights.sum()
        assert rows["r_com_y"][i] == (weights * y).sum() / weights.sum()
        assert rows["r_valid"][i] == good.sum()
        assert rows["r_above"][i] == (frame[good] > 40000).sum()


def test_levels_of_two_columns_of_one_name_are_refused() -> None:
    rois = {"r": {"rect": {"x": 0, "y": 0, "width": 1, "height": 1}}}
    for kind in ("roi_counters", "roi_profiles"):
        use = node(kind, rois=rois, statistics=["sum", {"above": 1}, {"above": 2}])
        with pytest.raises(NodeMisuse) as refused:
            use.infer(Inputs.of(spec_of("uint8", 2, 2), NONE))
        assert (refused.value.rule, refused.value.key) == ("above-twice", ("statistics", 2))


def test_columns_of_counts_and_centres() -> None:
    rois = {"r": {"rect": {"x": 0, "y": 0, "width": 1, "height": 1}}}
    table = node("roi_counters", rois=rois, statistics=["valid", {"above": 1.5}, "com_x"]).infer(
        Inputs.of(spec_of("uint8", 2, 2), NONE)
    )
    assert dict(table.columns) == {"r_valid": "uint32", "r_above": "uint32", "r_com_x": "float64"}
    assert dict(table.labels) == {
        "r_valid": "valid pixels of r", "r_above": "pixels above 1.5 of r", "r_com_x": "x of the centre of mass of r",
    }  # fmt: skip
    assert set(table.units.values()) == {"pixels"}


def test_the_size_of_a_region_does_not_depend_on_masks_and_parts() -> None:
    rois = {"r": {"rect": {"x": 1, "y": 2, "width": 6, "height": 5}}, "c": {"ring": {"x": 4, "y": 4, "r1": 0, "r2": 3}}}
    spec = spec_of("uint8", 12, 9, mask=np.arange(108).reshape(12, 9) % 3 == 0)
    part = Rect(0, 0, 9, 4)
    parts = replace(spec, view=spec.view.cut(part), mask=np.ones((4, 9), bool), whole=spec.view)
    disc = np.hypot(*np.mgrid[-4:8, -4:5]) < 3
    for shown in (spec, parts):
        facts = node("roi_counters", rois=rois, statistics=["sum", "valid"]).infer(Inputs.of(shown, NONE)).facts
        assert {name: dict(found) for name, found in facts.items()} == {
            f"{roi}_{name}": {"pixels": size}
            for roi, size in (("r", 30), ("c", disc.sum()))
            for name in ("sum", "valid")
        }


def arc_oracle(height: int, width: int, roi: dict[str, float]) -> Array:
    """By the definition, pixel by pixel."""
    inside = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            dx, dy = x - roi["x"], y - roi["y"]
            radius, angle = np.hypot(dx, dy), np.degrees(np.arctan2(dy, dx))
            turns = [angle + 360 * k for k in range(-4, 5)]
            around = roi["a2"] - roi["a1"] >= 360 or any(roi["a1"] <= turn < roi["a2"] for turn in turns)
            inside[y, x] = roi["r1"] <= radius < roi["r2"] and around
    return inside


@pytest.mark.parametrize(
    "arc",
    [
        {"x": 10, "y": 12, "r1": 0, "r2": 5, "a1": 0, "a2": 360},
        {"x": 10, "y": 12, "r1": 3, "r2": 8, "a1": 0, "a2": 90},
        {"x": 10, "y": 12, "r1": 3, "r2": 8, "a1": 350, "a2": 370},
        {"x": 10, "y": 12, "r1": 3, "r2": 8, "a1": -45, "a2": 45},
        {"x": 10.5, "y": 12.25, "r1": 1.5, "r2": 7.5, "a1": 135, "a2": 405},
        {"x": -5, "y": -5, "r1": 10, "r2": 20, "a1": 0, "a2": 720},
        {"x": 10, "y": 12, "r1": 0, "r2": 100, "a1": 180, "a2": 270},
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_arc(arc: dict[str, float], count: int) -> None:
    frames = pixels("uint16", (count, 24, 31))
    inside = arc_oracle(24, 31, arc)
    assert inside.any()
    mask = np.random.default_rng(6).uniform(size=(24, 31)) < 0.1
    for layout in (frames, padded(frames)):
        rows = counters(spec_of("uint16", 24, 31, saturation=9e3), layout, rois={"a": {"arc": arc}}, statistics=ALL)
        check(rows, "a", [frame[inside] for frame in frames], 9e3)
        spec = spec_of("uint16", 24, 31, mask=mask, saturation=9e3)
        rows = counters(spec, layout, rois={"a": {"arc": arc}}, statistics=ALL)
        check(rows, "a", [frame[inside & ~mask] for frame in frames], 9e3)


def polygon_oracle(points: list[tuple[float, float]], x: Array, y: Array) -> Array:
    """By the definition, pixel by pixel and line by line, in exact numbers: centres x (columns,) and y (rows,)."""
    inside = np.zeros((len(y), len(x)), bool)
    corners = [(Fraction(a), Fraction(b)) for a, b in points]
    for row, column in np.ndindex(*inside.shape):
        here, level = Fraction(float(x[column])), Fraction(float(y[row]))
        for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
            if (y1 <= level) != (y2 <= level) and x1 + (level - y1) * (x2 - x1) / (y2 - y1) <= here:
                inside[row, column] ^= True
    return inside


HALVES = st.integers(-8, 50).map(lambda number: number / 2)
CORNERS = st.lists(st.tuples(HALVES, HALVES), min_size=3, max_size=9)


@settings(max_examples=150, deadline=None)
@given(points=CORNERS, coordinates=st.sampled_from(["input", "detector"]), data=st.data())
def test_polygon(points: list[tuple[float, float]], coordinates: str, data: Any) -> None:
    """On lines and corners, too; in frames that are cut, binned and turned."""
    views = [View(Rect(0, 0, 20, 18)), View(Rect(3, 2, 20, 18), (2, 3)), View(Rect(1, 2, 12, 18), (1, 2), True, 90)]
    view = data.draw(st.sampled_from(views))
    bins = np.zeros(view.shape, bool)
    if coordinates == "input":
        expected = polygon_oracle(points, np.arange(bins.shape[1]), np.arange(bins.shape[0]))
    else:
        (across, down), (width, height), area = view.binning, view.bins, view.area
        x, y = (first + step * np.arange(count) + (step - 1) / 2 for first, step, count in
                ((area.x, across, width), (area.y, down, height)))  # fmt: skip
        expected = view.turn(polygon_oracle(points, x, y))
    use, spec = node("roi_counters", rois={"p": {"polygon": {"points": points}}}, coordinates=coordinates,
                     statistics=["valid", "com_x"]), FrameSpec("uint16", view, (40, 40))  # fmt: skip
    if not expected.any():
        with pytest.raises(NodeMisuse) as refused:
            use.infer(Inputs.of(spec, NONE))
        assert refused.value.rule in ("roi-outside", "roi-empty")
        assert refused.value.key == ("rois", "p", "polygon")
        return
    region = regions(use.rois, coordinates, spec)["p"]
    found = np.zeros(view.shape, bool)
    found[region.box.within(Rect(0, 0, 0, 0))] = True if region.pixels is None else region.pixels
    np.testing.assert_array_equal(found, expected)
    assert use.reads(spec) == [region.box]
    frames = pixels("uint16", (2, *view.shape))
    rows = use.finish(use.bind(Inputs.of(spec, NONE)).step(block(frames), 0))
    assert (rows["p_valid"] == expected.sum()).all()


@given(st.tuples(st.integers(4, 36), st.integers(4, 24)), st.permutations(range(3)))
def test_triangles_about_a_point_share_no_pixel(halves: tuple[int, int], order: list[int]) -> None:
    """Each pixel of a rectangle cut into triangles is in one, whichever way round these are written."""
    centre = halves[0] / 2, halves[1] / 2
    box = [(0.0, 0.0), (20.0, 0.0), (20.0, 14.0), (0.0, 14.0)]
    times = np.zeros((14, 20), int)
    for one, other in zip(box, box[1:] + box[:1], strict=True):
        corners = [one, other, centre]
        points = [corners[i] for i in order]
        roi = node("roi_counters", rois={"p": {"polygon": {"points": points}}}).rois
        region = regions(roi, "input", spec_of("uint8", 14, 20))["p"]
        times[region.box.within(Rect(0, 0, 0, 0))] += 1 if region.pixels is None else region.pixels
    assert (times == 1).all()


def test_a_polygon_of_a_rect_has_its_pixels() -> None:
    corners = [[3, 4], [9, 4], [9, 7], [3, 7]]
    rois = {"p": {"polygon": {"points": corners}}, "r": {"rect": {"x": 3, "y": 4, "width": 6, "height": 3}}}
    polygon, rect = regions(node("roi_counters", rois=rois).rois, "input", spec_of("uint8", 14, 20)).values()
    assert polygon.box == rect.box
    assert polygon.pixels is not None
    assert polygon.pixels.all()


@pytest.mark.parametrize(
    ("points", "rule"),
    [
        ([[30, 2], [40, 2], [35, 8]], "roi-outside"),
        ([[2, -9], [4, -9], [3, -1]], "roi-outside"),
        ([[2.1, 2.1], [2.9, 2.1], [2.9, 2.9]], "roi-empty"),
        ([[2, 2], [6, 2], [2, 2], [6, 2]], "roi-empty"),
    ],
)
def test_polygons_without_a_pixel(points: list[list[float]], rule: str) -> None:
    with pytest.raises(NodeMisuse, match="ROI p, polygon from") as refused:
        node("roi_counters", rois={"p": {"polygon": {"points": points}}}).infer(
            Inputs.of(spec_of("uint8", 14, 20), NONE)
        )
    assert (refused.value.rule, refused.value.key) == (rule, ("rois", "p", "polygon"))


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([[0, 0], [1, 1]], "expected a list of at least 3 items, got 2"),
        ([[0, 0], [1, 1], [2]], "expected a list of 2 items, got 1"),
        ([[0, 0], [1, 1], [2, 3, 4]], "3 are too many, at most 2 are allowed here"),
        ([[0, 0], [1, 1], 5], "expected a list of 2 items, got 5"),
    ],
)
def test_polygons_are_lists_of_points(points: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        node("roi_counters", rois={"p": {"polygon": {"points": points}}})


def test_a_sector_may_be_written_past_0() -> None:
    frames = pixels("uint16", (1, 24, 31))
    arc = {"x": 10, "y": 12, "r1": 3, "r2": 8, "a1": 350}
    rois = {"one": {"arc": arc | {"a2": 370}}, "two": {"arc": arc | {"a2": 10}}}
    rows = counters(spec_of("uint16", 24, 31), frames, rois=rois)
    assert rows["one_sum"][0] == rows["two_sum"][0] > 0


def test_coordinates_of_the_detector() -> None:
    spec = FrameSpec("uint16", View(Rect(35, 204, 8, 6)), (500, 500))
    frames = pixels("uint16", (1, 6, 8))
    rect = {"door": {"rect": {"x": 36, "y": 206, "width": 3, "height": 2}}}
    rows = counters(spec, frames, rois=rect, coordinates="detector")
    assert rows["door_sum"][0] == frames[0, 2:4, 1:4].sum(dtype=np.int64)
    arc = {"x": 36, "y": 206, "r1": 0, "r2": 1, "a1": 0, "a2": 360}
    rows = counters(spec, frames, rois={"door": {"arc": arc}}, coordinates="detector")
    assert rows["door_sum"][0] == frames[0, 2, 1]


@pytest.mark.parametrize(
    ("coordinates", "roi"),
    [
        ("input", {"rect": {"x": 5, "y": 0, "width": 4, "height": 1}}),
        ("input", {"rect": {"x": 0, "y": 6, "width": 1, "height": 1}}),
        ("detector", {"rect": {"x": 34, "y": 204, "width": 2, "height": 2}}),
        ("input", {"arc": {"x": 100, "y": 100, "r1": 0, "r2": 10, "a1": 0, "a2": 360}}),
        ("input", {"arc": {"x": 0.5, "y": 0.5, "r1": 0, "r2": 0.5, "a1": 0, "a2": 360}}),
    ],
)
def test_a_roi_outside_is_refused(coordinates: str, roi: Any) -> None:
    spec = FrameSpec("uint16", View(Rect(35, 204, 8, 6)), (500, 500))
    with pytest.raises(NodeMisuse, match="ROI door") as refused:
        node("roi_counters", rois={"door": roi}, coordinates=coordinates).infer(Inputs.of(spec, NONE))
    assert (refused.value.rule, refused.value.key) == ("roi-outside", ("rois", "door", next(iter(roi))))


@pytest.mark.parametrize("limits", [{"r1": 5, "r2": 5, "a1": 0, "a2": 90}, {"r1": 0, "r2": 5, "a1": 30, "a2": 30}])
def test_an_empty_arc_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(NodeMisuse) as refused:
        node("roi_counters", rois={"a": {"arc": {"x": 4, "y": 4, **limits}}}).infer(
            Inputs.of(spec_of("uint8", 9, 9), NONE)
        )
    assert refused.value.rule == "roi-empty"


def test_columns_and_the_one_to_plot() -> None:
    rois = {name: {"rect": {"x": 0, "y": 0, "width": 2, "height": 2}} for name in ("b", "a")}
    spec = spec_of("int16", 4, 4, saturation=5.0)
    table = node("roi_counters", rois=rois).infer(Inputs.of(spec, NONE))
    assert table.default == "b_sum"
    assert dict(table.columns) == {
        f"{roi}_{name}": dtype
        for roi in ("b", "a")
        for name, dtype in zip(
            ("avg", "std", "min", "max", "sum"), ("float32", "float32", "int16", "int16", "float64"), strict=True
        )
    }
    some = node("roi_counters", rois=rois, statistics=["max", "saturated"]).infer(Inputs.of(spec, NONE))
    assert some.default == "b_max"
    assert some.columns["a_saturated"] == "uint32"
    assert some.units == {"b_saturated": "pixels", "a_saturated": "pixels"}


def test_saturated_needs_a_known_saturation() -> None:
    rois = {"r": {"rect": {"x": 0, "y": 0, "width": 1, "height": 1}}}
    with pytest.raises(NodeMisuse) as refused:
        node("roi_counters", rois=rois, statistics=["saturated"]).infer(Inputs.of(spec_of("uint8", 2, 2), NONE))
    assert (refused.value.rule, refused.value.key) == ("saturation-unknown", ("statistics",))


@pytest.mark.parametrize(("level", "expected"), [(254.5, 1), (255, 1), (256, 0), (-3.0, 4), (1, 2)])
def test_saturation_of_integers(level: float, expected: int) -> None:
    frames = np.array([[[0, 0, 3, 255]]], np.uint8)
    rois = {"r": {"rect": {"x": 0, "y": 0, "width": 4, "height": 1}}}
    rows = counters(spec_of("uint8", 1, 4, saturation=level), frames, rois=rois, statistics=["saturated"])
    assert rows["r_saturated"][0] == expected


@settings(max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES),
    count=st.integers(1, 9),
    height=st.integers(2, 30),
    width=st.integers(1, 30),
    cut=st.integers(1, 29),
    nan=st.booleans(),
    data=st.data(),
)
def test_partials_of_two_parts_merge_to_the_whole(
    dtype: str, count: int, height: int, width: int, cut: int, nan: bool, data: Any
) -> None:
    frames = pixels(dtype, (count, height, width)).copy()
    if nan and frames.dtype.kind == "f":
        frames[0, 0] = np.nan
        frames[-1, :, 0] = np.nan
    cut = min(cut, height - 1)
    box = {"x": 0, "y": 0, "width": width}

    def partial(part: Array) -> Partial:
        rois = {"r": {"rect": box | {"height": part.shape[1]}}}
        spec = spec_of(dtype, *part.shape[1:], saturation=100.0)
        result: Partial = (
            node("roi_counters", rois=rois, statistics=ALL).bind(Inputs.of(spec, NONE)).step(block(part), 0)
        )
        return result

    use = node("roi_counters", rois={"r": {"rect": box | {"height": height}}}, statistics=ALL)
    upper, lower = partial(frames[:, :cut]), partial(frames[:, cut:])
    for one, other in ((upper, lower), (lower, upper)):
        rows = dict(use.finish(use.merge(one, other)))
        assert rows.pop("frame_number").tolist() == list(range(count))
        check(rows, "r", [frame.ravel() for frame in frames], 100.0)


@settings(max_examples=30)
@given(dtype=st.sampled_from(DTYPES), count=st.integers(1, 12), cuts=st.lists(st.integers(1, 11), max_size=4))
def test_any_split_into_blocks_gives_the_same(dtype: str, count: int, cuts: list[int]) -> None:
    frames = pixels(dtype, (count, 70, 80))
    rois = {
        "r": {"rect": {"x": 3, "y": 2, "width": 71, "height": 64}},
        "a": {"arc": {"x": 9, "y": 9, "r1": 2, "r2": 30, "a1": 0, "a2": 200}},
    }
    use = node("roi_counters", rois=rois, statistics=ALL)
    reducer = use.bind(Inputs.of(spec_of(dtype, 70, 80, saturation=10.0), NONE))
    whole = reducer.step(block(frames), 0)
    parts = [reducer.step(block(frames[part], part.start), 0) for part in splits(count, cuts)]
    for key, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), values)
    rows = use.finish({key: np.concatenate([part[key] for part in parts]) for key in whole})
    np.testing.assert_array_equal(rows["r_sum"], use.finish(whole)["r_sum"])


def test_partials_outlive_the_block() -> None:
    frames = np.full((1, 4, 4), 3, np.uint16)
    use = node("roi_counters", rois={"r": {"rect": {"x": 0, "y": 0, "width": 4, "height": 4}}})
    given_block = block(frames)
    partial = use.bind(Inputs.of(spec_of("uint16", 4, 4), NONE)).step(given_block, 0)
    frames[:] = 0
    given_block.numbers[:] = 99
    rows = use.finish(partial)
    assert (rows["r_sum"][0], rows["r_max"][0], rows["frame_number"][0]) == (48, 3, 0)


def test_real_frames_with_gaps(data_dir: Path) -> None:
    """PILATUS frames whose gaps are -1 and whose bad pixels are -2."""
    import h5py
    import hdf5plugin  # noqa: F401

    with h5py.File(data_dir / "pilatus3_1m_crop_thaumatin_stack.h5") as file:
        frames = file["/entry/data/data"][:2]
    mask = frames[0] < 0
    spec = spec_of(str(frames.dtype), *frames.shape[1:], mask=mask)
    arc = {"x": -200, "y": 500, "r1": 300, "r2": 600, "a1": -40, "a2": 40}
    rois = {"all": {"rect": {"x": 0, "y": 0, "width": frames.shape[2], "height": frames.shape[1]}}, "a": {"arc": arc}}
    rows = counters(spec, frames, rois=rois)
    good = frames[:, ~mask].astype(np.int64)
    np.testing.assert_array_equal(rows["all_sum"], good.sum(axis=1))
    np.testing.assert_array_equal(rows["all_max"], good.max(axis=1))
    np.testing.assert_allclose(rows["all_std"], good.std(axis=1), rtol=1e-6)
    y, x = np.indices(mask.shape)
    radius, angle = np.hypot(x + 200, y - 500), np.degrees(np.arctan2(y - 500, x + 200))
    inside = (radius >= 300) & (radius < 600) & (angle >= -40) & (angle < 40) & ~mask
    np.testing.assert_array_equal(rows["a_sum"], frames[:, inside].sum(axis=1, dtype=np.int64))


def inside(lines: list[list[tuple[float, float]]], shape: tuple[int, int]) -> Array:
    """Pixels within an odd number of closed lines, bool (height, width): the rule of even and odd crossings."""
    rows, columns = np.indices(shape)
    found = np.zeros(shape, bool)
    for line in lines:
        for (x1, y1), (x2, y2) in zip(line, line[1:] + line[:1], strict=True):
            with np.errstate(divide="ignore", invalid="ignore"):
                crosses = ((y1 > rows) != (y2 > rows)) & (columns < (x2 - x1) * (rows - y1) / (y2 - y1) + x1)
            found ^= crosses
    return found


TURNED = View(Rect(4, 8, 40, 30)).rotate(90).flip(horizontal=True)


@pytest.mark.parametrize(
    ("roi", "coordinates", "view"),
    [
        ({"rect": {"x": 2, "y": 3, "width": 5, "height": 7}}, "input", View(Rect(0, 0, 64, 48))),
        ({"rect": {"x": 2, "y": 3, "width": 5, "height": 7}}, "input", TURNED),
        ({"rect": {"x": 12, "y": 13, "width": 5, "height": 7}}, "detector", TURNED),
        ({"rect": {"x": 1, "y": 3, "width": 5, "height": 7}}, "input", TURNED.bin(2, 2)),
        ({"ring": {"x": 15.1, "y": 16.2, "r1": 4.05, "r2": 9.03}}, "input", TURNED),
        ({"arc": {"x": 20.1, "y": 20.2, "r1": 3.05, "r2": 8.03, "a1": 11, "a2": 97}}, "detector", TURNED),
        ({"arc": {"x": 15.1, "y": 15.2, "r1": 0, "r2": 8.03, "a1": 300, "a2": 400}}, "input", TURNED),
        ({"polygon": {"points": [[3.2, 2.1], [20.1, 5.4], [9.3, 12.7], [12.1, 6.2]]}}, "input", TURNED),
        ({"polygon": {"points": [[13.2, 12.1], [30.1, 15.4], [19.3, 29.7]]}}, "detector", TURNED),
    ],
)
def test_outlines_are_drawn_about_the_pixels_that_count(roi: dict[str, Any], coordinates: str, view: View) -> None:
    """Each pixel of the detector within the lines counts, those on the edge of an arc perhaps, and no other."""
    use, spec = node("roi_counters", rois={"a": roi}, coordinates=coordinates), FrameSpec("uint16", view, (64, 48))
    region = regions(use.rois, coordinates, spec)["a"]
    shown = np.zeros(spec.shape, bool)
    shown[region.box.within(Rect(0, 0, spec.shape[1], spec.shape[0]))] = (
        True if region.pixels is None else region.pixels
    )
    counted = np.zeros((48, 64), bool)
    for row, column in np.argwhere(shown):
        counted[view.behind(Rect(int(column), int(row), 1, 1)).within(Rect(0, 0, 64, 48))] = True
    drawn = inside(use.outlines(spec)["a"], (48, 64))
    assert counted.any()
    assert np.count_nonzero(counted ^ drawn) <= (0 if "rect" in roi else 0.06 * np.count_nonzero(counted))


RUN = (
    TWO_MODULES
    + """\
  raw:
    input: data
    roi_counters:
      statistics: [sum, valid, above: 40000, com_x, com_y]
      rois:
        star: {polygon: {points: [[3, 1], [60.5, 22], [20, 47], [30, 20]]}}
        halo: {ring: {x: 30, y: 24, r1: 5, r2: 20}}
        all: {x: 0, y: 0, width: 64, height: 48}
  half: {input: data, background_sub: {image: 20}}
  float: {input: half, roi_counters: *counters}
"""
)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("dispatch", ["", "dispatch: modules"])
def test_files(tmp_path: Path, transport: str, dispatch: str) -> None:
    """Fused, of parts, of several threads and receivers: all the same numbers."""
    text = RUN.replace("roi_counters:\n", "roi_counters: &counters\n").replace("DISPATCH", dispatch)
    ran = run(text, tmp_path, transport)
    number, y, x = np.ogrid[:12, :48, :64]
    frames = (7919 * number + y * 64 + x) % 2**16
    points = [(3, 1), (60.5, 22), (20, 47), (30, 20)]
    radius = np.hypot(x[0] - 30, y[0] - 24)
    inside = {
        "star": polygon_oracle(points, np.arange(64), np.arange(48)),
        "halo": (radius >= 5) & (radius < 20),
        "all": np.ones((48, 64), bool),
    }
    for name, values in (("raw", frames), ("float", frames - 20)):
        with h5py.File(ran.directory / f"t_{name}.h5") as file:
            rows = file["entry_0000/measurement"]
            for roi, pixels in inside.items():
                good = pixels & ((y[0] < 20) | (y[0] >= 28))
                weights = np.where(good, values, 0)
                total = weights.sum(axis=(1, 2))
                np.testing.assert_array_equal(rows[f"{roi}_sum"], total)
                assert (rows[f"{roi}_valid"][()] == good.sum()).all()
                assert rows[f"{roi}_valid"].attrs["pixels"] == pixels.sum()
                np.testing.assert_array_equal(rows[f"{roi}_above"], (good & (values > 40000)).sum(axis=(1, 2)))
                np.testing.assert_array_equal(rows[f"{roi}_com_x"], (weights * x).sum(axis=(1, 2)) / total)
                np.testing.assert_array_equal(rows[f"{roi}_com_y"], (weights * y).sum(axis=(1, 2)) / total)
