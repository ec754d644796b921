"""Regions of interest of nodes: how they are written, and which pixels of a node's input they are.

x to the right, y down, pixel centres at whole coordinates. With ``coordinates: input`` (0, 0) is the first pixel of
the node's input; with ``detector`` it is the first pixel of the detector, and sizes and angles are the detector's too,
however the frames were cut, binned, flipped and rotated. Of frames binned since, those pixels count that lie wholly
inside a rect, and those whose centre lies in an arc or a polygon.

Of a part of frames, a region is that of the whole frame, cut: ``input`` counts from the first pixel of the whole frame.

Written alone, `{x, y, width, height}` is a rect. A ring is an arc without angles: both are one from 0 to 360.

rect     x <= column < x + width, y <= row < y + height
arc      r1 <= r < r2 and a1 <= angle < a2 about a centre (x, y) that may lie anywhere. Angles are degrees from +x
         towards +y (clockwise as seen); a sector may pass 360 (350 to 370, or 350 to 10), and a2 - a1 >= 360 is the
         full circle. The pixel at the centre itself has angle 0. Pixels outside the input are left out.
polygon  pixels whose centre lies inside by the even-odd rule: to the left of it, an odd number of the lines between
         consecutive points, the last and the first among them, cross its row. Centres on a line count where the
         inside is to the right of it or, of a horizontal one, below: polygons with a common line share no pixel.
         Where a polygon covers itself twice it is outside. Points may lie anywhere; pixels outside the input are
         left out. (x, y), (x + width, y), (x + width, y + height), (x, y + height) are the pixels of a rect.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.declare import Choice, Integer, ListOf, MapOf, Number, OneKind, Short, Table, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import FrameSpec
from lima2cli.geometry import Rect
from lima2cli.view import Outline, View

STRIP = 1 << 20
"""Most pixels of an arc that are looked at in one step."""

MOST_PIXELS = 1 << 26
"""Most pixels of the boxes about all arcs and polygons of a node, and its rects in masked frames, together."""

COORDINATES = Choice(("input", "detector"))
"""Shape of the parameter ``coordinates``."""


@dataclass(frozen=True, kw_only=True)
class RectRoi:
    """A rectangle, in pixels."""

    kind: ClassVar[str] = "rect"

    x: int = param("First column.", Integer(0))
    y: int = param("First row.", Integer(0))
    width: int = param("Columns.", Integer(1))
    height: int = param("Rows.", Integer(1))


@dataclass(frozen=True, kw_only=True)
class ArcRoi:
    """A sector of a ring, in pixels and degrees."""

    kind: ClassVar[str] = "arc"

    x: float = param("Centre, to the right; may lie outside.", Number())
    y: float = param("Centre, down; may lie outside.", Number())
    r1: float = param("Inner radius, included.", Number(0))
    r2: float = param("Outer radius, not included.", Number(above=0))
    a1: float = param("First angle in degrees from +x, y down, included.", Number(), 0.0)
    a2: float = param("Last angle in degrees, not included.", Number(), 360.0)


@dataclass(frozen=True, kw_only=True)
class RingRoi:
    """A ring, in pixels: short for an arc without angles."""

    kind: ClassVar[str] = "ring"

    x: float = param("Centre, to the right; may lie outside.", Number())
    y: float = param("Centre, down; may lie outside.", Number())
    r1: float = param("Inner radius, included.", Number(0))
    r2: float = param("Outer radius, not included.", Number(above=0))

    def spelled_out(self) -> ArcRoi:
        """Return the long form."""
        return ArcRoi(x=self.x, y=self.y, r1=self.r1, r2=self.r2)


def _roi(kinds: Mapping[str, type]) -> Short:
    """Return the shape of a region of one of some kinds, or of the rectangle alone."""
    return Short((OneKind("ROI", lambda: kinds), Table(RectRoi)), lambda rect: rect, "the rectangle alone")


@dataclass(frozen=True, kw_only=True)
class PolygonRoi:
    """A polygon, in pixels."""

    kind: ClassVar[str] = "polygon"

    points: tuple[tuple[float, float], ...] = param(
        "Three or more corners [x, y], one after another; may lie outside.", ListOf(ListOf(Number(), 2, 2), 3)
    )

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Return the least and the largest x, the least and the largest y."""
        x, y = zip(*self.points, strict=True)
        return min(x), max(x), min(y), max(y)


Roi = RectRoi | ArcRoi | PolygonRoi

KINDS: Mapping[str, type] = {"rect": RectRoi, "arc": ArcRoi, "ring": RingRoi, "polygon": PolygonRoi}

ROIS = MapOf(_roi(KINDS), minimum=1)
"""Shape of the parameter ``rois``."""

