"""A fused kernel at work: pixel-wise maps, and the reductions that read their results, in several threads."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from lima2cli.errors import UserCodeError
from lima2cli.frames import Array, Block, Files, FrameSpec
from lima2cli.kernels.chain import Chain, StripReader, settle
from lima2cli.kernels.strips import Stage, Turn
from lima2cli.nodes.base import Partial, StripReducer
from lima2cli.plan.ir import Kernel, Step
from lima2cli.threads import team


class PartFailed(Exception):
    """One node of a kernel raised; the others work."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name)
        self.name, self.error = name, error


class BoundChain:
    """The maps of a kernel, bound.

    ``reducers``, one for each thread, are added, and taken out, by name.

    Raises:
        PartFailed: a map can't be bound.
    """

    def __init__(self, kernel: Kernel, steps: Mapping[str, Step], files: Files, threads: int = 1) -> None:
        self.maps, self.makes = kernel.maps, bool(kernel.makes)
        self.reducers: dict[str, Sequence[StripReducer]] = {}
        parts, before = [_part(steps[name], files) for name in kernel.maps], steps[kernel.maps[0]].before
        self._recipe = settle(parts, before.dtype, *before.shape)
        self._team = team(threads)
        self._chains = [Chain(self._recipe, keeps=False) for _ in range(threads)]
        self._out = np.empty((0, *self._recipe.shape), self._recipe.target)

    def stage(self, block: Block, received_ns: int) -> tuple[Block | None, dict[str, Partial]]:
        """Return the frames, where they are read whole, and what each reducer makes of them.

        Raises:
            PartFailed: a node failed.
        """
        frames, count = block.frames, len(block.frames)
        out = None if self._recipe.idle or not self.makes else self._room(count)
        parts = self._team.parts(count, frames.shape[1] * frames.shape[2])
        partials = self._team.each(
            [partial(self._stage_part, i, part_of(block, part), part, out, received_ns) for i, part in enumerate(parts)]
        )
        whole = {name: concatenated([part[name] for part in partials]) for name in self.reducers}
        if not self.makes:
            return None, whole
        return Block(self._recipe.seen(frames) if out is None else out, block.numbers, block.times, False), whole

    def _room(self, count: int) -> Array:
        if count > len(self._out):
            self._out = np.empty((count, *self._recipe.shape), self._recipe.target)
        return self._out[:count]

    def _stage_part(
        self, thread: int, block: Block, part: slice, out: Array | None, received_ns: int
    ) -> dict[str, Partial]:
        """Return what the reducers of a thread make of its part of the frames, which go to ``out``."""
        reducers = {name: each[thread] for name, each in self.reducers.items()}
        readers = [_reader(name, reducer, len(block.frames)) for name, reducer in reducers.items()]
        self._chains[thread].compute(block.frames, None if out is None else out[part], readers)
        partials = {}
        for name, reducer in reducers.items():
            try:
                partials[name] = reducer.end(block, received_ns)
            except Exception as error:
                raise PartFailed(name, error) from error
        return partials


def part_of(block: Block, part: slice) -> Block:
    """Return consecutive frames of a block."""
    return Block(block.frames[part], block.numbers[part], block.times[part], block.stable)


def concatenated(partials: Sequence[Partial]) -> Partial:
    """Return partial results of consecutive frames as one."""
    if len(partials) == 1:
        return partials[0]
    return {key: np.concatenate([one[key] for one in partials]) for key in partials[0]}


def _part(step: Step, files: Files) -> Stage | Turn:
    try:
        return step.node.stage_of(step.specs or {step.source: step.before}, files)
    except Exception as error:
        raise PartFailed(step.name, error) from error


def _reader(name: str, reducer: StripReducer, frames: int) -> StripReader:
    reducer.begin(frames)

    def read(pixels: Array, which: slice, rows: slice) -> None:
        try:
            reducer.strip(pixels, which, rows)
        except Exception as error:
            raise PartFailed(name, error) from error

    return read


Function = Callable[[Mapping[str, Array]], Array]
"""A function from frames (n, height, width) of each input, by name, to as many frames."""


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

    def __call__(self, frames: Mapping[str, Array]) -> Array:
        """Return the result for a block."""
        first = next(iter(frames.values()))
        count, parts = len(first), self._team.parts(len(first), first.shape[1] * first.shape[2])
        if len(parts) == 1:
            return checked(self._functions[0](frames), count, self._spec)
        if count > len(self._out):
            self._out = np.empty((count, *self._out.shape[1:]), self._out.dtype)
        self._team.each([partial(self._part, i, frames, part) for i, part in enumerate(parts)])
        return self._out[:count]

    def _part(self, thread: int, frames: Mapping[str, Array], part: slice) -> None:
        result = self._functions[thread]({name: array[part] for name, array in frames.items()})
        self._out[part] = checked(result, part.stop - part.start, self._spec)


def checked(frames: Array, count: int, spec: FrameSpec) -> Array:
    """Return ``frames``, which a node has given for ``count`` that entered, as they are.

    Raises:
        UserCodeError: they are not of ``spec``.
    """
    if frames.shape != (count, *spec.shape) or frames.dtype != spec.dtype:
        layout = f"{frames.dtype} {frames.shape}"
        raise UserCodeError(f"it has given {layout}, and says that it gives {spec.dtype} {(count, *spec.shape)}")
    return frames
