"""The nodes of one flow at work on one receiver.

A block goes through all nodes first (`stage`): maps compute, reductions reduce, sinks compress. Only then, when the
runtime knows that the data were not overwritten meanwhile, does it count (`commit`): rows are appended, chunks
written.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from lima2cli.artefacts.tables import TableWriter
from lima2cli.nodes.base import (
    Dropped,
    Join,
    Map,
    Partial,
    Pick,
    Reduce,
    Reducer,
    Sink,
    StripReducer,
    Transform,
    Transformer,
    Writer,
)
from lima2cli.plan.records import Step
from lima2cli.program.records import ReceiverFlow, ReceiverProgram
from lima2cli.runtime.chain import BoundChain, PartFailed
from lima2cli.runtime.pairing import BoundJoin, Ranges
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


class _BoundPick:
    def __init__(self, step: Step, files: Files) -> None:
        self._function = cast(Pick, step.node).bind(step.before, files)

    def stage(self, block: Block, received_ns: int) -> tuple[Block, None]:
        return self._function(block), None


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

    @property
    def strips(self) -> StripReducer:
        """Of a node that takes strips."""
        return cast(StripReducer, self._reducer)

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


class _BoundTransform:
    """A node with a state, or with code of the user's. ``dropped`` are (first, last) numbers of frames given up."""

    def __init__(self, step: Step, files: Files) -> None:
        node = cast(Transform, step.node)
        self._transformer: Transformer = node.start(step.before, files, step.numbering.rule)
        self._given_up = Ranges(step.numbering.rule.step)

    @property
    def dropped(self) -> list[tuple[int, int]]:
        """See the class."""
        return self._given_up.ranges

    def stage(self, block: Block, received_ns: int) -> tuple[Block | None, None]:
        try:
            return self._transformer.step(block), None
        except Dropped:
            self._given_up.add(block.numbers)
            return None, None

    def finish(self) -> Block | None:
        return self._transformer.finish()

    def close(self) -> None:
        self._transformer.close()


_End = _BoundReduce | _BoundSink
_Single = _BoundMap | _BoundPick | _BoundTransform | BoundChain | _End
_Bound = _Single | BoundJoin
_Staged = tuple[str, _End, Any]


@dataclass(frozen=True, slots=True)
class _Step:
    """A bound kernel, by the name of its last map or only node; a sink that failed has ``bound`` None, and hands its
    frames on."""

    name: str
    sources: tuple[str, ...]
    bound: _Bound | None


