"""Node `project`: sums of each frame under mask images, as of virtual detectors.

    sums[m] = sum over pixels of masks[m] * frame

Column `sums`, a vector (frames, masks) of `dtype`. `masks` is a file of real weights, (n, height, width), or (height,
width) for a single one; like calibration images (see `calibration`) they may be of the detector's shape and are then
cut, binned, flipped and rotated as the frames were: of a binned pixel the weight is the mean. A stack is not averaged,
and weights are finite.

Masked pixels contribute nothing: those of the static mask, and of single frames NaN and invalid values.

Pixels and weights are multiplied and added in float64, or with `dtype: float32` in float32 for some thousand pixels at
a time, and these sums in float64. Where pixels and weights are integers the sums are exact up to 2**53, or 2**24.
64-bit integers are rounded to float64 before. Each thread works by itself: the linear algebra starts none.

Only the box about all weights other than 0 is looked at.
"""

from collections.abc import Mapping
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Choice, FileReference, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, Block, Files, FrameSpec, TableSpec
from lima2cli.geometry import Rect
from lima2cli.kernels.masked import finder
from lima2cli.kernels.strips import tiles
from lima2cli.nodes.base import Inputs, Partial, Reduce, StripReducer, node
from lima2cli.nodes.calibration import weights

MOST = 1024
"""Most masks."""

PIECE = 8192
"""Products of one call of the linear algebra: it starts threads for more than 9216 (OpenBLAS)."""


@node("project")
class Project(Reduce):
    """Sums frames under mask images."""

    strips: ClassVar[bool] = True
    parts: ClassVar[bool] = True

    masks: str = param("The weights: a file (n, height, width), or (height, width).", FileReference())
    dtype: str = param("Type of the sums, and of the products.", Choice(("float64", "float32")), "float64")

    def infer(self, inputs: Inputs) -> TableSpec:
        """See `Node.infer`. Raises `NodeMisuse`: as of calibration images, and ``project-masks``."""
        count = inputs.files.stack(self.masks).shape[0]
        if count > MOST:
            raise NodeMisuse(
                "project-masks", f"{self.masks} holds {count} masks, at most {MOST} are possible", ("masks",)
            )
        weights(self.masks, inputs, "masks")
        return TableSpec({"sums": self.dtype}, "sums", lengths={"sums": count}, labels={"sums": "sums under masks"})

    def bind(self, inputs: Inputs) -> StripReducer:
        """See `Reduce.bind`."""
        return _Sums(inputs.spec, *self._weights(inputs))

    def _weights(self, inputs: Inputs) -> tuple[Rect, Array]:
        """Return the box of all weights but 0, and those inside, (masks, height, width); all threads have the same."""
        made = _MADE.setdefault(inputs.files, {})
        key = (self, inputs.spec.view, inputs.spec.whole)
        if key not in made:
            every = weights(self.masks, inputs, "masks")
            some = np.zeros(every.shape[1:], bool)
            for mask in every:
                some |= mask != 0
            rows, columns = np.flatnonzero(some.any(axis=1)), np.flatnonzero(some.any(axis=0))
            box = Rect(0, 0, 0, 0)
            if len(rows):
                left, top = int(columns[0]), int(rows[0])
                box = Rect(left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top)
            inside = every[:, box.y : box.bottom, box.x : box.right]
            made[key] = box, np.ascontiguousarray(inside, self.dtype)
        return made[key]

    def merge(self, one: Partial, other: Partial) -> Partial:
        """See `Reduce.merge`."""
        return {"sums": one["sums"] + other["sums"], "frame_number": one["frame_number"]}

    def finish(self, partial: Partial) -> Mapping[str, NDArray[Any]]:
        """See `Reduce.finish`."""
        with np.errstate(over="ignore"):  # sums beyond float32
            return {"sums": partial["sums"].astype(self.dtype), "frame_number": partial["frame_number"]}


_MADE: WeakKeyDictionary[Files, dict[Any, tuple[Rect, Array]]] = WeakKeyDictionary()
"""Weights as nodes use them, by the reader of their files."""


class _Sums:
    """See `StripReducer`."""

    def __init__(self, spec: FrameSpec, box: Rect, weights: Array) -> None:
        self.box, self.weights, self.mask = box, weights, spec.mask
        self.invalid = finder(spec.invalid, spec.dtype)
        self.work = np.empty(0, weights.dtype)
        self.piece = max(8, PIECE // len(weights))
        self.sums = np.zeros((0, len(weights)))

    def step(self, block: Block, received_ns: int) -> Partial:
        """Partial: ``sums`` (n, masks) float64, and ``frame_number``."""
        count, _, width = block.frames.shape
        self.begin(count)
        with np.errstate(all="ignore"):  # inf - inf
            for deep, tall in tiles(count, self.box.height, self.box.width) if self.box.area else ():
                rows = slice(self.box.y + tall.start, self.box.y + tall.stop)
                self.strip(block.frames[deep, rows], deep, rows, slice(0, width))
        return self.end(block, received_ns)

    def begin(self, frames: int) -> None:
        """See `StripReducer.begin`."""
        self.sums = np.zeros((frames, len(self.weights)))

    def strip(self, pixels: Array, frames: slice, rows: slice, columns: slice) -> None:
        """See `StripReducer.strip`."""
        box, left = self.box, self.box.x - columns.start
        top, bottom = max(rows.start, box.y), min(rows.stop, box.bottom)
        if top >= bottom:
            return
        some = pixels[:, top - rows.start : bottom - rows.start, left : left + box.width]
        weights = self.weights[:, top - box.y : bottom - box.y].reshape(len(self.weights), -1)
        self.sums[frames] += self._products(self._counted(some, slice(top, bottom)), weights)

    def end(self, block: Block, received_ns: int) -> Partial:
        """See `StripReducer.end`."""
        return {"sums": self.sums, "frame_number": block.numbers.copy()}

    def _counted(self, pixels: Array, rows: slice) -> Array:
        """Return (n, pixels) in the dtype of the weights, 0 where they do not count, in scratch memory."""
        if self.work.size < pixels.size:
            self.work = np.empty(pixels.size, self.weights.dtype)
        work = self.work[: pixels.size].reshape(pixels.shape)
        np.copyto(work, pixels, casting="same_kind")
        if self.mask is not None:
            np.copyto(work, 0, where=self.mask[rows, self.box.x : self.box.right])
        if self.invalid is not None:
            np.copyto(work, 0, where=self.invalid(pixels))
        return work.reshape(len(work), -1)

    def _products(self, pixels: Array, weights: Array) -> NDArray[np.float64]:
        """Return the sums (n, masks) of (n, pixels) by (masks, pixels): those of a frame do not depend on the others.

        Each piece of each frame is a product of its own, of all masks by a vector.
        """
        pieces = pixels.shape[1] // self.piece
        whole = pieces * self.piece
        lines = pixels[:, :whole].reshape(len(pixels), pieces, self.piece, 1).swapaxes(0, 1)
        planes = weights[:, :whole].reshape(len(weights), 1, pieces, self.piece).transpose(2, 1, 0, 3)
        sums = np.zeros((pieces + 1, len(pixels), len(weights)))
        sums[:-1] = np.matmul(planes, lines)[..., 0]
        sums[-1] = np.matmul(weights[:, whole:], pixels[:, whole:, None])[..., 0]
        return np.asarray(np.cumsum(sums, axis=0)[-1])  # one after another, however many frames and masks
