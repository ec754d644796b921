"""Sums over the pixels of a region, frame by frame, that merge exactly.

What is kept per frame: ``count`` (int64), ``sum`` (float64), ``m2`` = sum of (pixel - mean)^2 (float64), ``min`` and
``max`` (the pixels' dtype), ``saturated`` (int64); mean and standard deviation follow. Two parts merge by

    m2 = m2_a + m2_b + (mean_b - mean_a)^2 * n_a*n_b / (n_a + n_b)

(Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979). Within a
tile m2 is computed in two passes about the tile's own mean, so that a large mean costs no precision.

Integers never overflow: sums of up to 32-bit integers are integer sums wide enough for a tile, of 64-bit integers
float64; sums are exact up to 2**53. NaN pixels don't count. Without pixels sum and m2 are 0, ``min`` and ``max`` NaN,
in integers the largest and the smallest value, so that they lose against any pixel.
"""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.nodes.rois import Region
from lima2cli.nodes.tiles import TILE_PIXELS, tile_shape, tiles
from lima2cli.spec import Array, FrameSpec

Sums = dict[str, Array]
"""By key as above, arrays of one shape, (n,) or (n, regions)."""

_PIXELS = (1, 2)


def merge(one: Sums, other: Sums) -> Sums:
    """The sums of both parts together; both have the same keys and shape."""
    merged: Sums = {key: one[key] + other[key] for key in ("count", "sum", "saturated") if key in one}
    if "m2" in one:
        a, b = one["count"], other["count"]
        apart = mean(other) - mean(one)
        share = a * (b / np.maximum(merged["count"], 1))
        merged["m2"] = one["m2"] + other["m2"] + np.where(share > 0, apart * apart * share, 0.0)
    if "min" in one:
        merged["min"] = np.fmin(one["min"], other["min"])
    if "max" in one:
        merged["max"] = np.fmax(one["max"], other["max"])
    return merged


def mean(sums: Sums) -> NDArray[np.float64]:
    """float64; 0 where nothing counts."""
    return np.asarray(sums["sum"] / np.maximum(sums["count"], 1))


