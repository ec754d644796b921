"""Maps that compute each pixel from the same pixel of the raw frame: one description, one kernel.

    out = (raw - offset) / divisor        then `fill` where `bad`

The description is pure, so that a compiler can put neighbours together (`Chain`). Subtract first, then divide (rather
than raw*gain + offset): the difference of nearly equal numbers is then exact, and each step rounds as numpy's own
one-liner does. For the same reason neighbours are not folded algebraically: in a cache the arithmetic costs less than
another rounding.

Precision: pixels are computed in float32 where float32 holds the raw dtype exactly (integers of up to 16 bits,
float32) and the result is float32; else in float64, rounded once at the end. An integer result is rounded half to
even, then clipped to the integer range. Masked pixels are computed like any other; NaN of float frames stays NaN.
No pixel raises a numpy warning.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
        """The map of frames (n, height, width); it keeps one output array, which grows with the largest block."""
        return Chain((self,), height, width)


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


StripReader = Callable[[Array, slice, slice], None]
"""Takes a strip while it is in cache: pixels (n, rows, width), which frames of the block, which rows."""


@dataclass(frozen=True)
class _Pass:
    """Arithmetic in one dtype, then a conversion; operands are (ufunc, number or (height, width))."""

    work: np.dtype[Any]
    target: np.dtype[Any]
    operands: tuple[tuple[np.ufunc, Array], ...]


class Chain:
    """Affines one after another on frames (n, height, width), strip by strip, so that nothing leaves the cache between.

    Bit for bit what they give one by one: where one ends in the dtype that the next computes in, they are one pass; a
    conversion between them stays. Bad pixels get their last value at the end, once. ``keeps``: whole frames are made,
    in one output array that grows with the largest block; else only strips, for those who read them.
    """

    def __init__(self, affines: Sequence[Affine], height: int, width: int, keeps: bool = True) -> None:
        self.height, self.width, self.keeps = height, width, keeps
        self.target = np.dtype(affines[-1].target)
        self.passes = _passes(affines)
        bad, self.values = _holes(affines, height, width)
        self.bad = None if bad is None else np.flatnonzero(bad)
        self.idle = not self.passes and self.bad is None
        self.out = np.empty((0, height, width), self.target)
        self.scratch: dict[Any, Array] = {}
        self.cuts: tuple[int, list[Tile]] = (0, [])
        self.fills: dict[int, tuple[Array, Array]] = {}

    def __call__(self, frames: Array, readers: Sequence[StripReader] = ()) -> Array:
        """The result for a block, in the chain's own array; ``frames`` themselves where there is nothing to do.

        Each reader gets each strip of the result. Without ``keeps`` what is returned means nothing.
        """
        count = len(frames)
        if self.idle and not readers:
            return frames
        if self.keeps and not self.idle and count > len(self.out):
            self.out = np.empty((count, self.height, self.width), self.target)
        with np.errstate(all="ignore"):
            for deep, tall in self._tiles(count):
                strip = frames[deep, tall]
                if not self.idle:
                    strip = self._strip(strip, self.out[deep, tall] if self.keeps else None, tall)
                for reader in readers:
                    reader(strip, deep, tall)
        return frames if self.idle else self.out[:count]

    def _tiles(self, count: int) -> list[Tile]:
        if self.cuts[0] != count:
            self.cuts = (count, tiles(count, self.height, self.width))
        return self.cuts[1]

    def _strip(self, raw: Array, out: Array | None, rows: slice) -> Array:
        """A strip of the result, in ``out`` or in the chain's own memory."""
        if out is None:
            out = self._own("out", self.target, raw)
        if not self.passes:
            np.copyto(out, raw)
        last = len(self.passes) - 1
        for i, step in enumerate(self.passes):
            direct = i == last and step.work == step.target
            work = out if direct else self._own((i, "work"), step.work, raw)
            raw = _compute(step, raw, work, rows)
            if step.work != step.target:
                result = out if i == last else self._own((i, "result"), step.target, raw)
                store(raw, result)
                raw = result
        if self.bad is not None:
            self._fill(out, rows)
        return out

    def _own(self, key: Any, dtype: np.dtype[Any], like: Array) -> Array:
        """Memory of the shape of ``like``."""
        if key not in self.scratch:
            deep, tall = tile_shape(self.height, self.width)
            self.scratch[key] = np.empty(deep * tall * self.width, dtype)
        return self.scratch[key][: like.size].reshape(like.shape)

    def _fill(self, out: Array, rows: slice) -> None:
        assert self.bad is not None
        fill = self.fills.get(rows.start)
        if fill is None:
            first, end = np.searchsorted(self.bad, (rows.start * self.width, rows.stop * self.width))
            values = self.values[first:end] if self.values.ndim else self.values
            fill = self.fills[rows.start] = (self.bad[first:end] - rows.start * self.width, values)
        index, values = fill
        flat = out.reshape(len(out), -1)
        if len(flat) == 1:  # much the faster
            flat[0][index] = values
        else:
            flat[:, index] = values


def _passes(affines: Sequence[Affine]) -> list[_Pass]:
    passes: list[_Pass] = []
    for affine in affines:
        if affine.copies and affine.source == affine.target:
            continue
        target = np.dtype(affine.target)
        work = target if affine.copies else np.dtype(affine.work)
        with np.errstate(all="ignore"):  # values beyond float32
            operands: list[tuple[np.ufunc, Array]] = []
            if not _is(affine.offset, 0.0):
                operands.append((np.subtract, np.asarray(affine.offset, work)))
            if not _is(affine.divisor, 1.0):
                operands.append((np.divide, np.asarray(affine.divisor, work)))
        if passes and passes[-1].work == passes[-1].target == work:
            passes[-1] = _Pass(work, target, (*passes[-1].operands, *operands))
        else:
            passes.append(_Pass(work, target, tuple(operands)))
    return passes


def _holes(affines: Sequence[Affine], height: int, width: int) -> tuple[NDArray[np.bool_] | None, Array]:
    """Which pixels are bad in the end, and what is then stored in them: a value for each, or one for all."""
    target = np.dtype(affines[-1].target)
    bad, values = np.zeros((height, width), np.bool_), np.empty((height, width), target)
    for i, affine in enumerate(affines):
        if affine.bad is None:
            continue
        whole = np.full((1, height, width), affine.fill, affine.target)
        after = [replace(later, bad=None) for later in affines[i + 1 :]]
        values[affine.bad] = (Chain(after, height, width)(whole) if after else whole)[0][affine.bad]
        bad |= affine.bad
    if not bad.any():
        return None, values
    found = values[bad]
    same = np.array_equal(found, np.full_like(found, found[0]), equal_nan=target.kind == "f")
    return bad, np.asarray(found[0]) if same else found


def _compute(step: _Pass, raw: Array, work: Array, rows: slice) -> Array:
    """The operands of a pass on a strip, in ``work``; what is returned is it, or ``raw`` where there is none."""
    if raw.dtype != work.dtype or not step.operands:  # converting first is faster than ufuncs of mixed dtypes
        np.copyto(work, raw, casting="unsafe")
        raw = work
    for ufunc, operand in step.operands:
        raw = ufunc(raw, operand[rows] if operand.ndim else operand, out=work)
    return raw


def store(work: Array, out: Array) -> None:
    """``work`` (overwritten) in the dtype of ``out``: integers are rounded half to even, then clipped."""
    if out.dtype.kind == "f":
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
