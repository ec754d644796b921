"""Threads of one process, for work that releases the interpreter's lock: numpy, numexpr, compression."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

T = TypeVar("T")

PART_PIXELS = 1 << 16
"""Pixels that are worth a thread: fewer are computed before it wakes."""


class Team:
    """A team of ``size`` threads, the caller's among them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pool = ThreadPoolExecutor(size - 1, "lima2") if size > 1 else None

    def each(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Return the results of the tasks, in their order; all have ended by then.

        Raises: the error of the first task that failed.
        """
        if self._pool is None or len(tasks) < 2:
            return [task() for task in tasks]
        others = [self._pool.submit(task) for task in tasks[1:]]
        first: Future[T] = Future()
        try:
            first.set_result(tasks[0]())
        except BaseException as error:  # noqa: BLE001  raised below, when the others have ended
            first.set_exception(error)
        wait(others)
        return [done.result() for done in (first, *others)]

    def parts(self, frames: int, pixels: int) -> list[slice]:
        """Return consecutive parts of a block of frames of so many pixels, one for each thread that is worth it."""
        count = max(1, min(self.size, frames, frames * pixels // PART_PIXELS))
        return [slice(i * frames // count, (i + 1) * frames // count) for i in range(count)]


@cache
def team(size: int) -> Team:
    """Return the team of that size of this process: its ranks take turns, so that they share it."""
    return Team(size)