class RegionSums:
    """Sums over one region of frames of ``spec``; ``keys`` says which are wanted beside count."""

    def __init__(self, region: Region, spec: FrameSpec, keys: Collection[str]) -> None:
        box = region.box
        self.dtype = np.dtype(spec.dtype)
        self.keys = keys
        self.rows, self.columns = slice(box.y, box.bottom), slice(box.x, box.right)
        self.index = None if region.pixels is None else _index(region)
        self.flat = None if self.index is None else np.ravel_multi_index(self.index, spec.shape)
        self.size = region.count
        self.shape = (box.height, box.width) if self.index is None else (1, self.size)
        self.wide = _wide(self.dtype, max(TILE_PIXELS, self.shape[1]))
        self.limit = _limit(spec.saturation, self.dtype)
        deep, tall = tile_shape(*self.shape) if self.size else (0, 0)
        self.scratch = np.empty(deep * tall * self.shape[1] if "m2" in keys else 0)

    def __call__(self, frames: Array) -> Sums:
        """Sums of each frame of (n, height, width), arrays (n,) or, where all frames have the same, numbers."""
        if not self.size:
            return self._none(len(frames))
        pixels = self._pixels(frames)
        count, height, width = pixels.shape
        if count * height * width <= TILE_PIXELS:
            return self._tile(pixels)
        whole: Sums = {}
        for deep, tall in tiles(count, height, width):
            part = self._tile(pixels[deep, tall])
            if not whole:
                whole = {key: np.empty(count, np.asarray(value).dtype) for key, value in part.items()}
            if tall.start:
                part = merge({key: value[deep] for key, value in whole.items()}, part)
            for key, value in part.items():
                whole[key][deep] = value
        return whole

    def _pixels(self, frames: Array) -> Array:
        """(n, rows, columns): a view of a box, a copy (n, 1, pixels) of scattered pixels."""
        if self.index is None or self.flat is None:
            return frames[:, self.rows, self.columns]
        if not frames[0].flags.c_contiguous:
            return frames[:, *self.index][:, None, :]
        pixels = np.empty((len(frames), 1, self.size), self.dtype)
        for frame, row in zip(frames, pixels, strict=True):
            np.take(frame.reshape(-1), self.flat, out=row[0], mode="clip")  # `raise` would take a detour
        return pixels

    def _tile(self, pixels: Array) -> Sums:
        """Sums of (n, height, width) pixels, few enough for the scratch."""
        if self.dtype.kind != "f":
            return self._dense(pixels, np.add.reduce(pixels, axis=_PIXELS, dtype=self.wide))
        with np.errstate(all="ignore"):  # inf - inf
            total = np.add.reduce(pixels, axis=_PIXELS, dtype=self.wide)
            return self._dense(pixels, total) if np.isfinite(total).all() else self._sparse(pixels)

    def _dense(self, pixels: Array, total: Array) -> Sums:
        """Where all pixels count; ``total`` is their sum."""
        count = pixels.shape[1] * pixels.shape[2]
        sums: Sums = {"count": np.asarray(count), "sum": total.astype(np.float64, copy=False)}
        if "m2" in self.keys:
            apart = self.scratch[: pixels.size].reshape(pixels.shape)
            np.subtract(pixels, (sums["sum"] / count)[:, None, None], out=apart)
            np.multiply(apart, apart, out=apart)
            sums["m2"] = np.add.reduce(apart, axis=_PIXELS)
        if "min" in self.keys:
            sums["min"] = np.minimum.reduce(pixels, axis=_PIXELS)
        if "max" in self.keys:
            sums["max"] = np.maximum.reduce(pixels, axis=_PIXELS)
        if "saturated" in self.keys:
            sums["saturated"] = self._saturated(pixels)
        return sums

    def _sparse(self, pixels: Array) -> Sums:
        """Where some pixels are NaN (or infinite)."""
        there = ~np.isnan(pixels)
        counts = np.count_nonzero(there, axis=_PIXELS)
        sums: Sums = {"count": counts, "sum": np.where(there, pixels, 0.0).sum(axis=_PIXELS, dtype=np.float64)}
        if "m2" in self.keys:
            apart = np.where(there, pixels - mean(sums)[:, None, None], 0.0)
            sums["m2"] = np.square(apart).sum(axis=_PIXELS)
        if "min" in self.keys:
            sums["min"] = np.fmin.reduce(pixels, axis=_PIXELS)
        if "max" in self.keys:
            sums["max"] = np.fmax.reduce(pixels, axis=_PIXELS)
        if "saturated" in self.keys:
            sums["saturated"] = self._saturated(pixels)
        return sums

    def _saturated(self, pixels: Array) -> Array:
        if self.limit is None:
            return np.zeros(len(pixels), np.int64)
        return np.asarray(np.count_nonzero(pixels >= self.limit, axis=_PIXELS))

    def _none(self, count: int) -> Sums:
        """Sums of no pixel."""
        low, high = (math.nan, math.nan) if self.dtype.kind == "f" else _range(self.dtype)
        least = {"min": np.full(count, high, self.dtype), "max": np.full(count, low, self.dtype)}
        sums: Sums = {"count": np.zeros(count, np.int64), "sum": np.zeros(count)}
        sums |= {"m2": np.zeros(count), "saturated": np.zeros(count, np.int64)} | least
        return {key: value for key, value in sums.items() if key in ("count", "sum") or key in self.keys}


def _index(region: Region) -> tuple[Array, Array]:
    """Row and column numbers of the pixels, in the frame."""
    assert region.pixels is not None
    rows, columns = np.nonzero(region.pixels)
    return rows + region.box.y, columns + region.box.x


def _wide(dtype: np.dtype[Any], pixels: int) -> np.dtype[Any]:
    """The narrowest dtype in which so many pixels can be summed; narrow sums are faster."""
    if dtype.kind == "f" or dtype.itemsize == 8:
        return np.dtype(np.float64)
    largest = max(abs(limit) for limit in _range(dtype)) * pixels
    narrow = np.dtype(f"{dtype.kind}4")
    return narrow if largest <= np.iinfo(narrow).max else np.dtype(f"{dtype.kind}8")


def _limit(saturation: float | None, dtype: np.dtype[Any]) -> Any:
    """The lowest saturated value in the pixels' dtype; None where no pixel reaches it."""
    if saturation is None:
        return None
    if dtype.kind == "f":
        return dtype.type(saturation)
    lowest, highest = _range(dtype)
    level = max(math.ceil(saturation), lowest)
    return None if level > highest else dtype.type(level)


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)
