"""Lower a plan to one program per rank: every address in every other rank's windows is worked out."""

from collections.abc import Mapping, Sequence
from dataclasses import field

from lima2cli.dataclass import dataclass
from lima2cli.detectors.base import AcqParams, DetectorConfig, XferParams
from lima2cli.files.channel import Channel, TableChannel
from lima2cli.frames import DetectorInfo, FrameSpec, SparseSpec
from lima2cli.geometry import Rect
from lima2cli.nodes.base import Sink, WorkerPool
from lima2cli.plan.ir import Gdt, Kernel, Placement, Plan, RankRole, Region, Step
from lima2cli.plan.rashpa_calls import rashpa_calls

END_WORDS = 4
"""Number of words of an end record: mark (see `end_mark`), blocks written, blocks dropped, frames served."""

END_OK, END_FULL = 0, 1
"""Status in an end record: all written; a oneshot buffer was full."""


def end_mark(acquisition: int, status: int) -> int:
    """Return the mark of an end record: above 0, and above those of earlier acquisitions (numbered from 0)."""
    return 2 * acquisition + 1 + status


@dataclass(frozen=True)
class Wiring:
    """The memory that the transport makes: ``regions`` with the rank that owns each, and how many 8-byte control
    words each rank has. Control words hold, at receivers, generation words, detector times and end records, and at
    detector ranks the credits. ``collectives`` are the ranks of each collective, in the order of their places;
    ``mailboxes``
    those of each node that delegates: its receivers, then its workers.
    """

    regions: tuple[Region, ...]
    owners: tuple[int, ...]
    control_words: tuple[int, ...]
    collectives: tuple[tuple[int, ...], ...] = ()
    mailboxes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Target:
    """A local buffer as modules see it.

    rank         of its receiver
    region       the memspace, ``offset`` bytes of the local buffer in it
    generations  first generation word of (this flow, this buffer): word = generations + position*M + contributor
    times        first time word: word = times + position*B + block
    failures     first word of failed frames: word = failures + (position*M + contributor)*B + block; None where no
                 module can fail
    """

    rank: int
    region: int
    offset: int
    generations: int
    times: int
    failures: int | None = None


@dataclass(frozen=True)
class Route:
    """A module's part of one flow. ``cut`` is the part inside the module's own image; ``contributor`` its index among
    the M modules that contribute, the first of which also writes headers and times.
    """

    module: int
    cut: Rect
    offset_in_slot: int
    contributor: int


@dataclass(frozen=True)
class SourceFlow:
    """One flow as a detector rank serves it. ``credits``: first of its own control words for released groups.
    ``ends``: (rank, first word) of the end records of the flow at each receiver.
    """

    gdt: Gdt
    routes: tuple[Route, ...]
    contributors: int
    targets: tuple[Target, ...]
    credits: int
    ends: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class DetectorProgram:
    """The program of a detector rank. ``timeout_s``: the run fails when no frame has arrived for so long."""

    rank: int
    modules: tuple[int, ...]
    detector: DetectorConfig
    info: DetectorInfo
    acquisition: AcqParams
    transfer: XferParams
    flows: tuple[SourceFlow, ...]
    timeout_s: float


@dataclass(frozen=True)
class OwnBuffer:
    """A local buffer as its receiver sees it: ``index`` l in the rotation, the rest as in `Target`."""

    index: int
    region: int
    offset: int
    generations: int
    times: int
    failures: int | None = None


@dataclass(frozen=True, eq=False)
class ReceiverFlow:
    """One flow as a receiver sees it. ``credits``: (rank, first word) at each detector rank that contributes.

    unpacks  of one whose frames come packed: nodes read its pixels
    """

    gdt: Gdt
    buffers: tuple[OwnBuffer, ...]
    contributors: int
    credits: tuple[tuple[int, int], ...]
    ends: int
    unpacks: bool = False


@dataclass(frozen=True)
class DeviceMemory:
    """A memspace of a device to which a flow's frames come: its name, the device, and whether the host stands in."""

    name: str
    device: int | str
    fallback: bool


@dataclass(frozen=True)
class Delegation:
    """A node that delegates, as its receivers see it: the index of its mailbox, the world ranks of the members, those
    of
    the receivers first, and after how long a worker that does not reply is given up.
    """

    mailbox: int
    members: tuple[int, ...]
    receivers: int
    timeout_s: float


@dataclass(frozen=True, eq=False)
class Processing:
    """A program of the user's on a receiver: where its ``main`` is, ``name`` of the receiver and ``count`` of all, and
    the flows and nodes of which it can have frames.
    """

    function: str
    name: str
    count: int
    sources: Mapping[str, FrameSpec]


