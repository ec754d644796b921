"""How frames show a detector: which part of it, how binned, and which way up.

Pixel centres lie at whole coordinates: the first pixel is (0, 0), and so is its centre. Binned pixels are x by y pixels
of the detector, and what is cut, binned and turned can be cut, binned and turned again: a `View` is what all that comes
to.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lima2cli.geometry import Rect

FLIPS = ("none", "horizontal", "vertical", "both")
"""Names of what may be changed: left and right, top and bottom."""

How = Literal["sum", "mean", "any"]
"""What a binned pixel is of the pixels that it is made of."""


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
        """(height, width) of what is shown."""
        width, height = self.bins
        return (width, height) if self.quarter else (height, width)

    @property
    def quarter(self) -> bool:
        """Whether the axes are exchanged."""
        return self.rotation % 180 != 0

    @property
    def pixel(self) -> tuple[int, int]:
        """Detector pixels that one shown pixel is wide and high, as shown."""
        x, y = self.binning
        return (y, x) if self.quarter else (x, y)

    @property
    def bins(self) -> tuple[int, int]:
        """How many bins there are across and down, before turning."""
        return self.area.width // self.binning[0], self.area.height // self.binning[1]

    def cut(self, part: Rect) -> "View":
        """A part of what is shown, in its own pixels."""
        return replace(self, area=self.behind(part))

    def bin(self, x: int, y: int) -> "View":
        """Bins of x columns and y rows of what is shown; trailing columns and rows that fill none are left out."""
        height, width = self.shape
        whole = self.cut(Rect(0, 0, width // x * x, height // y * y))
        along, down = (y, x) if self.quarter else (x, y)
        return replace(whole, binning=(self.binning[0] * along, self.binning[1] * down))

    def flip(self, *, horizontal: bool = False, vertical: bool = False) -> "View":
        """Left and right changed, top and bottom changed."""
        view = self
        if horizontal:
            view = replace(view, mirrored=not view.mirrored, rotation=-view.rotation % 360)
        return view.flip(horizontal=True).rotate(180) if vertical else view

    def flipped(self, flip: str) -> "View":
        """The same by its name, see `FLIPS`."""
        return self.flip(horizontal=flip in ("horizontal", "both"), vertical=flip in ("vertical", "both"))

    def rotate(self, degrees: int) -> "View":
        """Turned clockwise by 0, 90, 180 or 270 degrees."""
        return replace(self, rotation=(self.rotation + degrees) % 360)

    def then(self, view: "View") -> "View":
        """What ``view``, of what is shown, shows of the detector."""
        part = self.cut(view.area).bin(*view.binning)
        return part.flip(horizontal=view.mirrored).rotate(view.rotation)

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Where a place of the detector is shown; both in pixels, centres whole."""
        column = (x - self.area.x + 0.5) / self.binning[0] - 0.5
        row = (y - self.area.y + 0.5) / self.binning[1] - 0.5
        return self._turned(column, row)

    def behind(self, part: Rect) -> Rect:
        """The detector pixels that a part of what is shown is made of."""
        bins = _spanned(self._turned_back(part.x, part.y), self._turned_back(part.right - 1, part.bottom - 1))
        x, y = self.binning
        return Rect(self.area.x + bins.x * x, self.area.y + bins.y * y, bins.width * x, bins.height * y)

    def inside(self, part: Rect) -> Rect:
        """The shown pixels all of whose detector pixels lie in ``part``; of width or height 0 where there is none."""
        x, y = self.binning
        part = part & self.area
        left, top = -(-(part.x - self.area.x) // x), -(-(part.y - self.area.y) // y)
        right, bottom = (part.right - self.area.x) // x, (part.bottom - self.area.y) // y
        if right <= left or bottom <= top:
            return Rect(0, 0, 0, 0)
        return self.placed(Rect(left, top, right - left, bottom - top))

    def placed(self, part: Rect) -> Rect:
        """Where a part of the bins (not of width or height 0) is shown, turned as they are."""
        return _spanned(self._turned(part.x, part.y), self._turned(part.right - 1, part.bottom - 1))

    def apply(self, image: NDArray[Any], how: How) -> NDArray[Any]:
        """An image of the whole detector (…, height, width) as shown; a view of it where nothing is binned.

        ``sum`` and ``mean`` of bins are float64, NaN where a pixel is; ``any`` is bool.
        """
        rows, columns = slice(self.area.y, self.area.bottom), slice(self.area.x, self.area.right)
        return self.turn(binned(image[..., rows, columns], self.binning, how))

    def turn(self, bins: NDArray[Any]) -> NDArray[Any]:
        """A numpy view of (…, height, width), mirrored and turned."""
        if self.mirrored:
            bins = bins[..., ::-1]
        return np.rot90(bins, -(self.rotation // 90), axes=(-2, -1)) if self.rotation else bins

    def turn_back(self, shown: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `turn`."""
        bins = np.rot90(shown, self.rotation // 90, axes=(-2, -1)) if self.rotation else shown
        return bins[..., ::-1] if self.mirrored else bins

    def _turned(self, x: float, y: float) -> tuple[float, float]:
        """Where a place of the bins is shown."""
        width, height = self.bins
        return _quarters(width - 1 - x if self.mirrored else x, y, width, height, self.rotation)

    def _turned_back(self, x: float, y: float) -> tuple[float, float]:
        """The inverse of `_turned`."""
        height, width = self.shape
        x, y = _quarters(x, y, width, height, -self.rotation % 360)
        return (self.bins[0] - 1 - x if self.mirrored else x), y


def binned(images: NDArray[Any], binning: tuple[int, int], how: How) -> NDArray[Any]:
    """Images (…, height, width), a whole number of bins (x, y) each way, with one pixel per bin; see `View.apply`."""
    x, y = binning
    if (x, y) == (1, 1):
        return images
    *more, height, width = images.shape
    bins = images.reshape(*more, height // y, y, width // x, x)
    if how == "any":
        return np.asarray(bins.any(axis=(-3, -1)))
    sums = bins.sum(axis=(-3, -1), dtype=np.float64)
    return np.asarray(sums / (x * y) if how == "mean" else sums)


def _quarters(x: float, y: float, width: int, height: int, degrees: int) -> tuple[float, float]:
    """A place in width x height pixels after turning them clockwise."""
    for _ in range(degrees // 90):
        x, y, width, height = height - 1 - y, x, height, width
    return x, y


def _spanned(one: tuple[float, float], other: tuple[float, float]) -> Rect:
    """The rectangle with these pixels in opposite corners."""
    (left, right), (top, bottom) = sorted((int(one[0]), int(other[0]))), sorted((int(one[1]), int(other[1])))
    return Rect(left, top, right - left + 1, bottom - top + 1)
