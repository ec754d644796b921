"""The control messages between ranks, in the order of a run, and the measurements that they carry.

Frames never travel this way. Latencies are kept in constant memory: a histogram of logarithmic bins that merges.
"""

import resource
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
        due = max(1, int(np.ceil(share * len(self))))
        for index in sorted(self.counts):
            due -= self.counts[index]
            if due <= 0:
                first, beyond = bounds(index)
                return min((first + beyond - 1) / 2, self.largest) * 1e-9
        return None


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


@dataclass(frozen=True)
class Start:
    """Start of an acquisition of a job, numbered from 0: when (ns since the epoch), and where its files go."""

    number: int
    start_ns: int
    directory: str


@dataclass(frozen=True)
class Ended:
    """End of an acquisition before frame ``frames``; ``last``: no other follows."""

    frames: int
    last: bool


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
    """Measurements of a receiver.

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
    """Accounting of a receiver.

    Flows by name, frames saved by channel, (first, last) numbers dropped by transforms, how many frames each selection
    did not let pass, and how many arrived at each join that are of one flow only.
    """

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
