"""Runs for programs of asyncio: each call is that of a `Run`, in a thread, which ends when whoever waits is cancelled.

import asyncio
import lima2cli as l2

async def scan():
async with await l2.run_async("maze.yaml", armed=True) as run:
await run.start()
async for event in run.progress():
print(event["rows"])
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from lima2cli.drive import LiveFrame, Pipeline, Run, run
from lima2cli.drive.event_log import GIVE_UP, Event, GiveUp
from lima2cli.runs.control_socket import HangUp

P = ParamSpec("P")
T = TypeVar("T")

MOST = 64
"""Calls that wait at the same time: those of asyncio's own threads would be a few more than this machine has cores."""

_threads = ThreadPoolExecutor(MOST, "lima2-run")


async def _called(function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Return what a function does that waits for a run; cancelled, it waits no longer."""
    give_up, context = GiveUp(), copy_context()
    context.run(GIVE_UP.set, give_up)
    work = partial(context.run, partial(function, *args, **named))
    try:
        return await asyncio.get_running_loop().run_in_executor(_threads, work)
    finally:
        give_up()


def _threaded(
    method: Callable[Concatenate[Run, P], T],
) -> Callable[Concatenate["AsyncRun", P], Coroutine[Any, Any, T]]:
    """Return a method of a `Run` as one that is awaited."""

    @wraps(method)
    async def call(self: "AsyncRun", /, *args: P.args, **named: P.kwargs) -> T:
        return await _called(method, self.run, *args, **named)

    return call


class AsyncRun:
    """A run as `Run` is one, with methods that are awaited: of the same names, arguments, results and exceptions.

    run  the `Run`: what needs no waiting is there, such as ``run.run.directory``, ``live``, ``events``, ``summary``
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    start = _threaded(Run.start)
    acquire = _threaded(Run.acquire)
    completed = _threaded(Run.completed)
    set = _threaded(Run.set)
    trigger = _threaded(Run.trigger)
    stop = _threaded(Run.stop)
    abort = _threaded(Run.abort)
    wait = _threaded(Run.wait)
    status = _threaded(Run.status)
    frame = _threaded(Run.frame)
    saved = _threaded(Run.saved)
    last = _threaded(Run.last)
    rows = _threaded(Run.rows)

    async def state(self) -> str:
        """Return its state, see `Run.state`."""
        return await _called(lambda: self.run.state)

    def follow(self) -> AsyncIterator[Event]:
        """Yield its events as they come, those so far first, to its end."""
        return _each(self.run.follow())

    def progress(self) -> AsyncIterator[Event]:
        """Yield the events of progress from now on."""
        return _each(self.run.progress)

    async def tap(self, node: str, *, every: float = 0.0, count: int | None = None) -> AsyncIterator[LiveFrame]:
        """Yield frames of a flow or node while the run goes on, see `Run.tap`."""
        hang_up = HangUp()
        frames = self.run.tap(node, every=every, count=count, hang_up=hang_up)
        try:
            async for frame in _each(frames):
                yield frame
        finally:
            hang_up()
            with suppress(ValueError):  # a thread is in it, which ends now
                frames.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it, where it goes on, and wait; a failure of the run is raised unless another error is on its way."""
        await _called(self.run.__exit__, kind, error, trace)


async def _each(items: Iterator[T]) -> AsyncIterator[T]:
    """Yield what an iterator that waits gives."""
    while found := await _called(_next, items):
        yield found[0]


def _next(items: Iterator[T]) -> tuple[T, ...]:
    """Return the next of some items, in a tuple; an empty one at their end."""
    return next(((item,) for item in items), ())


async def run_async(
    pipeline: Pipeline,
    *,
    armed: bool = False,
    transport: str = "auto",
    overrides: Sequence[str] = (),
    profiles: Sequence[str | os.PathLike[str]] = (),
    apart: bool = False,
) -> AsyncRun:
    """Start a run as `lima2cli.run` does; where whoever waits for it to be ready is cancelled, it is stopped.

    Raises: as `lima2cli.run`.
    """
    started = await _called(
        run, pipeline, armed=armed, transport=transport, overrides=overrides, profiles=profiles, apart=apart
    )
    return AsyncRun(started)
