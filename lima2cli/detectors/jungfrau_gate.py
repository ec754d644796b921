"""Packets of frames that are implausibly far ahead wait for others that bear them out.

A single left-over packet of an earlier acquisition would make all frames before it late. So a packet is let through
where its frame is at most ``window`` ahead of the highest that was let through. Others are kept aside, until

* the stream has come so far, or
* `WITNESSES` frames of them have come, each more than by half, and nothing else: the stream has jumped, as after a
  pause of the network, or
* nothing more comes: then frames that came last, and more than by half, are let through.

Those that are kept for longer than ``patience_s`` are left over from another acquisition, and dropped. Until the
acquisition has begun, with more than half a frame, all are kept aside; and where the period is known, frames that
cannot have been taken since the start do not begin it.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lima2cli.detectors.jungfrau_packets import PACKETS
from lima2cli.spec import Array

WITNESSES = 3
"""Frames, at least, or as many as the window has."""

MOST_KEPT = 24 * PACKETS
"""Packets that are kept aside."""


@dataclass(frozen=True)
class _Kept:
    """Packets (n,) of one look at the socket, and when they came."""

    packets: Array
    numbers: NDArray[np.int64]
    at_s: float


class Gate:
    """Of one module. Times are of one clock, in seconds."""

    def __init__(self, window: int, patience_s: float, first: int) -> None:
        """``first`` is the detector's number of frame 0."""
        self.begun = False
        """Whether a frame of the acquisition has come."""
        self.stale = 0
        """Packets that were dropped."""
        self.stale_frames: tuple[int, int] | None = None
        """Of which frames they were: the lowest and the highest."""
        self._window, self._patience_s, self._first = window, patience_s, first
        self._needed = max(WITNESSES, window)
        self._highest, self._near_s = -1, -np.inf
        self._start_s, self._frames = 0.0, 2**62
        self._period_s: float | None = None
        self._kept: deque[_Kept] = deque()

    def start(self, now_s: float, frames: int, period_s: float | None) -> None:
        """The acquisition begins: ``frames`` of them, and how far they are apart, None where that is not known."""
        self._start_s, self._frames, self._period_s = now_s, frames, period_s

    def through(self, packets: Array, now_s: float) -> list[Array]:
        """Which packets to take now: some of these, (n,), and of those that were kept aside."""
        numbers = packets["frame"].astype(np.int64) - self._first
        ours = (numbers >= 0) & (numbers < self._frames)
        if not ours.all():  # who counts them takes them, and nothing follows from them
            return [packets[~ours], *self.through(packets[ours], now_s)]
        taken = self._pass(packets, numbers, now_s)
        if self._kept:
            self._forget(now_s)
            taken += self._release(now_s)
        return taken

    def _pass(self, packets: Array, numbers: NDArray[np.int64], now_s: float) -> list[Array]:
        """Those that are plausible by themselves; the others are kept."""
        if not len(numbers):
            return []
        if self.begun:
            if numbers.max() > self._highest + self._window:
                self._highest = self._reach(self._highest, np.unique(numbers).tolist())
            near = numbers <= self._highest + self._window
            if near.any():
                self._highest, self._near_s = max(self._highest, int(numbers[near].max())), now_s
            if near.all():
                return [packets]
            packets, numbers, taken = packets[~near], numbers[~near], [packets[near]] if near.any() else []
        else:
            packets, taken = packets.copy(), []
        self._kept.append(_Kept(packets, numbers, now_s))
        return taken

    def silent(self) -> list[Array]:
        """Nothing more comes: what to take of what was kept aside."""
        if not self.begun:
            return []
        if whole := self._witnesses():
            self._highest = max(self._highest, *whole)
        taken = self._take()
        while self._kept:
            self._count(self._kept.popleft())
        return taken

    def _release(self, now_s: float) -> list[Array]:
        """What the stream has reached, or has jumped to."""
        counts = self._counts()
        if not counts:
            return []
        if not self.begun:
            highest = self._reach(self._highest, counts)
            near = sum(count for number, count in counts.items() if number <= highest)
            if near > PACKETS // 2:
                self.begun, self._highest, self._near_s = True, highest, now_s
        whole = self._witnesses()
        if len(whole) >= self._needed and self._possible(whole[0], now_s):
            self._highest, self.begun = self._reach(whole[0], counts), True
        return self._take() if self.begun else []

    def _reach(self, highest: int, numbers: Iterable[int]) -> int:
        """The highest of increasing frame numbers, from one to the next no farther than the window."""
        for number in numbers:
            if number > highest + self._window:
                break
            highest = max(highest, number)
        return highest

    def _possible(self, number: int, now_s: float) -> bool:
        """Whether a frame, if it is the first that has come, can have been taken since the start."""
        if self.begun or self._period_s is None:
            return True
        return number * self._period_s <= now_s - self._start_s + self._window * self._period_s

    def _witnesses(self) -> list[int]:
        """Frames that came more than by half since the stream was where it was expected."""
        counts = self._counts(self._near_s)
        return [number for number, count in counts.items() if count > PACKETS // 2]

    def _counts(self, after_s: float = -np.inf) -> dict[int, int]:
        """Packets of each frame that are kept, in the order of frames."""
        kept = [kept.numbers for kept in self._kept if kept.at_s > after_s]
        if not kept:
            return {}
        numbers, counts = np.unique(np.concatenate(kept), return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))

    def _take(self) -> list[Array]:
        """Those that the stream has reached, which it does not get ahead by; the others stay."""
        taken, left = [], deque[_Kept]()
        for kept in self._kept:
            near = kept.numbers <= self._highest
            if near.any():
                taken.append(kept.packets[near])
            if not near.all():
                left.append(_Kept(kept.packets[~near], kept.numbers[~near], kept.at_s))
        self._kept = left
        return taken

    def _forget(self, now_s: float) -> None:
        """Drop what has been kept for too long, and what is too much. Before the first frame triggers may be rare."""
        oldest = now_s - self._patience_s if self.begun or self._period_s is not None else -np.inf
        while self._kept and self._kept[0].at_s < oldest:
            self._count(self._kept.popleft())
        while sum(len(kept.numbers) for kept in self._kept) > MOST_KEPT:
            self._count(self._kept.popleft())

    def _count(self, kept: _Kept) -> None:
        low, high = int(kept.numbers.min()), int(kept.numbers.max())
        before = self.stale_frames or (low, high)
        self.stale += len(kept.numbers)
        self.stale_frames = min(low, before[0]), max(high, before[1])
