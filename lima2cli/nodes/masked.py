"""What masked pixels hold after a computation.

A pixel is masked where the static mask says so, or in single frames where it holds an invalid value (see `invalid`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.errors import Misfit
from lima2cli.invalid import NAN, Finder, carried, finder, gap_in, kept, union, words
from lima2cli.spec import Array, FrameSpec, Invalid


@dataclass(frozen=True, eq=False)
class Holes:
    """What masked pixels get in a result.

    mask   bool (height, width); None = none
    find   finds those of single frames, in what enters; None = there are none
    value  what they get, None = what they held, in the result's dtype ``target``; ``gap`` instead of NaN
    """

    mask: NDArray[np.bool_] | None
    find: Finder | None
    value: float | None
    gap: float
    target: str

    @property
    def nan(self) -> bool:
        """Whether they get NaN."""
        return self.value is not None and math.isnan(self.value)

    @cached_property
    def places(self) -> NDArray[np.intp]:
        """Flat indices of the pixels of ``mask``."""
        return np.flatnonzero(self.mask) if self.mask is not None else np.empty(0, np.intp)

    def unmasked(self) -> "Holes | None":
        """The same without the static mask."""
        return None if self.find is None else replace(self, mask=None)

    def find_in(self, pixels: Array) -> NDArray[np.bool_] | None:
        """Where strips (n, rows, width) are invalid; None where they are nowhere."""
        found = None if self.find is None else self.find(pixels)
        return None if found is None or not found.any() else found

    def put(self, entered: Array, out: Array, found: NDArray[np.bool_] | None, index: NDArray[np.intp] | None) -> None:
        """Give masked pixels of a strip their value: ``found`` ones, and those at ``index``, flat in the strip.

        entered  the strip as it was before, maybe ``out`` itself
        """
        if index is not None and len(index):
            self._put_static(entered, out, index)
        if found is not None:
            if self.value is None:
                out[found] = kept(entered[found], self.target, self.gap)
            else:
                np.copyto(out, out.dtype.type(self.value), where=found)

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
    """What masked pixels get in a result of several inputs: NaN, in integers what the first of them held that is
    masked there.

    carries_nan  names of inputs whose NaN are NaN in the result by themselves
    """

    def __init__(self, specs: Mapping[str, FrameSpec], target: str, carries_nan: frozenset[str]) -> None:
        is_float = np.dtype(target).kind == "f"
        self._holes = {
            name: Holes(
                spec.mask,
                finder(spec.invalid, spec.dtype, nan=not (is_float and name in carries_nan)),
                math.nan if is_float else None,
                spec.gap,
                target,
            )
            for name, spec in reversed(list(specs.items()))
        }

    def put(self, strips: Mapping[str, Array], out: Array, rows: slice) -> None:
        """Give masked pixels of ``out``, the result of ``strips`` (n, rows, width), their value."""
        for name, holes in self._holes.items():
            strip, found = strips[name], holes.find_in(strips[name])
            if holes.mask is not None:
                some = holes.mask[rows]
                found = np.broadcast_to(some, strip.shape) if found is None else found | some
            if found is not None:
                holes.put(strip, out, found, None)


def joined_rule(specs: Mapping[str, FrameSpec], target: str) -> Invalid:
    """Values of a result of several inputs that are no measurement."""
    rule = Invalid()
    for spec in specs.values():
        rule = union(rule, carried(spec.invalid, spec.dtype, target))
    return rule


def collision(rule: Invalid, key: tuple[str, ...]) -> Misfit:
    """The warning ``invalid-collision``: valid results may be values that mean that nothing was measured."""
    message = f"results may come out as {words(rule)}, and then count as pixels without a measurement"
    return Misfit("invalid-collision", message, key, "results of float32 hold NaN in such pixels")


def unmarked(spec: FrameSpec, rule: Invalid, target: str, name: str = "the input") -> Misfit | None:
    """The warning ``invalid-unmarked`` where NaN of single frames become integers that count; ``rule`` is theirs."""
    if spec.invalid != NAN or np.dtype(target).kind == "f":
        return None
    gap, find = gap_in(spec.gap, target), finder(rule, target)
    if find is not None and find(np.asarray(gap, target)):
        return None
    message = f"NaN of single frames of {name} become {gap}, and count from here on"
    return Misfit("invalid-unmarked", message, ("dtype",), "results of float32 keep them apart")