class FlowGraph:
    """The kernels of one flow, bound.

    A node that fails is left out from then on, and so is what reads from it; all else goes on. `failures` tells of it.
    """

    def __init__(
        self, flow: ReceiverFlow, program: ReceiverProgram, files: Files, directory: str, start_ns: int
    ) -> None:
        self._name = flow.gdt.name
        self._steps: list[_Step] = []
        self._failures: list[NodeFailed] = []
        self._ends: list[tuple[str, _End]] = []
        steps, known = {step.name: step for step in flow.steps}, {self._name}
        for kernel in flow.kernels:
            if not known.issuperset(kernel.sources):
                continue
            name = kernel.maps[-1] if kernel.maps else kernel.ends[0]
            try:
                bound = (
                    BoundChain(kernel, steps, files)
                    if kernel.fused
                    else _bind(steps[name], program, files, directory, start_ns)
                )
            except PartFailed as failed:
                self._failures.append(NodeFailed(failed.name, None, failed.error))
                continue
            except Exception as error:  # noqa: BLE001  files that have gone, a directory that takes none
                self._failures.append(NodeFailed(name, None, error))
                continue
            known.update(kernel.makes)
            self._steps.append(_Step(name, kernel.sources, bound))
            if isinstance(bound, BoundChain):
                self._bind_reductions(bound, [steps[end] for end in kernel.ends], program, files, directory)
            elif isinstance(bound, _End):
                self._ends.append((name, bound))
        self._saved_of = tuple(self._ends)
        self._transforms = {step.name: step.bound for step in self._steps if isinstance(step.bound, _BoundTransform)}
        self._joins = {step.name: step.bound for step in self._steps if isinstance(step.bound, BoundJoin)}

    def _bind_reductions(
        self, chain: BoundChain, steps: list[Step], program: ReceiverProgram, files: Files, directory: str
    ) -> None:
        for step in steps:
            try:
                bound = _BoundReduce(step, program, files, directory)
            except Exception as error:  # noqa: BLE001  a directory that takes no file
                self._failures.append(NodeFailed(step.name, None, error))
            else:
                chain.reducers[step.name] = bound.strips
                self._ends.append((step.name, bound))

    @property
    def saved(self) -> dict[str, int]:
        """Frames and rows that each sink and table has written, by node name."""
        return {name: bound.saved for name, bound in self._saved_of}

    @property
    def dropped(self) -> dict[str, list[tuple[int, int]]]:
        """(first, last) numbers of consecutive frames that each transform has given up, or no join could pair."""
        dropping: dict[str, _BoundTransform | BoundJoin] = {**self._transforms, **self._joins}
        return {name: bound.dropped for name, bound in dropping.items()}

    @property
    def transforms(self) -> bool:
        """Whether any node keeps a state or runs code of the user's: torn data must not reach it."""
        return bool(self._transforms)

    def failures(self) -> list[NodeFailed]:
        """What has failed since the last call."""
        failed, self._failures = self._failures, []
        return failed

    def stage(self, block: Block, received_ns: int) -> list[_Staged]:
        """Everything that can still be thrown away; where there are transforms, ``block`` must be stable."""
        return self._stage_from(self._name, block, received_ns)

    def _stage_from(self, source: str, block: Block, received_ns: int) -> list[_Staged]:
        """All steps behind a source, with what leaves it; joins keep what comes at the end."""
        values: dict[str, Block] = {source: block}
        staged: list[_Staged] = []
        for step in self._steps:
            bound, given = step.bound, values.get(step.sources[0])
            if isinstance(bound, BoundJoin):
                paired = self._pair(step, bound, values, late=source != self._name)
                if paired is not None:
                    values[step.name] = paired
                continue
            if given is None:  # what it reads from has just failed, or gives nothing this time
                continue
            if bound is None:
                values[step.name] = given
                continue
            out, kept = self._stage_kernel(step.name, bound, given, received_ns)
            staged += kept
            if out is not None:
                values[step.name] = out
        return staged

    def _pair(self, step: _Step, bound: BoundJoin, values: dict[str, Block], *, late: bool) -> Block | None:
        given = {source: values[source] for source in step.sources if source in values}
        if not given:
            return None
        try:
            if late:
                bound.keep(given)
                return None
            return bound.stage(given)
        except Exception as error:  # noqa: BLE001
            self._drop(step.name, int(next(iter(given.values())).numbers[0]), error)
            return None

    def _stage_kernel(
        self, name: str, bound: _Single, block: Block, received_ns: int
    ) -> tuple[Block | None, list[_Staged]]:
        while True:
            try:
                out, kept = bound.stage(block, received_ns)
            except PartFailed as failed:  # once more without it
                self._drop(failed.name, int(block.numbers[0]), failed.error)
                continue
            except Exception as error:  # noqa: BLE001
                self._drop(name, int(block.numbers[0]), error)
                return (block if isinstance(bound, _BoundSink) else None), []
            if isinstance(bound, BoundChain):
                ends = dict(self._ends)
                return out, [(end, ends[end], partial) for end, partial in cast(dict[str, Partial], kept).items()]
            return out, [(name, bound, kept)] if isinstance(bound, _End) else []

    def commit(self, staged: list[_Staged], first_frame: int) -> None:
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
        """Let transforms give what they still hold, joins pair it, then end all files, the rest too where one fails."""
        transforms = [(step.name, step.bound) for step in self._steps if isinstance(step.bound, _BoundTransform)]
        holding = [
            (step.name, step.bound) for step in self._steps if isinstance(step.bound, _BoundTransform | BoundJoin)
        ]
        for name, bound in holding:
            try:
                left = bound.finish()
            except Exception as error:  # noqa: BLE001
                self._drop(name, None, error)
            else:
                if left is not None:
                    self.commit(self._stage_from(name, left, time.time_ns()), int(left.numbers[0]))
        ends: list[tuple[str, _End | _BoundTransform]] = [*transforms, *self._ends]
        self._ends, self._steps = [], []
        for name, end in ends:
            try:
                end.close()
            except Exception as error:  # noqa: BLE001
                self._failures.append(NodeFailed(name, None, error))

    def _drop(self, name: str, frame: int | None, error: Exception) -> None:
        """Leave out a step that failed and what needs it; their files are ended with what they have."""
        failed = NodeFailed(self._label(name), frame, error)
        self._failures.append(failed)
        gone, kept = {name}, []
        for step in self._steps:
            if isinstance(step.bound, BoundChain):
                step.bound.reducers.pop(name, None)
            if step.name == name and isinstance(step.bound, _BoundSink):
                gone.discard(name)
                kept.append(_Step(name, step.sources, None))
            elif step.name in gone or not gone.isdisjoint(step.sources):
                gone.add(step.name)
            else:
                kept.append(step)
        self._steps = kept
        alive = {step.name for step in kept if step.bound is not None}
        alive.update(*(step.bound.reducers for step in kept if isinstance(step.bound, BoundChain)))
        ended = [end for end in self._ends if end[0] not in alive]
        self._ends = [end for end in self._ends if end[0] in alive]
        for _, bound in ended:
            try:
                bound.close()
            except Exception as again:  # noqa: BLE001
                failed.add_note(str(again))

    def _label(self, name: str) -> str:
        """What failed, for people: of a fused kernel all its maps."""
        maps = (step.bound.maps for step in self._steps if step.name == name and isinstance(step.bound, BoundChain))
        return ", ".join(next(maps, (name,)))


def _bind(step: Step, program: ReceiverProgram, files: Files, directory: str, start_ns: int) -> _Bound:
    if isinstance(step.node, Map):
        return _BoundMap(step, files)
    if isinstance(step.node, Join):
        return BoundJoin(step, files)
    if isinstance(step.node, Pick):
        return _BoundPick(step, files)
    if isinstance(step.node, Transform):
        return _BoundTransform(step, files)
    if isinstance(step.node, Reduce):
        return _BoundReduce(step, program, files, directory)
    return _BoundSink(step, program, directory, start_ns)
