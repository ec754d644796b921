"""Programs of the ranks: a plan with every address worked out. Picklable; made and read by the same version."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lima2cli.artefacts.channel import Channel, TableChannel
from lima2cli.detectors.base import AcqParams, DetectorConfig, XferParams
from lima2cli.geometry import Rect
from lima2cli.plan.records import Gdt, Kernel, Placement, Plan, Region, Step
from lima2cli.spec import DetectorInfo, FrameSpec

END_WORDS = 4
"""Words of an end record: mark (see `end_mark`), blocks written, blocks dropped, frames served."""

END_OK, END_FULL = 0, 1
"""Status in an end record: all written; a oneshot buffer was full."""


def end_mark(acquisition: int, status: int) -> int:
    """The mark of an end record: above 0, and above those of earlier acquisitions (numbered from 0)."""
    return 2 * acquisition + 1 + status


@dataclass(frozen=True)
class Wiring:
    """The memory that the transport makes: ``regions`` with the rank that owns each, and how many 8-byte control
    words each rank has. Control words hold, at receivers, generation words, detector times and end records, and at
    detector ranks the credits. ``circles`` are the ranks of each collective, in the order of their places; ``lines``
    those of each node that delegates: its receivers, then its workers."""

    regions: tuple[Region, ...]
    owners: tuple[int, ...]
    control_words: tuple[int, ...]
    circles: tuple[tuple[int, ...], ...] = ()
    lines: tuple[tuple[int, ...], ...] = ()


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
    """One module's part of one flow. ``cut`` is the part inside the module's own image; ``contributor`` its index
    among the M modules that contribute, the first of which also writes headers and times."""

    module: int
    cut: Rect
    offset_in_slot: int
    contributor: int


@dataclass(frozen=True)
class SourceFlow:
    """One flow as a detector rank serves it. ``credits``: first of its own control words for released groups.
    ``ends``: (rank, first word) of the end records of the flow at each receiver."""

    gdt: Gdt
    routes: tuple[Route, ...]
    contributors: int
    targets: tuple[Target, ...]
    credits: int
    ends: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class DetectorProgram:
    """What a detector rank does. ``timeout_s``: the run fails when no frame has come for so long."""

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
    """One flow as a receiver sees it. ``credits``: (rank, first word) at each detector rank that contributes."""

    gdt: Gdt
    buffers: tuple[OwnBuffer, ...]
    contributors: int
    credits: tuple[tuple[int, int], ...]
    ends: int


@dataclass(frozen=True)
class Delegation:
    """A node that delegates, as its receivers see it: the index of its line, the world ranks of the members, those of
    the receivers first, and after how long a worker that does not reply is given up."""

    line: int
    members: tuple[int, ...]
    receivers: int
    timeout_s: float


@dataclass(frozen=True, eq=False)
class Processing:
    """A program of the user's on a receiver: where its ``main`` is, ``name`` of the receiver and ``count`` of all, and
    the flows and nodes of which it can have frames."""

    function: str
    name: str
    count: int
    sources: Mapping[str, FrameSpec]


@dataclass(frozen=True, eq=False)
class ReceiverProgram:
    """What a receiver does. ``steps`` are the nodes as it sees them; ``circles`` the index of the circle, and
    ``places`` where in the whole frame each member's part lies, of those that are done together; ``delegations`` are of
    those that workers do."""

    rank: int
    receiver: int
    flows: tuple[ReceiverFlow, ...]
    steps: tuple[Step, ...]
    kernels: tuple[Kernel, ...]
    circles: Mapping[str, int]
    places: Mapping[str, tuple[Rect, ...]]
    channels: Mapping[str, Channel]
    tables: Mapping[str, TableChannel]
    threads: int = 1
    placement: Placement = Placement()
    delegations: Mapping[str, Delegation] = field(default_factory=dict)
    processing: Processing | None = None


@dataclass(frozen=True, eq=False)
class WorkerProgram:
    """What a worker does: serve the node of a step to the first ``receivers`` members of a line."""

    rank: int
    step: Step
    line: int
    receivers: int


@dataclass(frozen=True, eq=False)
class ControlProgram:
    """What the control rank knows: the whole plan."""

    rank: int
    plan: Plan


Program = ControlProgram | DetectorProgram | ReceiverProgram | WorkerProgram
