"""Modules of a detector, the rectangles that they cover, and its operations on frames (accumulate, bin, cut, flip)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from math import gcd

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.declare import Either, Integer, ListOf, Shape, Table, pair, param
from lima2cli.detectors.base import Operations
from lima2cli.detectors.sources import BLOCK_BYTES, PixelSource, Pool
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, DatasetInfo, DetectorInfo, Operated
from lima2cli.geometry import Rect
from lima2cli.kernels.masked import MaskedSums, carried, of_sums
from lima2cli.view import View

LARGEST = 65536
"""Pixels of an image along one axis."""


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """Size of the whole image, gaps included."""

    width: int = param("Columns.", Integer(1, LARGEST))
    height: int = param("Rows.", Integer(1, LARGEST))


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Pixels between neighbouring modules."""

    x: int = param("Columns between modules.", Integer(0, LARGEST), 0)
    y: int = param("Rows between modules.", Integer(0, LARGEST), 0)


GAP: Shape = pair(Gap, Integer(0, LARGEST))


@dataclass(frozen=True, kw_only=True)
class ModuleGrid:
    """Equal modules from the top left corner on, numbered row by row."""

    columns: int = param("Modules side by side.", Integer(1, 256), 1)
    rows: int = param("Modules one below the other.", Integer(1, 256), 1)
    width: int = param("Columns of pixels of a module.", Integer(1, LARGEST))
    height: int = param("Rows of pixels of a module.", Integer(1, LARGEST))
    gap: Gap = param("Pixels between neighbours.", GAP, Gap())

    def rects(self) -> list[Rect]:
        """Return one rectangle per module."""
        right, down = self.width + self.gap.x, self.height + self.gap.y
        return [
            Rect(column * right, row * down, self.width, self.height)
            for row in range(self.rows)
            for column in range(self.columns)
        ]


@dataclass(frozen=True, kw_only=True)
class Module:
    """Rectangle of the image that a module covers, in pixels."""

    x: int = param("First column.", Integer(0, LARGEST))
    y: int = param("First row.", Integer(0, LARGEST))
    width: int = param("Columns.", Integer(1, LARGEST))
    height: int = param("Rows.", Integer(1, LARGEST))


Modules = ModuleGrid | tuple[Module, ...] | None

MODULES: Shape = Either((Table(ModuleGrid), ListOf(Table(Module), minimum=1)))
"""A grid, or a list of rectangles."""


def lay_out_modules(modules: Modules, image: Rect) -> tuple[Rect, ...]:
    """Return the rectangles of all modules; None is one that covers the image.

    Raises:
        NodeMisuse: (module-outside, module-overlap) with a key that begins with ``modules``.
    """
    if modules is None:
        return (image,)
    if isinstance(modules, ModuleGrid):
        rects = modules.rects()
        _check_inside(rects[-1:], image, ("modules",), len(rects) - 1)
        return tuple(rects)
    rects = [Rect(module.x, module.y, module.width, module.height) for module in modules]
    for i, rect in enumerate(rects):
        _check_inside([rect], image, ("modules", i), i)
    _check_apart(rects)
    return tuple(rects)


def _check_inside(rects: list[Rect], image: Rect, key: tuple[str | int, ...], number: int) -> None:
    for rect in rects:
        if not image.contains(rect):
            size = f"at least {rect.right} x {rect.bottom}"
            raise NodeMisuse(
                "module-outside",
                f"module {number} ({rect}) lies beyond the image of {image.width} x {image.height} pixels",
                key,
                help=f"the image must be {size}" if key == ("modules",) else None,
            )


def _check_apart(rects: list[Rect]) -> None:
    order = sorted(range(len(rects)), key=lambda i: rects[i].y)
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            if rects[j].y >= rects[i].bottom:
                break  # so are all after it
            if (rects[i] & rects[j]).area:
                first, second = sorted((i, j))
                raise NodeMisuse(
                    "module-overlap",
                    f"modules {first} ({rects[first]}) and {second} ({rects[second]}) overlap",
                    ("modules", second),
                )