RECTS = MapOf(_roi({"rect": RectRoi}), minimum=1)
"""Shape of ``rois`` where they must be rectangles."""


@dataclass(frozen=True, eq=False)
class RoiPixels:
    """The pixels of a ROI in arrays (n, height, width) of a node's input.

    box     the rectangle that holds them; of width and height 0 where a part of frames shows none
    pixels  bool (box.height, box.width), True = counts; None = all of the box
    whole   the rectangle that holds those of the whole frame, counted as ``box`` is: the same, unless it is cut
    """

    box: Rect
    pixels: NDArray[np.bool_] | None
    whole: Rect

    @property
    def count(self) -> int:
        """Return the number of pixels that count."""
        return self.box.area if self.pixels is None else int(np.count_nonzero(self.pixels))


@dataclass(frozen=True, eq=False)
class Axis:
    """Coordinates of pixels in one direction.

    across  True: they change from column to column, and ``values`` (width,) has one for each; False: from row to row
    """

    across: bool
    values: NDArray[np.float64]

    def of(self, box: Rect) -> "Axis":
        """Return those of the pixels of a rectangle."""
        return self.part(slice(box.x, box.right) if self.across else slice(box.y, box.bottom))

    def part(self, some: slice) -> "Axis":
        """Return those of some columns, or rows."""
        return Axis(self.across, self.values[some])

    def over(self, shape: tuple[int, int]) -> NDArray[np.float64]:
        """Return the coordinate of each pixel of (height, width)."""
        return np.broadcast_to(self.values if self.across else self.values[:, None], shape)


def axes(coordinates: str, spec: FrameSpec) -> tuple[Axis, Axis]:
    """Return x and y of the centres of all pixels of frames of ``spec``, in these coordinates.

    Of a part of frames, ``input`` counts from the first pixel of the whole frame.
    """
    view = spec.view if coordinates == "detector" else View(_part(spec))
    height, width = spec.shape
    columns, rows = np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)
    (x, y), right, down = view.place(0, 0), view.place(1, 0), view.place(0, 1)
    if view.quarter:
        return Axis(False, x + (down[0] - x) * rows), Axis(True, y + (right[1] - y) * columns)
    return Axis(True, x + (right[0] - x) * columns), Axis(False, y + (down[1] - y) * rows)


def regions(rois: Mapping[str, Any], coordinates: str, spec: FrameSpec) -> dict[str, RoiPixels]:
    """Return the place of each ROI in frames of ``spec``, masked pixels left out (perhaps all of them).

    Raises: NodeMisuse: ``roi-outside``, ``roi-empty`` at the parameter ``rois``.
    """
    view = _view(coordinates, spec)
    places, left = {}, MOST_PIXELS
    for name, roi in rois.items():
        if (left := left - _reach(roi, view, spec)) < 0:
            which = "regions of masked frames span" if isinstance(roi, RectRoi) else f"{roi.kind}s span"
            message = f"up to ROI {name} {which} over {MOST_PIXELS} pixels, all together: masks of them are kept"
            raise NodeMisuse("regions-too-large", message, ("rois", name, roi.kind), "fewer, or in several pipelines")
        try:
            shape = _rect(name, roi, view) if isinstance(roi, RectRoi) else _painted(name, roi, view)
        except _Outside as outside:
            where = "detector coordinates" if coordinates == "detector" else "coordinates of the input"
            message = f"ROI {name}, {outside}, leaves the frames, {view.area} in {where}"
            raise NodeMisuse("roi-outside", message, ("rois", name, roi.kind)) from None
        places[name] = _unmasked(_shown(shape, spec), spec)
    return places


def sizes(rois: Mapping[str, Any], coordinates: str, spec: FrameSpec) -> dict[str, int]:
    """Return the number of pixels of each ROI in whole frames, masked ones among them.

    Raises: as `regions`.
    """
    plain = replace(spec, view=spec.whole or spec.view, whole=None, mask=None)
    return {name: region.count for name, region in regions(rois, coordinates, plain).items()}


def unaligned(rois: Mapping[str, Any], coordinates: str, spec: FrameSpec) -> dict[str, Rect]:
    """Return rects whose edges cut through binned pixels: the counted part of each, in its own coordinates."""
    view = _view(coordinates, spec)
    asked = {name: Rect(roi.x, roi.y, roi.width, roi.height) for name, roi in rois.items() if isinstance(roi, RectRoi)}
    counted = {name: view.behind(view.inside(rect)) for name, rect in asked.items()}
    return {name: rect for name, rect in counted.items() if rect != asked[name]}


ARC_STEP = 5.0
"""Degrees from one corner of the outline of an arc to the next, at most."""