@dataclass(frozen=True, eq=False)
class ReceiverProgram:
    """The program of a receiver.

    ``name`` is that of the pipeline; ``steps`` are the nodes as it sees them; ``collectives`` the index of the
    collective, and ``places`` the place of each member's part in the whole frame, of those that are done together;
    ``delegations`` are of those that workers do; ``devices`` the memory of flows on devices;
    ``triggered``: frames come on request, and are waited for.
    """

    rank: int
    receiver: int
    name: str
    flows: tuple[ReceiverFlow, ...]
    steps: tuple[Step, ...]
    kernels: tuple[Kernel, ...]
    collectives: Mapping[str, int]
    places: Mapping[str, tuple[Rect, ...]]
    channels: Mapping[str, Channel]
    tables: Mapping[str, TableChannel]
    threads: int = 1
    placement: Placement = Placement()
    delegations: Mapping[str, Delegation] = field(default_factory=dict)
    processing: Processing | None = None
    triggered: bool = False
    devices: Mapping[str, DeviceMemory] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class WorkerProgram:
    """The program of a worker: serve the node of a step to the first ``receivers`` members of a mailbox."""

    rank: int
    step: Step
    mailbox: int
    receivers: int

    @property
    def workers(self) -> WorkerPool:
        """Return what the processes of the node are."""
        assert self.step.workers is not None
        return self.step.workers


@dataclass(frozen=True, eq=False)
class ControlProgram:
    """The program of the control rank: it knows the whole plan."""

    rank: int
    plan: Plan


Program = ControlProgram | DetectorProgram | ReceiverProgram | WorkerProgram


def processing_of(
    plan: Plan, receiver: int, gdts: Sequence[Gdt], kernels: Sequence[Kernel], steps: Mapping[str, Step]
) -> Processing | None:
    """Return the user's program on one receiver with these flows, kernels and steps; None where there is none."""
    if plan.processing is None:
        return None
    sources = {gdt.flow: plan.sources[gdt.name] for gdt in gdts}
    for name in (name for kernel in kernels for name in kernel.makes if not isinstance(steps[name].node, Sink)):
        after = steps[name].after
        if isinstance(after, FrameSpec) and not isinstance(after, SparseSpec):
            sources[name] = after
    return Processing(plan.processing, plan.receivers[receiver], len(plan.receivers), sources)


@dataclass(frozen=True)
class _Words:
    """The place of each thing in the control windows."""

    generations: Mapping[tuple[int, int], int]
    times: Mapping[tuple[int, int], int]
    failures: Mapping[tuple[int, int], int]
    ends: Mapping[tuple[int, int], int]
    credits: Mapping[tuple[int, int], int]
    sizes: tuple[int, ...]


def lower(plan: Plan) -> tuple[Wiring, tuple[Program, ...]]:
    """Return one program per rank, by rank number, and the memory that they share; every compiled plan has them."""
    words = _lay_out_words(plan)
    owners = tuple(plan.rank_of_receiver(region.receiver) for region in plan.regions)
    collectives = tuple(tuple(plan.rank_of_receiver(r) for r in step.collective) for step in _together(plan))
    mailboxes = tuple(_delegation(plan, index, step).members for index, step in enumerate(_delegating(plan)))
    wiring = Wiring(plan.regions, owners, words.sizes, collectives, mailboxes)
    return wiring, tuple(_program(plan, role, words) for role in plan.ranks)


def _together(plan: Plan) -> list[Step]:
    """Return the collectives of a plan, in the order of the data."""
    return [step for step in plan.steps if step.collective]


def _delegating(plan: Plan) -> list[Step]:
    """Return the nodes that delegate, in the order of the data."""
    return [step for step in plan.steps if step.workers is not None]


def _delegation(plan: Plan, index: int, step: Step) -> Delegation:
    receivers = tuple(plan.rank_of_receiver(r) for r in dict.fromkeys(step.numbering.receivers))
    workers = tuple(role.rank for role in plan.ranks if role.worker == step.name)
    return Delegation(index, receivers + workers, len(receivers), plan.timeout_s)


def _lay_out_words(plan: Plan) -> _Words:
    sizes = [1] * len(plan.ranks)  # never an empty window
    generations, times, failures, ends, credits = {}, {}, {}, {}, {}

    def take(rank: int, count: int) -> int:
        first = sizes[rank]
        sizes[rank] += count
        return first

    for gdt in plan.gdts:
        depth = min(gdt.rule.depth, _most_visits(gdt))
        for index, buffer in enumerate(gdt.buffers):
            rank = plan.rank_of_receiver(buffer.receiver)
            generations[gdt.index, index] = take(rank, depth * len(gdt.parts))
            times[gdt.index, index] = take(rank, depth * gdt.rule.blocks)
            if plan.info.can_fail:
                failures[gdt.index, index] = take(rank, depth * gdt.rule.blocks * len(gdt.parts))
        for receiver in gdt.receivers:
            ends[gdt.index, receiver] = take(plan.rank_of_receiver(receiver), END_WORDS * len(gdt.parts))
        for role in plan.ranks:
            if role.role == "detector":
                credits[gdt.index, role.rank] = take(role.rank, len(gdt.buffers))
    return _Words(generations, times, failures, ends, credits, tuple(sizes))


