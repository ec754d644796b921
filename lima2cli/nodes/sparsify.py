"""Node `sparsify`: keeps the pixels above a level, as sparse frames.

A pixel is kept where it is greater than ``above``:

number             in the units of the pixels; in float frames it is rounded to their dtype first
file               an image of levels, as [calibration images](#calibration-images) are: one for each pixel, rounded to
                   the dtype of float frames; where it is NaN no pixel is kept
`{sigma, noise}`   mean + max(sigma * s, noise) of the background at this pixel, mean and standard deviation s of its
                   ring about the beam, after clipping; see [`peaks`](#peaks), ``background: radial``. It needs
                   `metadata.beam_center`, and whole frames

Masked pixels are left out: those of the static mask, and of single frames NaN and invalid values. Of each one is kept

index      uint32, its place in the whole detector image, y * width + x, however the frames were cut, flipped and
           rotated: what several receivers or regions keep goes together
intensity  the input's dtype, as it is

Pixels of a frame come row by row as the frame is shown. Binned pixels have no place of their own in the detector, and
are refused. With ``{sigma}`` mean and standard deviation of all rings are saved with each frame, float32, so that the
frame can be restored with its background: `lima2 densify`. Sparse frames are saved by `io_hdf5`; other nodes take dense
frames.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.declare import Either, FileReference, Number, Table, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, FrameSpec, SparsePixels, SparseSpec
from lima2cli.kernels.masked import finder
from lima2cli.kernels.radial import RadialBackground, rings
from lima2cli.kernels.strips import tiles
from lima2cli.nodes.base import Inputs, Map, node
from lima2cli.nodes.calibration import calibration


@dataclass(frozen=True, kw_only=True)
class AboveBackground:
    """A level over the background of rings about the beam."""

    sigma: float = param("Standard deviations above the mean of the ring.", Number(0))
    noise: float = param("Least height above the mean, in the units of the pixels.", Number(0), 0.0)


@node("sparsify")
class Sparsify(Map):
    """Keeps the pixels above a level, as sparse frames."""

    changeable: ClassVar[tuple[str, ...]] = ("above",)

    parts: ClassVar[bool] = True

    above: float | str | AboveBackground = param(
        "Pixels greater than this are kept: a number, an image of levels, or a height over the background.",
        Either((Number(), FileReference(), Table(AboveBackground))),
    )

    def infer(self, inputs: Inputs) -> SparseSpec:
        """See `Node.infer`."""
        spec, radial = inputs.spec, isinstance(self.above, AboveBackground)
        width, height = spec.detector
        if spec.view.binning != (1, 1):
            raise NodeMisuse("edge-mismatch", "binned pixels have no place of their own in the detector image")
        if width * height > 2**32:
            raise NodeMisuse("edge-mismatch", f"the index of {width} x {height} pixels does not fit in uint32")
        if radial and spec.whole is not None:
            message = "rings about the beam need full frames, these are parts of them"
            raise NodeMisuse("edge-mismatch", message, ("above",), "reconstruct them before")
        if radial and spec.experiment.beam_center is None:
            message = "rings about the beam need its centre, which is not known"
            raise NodeMisuse("geometry-missing", message, ("above",), "add `metadata.beam_center`")
        if isinstance(self.above, str):
            calibration(self.above, inputs, "above", "mean")
        return SparseSpec(**{field.name: getattr(spec, field.name) for field in fields(FrameSpec)}, background=radial)

    def bind(self, inputs: Inputs) -> Callable[[Array], SparsePixels]:
        """See `Map.bind`."""
        spec, above = inputs.spec, self.above
        if isinstance(above, AboveBackground):
            return _AboveBackground(above, spec)
        if isinstance(above, str):
            image = calibration(above, inputs, "above", "mean")
            return _Above(*_levels(np.broadcast_to(image, spec.shape), np.dtype(spec.dtype)), spec)
        return _Above(_level(above, np.dtype(spec.dtype)), None, spec)


class _Chosen:
    """Frames (n, height, width) to chosen pixels of them."""

    def __init__(self, spec: FrameSpec) -> None:
        self._invalid = finder(spec.invalid, spec.dtype, nan=False)
        self._good = None if spec.mask is None or not spec.mask.any() else ~spec.mask
        self._index = detector_index(spec)
        self._kept = np.empty((0, *spec.shape), bool)

    def __call__(self, frames: Array) -> SparsePixels:
        """Return the pixels of the frames."""
        count, height, width = frames.shape
        if count > len(self._kept):
            self._kept = np.empty((count, height, width), bool)
        kept, background = self._kept[:count], self._background(frames)
        for deep, rows in tiles(count, height, width):
            self._choose(frames[deep, rows], kept[deep, rows], deep, rows)
            self._leave_out(frames[deep, rows], kept[deep, rows], rows)
        place = np.flatnonzero(kept)
        frame_ptr = np.searchsorted(place, np.arange(count + 1) * (height * width))
        place -= np.repeat(np.arange(count) * (height * width), np.diff(frame_ptr))
        return SparsePixels(frames[kept], self._index[place], frame_ptr.astype(np.uint64), background)

    def _background(self, frames: Array) -> NDArray[np.float32] | None:
        """Return what comes with each frame, see `SparseBlock`; called before `_choose`."""
        return None

    def _choose(self, pixels: Array, kept: NDArray[np.bool_], frames: slice, rows: slice) -> None:
        """Choose among some rows of some frames; false for NaN."""
        raise NotImplementedError

    def _leave_out(self, pixels: Array, kept: NDArray[np.bool_], rows: slice) -> None:
        if self._good is not None:
            kept &= self._good[rows]
        if self._invalid is not None:
            kept &= ~self._invalid(pixels)


class _Above(_Chosen):
    """Pixels greater than a number, or each than its own, as `_level` and `_levels` give it."""

    def __init__(self, level: Any, never: NDArray[np.bool_] | None, spec: FrameSpec) -> None:
        super().__init__(spec)
        self._level, self._least = level, np.ndim(level) > 0 and np.dtype(spec.dtype).kind != "f"
        if never is not None and never.any():
            self._good = ~never if self._good is None else self._good & ~never

    def _choose(self, pixels: Array, kept: NDArray[np.bool_], frames: slice, rows: slice) -> None:
        if self._level is None:
            kept[...] = True
        elif self._least:
            np.greater_equal(pixels, self._level[rows], out=kept)
        else:
            np.greater(pixels, self._level[rows] if np.ndim(self._level) else self._level, out=kept)


class _AboveBackground(_Chosen):
    """Pixels above the background of their ring."""

    def __init__(self, above: AboveBackground, spec: FrameSpec) -> None:
        super().__init__(spec)
        self._above = above
        self._ring = rings(spec.of_sensor(spec.view), spec.experiment)
        good = np.ones(spec.shape, bool) if spec.mask is None else ~spec.mask
        self._of_rings = RadialBackground(self._ring, good)
        self._holes = finder(spec.invalid, spec.dtype)
        self._levels = np.empty((0, 0))

    def _background(self, frames: Array) -> NDArray[np.float32]:
        valid = None if self._holes is None else ~self._holes(frames)
        mean, sigma = self._of_rings(frames, valid)
        self._levels = mean + np.maximum(self._above.sigma * sigma, self._above.noise)
        with np.errstate(all="ignore"):  # values beyond float32
            return np.stack([mean, sigma], axis=1).astype(np.float32)

    def _choose(self, pixels: Array, kept: NDArray[np.bool_], frames: slice, rows: slice) -> None:
        np.greater(pixels, self._levels[frames][:, self._ring[rows]], out=kept)


def _levels(image: NDArray[np.float64], dtype: "np.dtype[Any]") -> tuple[Array, NDArray[np.bool_]]:
    """Return levels in the dtype of the pixels, and where no pixel is above: (height, width) both.

    Of integers it is the least value that is above.
    """
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return image.astype(dtype), np.isnan(image)
    limits = np.iinfo(dtype)
    whole = np.floor(image)
    never, below = ~(whole < float(limits.max)), whole < float(limits.min)
    least = np.where(never | below, 0, whole).astype(dtype) + dtype.type(1)
    return np.where(below, dtype.type(limits.min), least), never


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
