"""States of a detector, and the clock by which an emulated one acquires frames."""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lima2cli.detectors.base import AcqParams, State
from lima2cli.errors import StateError

ENDLESS = 2**62
"""More frames than any acquisition has."""

Delays = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""A function that returns by how much frames are later than the clock, (n,) ns, less than a period."""


class Lifecycle:
    """A state machine (see `State`) with frames that become due one period after another.

    Frame k is due at ``start_ns + k * period``; without a period all frames are due at once, now. With software
    triggers of n frames, frame k is due ``k % n`` periods after trigger ``k // n``, or after the frames of the trigger
    before. External triggers and gates come as regularly as the clock: they change nothing.
    """

    def __init__(self) -> None:
        self.state = State.IDLE
        self._lag_ns = 0
        self._jitter: Delays | None = None
        self._start_ns = 0
        self._period_ns: float | None = None
        self._frames = 0
        self._stopped_at = 0
        self._per_trigger = 0  # 0: no software triggers
        self._triggers: list[int] = []

    def require(self, operation: str, *states: State) -> None:
        """Raise `StateError` unless in one of ``states``."""
        if self.state not in states:
            allowed = " or ".join(state.value for state in states)
            raise StateError(f"cannot {operation} a detector that is {self.state.value}: it must be {allowed}")

    def prepared(
        self, acq_params: AcqParams, recorded: int | None, lag_ns: int = 0, jitter: Delays | None = None
    ) -> None:
        """Go from IDLE or STOPPED to PREPARED.

        recorded  how many frames exist, None where there is no end;  lag_ns  frames are there so long after their time
        """
        self.require("prepare", State.IDLE, State.STOPPED)
        self._lag_ns, self._jitter = lag_ns, jitter
        asked = ENDLESS if acq_params.frames is None else acq_params.frames
        self._frames = asked if recorded is None else min(asked, recorded)
        self._period_ns = None if acq_params.period_s is None else acq_params.period_s * 1e9
        self._per_trigger = acq_params.frames_per_trigger if acq_params.trigger == "software" else 0
        self.state = State.PREPARED

    def start(self, start_ns: int) -> None:
        """Go from PREPARED to RUNNING; frame 0 is due at ``start_ns``, or when triggered."""
        self.require("start", State.PREPARED)
        self._start_ns, self._triggers = start_ns, []
        self.state = State.RUNNING

    def trigger(self) -> None:
        """Trigger, while RUNNING: the frames of the next trigger are due now, or after those of the last one."""
        self.require("trigger", State.RUNNING)
        if not self._per_trigger:
            raise StateError("cannot trigger a detector by software that was prepared for another trigger")
        now = time.time_ns()
        if self._triggers:
            now = max(now, self._triggers[-1] + round(self._per_trigger * (self._period_ns or 0)))
        self._triggers.append(now)

    def stop(self) -> None:
        """Go from RUNNING to STOPPED; no more frames are acquired."""
        self.require("stop", State.RUNNING)
        self._stopped_at = self.acquired()
        self.state = State.STOPPED

    def reset(self) -> None:
        """Go from any state to IDLE."""
        self.state = State.IDLE

    def fail(self) -> None:
        """Go from any state to FAULT."""
        self.state = State.FAULT

    def acquired(self) -> int:
        """Return how many frames have become due; fixed after stop, 0 where nothing was started."""
        if self.state is State.STOPPED:
            return self._stopped_at
        if self.state is not State.RUNNING:
            return 0
        now = time.time_ns() - self._lag_ns
        if not self._per_trigger:
            return min(self._frames, self._due(0, now - self._start_ns, ENDLESS))
        begun = bisect_right(self._triggers, now)
        if not begun:
            return 0
        first = (begun - 1) * self._per_trigger
        return min(self._frames, first + self._due(first, now - self._triggers[begun - 1], self._per_trigger))

    def due_ns(self, number: int) -> int | None:
        """Return when a frame will be there, ns since the epoch; None where that is not known, or it never will."""
        if self.state is not State.RUNNING or self._period_ns is None or number >= self._frames:
            return None
        if self._per_trigger and number // self._per_trigger >= len(self._triggers):
            return None
        return int(self.times(range(number, number + 1))[0]) + self._lag_ns

    def _due(self, first: int, elapsed_ns: int, most: int) -> int:
        """Return how many of the frames from ``first`` on have become due so long after the first of them was."""
        if elapsed_ns < 0:
            return 0
        if self._period_ns is None:
            return most
        count = int(elapsed_ns / self._period_ns) + 1
        if count > most:
            return most
        if self._jitter is not None:  # of the last alone, as it is less than a period
            late = float(self._jitter(np.array([first + count - 1]))[0])
            return count if (count - 1) * self._period_ns + late <= elapsed_ns else count - 1
        return count

    def times(self, numbers: Sequence[int]) -> NDArray[np.uint64]:
        """Return when frames were due, (n,) uint64 ns since the epoch; without a period when triggered, or now."""
        self.require("ask for times of", State.RUNNING, State.STOPPED)
        times = np.empty(len(numbers), np.uint64)
        if self._per_trigger:
            visits = np.asarray(numbers, np.int64) // self._per_trigger
            times[:] = np.asarray(self._triggers, np.uint64)[visits]
        elif self._period_ns is None:
            times.fill(time.time_ns())
            return times
        else:
            times.fill(self._start_ns)
        if self._period_ns is not None:
            index = np.asarray(numbers, np.int64)
            since = (index % self._per_trigger if self._per_trigger else index) * self._period_ns
            if self._jitter is not None:
                since = since + self._jitter(index)
            times += since.astype(np.uint64)
        return times
