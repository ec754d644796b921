"""Node `roi_profiles`: statistics along one axis of regions of interest, frame by frame.

`horizontal` profiles run from left to right and have a value per column, over the rows of the ROI; `vertical` ones run
from top to bottom and have a value per row, over its columns:

      1 2 0 │ 3
      4 0 1 │ 5      vertical sum: 3, 5, 1
      0 0 1 │ 1
      ──────┘
      5 2 2          horizontal sum: 5, 2, 2

Left and right, columns and rows are those of the frames that enter the node, also with ``coordinates: detector``; the
first value is that of the ROI's first column or row there.

Columns `<roi>_<statistic>` of the table hold a vector per frame, (frames, length). Statistics, their dtypes, and what
counts are as for `roi_counters`, line by line: masked pixels (of the static mask, NaN, invalid values) don't count; of
a line without any pixel that counts avg and std are NaN, sum and counts 0, min and max NaN, in integers 0. There is no
centre of mass of a line.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.declare import Choice, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, Block, FrameSpec, TableSpec
from lima2cli.geometry import Rect
from lima2cli.kernels import statistics
from lima2cli.kernels import statistics as statistic_columns
from lima2cli.kernels.masked import finder
from lima2cli.kernels.regions import COORDINATES, RECTS, RoiPixels, looked_at, outlines, regions
from lima2cli.kernels.statistics import Above, Sums, column, named
from lima2cli.kernels.strips import tiles
from lima2cli.nodes.base import Inputs, Partial, Reduce, StripReducer, node
from lima2cli.view import Outline


class LineSums:
    """Sums along lines of one region of frames of ``spec``; ``keys`` says which are wanted in addition to count.

    across  True: along each column, a value per column; False: along each row, a value per row
    level   pixels greater than it are counted for ``above``

    Lines of the whole region that a part of frames does not show have the sums of no pixel.

    Frames come in strips, as for `RegionSums`.
    """

    def __init__(
        self, region: RoiPixels, spec: FrameSpec, keys: Collection[str], *, across: bool, level: float | None = None
    ) -> None:
        box = region.box
        self.dtype, self.keys, self.region, self.across = np.dtype(spec.dtype), keys, region, across
        self.length = box.width if across else box.height
        first, self.lines = (box.x, region.whole.width) if across else (box.y, region.whole.height)
        self.before = first - (region.whole.x if across else region.whole.y)
        self.low, self.high = statistics.of_none(self.dtype)
        self.limits = statistics.limits(keys, spec, level)
        self.invalid = finder(spec.invalid, spec.dtype)
        self.scratch = np.empty(0)
        self.whole: Sums = {}
        self.parts: dict[int, Sums] = {}
        self.frames = 0

    def begin(self, frames: int) -> None:
        """Begin a block of so many frames."""
        self.frames, self.whole, self.parts = frames, {}, {}

    def strip(self, pixels: Array, frames: slice, rows: slice, columns: slice) -> None:
        """Take in ``pixels``, some ``rows`` and ``columns`` of some ``frames`` of the block: (n, rows, columns).

        Under ``np.errstate(all="ignore")``, as in `RegionSums`.
        """
        box = self.region.box
        top, bottom = max(rows.start, box.y), min(rows.stop, box.bottom)
        if top >= bottom or box.x < columns.start or box.right > columns.stop:
            return
        left = box.x - columns.start
        part = pixels[:, top - rows.start : bottom - rows.start, left : left + box.width]
        inside = slice(top - box.y, bottom - box.y)
        good = None if self.region.pixels is None else self.region.pixels[inside]
        sums = self._sums(part, None if good is None or good.all() else good)
        if self.across:
            self._keep(self.parts.setdefault(top, {}), sums, frames, slice(None))
        else:
            self._keep(self.whole, sums, frames, inside)

    def end(self) -> Sums:
        """Return sums of each line of each frame of the block, arrays (n, length)."""
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
        """Return sums of each line of each of (n, height, width)."""
        box = self.region.box
        self.begin(len(frames))
        with np.errstate(all="ignore"):  # inf - inf; squares beyond float64
            for deep, tall in tiles(len(frames), box.height, box.width) if box.area else ():
                rows = slice(tall.start + box.y, tall.stop + box.y)
                self.strip(frames[deep, rows], deep, rows, slice(0, frames.shape[2]))
        return self.end()

    def _keep(self, kept: Sums, sums: Sums, frames: slice, lines: slice) -> None:
        for key, values in sums.items():
            if key not in kept:
                kept[key] = np.empty((self.frames, self.length), values.dtype)
            kept[key][frames, lines] = values

    def _sums(self, pixels: Array, good: NDArray[np.bool_] | None) -> Sums:
        """Return sums (n, lines) of pixels (n, height, width); ``good`` (height, width) are those that count."""
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
        for key, limit in self.limits.items():
            sums[key] = tile.reaching(limit)
        return sums

    def _scratch(self, size: int) -> NDArray[np.float64]:
        if self.scratch.size < size:
            self.scratch = np.empty(size)
        return self.scratch[:size]


@dataclass(frozen=True)
class _Tile:
    """Pixels (n, height, width), and the axis along which they are summed.

    ``there``: those that count, of a shape that spreads over the pixels; None = all.
    """

    pixels: Array
    there: NDArray[np.bool_] | None
    axis: int

    def _lines(self, values: Array) -> Array:
        """Values of each line of one frame, or of each, for each frame."""
        frames, height, width = self.pixels.shape
        return np.broadcast_to(values, (frames, width if self.axis == 1 else height))

    def count(self) -> Array:
        """Return the number of pixels that count, of each line."""
        if self.there is None:
            return self._lines(np.asarray(self.pixels.shape[self.axis]))
        return self._lines(np.count_nonzero(self.there, axis=self.axis - 3))

    def wide(self, memory: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a copy in float64, 0 where a pixel doesn't count."""
        wide = memory.reshape(self.pixels.shape)
        np.copyto(wide, self.pixels)
        self.clear(wide)
        return wide

    def clear(self, values: NDArray[np.float64]) -> None:
        """Make 0 what doesn't count."""
        if self.there is not None:
            np.copyto(values, 0.0, where=~self.there)

    def filled(self, value: Any) -> Array:
        """Return the pixels, ``value`` of their dtype where they don't count."""
        return self.pixels if self.there is None else np.where(self.there, self.pixels, value)

    def reaching(self, limit: Any) -> Array:
        """Return the number of pixels at or above a limit, of each line; None: no pixel can be."""
        if limit is None:
            return self._lines(np.asarray(0))
        high = self.pixels >= limit
        return np.asarray(np.count_nonzero(high if self.there is None else high & self.there, axis=self.axis))


