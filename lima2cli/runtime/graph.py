"""The nodes of one flow at work on one receiver.

A block goes through all nodes first (`stage`): maps compute, reductions reduce, sinks compress. Only then, when the
runtime knows that the data were not overwritten meanwhile, does it count (`commit`): rows are appended, chunks
written.
"""

import time
from dataclasses import dataclass
from typing import Any, cast

from lima2cli.nodes.base import Partial
from lima2cli.plan.records import Step
from lima2cli.program.records import ReceiverFlow, ReceiverProgram
from lima2cli.runtime.bound import Bound, BoundReduce, BoundSink, BoundTransform, End, Single, bind
from lima2cli.runtime.chain import BoundChain, PartFailed
from lima2cli.runtime.pairing import BoundJoin
from lima2cli.spec import Block, Files


class NodeFailed(Exception):
    """A node raised; ``frame`` is the first of the block, None where it was not about frames."""

    def __init__(self, node: str, frame: int | None, error: Exception) -> None:
        super().__init__(f"{node}: {error or type(error).__name__}")
        self.node, self.frame, self.error = node, frame, error


_Staged = tuple[str, End, Any]


@dataclass(frozen=True, slots=True)
class _Step:
    """A bound kernel, by the name of its last map or only node; a sink that failed has ``bound`` None, and hands its
    frames on."""

    name: str
    sources: tuple[str, ...]
    bound: Bound | None


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
        self._ends: list[tuple[str, End]] = []
        steps, known = {step.name: step for step in flow.steps}, {self._name}
        for kernel in flow.kernels:
            if not known.issuperset(kernel.sources):
                continue
            name = kernel.maps[-1] if kernel.maps else kernel.ends[0]
            try:
                bound = (
                    BoundChain(kernel, steps, files)
                    if kernel.fused
                    else bind(steps[name], program, files, directory, start_ns)
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
            elif isinstance(bound, End):
                self._ends.append((name, bound))
        self._saved_of = tuple(self._ends)
        self._transforms = {step.name: step.bound for step in self._steps if isinstance(step.bound, BoundTransform)}
        self._joins = {step.name: step.bound for step in self._steps if isinstance(step.bound, BoundJoin)}

    def _bind_reductions(
        self, chain: BoundChain, steps: list[Step], program: ReceiverProgram, files: Files, directory: str
    ) -> None:
        for step in steps:
            try:
                bound = BoundReduce(step, program, files, directory)
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
        dropping: dict[str, BoundTransform | BoundJoin] = {**self._transforms, **self._joins}
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
        self, name: str, bound: Single, block: Block, received_ns: int
    ) -> tuple[Block | None, list[_Staged]]:
        while True:
            try:
                out, kept = bound.stage(block, received_ns)
            except PartFailed as failed:  # once more without it
                self._drop(failed.name, int(block.numbers[0]), failed.error)
                continue
            except Exception as error:  # noqa: BLE001
                self._drop(name, int(block.numbers[0]), error)
                return (block if isinstance(bound, BoundSink) else None), []
            if isinstance(bound, BoundChain):
                ends = dict(self._ends)
                return out, [(end, ends[end], partial) for end, partial in cast(dict[str, Partial], kept).items()]
            return out, [(name, bound, kept)] if isinstance(bound, End) else []

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
        transforms = [(step.name, step.bound) for step in self._steps if isinstance(step.bound, BoundTransform)]
        holding = [
            (step.name, step.bound) for step in self._steps if isinstance(step.bound, BoundTransform | BoundJoin)
        ]
        for name, bound in holding:
            try:
                left = bound.finish()
            except Exception as error:  # noqa: BLE001
                self._drop(name, None, error)
            else:
                if left is not None:
                    self.commit(self._stage_from(name, left, time.time_ns()), int(left.numbers[0]))
        ends: list[tuple[str, End | BoundTransform]] = [*transforms, *self._ends]
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
            if step.name == name and isinstance(step.bound, BoundSink):
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
