"""Maps one after another on frames, strip by strip, so that nothing leaves the cache between them.

Bit for bit what they give one by one. Cuts and flips go first, as a numpy view of the raw frames: pixels that
are not wanted are never read, and the images of the other maps are cut and flipped instead, once. Neighbours are not
folded algebraically: in a cache the arithmetic costs less than another rounding. But where one ends in the dtype that
the next computes in, they are one pass. Bad pixels get their last value at the end, once. Masked pixels are computed
like any other; NaN of float frames stays NaN. No pixel raises a numpy warning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.geometry import Rect
from lima2cli.nodes.stages import Call, Pass, Stage, Turn, store
from lima2cli.nodes.tiles import Tile, tile_shape, tiles
from lima2cli.spec import Array
from lima2cli.view import View

StripReader = Callable[[Array, slice, slice], None]
"""Takes a strip while it is in cache: pixels (n, rows, width), which frames of the block, which rows."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """What is done to frames, worked out once; threads share it.

    view    how the result shows the frames, nothing binned
    target  dtype of the result
    bad     flat indices of the pixels that get ``values`` at the end, one for all or one for each; None = none
    """

    view: View
    steps: tuple[Pass | Call, ...]
    target: np.dtype[Any]
    bad: NDArray[np.intp] | None
    values: Array

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the result."""
        return self.view.shape

    @property
    def idle(self) -> bool:
        """Whether the result is a part of the frames as it is."""
        return not self.steps and self.bad is None and not self.view.mirrored and not self.view.rotation

    def seen(self, frames: Array) -> Array:
        """A numpy view of frames (n, height, width), cut and turned; the very array where nothing is."""
        area = self.view.area
        if frames.shape[1:] == (area.height, area.width) and not self.view.mirrored and not self.view.rotation:
            return frames
        return self.view.turn(frames[:, area.y : area.bottom, area.x : area.right])


def settle(parts: Sequence[Stage | Turn], dtype: str, height: int, width: int) -> Recipe:
    """The recipe of what is done, part after part, to frames of this dtype and shape."""
    view, stages = View(Rect(0, 0, width, height)), list[Stage]()
    for part in parts:
        if isinstance(part, Stage):
            stages.append(part)
            continue
        here = part.change(View(Rect(0, 0, view.shape[1], view.shape[0])))
        view, stages = part.change(view), [stage.shown(here) for stage in stages]
    target = np.dtype(stages[-1].target if stages else dtype)
    bad, values = _holes(stages, view.shape, target)
    return Recipe(view, _steps(stages), target, None if bad is None else np.flatnonzero(bad), values)


