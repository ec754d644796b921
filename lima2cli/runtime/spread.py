"""Functions of the arrays of a block, in several threads."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from lima2cli.errors import UserCodeError
from lima2cli.spec import Array, FrameSpec
from lima2cli.threads import team

Function = Callable[[Mapping[str, Array]], Array]
"""Frames (n, height, width) of each input, by name, to as many frames."""


class Spread:
    """A function that each thread has for itself and does for consecutive frames of a block, into one array.

    ``spec`` is of the frames that it gives. They stay valid until the next call only. Raises `UserCodeError` where it
    gives others: a node of a plugin that does not keep to what it infers.
    """

    def __init__(self, make: Callable[[], Function], spec: FrameSpec, threads: int) -> None:
        self._functions = [make() for _ in range(threads)]
        self._team = team(threads)
        self._spec = spec
        self._out: Array = np.empty((0, *spec.shape), spec.dtype)

    def __call__(self, frames: Mapping[str, Array]) -> Array:
        """The result for a block."""
        first = next(iter(frames.values()))
        count, parts = len(first), self._team.parts(len(first), first.shape[1] * first.shape[2])
        if len(parts) == 1:
            return checked(self._functions[0](frames), count, self._spec)
        if count > len(self._out):
            self._out = np.empty((count, *self._out.shape[1:]), self._out.dtype)
        self._team.each([partial(self._part, i, frames, part) for i, part in enumerate(parts)])
        return self._out[:count]

    def _part(self, thread: int, frames: Mapping[str, Array], part: slice) -> None:
        given = self._functions[thread]({name: array[part] for name, array in frames.items()})
        self._out[part] = checked(given, part.stop - part.start, self._spec)


def checked(frames: Array, count: int, spec: FrameSpec) -> Array:
    """``frames``, which a node has given for ``count`` that entered, as they are. Raises `UserCodeError` where they are
    not of ``spec``."""
    if frames.shape != (count, *spec.shape) or frames.dtype != spec.dtype:
        given = f"{frames.dtype} {frames.shape}"
        raise UserCodeError(f"it has given {given}, and says that it gives {spec.dtype} {(count, *spec.shape)}")
    return frames
