"""Pixels that hold no measurement: finding them, arithmetic with them, and keeping them marked."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, FrameSpec, Invalid

NAN = Invalid((math.nan,))
"""Rule of floats that were made of pixels with a rule: NaN may occur."""


@dataclass(frozen=True)
class Finder:
    """Finds the pixels of a dtype that hold no measurement.

    low, high  less than the one, greater than the other is invalid; None = no such limit
    values     these ones are;  nan  NaN is
    """

    low: Any
    high: Any
    values: tuple[Any, ...]
    nan: bool

    def __call__(self, pixels: Array) -> NDArray[np.bool_]:
        """Return the mask of invalid pixels, bool of the shape of ``pixels``."""
        invalid: NDArray[np.bool_] | None = None
        if self.nan:
            invalid = np.isnan(pixels)
        if self.low is not None:
            invalid = _either(invalid, pixels < self.low)
        if self.high is not None:
            invalid = _either(invalid, pixels > self.high)
        for value in self.values:
            invalid = _either(invalid, pixels == value)
        assert invalid is not None
        return invalid


def finder(rule: Invalid, dtype: str, *, nan: bool = True) -> Finder | None:
    """Return the finder of invalid pixels of ``dtype``; None where there can be none. ``nan`` False: without NaN."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        values = tuple(kind.type(value) for value in rule.values if not math.isnan(value))
        low, high = (None if limit is None else kind.type(limit) for limit in (rule.below, rule.above))
        return Finder(low, high, values, nan) if nan or values or low is not None or high is not None else None
    least, most = _limits(dtype)
    start = None if rule.below is None or rule.below <= least else min(math.ceil(rule.below), most)
    stop = None if rule.above is None or rule.above >= most else max(math.floor(rule.above), least)
    values = tuple(kind.type(int(value)) for value in _whole(rule) if least <= value <= most)
    if start is None and stop is None and not values:
        return None
    low, high = (None if limit is None else kind.type(limit) for limit in (start, stop))
    return Finder(low, high, values, nan=False)


def kept(values: Array, dtype: str, gap: float) -> Array:
    """Return ``values`` of masked pixels in ``dtype``: rounded half to even, clipped; ``gap`` for NaN."""
    to = np.dtype(dtype)
    if values.dtype == to:
        return values
    with np.errstate(all="ignore"):
        if to.kind == "f":
            return values.astype(to)
        least, most = _limits(dtype)
        if values.dtype.kind == "f":
            high = float(most) if to.itemsize < 8 else float(np.nextafter(float(most), 0.0))
            number = np.where(np.isnan(values), gap_in(gap, dtype), np.rint(values))
            result: Array = np.clip(number, float(least), high).astype(to)
            result[number >= float(most)] = most
            return result
        own = np.iinfo(values.dtype)
        return np.clip(values, max(least, int(own.min)), min(most, int(own.max))).astype(to)


def gap_in(gap: float, dtype: str) -> int:
    """Return the gap value clipped to a dtype of integers; 0 for NaN."""
    least, most = _limits(dtype)
    return 0 if math.isnan(gap) else int(min(max(gap, least), most))


def carried(rule: Invalid, source: str, target: str) -> Invalid:
    """Return the rule of pixels after arithmetic: NaN in floats, clipped values in integers."""
    if finder(rule, source, nan=False) is None and not any(math.isnan(value) for value in rule.values):
        return Invalid()
    if np.dtype(target).kind == "f":
        return NAN
    least, most = _limits(target)
    values, below, above = [min(max(value, least), most) for value in _whole(rule)], rule.below, rule.above
    if below is not None and math.ceil(below) - 1 < least:
        below, values = None, [*values, least] if finder(Invalid(below=rule.below), source, nan=False) else values
    if above is not None and math.floor(above) + 1 > most:
        above, values = None, [*values, most] if finder(Invalid(above=rule.above), source, nan=False) else values
    return Invalid(tuple(dict.fromkeys(values)), below, above)


def of_sums(rule: Invalid, source: str, target: str) -> tuple[Invalid, int | None]:
    """Return the rule of sums of several pixels, and the value of pixels above the valid ones, None = they keep theirs.

    Sums may be greater than any single valid pixel. So the values above these, such as the largest of the dtype, become
    the largest of ``target``, where this is wider.
    """
    moved = carried(rule, source, target)
    if np.dtype(source).kind == "f" or np.dtype(target).kind == "f" or source == target:
        return moved, None
    _, highest = valid_range(rule, source)
    if highest >= _limits(source)[1]:
        return moved, None
    top = _limits(target)[1]
    lower = [value for value in moved.values if value <= highest]
    return Invalid((*lower, top), moved.below, None), top


