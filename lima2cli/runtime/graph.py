"""The nodes of one flow at work on one receiver.

A block goes through all nodes first (`stage`): maps compute, reductions reduce, sinks compress. Only then, when the
runtime knows that the data were not overwritten meanwhile, does it count (`commit`): rows are appended, chunks
written.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from lima2cli.artefacts.tables import TableWriter
from lima2cli.nodes.base import Map, Partial, Reduce, Reducer, Sink, Writer
from lima2cli.plan.records import Step
from lima2cli.program.records import ReceiverFlow, ReceiverProgram
from lima2cli.spec import Array, Block, Files

ROWS_FINISHED = 256
"""Rows of a table that are finished and written together."""


class NodeFailed(Exception):
    """A node raised; ``frame`` is the first of the block."""

    def __init__(self, node: str, frame: int, error: Exception) -> None:
        super().__init__(f"{node}: {error or type(error).__name__}")
        self.node, self.frame, self.error = node, frame, error


class _BoundMap:
    def __init__(self, step: Step, files: Files) -> None:
        self._function: Callable[[Array], Array] = cast(Map, step.node).bind(step.before, files)

    def stage(self, block: Block, received_ns: int) -> tuple[Block, Any]:
        frames = self._function(block.frames)
        return Block(frames, block.numbers, block.times, False), None


class _BoundReduce:
    """Rows per frame, kept as partial results until there are enough of them to be worth the finishing."""

    def __init__(self, step: Step, program: ReceiverProgram, files: Files, directory: str) -> None:
        self.saved = 0
        self._node = cast(Reduce, step.node)
        self._reducer: Reducer = self._node.start(step.before, files)
        self._writer = TableWriter(program.tables[step.name], directory, program.receiver)
        self._kept: list[Partial] = []
        self._rows = 0

    def stage(self, block: Block, received_ns: int) -> tuple[None, Partial]:
        return None, self._reducer.step(block, received_ns)

    def commit(self, staged: Partial) -> None:
        self._kept.append(staged)
        self._rows += len(staged["frame_number"])
        if self._rows >= ROWS_FINISHED:
            self._finish()

    def flush(self) -> None:
        self._finish()
        self._writer.flush()

    def close(self) -> None:
        try:
            self._finish()
        finally:
            self._writer.close()

    def _finish(self) -> None:
        if not self._kept:
            return
        kept, self._kept, self._rows = self._kept, [], 0
        whole = kept[0] if len(kept) == 1 else {key: np.concatenate([p[key] for p in kept]) for key in kept[0]}
        columns = dict(self._node.finish(whole))
        numbers = columns.pop("frame_number")
        self._writer.append(numbers, columns)
        self.saved += len(numbers)


class _BoundSink:
    def __init__(self, step: Step, program: ReceiverProgram, directory: str, start_ns: int) -> None:
        self.saved = 0
        channel = program.channels[step.name]
        self._writer: Writer = cast(Sink, step.node).open(channel, directory, program.receiver, start_ns)

    def stage(self, block: Block, received_ns: int) -> tuple[Block, Any]:
        return block, self._writer.stage(block)

    def commit(self, staged: Any) -> None:
        self.saved += self._writer.commit(staged)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


_Bound = _BoundMap | _BoundReduce | _BoundSink


class FlowGraph:
    """The steps of one flow, bound."""

    def __init__(
        self, flow: ReceiverFlow, program: ReceiverProgram, files: Files, directory: str, start_ns: int
    ) -> None:
        self._name = flow.gdt.name
        self._steps: list[tuple[str, str, _Bound]] = []
        for step in flow.steps:
            bound: _Bound
            if isinstance(step.node, Map):
                bound = _BoundMap(step, files)
            elif isinstance(step.node, Reduce):
                bound = _BoundReduce(step, program, files, directory)
            else:
                bound = _BoundSink(step, program, directory, start_ns)
            self._steps.append((step.name, step.source, bound))
        self._ends = [(name, bound) for name, _, bound in self._steps if not isinstance(bound, _BoundMap)]

    @property
    def saved(self) -> dict[str, int]:
        """Frames and rows that each sink and table has written, by node name."""
        return {name: bound.saved for name, bound in self._ends}

    def stage(self, block: Block, received_ns: int) -> list[Any]:
        """Everything that can still be thrown away; raises `NodeFailed`."""
        values: dict[str, Block] = {self._name: block}
        staged = []
        for name, source, bound in self._steps:
            try:
                out, kept = bound.stage(values[source], received_ns)
            except Exception as error:
                raise NodeFailed(name, int(block.numbers[0]), error) from error
            if out is not None:
                values[name] = out
            if not isinstance(bound, _BoundMap):
                staged.append(kept)
        return staged

    def commit(self, staged: list[Any], first_frame: int) -> None:
        """Make what was staged last; raises `NodeFailed`."""
        for (name, bound), kept in zip(self._ends, staged, strict=True):
            try:
                bound.commit(kept)
            except Exception as error:
                raise NodeFailed(name, first_frame, error) from error

    def flush(self) -> None:
        """Make what was committed readable; raises `NodeFailed`."""
        self._each(lambda bound: bound.flush())

    def close(self) -> None:
        """End all files, the rest too where one fails; raises the first `NodeFailed`."""
        self._each(lambda bound: bound.close())

    def _each(self, do: Callable[[_BoundReduce | _BoundSink], None]) -> None:
        failed: NodeFailed | None = None
        for name, bound in self._ends:
            try:
                do(bound)
            except Exception as error:  # noqa: BLE001
                failed = failed or NodeFailed(name, 0, error)
        if failed is not None:
            raise failed
