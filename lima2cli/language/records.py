"""The records of the language: tables as written, typed; flows and nodes of them are then resolved.

Detectors, nodes and memspaces are kinds with tables of their own, declared where they live.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from lima2cli.dataclass import dataclass
from lima2cli.declare import (
    PHOTON_ENERGY,
    Anything,
    Choice,
    Either,
    Flag,
    Integer,
    ListOf,
    MapOf,
    Number,
    OneKind,
    Plausible,
    Quantity,
    Table,
    Text,
    pair,
    param,
)
from lima2cli.detectors.base import SHUTTERS, TRIGGERS, AcqParams, DetectorConfig, Operations, detector_kinds
from lima2cli.diagnostics import HOST, NAME, KeyPath
from lima2cli.facts import AXIS_UNITS
from lima2cli.geometry import Rect
from lima2cli.language.templates import Graph
from lima2cli.nodes.base import Node
from lima2cli.nodes.registry import NodeEntry, NodeUse
from lima2cli.view import FLIPS

SHARE = r"^\s*(100(\.0*)?|[0-9]{1,2}(\.[0-9]*)?)\s*%\s*$"
"""Pattern of a percentage."""


@dataclass(frozen=True, kw_only=True)
class Roi:
    """A rectangle of the image, in pixels: x to the right, y down, (0, 0) top left."""

    x: int = param("First column.", Integer(0))
    y: int = param("First row.", Integer(0))
    width: int = param("Columns.", Integer(1))
    height: int = param("Rows.", Integer(1))

    @property
    def rect(self) -> Rect:
        """Return the region as a rectangle."""
        return Rect(self.x, self.y, self.width, self.height)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A position in the image, in pixels."""

    x: float = param("Column, to the right.", Number())
    y: float = param("Row, down.", Number())


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """Material in which photons are absorbed."""

    material: str | None = param("Such as `Si` or `CdTe`; default: what the detector says.", Text(), None)
    thickness: float | None = param(
        "Its thickness; default: what the detector says.",
        Quantity("metres", above=0, plausible=Plausible(1e-6, 0.05)),
        None,
    )


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A direction: z along the beam, y up, x to the left as one looks along the beam; of any length but 0."""

    x: float = param("To the left.", Number(), 0)
    y: float = param("Upwards.", Number(), 0)
    z: float = param("Along the beam.", Number(), 0)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis that is at `start + step * k` in frame k."""

    start: float | None = param("Position in frame 0; default: what the detector says.", Number(), None)
    step: float | None = param("From one frame to the next; default: what the detector says.", Number(), None)
    unit: str | None = param("Unit of both; default: deg, or the detector's.", Choice(AXIS_UNITS), None)
    vector: Vector | None = param(
        "What it turns around, right-handed, or moves along; without, files have its positions only.",
        Table(Vector),
        None,
    )


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Known facts of the experiment; saved as NeXus."""

    instrument: str = param("Name of the instrument.", Text(), "instrument")
    title: str | None = param("Title of the measurement.", Text(may_hide=True), None)
    photon_energy: float | None = param("Photon energy.", PHOTON_ENERGY, None)
    distance: float | None = param(
        "Distance from the sample to the detector.", Quantity("metres", above=0, plausible=Plausible(1e-3, 100)), None
    )
    beam_center: Point | None = param(
        "Position of the direct beam on the detector; centres of pixels are whole numbers.", Table(Point), None
    )
    sample: str | None = param("Name of the sample.", Text(may_hide=True), None)
    source: str | None = param("Name of the source of the beam, or the facility.", Text(), None)
    sensor: Sensor | None = param("Sensor of the detector.", Table(Sensor), None)
    axes: Mapping[str, Axis] = param(
        "Axes, such as those of a goniometer, from the ground to the sample.", MapOf(Table(Axis)), {}
    )
    extra: Mapping[str, Any] = param("Anything else, saved as it is.", MapOf(Anything()), {})


@dataclass(frozen=True, kw_only=True)
class Binning:
    """Columns and rows that become one pixel."""

    x: int = param("Columns.", Integer(1), 1)
    y: int = param("Rows.", Integer(1), 1)


STARTS = ("at-once", "request")
"""Moments at which an acquisition that is ready begins."""

FRAME_TIME = Quantity("seconds", above=0, plausible=Plausible(1e-7, 60, bare=True))


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """The acquisition: number of frames, timing, triggers, and operations of the detector."""

    frames: int = param("Number of frames; 0 = until stopped (recorded data: all).", Integer(0), 0)
    period: float | None = param("Time from one frame to the next.", FRAME_TIME, None)
    rate: float | None = param(
        "Frames per second, instead of `period`.", Quantity("hertz", above=0, plausible=Plausible(1e-4, 1e7)), None
    )
    exposure: float | None = param("Exposure time of a frame.", FRAME_TIME, None)
    timeout: float = param(
        "The run fails when no frame has arrived for this long, beyond the period.",
        Quantity("seconds", above=0, plausible=Plausible(1e-3, 3600, bare=True)),
        10.0,
    )
    trigger: str = param(
        "What starts frames: the detector's clock, `lima2 trigger`, a pulse, or a gate.", Choice(TRIGGERS), "internal"
    )
    frames_per_trigger: int = param("Frames that each trigger starts, a period apart.", Integer(1), 1)
    start: str = param(
        "When frames begin, in each acquisition: as soon as all is ready, or at the request of `lima2 start`.",
        Choice(STARTS),
        "at-once",
    )
    allow_lost: int | str | None = param(
        "Frames of a flow that may be lost, or a share of them such as `1 %`; if more are lost, the run fails (exit "
        "code 11). Default: none, any in flows of `overrun: continue`.",
        Either((Integer(0), Text(SHARE, "a share of the frames from `0 %` to `100 %`"))),
        None,
    )
    repeat: int = param(
        "Number of acquisitions, one after another, each in its own directory; 0 = until stopped.", Integer(0), 1
    )
    accumulate: int = param("Number of exposures that the detector sums to a frame.", Integer(1), 1)
    binning: Binning = param("Pixels that the detector sums to one.", pair(Binning, Integer(1)), Binning())
    roi: Roi | None = param("The part that the detector keeps, in binned pixels; default: all.", Table(Roi), None)
    flip: str = param("How the detector mirrors frames; applied last.", Choice(FLIPS), "none")
    shutter: str = param("auto: open while frames are acquired.", Choice(SHUTTERS), "auto")

    @property
    def operations(self) -> Operations:
        """Return the operations that the detector itself applies to frames."""
        roi = None if self.roi is None else self.roi.rect
        return Operations(self.accumulate, (self.binning.x, self.binning.y), roi, self.flip)

    def params(self, frames: int | None) -> AcqParams:
        """Return the parameters that the detector gets; ``frames`` None = until stopped."""
        return AcqParams(
            frames=frames,
            period_s=self.period_s,
            trigger=self.trigger,
            frames_per_trigger=self.frames_per_trigger,
            exposure_s=self.exposure,
            shutter=self.shutter,
            operations=self.operations,
        )

    @property
    def period_s(self) -> float | None:
        """Return the seconds from one frame to the next; None = as fast as the slowest part allows."""
        if self.period is not None:
            return self.period
        return None if self.rate is None else 1 / self.rate


@dataclass(frozen=True, kw_only=True)
class HostMemspace:
    """Host memory that modules write to by one-sided transfers."""

    kind: ClassVar[str] = "host"
    size: int | None = param("Bytes; default: what its buffers need.", Quantity("bytes", above=0), None)


@dataclass(frozen=True, kw_only=True)
class GpuMemspace:
    """Memory of a GPU, by OpenCL: modules write to host memory, from where each group is copied to the device."""

    kind: ClassVar[str] = "gpu"
    device: int | str = param(
        "Number of the device, or a part of its name; `pocl` is the CPU, for tests.",
        Either((Integer(0), Text(r"\S", words="a name"))),
        0,
    )
    size: int | None = param("Bytes; default: what its buffers need.", Quantity("bytes", above=0), None)
    fallback: str | None = param(
        "Kind of memory to use, with a warning, if there is no such device.", Choice(("host",)), None
    )


@dataclass(frozen=True, kw_only=True)
class FileMemspace:
    """A memory-mapped file, made at the start of the run and left in place after it, for the next run to use again.

    Next to it lies its marker, the same name with `.lima2` added. A file without one is left unchanged.
    """

    kind: ClassVar[str] = "file"
    path: str = param("The file, relative to the pipeline's: a new one, or one made by such a memspace.", Text())
    size: int | None = param("Bytes; default: what its buffers need.", Quantity("bytes", above=0), None)


Memspace = HostMemspace | GpuMemspace | FileMemspace

MEMSPACES: Mapping[str, type] = {kind.kind: kind for kind in (HostMemspace, GpuMemspace, FileMemspace)}


@dataclass(frozen=True, kw_only=True)
class ReceiverTable:
    """One receiver: a process that owns memspaces and runs nodes."""

    memspaces: Mapping[str, Memspace] = param(
        "Named regions of memory.",
        MapOf(OneKind("memspace", lambda: MEMSPACES), minimum=1),
        {"host": HostMemspace()},
    )
    threads: int = param("Threads that compute and compress frames.", Integer(1, 256), 1)
    host: str | None = param(
        "Machine that it runs on; default: the one that starts the run.",
        Text(HOST, "the name of a host, such as `node17`"),
        None,
    )
    cpus: tuple[int, ...] | None = param(
        "Numbers of the CPUs of its machine that it may use; default: all.", ListOf(Integer(0), minimum=1), None
    )
    numa: int | None = param("NUMA node of its machine whose CPUs and memory it uses; default: any.", Integer(0), None)


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Layout of a block in its slot."""

    block: int = param("Alignment of blocks: 1 or a multiple of 8.", Quantity("bits", minimum=1), 1)
    row: int = param("Alignment of rows: 1 or a multiple of 8.", Quantity("bits", minimum=1), 1)
    header: int = param(
        "Bytes before the pixels; from 16 on they hold frame number and time.",
        Quantity("bytes", minimum=0),
        0,
    )
    footer: int = param("Bytes after the pixels, left as they are.", Quantity("bytes", minimum=0), 0)


