"""Nodes at work on one receiver: `stage` and `commit` for each role, and sinks of one or all receivers."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lima2cli.files.channel import Channel
from lima2cli.files.tables import TableWriter
from lima2cli.frames import Array, Block, Files, FrameSpec
from lima2cli.graph.fused import BoundChain, Function, Spread, concatenated, part_of
from lima2cli.graph.joins import BoundJoin, BoundSelect, Ranges
from lima2cli.graph.waiting import END, Arrival, Result
from lima2cli.nodes.base import (
    BlockDropped,
    EarlyWriter,
    Join,
    Map,
    Partial,
    Pick,
    Reduce,
    Reducer,
    Sink,
    StripReducer,
    ThreadedWriter,
    Transform,
    Transformer,
    Writer,
)
from lima2cli.nodes.io_hdf5 import IoHdf5
from lima2cli.nodes.user_function import fitted
from lima2cli.plan.fuse import pixelwise
from lima2cli.plan.ir import Kernel, Step
from lima2cli.program import ReceiverProgram
from lima2cli.threads import team
from lima2cli.transport.base import CollectiveGroup

if TYPE_CHECKING:
    from lima2cli.files.common_writer import CommonWriter


class Writing:
    """A writer for each acquisition.

    ``saved`` counts the frames of the current one, as of the last flush: those that are in the files, whatever comes.
    """

    def __init__(self) -> None:
        self.saved = self._committed = 0
        self._writer: Writer | None = None

    def stage(self, block: Block, received_ns: int) -> tuple[Block, Any]:
        """See `Writer.stage`; the block goes on as it is."""
        assert self._writer is not None
        return block, self._writer.stage(block)

    def commit(self, staged: Any) -> None:
        """See `Writer.commit`. A writer that fails is not used again but to be closed."""
        assert self._writer is not None
        committed, self._committed = self._committed, self.saved  # should this fail
        self._committed = committed + self._writer.commit(staged)

    def flush(self) -> None:
        """See `Writer.flush`."""
        if self._writer is not None:
            committed, self._committed = self._committed, self.saved
            self._writer.flush()
            self.saved = self._committed = committed

    def close(self) -> None:
        """End the files of this acquisition, if it has any."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            self.saved = self._committed

    def begin_count(self) -> None:
        """Begin to count an acquisition."""
        self.saved = self._committed = 0


