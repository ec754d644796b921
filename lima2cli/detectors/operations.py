"""What a detector does to frames itself (accumulate, bin, cut, flip): to its description, and, emulated, to frames."""

from collections.abc import Sequence
from dataclasses import replace
from math import gcd

import numpy as np

from lima2cli.detectors.base import Operations
from lima2cli.detectors.sources import BLOCK_BYTES, Pool, Source
from lima2cli.errors import Misfit
from lima2cli.geometry import Rect
from lima2cli.spec import Array, DatasetInfo, DetectorInfo, Operated
from lima2cli.view import View


def operate(info: DetectorInfo, operations: Operations) -> DetectorInfo:
    """The detector as its own operations show it: size, modules, dtypes of sums, pixel size.

    A module keeps the bins all of whose pixels it covers; other bins are gaps. Sums of b bits become as wide as
    ``b + ceil(log2(summed))`` bits need. Raises `Misfit` (binning-too-large, roi-outside, sum-too-wide, module-lost)
    with a key of `acquisition`.
    """
    if operations == Operations():
        return info
    view = _view(info, operations)
    (height, width), (x, y) = view.shape, operations.binning
    summed = x * y * operations.accumulate
    modules = tuple(view.inside(module) for module in info.modules)
    if not any(module.area for module in modules):
        message = f"no module covers a pixel of the {width} x {height} that are left"
        raise Misfit("module-lost", message, ("roi",) if operations.roi is not None else ("binning",))
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
    """The part of the sensor that is shown, and how."""
    (x, y), image, roi = operations.binning, info.image, operations.roi
    if x > image.width or y > image.height:
        message = f"no bin of {x} x {y} pixels fits in an image of {image.width} x {image.height}"
        raise Misfit("binning-too-large", message, ("binning",))
    view = View(image).bin(x, y)
    height, width = view.shape
    if roi is not None:
        if not Rect(0, 0, width, height).contains(roi):
            binned = f", binned {x} x {y}" if x * y > 1 else ""
            message = f"the part of the detector, {roi}, leaves its {width} x {height} pixels{binned}"
            raise Misfit("roi-outside", message, ("roi",), help=f"x up to {width - 1}, y up to {height - 1}")
        view = view.cut(roi)
    return view.flipped(operations.flip)


def _summed(dataset: DatasetInfo, summed: int, operations: Operations) -> DatasetInfo:
    """A dataset of sums of so many pixels."""
    frames = None if dataset.frames is None else dataset.frames // operations.accumulate
    dtype = np.dtype(dataset.dtype)
    if summed == 1 or dtype.kind == "f":
        return replace(dataset, frames=frames)
    bits = dataset.bits + (summed - 1).bit_length()
    if bits > 64:
        message = f"sums of {summed} pixels of dataset {dataset.name} have up to {bits} bits; there are 64"
        raise Misfit("sum-too-wide", message, ("accumulate",) if operations.accumulate > 1 else ("binning",))
    size = next(size for size in (1, 2, 4, 8) if size >= dtype.itemsize and 8 * size >= bits)
    return replace(dataset, dtype=f"{'u' * (dtype.kind == 'u')}int{8 * size}", bits=bits, frames=frames)


def operated(source: Source, info: DetectorInfo, dataset: int, module: int) -> Source:
    """The source of a module of ``info``, which `operate` made, from one of the same module of its sensor.

    What repeats is worked out beforehand, so that it costs nothing while frames are acquired.
    """
    assert info.operated is not None
    made = _Operated(source, info.operated, info.operated.sensor.modules[module], info.datasets[dataset].dtype)
    if not isinstance(source, Pool):
        return made
    return Pool(made.all(len(source.frames)))


class _Operated:
    """See `operated`: what is worked out as it is asked for."""

    def __init__(self, source: Source, how: Operated, module: Rect, dtype: str) -> None:
        kept = how.view.behind(how.view.inside(module))
        self._source, self._exposures, self._dtype = source, how.exposures, dtype
        self._view = replace(how.view, area=kept)
        self._cut = (slice(None), *kept.within(module))
        frame_bytes = kept.area * np.dtype(dtype).itemsize
        self._most = max(1, BLOCK_BYTES // frame_bytes)

    def get(self, numbers: Sequence[int]) -> Array:
        """See `Source`."""
        numbers = numbers[: self._most]
        if self._exposures == 1:
            return self._shown(self._source.get(numbers))
        return np.stack([self._sum(int(number)) for number in numbers])

    def all(self, period: int) -> Array:
        """As many frames as there are before they repeat, of a source that repeats after ``period``."""
        count = period // gcd(period, self._exposures)
        frames = np.empty((count, *self._view.shape), self._dtype)
        done = 0
        while done < count:
            part = self.get(range(done, count))
            frames[done : done + len(part)] = part
            done += len(part)
        return frames

    def _sum(self, number: int) -> Array:
        """The exposures of one frame, (height, width)."""
        exposures = range(number * self._exposures, (number + 1) * self._exposures)
        total, added = np.zeros(self._view.shape, self._dtype), 0
        while added < self._exposures:
            part = self._shown(self._source.get(exposures[added:][: self._most]))
            total += part.sum(axis=0, dtype=self._dtype)
            added += len(part)
        return total

    def _shown(self, frames: Array) -> Array:
        """Cut, binned and flipped, (n, height, width) with contiguous rows."""
        frames = frames[self._cut]
        x, y = self._view.binning
        if (x, y) != (1, 1):
            out = np.zeros((len(frames), *self._view.bins[::-1]), self._dtype)
            for column in range(x):
                for row in range(y):
                    out += frames[:, row::y, column::x]
            frames = out
        return np.ascontiguousarray(self._view.turn(frames))
