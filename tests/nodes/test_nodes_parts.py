"""Reductions of frames that several receivers hold in parts: merged, they are those of the whole frames."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.frames import Array, FrameSpec
from lima2cli.geometry import Rect
from lima2cli.nodes.base import Inputs, Partial, Reduce, StripReducer
from lima2cli.view import View
from tests.node_inputs import MemoryFiles, block, node, pixels, spec_of

NONE = MemoryFiles()
LINES = ["avg", "std", "min", "max", "sum", "saturated", "valid", {"above": 90.5}]
ALL = [*LINES, "com_x", "com_y"]
NS = 1_700_000_000_000_000_000


@st.composite
def cuts(draw: st.DrawFn, width: int, height: int) -> list[Rect]:
    """A frame of bins cut into rectangles: some lines through all of it, or through what another line has left."""
    done, ahead = [], [Rect(0, 0, width, height)]
    for _ in range(draw(st.integers(0, 4))):
        rect = ahead.pop(0)
        along = draw(st.booleans())
        length = rect.width if along else rect.height
        if length < 2:
            done.append(rect)
        else:
            at = draw(st.integers(1, length - 1))
            one = replace(rect, width=at) if along else replace(rect, height=at)
            other = (
                replace(rect, x=rect.x + at, width=rect.width - at)
                if along
                else replace(rect, y=rect.y + at, height=rect.height - at)
            )
            ahead += [one, other]
        if not ahead:
            break
    return draw(st.permutations(done + ahead))


def part_of(spec: FrameSpec, frames: Array, part: Rect) -> tuple[FrameSpec, Array]:
    """Return the part that shows a rectangle of the frames: its spec, its pixels."""
    shown = part.within(Rect(0, 0, *spec.shape[::-1]))
    mask = None if spec.mask is None else spec.mask[shown]
    return replace(spec, view=spec.view.cut(part), mask=mask, whole=spec.view), frames[:, *shown]


def merged(use: Reduce, parts: Sequence[tuple[FrameSpec, Array]]) -> dict[str, Array]:
    """Rows of frames, each part of which is reduced by itself; all agree on the columns."""
    whole: Partial | None = None
    tables = [use.infer(Inputs.of(spec, NONE)) for spec, _ in parts]
    assert all(table == tables[0] for table in tables)
    for spec, frames in parts:
        assert not [it for it in use.warnings(Inputs.of(spec, NONE)) if it.rule == "roi-masked"]
        partial = use.bind(Inputs.of(spec, NONE)).step(block(frames), NS)
        again = _by_strips(cast(StripReducer, use.bind(Inputs.of(spec, NONE))), frames)
        for key, values in partial.items():
            assert values.dtype == again[key].dtype
            np.testing.assert_allclose(again[key], values, rtol=1e-9)
        whole = partial if whole is None else use.merge(whole, partial)
    assert whole is not None
    return dict(use.finish(whole))


def _by_strips(reducer: StripReducer, frames: Array) -> Partial:
    reducer.begin(len(frames))
    with np.errstate(all="ignore"):
        for top in range(0, frames.shape[1], 3):
            rows = slice(top, min(top + 3, frames.shape[1]))
            reducer.strip(frames[:, rows], slice(0, len(frames)), rows, slice(0, frames.shape[2]))
    return reducer.end(block(frames), NS)


def same(rows: Mapping[str, Array], whole: Mapping[str, Array], dtype: str) -> None:
    """Integers and counts exactly, floats but for the order of the terms."""
    assert list(rows) == list(whole)
    for name, values in whole.items():
        assert rows[name].dtype == values.dtype
        exact = name.endswith(("_min", "_max", "_saturated", "_valid", "_above")) or (
            name.endswith(("_sum", "_com_x", "_com_y")) and np.dtype(dtype).itemsize < 4
        )
        if exact:
            np.testing.assert_array_equal(rows[name], values, err_msg=name)
        else:
            np.testing.assert_allclose(rows[name], values, rtol=2e-6, atol=1e-2 if dtype[0] == "f" else 0, err_msg=name)


VIEWS = [
    View(Rect(0, 0, 17, 12)),
    View(Rect(5, 3, 17, 12), rotation=90),
    View(Rect(2, 4, 34, 36), (2, 3), mirrored=True),
    View(Rect(0, 6, 34, 36), (2, 3), mirrored=True, rotation=270),
]
"""Views of 17 x 12 bins each."""


def rois(view: View, coordinates: str) -> dict[str, Any]:
    """In all places: rects of few and of many pixels, and a sector."""
    height, width = view.shape
    extent = view.area if coordinates == "detector" else Rect(0, 0, width, height)
    x, y, across, down = extent.x, extent.y, extent.width, extent.height
    arc = {"x": x + across / 2, "y": y + down, "r1": down / 3, "r2": down * 0.9, "a1": 200, "a2": 320}
    return {
        "all": {"rect": {"x": x, "y": y, "width": across, "height": down}},
        "corner": {"rect": {"x": x, "y": y, "width": across // 2, "height": down // 3}},
        "last": {"rect": {"x": x + across - 6, "y": y + down - 6, "width": 6, "height": 6}},
        "arc": {"arc": arc},
        "polygon": {"polygon": {"points": [[x, y], [x + across, y + down / 2], [x + across / 4, y + down]]}},
    }


@pytest.mark.parametrize("dtype", ["uint16", "int8", "float32"])
@pytest.mark.parametrize("coordinates", ["input", "detector"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_statistics_of_parts_merge_to_those_of_the_whole(dtype: str, coordinates: str, data: st.DataObject) -> None:
    view = data.draw(st.sampled_from(VIEWS))
    height, width = view.shape
    parts = data.draw(cuts(width, height))
    mask = np.random.default_rng(7).random((height, width)) < 0.2 if data.draw(st.booleans()) else None
    spec = FrameSpec(dtype, view, (40, 50), mask, 100.0)
    frames = pixels(dtype, (3, height, width)).copy()
    if dtype == "float32":
        frames[1, :5, :9] = np.nan
        frames[2] = np.nan
    places = rois(view, coordinates)
    rects = {name: roi for name, roi in places.items() if "rect" in roi}
    uses = [
        node("roi_counters", rois=places, coordinates=coordinates, statistics=ALL),
        node("roi_profiles", rois=rects, coordinates=coordinates, statistics=LINES),
        node("roi_profiles", rois=rects, coordinates=coordinates, statistics=LINES, direction="vertical"),
    ]
    cut = [part_of(spec, frames, part) for part in parts]
    for use in uses:
        same(merged(use, cut), dict(use.finish(use.bind(Inputs.of(spec, NONE)).step(block(frames), NS))), dtype)


def test_parts_may_overlap_where_they_are_masked() -> None:
    """Boxes of modules that do not lie side by side: each shows the others' pixels, too, which it does not have."""
    frames = pixels("uint16", (2, 8, 12))
    owner = np.add.outer(np.arange(8) // 4, np.arange(12) // 6) % 2
    owner[3] = 2  # a gap
    spec = spec_of("uint16", 8, 12, mask=owner == 2, saturation=6e4)
    use = node("roi_counters", rois={"r": {"rect": {"x": 1, "y": 1, "width": 10, "height": 6}}}, statistics=ALL)
    parts = [(replace(spec, mask=owner != i, whole=spec.view), np.where(owner == i, frames, 9)) for i in (0, 1)]
    same(merged(use, parts), dict(use.finish(use.bind(Inputs.of(spec, NONE)).step(block(frames), NS))), "uint16")


def test_infinite_pixels_beside_a_part_without_any() -> None:
    frames = np.array([[[np.inf, 1.0, 2.0]]])
    spec = spec_of("float64", 1, 3)
    use = node("roi_counters", rois={"r": {"rect": {"x": 0, "y": 0, "width": 2, "height": 1}}})
    parts = [part_of(spec, frames, Rect(0, 0, 2, 1)), part_of(spec, frames, Rect(2, 0, 1, 1))]
    for order in (parts, parts[::-1]):
        rows = merged(use, order)
        assert (rows["r_sum"][0], rows["r_min"][0], rows["r_max"][0]) == (np.inf, 1, np.inf)


def test_a_frame_is_received_with_its_last_part() -> None:
    use = node("checkpoint", every=2)
    frames = pixels("uint16", (5, 4, 4))
    spec = spec_of("uint16", 4, 4)
    one, other = (
        use.bind(Inputs.of(part_of(spec, frames, part)[0], NONE)).step(block(part_of(spec, frames, part)[1]), NS + late)
        for part, late in ((Rect(0, 0, 4, 2), 7), (Rect(0, 2, 4, 2), 5))
    )
    for partial in (use.merge(one, other), use.merge(other, one)):
        assert partial["received_ns"].tolist() == [NS + 7] * 3
        rows = use.finish(partial)
        assert rows["frame_number"].tolist() == [0, 2, 4]
        np.testing.assert_array_equal(rows["latency"], (NS + 7 - np.array([0, 2, 4]) * 1_000_000) / 1e9)


def test_regions_outside_the_whole_frame_are_told_by_every_part() -> None:
    from lima2cli.errors import NodeMisuse

    frames = pixels("uint16", (1, 8, 12))
    spec = spec_of("uint16", 8, 12)
    part, _ = part_of(spec, frames, Rect(6, 0, 6, 8))
    use = node("roi_counters", rois={"r": {"rect": {"x": 1, "y": 1, "width": 12, "height": 6}}})
    with pytest.raises(NodeMisuse) as caught:
        use.infer(Inputs.of(part, NONE))
    assert caught.value.rule == "roi-outside"
    assert "12 x 8 at (0, 0) in coordinates of the input" in caught.value.message