def moved_up(values: Array, highest: int, top: int, dtype: str) -> Array:
    """Return invalid values, of any shape, as sums of ``dtype`` hold them: those beyond ``highest`` are ``top``."""
    return np.where(values > highest, np.dtype(dtype).type(top), kept(values, dtype, 0.0))


class MaskedSums:
    """Values of sums that include a masked pixel: NaN, in integers the value of such a pixel, see `of_sums`."""

    def __init__(self, rule: Invalid, source: str, target: str) -> None:
        self.find = finder(rule, source, nan=False)  # sums of NaN are NaN
        self._target, self._top = target, of_sums(rule, source, target)[1]
        self._highest = valid_range(rule, source)[1] if self._top is not None else 0

    def put(self, part: Array, out: Array, masked: NDArray[np.bool_] | None = None) -> None:
        """Set the sums ``out`` where ``part``, a term of their shape, is invalid, or ``masked``, broadcast, is set."""
        invalid = None if self.find is None else self.find(part)
        if masked is not None:
            invalid = np.broadcast_to(masked, part.shape) if invalid is None else invalid | masked
        if invalid is None or not invalid.any():
            return
        if np.dtype(self._target).kind == "f":
            out[invalid] = np.nan
        else:
            out[invalid] = self.held(part[invalid])

    def held(self, values: Array) -> Array:
        """Return values of masked pixels (n,) as sums of integers hold them."""
        if self._top is not None:
            return moved_up(values, self._highest, self._top, self._target)
        return kept(values, self._target, 0.0)


def union(one: Invalid, other: Invalid) -> Invalid:
    """Return the rule of pixels that either rule calls invalid."""
    below = [limit for limit in (one.below, other.below) if limit is not None]
    above = [limit for limit in (one.above, other.above) if limit is not None]
    values = tuple(dict.fromkeys((*one.values, *other.values)))
    return Invalid(values, max(below, default=None), min(above, default=None))


def valid_range(rule: Invalid, dtype: str) -> tuple[int, int]:
    """Return the least and the largest valid value of a dtype of integers."""
    low, high = _limits(dtype)
    low = low if rule.below is None else max(low, math.ceil(rule.below))
    high = high if rule.above is None else min(high, math.floor(rule.above))
    values = set(_whole(rule))
    while low in values and low < high:
        low += 1
    while high in values and high > low:
        high -= 1
    return low, high


def may_collide(rule: Invalid, dtype: str, low: float, high: float) -> bool:
    """Return True if valid results from ``low`` to ``high``, clipped to a dtype of integers, may be invalid values."""
    least, most = _limits(dtype)
    low, high = min(max(low, least), most), min(max(high, least), most)
    inside = any(low <= value <= high for value in _whole(rule))
    return inside or (rule.below is not None and low < rule.below) or (rule.above is not None and high > rule.above)


def words(rule: Invalid) -> str:
    """Return the rule in words: ``-1, -2``."""
    listed = ["NaN" if value != value else f"{value:g}" if value % 1 else str(int(value)) for value in rule.values]
    listed += [] if rule.below is None else [f"below {rule.below:g}"]
    return ", ".join(listed + ([] if rule.above is None else [f"above {rule.above:g}"]))


def fits(rule: Invalid, dtype: str) -> bool:
    """Return True if each part of the rule can be met by a pixel of ``dtype``, and not all pixels meet it."""
    if np.dtype(dtype).kind == "f":
        return True
    parts = [Invalid((value,)) for value in rule.values]
    parts += [Invalid(below=rule.below)] if rule.below is not None else []
    parts += [Invalid(above=rule.above)] if rule.above is not None else []
    low, high = valid_range(rule, dtype)
    return low <= high and all(finder(part, dtype) is not None for part in parts)


