"""Regions of interest of nodes: how they are written, and which pixels of a node's input they are.

x to the right, y down, pixel centres at whole coordinates. With ``coordinates: input`` (0, 0) is the first pixel of
the node's input; with ``detector`` it is the first pixel of the detector.

rect   x <= column < x + width, y <= row < y + height
arc    r1 <= r < r2 and a1 <= angle < a2 about a centre (x, y) that may lie anywhere. Angles are degrees from +x towards
       +y (clockwise as seen); a sector may pass 360 (350 to 370, or 350 to 10), and a2 - a1 >= 360 is the full circle.
       The pixel at the centre itself has angle 0. Pixels outside the input are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Choice, Integer, MapOf, Number, OneKind, param
from lima2cli.errors import Misfit
from lima2cli.geometry import Rect
from lima2cli.names import ROI_NAME
from lima2cli.spec import FrameSpec

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
    a1: float = param("First angle in degrees from +x, y down, included.", Number())
    a2: float = param("Last angle in degrees, not included.", Number())


KINDS: Mapping[str, type] = {"rect": RectRoi, "arc": ArcRoi}

ROIS = MapOf(OneKind("ROI", lambda: KINDS), ROI_NAME, minimum=1)
"""Shape of the parameter ``rois``."""


@dataclass(frozen=True, eq=False)
class Region:
    """The pixels of a ROI in arrays (n, height, width) of a node's input.

    box     the rectangle that holds them
    pixels  bool (box.height, box.width), True = counts; None = all of the box
    """

    box: Rect
    pixels: NDArray[np.bool_] | None

    @property
    def count(self) -> int:
        """Number of pixels that count."""
        return self.box.area if self.pixels is None else int(np.count_nonzero(self.pixels))


def regions(rois: Mapping[str, Any], coordinates: str, spec: FrameSpec) -> dict[str, Region]:
    """Where each ROI lies in frames of ``spec``, masked pixels left out (perhaps all of them).

    Raises `Misfit`: ``roi-outside``, ``roi-empty`` at the parameter ``rois``.
    """
    x, y = (0, 0) if coordinates == "input" else (spec.view.area.x, spec.view.area.y)
    found = {}
    for name, roi in rois.items():
        shape = _rect(name, roi, x, y, spec) if isinstance(roi, RectRoi) else _arc(name, roi, x, y, spec)
        found[name] = _unmasked(shape, spec)
    return found


def _rect(name: str, roi: RectRoi, x: int, y: int, spec: FrameSpec) -> Region:
    box = Rect(roi.x - x, roi.y - y, roi.width, roi.height)
    if not _extent(spec).contains(box):
        raise _outside(name, "rect", str(Rect(roi.x, roi.y, roi.width, roi.height)), x, y, spec)
    return Region(box, None)


def _arc(name: str, roi: ArcRoi, x: int, y: int, spec: FrameSpec) -> Region:
    span = roi.a2 - roi.a1
    if roi.r2 <= roi.r1 or span == 0:
        limits = f"r from {roi.r1:g} to {roi.r2:g}, angle from {roi.a1:g} to {roi.a2:g}"
        raise Misfit("roi-empty", f"ROI {name} is empty: {limits}", ("rois", name, "arc"))
    left, top = max(0, int(np.floor(roi.x - x - roi.r2))), max(0, int(np.floor(roi.y - y - roi.r2)))
    right = min(spec.view.area.width, int(np.ceil(roi.x - x + roi.r2)) + 1)
    bottom = min(spec.view.area.height, int(np.ceil(roi.y - y + roi.r2)) + 1)
    dx = np.arange(left, right)[None, :] + (x - roi.x)
    dy = np.arange(top, bottom)[:, None] + (y - roi.y)
    radius = np.hypot(dx, dy)
    inside = (roi.r1 <= radius) & (radius < roi.r2)
    if span < 360:
        inside &= (np.degrees(np.arctan2(dy, dx)) - roi.a1) % 360 < span % 360
    if not inside.any():
        circle = f"arc about ({roi.x:g}, {roi.y:g}), r from {roi.r1:g} to {roi.r2:g}"
        raise _outside(name, "arc", circle, x, y, spec)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    tight = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Region(Rect(left + int(columns[0]), top + int(rows[0]), tight.shape[1], tight.shape[0]), tight)


def _unmasked(region: Region, spec: FrameSpec) -> Region:
    if spec.mask is None:
        return region
    good = ~spec.mask[region.box.within(_extent(spec))]
    if region.pixels is not None:
        good &= region.pixels
    return Region(region.box, None if good.all() else good)


def _extent(spec: FrameSpec) -> Rect:
    return Rect(0, 0, spec.view.area.width, spec.view.area.height)


def _outside(name: str, kind: str, roi: str, x: int, y: int, spec: FrameSpec) -> Misfit:
    frames = Rect(x, y, spec.view.area.width, spec.view.area.height)
    where = "detector coordinates" if (x, y) != (0, 0) else "coordinates of the input"
    key = ("rois", name, kind)
    return Misfit("roi-outside", f"ROI {name}, {roi}, leaves the frames, {frames} in {where}", key)
