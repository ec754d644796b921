"""Binding of the nodes of a receiver: what happens at once with each block, and what has to wait.

All that hangs on a flow, or on a node that waits, and on nothing else, is one pass: it happens at once. A node that
reads from several passes waits until all have come as far (`Pairing`); so does one that works together with other
receivers (`Gathering`, `Reduction`). What it gives begins a pass of its own.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import cast

from lima2cli.errors import UserCodeError
from lima2cli.foreign import IMPORT_S, WATCH, TookTooLong, call_foreign, is_foreign
from lima2cli.frames import Files, FrameSpec
from lima2cli.graph.collectives import Gathering, Reduction
from lima2cli.graph.fused import BoundChain, PartFailed
from lima2cli.graph.joins import BoundSelect, ExpectedFrames, Pairing, expected_frames
from lima2cli.graph.offload import BoundDelegate
from lima2cli.graph.operators import Bound, BoundCommon, BoundReduce, End, Paired, bind
from lima2cli.graph.user_program import OwnProcessing
from lima2cli.graph.waiting import Waiting
from lima2cli.nodes.base import Delegate, Gather, Reduce, Sink
from lima2cli.nodes.user_function import words
from lima2cli.plan.ir import Kernel, Step
from lima2cli.program import ReceiverProgram
from lima2cli.transport.base import Port


class NodeFailed(Exception):
    """A node raised; ``frame`` is the first of the block, None where no frame is concerned."""

    def __init__(self, node: str, frame: int | None, error: Exception) -> None:
        super().__init__(f"{node}: {error or type(error).__name__}")
        self.node, self.frame, self.error = node, frame, error


@dataclass(frozen=True, slots=True)
class BoundStep:
    """A bound kernel, by the name of its last map or only node.

    A sink that failed has ``bound`` None, and hands its frames on.
    """

    name: str
    sources: tuple[str, ...]
    bound: Bound | None
    tables: tuple[str, ...] = ()


@dataclass(slots=True)
class BoundPass:
    """Steps that happen at once with each block of one origin.

    steps  kernels, in the order of the data
    feeds  (waiting node, source) of all nodes to which the progress of the origin is reported
    """

    steps: list[BoundStep] = field(default_factory=list)
    feeds: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Passes:
    """The nodes of a receiver, bound.

    paired  all nodes that read several sources, waiting or not
    due     the frames that each flow and node gives here
    """

    passes: dict[str, BoundPass]
    due: Mapping[str, ExpectedFrames]
    waiting: dict[str, Waiting] = field(default_factory=dict)
    ends: dict[str, End] = field(default_factory=dict)
    paired: dict[str, Paired] = field(default_factory=dict)
    failures: list[NodeFailed] = field(default_factory=list)


def origins_of(steps: Sequence[Step], flows: Sequence[str]) -> dict[str, str]:
    """Return which pass the output of each flow and node belongs to."""
    origins = {flow: flow for flow in flows}
    for step in steps:
        read_passes = {origins[source] for source in (*step.sources, *step.tables)}
        apart = (
            len(read_passes) > 1 or isinstance(step.node, Delegate) or (step.circle and not isinstance(step.node, Sink))
        )
        origins[step.name] = step.name if apart else read_passes.pop()
    return origins


def bind_passes(program: ReceiverProgram, port: Port, files: Files, processing: OwnProcessing | None = None) -> Passes:
    """Bind all kernels of a receiver.

    Those that cannot be bound, and what reads from them, are left out and reported.
    """
    flows = [flow.gdt.flow for flow in program.flows]
    origins = origins_of(program.steps, flows)
    bound = Passes({name: BoundPass() for name, origin in origins.items() if name == origin}, expected_frames(program))
    nodes = {step.name: step for step in program.steps}
    for step in program.steps:
        if step.circle and isinstance(step.node, Sink):
            bound.waiting[step.name] = _common(step, port, program)
            bound.passes[origins[step.source]].feeds.append((step.name, step.source))
        elif isinstance(step.node, Delegate):
            bound.waiting[step.name] = _delegation(step, port, program)
            bound.passes[origins[step.source]].feeds.append((step.name, step.source))
        elif step.circle:
            bound.waiting[step.name] = _collective(step, port, program)
            source = step.source if isinstance(step.node, Gather) else step.name
            bound.passes[origins[step.source]].feeds.append((step.name, source))
    known = set(flows)
    for kernel in program.kernels:
        step = nodes[kernel.maps[-1] if kernel.maps else kernel.ends[0]]
        if not known.issuperset((*kernel.sources, *step.tables)):
            continue
        try:
            shared = bound.waiting.get(step.name)
            one: Bound | None = (
                shared if isinstance(shared, BoundCommon) else _bound(kernel, step, nodes, program, files)
            )
        except PartFailed as failed:
            bound.failures.append(NodeFailed(failed.name, None, failed.error))
            continue
        except (Exception, TookTooLong) as error:  # noqa: BLE001  files that have gone, code of the user's
            reason = UserCodeError(words(error)) if is_foreign(type(step.node)) else error
            bound.failures.append(NodeFailed(step.name, None, cast(Exception, reason)))
            continue
        known.update(kernel.makes, kernel.ends)
        _add(bound, kernel, step, one, origins)
        if isinstance(one, BoundChain):
            _bind_reductions(bound, one, [nodes[end] for end in kernel.ends], program, files)
        elif isinstance(one, End):
            bound.ends[step.name] = one
    if processing is not None:
        bound.waiting[processing.name], bound.passes[processing.name] = processing, BoundPass()
        for name in processing.names:
            bound.passes[origins[name]].feeds.append((processing.name, name))
    return bound


def _bound(
    kernel: Kernel, step: Step, nodes: Mapping[str, Step], program: ReceiverProgram, files: Files
) -> Bound | None:
    """Return a bound kernel; one whose node a package brings must be bound in time."""
    with WATCH.during(step.name, IMPORT_S) if is_foreign(type(step.node)) else nullcontext():
        return call_foreign(_bind_kernel, kernel, step, nodes, program, files)


def _bind_kernel(
    kernel: Kernel, step: Step, nodes: Mapping[str, Step], program: ReceiverProgram, files: Files
) -> Bound | None:
    """Bind a kernel; return None where there is nothing to do at once."""
    if isinstance(step.node, Gather | Delegate):
        return None
    if kernel.fused:
        return BoundChain(kernel, nodes, files, program.threads)
    if step.tables:
        return BoundSelect(step, {name: cast(Reduce, nodes[name].node) for name in step.tables})
    return bind(step, program, files)


def _add(bound: Passes, kernel: Kernel, step: Step, one: Bound | None, origins: Mapping[str, str]) -> None:
    """Add a kernel where it happens: at once with what it reads, or when all that it reads is there."""
    if isinstance(one, Paired):
        bound.paired[step.name] = one
    if isinstance(step.node, Delegate) or (step.circle and isinstance(step.node, Gather)):
        return
    if isinstance(one, Paired) and origins[step.name] == step.name:
        sources = tuple(dict.fromkeys((*step.sources, *step.tables)))
        bound.waiting[step.name] = Pairing(one, {source: bound.due[source] for source in sources})
        for source in sources:
            bound.passes[origins[source]].feeds.append((step.name, source))
        return
    bound.passes[origins[kernel.source]].steps.append(BoundStep(step.name, kernel.sources, one, step.tables))


def _bind_reductions(
    bound: Passes, chain: BoundChain, steps: Sequence[Step], program: ReceiverProgram, files: Files
) -> None:
    for step in steps:
        try:
            one = call_foreign(BoundReduce, step, program, files)
        except Exception as error:  # noqa: BLE001  files that have gone
            bound.failures.append(NodeFailed(step.name, None, error))
        else:
            chain.reducers[step.name] = one.strips
            bound.ends[step.name] = one


def _common(step: Step, port: Port, program: ReceiverProgram) -> BoundCommon:
    circle = port.circle(program.circles[step.name])
    return BoundCommon(step, program.channels[step.name], program.receiver, circle)


def _delegation(step: Step, port: Port, program: ReceiverProgram) -> Waiting:
    delegation = program.delegations[step.name]
    return BoundDelegate(step, delegation, port.line(delegation.line), delegation.members.index(program.rank))


def _collective(step: Step, port: Port, program: ReceiverProgram) -> Waiting:
    circle = port.circle(program.circles[step.name])
    if isinstance(step.node, Gather):
        whole = step.after
        assert isinstance(whole, FrameSpec)
        rule, places = step.numbering.rule, program.places[step.name]
        return Gathering(circle, rule, places, whole.shape, whole.dtype, step.node.filling(step.before))
    return Reduction(circle, cast(Reduce, step.node).merge)
