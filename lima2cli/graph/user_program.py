"""Processing of the user's own on a receiver, next to the nodes of the pipeline or instead of them.

The user's program has a loop, the receiver gives turns (it also has messages to answer and memory to give back). So the
program has a thread, and of the two only one runs at a time: the program, until it asks for the next block; then the
receiver, until there is one.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lima2cli import foreign as watch
from lima2cli.dataclass import dataclass
from lima2cli.errors import UserCodeError
from lima2cli.foreign import ExitError, call_foreign, error_text
from lima2cli.frames import Block, Files, FrameSpec
from lima2cli.graph.flow_reader import FlowReader
from lima2cli.graph.protocol import END, Arrival, BlockFailed, Operator, Result
from lima2cli.nodes.user_function import frames_in_words, load, read_only, words
from lima2cli.program import Processing, ReceiverProgram

AHEAD = 4
"""Blocks that wait for the program at most, before more are taken from their flows."""


@dataclass(slots=True, kw_only=True)
class SourceBlock(Block):
    """A block of frames, and ``source``, the flow or node that it comes from.

    Frames and times are valid until the next block is asked for.
    """

    source: str


class Receiver:
    """A receiver, as the user's ``main(receiver)`` gets it.

    index      from 0, as the pipeline writes receivers;  name  of it;  count  how many there are
    directory  of the run: files belong there
    sources    flows, and nodes whose frames are made anyway, that `blocks` takes: what each gives, by name
    """

    def __init__(
        self, program: ReceiverProgram, processing: Processing, directory: str, readers: Sequence[FlowReader]
    ) -> None:
        self.index, self.name, self.count = program.receiver, processing.name, processing.count
        self.directory = Path(directory)
        self.sources: Mapping[str, FrameSpec] = processing.sources
        self._readers = {reader.flow.gdt.flow: reader for reader in readers}
        self._wait: Callable[[], tuple[str, Block] | None] = lambda: None
        self.asked: tuple[str, ...] | None = None

    def blocks(self, *names: str) -> Iterator[SourceBlock]:
        """Return the blocks of these flows or nodes, to the end of the run; of each of them in the order of frames.

        Frames are a read-only view of the memspace, which is given back when the next block is asked for; where it may
        be overwritten meanwhile they are a checked copy. Frames that are lost, or dropped by a node, are left out. To
        be called once. ValueError where there is nothing of that name.
        """
        if self.asked is not None:
            raise ValueError("blocks() was already called: name all flows in one call")
        for name in names:
            if name not in self.sources:
                raise ValueError(f"there is no `{name}` to take blocks from; there is {', '.join(self.sources)}")
        self.asked = names
        return self._blocks()

    def _blocks(self) -> Iterator[SourceBlock]:
        while (delivery := self._wait()) is not None:
            source, block = delivery
            yield SourceBlock(read_only(block.frames), block.numbers, block.times, block.stable, source=source)

    def lost(self, flow: str) -> NDArray[np.uint64]:
        """Return the numbers (n,) uint64 of the frames of a flow that this receiver should have and never gets.

        They are those that are known by now.

        Raises:
            KeyError: the flow does not reach it.
        """
        return self._readers[flow].absent_numbers()


class OwnProcessing(Operator):
    """The user's ``main`` on one receiver: an operator that gives nothing."""

    always = waits = True

    def __init__(self, receiver: Receiver, processing: Processing, files: Files) -> None:
        where, _, main = processing.function.rpartition(":")
        super().__init__(f"{Path(where).name}:{main}")
        self._receiver, self._reference, self._files = receiver, processing.function, files
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._kept: deque[Arrival] = deque()
        self._given: tuple[str, Block] | None = None
        self._open: set[str] = set()
        self._over = False
        self._error: Exception | None = None
        receiver._wait = self._next  # the two are one thing, of which the user sees one side

    @property
    def names(self) -> tuple[str, ...]:
        """Flows and nodes that the program reads."""
        return self._receiver.asked or ()

    @property
    def idle(self) -> bool:
        """See `Operator`: the program has ended, and everything is given back."""
        return self._over and not self._kept

    @property
    def full(self) -> bool:
        """See `Operator`."""
        return len(self._kept) >= AHEAD and not self._over

    def start(self) -> None:
        """Start the program, and let it run until it asks for blocks; raise what it raises."""
        threading.Thread(target=self._run, name=self.name, daemon=True).start()
        self._resume()
        self._open = set(self.names)
        if self._error is not None:
            raise UserCodeError(f"{words(self._error)} ({self.name}, before the start)") from self._error

    def push(self, arrival: Arrival) -> None:
        """See `Operator.push`."""
        self._kept.append(arrival)

    def poll(self) -> Result | None:
        """See `Operator.poll`: give the program a block, and wait until it asks for the next.

        Raises:
            BlockFailed: the program failed.
        """
        if not self._kept:
            return None
        arrival = self._kept.popleft()
        source = arrival.source
        try:
            if arrival.block is not None and not self._over:
                self._give((source, arrival.block))
        finally:
            arrival.done()  # it has come, whatever its fate
        if arrival.last == END:
            self._open.discard(source)
            if not self._open and not self._over:
                self._give(None)
        return Result(arrival.last)

    def _give(self, given: tuple[str, Block] | None) -> None:
        self._given = given
        self._resume()
        self._given = None
        if self._error is not None:
            error, self._error = self._error, None
            numbers = None if given is None else given[1].numbers
            when = "after the last block" if numbers is None else frames_in_words(numbers)
            failed = UserCodeError(f"{words(error)} ({self.name}, {when})")
            raise BlockFailed(None if numbers is None else int(numbers[0]), failed)

    def _resume(self) -> None:
        """Give the program its turn, until it waits or ends."""
        self._go.release()
        try:
            with watch.WATCH.during(self.name, watch.IMPORT_S):
                self._back.acquire()
        except watch.TookTooLong as error:  # it goes on to hang in its thread, which is not waited for
            self._over, self._error = True, ExitError(error_text(error))

    def _next(self) -> tuple[str, Block] | None:
        """Give the receiver its turn, until there is a block, and return it; None at the end. Called by the program."""
        self._back.release()
        self._go.acquire()
        return self._given

    def _run(self) -> None:
        self._go.acquire()
        try:
            call_foreign(lambda: load(self._reference, self._files)(self._receiver))
        except Exception as error:  # noqa: BLE001  user code may raise anything
            self._error = error
        finally:
            self._over = True
            self._back.release()


def start_processing(
    program: ReceiverProgram, files: Files, directory: str, readers: Sequence[FlowReader]
) -> OwnProcessing | None:
    """Begin the user's program at a receiver and return it; None where there is none.

    It raises what the program raises by then.
    """
    if program.processing is None:
        return None
    receiver = Receiver(program, program.processing, directory, readers)
    own = OwnProcessing(receiver, program.processing, files)
    own.start()
    return own
