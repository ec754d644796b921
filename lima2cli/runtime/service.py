"""The other side of a delegation: a worker takes blocks from receivers, and replies."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.errors import UserCodeError
from lima2cli.nodes.base import Delegate
from lima2cli.nodes.function import Code, load
from lima2cli.program.records import WorkerProgram
from lima2cli.runtime import messages
from lima2cli.runtime.delegation import ALIVE, DONE, FAILED, LEFT, REPLY
from lima2cli.runtime.messages import Failure, WorkerReport
from lima2cli.runtime.usage import usage
from lima2cli.spec import Array, Files, FrameSpec
from lima2cli.transport.base import Pending, Port


@dataclass(slots=True)
class Given:
    """A block that a worker has been given, and where it comes from: ``place`` is the receiver's among those that the
    node has. ``frames`` (n, height, width) are read-only."""

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
        assert isinstance(program.step.node, Delegate)
        self.ended = self.done = False
        self._program, self._port, self._node = program, port, program.step.node
        self._line = port.line(program.line)
        self._sending: list[Pending] = []
        self._left = self._finished = False
        self._blocks = self._frames = self._failed = 0
        self._since_ns = self._busy_ns = 0

    @property
    def name(self) -> str:
        """What works here, for messages."""
        return self._node.function or " ".join(self._node.command or ())

    @property
    def spec(self) -> FrameSpec:
        """Of the frames that come."""
        return self._program.step.before

    @property
    def params(self) -> Mapping[str, Any]:
        """Of the node."""
        return self._node.params

    @property
    def replies(self) -> bool:
        """Whether the receivers wait for frames."""
        return self._node.reply

    def ready(self) -> None:
        """Blocks may come."""
        self._port.send(0, (messages.READY, None))

    def unfit(self, why: str) -> None:
        """It cannot work, which keeps the run from starting."""
        failure = Failure(self._program.rank, f"{self._program.step.name}: {why}", self._program.step.name)
        self._port.send(0, (messages.FAILED, failure))

    def take(self) -> Given | None:
        """The next block, if there is one and what was replied before has been sent; does not wait."""
        while (mail := self._port.receive()) is not None:
            self.ended |= mail[1][0] in (messages.ENDED, messages.QUIT)
            self.done |= mail[1][0] == messages.QUIT
        self._sending = [pending for pending in self._sending if not pending.done()]
        came = None if self._sending else self._line.receive()
        if came is None:
            return None
        place, (_, index, numbers, times), frames = came
        assert frames is not None
        if self._left:
            return None  # nobody waits for a reply
        self._tell_all((ALIVE,))
        frames.flags.writeable = False
        self._since_ns = time.perf_counter_ns()
        self._blocks, self._frames = self._blocks + 1, self._frames + len(numbers)
        return Given(frames, numbers, times, place, index)

    def reply(self, given: Given, result: Any, code: Code | None = None) -> None:
        """Answer with what the user's code returned, which is looked at where frames are waited for; by ``code``, where
        it is called there."""
        self._busy_ns += time.perf_counter_ns() - self._since_ns
        if not self._node.reply:
            self._send(given.place, (DONE, given.index))
            return
        after = self._program.step.after
        assert isinstance(after, FrameSpec)
        about, output = (given.numbers, after, self.name), self._node.output
        try:
            frames = output.fit(result, *about) if code is None else code.fit(output, result, *about)
        except UserCodeError as error:
            self.fail(given, str(error), error.frame)
            return
        self._sending.append(self._line.send(given.place, (REPLY, given.index), np.ascontiguousarray(frames)))

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
        """Everything is done, once."""
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
        self._sending.append(self._line.send(place, head))


class WorkerRank:
    """Serves a function of the user's; `step` is one block."""

    def __init__(self, program: WorkerProgram, port: Port, files: Files) -> None:
        self._service, self._node, self._files = Service(program, port), program.step.node, files
        self._code: Code | None = None
        self.done = False

    def prepare(self) -> None:
        """See `Rank.prepare`."""
        service, node = self._service, self._node
        assert isinstance(node, Delegate)
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
