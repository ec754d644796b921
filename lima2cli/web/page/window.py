"""The part of a frame that a browser is sent: the visible pixels, of which every n-th if they are many."""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.files.picture import LIMITS, measured_pixels

MOST = 1200
"""Maximal pixels a side that are sent."""

MOST_RANKED = 1 << 17
"""Pixels, about, of which percentiles are taken; of more, every n-th is looked at."""

SHOWABLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
"""dtypes that browsers show; others are sent as float64."""

Scale = Literal["linear", "log"]


@dataclass(frozen=True, eq=False)
class Window:
    """Pixels of a frame as they are sent.

    pixels   (rows, columns), true values: those of the frame at y, y + step, …; x, x + step, …
    masked   bool, of the same shape, True = no measurement in any frame; None = none
    x, y     of the first pixel;  step   from one to the next
    """

    pixels: NDArray[Any]
    masked: NDArray[np.bool_] | None
    x: int
    y: int
    step: int

    @property
    def place(self) -> tuple[float, float, float, float]:
        """Left edge, upper edge, width and height in pixels of the frame; pixel centres lie at whole coordinates."""
        height, width = self.pixels.shape
        return self.x - 0.5, self.y - 0.5, width * self.step, height * self.step


def window(
    pixels: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> Window:
    """Return what a browser is sent of a frame (height, width) that shows these ranges of x and y.

    Steps are whole numbers, from the frame's first pixel on: the same pixels are shown wherever the range begins.
    """
    height, width = pixels.shape
    left, right = _span(x_range, width)
    top, bottom = _span(y_range, height)
    step = max(1, math.ceil((right - left) / MOST), math.ceil((bottom - top) / MOST))
    left, top = left // step * step, top // step * step
    part = (slice(top, bottom, step), slice(left, right, step))
    shown = np.ascontiguousarray(pixels[part])
    if shown.dtype.name not in SHOWABLE:
        shown = shown.astype(np.float64)
    return Window(shown.astype(shown.dtype.newbyteorder("="), copy=False),
                  None if mask is None else np.ascontiguousarray(mask[part]), left, top, step)  # fmt: skip


def _span(limits: tuple[float, float], size: int) -> tuple[int, int]:
    """Return first and last pixel, which is not included, of those that a range shows; all where it shows none."""
    low, high = sorted(limits)
    if not (math.isfinite(low) and math.isfinite(high)):
        return 0, size
    first, last = max(0, math.floor(low + 0.5)), min(size, math.ceil(high + 0.5))
    return (first, last) if first < last else (0, size)


def limits(shown: Window, scale: Scale) -> tuple[float, float]:
    """Return the values at the ends of the colours: percentiles of measured pixels, for ``log`` of those above 0."""
    values = shown.pixels[measured_pixels(shown.pixels, shown.masked)]
    if scale == "log":
        values = values[values > 0]
    if not values.size:
        return (0.0, 1.0) if scale == "linear" else (1.0, 10.0)
    some = values[:: max(1, values.size // MOST_RANKED)].astype(np.float64)
    low, high = (float(value) for value in np.percentile(some, LIMITS))
    if high > low:
        return low, high
    return (low, low + 1) if scale == "linear" else (low, low * 10)


def fit(shape: tuple[int, int], across: float, down: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the ranges of x and y that show all of a frame (height, width) on ``across`` x ``down``, pixels square."""
    height, width = shape
    scale = max(width / max(1.0, across), height / max(1.0, down))
    x, y = (width - 1) / 2, (height - 1) / 2
    half = across * scale / 2, down * scale / 2
    return (x - half[0], x + half[0]), (y - half[1], y + half[1])
