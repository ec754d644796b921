"""The states of a detector, and the clock by which an emulated one acquires frames."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lima2cli.detectors.base import AcqParams, State
from lima2cli.errors import StateError

ENDLESS = 2**62
"""More frames than any acquisition has."""


class Lifecycle:
    """State machine (see `State`) with frames that become due one period after another.

    Frame k is due at ``start_ns + k * period``; without a period all frames are due at once, now.
    """

    def __init__(self) -> None:
        self.state = State.IDLE
        self._start_ns = 0
        self._period_ns: float | None = None
        self._frames = 0
        self._stopped_at = 0

    def require(self, operation: str, *states: State) -> None:
        """Raise `StateError` unless in one of ``states``."""
        if self.state not in states:
            allowed = " or ".join(state.value for state in states)
            raise StateError(f"cannot {operation} a detector that is {self.state.value}: it must be {allowed}")

    def prepared(self, acq_params: AcqParams, recorded: int | None) -> None:
        """IDLE, STOPPED → PREPARED. ``recorded`` is how many frames exist, None where there is no end."""
        self.require("prepare", State.IDLE, State.STOPPED)
        asked = ENDLESS if acq_params.frames is None else acq_params.frames
        self._frames = asked if recorded is None else min(asked, recorded)
        self._period_ns = None if acq_params.period_s is None else acq_params.period_s * 1e9
        self.state = State.PREPARED

    def start(self, start_ns: int) -> None:
        """PREPARED → RUNNING; frame 0 is due at ``start_ns``."""
        self.require("start", State.PREPARED)
        self._start_ns = start_ns
        self.state = State.RUNNING

    def stop(self) -> None:
        """RUNNING → STOPPED; no more frames are acquired."""
        self.require("stop", State.RUNNING)
        self._stopped_at = self.acquired()
        self.state = State.STOPPED

    def reset(self) -> None:
        """Any → IDLE."""
        self.state = State.IDLE

    def fail(self) -> None:
        """Any → FAULT."""
        self.state = State.FAULT

    def acquired(self) -> int:
        """How many frames have become due; fixed after stop, 0 where nothing was started."""
        if self.state is State.STOPPED:
            return self._stopped_at
        if self.state is not State.RUNNING:
            return 0
        if self._period_ns is None:
            return self._frames
        elapsed_ns = time.time_ns() - self._start_ns
        return 0 if elapsed_ns < 0 else min(self._frames, int(elapsed_ns / self._period_ns) + 1)

    def times(self, numbers: Sequence[int]) -> NDArray[np.uint64]:
        """When frames were due, (n,) uint64 ns since the epoch; without a period the time now."""
        self.require("ask for times of", State.RUNNING, State.STOPPED)
        if self._period_ns is None:
            now = np.empty(len(numbers), np.uint64)
            now.fill(time.time_ns())
            return now
        due = (np.asarray(numbers, np.float64) * self._period_ns).astype(np.uint64)
        due += np.uint64(self._start_ns)
        return due
