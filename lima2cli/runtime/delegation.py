"""Delegation: blocks go to workers, other ranks of the run, and what they reply goes on in the order of frames.

Between a receiver and a worker travel

receiver → worker   ("block", index, numbers, times)  with the frames, straight from the memory where they lie
worker → receivers  ("alive",)                         it begins with a block, of whichever receiver
worker → receiver   ("reply", index)                   with frames
                    ("done", index)                    without: there is nothing to reply
                    ("failed", index, why, frame)  the number of the frame, None where it is not about one
worker → receivers  ("left", why)                      it takes no more blocks
"""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from lima2cli.errors import UserCodeError
from lima2cli.human import seconds_text
from lima2cli.nodes.base import Delegate
from lima2cli.plan.records import Step
from lima2cli.program import records
from lima2cli.runtime.arrivals import Arrival, BlockFailed, Hold, Result
from lima2cli.runtime.pairing import Ranges
from lima2cli.spec import Array, Block
from lima2cli.transport.base import Line, Pending

BLOCK, ALIVE, REPLY, DONE, FAILED, LEFT = "block", "alive", "reply", "done", "failed", "left"

UNDER_WAY = 2
"""Blocks that a receiver has at one worker at the same time: one in work, the next at hand."""


@dataclass(slots=True)
class _Task:
    """A block for a worker. ``result`` is what goes on instead of it, once it is ``settled``."""

    arrival: Arrival
    settled: bool = False
    result: Block | None = None
    own: bool = False
    sent: float = 0.0


@dataclass(slots=True)
class _Worker:
    """A worker as a receiver sees it; ``heard`` is when it last gave a sign of life."""

    member: int
    tasks: dict[int, _Task] = field(default_factory=dict)
    heard: float = 0.0
    gone: bool = False


