"""The control messages between ranks, in the order of a run, and the measurements that they carry.

Frames travel this way only where a user looks at one. Latencies are kept in constant memory: a histogram of logarithmic
bins that merges.
"""

import math
import resource
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass

SUB = 16
"""Number of bins of an octave."""

_BITS = SUB.bit_length()


def bin_of(nanoseconds: int) -> int:
    """Return the bin of one number; numbers below 0 (clocks that differ) count as 0."""
    number = max(0, nanoseconds)
    shift = max(0, number.bit_length() - _BITS)
    return shift * SUB + (number >> shift)


def bins_of(nanoseconds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bins of many numbers (n,), all below 2**53."""
    number = np.maximum(nanoseconds, 0)
    length: NDArray[np.int64] = np.frexp(number.astype(np.float64))[1].astype(np.int64)
    shift: NDArray[np.int64] = np.maximum(length - _BITS, 0)
    bins: NDArray[np.int64] = shift * SUB + np.right_shift(number, shift)
    return bins


def bounds(index: int) -> tuple[int, int]:
    """Return the smallest number of a bin, and the first beyond it."""
    shift = max(0, index // SUB - 1)
    first = (index - shift * SUB) << shift
    return first, first + (1 << shift)


@dataclass(slots=True)
class Histogram:
    """Counts by bin (see `bin_of`), and the largest number, in nanoseconds."""

    counts: dict[int, int] = field(default_factory=dict)
    largest: int = 0

    def __len__(self) -> int:
        """Return how many numbers it holds."""
        return sum(self.counts.values())

    def add(self, nanoseconds: int) -> None:
        """Add one number."""
        index = bin_of(nanoseconds)
        self.counts[index] = self.counts.get(index, 0) + 1
        if nanoseconds > self.largest:
            self.largest = nanoseconds

    def add_all(self, nanoseconds: NDArray[np.int64]) -> None:
        """Add many numbers, (n,); all below 2**53."""
        if not len(nanoseconds):
            return
        for index, count in zip(*np.unique(bins_of(nanoseconds), return_counts=True), strict=True):
            self.counts[int(index)] = self.counts.get(int(index), 0) + int(count)
        self.largest = max(self.largest, int(nanoseconds.max()))

    def quantile(self, share: float) -> float | None:
        """Return the number in seconds that this share of all are not above; None where there are none.

        It is the middle of the bin where that number lies, so within a thirty-second of it.
        """
        return next(self.quantiles(share), None)

    def quantiles(self, *shares: float) -> Iterator[float]:
        """Yield the `quantile` of each of some shares, which ascend; nothing where there are no numbers."""
        bins, reached, index = iter(sorted(self.counts)), 0, 0
        for share in shares if self.counts else ():
            due = max(1, math.ceil(share * len(self)))
            while reached < due:
                index = next(bins)
                reached += self.counts[index]
            first, beyond = bounds(index)
            yield min((first + beyond - 1) / 2, self.largest) * 1e-9


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """Return all of them as one."""
    whole = Histogram()
    for one in histograms:
        for index, count in one.counts.items():
            whole.counts[index] = whole.counts.get(index, 0) + count
        whole.largest = max(whole.largest, one.largest)
    return whole


@dataclass(slots=True)
class Spent:
    """Cost of a node, or a kernel of several, at a receiver: frames it was given, ns to compute and to write."""

    frames: int = 0
    stage_ns: int = 0
    commit_ns: int = 0

    @property
    def seconds(self) -> float:
        """Return the whole cost in seconds."""
        return (self.stage_ns + self.commit_ns) * 1e-9


@dataclass(slots=True)
class Pace:
    """Results of a flow at one receiver.

    How many frames; number of the last frame of the first batch and of the last, and when they were there (ns since the
    epoch).

    first, last  their numbers; with ``_ns`` the time of their results, ns since the epoch
    latency      from the detector's time of the last frame of each group to its result
    """

    frames: int = 0
    first: int = 0
    last: int = 0
    first_ns: int = 0
    last_ns: int = 0
    latency: Histogram = field(default_factory=Histogram)

    def note(self, now_ns: int, numbers: NDArray[np.uint64], times: NDArray[np.uint64]) -> None:
        """Note that the results of frames with these numbers are there.

        times  (groups,) uint64 ns, of the last frame of each group
        """
        last = int(numbers[-1])
        if not self.first_ns:
            self.first_ns, self.first = now_ns, last
        self.frames += len(numbers)
        self.last_ns, self.last = now_ns, last
        if len(times) == 1:
            self.latency.add(now_ns - int(times[0]))
        else:
            self.latency.add_all(now_ns - times.astype(np.int64))

    def hz(self, lost: float) -> float | None:
        """Return the frames of the detector per second that were done with; None without two batches.

        Of these ``lost`` were not done with.

        ``lost`` of them were not completed. Frames that never arrived count: they do not keep a receiver from keeping
        up.
        """
        seconds = (self.last_ns - self.first_ns) * 1e-9
        return max(0.0, self.last - self.first - lost) / seconds if seconds > 0 else None


def median_and_p99(paces: Mapping[str, Pace]) -> dict[str, tuple[float, ...]]:
    """Return the two latencies in seconds that half, and 99 % of the results do not exceed, by name."""
    return {name: tuple(pace.latency.quantiles(0.5, 0.99)) for name, pace in paces.items() if pace.latency.counts}


class Timings:
    """Measurements of one acquisition at a receiver.

    ``spent`` by node, ``paces`` by flow and by node that waits.
    """

    def __init__(self) -> None:
        self.spent: defaultdict[str, Spent] = defaultdict(Spent)
        self.paces: defaultdict[str, Pace] = defaultdict(Pace)

    def of(self, name: str) -> Spent:
        """Return the cost of a node until now; to be added to."""
        return self.spent[name]

    def took(self, name: str, nanoseconds: int, frames: int) -> None:
        """Add the cost of a result of a node that waits, and its frames."""
        spent = self.of(name)
        spent.stage_ns += nanoseconds
        spent.frames += frames

    def note(self, origin: str, numbers: NDArray[np.uint64], times: NDArray[np.uint64]) -> None:
        """Note that all that happens at once with these frames of a flow, or of a node that waits, is done.

        See `Pace`.
        """
        if len(numbers):
            self.paces[origin].note(time.time_ns(), numbers, times)


READY, START, STATS, WAITING = "ready", "start", "stats", "waiting"
OVERRUN, FAILED, WARNED, SILENT = "overrun", "failed", "warned", "silent"
PAUSE, NEXT, LIMIT, LIMITED, DONE, ENDED = "pause", "next", "limit", "limited", "done", "ended"
FINISHED, QUIT, PREPARE, TRIGGER = "finished", "quit", "prepare", "trigger"
TAP, TAPPED = "tap", "tapped"
FACTS = "facts"
CHANGE, CHANGED, HOLD, SETTLE = "change", "changed", "hold", "settle"


@dataclass(frozen=True)
class Start:
    """Start of an acquisition of a job, numbered from 0: when (ns since the epoch), and where its files go.

    frames  before which it ends, None = until it is stopped
    """

    number: int
    start_ns: int
    directory: str
    frames: int | None = None


@dataclass(frozen=True)
class Ended:
    """End of an acquisition before frame ``frames``; ``last``: no other follows."""

    frames: int
    last: bool


@dataclass(frozen=True)
class Change:
    """A parameter of a node that gets another value, as users write it; ``number`` tells changes apart."""

    number: int
    node: str
    parameter: str
    value: Any


@dataclass(frozen=True, eq=False)
class Tapped:
    """A frame (height, width) of a flow or node that a user looks at.

    number  of the frame;  time_ns  the detector's, ns since the epoch;  acquisition  of the job, from 0
    """

    node: str
    number: int
    time_ns: int
    frame: NDArray[Any]
    acquisition: int = 0


@dataclass(frozen=True)
class Failure:
    """Failure on a rank. ``node``, ``frame`` and ``acquisition`` where they are known."""

    rank: int
    message: str
    node: str | None = None
    frame: int | None = None
    detail: str = ""
    acquisition: int | None = None


@dataclass
class FlowCount:
    """Account of one flow at one receiver, in blocks.

    ``lost`` and ``missing`` hold (local buffer, visit, visits).

    done     by local buffer, before which visit all is known: used, lost or missing
    incomplete  (first, last) index, among the selected frames, of frames of other visits that a module failed to give
    status   of the modules' end records, merged: ``ok``, ``full`` (a oneshot buffer was), ``incomplete`` (a module
             never wrote its record)
    """

    received: int = 0
    done: dict[int, int] = field(default_factory=dict)
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


NEVER = 2**63
"""A frame number beyond all others."""


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Report of how far a receiver is with an acquisition, sent twice to ten times a second.

    flows    by name of the GDT, frames received and lost, and how full the local buffers are, as a share of their depth
    saved    frames and rows that it has written, by node;  done  frames gone through, whatever became of them, by GDT
    undecided  by node, number of the first frame at this receiver that may still be saved, `NEVER` where none may; not
             of what receivers write together
    latency  seconds that half, and 99 % of the results took, by GDT and by node that waits for others
    seconds  from the start of the acquisition;  busy_s  of these in turns in which there was work
    used     CPU seconds since that start, and the peak resident set, of the process ``pid``
    """

    acquisition: int = 0
    flows: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    saved: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    undecided: dict[str, int] = field(default_factory=dict)
    spent: dict[str, Spent] = field(default_factory=dict)
    latency: dict[str, tuple[float, ...]] = field(default_factory=dict)
    seconds: float = 0.0
    busy_s: float = 0.0
    used: Usage = Usage(0.0, 0)
    pid: int = 0


