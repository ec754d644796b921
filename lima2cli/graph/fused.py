"""A fused kernel at work: pixel-wise maps, and the reductions that read their results, in several threads."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import ParamSpec, TypeVar, cast

import numpy as np

from lima2cli.errors import UserCodeError
from lima2cli.frames import Array, Block, Files, FrameSpec, SparsePixels
from lima2cli.geometry import Rect
from lima2cli.graph.protocol import Arrival, Operator, PartFailed, Result
from lima2cli.kernels.chain import Chain, Recipe, StripReader, settle, settle_part
from lima2cli.kernels.strips import Stage, Turn, demanded, whole
from lima2cli.nodes.base import Map, Partial, Reduce, StripReducer
from lima2cli.plan.ir import Kernel, Step
from lima2cli.threads import team

P = ParamSpec("P")
T = TypeVar("T")


class BoundChain(Operator):
    """The maps of a kernel, bound, and the reducers that read their frames: one of each node for each thread.

    Raises:
        PartFailed: a map can't be bound.
    """

    def __init__(self, kernel: Kernel, steps: Mapping[str, Step], files: Files, threads: int = 1) -> None:
        super().__init__(kernel.maps[-1])
        self._maps, self._makes = kernel.maps, bool(kernel.makes)
        self._reducers: dict[str, Sequence[StripReducer]] = {}
        self._reads: dict[str, Sequence[Rect] | None] = {}
        self._merged: set[str] = set()
        self._parts, self._before = [stage_of(steps[name], files) for name in kernel.maps], steps[kernel.maps[0]].before
        self._recipe = settle(self._parts, self._before.dtype, *self._before.shape)
        self._looks: dict[str, Chain] = {}
        self._threads, self._team = threads, team(threads)
        self._windows = self._bind(self._parts, self._recipe, self._reads)
        self._out = np.empty((0, *self._recipe.shape), self._recipe.target)

    def add(
        self,
        name: str,
        reducers: Sequence[StripReducer],
        *,
        reads: Sequence[Rect] | None = None,
        merged: bool = False,
    ) -> None:
        """Add a node's reducers, and what they read, see `Reduce.reads`.

        Where its rows are ``merged`` with those of others they are not saved as they are.
        """
        self._reducers[name], self._reads[name] = reducers, reads
        self._merged |= {name} if merged else set()
        self._windows = self._bind(self._parts, self._recipe, self._reads)

    def _bind(
        self, parts: Sequence[Stage | Turn], recipe: Recipe, reads: Mapping[str, Sequence[Rect] | None]
    ) -> list[list[tuple[Rect, Chain]]]:
        """Return the parts of the result that are computed, with their chains, for each thread."""
        found = demanded(recipe.shape, None if self._makes else list(reads.values()))
        recipes = [recipe]
        if found != (whole(recipe.shape),):
            recipes = [settle_part(parts, self._before.dtype, *self._before.shape, window) for window in found]
        made = list(zip(found, recipes, strict=True))
        return [[(window, Chain(each, keeps=False)) for window, each in made] for _ in range(self._threads)]

    @property
    def nodes(self) -> Collection[str]:
        """See `Operator`: the last map stands for all."""
        return (self.name, *self._reducers)

    @property
    def label(self) -> str:
        """See `Operator`."""
        return ", ".join(self._maps)

    def give_up(self, gone: Collection[str]) -> None:
        """See `Operator`."""
        for name in self._reducers.keys() & gone:
            del self._reducers[name], self._reads[name]

    def push(self, arrival: Arrival) -> Result:
        """See `Operator.push`: the frames, where they are read whole, and what each reducer makes of them."""
        block, received_ns = arrival.there, arrival.received_ns
        frames, count = block.frames, len(block.frames)
        out = None if self._recipe.idle or not self._makes else self._room(count)
        parts = self._team.parts(count, frames.shape[1] * frames.shape[2])
        shares = enumerate(zip(self._windows, parts, strict=False))
        works = [
            partial(self._stage_part, i, chains, block.part(part), None if out is None else out[part], received_ns)
            for i, (chains, part) in shares
        ]
        partials = self._team.each(works)
        rows = {name: concatenated([part[name] for part in partials]) for name in self._reducers}
        staged = {name: own for name, own in rows.items() if name not in self._merged} if self._merged else rows
        if not self._makes:
            return Result(arrival.last, None, rows, staged)
        made = Block(self._recipe.seen(frames) if out is None else out, block.numbers, block.times, False)
        return Result(arrival.last, made, rows, staged)

    def rebind(self, step: Step, files: Files) -> Callable[[], None] | None:
        """See `Operator.rebind`: one of the maps, or what one of the reductions reads."""
        before = self._parts, self._reads
        parts, reads = list(self._parts), dict(self._reads)
        if step.name in self._maps:
            parts[self._maps.index(step.name)] = stage_of(step, files)
        elif step.name in reads:
            reads[step.name] = cast(Reduce, step.node).reads(step.before)
        else:
            return None
        recipe = settle(parts, self._before.dtype, *self._before.shape)
        bound = self._bind(parts, recipe, reads)

        def put() -> None:
            if before[0] is not self._parts or before[1] is not self._reads:  # one made ready before this was applied
                again = self.rebind(step, files)
                assert again is not None
                again()
                return
            self._parts, self._recipe, self._reads, self._windows, self._looks = parts, recipe, reads, bound, {}

        return put

    def last_frame(self, name: str, block: Block) -> Array | None:
        """See `Operator.last_frame`: the maps up to this one are computed for one frame more."""
        if name not in self._maps:
            return None
        if name not in self._looks:
            parts = self._parts[: self._maps.index(name) + 1]
            self._looks[name] = Chain(settle(parts, self._before.dtype, *self._before.shape))
        frame: Array = self._looks[name](block.frames[-1:])[0]
        return frame.copy()

    def _room(self, count: int) -> Array:
        if count > len(self._out):
            self._out = np.empty((count, *self._recipe.shape), self._recipe.target)
        return self._out[:count]

    def _stage_part(
        self, thread: int, chains: Sequence[tuple[Rect, Chain]], block: Block, out: Array | None, received_ns: int
    ) -> dict[str, Partial]:
        """Return what the reducers of a thread make of its part of the frames, which go to ``out``."""
        reducers = {name: each[thread] for name, each in self._reducers.items()}
        return stage_part(reducers, chains, block, out, received_ns)


def stage_part(
    reducers: Mapping[str, StripReducer],
    chains: Sequence[tuple[Rect, Chain]],
    block: Block,
    out: Array | None,
    received_ns: int,
) -> dict[str, Partial]:
    """Return what reducers make of a block, by name, from the strips of the parts of frames that chains compute.

    Raises:
        PartFailed: a reducer fails.
    """
    for name, reducer in reducers.items():
        _call(name, reducer.begin, len(block.frames))
    for window, chain in chains:
        chain.compute(block.frames, out, [_reader(name, each, window) for name, each in reducers.items()])
    return {name: _call(name, reducer.end, block, received_ns) for name, reducer in reducers.items()}


def concatenated(partials: Sequence[Partial]) -> Partial:
    """Return partial results of consecutive frames as one."""
    if len(partials) == 1:
        return partials[0]
    return {key: np.concatenate([one[key] for one in partials]) for key in partials[0]}


def stage_of(step: Step, files: Files) -> Stage | Turn:
    """Return what a map does to strips. Raises `PartFailed` where it can't be bound."""
    try:
        return cast(Map, step.node).stage_of(step.given(files))
    except Exception as error:
        raise PartFailed(step.name, error) from error


