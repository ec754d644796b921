"""Apply maps one after another to frames, strip by strip, so that nothing leaves the cache between them.

The results are bit for bit those of single maps. Cuts and flips go first, as a numpy view of the raw frames: unneeded
pixels are never read, and the images of the other maps are cut and flipped instead, once. Neighbours are not folded
algebraically: in a cache the arithmetic costs less than another rounding. But where one ends in the dtype that the next
computes in, they are one pass. No pixel raises a numpy warning.

Masked pixels get their value at the end of a strip, once. Where that is NaN and an image is subtracted or divided by,
the image is NaN there instead, which costs nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.frames import Array
from lima2cli.geometry import Rect
from lima2cli.kernels.masked import Holes
from lima2cli.kernels.strips import Call, Pass, Stage, Tile, Turn, store, tile_shape, tiles
from lima2cli.view import View

StripReader = Callable[[Array, slice, slice], None]
"""Function that reads a strip while it is in cache: pixels (n, rows, width), frames of the block, rows."""


@dataclass(frozen=True, eq=False)
class ChainStep:
    """A computation of strips of ``target``, None = they are copied; then the values of masked pixels.

    entering  masked pixels of the input
    holes     masked pixels of the result, one after another
    """

    compute: Pass | Call | None
    target: np.dtype[Any]
    entering: Holes | None
    holes: tuple[Holes, ...] = ()

    @property
    def masks(self) -> bool:
        """Return True if any pixel is masked."""
        return self.entering is not None or bool(self.holes)


@dataclass(frozen=True, eq=False)
class Recipe:
    """The computation of frames, worked out once; threads share it.

    view    how the result shows the frames, nothing binned
    target  dtype of the result
    """

    view: View
    steps: tuple[ChainStep, ...]
    target: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int]:
        """Return (height, width) of the result."""
        return self.view.shape

    @property
    def idle(self) -> bool:
        """Return True if the result is a part of the frames as it is."""
        return not self.steps and not self.view.mirrored and not self.view.rotation

    def seen(self, frames: Array) -> Array:
        """Return a numpy view of frames (n, height, width), cut and turned; the very array where nothing changes."""
        area = self.view.area
        if frames.shape[1:] == (area.height, area.width) and not self.view.mirrored and not self.view.rotation:
            return frames
        return self.view.turn(frames[:, area.y : area.bottom, area.x : area.right])


def settle(parts: Sequence[Stage | Turn], dtype: str, height: int, width: int) -> Recipe:
    """Return the recipe of all parts, in order, for frames of this dtype and shape."""
    view, stages = View(Rect(0, 0, width, height)), list[Stage]()
    for part in parts:
        if isinstance(part, Stage):
            stages.append(part)
            continue
        here = part.change(View(Rect(0, 0, view.shape[1], view.shape[0])))
        view, stages = part.change(view), [stage.shown(here) for stage in stages]
    return Recipe(view, _steps(stages), np.dtype(stages[-1].target if stages else dtype))


def settle_part(parts: Sequence[Stage | Turn], dtype: str, height: int, width: int, part: Rect) -> Recipe:
    """Return the recipe of a part of the result; all else as for `settle`."""
    return settle([*parts, Turn(partial(View.cut, part=part))], dtype, height, width)


class Chain:
    """A recipe at work in one thread.

    ``keeps``: whole frames are made, in one output array that grows with the largest block; else only strips, for those
    who read them.
    """

    def __init__(self, recipe: Recipe, keeps: bool = True) -> None:
        self.recipe, self.keeps = recipe, keeps
        self.calls = {i: step.compute.make() for i, step in enumerate(recipe.steps) if isinstance(step.compute, Call)}
        self.out = np.empty((0, *recipe.shape), recipe.target)
        self.scratch: dict[Any, Array] = {}
        self.cuts: tuple[int, list[Tile]] = (0, [])
        self.places: dict[tuple[Holes, int], NDArray[np.intp]] = {}

    def __call__(self, frames: Array, readers: Sequence[StripReader] = ()) -> Array:
        """Return the result for a block (n, height, width): the chain's own array, or a view of the frames if idle.

        Each reader gets each strip of the result. Without ``keeps`` the returned array means nothing.
        """
        count = len(frames)
        if self.recipe.idle:
            self.compute(frames, None, readers)
            return self.recipe.seen(frames)
        if self.keeps and count > len(self.out):
            self.out = np.empty((count, *self.recipe.shape), self.recipe.target)
        out = self.out[:count]
        self.compute(frames, out if self.keeps else None, readers)
        return out

    def compute(self, frames: Array, out: Array | None, readers: Sequence[StripReader]) -> None:
        """Compute the result for frames (n, height, width) strip by strip, in ``out`` (n, …) where it is kept."""
        idle, shown = self.recipe.idle, self.recipe.seen(frames)
        if idle and not readers:
            return
        with np.errstate(all="ignore"):
            for deep, tall in self._tiles(len(frames)):
                strip = shown[deep, tall]
                if not idle:
                    strip = self._strip(strip, None if out is None else out[deep, tall], tall)
                for reader in readers:
                    reader(strip, deep, tall)

    def _tiles(self, count: int) -> list[Tile]:
        if self.cuts[0] != count:
            self.cuts = (count, tiles(count, *self.recipe.shape))
        return self.cuts[1]

    def _strip(self, raw: Array, out: Array | None, rows: slice) -> Array:
        """Return a strip of the result, in ``out`` or in the chain's own memory."""
        recipe = self.recipe
        if out is None:
            out = self._own("out", recipe.target, raw)
        if not recipe.steps:
            np.copyto(out, raw)
        last = len(recipe.steps) - 1
        for i, step in enumerate(recipe.steps):
            result = out if i == last else self._own((i, "result"), step.target, raw)
            invalid = None if step.entering is None else step.entering.find_in(raw)
            self._step(i, step.compute, raw, result, rows)
            if step.entering is not None:
                step.entering.put(raw, result, invalid, self._places(step.entering, rows))
            for holes in step.holes:
                holes.put(result, result, holes.find_in(result), self._places(holes, rows))
            raw = result
        return out

    def _step(self, i: int, step: Pass | Call | None, raw: Array, result: Array, rows: slice) -> None:
        if step is None:
            np.copyto(result, raw)
            return
        if isinstance(step, Call):
            self.calls[i](raw, result, rows)
            return
        work = result if step.work == step.target else self._own((i, "work"), step.work, raw)
        computed = _compute(step, raw, work, rows)
        if work is not result:
            store(computed, result)

    def _own(self, key: Any, dtype: np.dtype[Any], like: Array) -> Array:
        """Return own memory of the shape of ``like``."""
        if key not in self.scratch:
            height, width = self.recipe.shape
            deep, tall = tile_shape(height, width)
            self.scratch[key] = np.empty(deep * tall * width, dtype)
        return self.scratch[key][: like.size].reshape(like.shape)

    def _places(self, holes: Holes, rows: slice) -> NDArray[np.intp] | None:
        """Return flat indices in a strip of the pixels of a static mask."""
        if holes.mask is None:
            return None
        index = self.places.get((holes, rows.start))
        if index is None:
            width = self.recipe.shape[1]
            first, end = np.searchsorted(holes.places, (rows.start * width, rows.stop * width))
            index = self.places[holes, rows.start] = holes.places[first:end] - rows.start * width
        return index


