"""Maps described pixel by pixel, so that neighbours are computed together, strip by strip, while they are in cache."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.frames import Array, FrameSpec, Invalid
from lima2cli.geometry import Rect, bounding_box
from lima2cli.kernels.masked import NAN, Holes, carried, finder
from lima2cli.view import View

Operand = float | NDArray[np.float64]

StripFunction = Callable[[Array, Array, slice], None]
"""Function from strips (n, rows, width) of one dtype to ``out`` of another, at given rows of the frames. It may keep
scratch memory: each thread has one of its own.
"""


@dataclass(frozen=True)
class Pass:
    """Arithmetic in one dtype, then a conversion; operands are (ufunc, number or (height, width))."""

    work: np.dtype[Any]
    target: np.dtype[Any]
    operands: tuple[tuple[np.ufunc, Array], ...]


@dataclass(frozen=True)
class DeviceText:
    """A function of one pixel in OpenCL C, as an expression of the dtype ``work``.

    ``{raw}`` stands for the pixel, ``{image0}`` for the first image, whose pixel is at ``p``, ``{pixels}`` for how many
    an image has; a NaN in integers is ``gap``.
    """

    text: str
    work: str
    gap: int = 0


@dataclass(frozen=True)
class Call:
    """A function of strips, made by ``make`` for each thread.

    ``c`` is the same for devices, of ``images``; None where there is none.
    """

    target: np.dtype[Any]
    make: Callable[[], StripFunction]
    c: DeviceText | None = None
    images: tuple[Array, ...] = ()


@dataclass(frozen=True)
class Turn:
    """Frames cut and flipped, nothing binned, rows still rows: how a view of them changes."""

    change: Callable[[View], View]


@dataclass(frozen=True, eq=False)
class Stage:
    """The effect of a map on the pixels of frames of dtype ``source``, each by itself.

    target    dtype of the result
    bad       bool (height, width): pixels that are masked in the result; None = none
    fill      value of masked pixels; None = NaN, in integers the value they held
    invalid   values of single frames of the source that are masked, too
    gap       value of a masked pixel of integers that was NaN
    carries_nan  True if a NaN that enters is a NaN in a result of floats by itself
    """

    carries_nan: ClassVar[bool] = True

    source: str
    target: str
    bad: NDArray[np.bool_] | None = None
    fill: float | None = None
    invalid: Invalid = Invalid()
    gap: float = 0.0

    def of(self, spec: FrameSpec) -> Self:
        """Return the stage for frames of ``spec``, with their masked pixels."""
        bad = spec.mask if self.bad is None else self.bad if spec.mask is None else spec.mask | self.bad
        return replace(self, bad=bad, invalid=spec.invalid, gap=spec.gap)

    def unmasked(self) -> Self:
        """Return the stage with nothing masked."""
        return replace(self, bad=None, invalid=Invalid())

    @property
    def leaves(self) -> Invalid:
        """Return the rule of the result's values that are not measurements."""
        if self.fill is None or math.isnan(self.fill):
            return carried(self.invalid, self.source, self.target)
        remaining = finder(self.invalid, self.target, nan=False)
        return self.invalid if remaining is not None and remaining(np.asarray(self.fill, self.target)) else Invalid()

    @property
    def holds(self) -> float | None:
        """Return the value of masked pixels of the result; None where they keep theirs."""
        return math.nan if self.fill is None and np.dtype(self.target).kind == "f" else self.fill

    def holes(self) -> Holes | None:
        """Return the values of masked pixels; None where there are none, or where they get theirs by themselves."""
        value, at = self.holds, None if self.bad is None or not self.bad.any() else self.bad
        by_itself = value is not None and math.isnan(value) and self.carries_nan
        find = finder(self._looked_for(), self.source, nan=not by_itself)
        return None if at is None and find is None else Holes(at, find, value, self.gap, self.target)

    def _looked_for(self) -> Invalid:
        return self.invalid

    def shown(self, view: View) -> Self:
        """Return the stage for frames that show these as ``view`` does, nothing binned."""
        return self if self.bad is None else replace(self, bad=view.apply(self.bad, "any"))

    def compiled(self) -> Pass | Call | None:
        """Return the computation of strips before bad pixels are filled; None where nothing is computed."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Affine(Stage):
    """Subtracts, then divides; operands are numbers or (height, width)."""

    offset: Operand = 0.0
    divisor: Operand = 1.0

    @property
    def copies(self) -> bool:
        """Return True if values are taken as they are: no arithmetic."""
        return _is(self.offset, 0.0) and _is(self.divisor, 1.0)

    @property
    def work(self) -> str:
        """Return the dtype of the arithmetic."""
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
            operands = [
                (ufunc, np.asarray(array, work, order="C")) for ufunc, array, idle in given if not _is(array, idle)
            ]
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
    """A function of strips, made from ``images`` (…, height, width).

    propagates  as ``carries_nan``;  nan_of  values that enter of which it makes NaN by itself
    c           the same for devices; None where there is none
    """

    make: Callable[..., StripFunction] | None = None
    images: tuple[Array, ...] = ()
    propagates: bool = False
    nan_of: tuple[float, ...] = ()
    c: DeviceText | None = None

    @property
    def carries_nan(self) -> bool:  # type: ignore[override]
        """See `Stage`."""
        return self.propagates

    @property
    def leaves(self) -> Invalid:
        """See `Stage`."""
        return NAN if self.nan_of else super().leaves

    def _looked_for(self) -> Invalid:
        return replace(self.invalid, values=tuple(value for value in self.invalid.values if value not in self.nan_of))

    def shown(self, view: View) -> Self:
        """See `Stage.shown`."""
        return replace(super().shown(view), images=tuple(view.apply(image, "mean") for image in self.images))

    def compiled(self) -> Call:
        """See `Stage.compiled`."""
        make, images = self.make, tuple(np.ascontiguousarray(image) for image in self.images)
        assert make is not None
        return Call(np.dtype(self.target), lambda: make(*images), self.c, images)


def store(work: Array, out: Array) -> None:
    """Convert ``work`` (overwritten) to the dtype of ``out``: integers are rounded half to even, then clipped."""
    if out.dtype.kind == "f":
        np.copyto(out, work, casting="unsafe")
    else:
        _store_integers(work, out)


def _store_integers(work: Array, out: Array) -> None:
    """Round ``work`` (overwritten) half to even and clip it to the range of ``out``; no NaN has a meaning here."""
    limits, number = np.iinfo(out.dtype), work.dtype.type
    low, high = number(limits.min), number(limits.max)
    np.rint(work, out=work)
    if int(high) == limits.max:
        np.clip(work, low, high, out=work)
        np.copyto(out, work, casting="unsafe")
        return
    over = work >= high  # one above the largest integer, which is not a float: of 64 bits, of 32 in float32
    np.clip(work, low, np.nextafter(high, number(0)), out=work)
    np.copyto(out, work, casting="unsafe")
    out[over] = limits.max


def _shown(operand: Operand, view: View) -> Operand:
    return view.apply(operand, "mean") if isinstance(operand, np.ndarray) else operand


def _is(operand: Operand, value: float) -> bool:
    """Return True if an operand is this very number."""
    return not isinstance(operand, np.ndarray) and operand == value


def _small_integers(operand: Operand) -> bool:
    """Return True if sums with integers of 16 bits are exact in float32."""
    values = np.asarray(operand)
    return bool(np.all(np.abs(values) < 2**23) and np.all(values == np.rint(values)))


TILE_PIXELS = 131072
"""Pixels of a tile: 512 KiB as float32. A tile's data stay in the cache of a core, 1 to 2 MiB, or of its neighbours; a
fourth of it fits anywhere, and spends as long between numpy's calls as in them.
"""

Tile = tuple[slice, slice]
"""Frames and rows of a tile."""


def tile_shape(height: int, width: int) -> tuple[int, int]:
    """Return (frames, rows) of the largest tile: whole frames where several fit, else whole rows of one frame."""
    if height * width <= TILE_PIXELS:
        return max(1, TILE_PIXELS // (height * width)), height
    return 1, max(1, TILE_PIXELS // width)


def tiles(frames: int, height: int, width: int) -> list[Tile]:
    """Return the tiles of a block; those of the same rows are neighbours, so a calibration image stays in cache."""
    deep, tall = tile_shape(height, width)
    return [
        (slice(i, min(i + deep, frames)), slice(y, min(y + tall, height)))
        for y in range(0, height, tall)
        for i in range(0, frames, deep)
    ]


WINDOW_PIXELS = 8192
"""Pixels that take about as long as the calls that each further part of frames costs."""


def whole(shape: tuple[int, int]) -> Rect:
    """Return the rectangle of all pixels of frames of a shape (height, width)."""
    return Rect(0, 0, shape[1], shape[0])


def demanded(shape: tuple[int, int], reads: Sequence[Sequence[Rect] | None] | None) -> tuple[Rect, ...]:
    """Return the parts of frames (height, width) that have to be computed for those who read them.

    ``reads`` are the rectangles that each of these reads, None = all pixels. They lie in one part each, the parts are
    disjoint, and neighbours are one where that costs less; it is the whole frame where parts of it would cost as much.
    """
    if not reads or None in reads:
        return (whole(shape),)
    rects = {rect for each in reads if each is not None for rect in each if rect.area}
    left = sorted(rects, key=lambda rect: (rect.y, rect.x), reverse=True)
    found: list[Rect] = []
    while left:
        window = left.pop()
        at = next((i for i, other in enumerate(found) if _cheaper(window, other)), None)
        if at is None:
            found.append(window)
        else:
            left.append(bounding_box((window, found.pop(at))))
    if sum(window.area + WINDOW_PIXELS for window in found) >= math.prod(shape) + WINDOW_PIXELS:
        return (whole(shape),)
    return tuple(sorted(found, key=lambda window: (window.y, window.x)))


def _cheaper(one: Rect, other: Rect) -> bool:
    """Return True if two windows must be one, since they overlap, or should be."""
    return bool((one & other).area) or bounding_box((one, other)).area <= one.area + other.area + WINDOW_PIXELS
