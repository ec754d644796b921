"""The nodes of one flow at work on one receiver.

A block goes through all nodes first (`stage`): maps compute, reductions reduce, sinks compress. Only then, when the
runtime knows that the data were not overwritten meanwhile, does it count (`commit`): rows are appended, chunks
written.
"""

from collections.abc import Callable
from typing import Any, cast

from lima2cli.artefacts.tables import TableWriter
from lima2cli.nodes.base import Map, Reduce, Reducer, Sink, Writer
from lima2cli.plan.records import Step
from lima2cli.program.records import ReceiverFlow, ReceiverProgram
from lima2cli.spec import Array, Block, Files


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
    """Per-frame rows. Numbers of the frames come first, the columns after them."""

    def __init__(self, step: Step, program: ReceiverProgram, files: Files, directory: str) -> None:
        self._node = cast(Reduce, step.node)
        self._reducer: Reducer = self._node.start(step.before, files)
        self._writer = TableWriter(program.tables[step.name], directory, program.receiver)

    def stage(self, block: Block, received_ns: int) -> tuple[None, Any]:
        return None, self._reducer.step(block, received_ns)

    def commit(self, staged: Any) -> int:
        columns = dict(self._node.finish(staged))
        numbers = columns.pop("frame_number")
        self._writer.append(numbers, columns)
        return len(numbers)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _BoundSink:
    def __init__(self, step: Step, program: ReceiverProgram, directory: str, start_ns: int) -> None:
        channel = program.channels[step.name]
        self._writer: Writer = cast(Sink, step.node).open(channel, directory, program.receiver, start_ns)

    def stage(self, block: Block, received_ns: int) -> tuple[Block, Any]:
        return block, self._writer.stage(block)

    def commit(self, staged: Any) -> int:
        return self._writer.commit(staged)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


_Bound = _BoundMap | _BoundReduce | _BoundSink


class FlowGraph:
    """The steps of one flow, bound. ``saved`` counts what each sink and table has committed, by node name."""

    def __init__(
        self, flow: ReceiverFlow, program: ReceiverProgram, files: Files, directory: str, start_ns: int
    ) -> None:
        self.saved: dict[str, int] = {}
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
            if not isinstance(bound, _BoundMap):
                self.saved[step.name] = 0
            self._steps.append((step.name, step.source, bound))
        self._single = len(self._steps) == 1
        self._ends = [(name, bound) for name, _, bound in self._steps if not isinstance(bound, _BoundMap)]

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
                self.saved[name] += bound.commit(kept)
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