class BoundCommon(Writing):
    """See `Waiting` and `BoundSink`. ``frames`` is the end of the acquisition, once known.

    After an error it saves nothing more and goes on to take part.
    """

    _writer: "CommonWriter | None"

    def __init__(self, step: Step, channel: Channel, receiver: int, circle: CollectiveGroup) -> None:
        super().__init__()
        self.frames: int | None = None
        self._node, self._channel, self._receiver, self._circle = cast(IoHdf5, step.node), channel, receiver, circle
        self._rule = channel.rule
        self._directory = ""

    def ready(self, directory: str) -> None:
        """See `BoundSink.ready`. The file itself, which they make together, holds the time of the start."""
        self._directory = directory

    def begin(self, start_ns: int) -> None:
        """See `BoundSink.begin`."""
        self.begin_count()
        self.frames = None
        self._writer = self._node.open_common(self._channel, self._directory, self._receiver, start_ns, self._circle)

    def arrive(self, source: str, what: Arrival) -> None:
        """Note how far the frames are; they themselves came before."""
        what.done()
        if self._writer is None:
            return
        if what.last < END:
            self._writer.advance(what.last + 1)
        else:
            self._writer.finish(self._rule.selected(self.frames) or 0)

    def commit(self, staged: Any) -> None:
        """See `Writer.commit`; they are saved when their round is in the file."""
        assert self._writer is not None
        self._writer.commit(staged)

    def flush(self) -> None:
        """See `Writer.flush`."""
        if self._writer is not None:
            self._writer.flush()
            self.saved = self._writer.saved

    def close(self) -> None:
        """End the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            self.saved = writer.saved

    def poll(self) -> Result | None:
        """See `Waiting`.

        Raises:
            OSError: the file failed; once.
        """
        if self._writer is not None:
            self._writer.poll()
        return None

    @property
    def idle(self) -> bool:
        """See `Waiting`."""
        return self._writer is None or self._writer.done

    @property
    def full(self) -> bool:
        """See `Waiting`."""
        return self._writer is not None and self._writer.full


ROWS_FINISHED = 256
"""Rows of a table that are finished and written together."""


class BoundMap:
    """A function over the arrays of a block."""

    def __init__(self, step: Step, files: Files, threads: int) -> None:
        node, after = cast(Map, step.node), cast(FrameSpec, step.after)
        self._function = Spread(lambda: _of_one(node.bind(step.before, files)), after, threads)

    def stage(self, block: Block, received_ns: int) -> tuple[Block, Any]:
        frames = self._function({"": block.frames})
        return Block(frames, block.numbers, block.times, False), None


def _of_one(function: Callable[[Array], Array]) -> Function:
    return lambda frames: function(frames[""])


class BoundPick:
    """A function from frames to sparse frames."""

    def __init__(self, step: Step, files: Files) -> None:
        self._function = cast(Pick, step.node).bind(step.before, files)

    def stage(self, block: Block, received_ns: int) -> tuple[Block, None]:
        return self._function(block), None


class BoundReduce:
    """A reduction to rows per frame, kept as partial results until there are enough of them to be worth finishing.

    Nodes that take strips look at each frame by itself: several threads do consecutive parts of a block.
    """

    def __init__(self, step: Step, program: ReceiverProgram, files: Files) -> None:
        self.saved = self._appended = 0
        self._node = cast(Reduce, step.node)
        self._team = team(program.threads if self._node.strips else 1)
        self._reducers: list[Reducer] = [self._node.start(step.before, files) for _ in range(self._team.size)]
        self._table, self._receiver = program.tables[step.name], program.receiver
        self._writer: TableWriter
        self._kept: list[Partial] = []
        self._rows = 0

    def ready(self, directory: str) -> None:
        """See `BoundSink.ready`."""
        self._writer = TableWriter(self._table, directory, self._receiver)
        self._writer.ready()

    def begin(self, start_ns: int) -> None:
        """See `BoundSink.begin`."""
        self.saved, self._appended, self._kept, self._rows = 0, 0, [], 0

    def stage(self, block: Block, received_ns: int) -> tuple[None, Partial]:
        parts = self._team.parts(len(block.numbers), math.prod(block.frames.shape[1:]))
        if len(parts) == 1:
            return None, self._reducers[0].step(block, received_ns)
        shares = zip(self._reducers, parts, strict=False)
        steps = [partial(reducer.step, part_of(block, part), received_ns) for reducer, part in shares]
        return None, concatenated(self._team.each(steps))

    @property
    def strips(self) -> list[StripReducer]:
        """Return the strip reducers, one for each thread, of a node that takes strips."""
        return cast(list[StripReducer], self._reducers)

    def commit(self, staged: Partial) -> None:
        self._kept.append(staged)
        self._rows += len(staged["frame_number"])
        if self._rows >= ROWS_FINISHED:
            self._finish()

    def flush(self) -> None:
        self._finish()
        self._writer.flush()
        self.saved = self._appended

    def close(self) -> None:
        try:
            self._finish()
        finally:
            self._writer.close()
        self.saved = self._appended

    def _finish(self) -> None:
        if not self._kept:
            return
        kept, self._kept, self._rows = self._kept, [], 0
        whole = kept[0] if len(kept) == 1 else {key: np.concatenate([p[key] for p in kept]) for key in kept[0]}
        columns = dict(self._node.finish(whole))
        numbers = columns.pop("frame_number")
        for name, dtype in self._table.columns.items():
            length = self._table.lengths.get(name)
            columns[name] = fitted(columns[name], numbers, () if length is None else (length,), dtype, f"column {name}")
        self._writer.append(numbers, columns)
        self._appended += len(numbers)


class BoundSink(Writing):
    """A sink with files of its own."""

    def __init__(self, step: Step, program: ReceiverProgram) -> None:
        super().__init__()
        self._node, self._channel = cast(Sink, step.node), program.channels[step.name]
        self._receiver, self._threads, self._directory = program.receiver, program.threads, ""

    def ready(self, directory: str) -> None:
        """Announce an acquisition, whose files are in ``directory``: they may be made now."""
        self._directory = directory
        if self._node.early:
            self._writer = self._node.open(self._channel, directory, self._receiver, None)

    def begin(self, start_ns: int) -> None:
        """Begin the acquisition; counts begin anew."""
        self.begin_count()
        if isinstance(self._writer, EarlyWriter):
            self._writer.start(start_ns)
        else:
            self._writer = self._node.open(self._channel, self._directory, self._receiver, start_ns)
        if isinstance(self._writer, ThreadedWriter):
            self._writer.threads = self._threads


class BoundTransform:
    """A node with a state, or with code of the user's.

    dropped   (first, last) numbers of frames given up
    warnings  what users should know, for the caller to clear
    """

    def __init__(self, step: Step, files: Files) -> None:
        node = cast(Transform, step.node)
        self._transformer: Transformer = node.start(step.before, files, step.numbering.rule)
        self._name, self._step = step.name, step.numbering.rule.step
        self._given_up = Ranges(self._step)
        self._told = False
        self.warnings: list[str] = []

    def begin(self) -> None:
        """Begin an acquisition: counts begin anew."""
        self._given_up, self._told = Ranges(self._step), False

    @property
    def dropped(self) -> list[tuple[int, int]]:
        """Dropped frames, see the class."""
        return self._given_up.ranges

    def stage(self, block: Block, received_ns: int) -> tuple[Block | None, None]:
        try:
            return self._transformer.step(block), None
        except BlockDropped as dropped:
            if not self._told:
                self._told = True
                self.warnings.append(f"{self._name}: {dropped}")
            if dropped.instead is None:
                self._given_up.add(block.numbers)
            return dropped.instead, None

    def finish(self) -> Block | None:
        return self._transformer.finish()

    def close(self) -> None:
        self._transformer.close()


End = BoundReduce | BoundSink | BoundCommon
Single = BoundMap | BoundPick | BoundTransform | BoundChain | End
Paired = BoundJoin | BoundSelect
"""A node that reads several sources."""

Bound = Single | Paired


def bind(step: Step, program: ReceiverProgram, files: Files) -> Bound:
    """Return a node bound to its receiver; whatever it raises is for the caller to report."""
    if pixelwise(step):
        alone = Kernel(step.flow, step.source, (step.name,), (), (step.name,))
        return BoundChain(alone, {step.name: step}, files, program.threads)
    if isinstance(step.node, Map):
        return BoundMap(step, files, program.threads)
    if isinstance(step.node, Join):
        return BoundJoin(step, files, program.threads)
    if isinstance(step.node, Pick):
        return BoundPick(step, files)
    if isinstance(step.node, Transform):
        return BoundTransform(step, files)
    if isinstance(step.node, Reduce):
        return BoundReduce(step, program, files)
    return BoundSink(step, program)
