"""The plan: all decisions of `compile_plan`, frozen. The runtime adds nothing to it but time."""

from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from functools import cached_property
from typing import Any, Literal

from lima2cli.dataclass import dataclass
from lima2cli.detectors.base import AcqParams, DetectorConfig
from lima2cli.files.channel import Channel, TableChannel
from lima2cli.frames import DetectorInfo, Files, FrameSpec, Spec
from lima2cli.geometry import BlockLayout, Rect, Rule
from lima2cli.nodes.base import Exchange, Inputs, Node, WorkerPool

Overrun = Literal["wait", "stop", "continue"]

EVENTS_HZ = 2000.0
"""Limit of a receiver's group events per second."""

GROUPS = 4
"""Fewest groups of a local buffer, so that some arrive while others are processed."""


@dataclass(frozen=True)
class Part:
    """A module's part of each block: a rectangle in detector coordinates and its place in the slot (bytes)."""

    module: int
    x: int
    y: int
    width: int
    height: int
    offset_in_slot: int


@dataclass(frozen=True)
class LocalBuffer:
    """A piece of a memspace: ``region`` numbers the memspaces of the plan, ``offset`` and ``size`` are bytes."""

    receiver: int
    region: int
    offset: int
    size: int


@dataclass(frozen=True)
class Region:
    """A memspace. ``kind`` is the one that modules write to, ``asked`` the one written.

    device, fallback  of a GPU: its number or name, and whether the host does its work where there is none
    """

    receiver: int
    name: str
    kind: Literal["host", "file"]
    asked: str
    size: int
    used: int
    path: str | None = None
    device: int | str | None = None
    fallback: bool = False


@dataclass(frozen=True)
class Gdt:
    """One compiled data flow, or the part of one place where it is dispatched by modules.

    name, flow    its own, unique, and that of the data flow; the same where receivers get whole frames
    place         the place of the flow that it is for, None where receivers get whole frames
    group_event   an event every so many groups of a local buffer, 0 = none
    selected      number of frames it takes, None without end
    parts         of the contributing modules, by module number
    waits         back-pressure by credits; else writing never waits and overruns are possible
    packed        how frames are compressed that come as the detector has sent them, a slot each (see `packed`); empty:
                  slots hold pixels
    """

    name: str
    flow: str
    place: int | None
    index: int
    dataset: int
    dataset_name: str
    dtype: str
    pixel_bytes: int
    source: Rect
    full: bool
    layout: BlockLayout
    rule: Rule
    selected: int | None
    group_event: int
    end_event: bool
    alignment: tuple[int, int, int, int]
    buffer_size: int
    buffers: tuple[LocalBuffer, ...]
    parts: tuple[Part, ...]
    gap_pixels: int
    gap_value: float
    overrun: Overrun
    packed: str = ""

    @property
    def waits(self) -> bool:
        """Return True if modules wait for released memory."""
        return self.overrun == "wait"

    @property
    def receivers(self) -> tuple[int, ...]:
        """Return the receivers that it reaches, each once, in rotation order."""
        return tuple(dict.fromkeys(buffer.receiver for buffer in self.buffers))

    @property
    def header(self) -> bool:
        """Return True if slots begin with frame number and time."""
        return self.alignment[2] >= 16


@dataclass(frozen=True)
class RankRole:
    """The role of one MPI rank: ``control``, ``detector`` (with its modules), ``receiver`` (with its index), or
    ``worker`` (with the node that delegates to it).
    """

    rank: int
    role: Literal["control", "detector", "receiver", "worker"]
    modules: tuple[int, ...] = ()
    receiver: int | None = None
    worker: str | None = None


@dataclass(frozen=True)
class Placement:
    """The placement of a receiver; None = left to the system.

    host  the machine, else the one that starts the ranks;  cpus  numbers of the CPUs that it may use
    numa  number of the NUMA node whose CPUs and memory it uses
    """

    host: str | None = None
    cpus: tuple[int, ...] | None = None
    numa: int | None = None

    @property
    def requested(self) -> dict[str, Any]:
        """Return the values that are not None, as plain data."""
        named = {"host": self.host, "cpus": None if self.cpus is None else list(self.cpus), "numa": self.numa}
        return {key: value for key, value in named.items() if value is not None}


