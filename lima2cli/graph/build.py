"""Binding of the nodes of a receiver: what happens at once with each block, and what has to wait.

All that hangs on a flow, or on an operator that waits, and on nothing else, is one pass: it happens at once. A node
that reads from several passes waits until all have come as far (`Pairing`); so does one that works together with other
processes. What it gives begins a pass of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import field
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from lima2cli.dataclass import dataclass
from lima2cli.errors import EnvironmentUnfit, UserCodeError
from lima2cli.foreign import IMPORT_S, WATCH, TookTooLong, call_foreign, is_foreign
from lima2cli.frames import Files, FrameSpec
from lima2cli.graph.collectives import Gathering, Reduction
from lima2cli.graph.fused import BoundChain
from lima2cli.graph.joins import BoundSelect, ExpectedFrames, Pairing, expected_frames
from lima2cli.graph.offload import BoundDelegate
from lima2cli.graph.operators import BoundCommon, BoundReduce, bind
from lima2cli.graph.protocol import Operator, PartFailed
from lima2cli.graph.user_program import OwnProcessing
from lima2cli.nodes.base import Exchange, Reduce, Sink
from lima2cli.nodes.user_function import words
from lima2cli.plan.ir import Kernel, Step
from lima2cli.plan.lowering import come_back
from lima2cli.program import ReceiverProgram
from lima2cli.transport.base import Port

if TYPE_CHECKING:
    from lima2cli.gpu.devices import Device
    from lima2cli.gpu.pipe import Upload


class NodeFailed(Exception):
    """A node raised; ``frame`` is the first of the block, None where no frame is concerned."""

    def __init__(self, node: str, frame: int | None, error: Exception) -> None:
        super().__init__(f"{node}: {error or type(error).__name__}")
        self.node, self.frame, self.error = node, frame, error


@dataclass(frozen=True, slots=True)
class BoundStep:
    """An operator in a pass, and what it reads of it: flows and nodes, of which all need frames, and ``tables``."""

    operator: Operator
    sources: tuple[str, ...]
    tables: tuple[str, ...] = ()


@dataclass(slots=True)
class BoundPass:
    """Everything that happens with each block of one origin.

    steps  operators that answer at once, in the order of the data;  feeds  then those that wait, one for each source
    """

    steps: list[BoundStep] = field(default_factory=list)
    feeds: list[BoundStep] = field(default_factory=list)


@dataclass(slots=True)
class Passes:
    """The nodes of a receiver, bound.

    operators  all, each once; one that others wait for may be of the same node as one that answers at once
    savers     operators by the names of the nodes whose frames or rows they save
    due        the frames that each flow and node gives here;  origins  the pass that each belongs to
    changing   the pass in which a node is changed: where it is pushed
    """

    passes: dict[str, BoundPass]
    due: Mapping[str, ExpectedFrames]
    origins: Mapping[str, str] = field(default_factory=dict)
    changing: Mapping[str, str] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)
    savers: dict[str, Operator] = field(default_factory=dict)
    failures: list[NodeFailed] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def origins_of(
    steps: Sequence[Step], flows: Sequence[str], on_devices: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Return which pass the output of each flow and node belongs to; ``on_devices`` that of nodes there."""
    origins = {flow: flow for flow in flows}
    for step in steps:
        if step.name in on_devices:
            origins[step.name] = on_devices[step.name]
            continue
        read_passes = {origins[source] for source in (*step.sources, *step.tables)}
        meets = step.workers is not None or (step.collective and not isinstance(step.node, Sink))
        apart = len(read_passes) > 1 or meets
        origins[step.name] = step.name if apart else read_passes.pop()
    return origins


def bind_passes(program: ReceiverProgram, port: Port, files: Files, processing: OwnProcessing | None = None) -> Passes:
    """Bind all kernels of a receiver.

    Those that cannot be bound, and what reads from them, are left out and reported.
    """
    return _Binding(program, port, files).bound(processing)


