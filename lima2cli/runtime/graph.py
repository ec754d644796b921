"""The nodes of one flow at work on one receiver.

A block goes through all nodes first (`stage`): maps compute, reductions reduce, sinks compress. Only then, when the
runtime knows that the data were not overwritten meanwhile, does it count (`commit`): rows are appended, chunks
written.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
    """A node raised; ``frame`` is the first of the block, None where it was not about frames."""

    def __init__(self, node: str, frame: int | None, error: Exception) -> None:
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


_End = _BoundReduce | _BoundSink
_Bound = _BoundMap | _End


@dataclass(frozen=True, slots=True)
class _Step:
    """A bound step; a sink that failed has ``bound`` None, and hands its frames on."""

    name: str
    source: str
    bound: _Bound | None


class FlowGraph:
    """The steps of one flow, bound.

    A node that fails is left out from then on, and so is what reads from it; all else goes on. `failures` tells of it.
    """

    def __init__(
        self, flow: ReceiverFlow, program: ReceiverProgram, files: Files, directory: str, start_ns: int
    ) -> None:
        self._name = flow.gdt.name
        self._steps: list[_Step] = []
        self._failures: list[NodeFailed] = []
        known = {self._name}
        for step in flow.steps:
            if step.source not in known:
                continue
            try:
                self._steps.append(_Step(step.name, step.source, _bind(step, program, files, directory, start_ns)))
            except Exception as error:  # noqa: BLE001  files that have gone, a directory that takes none
                self._failures.append(NodeFailed(step.name, None, error))
            else:
                known.add(step.name)
        self._ends = [(step.name, step.bound) for step in self._steps if isinstance(step.bound, _End)]
        self._saved_of = tuple(self._ends)

    @property
    def saved(self) -> dict[str, int]:
        """Frames and rows that each sink and table has written, by node name."""
        return {name: bound.saved for name, bound in self._saved_of}

    def failures(self) -> list[NodeFailed]:
        """What has failed since the last call."""
        failed, self._failures = self._failures, []
        return failed

    def stage(self, block: Block, received_ns: int) -> list[tuple[str, _End, Any]]:
        """Everything that can still be thrown away."""
        values: dict[str, Block] = {self._name: block}
        staged = []
        for step in self._steps:
            bound, given = step.bound, values.get(step.source)
            if given is None:  # what it reads from has just failed
                continue
            if bound is None:
                values[step.name] = given
                continue
            try:
                out, kept = bound.stage(given, received_ns)
            except Exception as error:  # noqa: BLE001
                self._drop(step.name, int(block.numbers[0]), error)
                out = given if isinstance(bound, _BoundSink) else None
            else:
                if not isinstance(bound, _BoundMap):
                    staged.append((step.name, bound, kept))
            if out is not None:
                values[step.name] = out
        return staged

    def commit(self, staged: list[tuple[str, _End, Any]], first_frame: int) -> None:
        """Make what was staged last."""
        for name, bound, kept in staged:
            try:
                bound.commit(kept)
            except Exception as error:  # noqa: BLE001
                self._drop(name, first_frame, error)

    def flush(self) -> None:
        """Make what was committed readable."""
        for name, bound in self._ends:
            try:
                bound.flush()
            except Exception as error:  # noqa: BLE001
                self._drop(name, None, error)

    def close(self) -> None:
        """End all files, the rest too where one fails."""
        ends, self._ends, self._steps = self._ends, [], []
        for name, bound in ends:
            try:
                bound.close()
            except Exception as error:  # noqa: BLE001
                self._failures.append(NodeFailed(name, None, error))

    def _drop(self, name: str, frame: int | None, error: Exception) -> None:
        """Leave out a step that failed and what needs it; their files are ended with what they have."""
        failed = NodeFailed(name, frame, error)
        self._failures.append(failed)
        gone, kept = {name}, []
        for step in self._steps:
            if step.name == name and isinstance(step.bound, _BoundSink):
                gone.discard(name)
                kept.append(_Step(name, step.source, None))
            elif step.name in gone or step.source in gone:
                gone.add(step.name)
            else:
                kept.append(step)
        self._steps = kept
        alive = {step.name for step in kept if step.bound is not None}
        ended = [end for end in self._ends if end[0] not in alive]
        self._ends = [end for end in self._ends if end[0] in alive]
        for _, bound in ended:
            try:
                bound.close()
            except Exception as again:  # noqa: BLE001
                failed.add_note(str(again))


def _bind(step: Step, program: ReceiverProgram, files: Files, directory: str, start_ns: int) -> _Bound:
    if isinstance(step.node, Map):
        return _BoundMap(step, files)
    if isinstance(step.node, Reduce):
        return _BoundReduce(step, program, files, directory)
    return _BoundSink(step, program, directory, start_ns)
