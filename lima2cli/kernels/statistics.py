"""Sums over the pixels of a region, frame by frame, that merge exactly; and the statistics made of them."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.declare import Choice, Either, ListOf, Number, Schema, Table, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, FrameSpec
from lima2cli.geometry import Rect
from lima2cli.kernels.masked import finder
from lima2cli.kernels.regions import Axis, RoiPixels, regions, unaligned
from lima2cli.kernels.strips import TILE_PIXELS, tile_shape, tiles

Sums = dict[str, Array]
"""Sums by key, arrays of one shape, (n,) or (n, regions)."""

_ADDED = ("count", "sum", "saturated", "above", "x", "y")
"""Keys whose sums of parts are added; ``x`` and ``y`` are sums of pixel times coordinate."""

_PIXELS = (1, 2)
_PIECE = 1024
_LEAST, _MOST = 1e-24, 1e36  # squares that float32 holds well, however many they are


def merge(one: Sums, other: Sums) -> Sums:
    """Return the sums of both parts together; both have the same keys and shape."""
    merged: Sums = {key: one[key] + other[key] for key in _ADDED if key in one}
    if "m2" in one:
        a, b = one["count"], other["count"]
        share = a * (b / np.maximum(merged["count"], 1))
        with np.errstate(all="ignore"):  # infinite means
            apart = mean(other) - mean(one)
            merged["m2"] = one["m2"] + other["m2"] + np.where(share > 0, apart * apart * share, 0.0)
    if "min" in one:
        merged["min"] = np.fmin(one["min"], other["min"])
    if "max" in one:
        merged["max"] = np.fmax(one["max"], other["max"])
    return merged


def together(parts: Sequence[Sums]) -> Sums:
    """Return the sums of several parts, as `merge` pair by pair would give them."""
    return stacked({key: np.concatenate([part[key] for part in parts]).reshape(len(parts), -1) for key in parts[0]})


def stacked(parts: Sums) -> Sums:
    """Return the sums of several parts, arrays (parts, n), as `together`, arrays (n,)."""
    whole: Sums = {key: _in_order(parts[key]) for key in _ADDED if key in parts}
    with np.errstate(all="ignore"):  # infinite means
        if "m2" in parts:
            apart = np.where(parts["count"] > 0, mean(parts) - mean(whole), 0.0)
            whole["m2"] = _in_order(parts["m2"] + apart * apart * parts["count"])
    if "min" in parts:
        whole["min"] = np.fmin.reduce(parts["min"], axis=0)
    if "max" in parts:
        whole["max"] = np.fmax.reduce(parts["max"], axis=0)
    return whole


def _in_order(values: Array) -> Array:
    """Return sums along the first axis, one after another, so that they don't depend on the number of columns."""
    return np.asarray(np.cumsum(values, axis=0)[-1])


def mean(sums: Sums) -> NDArray[np.float64]:
    """Return the mean of each region and frame, float64 in the shape of the sums; 0 where nothing counts."""
    return np.asarray(sums["sum"] / np.maximum(sums["count"], 1))


