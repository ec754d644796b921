"""What maps do to each pixel, described so that neighbours can be computed together, strip by strip.

Affine   out = (raw - offset) / divisor, then ``fill`` where ``bad``
Steps    numbers added to raw and multiplied with it, one after another
Formula  any other function of strips
Turn     the frames cut and flipped

Precision: `Affine` computes in float32 where float32 holds the raw dtype exactly (integers of up to 16 bits, float32)
and the result is float32; else in float64, rounded once at the end. Subtract first, then divide (rather than
raw*gain + offset): the difference of nearly equal numbers is then exact, and each step rounds as numpy's own one-liner
does. An integer result is rounded half to even, then clipped to the integer range.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lima2cli.spec import Array
from lima2cli.view import View

Operand = float | NDArray[np.float64]

StripFunction = Callable[[Array, Array, slice], None]
"""Strips (n, rows, width) of one dtype to ``out`` of another; which rows of the frames they are. It may keep scratch
memory: each thread has one of its own."""


@dataclass(frozen=True)
class Pass:
    """Arithmetic in one dtype, then a conversion; operands are (ufunc, number or (height, width))."""

    work: np.dtype[Any]
    target: np.dtype[Any]
    operands: tuple[tuple[np.ufunc, Array], ...]


@dataclass(frozen=True)
class Call:
    """A function of strips, which ``make`` makes for each thread."""

    target: np.dtype[Any]
    make: Callable[[], StripFunction]


@dataclass(frozen=True)
class Turn:
    """Frames cut and flipped, nothing binned, rows still rows: how a view of them changes."""

    change: Callable[[View], View]


@dataclass(frozen=True, eq=False)
class Stage:
    """What a map does to the pixels of frames of dtype ``source``, each by itself.

    target    dtype of the result
    bad       bool (height, width): pixels that get ``fill``; None = none
    """

    source: str
    target: str
    bad: NDArray[np.bool_] | None = None
    fill: float = 0.0

    def shown(self, view: View) -> Self:
        """The same for frames that show these as ``view`` does, nothing binned."""
        return self if self.bad is None else replace(self, bad=view.apply(self.bad, "any"))

    def compiled(self) -> Pass | Call | None:
        """What is done to strips before bad pixels are filled; None where nothing is."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Affine(Stage):
    """Subtracts, then divides; operands are numbers or (height, width)."""

    offset: Operand = 0.0
    divisor: Operand = 1.0

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

    def shown(self, view: View) -> Self:
        """See `Stage.shown`."""
        same = super().shown(view)
        return replace(same, offset=_shown(self.offset, view), divisor=_shown(self.divisor, view))

    def compiled(self) -> Pass | None:
        """See `Stage.compiled`."""
        if self.copies and self.source == self.target:
            return None
        target = np.dtype(self.target)
        work = target if self.copies else np.dtype(self.work)
        given = ((np.subtract, self.offset, 0.0), (np.divide, self.divisor, 1.0))
        with np.errstate(all="ignore"):  # values beyond float32
            operands = [(ufunc, np.asarray(it, work, order="C")) for ufunc, it, idle in given if not _is(it, idle)]
        return Pass(work, target, tuple(operands))


@dataclass(frozen=True, eq=False)
class Steps(Stage):
    """Ufuncs with a number each, in the dtype ``work``; the target is a float."""

    work: str = "float32"
    numbers: tuple[tuple[np.ufunc, float], ...] = ()

    def compiled(self) -> Pass:
        """See `Stage.compiled`."""
        work = np.dtype(self.work)
        with np.errstate(all="ignore"):
            operands = tuple((ufunc, np.asarray(number, work)) for ufunc, number in self.numbers)
        return Pass(work, np.dtype(self.target), operands)


@dataclass(frozen=True, eq=False)
class Formula(Stage):
    """A function of strips, made from ``images`` (…, height, width)."""

    make: Callable[..., StripFunction] | None = None
    images: tuple[Array, ...] = ()

    def shown(self, view: View) -> Self:
        """See `Stage.shown`."""
        return replace(super().shown(view), images=tuple(view.apply(image, "mean") for image in self.images))

    def compiled(self) -> Call:
        """See `Stage.compiled`."""
        make, images = self.make, [np.ascontiguousarray(image) for image in self.images]
        assert make is not None
        return Call(np.dtype(self.target), lambda: make(*images))


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
    if int(high) == limits.max:
        np.clip(work, low, high, out=work)
        np.copyto(out, work, casting="unsafe")
        return
    over = work >= high  # one above the largest integer, which is no float: of 64 bits, of 32 in float32
    np.clip(work, low, np.nextafter(high, number(0)), out=work)
    np.copyto(out, work, casting="unsafe")
    out[over] = limits.max


def _shown(operand: Operand, view: View) -> Operand:
    return view.apply(operand, "mean") if isinstance(operand, np.ndarray) else operand


def _is(operand: Operand, value: float) -> bool:
    """Whether an operand is this very number."""
    return not isinstance(operand, np.ndarray) and operand == value


def _small_integers(operand: Operand) -> bool:
    """Whether sums with integers of 16 bits are exact in float32."""
    values = np.asarray(operand)
    return bool(np.all(np.abs(values) < 2**23) and np.all(values == np.rint(values)))
