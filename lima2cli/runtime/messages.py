"""The control messages between ranks, in the order of a run. Frames never travel this way.

rank → control   READY     prepared; nothing moves yet
control → all    START     a `Start`: the acquisition begins
control → det.   TRIGGER   how many software triggers to fire
rank → control   STATS     about twice a second: counts since the start
receiver → c.    OVERRUN   (acquisition, flow, frame): data were destroyed in a flow whose policy is `stop`
rank → control   WARNED    something that users should know
receiver → c.    SILENT    a worker, by its rank, that did not reply in time: nothing more is expected of it
rank → control   FAILED    what, where, which frame; the rank goes on, so that the others can finish
control → det.   PAUSE     stop acquiring;           answered by NEXT, the next frame number
control → all    LIMIT     the end of the acquisition; receivers answer LIMITED before modules are told to serve
                           all frames below it, and which modules have failed
det. → control   DONE      all frames served, end records written
control → rec.   ENDED     an `Ended`: what no event told of is complete now
receiver → c.    FINISHED  files closed; the rank's accounting
control → work.  ENDED     when all receivers have finished; answered by FINISHED
control → d., r. PREPARE   another acquisition is to follow; answered by READY, by receivers when it may be written to
                           their memory
control → all    QUIT
"""

from dataclasses import dataclass, field

from lima2cli.runtime.timing import Pace, Spent

READY, START, STATS, WAITING = "ready", "start", "stats", "waiting"
OVERRUN, FAILED, WARNED, SILENT = "overrun", "failed", "warned", "silent"
PAUSE, NEXT, LIMIT, LIMITED, DONE, ENDED = "pause", "next", "limit", "limited", "done", "ended"
FINISHED, QUIT, PREPARE, TRIGGER = "finished", "quit", "prepare", "trigger"


@dataclass(frozen=True)
class Start:
    """An acquisition of a job, numbered from 0: when it begins (ns since the epoch), and where its files go."""

    number: int
    start_ns: int
    directory: str


@dataclass(frozen=True)
class Ended:
    """An acquisition has ended before frame ``frames``; ``last``: no other follows."""

    frames: int
    last: bool


@dataclass(frozen=True)
class Failure:
    """What went wrong on a rank. ``node``, ``frame`` and ``acquisition`` where they are known."""

    rank: int
    message: str
    node: str | None = None
    frame: int | None = None
    detail: str = ""
    acquisition: int | None = None


@dataclass
class FlowCount:
    """One flow at one receiver, in blocks. ``lost`` and ``missing`` hold (local buffer, visit, visits).

    incomplete  (first, last) index, among the selected frames, of frames of other visits that a module failed to give
    status   of the modules' end records, merged: ``ok``, ``full`` (a oneshot buffer was), ``incomplete`` (a module
             never wrote its record)
    """

    received: int = 0
    lost: list[tuple[int, int, int]] = field(default_factory=list)
    missing: list[tuple[int, int, int]] = field(default_factory=list)
    incomplete: list[tuple[int, int]] = field(default_factory=list)
    group_events: int = 0
    end_events: int = 0
    peak_fill: float = 0.0
    status: str = "ok"


@dataclass(frozen=True)
class Usage:
    """Resources of a rank: CPU seconds, peak resident set in bytes."""

    cpu_s: float
    rss_bytes: int


@dataclass(frozen=True)
class Measured:
    """What a receiver has measured.

    busy_s  seconds of turns in which there was work;  cpu_s  CPU seconds from the start of the acquisition on
    spent   by node; of a kernel of several nodes by the last of its maps
    paces   of results, by flow (as the GDT is named) and by node that waits for others
    """

    busy_s: float = 0.0
    cpu_s: float = 0.0
    spent: dict[str, Spent] = field(default_factory=dict)
    paces: dict[str, Pace] = field(default_factory=dict)


@dataclass(frozen=True)
class ReceiverReport:
    """Accounting of a receiver: flows by name, frames saved by channel, (first, last) numbers dropped by transforms,
    how many frames each selection did not let pass, and how many came to each join that are of one flow only."""

    receiver: int
    flows: dict[str, FlowCount]
    saved: dict[str, int]
    dropped: dict[str, list[tuple[int, int]]]
    vetoed: dict[str, int]
    beside: dict[str, int]
    usage: Usage
    measured: Measured = Measured()
    acquisition: int = 0


@dataclass(frozen=True)
class SourceReport:
    """Accounting of a detector rank: seconds waited for credits by flow, frames served, blocks dropped by flow, when
    the last group was sent (ns since the epoch), seconds spent in transfers, of these seconds blocked in Flush, by how
    many frames the rank was behind the detector's clock at most, CPU seconds from the start of the acquisition on, and
    the detector's times of its first and last frame (ns since the epoch; 0 where another rank knows them)."""

    rank: int
    waited_s: dict[str, float]
    served: int
    dropped: dict[str, int]
    sent_ns: int
    put_s: float
    usage: Usage
    flush_s: float = 0.0
    behind: int = 0
    cpu_s: float = 0.0
    first_ns: int = 0
    last_ns: int = 0


@dataclass(frozen=True)
class WorkerReport:
    """Accounting of a worker: blocks and frames that it was given, of how many of these blocks it failed, seconds from
    when it was given a block to when it had a result."""

    rank: int
    node: str
    blocks: int
    frames: int
    failed: int
    usage: Usage
    busy_s: float = 0.0