def _reader(name: str, reducer: StripReducer, window: Rect) -> StripReader:
    """Return what gives a reducer the strips of a part of the frames."""
    columns = slice(window.x, window.right)

    def read(pixels: Array, which: slice, rows: slice) -> None:
        _call(name, reducer.strip, pixels, which, slice(rows.start + window.y, rows.stop + window.y), columns)

    return read


def _call(name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what a function of a node gives. Raises `PartFailed` where it fails."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise PartFailed(name, error) from error


Function = Callable[..., Array | SparsePixels]
"""A function from frames (n, height, width) of each input to as many frames."""


class Spread:
    """A function that each thread has for itself and does for consecutive frames of a block, into one array.

    ``spec`` is of the frames that it gives. They stay valid until the next call only.

    Raises:
        UserCodeError: it gives others: a node of a plugin that does not keep to what it infers.
    """

    def __init__(self, make: Callable[[], Function], spec: FrameSpec, threads: int) -> None:
        self._functions = [make() for _ in range(threads)]
        self._team = team(threads)
        self._spec = spec
        self._out: Array = np.empty((0, *spec.shape), spec.dtype)

    def __call__(self, *frames: Array) -> Array:
        """Return the result for a block."""
        count, height, width = frames[0].shape
        parts = self._team.parts(count, height * width)
        if len(parts) == 1:
            return checked(self._functions[0](*frames), count, self._spec)
        if count > len(self._out):
            self._out = np.empty((count, *self._out.shape[1:]), self._out.dtype)
        self._team.each([partial(self._part, i, frames, part) for i, part in enumerate(parts)])
        return self._out[:count]

    def _part(self, thread: int, frames: Sequence[Array], part: slice) -> None:
        result = self._functions[thread](*(array[part] for array in frames))
        self._out[part] = checked(result, part.stop - part.start, self._spec)


def checked(frames: Array | SparsePixels, count: int, spec: FrameSpec) -> Array:
    """Return ``frames``, which a node has given for ``count`` that entered, as they are.

    Raises:
        UserCodeError: they are not of ``spec``.
    """
    if isinstance(frames, SparsePixels):
        raise UserCodeError(f"it returned sparse frames, but declares {spec}")
    if frames.shape != (count, *spec.shape) or frames.dtype != spec.dtype:
        layout = f"{frames.dtype} {frames.shape}"
        raise UserCodeError(f"it returned {layout}, but declares {spec.dtype} {(count, *spec.shape)}")
    return frames