class _Binding:
    """The binding of one receiver."""

    def __init__(self, program: ReceiverProgram, port: Port, files: Files) -> None:
        self._program, self._port, self._files = program, port, files
        self._steps = {step.name: step for step in program.steps}
        flows = [flow.gdt.flow for flow in program.flows]
        self._devices, warnings = _devices(program)
        self._uploads = dict[str, "Upload"]()
        on_devices = [kernel for kernel in program.kernels if self._there(kernel)]
        apart = {name: kernel.operator for kernel in on_devices for name in kernel.nodes}
        self._origins, self._known = origins_of(program.steps, flows, apart), set(flows)
        passes = {name: BoundPass() for name, origin in self._origins.items() if name == origin}
        changing = {name: self._origins[kernel.source] for kernel in on_devices for name in kernel.nodes}
        self._bound = Passes(passes, expected_frames(program), self._origins, {**self._origins, **changing})
        self._bound.warnings += warnings

    def _there(self, kernel: Kernel) -> bool:
        """Return whether a kernel is computed on a device; what it makes is there, too."""
        if not kernel.lowered or kernel.source not in self._devices:
            return False
        self._devices |= dict.fromkeys(kernel.makes, self._devices[kernel.source])
        return True

    def bound(self, processing: OwnProcessing | None) -> Passes:
        """Return all that is bound; ``processing`` is the user's program, which reads what it has asked for."""
        for step in self._program.steps:
            meeting = self._meeting(step)
            if meeting is not None:
                self._feed(meeting, step.name if step.name in self._program.tables else step.source)
        for kernel in self._program.kernels:
            self._add(kernel, self._steps[kernel.maps[-1] if kernel.maps else kernel.ends[0]])
        if processing is not None:
            self._bound.passes[processing.name] = BoundPass()
            self._feed(processing, *processing.names)
        return self._bound

    def _feed(self, operator: Operator, *sources: str) -> None:
        """Add an operator that waits; rows that are merged come from the pass where the node reads frames."""
        self._bound.operators.append(operator)
        for source in sources:
            origin = self._origins[self._steps[source].source if source == operator.name else source]
            self._bound.passes[origin].feeds.append(BoundStep(operator, (source,)))

    def _meeting(self, step: Step) -> Operator | None:
        """Return what the node does together with other processes, apart from other nodes; None = nothing."""
        program = self._program
        if step.workers is not None:
            delegation = program.delegations[step.name]
            mailbox = self._port.mailbox(delegation.mailbox)
            return BoundDelegate(step, delegation, mailbox, delegation.members.index(program.rank))
        if not step.collective or isinstance(step.node, Sink):
            return None
        collective = self._port.collective(program.collectives[step.name])
        if isinstance(step.node, Reduce):
            return Reduction(step.name, collective, step.node.merge)
        whole, node = cast(FrameSpec, step.after), cast(Exchange, step.node)
        rule, places = step.numbering.rule, program.places[step.name]
        return Gathering(step.name, collective, rule, places, whole.shape, whole.dtype, node.filling(step.before))

    def _add(self, kernel: Kernel, step: Step) -> None:
        """Bind a kernel, where there is something to do at once or when all that it reads is there."""
        if isinstance(step.node, Sink) and step.collective:  # it takes part, whatever it gets
            collective = self._port.collective(self._program.collectives[step.name])
            channel = self._program.channels[step.name]
            self._place(kernel, step, BoundCommon(step, channel, self._program.receiver, collective))
        if not self._known.issuperset((*kernel.sources, *step.tables)):
            return
        if (step.collective and not isinstance(step.node, Reduce)) or step.workers is not None:
            self._known.update(kernel.makes)  # by what it does together with others
            return
        try:
            with WATCH.during(step.name, IMPORT_S) if is_foreign(type(step.node)) else nullcontext():
                operator = call_foreign(self._operator, kernel, step)
        except PartFailed as failed:
            self._bound.failures.append(NodeFailed(failed.name, None, failed.error))
        except (Exception, TookTooLong) as error:  # noqa: BLE001  files that have gone, code of the user's
            reason = UserCodeError(words(error)) if is_foreign(type(step.node)) else error
            self._bound.failures.append(NodeFailed(step.name, None, cast(Exception, reason)))
        else:
            self._known.update(kernel.makes, kernel.ends)
            self._place(kernel, step, operator)

    def _operator(self, kernel: Kernel, step: Step) -> Operator:
        if self._there(kernel):
            return self._on_device(kernel)
        if kernel.fused:
            return BoundChain(kernel, self._steps, self._files, self._program.threads)
        if step.tables:
            return BoundSelect(step, {name: cast(Reduce, self._steps[name].node) for name in step.tables})
        return bind(step, self._program, self._files)

    def _place(self, kernel: Kernel, step: Step, operator: Operator) -> None:
        """Put an operator where it happens."""
        sources = tuple(dict.fromkeys((*step.sources, *step.tables)))
        if len({self._origins[source] for source in sources}) > 1:
            self._feed(Pairing(operator, {source: self._bound.due[source] for source in sources}), *sources)
            return
        self._bound.operators.append(operator)
        if operator.waits:
            self._bound.passes[self._origins[kernel.source]].feeds.append(BoundStep(operator, kernel.sources))
            return
        if step.name in self._program.channels or step.name in self._program.tables:
            self._bound.savers[step.name] = operator
        if isinstance(operator, BoundChain):
            self._add_reductions(operator, kernel)
        self._bound.passes[self._origins[kernel.source]].steps.append(BoundStep(operator, kernel.sources, step.tables))

    def _add_reductions(self, chain: BoundChain, kernel: Kernel) -> None:
        for name, reduction in self._reductions(kernel):
            chain.add(name, reduction.strips, reads=reduction.reads, merged=reduction.merged)

    def _reductions(self, kernel: Kernel) -> Iterator[tuple[str, BoundReduce]]:
        """Bind the reductions at the end of a kernel."""
        for name in kernel.ends:
            try:
                reduction = call_foreign(BoundReduce, self._steps[name], self._program, self._files)
            except Exception as error:  # noqa: BLE001  files that have gone
                self._bound.failures.append(NodeFailed(name, None, error))
            else:
                self._bound.operators.append(reduction)
                self._bound.savers[name] = reduction
                yield name, reduction

    def _on_device(self, kernel: Kernel) -> Operator:
        """Bind a kernel on a device, with its reductions, whose rows are made there or of what comes back."""
        from lima2cli.gpu.pipe import Upload  # the extra `gpu`
        from lima2cli.graph.on_device import BoundOnDevice

        found = {name: reduction.strips[0] for name, reduction in self._reductions(kernel)}
        source, spec = kernel.source, self._steps[kernel.nodes[0]].before
        if source not in self._uploads:
            self._uploads[source] = Upload(self._devices[source], spec.shape, spec.dtype)
        upload, program = self._uploads[source], self._program
        self._uploads |= dict.fromkeys(kernel.makes, upload)
        back = come_back(kernel, program.kernels, self._steps, own=program.processing is not None)
        borrows = source not in {flow.gdt.flow for flow in program.flows}
        return BoundOnDevice(kernel, self._steps, self._files, upload, found, borrows=borrows, back=back)


def _devices(program: ReceiverProgram) -> tuple[dict[str, "Device"], list[str]]:
    """Return the devices to whose memory flows come, by flow, and warnings of those that the host stands in for.

    Raises:
        EnvironmentUnfit: there is no such device, and the host does not stand in for it.
    """
    if not program.devices:
        return {}, []
    from lima2cli.gpu.devices import open_device  # the extra `gpu`

    found, warnings = dict[str, "Device"](), list[str]()
    for flow, memory in program.devices.items():
        try:
            found[flow] = open_device(memory.device)
        except EnvironmentUnfit as error:
            if not memory.fallback:
                raise
            warnings.append(f"memspace {memory.name} is in host memory: {error}")
    return found, list(dict.fromkeys(warnings))