def _steps(stages: Sequence[Stage]) -> tuple[ChainStep, ...]:
    computed = [stage.compiled() for stage in stages]
    holes = _folded(computed, _needed([stage.holes() for stage in stages]))
    steps: list[ChainStep] = []
    for stage, compute, own in zip(stages, computed, holes, strict=True):
        before = steps[-1] if steps else None
        if compute is None and own is None:
            continue
        if compute is None and before is not None and own is not None:
            steps[-1] = replace(before, holes=(*before.holes, own))
        elif (
            isinstance(compute, Pass)
            and before is not None
            and isinstance(before.compute, Pass)
            and not before.masks
            and own is None
            and before.compute.work == before.target == compute.work
        ):
            operands = (*before.compute.operands, *compute.operands)
            steps[-1] = replace(before, compute=replace(compute, operands=operands), target=compute.target)
        else:
            steps.append(ChainStep(compute, np.dtype(stage.target), own))
    return tuple(steps)


def _needed(holes: Sequence[Holes | None]) -> list[Holes | None]:
    """Return the holes without static masks all of whose pixels get another value later."""
    needed: list[Holes | None] = []
    later: NDArray[np.bool_] | None = None
    for own in reversed(holes):
        if own is not None and own.mask is not None:
            if later is not None and not (own.mask & ~later).any():
                own = own.unmasked()
            elif own.value is not None:
                later = own.mask
        needed.append(own)
    return needed[::-1]


def _folded(computed: list[Pass | Call | None], holes: list[Holes | None]) -> list[Holes | None]:
    """Return the holes that remain after putting NaN into the images of passes; ``computed`` is changed."""
    left = list(holes)
    for last, own in enumerate(holes):
        if own is None or own.mask is None or not own.nan:
            continue
        at = _operand(computed, holes, last)
        if at is not None:
            i, k = at
            step = computed[i]
            assert isinstance(step, Pass)
            ufunc, image = step.operands[k]
            changed = (ufunc, np.where(own.mask, image.dtype.type(np.nan), image))
            computed[i] = replace(step, operands=(*step.operands[:k], changed, *step.operands[k + 1 :]))
            left[last] = own.unmasked()
    return left


def _operand(
    computed: Sequence[Pass | Call | None], holes: Sequence[Holes | None], last: int
) -> tuple[int, int] | None:
    """Return pass and operand, an image, from which NaN comes through to the result of ``last``; None without one."""
    for i in range(last, -1, -1):
        step, own = computed[i], holes[i]
        if i < last and own is not None and not own.nan:
            return None
        if step is None:
            continue
        if not isinstance(step, Pass) or step.work.kind != "f" or step.target.kind != "f":
            return None
        for k, (_, operand) in enumerate(step.operands):
            if operand.ndim:
                return i, k
    return None


def _compute(step: Pass, raw: Array, work: Array, rows: slice) -> Array:
    """Return the strip after the operands of a pass, computed in ``work``."""
    if raw.dtype != work.dtype or not step.operands:  # converting first is faster than ufuncs of mixed dtypes
        np.copyto(work, raw, casting="unsafe")
        raw = work
    for ufunc, operand in step.operands:
        raw = ufunc(raw, operand[rows] if operand.ndim else operand, out=work)
    return raw
