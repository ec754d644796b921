"""Node `sparsify`: keeps the pixels above a threshold, as sparse frames.

A pixel is kept where it is greater than ``above``, in the units of the pixels; in float frames ``above`` is rounded to
their dtype first. Masked pixels are left out: those of the static mask, and of single frames NaN and invalid values. Of
each one is kept

index      uint32, its place in the whole detector image, y * width + x, however the frames were cut, flipped and
           rotated: what several receivers or regions keep goes together
intensity  the input's dtype, as it is

Pixels of a frame come row by row as the frame is shown. Binned pixels have no place of their own in the detector, and
are refused. Sparse frames are saved by `io_hdf5`; other nodes take dense frames.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Number, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, FrameSpec, SparsePixels, SparseSpec
from lima2cli.kernels.masked import finder
from lima2cli.kernels.strips import tiles
from lima2cli.nodes.base import Inputs, Map, node


@node("sparsify")
class Sparsify(Map):
    """Keeps the pixels above a threshold, as sparse frames."""

    changeable: ClassVar[tuple[str, ...]] = ("above",)

    parts: ClassVar[bool] = True

    above: float = param("Pixels greater than this are kept.", Number())

    def infer(self, inputs: Inputs) -> SparseSpec:
        """See `Node.infer`."""
        spec = inputs.spec
        width, height = spec.detector
        if spec.view.binning != (1, 1):
            raise NodeMisuse("edge-mismatch", "binned pixels have no place of their own in the detector image")
        if width * height > 2**32:
            raise NodeMisuse("edge-mismatch", f"the index of {width} x {height} pixels does not fit in uint32")
        return SparseSpec(**{field.name: getattr(spec, field.name) for field in fields(FrameSpec)})

    def bind(self, inputs: Inputs) -> Callable[[Array], SparsePixels]:
        """See `Map.bind`."""
        return _Above(self.above, inputs.spec)


class _Above:
    """Frames (n, height, width) to their pixels above a threshold."""

    def __init__(self, above: float, spec: FrameSpec) -> None:
        self._level = _level(above, np.dtype(spec.dtype))
        self._invalid = finder(spec.invalid, spec.dtype, nan=False)
        self._good = None if spec.mask is None or not spec.mask.any() else ~spec.mask
        self._index = detector_index(spec)
        self._kept = np.empty((0, *spec.shape), bool)

    def __call__(self, frames: Array) -> SparsePixels:
        count, height, width = frames.shape
        if count > len(self._kept):
            self._kept = np.empty((count, height, width), bool)
        kept = self._kept[:count]
        for deep, rows in tiles(count, height, width):
            self._compare(frames[deep, rows], kept[deep, rows], rows)
        place = np.flatnonzero(kept)
        frame_ptr = np.searchsorted(place, np.arange(count + 1) * (height * width))
        place -= np.repeat(np.arange(count) * (height * width), np.diff(frame_ptr))
        return SparsePixels(frames[kept], self._index[place], frame_ptr.astype(np.uint64))

    def _compare(self, pixels: Array, kept: NDArray[np.bool_], rows: slice) -> None:
        if self._level is None:
            kept[...] = True
        else:
            np.greater(pixels, self._level, out=kept)  # false for NaN
        if self._good is not None:
            kept &= self._good[rows]
        if self._invalid is not None:
            kept &= ~self._invalid(pixels)


def detector_index(spec: FrameSpec) -> NDArray[np.uint32]:
    """Flat index in the whole detector image of each pixel of a frame, row by row, (height * width,)."""
    area, (width, _) = spec.view.area, spec.detector
    rows, columns = np.arange(area.y, area.bottom, dtype=np.int64), np.arange(area.x, area.right, dtype=np.int64)
    return np.ascontiguousarray(spec.view.turn(rows[:, None] * width + columns).astype(np.uint32)).ravel()


def _level(above: float, dtype: "np.dtype[Any]") -> Any:
    """Return the threshold in the dtype of the pixels; None where all are above it."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(above)
    limits = np.iinfo(dtype)
    if above < limits.min:
        return None
    return dtype.type(limits.max if above >= limits.max else math.floor(above))