@node("roi_profiles")
class RoiProfiles(Reduce):
    """Statistics along one axis of regions of interest."""

    changeable: ClassVar[tuple[str, ...]] = ("rois",)

    strips: ClassVar[bool] = True
    parts: ClassVar[bool] = True

    rois: Mapping[str, Any] = param("The regions, by name; columns are called <name>_<statistic>.", RECTS)
    coordinates: str = param("(0, 0) is the first pixel of the input, or of the detector.", COORDINATES, "input")
    direction: str = param(
        "horizontal = a value per column; vertical = a value per row.", Choice(("horizontal", "vertical")), "horizontal"
    )
    statistics: tuple[str | Above, ...] = param(
        "Which statistics.", statistic_columns.LINES_SHAPE, statistic_columns.DEFAULT
    )

    def looked_at(self, inputs: Inputs) -> int:
        """See `Node.looked_at`."""
        return looked_at(self.rois, self.coordinates, inputs.spec)

    def infer(self, inputs: Inputs) -> TableSpec:
        """See `Node.infer`."""
        spec, rois, (names, level) = inputs.spec, list(self.rois), named(self.statistics)
        lengths = dict(zip(rois, self._lengths(spec), strict=True))
        alike = [roi for roi in rois if lengths[roi] == lengths[rois[0]]]
        return TableSpec(
            statistic_columns.columns(rois, names, spec),
            statistic_columns.default(rois, names),
            statistic_columns.units(rois, names),
            {f"{roi}_{name}": length for roi, length in lengths.items() for name in names},
            statistic_columns.labels(rois, names, level),
            statistic_columns.others(alike, names),
        )

    def warnings(self, inputs: Inputs) -> Sequence[NodeMisuse]:
        """See `Node.warnings`: regions of masked pixels only, and rects that cut through binned pixels."""
        return statistic_columns.doubtful(self.rois, self.coordinates, inputs.spec)

    def outlines(self, spec: FrameSpec) -> Mapping[str, Outline]:
        """See `Node.outlines`."""
        return outlines(self.rois, self.coordinates, spec)

    def reads(self, spec: FrameSpec) -> Sequence[Rect]:
        """See `Reduce.reads`."""
        return [region.box for region in regions(self.rois, self.coordinates, spec).values()]

    def costs_as(self, spec: FrameSpec) -> str:
        """See `Reduce.costs_as`."""
        return "statistics"

    def bind(self, inputs: Inputs) -> StripReducer:
        """See `Reduce.bind`."""
        spec = inputs.spec
        names, level = named(self.statistics)
        keys, across = statistic_columns.needs(names), self.direction == "horizontal"
        found = regions(self.rois, self.coordinates, spec).values()
        return _Profiles([LineSums(region, spec, keys, across=across, level=level) for region in found])

    def merge(self, one: Partial, other: Partial) -> Partial:
        """See `Reduce.merge`."""
        numbers = one["frame_number"]
        parts = zip(_by_roi(one), _by_roi(other), strict=True)
        return _partial(numbers, [statistics.merge(mine, yours) for mine, yours in parts])

    def finish(self, partial: Partial) -> Mapping[str, NDArray[Any]]:
        """See `Reduce.finish`."""
        with np.errstate(all="ignore"):  # NaN without pixels; float64 values beyond float32
            columns = {
                f"{roi}_{name}": column(name, sums)
                for roi, sums in zip(self.rois, _by_roi(partial), strict=True)
                for name in named(self.statistics)[0]
            }
        return columns | {"frame_number": partial["frame_number"]}

    def _lengths(self, spec: FrameSpec) -> list[int]:
        """Return the length of each ROI's profile, in pixels."""
        boxes = [region.whole for region in regions(self.rois, self.coordinates, spec).values()]
        return [box.width if self.direction == "horizontal" else box.height for box in boxes]