class Delegation:
    """A node that delegates, at one receiver; see `Waiting`.

    ``dropped`` are (first, last) numbers of frames given up, ``warnings`` what users should know, ``silent`` the ranks
    of workers that did not reply in time; the last two are for the caller to clear.
    """

    def __init__(self, step: Step, delegation: records.Delegation, line: Line, place: int) -> None:
        assert isinstance(step.node, Delegate)
        self._name, self._node, self._line, self._about = step.name, step.node, line, delegation
        self._workers = [_Worker(m) for m in range(delegation.receivers, len(delegation.members))]
        self._turn = place % len(self._workers)
        self._order: deque[_Task] = deque()
        self._unsent: deque[_Task] = deque()
        self._sending: list[Pending] = []
        self._abandoned: list[_Task] = []
        self._step = step.numbering.rule.step
        self._given_up = Ranges(self._step)
        self._index = 0
        self._failed: BlockFailed | None = None
        self._stopped = self._told = False
        self.warnings: list[str] = []
        self.silent: list[int] = []

    def begin(self) -> None:
        """An acquisition: counts begin anew."""
        self._given_up = Ranges(self._step)

    @property
    def dropped(self) -> list[tuple[int, int]]:
        """See the class."""
        return self._given_up.ranges

    @property
    def idle(self) -> bool:
        """See `Waiting`."""
        return not (self._order or self._unsent or any(worker.tasks for worker in self._workers))

    @property
    def full(self) -> bool:
        """See `Waiting`."""
        return len(self._unsent) >= UNDER_WAY

    def arrive(self, source: str, what: Arrival) -> None:
        """See `Waiting`."""
        task = _Task(what)
        if what.block is None or self._stopped:
            task.settled = True
            what.done()
        elif self._node.reply:
            self._unsent.append(task)
        else:  # it goes on at once, and to a worker besides
            self._unsent.append(_Task(Arrival(what.last, what.block, hold=_taken(what.hold))))
            task.settled, task.result = True, what.block
        self._order.append(task)

    def poll(self) -> Result | None:
        """See `Waiting`. Raises `BlockFailed` where a block has failed and ``on_error`` is stop; once."""
        self._sending = [pending for pending in self._sending if not pending.done()]
        self._hear()
        self._look_at_clock()
        self._send()
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed
        return self._next()

    def _next(self) -> Result | None:
        if not self._order or not self._order[0].settled:
            return None
        task = self._order.popleft()
        arrival, block = task.arrival, task.result
        if block is None:
            arrival.done()
            return Result(arrival.last)
        hold, arrival.hold = arrival.hold, None
        if task.own:
            return Result(arrival.last, block=block, hold=Hold(lambda: None))
        return Result(arrival.last, block=block, hold=hold)

    # Workers

    def _send(self) -> None:
        while self._unsent:
            worker = self._next_worker()
            if worker is None:
                self._fail(self._unsent.popleft(), "no worker is left")
                continue
            if len(worker.tasks) >= UNDER_WAY:
                return
            task = self._unsent.popleft()
            block = task.arrival.block
            assert block is not None
            head = (BLOCK, self._index, block.numbers.copy(), block.times.copy())
            self._sending.append(self._line.send(worker.member, head, block.frames))
            task.sent = time.monotonic()
            worker.tasks[self._index] = task
            self._index += 1
            self._turn = (self._workers.index(worker) + 1) % len(self._workers)

    def _next_worker(self) -> _Worker | None:
        """Whose turn it is, of those that are there."""
        around = self._workers[self._turn :] + self._workers[: self._turn]
        return next((worker for worker in around if not worker.gone), None)

    def _hear(self) -> None:
        while (came := self._line.receive()) is not None:
            member, (kind, *what), frames = came
            worker = self._workers[member - self._about.receivers]
            worker.heard = time.monotonic()
            if kind == LEFT:
                self._lose(worker, what[0])
            elif kind != ALIVE and (task := worker.tasks.pop(what[0], None)) is not None:
                self._settle(task, kind, what, frames)

    def _settle(self, task: _Task, kind: str, what: list[Any], frames: Array | None) -> None:
        """What a worker said of a block, which it has by now."""
        if kind == FAILED:
            self._tell_once(what[1])
            self._fail(task, *what[1:])
            return
        if kind == REPLY and frames is not None and not self._stopped:
            block = task.arrival.block
            assert block is not None
            task.result, task.own = Block(frames, block.numbers.copy(), block.times.copy()), True
        task.settled = True
        task.arrival.done()

    def _look_at_clock(self) -> None:
        now, limit = time.monotonic(), self._about.timeout_s
        for worker in self._workers:
            if worker.tasks and now - max(worker.heard, min(task.sent for task in worker.tasks.values())) > limit:
                self.silent.append(self._about.members[worker.member])
                self._lose(worker, f"it did not reply for {seconds_text(limit)}")

    def _lose(self, worker: _Worker, why: str) -> None:
        """A worker gets no more blocks. What was sent to it must stay in place as long as MPI may look at it."""
        if worker.gone:
            return
        worker.gone = True
        lost, worker.tasks = worker.tasks, {}
        self._abandoned += lost.values()
        why = f"rank {self._about.members[worker.member]}, a worker, is gone: {why}"
        for task in lost.values():
            self._fail(task, why)
        if self._node.on_error != "stop":
            self.warnings.append(f"{self._name}: {why}")
        elif not self._stopped:
            self._failed = BlockFailed(None, UserCodeError(why))
            self._stop()

    def _fail(self, task: _Task, why: str, frame: int | None = None) -> None:
        """What ``on_error`` says."""
        block = task.arrival.block
        assert block is not None
        task.settled = True
        on_error = self._node.on_error
        if on_error == "stop" and not self._stopped:
            self._failed = BlockFailed(int(block.numbers[0]) if frame is None else frame, UserCodeError(why))
            self._stop()
        elif on_error == "pass" and self._node.reply and not self._stopped:
            task.result = block
        elif on_error == "drop" and self._node.reply and not self._stopped:
            self._given_up.add(block.numbers)
        if not self._node.reply:
            task.arrival.done()

    def _stop(self) -> None:
        """Nothing goes on any more; what has been sent comes to its end."""
        self._stopped = True
        unsent, self._unsent = self._unsent, deque()
        for task in unsent:
            task.settled = True
            task.arrival.done()

    def _tell_once(self, why: str) -> None:
        if self._node.on_error != "stop" and not self._told:
            self._told = True
            self.warnings.append(f"{self._name}: a worker has failed (on_error: {self._node.on_error}): {why}")


def _taken(hold: Hold | None) -> Hold | None:
    return None if hold is None else hold.take()
