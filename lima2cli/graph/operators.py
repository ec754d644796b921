"""Operators of single nodes, by role, and of sinks of one or all receivers."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import numpy as np

from lima2cli.files.channel import Channel
from lima2cli.files.tables import TableWriter
from lima2cli.frames import Array, Block, Files, FrameSpec, SparseBlock, SparsePixels, SparseSpec
from lima2cli.graph.fused import BoundChain, Spread, concatenated
from lima2cli.graph.joins import BoundJoin, BoundJoinedTransform, Ranges
from lima2cli.graph.protocol import END, Arrival, Operator, Result
from lima2cli.nodes.base import (
    BlockDropped,
    EarlyWriter,
    GrowingTransformer,
    Map,
    Partial,
    Reduce,
    Reducer,
    Sink,
    StripReducer,
    ThreadedWriter,
    Transform,
    Transformer,
    WarningTransformer,
    Writer,
)
from lima2cli.nodes.user_function import fitted
from lima2cli.plan.fuse import pixelwise
from lima2cli.plan.ir import Kernel, Step
from lima2cli.program import ReceiverProgram
from lima2cli.threads import team
from lima2cli.transport.base import CollectiveGroup

if TYPE_CHECKING:
    from lima2cli.files.common_writer import CommonWriter


class Writing(Operator):
    """A sink: a writer for each acquisition. It hands frames on as they are, and once it has failed does nothing else.

    Frames are saved as of the last flush.
    """

    saves = same = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.saved = self._committed = 0
        self._writer: Writer | None = None
        self._failed = False

    @property
    def nodes(self) -> Collection[str]:
        """See `Operator`."""
        return () if self._failed else (self.name,)

    def give_up(self, gone: Collection[str]) -> None:
        """See `Operator`."""
        self._failed = self._failed or self.name in gone

    def push(self, arrival: Arrival) -> Result:
        """See `Operator.push`, and `Writer.stage`."""
        block = arrival.there
        if self._failed:
            return Result(arrival.last, block)
        assert self._writer is not None
        return Result(arrival.last, block, staged={self.name: self._writer.stage(block)})

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

    def begin(self, start_ns: int) -> None:
        """Begin to count an acquisition."""
        self.saved = self._committed = 0


class BoundCommon(Writing):
    """A sink whose file all receivers write together. After an error it saves nothing more and goes on to take part."""

    always = True

    _writer: "CommonWriter | None"

    def __init__(self, step: Step, channel: Channel, receiver: int, collective: CollectiveGroup) -> None:
        super().__init__(step.name)
        self._node, self._channel, self._receiver, self._collective = (
            cast(Sink, step.node),
            channel,
            receiver,
            collective,
        )
        self._rule = channel.rule
        self._frames: int | None = None
        self._directory = ""

    @property
    def nodes(self) -> Collection[str]:
        """See `Operator`: the others wait for it."""
        return (self.name,)

    @property
    def undecided(self) -> int:
        """Return the first frame of all receivers that may still come to the file; END where there is none."""
        if self._writer is None:
            return self._rule.frame(0)
        return END if self._writer.done else int(self._rule.frame(self._writer.settled))

    def ready(self, directory: str) -> None:
        """See `Operator.ready`. The file itself, which they make together, holds the time of the start."""
        self._directory = directory

    def begin(self, start_ns: int) -> None:
        """See `Operator.begin`."""
        super().begin(start_ns)
        self._frames = None
        self._writer = self._node.open_together(
            self._channel, self._directory, self._receiver, start_ns, self._collective
        )

    def limit(self, frames: int) -> None:
        """See `Operator.limit`."""
        self._frames = frames

    def push(self, arrival: Arrival) -> Result:
        """See `Operator.push`; notes how far the frames are, too."""
        try:
            return Result(arrival.last) if arrival.block is None else super().push(arrival)
        finally:
            if self._writer is not None and arrival.last < END:
                self._writer.advance(arrival.last + 1)
            elif self._writer is not None:
                self._writer.finish(self._rule.selected(self._frames) or 0)

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
        """See `Operator.poll`.

        Raises:
            OSError: the file failed; once.
        """
        if self._writer is not None:
            self._writer.poll()
        return None

    @property
    def idle(self) -> bool:
        """See `Operator`."""
        return self._writer is None or self._writer.done

    @property
    def full(self) -> bool:
        """See `Operator`."""
        return self._writer is not None and self._writer.full


ROWS_FINISHED, BYTES_FINISHED = 256, 16 << 20
"""Rows of a table that are finished and written together, and about how many bytes of partial results they may be."""


class BoundNothing(Operator):
    """A node that hands frames on as they are."""

    same = True

    def push(self, arrival: Arrival) -> Result:
        """See `Operator.push`."""
        return Result(arrival.last, arrival.there)


F = TypeVar("F")


class BoundFunction(Operator, Generic[F]):
    """A map as a function, in whose place another is put where users change a parameter."""

    def __init__(self, step: Step, files: Files) -> None:
        super().__init__(step.name)
        self._function = self._bound(step, files)

    def _bound(self, step: Step, files: Files) -> F:
        """Return the function of a map."""
        raise NotImplementedError

    def rebind(self, step: Step, files: Files) -> Callable[[], None] | None:
        """See `Operator.rebind`."""
        if step.name != self.name:
            return None
        function = self._bound(step, files)

        def put() -> None:
            self._function = function

        return put


class BoundMap(BoundFunction[Spread]):
    """A function over the arrays of a block."""

    def __init__(self, step: Step, files: Files, threads: int) -> None:
        self._threads = threads
        super().__init__(step, files)

    def _bound(self, step: Step, files: Files) -> Spread:
        node, after = cast(Map, step.node), cast(FrameSpec, step.after)
        return Spread(lambda: node.bind(step.given(files)), after, self._threads)

    def push(self, arrival: Arrival) -> Result:
        """See `Operator.push`."""
        block = arrival.there
        return Result(arrival.last, Block(self._function(block.frames), block.numbers, block.times, False))


class BoundSparse(BoundFunction[Callable[[Array], SparsePixels]]):
    """A function from the array of a block to some of its pixels."""

    def _bound(self, step: Step, files: Files) -> Callable[[Array], SparsePixels]:
        return cast(Callable[[Array], SparsePixels], cast(Map, step.node).bind(step.given(files)))

    def push(self, arrival: Arrival) -> Result:
        """See `Operator.push`."""
        block = arrival.there
        found = self._function(block.frames)
        index, frame_ptr = found.index, found.frame_ptr
        sparse = SparseBlock(
            found.frames, block.numbers, block.times, index=index, frame_ptr=frame_ptr, background=found.background
        )
        return Result(arrival.last, sparse)


class BoundReduce(Operator):
    """A reduction to rows per frame, kept as partial results until there are enough of them to be worth finishing.

    Nodes that take strips, or are threaded, look at each frame by itself: several threads do consecutive parts of a
    block. Rows of parts of frames are ``merged`` with those of other receivers before they are saved.
    """

    def __init__(self, step: Step, program: ReceiverProgram, files: Files) -> None:
        super().__init__(step.name)
        self.saved = self._appended = 0
        self.merged = bool(step.collective)
        self._node = cast(Reduce, step.node)
        self._team = team(program.threads if self._node.strips or self._node.threaded else 1)
        self._reducers: list[Reducer] = [self._node.bind(step.given(files)) for _ in range(self._team.size)]
        self.reads = self._node.reads(step.before)
        self._table, self._receiver = program.tables[step.name], program.receiver
        self._writer: TableWriter
        self._kept: list[Partial] = []
        self._rows = self._bytes = 0

    def ready(self, directory: str) -> None:
        """See `Operator.ready`."""
        self._writer = TableWriter(self._table, directory, self._receiver)
        self._writer.ready()

    def begin(self, start_ns: int) -> None:
        """See `Operator.begin`."""
        self.saved, self._appended, self._kept, self._rows, self._bytes = 0, 0, [], 0, 0

    def push(self, arrival: Arrival) -> Result:
        """See `Operator.push`."""
        rows = {self.name: self._reduced(arrival.there, arrival.received_ns)}
        return Result(arrival.last, None, rows, None if self.merged else rows)

    def _reduced(self, block: Block, received_ns: int) -> Partial:
        parts = self._team.parts(len(block.numbers), math.prod(block.frames.shape[1:]))
        if len(parts) == 1:
            return self._reducers[0].step(block, received_ns)
        shares = zip(self._reducers, parts, strict=False)
        steps = [partial(reducer.step, block.part(part), received_ns) for reducer, part in shares]
        return concatenated(self._team.each(steps))

    def rebind(self, step: Step, files: Files) -> Callable[[], None] | None:
        """See `Operator.rebind`; rows so far are those of the old node."""
        if step.name != self.name:
            return None
        node = cast(Reduce, step.node)
        reducers = [node.bind(step.given(files)) for _ in self._reducers]

        def put() -> None:
            self._finish()
            self._reducers[:], self._node = reducers, node

        return put

    @property
    def strips(self) -> list[StripReducer]:
        """Return the strip reducers, one for each thread, of a node that takes strips."""
        return cast(list[StripReducer], self._reducers)

    def commit(self, staged: Partial) -> None:
        """Keep rows until there are enough."""
        self._kept.append(staged)
        self._rows += len(staged["frame_number"])
        self._bytes += sum(values.nbytes for values in staged.values())
        if self._rows >= ROWS_FINISHED or self._bytes >= BYTES_FINISHED:
            self._finish()

    def flush(self) -> None:
        """See `Operator.flush`."""
        self._finish()
        self._writer.flush()
        self.saved = self._appended

    def close(self) -> None:
        """See `Operator.close`."""
        try:
            self._finish()
        finally:
            self._writer.close()
        self.saved = self._appended

    def _finish(self) -> None:
        if not self._kept:
            return
        kept, self._kept, self._rows, self._bytes = self._kept, [], 0, 0
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
        super().__init__(step.name)
        self._node, self._channel = cast(Sink, step.node), program.channels[step.name]
        self._receiver, self._threads, self._directory = program.receiver, program.threads, ""

    def ready(self, directory: str) -> None:
        """See `Operator.ready`."""
        self._directory = directory
        if self._node.early:
            self._writer = self._node.open(self._channel, directory, self._receiver, None)

    def begin(self, start_ns: int) -> None:
        """See `Operator.begin`."""
        super().begin(start_ns)
        if isinstance(self._writer, EarlyWriter):
            self._writer.start(start_ns)
        else:
            self._writer = self._node.open(self._channel, self._directory, self._receiver, start_ns)
        if isinstance(self._writer, ThreadedWriter):
            self._writer.threads = self._threads


class BoundTransform(Operator):
    """A node with a state, or with code of the user's."""

    always = True

    def __init__(self, step: Step, files: Files, receiver: int) -> None:
        super().__init__(step.name)
        inputs = replace(step.given(files), receiver=receiver)
        self._transformer: Transformer = cast(Transform, step.node).bind(inputs)
        self._step = step.numbering.rule.step
        self._given_up = Ranges(self._step)
        self._warned = False

    def begin(self, start_ns: int) -> None:
        """See `Operator.begin`."""
        self._given_up, self._warned = Ranges(self._step), False

    @property
    def dropped(self) -> list[tuple[int, int]]:
        """See `Operator`."""
        return self._given_up.ranges

    def push(self, arrival: Arrival) -> Result | None:
        """See `Operator.push`: at the end what it makes of what arrives then, and what it still holds."""
        made = None if arrival.block is None else self._made(arrival.block)
        if arrival.last == END:
            made = made.copy() if made is not None else None
            left = self._transformer.finish()
            if isinstance(self._transformer, WarningTransformer):
                self.warnings += [f"{self.name}: {text}" for text in self._transformer.warnings()]
            made = whole([each for each in (made, left) if each is not None])
        return None if made is None else Result(arrival.last, made)

    def _made(self, block: Block) -> Block | None:
        try:
            return self._transformer.step(block)
        except BlockDropped as dropped:
            if not self._warned:
                self._warned = True
                self.warnings.append(f"{self.name}: {dropped}")
            if dropped.instead is None:
                self._given_up.add(block.numbers)
            return dropped.instead

    def last_frame(self, name: str, block: Block) -> Array | None:
        """See `Operator.last_frame`: what there is of a result that is not whole yet."""
        growing = name == self.name and isinstance(self._transformer, GrowingTransformer)
        return cast(GrowingTransformer, self._transformer).so_far() if growing else None

    def leave(self) -> None:
        """See `Operator.leave`."""
        self._transformer.close()