class RegionSums:
    """Sums over one region of frames of ``spec``; ``keys`` names the wanted ones in addition to count.

    axes   coordinates of the pixels of frames, by key, for sums of pixel times coordinate
    level  pixels greater than it are counted for ``above``

    Frames come in strips: `begin` a block, then each `strip` of it, then `end`. Strips of one block are cut at the same
    rows in all frames, and may come in any order. A large region is summed strip by strip; a region of few pixels to
    the strip is collected first.
    """

    def __init__(
        self,
        region: RoiPixels,
        spec: FrameSpec,
        keys: Collection[str],
        axes: Mapping[str, Axis] | None = None,
        level: float | None = None,
    ) -> None:
        self.dtype, self.keys, self.region = np.dtype(spec.dtype), keys, region
        self.axes, self.limits = axes or {}, limits(keys, spec, level)
        self.invalid = finder(spec.invalid, spec.dtype, nan=False)
        strips = -(-region.box.height // tile_shape(*spec.shape)[1])
        self.collects = region.count < max(strips * (TILE_PIXELS // 8), 2)
        self.cuts: dict[tuple[int, ...], _Cut] = {}
        self.wide = _wide(self.dtype, max(TILE_PIXELS, region.box.width))
        self.narrow, self.few = _narrow(self.dtype)
        self.once = set(keys) <= {"sum"} and region.pixels is None and self.invalid is None
        self.places = _flat(self.axes, region.box, region.pixels) if self.collects else {}
        self.scratch, self.spare = np.empty(0, np.uint8), np.empty(0, self.dtype)
        self.collected = np.empty((0, region.count), self.dtype)
        self.parts: dict[int, Sums] = {}
        self.frames = 0

    def begin(self, frames: int) -> None:
        """Begin a block of so many frames."""
        self.frames, self.parts = frames, {}
        if self.collects and len(self.collected) < frames:
            self.collected = np.empty((frames, self.region.count), self.dtype)

    def strip(self, pixels: Array, frames: slice, rows: slice, columns: slice) -> None:
        """Take in ``pixels``, some ``rows`` and ``columns`` of some ``frames`` of the block: (n, rows, columns).

        They are of a region as a whole or not at all, whatever the rows.

        Under ``np.errstate(all="ignore")``, which is too slow to be entered for each strip.
        """
        box = self.region.box
        top, bottom = max(rows.start, box.y), min(rows.stop, box.bottom)
        if top >= bottom or box.x < columns.start or box.right > columns.stop:
            return
        at = (top, bottom, rows.start, columns.start, columns.stop)
        cut = self.cuts.get(at)
        if cut is None:
            cut = _cut(self.region, slice(top, bottom), rows.start, columns, self.collects, self.axes)
            self.cuts[at] = cut
        if not cut.size:
            return
        if self.collects:
            cut.take(pixels, self.collected[frames, cut.before : cut.before + cut.size])
        else:
            self._keep(top, frames, self._strip(cut, pixels))

    def end(self) -> Sums:
        """Return the sums of each frame of the block, arrays (n,)."""
        if not self.region.count:
            return of_nothing((self.frames,), self.dtype, self.keys)
        if self.collects:
            with np.errstate(all="ignore"):
                for deep, some in tiles(self.frames, self.region.count, 1):
                    places = {key: axis.part(some) for key, axis in self.places.items()}
                    self._keep(some.start, deep, self._sums(self.collected[deep, None, some], places))
        parts = list(self.parts.values())
        return parts[0] if len(parts) == 1 else together(parts)

    def __call__(self, frames: Array) -> Sums:
        """Return the sums of each frame of (n, height, width)."""
        count, height, width = frames.shape
        box, columns = self.region.box, slice(0, width)
        self.begin(count)
        if self.collects:
            self.strip(frames, slice(0, count), slice(0, height), columns)
        elif box.area:
            with np.errstate(all="ignore"):  # inf - inf; squares beyond the range
                whole = [(slice(0, count), slice(0, box.height))]  # of what is read once, nothing need stay in cache
                for deep, tall in whole if self.once else tiles(count, box.height, box.width):
                    rows = slice(tall.start + box.y, tall.stop + box.y)
                    self.strip(frames[deep, rows], deep, rows, columns)
        return self.end()

    def _keep(self, part: int, frames: slice, sums: Sums) -> None:
        if frames.start == 0 and frames.stop == self.frames:
            self.parts[part] = sums
            return
        whole = self.parts.get(part)
        if whole is None:
            whole = self.parts[part] = {name: np.empty(self.frames, value.dtype) for name, value in sums.items()}
        for name, value in sums.items():
            whole[name][frames] = value

    def _strip(self, cut: "_Cut", pixels: Array) -> Sums:
        if cut.whole:
            return self._sums(pixels[:, cut.rows, cut.columns], cut.places)
        if self.spare.size < len(pixels) * cut.area:
            self.spare = np.empty(len(pixels) * cut.area, self.dtype)
        if cut.bad is None:
            some = self.spare[: len(pixels) * cut.size].reshape(len(pixels), cut.size)
            cut.take(pixels, some)
            return self._sums(some[:, None, :], cut.places)
        box = pixels[:, cut.rows, cut.columns]
        copy = self.spare[: box.size].reshape(box.shape)
        np.copyto(copy, box)
        flat = copy.reshape(len(copy), -1)
        _put(flat, cut.bad, flat[:, cut.first, None])
        return self._sums(copy, cut.places, cut.bad)

    def _sums(self, pixels: Array, places: Mapping[str, Axis], bad: Array | None = None) -> Sums:
        """Return the sums of (n, height, width) pixels; ``places`` are their coordinates, by key.

        ``bad`` ones, by flat index, don't count: the caller has made them equal to one that does, in an array of its
        own.
        """
        frames, area = len(pixels), pixels.shape[1] * pixels.shape[2]
        if self.invalid is not None and (invalid := self.invalid(pixels)).any():
            there = ~invalid if self.dtype.kind != "f" else ~(invalid | np.isnan(pixels))
            _put(there.reshape(frames, area), bad, False)
            return self._sparse(pixels, places, there)
        total, count = self._total(pixels), area
        if bad is not None:
            count -= len(bad)
            total -= len(bad) * pixels.reshape(frames, area)[:, bad[0]].astype(np.float64)
        if self.dtype.kind == "f" and not np.isfinite(total).all():
            _put(pixels.reshape(frames, area), bad, math.nan)
            return self._sparse(pixels, places, ~np.isnan(pixels))
        sums: Sums = {"count": np.full(frames, count), "sum": total}
        if "m2" in self.keys:
            sums["m2"] = self._squares(pixels, total / count, bad)
        if "min" in self.keys:
            sums["min"] = np.minimum.reduce(pixels, axis=_PIXELS)
        if "max" in self.keys:
            sums["max"] = np.maximum.reduce(pixels, axis=_PIXELS)
        for key, limit in self.limits.items():
            sums[key] = _reaching(pixels, limit)
            if bad is not None:
                sums[key] -= _reaching(pixels.reshape(frames, 1, area)[:, :, bad], limit)
        for key, axis in places.items():
            sums[key] = self._moment(pixels, axis)
            if bad is not None:
                first = pixels.reshape(frames, area)[:, bad[0]].astype(np.float64)
                sums[key] -= first * axis.over(pixels.shape[1:]).ravel()[bad].sum()
        return sums

    def _moment(self, pixels: Array, axis: Axis) -> Array:
        """Return the sums of pixel times coordinate of (n, height, width): of lines of equal coordinate first."""
        lines = np.add.reduce(pixels, axis=1 if axis.across else 2, dtype=self.wide)
        return _dot(lines.astype(np.float64, copy=False), axis.values)

    def _total(self, pixels: Array) -> NDArray[np.float64]:
        """Return the sums of (n, height, width) pixels; of small integers by some rows at a time, in 32 bits."""
        height, width = pixels.shape[1:]
        rows = self.few // width
        if not rows or rows >= height:
            wide = self.narrow if rows else self.wide
            return np.asarray(np.add.reduce(pixels, axis=_PIXELS, dtype=wide), np.float64)
        total = np.zeros(len(pixels))
        for top in range(0, height, rows):
            total += np.add.reduce(pixels[:, top : top + rows], axis=_PIXELS, dtype=self.narrow)
        return total

    def _squares(self, pixels: Array, about: NDArray[np.float64], bad: Array | None) -> Array:
        """Return the sums of (pixel - about)^2 where ``about`` is the mean.

        They are computed in float32 where it holds the pixels, which is half the memory; differences of pixels near the
        mean are exact in it, others are as good as the pixels.
        """
        if np.can_cast(self.dtype, np.float32):
            near = about.astype(np.float32)
            m2 = self._squares_in(near.dtype, pixels, near, bad)
            m2 -= np.square(about - near) * (pixels[0].size - (0 if bad is None else len(bad)))
            if self.dtype.kind != "f" or ((m2 > _LEAST) & (m2 < _MOST)).all():
                return np.maximum(m2, 0.0)
        return self._squares_in(np.dtype(np.float64), pixels, about, bad)

    def _squares_in(self, work: np.dtype[Any], pixels: Array, about: Array, bad: Array | None) -> Array:
        frames, area = len(pixels), pixels.shape[1] * pixels.shape[2]
        if self.scratch.nbytes < pixels.size * work.itemsize:
            self.scratch = np.empty(pixels.size * work.itemsize, np.uint8)
        apart = self.scratch[: pixels.size * work.itemsize].view(work).reshape(pixels.shape)
        if pixels.dtype != work:  # converting first is faster than ufuncs of mixed dtypes
            np.copyto(apart, pixels)
            pixels = apart
        np.subtract(pixels, about[:, None, None], out=apart)
        flat = apart.reshape(frames, area)
        _put(flat, bad, 0.0)
        return _squares(flat)

    def _sparse(self, pixels: Array, places: Mapping[str, Axis], there: NDArray[np.bool_]) -> Sums:
        """Return the sums where some pixels do not count, or are infinite; ``there`` is True for those that count."""
        counts = np.count_nonzero(there, axis=_PIXELS)
        zero, (low, high) = self.dtype.type(0), of_none(self.dtype)
        counted = np.where(there, pixels, zero)
        total = counted.sum(axis=_PIXELS, dtype=self.wide).astype(np.float64, copy=False)
        sums: Sums = {"count": counts, "sum": total}
        if "m2" in self.keys:
            apart = np.where(there, pixels - mean(sums)[:, None, None], 0.0)
            sums["m2"] = np.square(apart).sum(axis=_PIXELS)
        if "min" in self.keys:
            sums["min"] = np.fmin.reduce(np.where(there, pixels, high), axis=_PIXELS)
        if "max" in self.keys:
            sums["max"] = np.fmax.reduce(np.where(there, pixels, low), axis=_PIXELS)
        for key, limit in self.limits.items():
            sums[key] = _reaching(pixels, limit, there)
        for key, axis in places.items():
            sums[key] = self._moment(counted, axis)
        return sums


def _reaching(pixels: Array, limit: Any, there: NDArray[np.bool_] | None = None) -> Array:
    """Return how many of (n, height, width) pixels, of those ``there``, reach a limit; None = none can."""
    if limit is None:
        return np.zeros(len(pixels), np.int64)
    high = pixels >= limit
    if there is not None:
        high &= there
    counts = np.add.reduce(high.view(np.uint8), axis=_PIXELS, dtype=np.uint32)  # twice as fast as `count_nonzero`
    return np.asarray(counts, np.int64)


@dataclass(frozen=True)
class _Cut:
    """The pixels of a region in a strip (n, rows, width).

    rows, columns   the box that holds them
    size            how many of its ``area`` count; ``before`` as many count in the rows above
    index           of those that count, in the strip, flat; None where all count, or ``bad`` is shorter
    bad             of those that don't, in the box, flat; ``first`` is one that counts
    places          coordinates, by key, of the pixels of the box, or of those of ``index``
    """

    rows: slice
    columns: slice
    area: int
    size: int
    before: int
    index: NDArray[np.intp] | None
    bad: NDArray[np.intp] | None
    first: int
    places: Mapping[str, Axis]

    @property
    def whole(self) -> bool:
        """Return True if the box is all of them."""
        return self.size == self.area

    def take(self, pixels: Array, out: Array) -> None:
        """Copy the pixels that count, (n, size)."""
        if self.whole:
            out[...] = pixels[:, self.rows, self.columns].reshape(out.shape)
            return
        assert self.index is not None
        for frame, row in zip(pixels.reshape(len(pixels), -1), out, strict=True):
            np.take(frame, self.index, out=row, mode="clip")  # `raise` would take a detour, and so does an axis


def _cut(region: RoiPixels, rows: slice, start: int, shown: slice, collects: bool, axes: Mapping[str, Axis]) -> _Cut:
    """Return the part of a region in ``rows`` of a strip that begins with row ``start`` and shows these columns."""
    box, width = region.box, shown.stop - shown.start
    left = box.x - shown.start
    inside, columns = slice(rows.start - start, rows.stop - start), slice(left, left + box.width)
    area = (rows.stop - rows.start) * box.width
    part = Rect(box.x, rows.start, box.width, rows.stop - rows.start)
    places = {key: axis.of(part) for key, axis in axes.items()}
    if region.pixels is None:
        return _Cut(inside, columns, area, area, (rows.start - box.y) * box.width, None, None, 0, places)
    good = region.pixels[rows.start - box.y : rows.stop - box.y]
    before = int(np.count_nonzero(region.pixels[: rows.start - box.y]))
    size = int(np.count_nonzero(good))
    if size == area:
        return _Cut(inside, columns, area, size, before, None, None, 0, places)
    if not collects and 20 * (area - size) < area:
        return _Cut(inside, columns, area, size, before, None, np.flatnonzero(~good), int(np.argmax(good)), places)
    y, x = np.nonzero(good)
    return _Cut(
        inside, columns, area, size, before, (y + inside.start) * width + x + left, None, 0, _flat(axes, part, good)
    )


def _flat(axes: Mapping[str, Axis], box: Rect, good: NDArray[np.bool_] | None) -> dict[str, Axis]:
    """Return the coordinates of the ``good`` pixels of a box, one after another, as of a single row; None = all."""
    whole = {key: axis.of(box).over((box.height, box.width)) for key, axis in axes.items()}
    return {key: Axis(True, values.ravel() if good is None else values[good]) for key, values in whole.items()}


def _put(pixels: Array, index: Array | None, value: Any) -> None:
    """Set some pixels of each of (n, pixels)."""
    if index is None:
        return
    if len(pixels) == 1:  # much the faster
        pixels[0][index] = value if np.ndim(value) == 0 else value[0, 0]
    else:
        pixels[:, index] = value


def _squares(values: Array) -> Array:
    """Return the sums of squares of each of (n, pixels), C-contiguous, as float64.

    They are summed in pieces short enough for float32 to add up, and for the linear algebra to start no threads.
    """
    frames, width = values.shape
    pieces, size = width // _PIECE, values.itemsize
    shape, strides = (frames, pieces, _PIECE), (width * size, _PIECE * size, size)
    whole = np.ndarray(shape, values.dtype, values, strides=strides)
    rest = values[:, pieces * _PIECE :]
    return np.asarray(np.add.reduce(_dot(whole, whole), axis=1, dtype=np.float64) + _dot(rest, rest))


def _dot(one: Array, other: Array) -> Array:
    if hasattr(np, "vecdot"):
        return np.asarray(np.vecdot(one, other))
    return np.asarray(np.einsum("...i,...i->...", one, other))  # numpy 1; slower


def _wide(dtype: np.dtype[Any], pixels: int) -> np.dtype[Any]:
    """Return the narrowest dtype in which so many pixels can be summed; narrow sums are faster."""
    if dtype.kind == "f" or dtype.itemsize == 8:
        return np.dtype(np.float64)
    largest = max(abs(limit) for limit in _range(dtype)) * pixels
    narrow = np.dtype(f"{dtype.kind}4")
    return narrow if largest <= np.iinfo(narrow).max else np.dtype(f"{dtype.kind}8")


def _narrow(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], int]:
    """Return the dtype of 32 bits, in which sums are twice as fast, and of how many pixels it holds any sum; 0 of wide
    pixels, of which these would be too few to be worth a call.
    """
    if dtype.kind == "f" or dtype.itemsize > 2:
        return np.dtype(np.float64), 0
    narrow = np.dtype(f"{dtype.kind}4")
    return narrow, int(np.iinfo(narrow).max) // max(abs(limit) for limit in _range(dtype))


def limits(keys: Collection[str], spec: FrameSpec, level: float | None) -> dict[str, Any]:
    """Return the lowest values that ``saturated`` and ``above`` count, in the pixels' dtype, for those of the keys.

    None where no pixel reaches it. ``level`` is the one that pixels ``above`` exceed.
    """
    dtype, found = np.dtype(spec.dtype), {}
    if "saturated" in keys:
        found["saturated"] = _limit(spec.saturation, dtype)
    if "above" in keys:
        assert level is not None
        is_float = dtype.kind == "f"
        found["above"] = np.nextafter(dtype.type(level), np.inf) if is_float else _limit(math.floor(level) + 1, dtype)
    return found


def _limit(level: float | None, dtype: np.dtype[Any]) -> Any:
    """Return the lowest value of a dtype at or above a level; None where there is none."""
    if level is None:
        return None
    if dtype.kind == "f":
        return dtype.type(level)
    lowest, highest = _range(dtype)
    whole = max(math.ceil(level), lowest)
    return None if whole > highest else dtype.type(whole)


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def of_nothing(shape: tuple[int, ...], dtype: np.dtype[Any], keys: Collection[str]) -> Sums:
    """Return sums of no pixel, arrays of this shape; ``keys`` as for `RegionSums`."""
    low, high = of_none(dtype)
    sums: Sums = {"count": np.zeros(shape, np.int64), "sum": np.zeros(shape)}
    sums |= {key: np.zeros(shape) for key in ("m2", "x", "y")}
    sums |= {key: np.zeros(shape, np.int64) for key in ("saturated", "above")}
    sums |= {"min": np.full(shape, high, dtype), "max": np.full(shape, low, dtype)}
    return {key: value for key, value in sums.items() if key in ("count", "sum") or key in keys}


def of_none(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Return ``max`` and ``min`` of no pixel, in the pixels' dtype."""
    low, high = (math.nan, math.nan) if dtype.kind == "f" else _range(dtype)
    return dtype.type(low), dtype.type(high)


@dataclass(frozen=True, kw_only=True)
class Above:
    """Count pixels over a level."""

    above: float = param(
        "Pixels greater than this count; in float frames it is rounded to their dtype first.", Number()
    )


class _Level(Table):
    """The shape of `Above`, in words that show how it is written."""

    def schema(self) -> Schema:
        """See `Shape.schema`."""
        return super().schema() | {"x-words": "`above: n`"}


LINES = ("avg", "std", "min", "max", "sum", "saturated", "valid")
"""Statistics of lines of pixels, too."""

STATISTICS = (*LINES, "com_x", "com_y")

DEFAULT = STATISTICS[:5]

_SHAPES = {names: ListOf(Either((Choice(names), _Level(Above))), 1) for names in (STATISTICS, LINES)}

SHAPE, LINES_SHAPE = _SHAPES[STATISTICS], _SHAPES[LINES]
"""Shapes of the parameter ``statistics``, of regions and of lines."""

_NEEDS = {
    "avg": {"sum"},
    "std": {"sum", "m2"},
    "min": {"min"},
    "max": {"max"},
    "sum": {"sum"},
    "saturated": {"saturated"},
    "valid": set[str](),
    "com_x": {"sum", "x"},
    "com_y": {"sum", "y"},
    "above": {"above"},
}

_COUNTS = ("saturated", "valid", "above")

_DTYPES = {
    "avg": "float32",
    "std": "float32",
    "sum": "float64",
    "com_x": "float64",
    "com_y": "float64",
} | dict.fromkeys(_COUNTS, "uint32")


def named(statistics: Sequence[str | Above]) -> tuple[tuple[str, ...], float | None]:
    """Return the names of statistics, as columns end, and the level of ``above``; None where that is not among them.

    Raises: NodeMisuse: ``above-twice``.
    """
    levels = [(i, each.above) for i, each in enumerate(statistics) if isinstance(each, Above)]
    if len(levels) > 1:
        message = f"pixels above {levels[0][1]:g} are counted already, and both columns would have the same name"
        raise NodeMisuse("above-twice", message, ("statistics", levels[1][0]), "another node counts those above it")
    names = tuple("above" if isinstance(each, Above) else each for each in statistics)
    return names, levels[0][1] if levels else None


def needs(names: Sequence[str]) -> frozenset[str]:
    """Return the keys of sums that these statistics are made of, in addition to count."""
    return frozenset().union(*(_NEEDS[name] for name in names))


def columns(rois: Sequence[str], names: Sequence[str], spec: FrameSpec) -> dict[str, str]:
    """Return columns ``<roi>_<statistic>`` and their dtypes.

    Raises: NodeMisuse: ``saturation-unknown``.
    """
    if "saturated" in names and spec.saturation is None:
        raise NodeMisuse(
            "saturation-unknown",
            "the saturation of these pixels is not known",
            ("statistics",),
            "give the detector its `saturation`, and count before pixels are binned, subtracted from or divided",
        )
    return {f"{roi}_{name}": _DTYPES.get(name, spec.dtype) for roi in rois for name in names}


def units(rois: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return the units of the columns, where they are known."""
    return {f"{roi}_{name}": "pixels" for roi in rois for name in names if name in (*_COUNTS, "com_x", "com_y")}


def default(rois: Sequence[str], names: Sequence[str]) -> str:
    """Return the column to plot first: the first ROI's sum, or the first there is."""
    return f"{rois[0]}_{'sum' if 'sum' in names else names[0]}"


MOST_OTHERS = 15
"""Most columns that are plotted with the first: more can't be told apart."""


def others(rois: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns to plot with the `default` one: the same statistic of the next ROIs."""
    statistic = default(rois, names).removeprefix(f"{rois[0]}_")
    return tuple(f"{roi}_{statistic}" for roi in rois[1 : 1 + MOST_OTHERS])


_WORDS = {
    "avg": "average", "std": "standard deviation", "min": "minimum", "max": "maximum", "valid": "valid pixels",
    "com_x": "x of the centre of mass", "com_y": "y of the centre of mass",
}  # fmt: skip


def labels(rois: Sequence[str], names: Sequence[str], level: float | None) -> dict[str, str]:
    """Return what the columns are, for plots: ``sum of spot``."""
    words = _WORDS if level is None else _WORDS | {"above": f"pixels above {level:.15g}"}
    return {f"{roi}_{name}": f"{words.get(name, name)} of {roi}" for roi in rois for name in names}


def column(name: str, sums: Sums) -> NDArray[Any]:
    """Return a statistic, of the shape of the sums."""
    count = sums["count"]
    if name == "avg":
        return np.asarray(sums["sum"] / count, np.float32)
    if name == "std":
        return np.asarray(np.sqrt(sums["m2"] / count), np.float32)
    if name == "sum":
        return sums["sum"]
    if name in _COUNTS:
        return sums["count" if name == "valid" else name].astype(np.uint32)
    if name in ("com_x", "com_y"):
        return np.where(sums["sum"] == 0, np.nan, sums[name[-1]] / sums["sum"])
    values = sums[name]
    return values if values.dtype.kind == "f" or count.all() else np.where(count > 0, values, values.dtype.type(0))


def doubtful(rois: Mapping[str, Any], coordinates: str, spec: FrameSpec) -> Sequence[NodeMisuse]:
    """Return warnings of doubtful regions: of masked pixels only, or with edges that cut through binned pixels.

    Masked pixels are not reported for a part of frames.
    """
    masked = [
        NodeMisuse("roi-masked", f"all pixels of ROI {name} are masked", ("rois", name))
        for name, region in regions(rois, coordinates, spec).items()
        if not region.count and spec.whole is None
    ]
    x, y = spec.view.binning
    whole = f"its edges cut through bins of {x} x {y} pixels; those wholly inside count"
    return masked + [
        NodeMisuse("roi-unaligned", f"of ROI {name} only {rect} counts", ("rois", name, "rect"), whole)
        for name, rect in unaligned(rois, coordinates, spec).items()
    ]
