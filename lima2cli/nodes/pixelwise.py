"""Maps that compute each pixel from the same pixel of the raw frame: one description, one kernel.

    out = (raw - offset) / divisor        then `fill` where `bad`

The description is pure, so that a compiler can put neighbours together: with out' = (out - o) / d,
out' = (raw - (offset + o*divisor)) / (divisor*d). Subtract first, then divide (rather than raw*gain + offset): the
difference of nearly equal numbers is then exact, and each step rounds as numpy's own one-liner does.

Precision: pixels are computed in float32 where float32 holds the raw dtype exactly (integers of up to 16 bits,
float32) and the result is float32; else in float64, rounded once at the end. An integer result is rounded half to
even, then clipped to the integer range. Masked pixels are computed like any other; NaN of float frames stays NaN.
No pixel raises a numpy warning.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Choice
from lima2cli.nodes.base import Map
from lima2cli.nodes.tiles import Tile, tile_shape, tiles
from lima2cli.spec import Array, Files, FrameSpec

Operand = float | NDArray[np.float64]

RESULT = Choice(("float32", "keep"))
"""Shape of the parameter ``dtype``: float32, or the dtype of the input."""


@dataclass(frozen=True, eq=False)
class Affine:
    """What a pixel-wise map does to frames of dtype ``source``; operands are numbers or (height, width).

    target    dtype of the result
    bad       bool (height, width): pixels that get ``fill``; None = none
    """

    source: str
    target: str
    offset: Operand = 0.0
    divisor: Operand = 1.0
    bad: NDArray[np.bool_] | None = None
    fill: float = 0.0

    @property
    def copies(self) -> bool:
        """Whether values are taken as they are: no arithmetic."""
        return _is(self.offset, 0.0) and _is(self.divisor, 1.0)

    @property
    def work(self) -> str:
        """dtype of the arithmetic."""
        exact = np.can_cast(self.source, np.float32)
        if np.dtype(self.target).kind != "f":
            exact = exact and _is(self.divisor, 1.0) and _small_integers(self.offset)
        return "float32" if exact and self.target != "float64" else "float64"

    def level(self, saturation: float | None) -> float | None:
        """What a pixel of value ``saturation`` becomes; None where that differs from pixel to pixel or is not known."""
        if saturation is None or self.copies:
            return saturation
        if isinstance(self.offset, np.ndarray) or isinstance(self.divisor, np.ndarray) or self.divisor < 0:
            return None
        source = np.dtype(self.source)
        if source.kind != "f":
            saturation = math.ceil(saturation)
            if not np.iinfo(source).min <= saturation <= np.iinfo(source).max:
                return None
        pixel = np.full((1, 1, 1), saturation, source)
        return float(replace(self, bad=None).bind(1, 1)(pixel)[0, 0, 0])

    def bind(self, height: int, width: int) -> Callable[[Array], Array]:
        """The kernel for frames (n, height, width); it keeps one output array, which grows with the largest block."""
        if self.copies and self.bad is None and self.source == self.target:
            return lambda frames: frames
        return Kernel(self, height, width)


class Pixelwise(Map):
    """A map whose pixels are described by an `Affine`; its ``bad`` pixels are masked from there on."""

    def affine(self, spec: FrameSpec, files: Files) -> Affine:
        """What is done to frames of ``spec``. Raises as `infer`."""
        raise NotImplementedError

    def infer(self, spec: FrameSpec, files: Files) -> FrameSpec:
        """See `Node.infer`. The saturation goes through the same arithmetic where it is one value for all pixels."""
        affine = self.affine(spec, files)
        return replace(spec, dtype=affine.target, saturation=affine.level(spec.saturation)).masked(affine.bad)

    def bind(self, spec: FrameSpec, files: Files) -> Callable[[Array], Array]:
        """See `Map.bind`."""
        return self.affine(spec, files).bind(*spec.shape)


class Kernel:
    """An `Affine` bound to a shape: (n, height, width) of ``source`` → the same of ``target``."""

    def __init__(self, affine: Affine, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.target = np.dtype(affine.target)
        work = np.dtype(affine.work)
        self.copies = affine.copies
        with np.errstate(all="ignore"):
            self.offset = None if _is(affine.offset, 0.0) else np.asarray(affine.offset, work)
            self.divisor = None if _is(affine.divisor, 1.0) else np.asarray(affine.divisor, work)
        self.bad = None if affine.bad is None else np.flatnonzero(affine.bad)
        self.fill = self.target.type(affine.fill)
        self.in_place = work == self.target
        deep, tall = (0, 0) if self.in_place or self.copies else tile_shape(height, width)
        self.scratch = np.empty((deep, tall, width), work)
        self.out = np.empty((0, height, width), self.target)
        self.cuts: tuple[int, list[Tile]] = (0, [])

    def __call__(self, frames: Array) -> Array:
        """The result for a block, in the kernel's own array."""
        count = len(frames)
        if count > len(self.out):
            self.out = np.empty((count, self.height, self.width), self.target)
        out = self.out[:count]
        with np.errstate(all="ignore"):
            if self.copies:
                np.copyto(out, frames, casting="unsafe")
            else:
                for deep, tall in self._tiles(count):
                    self._tile(frames[deep, tall], out[deep, tall], tall)
        if self.bad is not None:
            out.reshape(count, -1)[:, self.bad] = self.fill
        return out

    def _tiles(self, count: int) -> list[Tile]:
        if self.cuts[0] != count:
            self.cuts = (count, tiles(count, self.height, self.width))
        return self.cuts[1]

    def _tile(self, raw: Array, out: Array, rows: slice) -> None:
        work = out if self.in_place else self.scratch[: len(raw), : raw.shape[1]]
        if raw.dtype != work.dtype:  # converting first is faster than ufuncs of mixed dtypes
            np.copyto(work, raw, casting="unsafe")
            raw = work
        if self.offset is not None:
            raw = np.subtract(raw, self.offset[rows] if self.offset.ndim else self.offset, out=work)
        if self.divisor is not None:
            np.divide(raw, self.divisor[rows] if self.divisor.ndim else self.divisor, out=work)
        if self.in_place:
            return
        if self.target.kind == "f":
            np.copyto(out, work, casting="unsafe")
        else:
            _store_integers(work, out)