def outlines(rois: Mapping[str, Any], coordinates: str, spec: FrameSpec) -> dict[str, Outline]:
    """Return the outline of each ROI: of a rect that of the pixels that count.

    Raises: as `regions`.
    """
    view, whole = _view(coordinates, spec), spec.whole or spec.view
    found: dict[str, Outline] = {}
    for name, roi in rois.items():
        if isinstance(roi, RectRoi):
            box = _rect(name, roi, view).box
            left, top, right, bottom = box.x - 0.5, box.y - 0.5, box.right - 0.5, box.bottom - 0.5
            corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
            found[name] = [[whole.place(x, y) for x, y in corners]]
        else:
            place = whole.place if coordinates == "input" else lambda x, y: (x, y)
            lines = _arc_lines(roi) if isinstance(roi, ArcRoi) else [list(roi.points)]
            found[name] = [[place(x, y) for x, y in line] for line in lines]
    return found


def _arc_lines(roi: ArcRoi) -> Outline:
    """Return the lines about an arc, in the coordinates in which it is written: of a ring two circles."""
    span = 360.0 if roi.a2 - roi.a1 >= 360 else (roi.a2 - roi.a1) % 360
    angles = np.radians(np.linspace(roi.a1, roi.a1 + span, math.ceil(span / ARC_STEP) + 1))
    inner, outer = (
        [(roi.x + r * math.cos(angle), roi.y + r * math.sin(angle)) for angle in angles] for r in (roi.r1, roi.r2)
    )
    if span == 360:
        return [outer, inner] if roi.r1 else [outer]
    return [outer + (inner[::-1] if roi.r1 else [(roi.x, roi.y)])]


