"""Delegation: blocks go to workers, other ranks of the run, and their replies go on through the graph."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli import messages
from lima2cli import program as records
from lima2cli.dataclass import dataclass
from lima2cli.errors import UserCodeError
from lima2cli.frames import Array, Block, Files, FrameSpec
from lima2cli.graph.joins import Ranges
from lima2cli.graph.protocol import Arrival, BlockFailed, Lease, Operator, Result
from lima2cli.messages import Failure, WorkerReport, usage
from lima2cli.nodes.user_function import Code, load
from lima2cli.plan.ir import Step
from lima2cli.program import WorkerProgram
from lima2cli.transport.base import Mailbox, Pending, Port
from lima2cli.units import seconds_text

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
    """A worker as a receiver sees it; ``heard`` is when it last gave a sign of life (monotonic, s)."""

    member: int
    tasks: dict[int, _Task] = field(default_factory=dict)
    heard: float = 0.0
    gone: bool = False


class BoundDelegate(Operator):
    """A node that delegates, at one receiver."""

    always = waits = True

    def __init__(self, step: Step, delegation: records.Delegation, mailbox: Mailbox, place: int) -> None:
        assert step.workers is not None
        super().__init__(step.name)
        self._asked, self._mailbox, self._about = step.workers, mailbox, delegation
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
        self._stopped = self._warned = False

    def begin(self, start_ns: int) -> None:
        """See `Operator.begin`."""
        self._given_up = Ranges(self._step)

    @property
    def dropped(self) -> list[tuple[int, int]]:
        """See `Operator`."""
        return self._given_up.ranges

    @property
    def idle(self) -> bool:
        """See `Operator`."""
        return not (self._order or self._unsent or any(worker.tasks for worker in self._workers))

    @property
    def full(self) -> bool:
        """See `Operator`."""
        return len(self._unsent) >= UNDER_WAY

    def push(self, arrival: Arrival) -> None:
        """See `Operator.push`."""
        task = _Task(arrival)
        if arrival.block is None or self._stopped:
            task.settled = True
            arrival.done()
        elif self._asked.reply:
            self._unsent.append(task)
        else:  # it goes on at once, and to a worker as well
            self._unsent.append(_Task(Arrival(arrival.source, arrival.last, arrival.block, hold=_taken(arrival.hold))))
            task.settled, task.result = True, arrival.block
        self._order.append(task)

    def poll(self) -> Result | None:
        """See `Operator.poll`.

        Raises:
            BlockFailed: a block has failed and ``on_error`` is stop; once.
        """
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
            return Result(arrival.last, block=block, hold=Lease(lambda: None))
        return Result(arrival.last, block=block, hold=hold)

    # WorkerPool

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
            self._sending.append(self._mailbox.send(worker.member, head, block.frames))
            task.sent = time.monotonic()
            worker.tasks[self._index] = task
            self._index += 1
            self._turn = (self._workers.index(worker) + 1) % len(self._workers)

    def _next_worker(self) -> _Worker | None:
        """Return the worker whose turn it is, of those that are there."""
        around = self._workers[self._turn :] + self._workers[: self._turn]
        return next((worker for worker in around if not worker.gone), None)

    def _hear(self) -> None:
        while (delivery := self._mailbox.receive()) is not None:
            member, (kind, *what), frames = delivery
            worker = self._workers[member - self._about.receivers]
            worker.heard = time.monotonic()
            if kind == LEFT:
                self._lose(worker, what[0])
            elif kind != ALIVE and (task := worker.tasks.pop(what[0], None)) is not None:
                self._settle(task, kind, what, frames)

    def _settle(self, task: _Task, kind: str, what: list[Any], frames: Array | None) -> None:
        """Settle a block with what a worker reported of it."""
        if kind == FAILED:
            self._warn_once(what[1])
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
        """Give a worker no more blocks. What was sent to it must stay in place as long as MPI may read it."""
        if worker.gone:
            return
        worker.gone = True
        lost, worker.tasks = worker.tasks, {}
        self._abandoned += lost.values()
        why = f"rank {self._about.members[worker.member]}, a worker, has ended: {why}"
        for task in lost.values():
            self._fail(task, why)
        if self._asked.on_error != "stop":
            self.warnings.append(f"{self.name}: {why}")
        elif not self._stopped:
            self._failed = BlockFailed(None, UserCodeError(why))
            self._stop()

    def _fail(self, task: _Task, why: str, frame: int | None = None) -> None:
        """Handle a failed block according to ``on_error``."""
        block = task.arrival.block
        assert block is not None
        task.settled = True
        on_error = self._asked.on_error
        if on_error == "stop" and not self._stopped:
            self._failed = BlockFailed(int(block.numbers[0]) if frame is None else frame, UserCodeError(why))
            self._stop()
        elif on_error == "pass" and self._asked.reply and not self._stopped:
            task.result = block
        elif on_error == "drop" and self._asked.reply and not self._stopped:
            self._given_up.add(block.numbers)
        if not self._asked.reply:
            task.arrival.done()

    def _stop(self) -> None:
        """Stop: nothing goes on any more, and what has been sent comes to its end."""
        self._stopped = True
        unsent, self._unsent = self._unsent, deque()
        for task in unsent:
            task.settled = True
            task.arrival.done()

    def _warn_once(self, why: str) -> None:
        if self._asked.on_error != "stop" and not self._warned:
            self._warned = True
            self.warnings.append(f"{self.name}: a worker has failed (on_error: {self._asked.on_error}): {why}")


def _taken(hold: Lease | None) -> Lease | None:
    return None if hold is None else hold.take()


@dataclass(slots=True)
class Given:
    """A block that a worker has been given, and its origin.

    ``place`` is the receiver's among those that the node has. ``frames`` (n, height, width) are read-only.
    """

    frames: Array
    numbers: NDArray[np.uint64]
    times: NDArray[np.uint64]
    place: int
    index: int


class Service:
    """One worker: ``take`` gives blocks one after the other, each of which is answered by `reply` or `fail`.

    ended   nothing more will come: `finish`;  done  the run is over
    """

    def __init__(self, program: WorkerProgram, port: Port) -> None:
        self.ended = self.done = False
        self._program, self._port, self._asked = program, port, program.workers
        self._mailbox = port.mailbox(program.mailbox)
        self._sending: list[Pending] = []
        self._left = self._finished = False
        self._blocks = self._frames = self._failed = 0
        self._since_ns = self._busy_ns = 0

    @property
    def name(self) -> str:
        """Name of what works here, for messages."""
        return self._asked.function or " ".join(self._asked.command or ())

    @property
    def spec(self) -> FrameSpec:
        """Spec of the frames that come."""
        return self._program.step.before

    @property
    def params(self) -> Mapping[str, Any]:
        """Parameters of the node."""
        return self._asked.params

    @property
    def replies(self) -> bool:
        """Return whether the receivers wait for frames."""
        return self._asked.reply

    def ready(self) -> None:
        """Report that it is ready: blocks may come."""
        self._port.send(0, (messages.READY, None))

    def unfit(self, why: str) -> None:
        """Report that it cannot work, which keeps the run from starting."""
        failure = Failure(self._program.rank, f"{self._program.step.name}: {why}", self._program.step.name)
        self._port.send(0, (messages.FAILED, failure))

    def take(self) -> Given | None:
        """Return the next block, if there is one and what was replied before has been sent; does not wait."""
        while (mail := self._port.receive()) is not None:
            self.ended |= mail[1][0] in (messages.ENDED, messages.QUIT)
            self.done |= mail[1][0] == messages.QUIT
        self._sending = [pending for pending in self._sending if not pending.done()]
        delivery = None if self._sending else self._mailbox.receive()
        if delivery is None:
            return None
        place, (_, index, numbers, times), frames = delivery
        assert frames is not None
        if self._left:
            return None  # no reply is waited for
        self._tell_all((ALIVE,))
        frames.flags.writeable = False
        self._since_ns = time.perf_counter_ns()
        self._blocks, self._frames = self._blocks + 1, self._frames + len(numbers)
        return Given(frames, numbers, times, place, index)

    def reply(self, given: Given, result: Any, code: Code | None = None) -> None:
        """Answer with what the user's code returned.

        It is checked where frames are waited for. ``code`` is the user's code, where it is called there.
        """
        self._busy_ns += time.perf_counter_ns() - self._since_ns
        if not self._asked.reply:
            self._send(given.place, (DONE, given.index))
            return
        after = self._program.step.after
        assert isinstance(after, FrameSpec)
        about, output = (given.numbers, after, self.name), self._asked.output
        try:
            frames = output.fit(result, *about) if code is None else code.fit(output, result, *about)
        except UserCodeError as error:
            self.fail(given, str(error), error.frame)
            return
        self._sending.append(self._mailbox.send(given.place, (REPLY, given.index), np.ascontiguousarray(frames)))

    def answer(self, given: Given, code: Code) -> None:
        """Answer with what code of the user's makes of the block."""
        try:
            result = code(given.frames, given.numbers)
        except UserCodeError as error:
            self.fail(given, str(error))
        else:
            self.reply(given, result, code)

    def fail(self, given: Given, why: str, frame: int | None = None) -> None:
        """Answer that there is no result, because of ``frame`` where it is known."""
        self._failed += 1
        self._send(given.place, (FAILED, given.index, why, frame))

    def leave(self, why: str) -> None:
        """Take no more blocks, before the end."""
        if not (self._left or self.ended):
            self._left = True
            self._tell_all((LEFT, why))

    def finish(self) -> None:
        """Report that everything is done, once."""
        if not self._finished:
            self._finished = True
            counts = (self._blocks, self._frames, self._failed)
            busy_s = self._busy_ns * 1e-9
            report = WorkerReport(self._program.rank, self._program.step.name, *counts, usage(), busy_s)
            self._port.send(0, (messages.FINISHED, report))

    def _tell_all(self, head: tuple[Any, ...]) -> None:
        for place in range(self._program.receivers):
            self._send(place, head)

    def _send(self, place: int, head: tuple[Any, ...]) -> None:
        self._sending.append(self._mailbox.send(place, head))


class WorkerRank:
    """A worker that serves a function of the user's; `step` is one block."""

    def __init__(self, program: WorkerProgram, port: Port, files: Files) -> None:
        self._service, self._asked, self._files = Service(program, port), program.workers, files
        self._code: Code | None = None
        self.done = False

    def prepare(self) -> None:
        """See `Rank.prepare`."""
        service, node = self._service, self._asked
        reference = node.function
        assert reference is not None
        try:
            self._code = Code(reference, lambda: load(reference, self._files), service.spec, node.params)
        except UserCodeError as error:
            service.unfit(str(error))
        else:
            service.ready()

    def step(self) -> bool:
        """See `Rank.step`."""
        given = self._service.take()
        self.done = self._service.done
        if given is not None and self._code is not None:
            self._service.answer(given, self._code)
        elif self._service.ended:
            self._finish()
        return given is not None

    def _finish(self) -> None:
        code, self._code = self._code, None
        if code is not None:
            try:
                code.close()
            except UserCodeError as error:
                self._service.unfit(str(error))
        self._service.finish()