def _either(one: NDArray[np.bool_] | None, other: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if one is None:
        return other
    one |= other
    return one


def _whole(rule: Invalid) -> list[int]:
    return [int(value) for value in rule.values if math.isfinite(value) and value == int(value)]


def _limits(dtype: str) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


@dataclass(frozen=True, eq=False)
class Holes:
    """The values that masked pixels get in a result.

    mask   bool (height, width); None = none
    find   finds those of single frames, in the input; None = there are none
    value  their value, None = the one they held, in the result's dtype ``target``; ``gap`` instead of NaN
    """

    mask: NDArray[np.bool_] | None
    find: Finder | None
    value: float | None
    gap: float
    target: str

    @property
    def nan(self) -> bool:
        """Return True if they get NaN."""
        return self.value is not None and math.isnan(self.value)

    @cached_property
    def places(self) -> NDArray[np.intp]:
        """Return flat indices of the pixels of ``mask``, (n,)."""
        return np.flatnonzero(self.mask) if self.mask is not None else np.empty(0, np.intp)

    def unmasked(self) -> "Holes | None":
        """Return the holes without the static mask; None where none are left."""
        return None if self.find is None else replace(self, mask=None)

    def find_in(self, pixels: Array) -> NDArray[np.bool_] | None:
        """Return the mask of invalid pixels, bool, in strips (n, rows, width); None where there are none."""
        invalid = None if self.find is None else self.find(pixels)
        return None if invalid is None or not invalid.any() else invalid

    def put(self, entered: Array, out: Array, bad: NDArray[np.bool_] | None, index: NDArray[np.intp] | None) -> None:
        """Give masked pixels of a strip their value: ``bad`` ones, and those at ``index``, flat in the strip.

        entered  the strip as it was before, maybe ``out`` itself
        """
        if index is not None and len(index):
            self._put_static(entered, out, index)
        if bad is not None:
            if self.value is None:
                out[bad] = kept(entered[bad], self.target, self.gap)
            else:
                np.copyto(out, out.dtype.type(self.value), where=bad)

    def _put_static(self, entered: Array, out: Array, index: NDArray[np.intp]) -> None:
        flat: Any
        if self.value is None:
            rows, columns = np.divmod(index, entered.shape[2])
            flat = kept(entered[:, rows, columns], self.target, self.gap)
        else:
            flat = out.dtype.type(self.value)
        pixels = out.reshape(len(out), -1)
        if len(pixels) == 1:  # much the faster
            pixels[0][index] = flat if np.ndim(flat) == 0 else flat[0]
        else:
            pixels[:, index] = flat


class JoinedHoles:
    """The values that masked pixels get in a result of several inputs.

    They are NaN, in integers the value in the first of the inputs that is masked there.

    carries_nan  indices of inputs whose NaN are NaN in the result by themselves
    """

    def __init__(self, specs: Sequence[FrameSpec], target: str, carries_nan: Collection[int] = ()) -> None:
        is_float = np.dtype(target).kind == "f"
        self._holes = [
            Holes(
                spec.mask,
                finder(spec.invalid, spec.dtype, nan=not (is_float and i in carries_nan)),
                math.nan if is_float else None,
                spec.gap,
                target,
            )
            for i, spec in enumerate(specs)
        ]

    def put(self, strips: Sequence[Array], out: Array, rows: slice) -> None:
        """Give masked pixels of ``out``, the result of ``strips`` (n, rows, width) of each input, their value."""
        for strip, holes in zip(reversed(strips), reversed(self._holes), strict=True):
            invalid = holes.find_in(strip)
            if holes.mask is not None:
                some = holes.mask[rows]
                invalid = np.broadcast_to(some, strip.shape) if invalid is None else invalid | some
            if invalid is not None:
                holes.put(strip, out, invalid, None)


def joined_rule(specs: Mapping[str, FrameSpec], target: str) -> Invalid:
    """Return the rule of values of a result of several inputs that are not measurements."""
    rule = Invalid()
    for spec in specs.values():
        rule = union(rule, carried(spec.invalid, spec.dtype, target))
    return rule


def collision(rule: Invalid, key: tuple[str, ...]) -> NodeMisuse:
    """Return the warning ``invalid-collision``: valid results may be values that mean that nothing was measured."""
    message = f"results may come out as {words(rule)}, and then count as pixels without a measurement"
    return NodeMisuse("invalid-collision", message, key, "results of float32 hold NaN in such pixels")


def unmarked(spec: FrameSpec, rule: Invalid, target: str, name: str = "the input") -> NodeMisuse | None:
    """Return the warning ``invalid-unmarked`` where NaN of single frames, by ``rule``, become integers that count."""
    if spec.invalid != NAN or np.dtype(target).kind == "f":
        return None
    gap, find = gap_in(spec.gap, target), finder(rule, target)
    if find is not None and find(np.asarray(gap, target)):
        return None
    message = f"NaN of single frames of {name} become {gap}, and count as measurements from here on"
    return NodeMisuse("invalid-unmarked", message, ("dtype",), "results of float32 keep them distinct")
