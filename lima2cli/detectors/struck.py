"""Sources of pixels with faults: bad pixels, frames with bytes at random, frames that are not given."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lima2cli.detectors.faults import Faults
from lima2cli.detectors.scenes import largest
from lima2cli.detectors.sources import Pool, Source
from lima2cli.geometry import Rect
from lima2cli.spec import Array, DetectorInfo

Bad = tuple[NDArray[np.int64], NDArray[np.int64], Array]
"""Rows, columns and values of the bad pixels of a module, (n,) each."""


def with_bad_pixels(
    sources: Mapping[tuple[int, int], Source], info: DetectorInfo, faults: Faults
) -> Mapping[tuple[int, int], Source]:
    """The same sources, by (dataset, module), with the hot and dead pixels of the detector."""
    if faults.hot is None and faults.dead is None:
        return sources
    struck: dict[tuple[int, int], Source] = {}
    for (dataset, module), source in sources.items():
        bad = _bad_pixels(info, faults, dataset, info.modules[module])
        if isinstance(source, Pool):
            frames = source.frames.copy()
            frames[:, bad[0], bad[1]] = bad[2]
            struck[dataset, module] = Pool(frames, source.absent)
        else:
            struck[dataset, module] = _WithBadPixels(source, bad)
    return struck


def _bad_pixels(info: DetectorInfo, faults: Faults, dataset: int, module: Rect) -> Bad:
    found: list[tuple[NDArray[np.int64], int]] = []
    if faults.hot is not None:
        found.append((faults.pixels(faults.hot, info.image.area), largest(info.datasets[dataset])))
    if faults.dead is not None:
        found.append((faults.pixels(faults.dead, info.image.area), 0))
    places = np.concatenate([places for places, _ in found])
    values = np.concatenate([np.full(len(places), value, info.datasets[dataset].dtype) for places, value in found])
    rows, columns = places // info.width - module.y, places % info.width - module.x
    inside = (rows >= 0) & (rows < module.height) & (columns >= 0) & (columns < module.width)
    return rows[inside], columns[inside], values[inside]


class _WithBadPixels(Source):
    """Frames that are made or read as they are asked for, with bad pixels."""

    def __init__(self, source: Source, bad: Bad) -> None:
        self._source, self._bad = source, bad

    def get(self, numbers: Sequence[int]) -> Array:
        """See `Source`."""
        frames, (rows, columns, values) = self._source.get(numbers), self._bad
        if not len(rows):
            return frames
        frames = frames.copy()
        frames[:, rows, columns] = values
        return frames

    def missing(self, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """See `Source`."""
        return self._source.missing(numbers)


class Struck(Source):
    """Frames of a module of ``info`` as it gives them: some are bytes at random, of some there is nothing."""

    def __init__(self, source: Source, faults: Faults, info: DetectorInfo, dataset: int, module: int) -> None:
        self._source, self._faults = source, faults
        self._dataset, self._module, self._gap = dataset, module, info.gap_value

    def get(self, numbers: Sequence[int]) -> Array:
        """See `Source`."""
        frames = self._source.get(numbers)
        asked = np.asarray(numbers[: len(frames)], np.int64)
        corrupted = self._faults.corrupts(self._module, asked)
        missing = self._faults.missing(self._module, asked)
        if corrupted is None and missing is None:
            return frames
        frames = frames.copy()
        if corrupted is not None:
            for place in np.flatnonzero(corrupted):
                noise = self._faults.noise(self._dataset, self._module, int(asked[place]), frames[place].nbytes)
                frames[place] = noise.view(frames.dtype).reshape(frames[place].shape)
        if missing is not None:
            frames[missing] = self._gap
        return frames

    def missing(self, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """See `Source`."""
        failed = self._faults.missing(self._module, np.asarray(numbers, np.int64))
        absent = self._source.missing(numbers)
        if failed is None or absent is None:
            return absent if failed is None else failed
        return failed | absent
