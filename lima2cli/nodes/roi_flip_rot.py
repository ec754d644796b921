"""Node `roi_flip_rot`: bins, cuts, flips, rotates, in this order.

    out = rotate(flip(roi(bin(raw))))

Binning sums x columns by y rows; trailing columns and rows that fill no bin are cut. Integers are widened to the
narrowest integer of their kind that holds the sum of a bin's largest pixels (2 x 2 uint16: uint32), 64-bit integers to
float64; float32 and float64 stay. ``roi`` is in binned pixels; flipping horizontally exchanges
left and right; rotation is clockwise.

The static mask goes the same way, a bin being masked if any of its pixels is. Where one is masked, also in single
frames (NaN, invalid values), there is no sum: the bin holds NaN, in integers what the first masked pixel holds. Values
above all valid ones, such as the largest of the dtype, become the largest of the wider dtype, which no sum reaches. The
saturation level is unknown after binning. Where nothing is binned the dtype stays. How the frames show the detector
goes with them: calibration images, ROIs in detector coordinates and the saved geometry follow.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from lima2cli.dataclass import dataclass
from lima2cli.declare import Choice, Integer, Table, pair, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, FrameSpec, Invalid
from lima2cli.geometry import Rect
from lima2cli.kernels.masked import MaskedSums, collision, may_collide, of_sums, valid_range
from lima2cli.kernels.strips import Turn, tile_shape, tiles
from lima2cli.nodes.base import Inputs, Map, node
from lima2cli.view import FLIPS, View

STRIP = 16
"""Columns of a quarter turn that are written together, so that the rows read for them stay in cache."""


@dataclass(frozen=True, kw_only=True)
class Binning:
    """Columns and rows that become one pixel."""

    x: int = param("Columns.", Integer(1), 1)
    y: int = param("Rows.", Integer(1), 1)


@dataclass(frozen=True, kw_only=True)
class BinnedRect:
    """A rectangle, in binned pixels."""

    x: int = param("First column.", Integer(0))
    y: int = param("First row.", Integer(0))
    width: int = param("Columns.", Integer(1))
    height: int = param("Rows.", Integer(1))


@node("roi_flip_rot")
class RoiFlipRot(Map):
    """Bins, cuts, flips and rotates, in this order."""

    turns: ClassVar[bool] = True

    binning: Binning = param("Columns and rows summed into one pixel.", pair(Binning, Integer(1)), Binning())
    roi: BinnedRect | None = param("The part that is kept, in binned pixels; default: all.", Table(BinnedRect), None)
    flip: str = param(
        "horizontal: left and right change places; vertical: top and bottom.",
        Choice(FLIPS),
        "none",
    )
    rotation: int = param("Degrees clockwise.", Choice((0, 90, 180, 270)), 0)

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Node.infer`."""
        spec = inputs.spec
        self._check(spec)
        here, bins = self._within(spec), self.bins
        mask = None if spec.mask is None else np.ascontiguousarray(here.apply(spec.mask, "any"))
        dtype = sum_dtype(spec.dtype, bins)
        return replace(
            spec,
            dtype=dtype,
            invalid=spec.invalid if bins == 1 else of_sums(spec.invalid, spec.dtype, dtype)[0],
            holds=math.nan if bins > 1 and np.dtype(dtype).kind == "f" else spec.holds,
            view=self.turned(spec.view),
            mask=None if mask is None or not mask.any() else mask,
            saturation=spec.saturation if bins == 1 else None,
        )

    def warnings(self, inputs: Inputs) -> Sequence[NodeMisuse]:
        """See `Node.warnings`: sums that may be values which mean that nothing was measured."""
        spec = inputs.spec
        dtype = sum_dtype(spec.dtype, self.bins)
        if self.bins == 1 or np.dtype(dtype).kind == "f" or spec.invalid == Invalid():
            return ()
        rule, _ = of_sums(spec.invalid, spec.dtype, dtype)
        low, high = (limit * self.bins for limit in valid_range(spec.invalid, spec.dtype))
        return [collision(rule, ("binning",))] if may_collide(rule, dtype, low, high) else ()

    def bind(self, inputs: Inputs) -> Callable[[Array], Array]:
        """See `Map.bind`. A part that is only cut out is a view of the input."""
        spec = inputs.spec
        here = self._within(spec)
        if here.binning != (1, 1) or here.mirrored or here.rotation:
            return _Kernel(here, spec, sum_dtype(spec.dtype, self.bins))
        if here.shape == spec.shape:
            return lambda frames: frames
        rows, columns = here.area.within(Rect(0, 0, 0, 0))
        return lambda frames: frames[:, rows, columns]

    @property
    def bins(self) -> int:
        """Pixels summed into one; 1 = nothing is binned."""
        return self.binning.x * self.binning.y

    @property
    def upright(self) -> bool:
        """True where rows stay rows and pixels stay pixels."""
        return self.bins == 1 and self.rotation % 180 == 0

    def in_strips(self, inputs: int) -> bool:
        """See `Map.in_strips`."""
        return self.upright

    def stage_of(self, inputs: Inputs) -> Turn:
        """See `Map.stage_of`: frames stay `upright`."""
        return Turn(self.turned)

    def turned(self, view: View) -> View:
        """Return the view of frames that showed ``view`` before."""
        view = view.bin(self.binning.x, self.binning.y)
        if self.roi is not None:
            view = view.cut(Rect(self.roi.x, self.roi.y, self.roi.width, self.roi.height))
        return view.flipped(self.flip).rotate(self.rotation)

    def _within(self, spec: FrameSpec) -> View:
        """Return the view of the output."""
        height, width = spec.shape
        return self.turned(View(Rect(0, 0, width, height)))

    def _check(self, spec: FrameSpec) -> None:
        (height, width), x, y = spec.shape, self.binning.x, self.binning.y
        if x > width or y > height:
            message = f"no bin of {x} x {y} pixels fits in frames of {width} x {height}"
            raise NodeMisuse("binning-too-large", message, ("binning",))
        columns, rows, roi = width // x, height // y, self.roi
        if roi is not None and not Rect(0, 0, columns, rows).contains(Rect(roi.x, roi.y, roi.width, roi.height)):
            binned = f", binned {x} x {y}" if x * y > 1 else ""
            message = f"the part, {Rect(roi.x, roi.y, roi.width, roi.height)}, leaves the {columns} x {rows} px{binned}"
            raise NodeMisuse("roi-outside", message, ("roi",))