def _store_integers(work: Array, out: Array) -> None:
    """``work`` (overwritten) rounded half to even and clipped to the range of ``out``; no NaN has a meaning here."""
    limits, number = np.iinfo(out.dtype), work.dtype.type
    low, high = number(limits.min), number(limits.max)
    np.rint(work, out=work)
    if limits.bits < 64:
        np.clip(work, low, high, out=work)
        np.copyto(out, work, casting="unsafe")
        return
    over = work >= high  # one above the largest 64-bit integer, which is no float64
    np.clip(work, low, np.nextafter(high, number(0)), out=work)
    np.copyto(out, work, casting="unsafe")
    out[over] = limits.max


def _is(operand: Operand, value: float) -> bool:
    """Whether an operand is this very number."""
    return not isinstance(operand, np.ndarray) and operand == value


def _small_integers(operand: Operand) -> bool:
    """Whether sums with integers of 16 bits are exact in float32."""
    values = np.asarray(operand)
    return bool(np.all(np.abs(values) < 2**23) and np.all(values == np.rint(values)))


def target(dtype: str, spec: FrameSpec) -> str:
    """The dtype of the result, from the parameter declared as `RESULT`."""
    return spec.dtype if dtype == "keep" else dtype


def hole(dtype: str) -> float:
    """What is stored in a pixel that has no value: NaN, or 0 in integers."""
    return math.nan if np.dtype(dtype).kind == "f" else 0.0
