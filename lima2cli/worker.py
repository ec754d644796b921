"""Programs of the user's that join a run as workers: the command of a node `mpi`.

    from lima2cli.worker import serve

    def shift(frames, numbers, factor): ...        # frames (n, height, width), numbers (n,), params of the node

    serve(shift)

or, where the program wants the loop for itself:

    from lima2cli.worker import Worker

    for task in Worker():
        task.reply(shift(task.frames, task.numbers))

All ranks of a run wait until the program has joined, which `serve` and `Worker` do. Each task is answered before the
next one is asked for. The loop ends with the run; the program has then as long as the acquisition's timeout to end.
"""

import atexit
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.frames import Array, FrameSpec
from lima2cli.graph.offload import Given, Service
from lima2cli.nodes.user_function import Code, words
from lima2cli.ranks.loop import LONGEST_SLEEP_S, SHORTEST_SLEEP_S


class Task:
    """A block to work on.

    frames    (n, height, width), read-only, of the worker's own
    numbers   (n,) uint64, the frame numbers, increasing
    times     (n,) uint64, the detector's time of each frame, ns since the epoch
    receiver  which of the receivers of the node it comes from, from 0
    """

    def __init__(self, service: Service, given: Given) -> None:
        self.frames: Array = given.frames
        self.numbers: NDArray[np.uint64] = given.numbers
        self.times: NDArray[np.uint64] = given.times
        self.receiver = given.place
        self._service, self._given, self._open = service, given, True

    def reply(self, result: Any = None) -> None:
        """Answer, once; ``result`` (n, *shape) is as the node's ``output`` declares it, nothing with ``reply: false``.

        Where it does not fit the block has failed, and the node's ``on_error`` decides.

        Raises: ValueError where it was answered before.
        """
        self._close()
        self._service.reply(self._given, result)

    def fail(self, why: str) -> None:
        """Answer that there is no result; see the node's ``on_error``."""
        self._close()
        self._service.fail(self._given, why)

    def _close(self) -> None:
        if not self._open:
            raise ValueError(f"frames {self.numbers[0]} to {self.numbers[-1]} have been answered already")
        self._open = False

    def _serve(self, code: Code) -> None:
        self._close()
        self._service.answer(self._given, code)

    def _end(self) -> None:
        """Answer a task that was not answered before the next one is asked for: as failed where a reply is due."""
        if self._open and self._service.replies:
            self.fail("the worker did not reply")
        elif self._open:
            self.reply()


class Worker:
    """This process as a worker; its tasks one after the other.

    name    of the program, in messages;  params  of the node;  spec  the `FrameSpec` of what comes in

    Raises: EnvironmentUnfit where there is no run to join. A program that ends before the run, by an exception or not,
    is missed by the receivers, and the node's ``on_error`` says what that means.
    """

    def __init__(self) -> None:
        from lima2cli.job.rank_main import join

        program, self._port = join()
        self._service = Service(program, self._port)
        self.name = self._service.name
        self.params: Mapping[str, Any] = self._service.params
        self.spec: FrameSpec = self._service.spec
        self._closed = self._announced = False
        self._pause = SHORTEST_SLEEP_S
        atexit.register(self.close)

    def __iter__(self) -> Iterator[Task]:
        """Yield tasks until the run ends."""
        self._ready()
        while not self._service.ended:
            given = self._look()
            if given is not None:
                task = Task(self._service, given)
                yield task
                task._end()

    def close(self) -> None:
        """Leave the run and wait for its end; called by itself at the end of the program."""
        if self._closed:
            return
        self._closed = True
        error = getattr(sys, "last_value", None)
        why = "its program ended" if error is None else words(error)
        if self._announced:
            self._service.leave(why)
        else:
            self._service.unfit(why)
        while not self._service.ended:
            self._look()
        self._service.finish()
        while not self._service.done:
            self._look()
        self._port.close()

    def _ready(self) -> None:
        if not self._announced:
            self._announced = True
            self._service.ready()

    def _look(self) -> Given | None:
        """Return the next block; None where there is none yet, after a sleep."""
        given = self._service.take()
        if given is None:
            time.sleep(self._pause)
            self._pause = min(2 * self._pause, LONGEST_SLEEP_S)
        else:
            self._pause = SHORTEST_SLEEP_S
        return given


def serve(function: Callable[..., Any]) -> None:
    """Join the run, and call ``function(frames, numbers, **params)`` for each block, until the run ends.

    A class is made once, ``function(spec, **params)``, called with frames and numbers, and closed at the end where it
    has a method ``close``. Its result is the reply; where it raises, the block has failed (see `Task.fail`).
    """
    worker = Worker()
    code = Code(worker.name, lambda: function, worker.spec, worker.params)
    for task in worker:
        task._serve(code)
    code.close()


__all__ = ["Task", "Worker", "serve"]