def looked_at(rois: Mapping[str, Any], coordinates: str, spec: FrameSpec) -> int:
    """Return the pixels that `regions` looks at; those of rects for a quarter, as their distances need not be known."""
    view = _view(coordinates, spec)
    return sum(_reach(roi, view, spec) // (4 if isinstance(roi, RectRoi) else 1) for roi in rois.values())


def _reach(roi: Roi, view: View, spec: FrameSpec) -> int:
    """Return the pixels of which a mask is made: of an arc or a polygon the box about it, as far as the frames show it,
    of a polygon also the rows of it that each line crosses; a rect where frames have a mask.
    """
    if isinstance(roi, RectRoi):
        return 0 if spec.mask is None else min(roi.width * roi.height, spec.mask.size)
    (_, x), (_, y) = _near(roi, view)
    return len(y) * (len(x) + (len(roi.points) if isinstance(roi, PolygonRoi) else 0))


class _Outside(Exception):
    """Raised for a ROI that the frames don't show, in words."""


def _view(coordinates: str, spec: FrameSpec) -> View:
    """Return the view in which the coordinates count."""
    view = spec.whole or spec.view
    height, width = view.shape
    return view if coordinates == "detector" else View(Rect(0, 0, width, height))


def _rect(name: str, roi: RectRoi, view: View) -> RoiPixels:
    asked = Rect(roi.x, roi.y, roi.width, roi.height)
    if not view.area.contains(asked):
        raise _Outside(str(asked))
    box = view.inside(asked)
    if not box.area:
        x, y = view.binning
        message = f"ROI {name}, {asked}, holds no whole bin of {x} x {y} pixels"
        raise NodeMisuse("roi-empty", message, ("rois", name, "rect"))
    return RoiPixels(box, None, box)


@lru_cache(maxsize=256)
def _painted(name: str, roi: ArcRoi | PolygonRoi, view: View) -> RoiPixels:
    """Return the pixels whose centres lie in an arc or a polygon."""
    (column, x), (row, y) = _near(roi, view)
    inside = _arc(name, roi, x, y) if isinstance(roi, ArcRoi) else _polygon(roi, x, y)
    if not inside.any():
        raise _nothing(name, roi, view)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    tight = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    box = Rect(column + int(columns[0]), row + int(rows[0]), tight.shape[1], tight.shape[0])
    return RoiPixels(view.placed(box), view.turn(tight), view.placed(box))


def _nothing(name: str, roi: ArcRoi | PolygonRoi, view: View) -> Exception:
    """Return what is wrong with a region of which the frames show no pixel."""
    if isinstance(roi, ArcRoi):
        return _Outside(f"arc about ({roi.x:g}, {roi.y:g}), r from {roi.r1:g} to {roi.r2:g}")
    left, right, top, bottom = roi.extent
    extent = f"polygon from ({left:g}, {top:g}) to ({right:g}, {bottom:g})"
    area = view.area
    if left > area.right - 1 or right < area.x or top > area.bottom - 1 or bottom < area.y:
        return _Outside(extent)
    return NodeMisuse("roi-empty", f"ROI {name}, {extent}, holds the centre of no pixel", ("rois", name, "polygon"))


def _arc(name: str, roi: ArcRoi, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the mask (rows, columns) of the pixels in an arc, by the coordinates of their centres."""
    span = roi.a2 - roi.a1
    if roi.r2 <= roi.r1 or span == 0:
        limits = f"r from {roi.r1:g} to {roi.r2:g}, angle from {roi.a1:g} to {roi.a2:g}"
        raise NodeMisuse("roi-empty", f"ROI {name} is empty: {limits}", ("rois", name, "arc"))
    dx, dy = x - roi.x, y - roi.y
    inside = np.empty((len(dy), len(dx)), np.bool_)
    strip = max(1, STRIP // max(1, len(dx)))
    for first in range(0, len(dy), strip):
        inside[first : first + strip] = _in_arc(roi, span, dx, dy[first : first + strip, None])
    return inside


def _in_arc(roi: ArcRoi, span: float, dx: NDArray[np.float64], dy: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the mask of pixels of some rows that count, bool (rows, columns), by their distances from the centre."""
    radius = np.hypot(dx, dy)
    inside = (roi.r1 <= radius) & (radius < roi.r2)
    if span < 360:
        inside &= (np.degrees(np.arctan2(dy, dx)) - roi.a1) % 360 < span % 360
    return inside


def _polygon(roi: PolygonRoi, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the mask (rows, columns) of the pixels in a polygon, by the coordinates of their centres, increasing.

    Each line changes inside and outside of all pixels to the right of it, in the rows that it crosses. Lines are taken
    from their upper end, so that one has the same crossings in every polygon.
    """
    changes = np.zeros((len(y), len(x) + 1), np.bool_)
    for one, other in zip(roi.points, (*roi.points[1:], roi.points[0]), strict=True):
        (x1, y1), (x2, y2) = sorted((one, other), key=lambda point: (point[1], point[0]))
        rows = np.arange(*np.searchsorted(y, (y1, y2)))
        crossings = (x1 * (y2 - y1) + (y[rows] - y1) * (x2 - x1)) / (y2 - y1) if len(rows) else y[rows]
        changes[rows, np.searchsorted(x, crossings)] ^= True
    return np.logical_xor.accumulate(changes[:, :-1], axis=1)


Near = tuple[int, NDArray[np.float64]]
"""Number of the first of some bins of an axis, and the coordinates of their centres."""


def _near(roi: ArcRoi | PolygonRoi, view: View) -> tuple[Near, Near]:
    """Return the bins across and down, before turning, that may lie in a region."""
    if isinstance(roi, ArcRoi):
        left, right, top, bottom = roi.x - roi.r2, roi.x + roi.r2, roi.y - roi.r2, roi.y + roi.r2
    else:
        left, right, top, bottom = roi.extent
    return (
        _along(view.area.x, view.binning[0], view.bins[0], left, right),
        _along(view.area.y, view.binning[1], view.bins[1], top, bottom),
    )


def _along(origin: int, binning: int, bins: int, low: float, high: float) -> Near:
    """Return the bins of an axis whose centres may lie from ``low`` to ``high``; ``origin`` is the first pixel's."""
    first = origin + (binning - 1) / 2
    start = max(0, math.floor((low - first) / binning))
    stop = min(bins, math.ceil((high - first) / binning) + 1)
    return start, np.asarray(np.arange(start, stop) * binning + first, np.float64)


def _shown(region: RoiPixels, spec: FrameSpec) -> RoiPixels:
    """Return the part of a region of the whole frame that a part of frames shows."""
    if spec.whole is None:
        return region
    part = _part(spec)
    box = region.box & part
    pixels = None if region.pixels is None else region.pixels[box.within(region.box)]
    return RoiPixels(_moved(box, part), pixels, _moved(region.whole, part))


def _part(spec: FrameSpec) -> Rect:
    """Return the place of the frames in the whole frame, in its pixels."""
    part = (spec.whole or spec.view).inside(spec.view.area)
    assert (part.height, part.width) == spec.shape, "a part has whole pixels of the whole frame, turned the same way"
    return part


def _moved(rect: Rect, part: Rect) -> Rect:
    """Return the rectangle in pixels of the part."""
    return replace(rect, x=rect.x - part.x, y=rect.y - part.y)


def _unmasked(region: RoiPixels, spec: FrameSpec) -> RoiPixels:
    if spec.mask is None:
        return region
    box = region.box
    good = ~spec.mask[box.y : box.bottom, box.x : box.right]
    if region.pixels is not None:
        good &= region.pixels
    return replace(region, pixels=None if good.all() else good)