class Chain:
    """A recipe at work in one thread.

    ``keeps``: whole frames are made, in one output array that grows with the largest block; else only strips, for those
    who read them.
    """

    def __init__(self, recipe: Recipe, keeps: bool = True) -> None:
        self.recipe, self.keeps = recipe, keeps
        self.calls = {i: step.make() for i, step in enumerate(recipe.steps) if isinstance(step, Call)}
        self.out = np.empty((0, *recipe.shape), recipe.target)
        self.scratch: dict[Any, Array] = {}
        self.cuts: tuple[int, list[Tile]] = (0, [])
        self.fills: dict[int, tuple[Array, Array]] = {}

    def __call__(self, frames: Array, readers: Sequence[StripReader] = ()) -> Array:
        """The result for a block (n, height, width), in the chain's own array; the frames themselves, or a part of
        them, where nothing else is done.

        Each reader gets each strip of the result. Without ``keeps`` what is returned means nothing.
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
        """The result for a block strip by strip, in ``out`` where it is kept."""
        idle, seen = self.recipe.idle, self.recipe.seen(frames)
        if idle and not readers:
            return
        with np.errstate(all="ignore"):
            for deep, tall in self._tiles(len(frames)):
                strip = seen[deep, tall]
                if not idle:
                    strip = self._strip(strip, None if out is None else out[deep, tall], tall)
                for reader in readers:
                    reader(strip, deep, tall)

    def _tiles(self, count: int) -> list[Tile]:
        if self.cuts[0] != count:
            self.cuts = (count, tiles(count, *self.recipe.shape))
        return self.cuts[1]

    def _strip(self, raw: Array, out: Array | None, rows: slice) -> Array:
        """A strip of the result, in ``out`` or in the chain's own memory."""
        recipe = self.recipe
        if out is None:
            out = self._own("out", recipe.target, raw)
        if not recipe.steps:
            np.copyto(out, raw)
        last = len(recipe.steps) - 1
        for i, step in enumerate(recipe.steps):
            result = out if i == last else self._own((i, "result"), step.target, raw)
            self._step(i, step, raw, result, rows)
            raw = result
        if recipe.bad is not None:
            self._fill(out, rows)
        return out

    def _step(self, i: int, step: Pass | Call, raw: Array, result: Array, rows: slice) -> None:
        if isinstance(step, Call):
            self.calls[i](raw, result, rows)
            return
        work = result if step.work == step.target else self._own((i, "work"), step.work, raw)
        computed = _compute(step, raw, work, rows)
        if work is not result:
            store(computed, result)

    def _own(self, key: Any, dtype: np.dtype[Any], like: Array) -> Array:
        """Memory of the shape of ``like``."""
        if key not in self.scratch:
            height, width = self.recipe.shape
            deep, tall = tile_shape(height, width)
            self.scratch[key] = np.empty(deep * tall * width, dtype)
        return self.scratch[key][: like.size].reshape(like.shape)

    def _fill(self, out: Array, rows: slice) -> None:
        fill = self.fills.get(rows.start)
        if fill is None:
            bad, values, width = self.recipe.bad, self.recipe.values, self.recipe.shape[1]
            assert bad is not None
            first, end = np.searchsorted(bad, (rows.start * width, rows.stop * width))
            values = values[first:end] if values.ndim else values
            fill = self.fills[rows.start] = (bad[first:end] - rows.start * width, values)
        index, values = fill
        flat = out.reshape(len(out), -1)
        if len(flat) == 1:  # much the faster
            flat[0][index] = values
        else:
            flat[:, index] = values


def _steps(stages: Sequence[Stage]) -> tuple[Pass | Call, ...]:
    steps: list[Pass | Call] = []
    for stage in stages:
        step = stage.compiled()
        if step is None:
            continue
        before = steps[-1] if steps else None
        if isinstance(step, Pass) and isinstance(before, Pass) and before.work == before.target == step.work:
            steps[-1] = Pass(step.work, step.target, (*before.operands, *step.operands))
        else:
            steps.append(step)
    return tuple(steps)


def _holes(
    stages: Sequence[Stage], shape: tuple[int, int], target: np.dtype[Any]
) -> tuple[NDArray[np.bool_] | None, Array]:
    """Which pixels are bad in the end, and what is then stored in them: a value for each, or one for all."""
    bad, values = np.zeros(shape, np.bool_), np.empty(shape, target)
    for i, stage in enumerate(stages):
        if stage.bad is None:
            continue
        whole = np.full((1, *shape), stage.fill, stage.target)
        after = [replace(later, bad=None) for later in stages[i + 1 :]]
        values[stage.bad] = Chain(settle(after, stage.target, *shape))(whole)[0][stage.bad]
        bad |= stage.bad
    if not bad.any():
        return None, values
    found = values[bad]
    same = np.array_equal(found, np.full_like(found, found[0]), equal_nan=target.kind == "f")
    return bad, np.asarray(found[0]) if same else found


def _compute(step: Pass, raw: Array, work: Array, rows: slice) -> Array:
    """The operands of a pass on a strip, in ``work``."""
    if raw.dtype != work.dtype or not step.operands:  # converting first is faster than ufuncs of mixed dtypes
        np.copyto(work, raw, casting="unsafe")
        raw = work
    for ufunc, operand in step.operands:
        raw = ufunc(raw, operand[rows] if operand.ndim else operand, out=work)
    return raw