class _Profiles:
    """See `StripReducer`."""

    def __init__(self, regions: Sequence[LineSums]) -> None:
        self.regions = regions

    def step(self, block: Block, received_ns: int) -> Partial:
        """Partial: the keys of `statistics` for each ROI, "<n> <key>", each (n, length), and ``frame_number``."""
        return _partial(block.numbers.copy(), [region(block.frames) for region in self.regions])

    def begin(self, frames: int) -> None:
        """See `StripReducer.begin`."""
        for region in self.regions:
            region.begin(frames)

    def strip(self, pixels: Array, frames: slice, rows: slice, columns: slice) -> None:
        """See `StripReducer.strip`."""
        for region in self.regions:
            region.strip(pixels, frames, rows, columns)

    def end(self, block: Block, received_ns: int) -> Partial:
        """See `StripReducer.end`."""
        return _partial(block.numbers.copy(), [region.end() for region in self.regions])


def _partial(numbers: NDArray[np.uint64], sums: Sequence[Sums]) -> Partial:
    named = {f"{i} {key}": values for i, one in enumerate(sums) for key, values in one.items()}
    return {"frame_number": numbers} | named


def _by_roi(partial: Partial) -> list[Sums]:
    """Return the sums of each ROI, in their order."""
    found: dict[str, Sums] = {}
    for name, values in partial.items():
        number, _, key = name.partition(" ")
        if key:
            found.setdefault(number, {})[key] = values
    return list(found.values())
