"""What receivers measure in every run: how long nodes take, how late results are, how fast frames leave.

All of it is cheap enough to be always on: two looks at a clock per kernel and batch of frames, and constant memory.
"""

import time
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lima2cli.runtime.arrivals import Result
from lima2cli.runtime.latency import Histogram


@dataclass(slots=True)
class Spent:
    """What a node, or a kernel of several, has cost at a receiver: frames it was given, ns to compute and to write."""

    frames: int = 0
    stage_ns: int = 0
    commit_ns: int = 0

    @property
    def seconds(self) -> float:
        """All of it."""
        return (self.stage_ns + self.commit_ns) * 1e-9


@dataclass(slots=True)
class Pace:
    """Results of a flow at one receiver: how many frames; number of the last frame of the first batch and of the last,
    and when they were there (ns since the epoch).

    latency     from the detector's time of the last frame of each group to its result
    """

    frames: int = 0
    first: int = 0
    last: int = 0
    first_ns: int = 0
    last_ns: int = 0
    latency: Histogram = field(default_factory=Histogram)

    def note(self, now_ns: int, numbers: NDArray[np.uint64], times: NDArray[np.uint64]) -> None:
        """The results of frames with these numbers are there; ``times`` (groups,) of the last frame of each group."""
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
        """Frames of the detector per second that were done with, of which ``lost`` were not; None without two batches.

        Frames that never came count: they do not keep a receiver from keeping up.
        """
        seconds = (self.last_ns - self.first_ns) * 1e-9
        return max(0.0, self.last - self.first - lost) / seconds if seconds > 0 else None


class Timings:
    """What a receiver measures of one acquisition: ``spent`` by node, ``paces`` by flow and by node that waits."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, Spent] = defaultdict(Spent)
        self.paces: defaultdict[str, Pace] = defaultdict(Pace)

    def of(self, name: str) -> Spent:
        """What a node has cost until now; to be added to."""
        return self.spent[name]

    def took(self, name: str, nanoseconds: int, result: Result) -> None:
        """What a node that waits has cost, to give this."""
        spent = self.of(name)
        spent.stage_ns += nanoseconds
        if result.block is not None:
            spent.frames += len(result.block.numbers)
        elif result.rows is not None:
            spent.frames += len(result.rows["frame_number"])

    def note(self, origin: str, numbers: NDArray[np.uint64], times: NDArray[np.uint64]) -> None:
        """All that comes at once of these frames of a flow, or of a node that waits, is there; see `Pace`."""
        if len(numbers):
            self.paces[origin].note(time.time_ns(), numbers, times)
