"""What receivers measure in every run: how long nodes take, how late results are, how fast frames leave.

All of it is cheap enough to be always on: two looks at a clock per kernel and batch of frames, and constant memory.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
    """Results of a flow at one receiver: from when to when (ns since the epoch), how many frames.

    frames      all of them;  before  those of the first batch, which say nothing of the rate
    latency     from the detector's time of the last frame of each group to its result
    """

    frames: int = 0
    before: int = 0
    first_ns: int = 0
    last_ns: int = 0
    latency: Histogram = field(default_factory=Histogram)

    def note(self, now_ns: int, frames: int, times: NDArray[np.uint64]) -> None:
        """The results of so many frames are there; ``times`` (groups,) of the last frame of each group."""
        if not self.first_ns:
            self.first_ns, self.before = now_ns, frames
        self.frames += frames
        self.last_ns = now_ns
        if len(times) == 1:
            self.latency.add(now_ns - int(times[0]))
        else:
            self.latency.add_all(now_ns - times.astype(np.int64))

    @property
    def hz(self) -> float | None:
        """Frames per second that left; None where that cannot be told."""
        seconds = (self.last_ns - self.first_ns) * 1e-9
        return (self.frames - self.before) / seconds if seconds > 0 else None