@dataclass(frozen=True)
class Numbering:
    """The frames that travel along an edge: those of ``rule``, whose local buffers are at ``receivers``.

    flows     data flows that all of them come from
    parts     each of the receivers has a part of every frame
    everywhere  of rows: each of the receivers has all of them
    window    frames of the flow that make one of these, 0 = all of them
    upstream  transforms that they have been through, which may have dropped some
    unmatched joins that they have been through, and transforms before one on some of its inputs only: the frames that
              these dropped were not in all inputs
    filters   selections that they have been through: the frames that pass are known only during the run
    """

    rule: Rule
    receivers: tuple[int, ...]
    selected: int | None
    flows: tuple[str, ...]
    parts: bool = False
    everywhere: bool = False
    window: int = 1
    upstream: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Passage:
    """The specs that enter, by the names of the inputs, and leave a node at one receiver, or at all."""

    specs: Mapping[str, FrameSpec]
    after: Spec

    @property
    def before(self) -> FrameSpec:
        """Return the frames of the first input."""
        return next(iter(self.specs.values()))


@dataclass(frozen=True, eq=False)
class Step:
    """A node placed: it runs on every receiver that its frames reach. ``numbering`` is that of its input.

    passages  one for all receivers, or where these hold parts of frames one for each, in the order of the numbering
    flow      the data flow, of several the first, that its frames come from
    inputs    where several are named: what it reads, by the names of its inputs; ``source`` is the first of them
    tables    nodes of which it reads rows
    collective    receivers that do their part of each frame together; empty where each works alone
    """

    name: str
    node: Node
    source: str
    flow: str
    passages: tuple[Passage, ...]
    numbering: Numbering
    inputs: Mapping[str, str] = field(default_factory=dict)
    tables: tuple[str, ...] = ()
    collective: tuple[int, ...] = ()

    @property
    def before(self) -> FrameSpec:
        """Return the frames that enter; parts of frames: at the first receiver."""
        return self.passages[0].before

    @property
    def after(self) -> Spec:
        """Return the specs that leave; parts of frames: at the first receiver."""
        return self.passages[0].after

    @property
    def specs(self) -> Mapping[str, FrameSpec]:
        """Return the frames that enter, by the names of the inputs; parts of frames: at the first receiver."""
        return self.passages[0].specs

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Return all flows and nodes whose frames it reads, each once."""
        return tuple(dict.fromkeys(self.inputs.values())) or (self.source,)

    @property
    def workers(self) -> WorkerPool | None:
        """Return the processes that do its work; None where it has none of its own."""
        return self.node.workers if isinstance(self.node, Exchange) else None

    @property
    def gathers(self) -> bool:
        """Return whether receivers give each other parts of frames."""
        return bool(self.collective) and isinstance(self.node, Exchange) and self.node.gathers

    def given(self, files: Files) -> Inputs:
        """Return what enters its node, to bind it; parts of frames: at the first receiver."""
        return Inputs(self.specs, files, self.numbering.rule)

    def at(self, receiver: int) -> "Step":
        """Return the step as one receiver sees it."""
        return self if len(self.passages) == 1 else replace(self, passages=(self._passage(receiver),))

    def _passage(self, receiver: int) -> Passage:
        return self.passages[self.numbering.receivers.index(receiver)]


@dataclass(frozen=True)
class Kernel:
    """Steps of a flow that are computed together, block by block.

    source   the flow or node whose frames it reads
    maps     one after another, by name
    ends     what then reads the last of them (or the source): reductions, or one sink
    makes    nodes of it whose frames are there for other kernels, whole: materialised
    others   further sources, where its only node reads several
    lowered  it can be computed on a device, where its frames come to the memory of one
    device_bytes  of its results and calibrations there, frames that it reads not counted
    """

    flow: str
    source: str
    maps: tuple[str, ...]
    ends: tuple[str, ...]
    makes: tuple[str, ...]
    others: tuple[str, ...] = ()
    lowered: bool = False
    device_bytes: int = 0

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Return all flows and nodes whose frames it reads, each once."""
        return (self.source, *self.others)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Return the names of all its nodes, in the order of the data."""
        return self.maps + self.ends

    @property
    def operator(self) -> str:
        """Return the name of what does it: its last map, or the first that reads frames."""
        return self.maps[-1] if self.maps else self.ends[0]

    @property
    def fused(self) -> bool:
        """Return True if there are several nodes."""
        return len(self.nodes) > 1


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything decided before anything moves. ``frames`` None = until stopped; ``period_s`` None = unpaced.

    info         the detector after its own operations;  acquisition  its parameters
    threads      of each receiver;  placements  where each runs
    repeat       acquisitions, one after another, each of ``frames`` frames; 0 = until stopped
    on_request   an acquisition that is ready waits for a request to start
    allow_lost   frames of each flow that may be lost, or a share of them, `1 %`; None as their `overrun` says
    processing   a program of the user's on the receivers, `file.py:main`; None without
    sources      frames as each GDT delivers them, by its name
    pva          prefix of the process variables that show the run; None without
    inputs       absolute paths of all files that it is compiled from, or that a run reads, links followed
    """

    name: str
    detector: DetectorConfig
    info: DetectorInfo
    frames: int | None
    period_s: float | None
    timeout_s: float
    receivers: tuple[str, ...]
    regions: tuple[Region, ...]
    gdts: tuple[Gdt, ...]
    ranks: tuple[RankRole, ...]
    steps: tuple[Step, ...]
    kernels: tuple[Kernel, ...]
    channels: Mapping[str, Channel]
    tables: Mapping[str, TableChannel]
    output_directory: str
    if_exists: str
    record: Mapping[str, Any] = field(default_factory=dict)
    acquisition: AcqParams = AcqParams(None, None)
    threads: tuple[int, ...] = ()
    repeat: int = 1
    on_request: bool = False
    allow_lost: int | str | None = None
    processing: str | None = None
    placements: tuple[Placement, ...] = ()
    sources: Mapping[str, FrameSpec] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    pva: str | None = None

    def asked(self, frames: int | None, period_s: float | None) -> "Plan":
        """Return the plan of an acquisition of other frames and another period than it was compiled for.

        Memory, files and all that depends on them are the same.
        """
        gdts = tuple(replace(gdt, selected=gdt.rule.selected(frames)) for gdt in self.gdts)
        acquisition = replace(self.acquisition, frames=frames, period_s=period_s)
        return replace(self, frames=frames, period_s=period_s, acquisition=acquisition, gdts=gdts)

    def reads_pixels(self, flow: str) -> bool:
        """Return whether any node, or the user's program, reads the pixels of a flow whose frames come packed."""
        return self.processing is not None or not all(as_sent for _, as_sent in self._readers_of_packed(flow))

    def takes_as_sent(self, flow: str) -> list[str]:
        """Return the nodes that take frames of a flow as they come packed, in the order of the data."""
        return [name for name, as_sent in self._readers_of_packed(flow) if as_sent]

    def _readers_of_packed(self, flow: str) -> Iterator[tuple[str, bool]]:
        """Yield the nodes that frames of a flow come to packed, and whether they take them so, and hand them on."""
        packed, steps = {flow}, {step.name: step for step in self.steps}
        for kernel in self.kernels:
            for name in kernel.nodes:
                if not packed.isdisjoint(steps[name].sources):
                    after = steps[name].after
                    as_sent = isinstance(after, FrameSpec) and bool(after.packed)
                    if as_sent:
                        packed.add(name)
                    yield name, as_sent

    @cached_property
    def visible(self) -> dict[str, FrameSpec]:
        """Return the frames of each flow and node that a receiver has whole, and computes: they can be looked at.

        Of sparse ones the whole detector image is shown.
        """
        flows = {gdt.flow: self.sources[gdt.name] for gdt in self.gdts if gdt.place is None}
        computed = {name for kernel in self.kernels for name in kernel.nodes}
        nodes = {
            step.name: step.after
            for step in self.steps
            if step.name in computed and isinstance(step.after, FrameSpec) and step.after.whole is None
        }
        return flows | nodes

    def gdts_of(self, flow: str) -> tuple[Gdt, ...]:
        """Return the GDT of a data flow; for one that is dispatched by modules those of its places."""
        return tuple(gdt for gdt in self.gdts if gdt.flow == flow)

    def rank_of_receiver(self, receiver: int) -> int:
        """Return the MPI rank of a receiver."""
        return next(role.rank for role in self.ranks if role.receiver == receiver)

    def placement_of(self, role: RankRole) -> Placement:
        """Return the placement of a rank."""
        return Placement() if role.receiver is None else self.placements[role.receiver]

    def command_of(self, role: RankRole) -> tuple[str, ...] | None:
        """Return the user's program that is this rank; None where it is one of lima2."""
        workers = (step.workers for step in self.steps if step.name == role.worker)
        return next((each.command for each in workers if each is not None), None)