@dataclass(frozen=True)
class Measured:
    """Measurements of a receiver.

    busy_s  seconds of turns in which there was work;  cpu_s  CPU seconds from the start of the acquisition on
    spent   by node; of a kernel of several nodes by the last of its maps
    paces   of results, by flow (as the GDT is named) and by node that waits for others
    """

    busy_s: float = 0.0
    cpu_s: float = 0.0
    spent: dict[str, Spent] = field(default_factory=dict)
    paces: dict[str, Pace] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Account of the frames of an acquisition that one receiver alone knows, so far.

    flows     by name of the GDT
    dropped   by node, (first, last) numbers of frames that it gave up; of a join, that were not in all of its inputs
    vetoed    by selection, how many frames did not pass
    beside    by join, how many frames arrived that are of one of its flows only
    """

    flows: dict[str, FlowCount] = field(default_factory=dict)
    dropped: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    vetoed: dict[str, int] = field(default_factory=dict)
    beside: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReceiverReport(Counts):
    """Last account of a receiver, with the frames that it has saved, by channel, and what it used."""

    receiver: int
    saved: dict[str, int]
    usage: Usage
    measured: Measured = Measured()
    acquisition: int = 0


@dataclass(frozen=True)
class SourceReport:
    """Accounting of a detector rank.

    Seconds waited for credits by flow, frames served, blocks dropped by flow, when the last group was sent (ns since
    the epoch), seconds spent in transfers, of these seconds blocked in Flush, by how many frames the rank was behind
    the detector's clock at most, CPU seconds from the start of the acquisition on, and the detector's times of its
    first and last frame (ns since the epoch; 0 where another rank knows them).
    """

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
    """Accounting of a worker.

    Blocks and frames that it was given, of how many of these blocks it failed, seconds from when it was given a block
    to when it had a result.
    """

    rank: int
    node: str
    blocks: int
    frames: int
    failed: int
    usage: Usage
    busy_s: float = 0.0


def usage() -> Usage:
    """Return CPU seconds (user + system) and peak resident set of this process (getrusage(2); Linux counts KiB)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