def whole(blocks: Sequence[Block]) -> Block | None:
    """Return blocks that follow each other as one; None where there are none."""
    if len(blocks) < 2:
        return blocks[0] if blocks else None
    frames, numbers, times = zip(*((b.frames, b.numbers, b.times) for b in blocks), strict=True)
    return Block(np.concatenate(frames), np.concatenate(numbers), np.concatenate(times))


def bind(step: Step, program: ReceiverProgram, files: Files) -> Operator:
    """Return the operator of one node at its receiver; whatever it raises is for the caller to report."""
    if pixelwise(step):
        alone = Kernel(step.flow, step.source, (step.name,), (), (step.name,))
        return BoundChain(alone, {step.name: step}, files, program.threads)
    if isinstance(step.node, Map):
        if len(step.inputs) > 1:
            return BoundJoin(step, files, program.threads)
        if isinstance(step.after, SparseSpec):
            return BoundSparse(step, files)
        return BoundMap(step, files, program.threads)
    if isinstance(step.node, Transform):
        return (BoundJoinedTransform if len(step.inputs) > 1 else BoundTransform)(step, files, program.receiver)
    if isinstance(step.node, Reduce):
        return BoundReduce(step, program, files)
    return BoundSink(step, program) if isinstance(step.node, Sink) else BoundNothing(step.name)
