"""Sums along the lines of a region, frame by frame: those of `statistics`, for each column or each row by itself.

A line's sums are taken tile by tile about the tile's own mean, and merged. Sums are float64 whatever the pixels are:
nothing overflows, and integers are exact up to 2**53.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.invalid import finder
from lima2cli.nodes import statistics
from lima2cli.nodes.rois import Region
from lima2cli.nodes.statistics import Sums
from lima2cli.nodes.tiles import tiles
from lima2cli.spec import Array, FrameSpec


class LineSums:
    """Sums along lines of one region of frames of ``spec``; ``keys`` says which are wanted beside count.

    across  True: along each column, a value per column; False: along each row, a value per row

    Lines of the whole region that a part of frames does not show have the sums of no pixel.

    Frames come in strips, as for `RegionSums`.
    """

    def __init__(self, region: Region, spec: FrameSpec, keys: Collection[str], *, across: bool) -> None:
        box = region.box
        self.dtype, self.keys, self.region, self.across = np.dtype(spec.dtype), keys, region, across
        self.length = box.width if across else box.height
        first, self.lines = (box.x, region.whole.width) if across else (box.y, region.whole.height)
        self.before = first - (region.whole.x if across else region.whole.y)
        self.low, self.high = statistics.of_none(self.dtype)
        self.limit = statistics.saturation_limit(spec.saturation, self.dtype)
        self.invalid = finder(spec.invalid, spec.dtype)
        self.scratch = np.empty(0)
        self.whole: Sums = {}
        self.parts: dict[int, Sums] = {}
        self.frames = 0

    def begin(self, frames: int) -> None:
        """Begin a block of so many frames."""
        self.frames, self.whole, self.parts = frames, {}, {}

    def strip(self, pixels: Array, frames: slice, rows: slice) -> None:
        """Take in ``pixels``, whole ``rows`` of some ``frames`` of the block: (n, rows, width).

        Under ``np.errstate(all="ignore")``, as in `RegionSums`.
        """
        box = self.region.box
        top, bottom = max(rows.start, box.y), min(rows.stop, box.bottom)
        if top >= bottom:
            return
        part = pixels[:, top - rows.start : bottom - rows.start, box.x : box.right]
        inside = slice(top - box.y, bottom - box.y)
        good = None if self.region.pixels is None else self.region.pixels[inside]
        sums = self._sums(part, None if good is None or good.all() else good)
        if self.across:
            self._keep(self.parts.setdefault(top, {}), sums, frames, slice(None))
        else:
            self._keep(self.whole, sums, frames, inside)

    def end(self) -> Sums:
        """Sums of each line of each frame of the block, arrays (n, length)."""
        with np.errstate(all="ignore"):  # infinite means
            for top in sorted(self.parts):
                self.whole = statistics.merge(self.whole, self.parts[top]) if self.whole else self.parts[top]
        if self.length == self.lines:
            return self.whole
        sums = statistics.of_nothing((self.frames, self.lines), self.dtype, self.keys)
        for key, values in self.whole.items():
            sums[key][:, self.before : self.before + self.length] = values
        return sums

    def __call__(self, frames: Array) -> Sums:
        """Sums of each line of each of (n, height, width)."""
        box = self.region.box
        self.begin(len(frames))
        with np.errstate(all="ignore"):  # inf - inf; squares beyond float64
            for deep, tall in tiles(len(frames), box.height, box.width) if box.area else ():
                rows = slice(tall.start + box.y, tall.stop + box.y)
                self.strip(frames[deep, rows], deep, rows)
        return self.end()

    def _keep(self, kept: Sums, sums: Sums, frames: slice, lines: slice) -> None:
        for key, values in sums.items():
            if key not in kept:
                kept[key] = np.empty((self.frames, self.length), values.dtype)
            kept[key][frames, lines] = values

    def _sums(self, pixels: Array, good: NDArray[np.bool_] | None) -> Sums:
        """Sums of each line of (n, height, width) pixels, (n, lines); ``good`` (height, width) says which count."""
        there: NDArray[np.bool_] | None = good
        if self.invalid is not None and (found := self.invalid(pixels)).any():
            there = ~found if good is None else ~found & good
        tile = _Tile(pixels, there, 1 if self.across else 2)
        count = tile.count()
        wide = tile.wide(self._scratch(pixels.size))
        sums: Sums = {"count": count, "sum": wide.sum(axis=tile.axis)}
        if "m2" in self.keys:
            np.subtract(wide, np.expand_dims(statistics.mean(sums), tile.axis), out=wide)
            tile.clear(wide)
            sums["m2"] = np.square(wide, out=wide).sum(axis=tile.axis)
        if "min" in self.keys:
            sums["min"] = np.fmin.reduce(tile.filled(self.high), axis=tile.axis)
        if "max" in self.keys:
            sums["max"] = np.fmax.reduce(tile.filled(self.low), axis=tile.axis)
        if "saturated" in self.keys:
            sums["saturated"] = tile.reaching(self.limit)
        return sums

    def _scratch(self, size: int) -> NDArray[np.float64]:
        if self.scratch.size < size:
            self.scratch = np.empty(size)
        return self.scratch[:size]


@dataclass(frozen=True)
class _Tile:
    """Pixels (n, height, width), those that count, of a shape that spreads over them (None: all), and the axis along
    which they are summed."""

    pixels: Array
    there: NDArray[np.bool_] | None
    axis: int

    def _lines(self, values: Array) -> Array:
        """Values of each line of one frame, or of each, for each frame."""
        frames, height, width = self.pixels.shape
        return np.broadcast_to(values, (frames, width if self.axis == 1 else height))

    def count(self) -> Array:
        """How many of each line count."""
        if self.there is None:
            return self._lines(np.asarray(self.pixels.shape[self.axis]))
        return self._lines(np.count_nonzero(self.there, axis=self.axis - 3))

    def wide(self, memory: NDArray[np.float64]) -> NDArray[np.float64]:
        """A copy in float64, 0 where a pixel doesn't count."""
        wide = memory.reshape(self.pixels.shape)
        np.copyto(wide, self.pixels)
        self.clear(wide)
        return wide

    def clear(self, values: NDArray[np.float64]) -> None:
        """Make 0 what doesn't count."""
        if self.there is not None:
            np.copyto(values, 0.0, where=~self.there)

    def filled(self, value: Any) -> Array:
        """The pixels, ``value`` of their dtype where they don't count."""
        return self.pixels if self.there is None else np.where(self.there, self.pixels, value)

    def reaching(self, limit: Any) -> Array:
        """How many of each line are at or above a limit; None: no pixel can be."""
        if limit is None:
            return self._lines(np.asarray(0))
        high = self.pixels >= limit
        return np.asarray(np.count_nonzero(high if self.there is None else high & self.there, axis=self.axis))