def check_gap_value(value: float, datasets: Sequence[DatasetInfo]) -> None:
    """Raise `NodeMisuse` (gap-value) where a dataset's dtype cannot hold the value of pixels without a module."""
    for dataset in datasets:
        dtype = np.dtype(dataset.dtype)
        if dtype.kind == "f":
            fits = math.isnan(value) or abs(value) <= float(np.finfo(dtype).max)
        else:
            limits = np.iinfo(dtype)
            fits = math.isfinite(value) and value == int(value) and limits.min <= value <= limits.max
        if not fits:
            message = f"{value} does not fit the pixels of dataset {dataset.name} ({dataset.dtype})"
            help = "nan is possible in frames of floats only" if math.isnan(value) else None
            raise NodeMisuse("gap-value", message, ("gap_value",), help)


def operate(info: DetectorInfo, operations: Operations) -> DetectorInfo:
    """Return the detector as its own operations show it: size, modules, dtypes of sums, pixel size.

    A module keeps the bins all of whose pixels it covers; other bins are gaps. Sums of b bits become as wide as
    ``b + ceil(log2(summed))`` bits need.

    Raises:
        NodeMisuse: (binning-too-large, roi-outside, sum-too-wide, module-lost) with a key of `acquisition`.
    """
    if operations == Operations():
        return info
    view = _view(info, operations)
    (height, width), (x, y) = view.shape, operations.binning
    summed = x * y * operations.accumulate
    modules = tuple(view.inside(module) for module in info.modules)
    if not any(module.area for module in modules):
        message = f"no module covers a pixel of the {width} x {height} that are left"
        raise NodeMisuse("module-lost", message, ("roi",) if operations.roi is not None else ("binning",))
    return replace(
        info,
        width=width,
        height=height,
        modules=modules,
        datasets=tuple(_summed(dataset, summed, operations) for dataset in info.datasets),
        pixel_size=None if info.pixel_size is None else (info.pixel_size[0] * x, info.pixel_size[1] * y),
        saturation=info.saturation if summed == 1 else None,
        operated=Operated(info, view, operations.accumulate),
    )


def _view(info: DetectorInfo, operations: Operations) -> View:
    """Return the part of the sensor that is shown, and how."""
    (x, y), image, roi = operations.binning, info.image, operations.roi
    if x > image.width or y > image.height:
        message = f"no bin of {x} x {y} pixels fits in an image of {image.width} x {image.height}"
        raise NodeMisuse("binning-too-large", message, ("binning",))
    view = View(image).bin(x, y)
    height, width = view.shape
    if roi is not None:
        if not Rect(0, 0, width, height).contains(roi):
            binned = f", binned {x} x {y}" if x * y > 1 else ""
            message = f"the part of the detector, {roi}, leaves its {width} x {height} pixels{binned}"
            raise NodeMisuse("roi-outside", message, ("roi",), help=f"x up to {width - 1}, y up to {height - 1}")
        view = view.cut(roi)
    return view.flipped(operations.flip)


def _summed(dataset: DatasetInfo, summed: int, operations: Operations) -> DatasetInfo:
    """Return a dataset of sums of so many pixels."""
    frames = None if dataset.frames is None else dataset.frames // operations.accumulate
    dtype = np.dtype(dataset.dtype)
    if summed == 1 or dtype.kind == "f":
        rule = dataset.invalid if summed == 1 else carried(dataset.invalid, dataset.dtype, dataset.dtype)
        return replace(dataset, frames=frames, invalid=rule)
    bits = dataset.bits + (summed - 1).bit_length()
    if bits > 64:
        message = f"sums of {summed} pixels of dataset {dataset.name} have up to {bits} bits; there are 64"
        raise NodeMisuse("sum-too-wide", message, ("accumulate",) if operations.accumulate > 1 else ("binning",))
    size = next(size for size in (1, 2, 4, 8) if size >= dtype.itemsize and 8 * size >= bits)
    wide = f"{'u' * (dtype.kind == 'u')}int{8 * size}"
    rule, _ = of_sums(dataset.invalid, dataset.dtype, wide)
    return replace(dataset, dtype=wide, bits=bits, frames=frames, invalid=rule)