@dataclass(frozen=True, kw_only=True)
class Slices:
    """The frames that a flow takes: start, start + step, ..."""

    start: int = param("First frame.", Integer(0), 0)
    count: int | None = param("Number of selected frames; default: all.", Integer(1), None)
    step: int = param("Distance from one selected frame to the next.", Integer(1), 1)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules by which blocks are put into the local buffers."""

    blocks_per_group: int | str = param(
        "Consecutive blocks of one group, the unit of dispatch; auto, as without `rules`: the fewest that keep group "
        "events of a receiver under 2 kHz, one where no rate is known.",
        Either((Integer(1), Choice(("auto",)))),
        1,
    )
    start_slot: int = param("Number of slots left free at the start of each local buffer.", Integer(0), 0)
    placement: str = param(
        "Groups one after another, or all in the same place.",
        Choice(("concatenate", "overwrite")),
        "concatenate",
    )
    cycle: str = param(
        "When a buffer is full: start again at its beginning, or drop frames.",
        Choice(("circular", "oneshot")),
        "circular",
    )


@dataclass(frozen=True, kw_only=True)
class Events:
    """Times at which receivers are notified."""

    group: int = param("One event per this number of groups of a local buffer; 0 = none.", Integer(0), 1)
    end: bool = param("An event at the end.", Flag(), True)


@dataclass(frozen=True, kw_only=True)
class Buffers:
    """The local buffers of a flow."""

    size: int | None = param("Bytes of each local buffer.", Quantity("bytes", above=0), None)
    frames: int | None = param("Size of each local buffer in frames, instead of `size`.", Integer(1), None)
    at: tuple[str, ...] | str | None = param(
        "`receiver.memspace` of each local buffer in rotation order, or a memspace's name: that of every "
        "receiver that has it; default: every receiver's first.",
        Either((ListOf(Text(), minimum=1), Text())),
        None,
    )


@dataclass(frozen=True, kw_only=True)
class ModuleShares:
    """The modules that go to each place."""

    modules: tuple[tuple[int, ...], ...] = param(
        "Module numbers for each place of `at`.", ListOf(ListOf(Integer(0), minimum=1), minimum=1)
    )


@dataclass(frozen=True)
class BufferPlace:
    """The place of a local buffer: index of the receiver, name of one of its memspaces."""

    receiver: int
    memspace: str


@dataclass(frozen=True, kw_only=True)
class Flow:
    """A data flow (GDT): which part of which frames goes where, and how receivers are notified.

    Its parameters are as the user wrote them, with defaults, and `overrun` is filled; the rest is resolved:

    name    its own
    index   of its dataset in the detector
    rect    the part of the image it takes; inside the image
    places  of its local buffers, in rotation order; at least one
    shares  module numbers of each place, where it gets some modules of every frame; None for whole frames
    """

    dataset: str | None = param(
        "The dataset whose frames it carries; default: the only one of the detector.", Text(), None
    )
    source: Any = param("The whole image, or a part.", Either((Table(Roi), Choice(("full",)))), "full")
    alignment: Alignment = param("Layout of a block.", Table(Alignment), Alignment())
    slices: Slices = param("Selection of frames.", Table(Slices), Slices())
    rules: Rules = param(
        "Groups and placement; without it `{blocks_per_group: auto}`.", Table(Rules), Rules(blocks_per_group="auto")
    )
    events: Events = param("When receivers are notified.", Table(Events), Events())
    buffers: Buffers = param("Local buffers.", Table(Buffers), Buffers())
    dispatch: Any = param(
        "Whole frames in turn, group by group; or of every frame each place gets some of the modules: even shares of "
        "them in their order, or those listed.",
        Either((Table(ModuleShares), Choice(("frames", "modules")))),
        "frames",
    )
    overrun: str | None = param(
        "When a receiver is too slow: the source waits, the run stops, or frames are lost and counted. "
        "Default: wait where the source can wait, else stop.",
        Choice(("wait", "stop", "continue")),
        None,
    )
    name: str = ""
    index: int = 0
    rect: Rect = Rect(0, 0, 0, 0)
    places: tuple[BufferPlace, ...] = ()
    shares: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class GraphNode:
    """A node of the graph.

    reads   the flows or nodes that it reads, each by its place below the node: ``("input",)``, ``("inputs", name)``
    flow    the flow that feeds it
    tables  nodes of which it reads rows, too
    """

    name: str
    reads: Mapping[KeyPath, str]
    flow: str
    node: Node
    tables: tuple[str, ...] = ()

    @property
    def inputs(self) -> Mapping[str, str]:
        """Return the sources of a join, by the names of its inputs; empty for other nodes."""
        return {str(place[1]): source for place, source in self.reads.items() if len(place) > 1}


PREFIX = r"^[A-Za-z0-9_:.\-]{1,60}$"
"""Prefixes of process variables, as EPICS has them."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """The place of the run directory."""

    directory: str = param(
        "Relative to the working directory; {name}, {run} (the next free number), {date}, {time}, {uuid}.",
        Text(),
        "runs/{name}_{run:04d}",
    )
    if_exists: str = param(
        "What to do if it exists; only the directory of a run that has ended is overwritten.",
        Choice(("abort", "overwrite")),
        "abort",
    )
    pva: str | None = param(
        "Prefix of process variables of EPICS that show frames and counters while it runs (pvAccess).",
        Text(PREFIX, "a prefix such as `ID00:maze`"),
        None,
    )


@dataclass(frozen=True, kw_only=True)
class PipelineTable:
    """A pipeline: detector, data flows, receivers, processing graph."""

    lima2: int = param("Version of the language.", Choice((1,)))
    name: str | None = param("Name of the pipeline; default: the file's stem.", Text(NAME), None)
    description: str | None = param("Description, for readers.", Text(may_hide=True), None)
    metadata: Metadata = param("Facts about the experiment.", Table(Metadata), Metadata())
    detector: DetectorConfig = param("The source of frames.", OneKind("detector", detector_kinds))
    acquisition: Acquisition = param("What to acquire.", Table(Acquisition), Acquisition())
    receivers: int | Mapping[str, ReceiverTable] = param(
        "The receivers, by name; or their number.",
        Either((Integer(1, 1024), MapOf(Table(ReceiverTable), minimum=1))),
        1,
    )
    flows: Mapping[str, Flow] | None = param(
        "The data flows; default: one full flow per dataset, named after it.",
        MapOf(Table(Flow), minimum=1, maximum=256),
        None,
    )
    graphs: Mapping[str, Graph] = param("Named processing graphs, for nodes to use.", MapOf(Table(Graph)), {})
    nodes: Mapping[str, NodeUse] = param("The processing graph.", MapOf(NodeEntry()), {})
    output: Output = param("Where files go.", Table(Output), Output())
