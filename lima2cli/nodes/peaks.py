"""Node `peaks`: peaks above the background, frame by frame, as those of single crystals.

A pixel is a peak where it holds a measurement, and

1. x > mean + max(cutoff * sigma, noise), of the background at this pixel;
2. no pixel of the patch about it, a square of ``patch`` x ``patch`` pixels with it in the middle, is greater; of equal
   ones it is the first, row by row as the frame is shown;
3. at least ``connected`` pixels of that patch, itself among them, are above their own level of 1.

That is the definition of pyFAI's peak finder, whose names the parameters have. Mean and sigma are those of the rings
about the beam (``background: radial``), which need `metadata.beam_center` (and the detector's `pixel_size` where pixels
are not square), or of the neighbourhood (``local``):

radial   ring r has the pixels with r <= rho < r + 1, rho being the distance from the beam in pixels; mean and standard
         deviation after clipping, five times at most, what is further from the mean than five standard deviations
local    mean and standard deviation of the pixels in the square of 3 x 3 patches, but for the one in the middle

A patch should hold a whole spot: with ``local`` the rest of a larger one is taken for background.

Masked pixels count nowhere: those of the static mask, NaN, invalid values; beyond the edge there are none.

Columns of the table:

count              uint32, the number of peaks of the frame
x, y               (frames, most) float32, the centre of mass of the patch, weights max(0, x - mean); in pixels of the
                   detector image, however frames were cut, binned and turned
intensity          (frames, most) float32, the sum of these weights

Rows of a table have one length: of more than ``most`` peaks the most intense are listed, of fewer the rest is NaN. They
are in the order of their intensity, the greatest first. ``count`` is of all, so that a `filter` with
``keep: peaks.count > 15`` finds hits.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Choice, Integer, Number, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, Block, FrameSpec, TableSpec
from lima2cli.kernels.masked import finder
from lima2cli.kernels.radial import LocalBackground, RadialBackground, rings
from lima2cli.nodes.base import Inputs, Partial, Reduce, Reducer, node

TILE = 1 << 20
"""Pixels of frames that are worked on together; one frame at least."""

LISTS = ("x", "y", "intensity")

Pixels = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
"""Frame, row and column of some pixels."""


@node("peaks")
class Peaks(Reduce):
    """Finds peaks above a background, and lists them."""

    threaded: ClassVar[bool] = True

    cutoff: float = param("Standard deviations above the mean of the background.", Number(0), 5.0)
    noise: float = param("Least height above the mean, in the units of the pixels.", Number(0), 1.0)
    connected: int = param("Least number of pixels of a patch that are above their level.", Integer(1), 3)
    patch: int = param("Side of the patch about a peak, in pixels.", Choice((3, 5, 7, 9, 11)), 3)
    background: str = param(
        "That of rings about the beam, or of the neighbourhood.", Choice(("radial", "local")), "radial"
    )
    most: int = param("Peaks of a frame that are listed.", Integer(1, 10_000), 100)

    def infer(self, inputs: Inputs) -> TableSpec:
        """See `Node.infer`."""
        if self.connected > self.patch**2:
            message = f"a patch of {self.patch} x {self.patch} has less than {self.connected} pixels"
            raise NodeMisuse("out-of-range", message, ("connected",), f"at most {self.patch**2}")
        if self.background == "radial" and inputs.spec.experiment.beam_center is None:
            message = "rings about the beam need its centre, which is not known"
            raise NodeMisuse("geometry-missing", message, ("background",), "add `metadata.beam_center`, or: local")
        return TableSpec(
            {"count": "uint32", **dict.fromkeys(LISTS, "float32")},
            "count",
            {"x": "pixel", "y": "pixel"},
            dict.fromkeys(LISTS, self.most),
            {"count": "peaks"},
        )

    def bind(self, inputs: Inputs) -> Reducer:
        """See `Reduce.bind`."""
        return _Finder(self, inputs.spec)

    def finish(self, partial: Partial) -> Mapping[str, NDArray[Any]]:
        """See `Reduce.finish`."""
        return partial


class _Finder:
    """See `Reducer`."""

    def __init__(self, node: Peaks, spec: FrameSpec) -> None:
        self._node, self._view = node, spec.view
        self._good = np.ones(spec.shape, bool) if spec.mask is None else ~spec.mask
        self._invalid = finder(spec.invalid, spec.dtype)
        self._ring = rings(spec.of_sensor(spec.view), spec.experiment) if node.background == "radial" else None
        self._radial = None if self._ring is None else RadialBackground(self._ring, self._good)
        self._local = LocalBackground(node.patch, self._good) if self._ring is None else None
        self._edge = node.patch // 2

    def step(self, block: Block, received_ns: int) -> Partial:
        """Partial: the columns of the table."""
        count, each = len(block.numbers), max(1, TILE // self._good.size)
        partial: Partial = {"frame_number": block.numbers.copy(), "count": np.zeros(count, np.uint32)}
        partial |= {name: np.full((count, self._node.most), np.nan, np.float32) for name in LISTS}
        with np.errstate(all="ignore"):  # NaN; values beyond float32
            for first in range(0, count, each):
                self._find(block.frames[first : first + each], partial, first)
        return partial

    def _find(self, frames: Array, partial: Partial, first: int) -> None:
        """Put the peaks of frames (n, height, width) into the rows from ``first`` on."""
        valid = np.broadcast_to(self._good, frames.shape)
        if self._invalid is not None:
            valid = valid & ~self._invalid(frames)
        level, mean_at = self._background(frames, valid)
        frame, row, column = self._peaks(frames, valid, valid & (frames > level))
        x, y, intensity = self._measured(frames, valid, mean_at, (frame, row, column))
        partial["count"][first : first + len(frames)] = np.bincount(frame, minlength=len(frames))
        order = np.lexsort((-intensity, frame))
        frame = frame[order]
        place = np.arange(len(frame)) - np.searchsorted(frame, frame)
        listed = place < self._node.most
        for name, values in zip(LISTS, (x, y, intensity), strict=True):
            partial[name][first + frame[listed], place[listed]] = values[order][listed]

    def _background(self, frames: Array, valid: NDArray[np.bool_]) -> tuple[Array, Callable[[Pixels], Array]]:
        """Return the level above which pixels are, at each, and a function that gives the mean at some."""
        counting = None if self._invalid is None else valid
        if self._local is not None:
            mean, sigma = self._local(frames, counting)
            return self._level(mean, sigma), lambda at: np.asarray(mean[at])
        ring = self._ring
        assert ring is not None
        assert self._radial is not None
        mean, sigma = self._radial(frames, counting)
        return self._level(mean, sigma)[:, ring], lambda at: np.asarray(mean[at[0], ring[at[1:]]])

    def _level(self, mean: Array, sigma: Array) -> Array:
        return np.asarray(mean + np.maximum(self._node.cutoff * sigma, self._node.noise))

    def _peaks(self, frames: Array, valid: NDArray[np.bool_], above: NDArray[np.bool_]) -> Pixels:
        """Return frame, row and column of each peak, in this order."""
        frame, row, column = np.nonzero(above)
        own, near, greatest = frames[frame, row, column], np.zeros(len(frame), np.intp), np.ones(len(frame), bool)
        for down, right in self._offsets():
            inside, at = self._neighbours(frames.shape, (frame, row, column), down, right)
            near += inside & above[at]
            other, before = frames[at], (down, right) < (0, 0)
            beaten = other >= own if before else other > own
            greatest &= ~(beaten & inside & valid[at])
        chosen = greatest & (near >= self._node.connected)
        return frame[chosen], row[chosen], column[chosen]

    def _measured(
        self, frames: Array, valid: NDArray[np.bool_], mean_at: Callable[[Pixels], Array], peaks: Pixels
    ) -> tuple[Array, Array, Array]:
        """Return x, y in the detector image, and intensity of each peak."""
        _, row, column = peaks
        total, rows, columns = (np.zeros(len(row)) for _ in range(3))
        for down, right in self._offsets():
            inside, at = self._neighbours(frames.shape, peaks, down, right)
            weight = np.where(inside & valid[at], np.maximum(frames[at] - mean_at(at), 0.0), 0.0)
            weight[np.isnan(weight)] = 0.0  # a neighbour without a background
            total += weight
            rows += weight * down
            columns += weight * right
        x, y = self._view.place(column + columns / total, row + rows / total)  # type: ignore[arg-type]
        return np.asarray(x), np.asarray(y), total

    def _offsets(self) -> list[tuple[int, int]]:
        reach = range(-self._edge, self._edge + 1)
        return [(down, right) for down in reach for right in reach]

    def _neighbours(
        self, shape: tuple[int, ...], pixels: Pixels, down: int, right: int
    ) -> tuple[NDArray[np.bool_], Pixels]:
        """Return which neighbours are in the frame, and their index; of others that of a pixel that is."""
        (frame, row, column), (_, height, width) = pixels, shape
        inside = (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
        return inside, (frame, np.clip(row + down, 0, height - 1), np.clip(column + right, 0, width - 1))