def operated(source: PixelSource, info: DetectorInfo, dataset: int, module: int) -> PixelSource:
    """Return the source of a module of ``info``, which `operate` made, from one of the same module of its sensor.

    What repeats is worked out beforehand, so that it costs nothing while frames are acquired.
    """
    assert info.operated is not None
    made = _Operated(source, info.operated, module, info.operated.sensor.datasets[dataset], info.datasets[dataset])
    if not isinstance(source, Pool):
        return made
    return Pool(*made.all(len(source.frames)))


class _Operated(PixelSource):
    """A source, see `operated`, of what is computed as it is asked for.

    A sum with an invalid pixel is none.

    ``before`` and ``after`` describe the dataset without and with the operations.
    """

    def __init__(
        self, source: PixelSource, how: Operated, number: int, before: DatasetInfo, after: DatasetInfo
    ) -> None:
        module, dtype = how.sensor.modules[number], after.dtype
        kept = how.view.behind(how.view.inside(module))
        self._source, self._exposures, self._dtype = source, how.exposures, dtype
        self._bins = MaskedSums(before.invalid, before.dtype, dtype)
        self._frames = MaskedSums(after.invalid, dtype, dtype)
        self._view = replace(how.view, area=kept)
        self._cut = (slice(None), *kept.within(module))
        frame_bytes = kept.area * np.dtype(dtype).itemsize
        self._most = max(1, BLOCK_BYTES // frame_bytes)

    def get(self, numbers: Sequence[int]) -> Array:
        """See `PixelSource`."""
        numbers = numbers[: self._most]
        if self._exposures == 1:
            return self._shown(self._source.get(numbers))
        return np.stack([self._sum(int(number)) for number in numbers])

    def missing(self, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """See `PixelSource`: those of whose exposures one is."""
        exposures = np.asarray(numbers, np.int64)[:, np.newaxis] * self._exposures + np.arange(self._exposures)
        missing = self._source.missing(exposures.ravel().tolist())
        return None if missing is None else np.asarray(missing.reshape(exposures.shape).any(axis=1))

    def all(self, period: int) -> tuple[Array, NDArray[np.bool_] | None]:
        """Return as many frames as there are before they repeat, and which of them are missing.

        The source repeats after ``period`` frames.
        """
        count = period // gcd(period, self._exposures)
        frames = np.empty((count, *self._view.shape), self._dtype)
        done = 0
        while done < count:
            part = self.get(range(done, count))
            frames[done : done + len(part)] = part
            done += len(part)
        return frames, self.missing(range(count))

    def _sum(self, number: int) -> Array:
        """Return the sum of the exposures of one frame, (height, width)."""
        exposures = range(number * self._exposures, (number + 1) * self._exposures)
        total, added = np.zeros(self._view.shape, self._dtype), 0
        masked: list[Array] = []
        while added < self._exposures:
            part = self._shown(self._source.get(exposures[added:][: self._most]))
            total += part.sum(axis=0, dtype=self._dtype)
            added += len(part)
            if self._frames.find is not None:
                masked.extend(frame for frame in part if self._frames.find(frame).any())
        for frame in reversed(masked):  # the first one decides
            self._frames.put(frame, total)
        return total

    def _shown(self, frames: Array) -> Array:
        """Return frames cut, binned and flipped, (n, height, width) with contiguous rows."""
        frames = frames[self._cut]
        x, y = self._view.binning
        if (x, y) != (1, 1):
            out = np.zeros((len(frames), *self._view.bins[::-1]), self._dtype)
            for column in range(x):
                for row in range(y):
                    out += frames[:, row::y, column::x]
            for column, row in np.ndindex(x, y) if self._bins.find is not None else ():
                self._bins.put(frames[:, row::y, column::x], out)
            frames = out
        elif self._bins.find is not None and frames.dtype != self._dtype:
            wide = frames.astype(self._dtype)
            self._bins.put(frames, wide)
            frames = wide
        return np.ascontiguousarray(self._view.turn(frames))