def sum_dtype(dtype: str, pixels: int) -> str:
    """Return the numpy name of the dtype that holds the sum of so many pixels of ``dtype``."""
    kind, own = np.dtype(dtype).kind, np.dtype(dtype).itemsize
    if pixels == 1 or kind == "f":
        return dtype
    limits = np.iinfo(dtype)
    for size in (size for size in (2, 4, 8) if size > own):
        wide = np.iinfo(f"{kind}{size}")
        if wide.min <= int(limits.min) * pixels and int(limits.max) * pixels <= wide.max:
            return str(wide.dtype)
    return "float64"


class _Kernel:
    """Frames as ``view`` shows them, in an array of its own, which grows with the largest block."""

    def __init__(self, view: View, spec: FrameSpec, dtype: str) -> None:
        self.view = view
        self.masked = MaskedSums(spec.invalid, spec.dtype, dtype)
        self.rows, self.columns = view.area.within(Rect(0, 0, 0, 0))
        self.mask = None if spec.mask is None else spec.mask[self.rows, self.columns]
        self.out = np.empty((0, *view.shape), dtype)
        self.copy: Callable[[Array, Array], None]
        if view.binning != (1, 1):
            tile = (*tile_shape(view.bins[1], view.area.width), view.area.width)
            self.sums = np.empty(tile if view.binning[1] > 1 else 0, dtype)
            self.copy = self._bin
        else:
            self.copy = _copy_turned if view.quarter else np.copyto

    def __call__(self, frames: Array) -> Array:
        """Return the result for a block."""
        count = len(frames)
        if count > len(self.out):
            self.out = np.empty((count, *self.view.shape), self.out.dtype)
        out = self.out[:count]
        with np.errstate(all="ignore"):  # sums of infinities
            self.copy(self.view.turn_back(out), frames[:, self.rows, self.columns])
        return out

    def _bin(self, out: Array, frames: Array) -> None:
        """Rows first, which are adjacent in memory; then columns, few as they are by now."""
        x, y = self.view.binning
        for deep, tall in tiles(len(frames), out.shape[1], frames.shape[2]):
            rows, into = frames[deep, tall.start * y : tall.stop * y], out[deep, tall]
            if y > 1:
                sums = into if x == 1 else self.sums[: len(rows), : into.shape[1]]
                _add([rows[:, k::y] for k in range(y)], sums)
                rows = sums
            if x > 1:
                _add([rows[:, :, k::x] for k in range(x)], into)
            if self.mask is not None or self.masked.find is not None:
                self._put_masked(frames, into, deep, tall)

    def _put_masked(self, frames: Array, into: Array, deep: slice, tall: slice) -> None:
        """Bins with a masked pixel, whose first one decides: it is looked at last."""
        x, y = self.view.binning
        whole = slice(tall.start * y, tall.stop * y)
        for row in reversed(range(y)):
            for column in reversed(range(x)):
                mask = None if self.mask is None else self.mask[whole][row::y, column::x]
                self.masked.put(frames[deep, whole][:, row::y, column::x], into, mask)


def _add(parts: Sequence[Array], out: Array) -> None:
    """Return the sum of two or more arrays, in the dtype of ``out``."""
    np.add(parts[0], parts[1], out=out, dtype=out.dtype)
    for part in parts[2:]:
        np.add(out, part, out=out, dtype=out.dtype)


def _copy_turned(out: Array, frames: Array) -> None:
    """Copy where rows of the one are columns of the other: ``out`` is not contiguous along its last axis."""
    for frame, to in zip(frames, out, strict=True):
        for top in range(0, frame.shape[0], STRIP):
            to[top : top + STRIP] = frame[top : top + STRIP]
