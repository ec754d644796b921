"""The part of a detector that frames show: how it is binned, and which way up.

Pixel centres lie at whole coordinates: the first pixel is (0, 0), and so is its centre. Binned pixels are x by y pixels
of the detector, and frames that are cut, binned and turned can be cut, binned and turned again: a `View` is the result
of all that.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.geometry import Rect

FLIPS = ("none", "horizontal", "vertical", "both")
"""Names of flips: left and right, top and bottom."""

Outline = list[list[tuple[float, float]]]
"""Closed lines about a region, to be drawn on images: corners (x, y) in pixels of the detector."""

How = Literal["sum", "mean", "any", "or"]
"""Reduction of the pixels of a bin to one pixel."""


@dataclass(frozen=True)
class View:
    """The detector's pixels of ``area``, binned, then perhaps mirrored left to right, then turned clockwise.

    area       in detector pixels, a whole number of bins each way
    binning    detector pixels (x, y) of a bin, along the detector's axes
    mirrored   left and right changed
    rotation   degrees clockwise, 0, 90, 180 or 270
    """

    area: Rect
    binning: tuple[int, int] = (1, 1)
    mirrored: bool = False
    rotation: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Return (height, width) of the shown image."""
        width, height = self.bins
        return (width, height) if self.quarter else (height, width)

    @property
    def quarter(self) -> bool:
        """Return True if the axes are exchanged."""
        return self.rotation % 180 != 0

    @property
    def pixel(self) -> tuple[int, int]:
        """Return the detector pixels that one shown pixel is wide and high, as shown."""
        x, y = self.binning
        return (y, x) if self.quarter else (x, y)

    @property
    def bins(self) -> tuple[int, int]:
        """Return the number of bins across and down, before turning."""
        return self.area.width // self.binning[0], self.area.height // self.binning[1]

    def cut(self, part: Rect) -> "View":
        """Return the view of a part of the shown image, in its own pixels."""
        return replace(self, area=self.behind(part))

    def bin(self, x: int, y: int) -> "View":
        """Return the view with bins of x columns and y rows of the shown image, without incomplete trailing bins."""
        height, width = self.shape
        whole = self.cut(Rect(0, 0, width // x * x, height // y * y))
        along, down = (y, x) if self.quarter else (x, y)
        return replace(whole, binning=(self.binning[0] * along, self.binning[1] * down))

    def flip(self, *, horizontal: bool = False, vertical: bool = False) -> "View":
        """Return the view with left and right changed, top and bottom changed."""
        view = self
        if horizontal:
            view = replace(view, mirrored=not view.mirrored, rotation=-view.rotation % 360)
        return view.flip(horizontal=True).rotate(180) if vertical else view

    def flipped(self, flip: str) -> "View":
        """Return the view after the flip of that name, see `FLIPS`."""
        return self.flip(horizontal=flip in ("horizontal", "both"), vertical=flip in ("vertical", "both"))

    def rotate(self, degrees: int) -> "View":
        """Return the view turned clockwise by 0, 90, 180 or 270 degrees."""
        return replace(self, rotation=(self.rotation + degrees) % 360)

    def then(self, view: "View") -> "View":
        """Return the view of the detector that ``view``, of the shown image, comes to."""
        part = self.cut(view.area).bin(*view.binning)
        return part.flip(horizontal=view.mirrored).rotate(view.rotation)

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Return the shown place of a place of the detector; both in pixels, centres whole."""
        column = (x - self.area.x + 0.5) / self.binning[0] - 0.5
        row = (y - self.area.y + 0.5) / self.binning[1] - 0.5
        return self._turned(column, row)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of the detector of a shown place: the inverse of `point`."""
        column, row = self._turned_back(x, y)
        return (
            self.area.x + (column + 0.5) * self.binning[0] - 0.5,
            self.area.y + (row + 0.5) * self.binning[1] - 0.5,
        )

    def behind(self, part: Rect) -> Rect:
        """Return the detector pixels that a part of the shown image is made of."""
        bins = _spanned(self._turned_back(part.x, part.y), self._turned_back(part.right - 1, part.bottom - 1))
        x, y = self.binning
        return Rect(self.area.x + bins.x * x, self.area.y + bins.y * y, bins.width * x, bins.height * y)

    def inside(self, part: Rect) -> Rect:
        """Return the shown pixels with all detector pixels in ``part``; of width or height 0 where there is none."""
        x, y = self.binning
        part = part & self.area
        left, top = -(-(part.x - self.area.x) // x), -(-(part.y - self.area.y) // y)
        right, bottom = (part.right - self.area.x) // x, (part.bottom - self.area.y) // y
        if right <= left or bottom <= top:
            return Rect(0, 0, 0, 0)
        return self.placed(Rect(left, top, right - left, bottom - top))

    def placed(self, part: Rect) -> Rect:
        """Return the shown place of a part of the bins (not of width or height 0), turned as they are."""
        return _spanned(self._turned(part.x, part.y), self._turned(part.right - 1, part.bottom - 1))

    def apply(self, image: NDArray[Any], how: How) -> NDArray[Any]:
        """Return an image of the whole detector (…, height, width) as shown; a numpy view where nothing is binned.

        ``sum`` and ``mean`` of bins are float64, NaN where a pixel is; ``any`` is bool, ``or`` of the image's dtype.
        """
        rows, columns = slice(self.area.y, self.area.bottom), slice(self.area.x, self.area.right)
        return self.turn(binned(image[..., rows, columns], self.binning, how))

    def shown_as(self, images: NDArray[Any], view: "View", how: How) -> NDArray[Any] | None:
        """Return images (…, height, width) of this view as ``view`` shows the same detector.

        None where they do not show all of it, or bins that do not make up those of ``view``.
        """
        if not self.area.contains(view.area):
            return None
        bins, (x, y) = self.turn_back(images), self.binning
        left, top = view.area.x - self.area.x, view.area.y - self.area.y
        if (x, y) == (1, 1):
            return replace(view, area=replace(view.area, x=left, y=top)).apply(bins, how)
        if view.binning != (x, y) or left % x or top % y:
            return None
        width, height = view.bins
        return view.turn(bins[..., top // y : top // y + height, left // x : left // x + width])

    def __str__(self) -> str:
        words = [str(self.area)]
        words += [f"binned {self.binning[0]} x {self.binning[1]}"] if self.binning != (1, 1) else []
        words += ["mirrored"] if self.mirrored else []
        return ", ".join(words + ([f"turned by {self.rotation} degrees"] if self.rotation else []))

    def turn(self, bins: NDArray[Any]) -> NDArray[Any]:
        """Return a numpy view of (…, height, width), mirrored and turned."""
        if self.mirrored:
            bins = bins[..., ::-1]
        return np.rot90(bins, -(self.rotation // 90), axes=(-2, -1)) if self.rotation else bins

    def turn_back(self, shown: NDArray[Any]) -> NDArray[Any]:
        """Return the inverse of `turn`."""
        bins = np.rot90(shown, self.rotation // 90, axes=(-2, -1)) if self.rotation else shown
        return bins[..., ::-1] if self.mirrored else bins

    def _turned(self, x: float, y: float) -> tuple[float, float]:
        """Return the shown place of a place of the bins."""
        width, height = self.bins
        return _quarters(width - 1 - x if self.mirrored else x, y, width, height, self.rotation)

    def _turned_back(self, x: float, y: float) -> tuple[float, float]:
        """Return the inverse of `_turned`."""
        height, width = self.shape
        x, y = _quarters(x, y, width, height, -self.rotation % 360)
        return (self.bins[0] - 1 - x if self.mirrored else x), y


def view_plain(view: View) -> dict[str, Any]:
    """Return a view as plain data; `view_from` reads it."""
    area = [view.area.x, view.area.y, view.area.width, view.area.height]
    return {"area": area, "binning": list(view.binning), "mirrored": view.mirrored, "rotation": view.rotation}


def view_from(plain: Mapping[str, Any]) -> View:
    """Return the view that `view_plain` wrote. Raises KeyError, TypeError: it is not one."""
    x, y = plain["binning"]
    return View(Rect(*plain["area"]), (x, y), plain["mirrored"], plain["rotation"])


def binned(images: NDArray[Any], binning: tuple[int, int], how: How) -> NDArray[Any]:
    """Return images (…, height, width), a whole number of bins (x, y) each way, one pixel per bin; see `View.apply`."""
    x, y = binning
    if (x, y) == (1, 1):
        return images
    *more, height, width = images.shape
    bins = images.reshape(*more, height // y, y, width // x, x)
    if how == "any":
        return np.asarray(bins.any(axis=(-3, -1)))
    if how == "or":
        return np.asarray(np.bitwise_or.reduce(bins, axis=(-3, -1)))
    sums = bins.sum(axis=(-3, -1), dtype=np.float64)
    return np.asarray(sums / (x * y) if how == "mean" else sums)


def _quarters(x: float, y: float, width: int, height: int, degrees: int) -> tuple[float, float]:
    """Return a place in width x height pixels after turning them clockwise."""
    for _ in range(degrees // 90):
        x, y, width, height = height - 1 - y, x, height, width
    return x, y


def _spanned(one: tuple[float, float], other: tuple[float, float]) -> Rect:
    """Return the rectangle with these pixels in opposite corners."""
    (left, right), (top, bottom) = sorted((int(one[0]), int(other[0]))), sorted((int(one[1]), int(other[1])))
    return Rect(left, top, right - left + 1, bottom - top + 1)