def _most_visits(gdt: Gdt) -> int:
    """Return the positions that can ever be used, so that a huge buffer for few frames costs few words."""
    return gdt.rule.depth if gdt.selected is None else max(1, gdt.rule.visits(0, gdt.selected))


def _program(plan: Plan, role: RankRole, words: _Words) -> Program:
    if role.role == "control":
        return ControlProgram(role.rank, plan)
    if role.receiver is not None:
        return _receiver(plan, role.rank, role.receiver, words)
    if role.worker is not None:
        index, step = next(numbered for numbered in enumerate(_delegating(plan)) if numbered[1].name == role.worker)
        return WorkerProgram(role.rank, step, index, _delegation(plan, index, step).receivers)
    return _detector(plan, role, words)


def _detector(plan: Plan, role: RankRole, words: _Words) -> DetectorProgram:
    flows = []
    for gdt in plan.gdts:
        routes = []
        for contributor, part in enumerate(gdt.parts):
            if part.module in role.modules:
                module = plan.info.modules[part.module]
                cut = Rect(part.x - module.x, part.y - module.y, part.width, part.height)
                routes.append(Route(part.module, cut, part.offset_in_slot, contributor))
        if not routes:
            continue
        targets = tuple(
            Target(
                plan.rank_of_receiver(buffer.receiver),
                buffer.region,
                buffer.offset,
                words.generations[gdt.index, index],
                words.times[gdt.index, index],
                words.failures.get((gdt.index, index)),
            )
            for index, buffer in enumerate(gdt.buffers)
        )
        ends = tuple((plan.rank_of_receiver(r), words.ends[gdt.index, r]) for r in gdt.receivers)
        flows.append(SourceFlow(gdt, tuple(routes), len(gdt.parts), targets, words.credits[gdt.index, role.rank], ends))
    asked: dict[bool, set[tuple[int, int]]] = {True: set(), False: set()}
    for flow in flows:
        asked[bool(flow.gdt.packed)].update((flow.gdt.dataset, route.module) for route in flow.routes)
    return DetectorProgram(
        role.rank,
        role.modules,
        plan.detector,
        plan.info,
        plan.acquisition,
        XferParams(
            tuple(sorted(asked[False])),
            rashpa_calls(plan) if plan.detector.writes_itself else (),
            max((flow.gdt.rule.step * (flow.gdt.rule.blocks - 1) + 1 for flow in flows), default=1),
            tuple(sorted(asked[True])),
        ),
        tuple(flows),
        plan.timeout_s,
    )


def _receiver(plan: Plan, rank: int, receiver: int, words: _Words) -> ReceiverProgram:
    flows = []
    for gdt in plan.gdts:
        if receiver not in gdt.receivers:
            continue
        own = tuple(
            OwnBuffer(
                index,
                buffer.region,
                buffer.offset,
                words.generations[gdt.index, index],
                words.times[gdt.index, index],
                words.failures.get((gdt.index, index)),
            )
            for index, buffer in enumerate(gdt.buffers)
            if buffer.receiver == receiver
        )
        modules = {part.module for part in gdt.parts}
        credits = tuple(
            (role.rank, words.credits[gdt.index, role.rank])
            for role in plan.ranks
            if gdt.waits and modules.intersection(role.modules)
        )
        unpacks = bool(gdt.packed) and plan.reads_pixels(gdt.flow)
        flows.append(ReceiverFlow(gdt, own, len(gdt.parts), credits, words.ends[gdt.index, receiver], unpacks))
    steps = {step.name: step.at(receiver) for step in plan.steps if receiver in step.numbering.receivers}
    kernels = tuple(kernel for kernel in plan.kernels if kernel.nodes[0] in steps)
    return ReceiverProgram(
        rank,
        receiver,
        plan.name,
        tuple(flows),
        tuple(steps.values()),
        kernels,
        {step.name: index for index, step in enumerate(_together(plan)) if step.name in steps},
        {step.name: tuple(passage.before.part for passage in step.passages) for step in _together(plan)},
        {name: channel.part(receiver) for name, channel in plan.channels.items() if name in steps},
        {name: table for name, table in plan.tables.items() if name in steps},
        threads=plan.threads[receiver],
        placement=plan.placements[receiver],
        delegations={
            step.name: _delegation(plan, i, step) for i, step in enumerate(_delegating(plan)) if step.name in steps
        },
        triggered=plan.acquisition.trigger != "internal",
        devices={flow.gdt.flow: memory for flow in flows if (memory := _device(plan, receiver, flow.gdt)) is not None},
        processing=processing_of(plan, receiver, [flow.gdt for flow in flows], kernels, steps),
    )


def _device(plan: Plan, receiver: int, gdt: Gdt) -> DeviceMemory | None:
    """Return the memory of a device to which a flow comes at a receiver; None = that of the host."""
    for buffer in gdt.buffers:
        region = plan.regions[buffer.region]
        if buffer.receiver == receiver and region.device is not None:
            return DeviceMemory(f"{plan.receivers[receiver]}.{region.name}", region.device, region.fallback)
    return None
