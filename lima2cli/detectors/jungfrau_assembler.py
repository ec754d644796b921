"""Assembly of frames of one JUNGFRAU module from packets that arrive in any order, several times, late, or never."""

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.detectors.jungfrau_packets import ABSENT, COLUMNS, PACKETS, PIXELS, ROWS, TICK_NS
from lima2cli.detectors.sources import leading
from lima2cli.frames import Array

KEPT = 1 << 16
"""Number of frames of which times and missing packets are remembered."""


@dataclass
class Counts:
    """Counts of packets and frames.

    taken      packets put in their place;  duplicate: that were there already;  late: of closed frames
    outside    of frames that are not of the acquisition, or no packet of a module
    overrun    for whose frame there was no room
    incomplete closed frames that lack packets;  absent: all of them;  lacking: missing packets of closed frames
    forgotten  frames that were asked for when their place held a later one
    """

    taken: int = 0
    duplicate: int = 0
    late: int = 0
    outside: int = 0
    overrun: int = 0
    incomplete: int = 0
    absent: int = 0
    lacking: int = 0
    forgotten: int = 0


class Assembler:
    """The ring of frames of one module. `take` and `settle` are for one thread, the others for another."""

    def __init__(self, depth: int, window: int, first: int = 1, rotated: bool = False) -> None:
        """Make an empty ring.

        first    the detector's number of frame 0
        rotated  turns the module by 180 degrees
        window   must be less than ``depth``

        ``window`` must be less than ``depth``.
        """
        self.counts = Counts()
        self.closed = 0
        """Frames 0 to this - 1 can be asked for."""
        self._depth, self._window, self._first = depth, window, first
        self._turn = -1 if rotated else 1
        self._frames: Array = np.full((depth, ROWS, COLUMNS), ABSENT, np.uint16)
        self._packets = self._frames.reshape(depth, PACKETS, PIXELS)[:, :: self._turn, :: self._turn]
        self._here = np.zeros((depth, PACKETS), np.bool_)
        self._numbers = np.full(depth, -1, np.int64)
        self._nothing: Array = np.full((1, ROWS, COLUMNS), ABSENT, np.uint16)
        self._nothing.setflags(write=False)
        self._stamped, self._stamps = np.full(KEPT, -1, np.int64), np.zeros(KEPT, np.uint64)
        self._arrived: NDArray[np.int64] = np.zeros(KEPT, np.int64)
        self._lacking = np.zeros(KEPT, np.uint8)
        self._highest, self._limit = -1, 2**62
        self._held = range(0)
        self._lock = threading.Lock()

    @property
    def highest(self) -> int:
        """Highest number of a frame of which a packet has arrived, -1 for none."""
        return self._highest

    def limit(self, frames: int) -> None:
        """Limit the acquisition to so many frames; packets of others are outside."""
        self._limit = frames

    def take(self, packets: Array) -> None:
        """Put packets, (n,) of `PACKET`, in their places."""
        counts = self.counts
        numbers = packets["frame"].astype(np.int64) - self._first
        fit = (numbers >= 0) & (numbers < self._limit) & (packets["packet"] < PACKETS)
        counts.outside += len(fit) - int(np.count_nonzero(fit))
        with self._lock:
            for number in sorted(set(numbers[fit].tolist())):
                self._take(number, packets, np.flatnonzero(fit & (numbers == number)))
            self._close(self._highest + 1 - self._window)

    def _take(self, number: int, packets: Array, chosen: NDArray[np.intp]) -> None:
        """Put the packets of one frame in their places."""
        if number < self.closed:
            self.counts.late += len(chosen)
            return
        self._highest = max(self._highest, number)
        place = number % self._depth
        if self._numbers[place] != number and not self._make_room(number, place):
            self.counts.overrun += len(chosen)
            return
        places = packets["packet"][chosen]
        here = self._here[place]
        before = int(np.count_nonzero(here))
        stamp = number % KEPT
        self._stamps[stamp] = packets["timestamp"][
            chosen[-1]
        ]  # a first packet may be left over from another acquisition
        if not before:
            self._stamped[stamp], self._arrived[stamp] = number, time.time_ns()
        pixels = packets["pixels"]
        self._packets[place, places] = pixels if len(chosen) == len(pixels) else pixels[chosen]
        here[places] = True
        new = int(np.count_nonzero(here)) - before
        self.counts.taken += new
        self.counts.duplicate += len(chosen) - new

    def _make_room(self, number: int, place: int) -> bool:
        """Give a place to a frame; return False where the one lies there that is held."""
        old = int(self._numbers[place])
        if old in self._held:
            return False
        if old >= self.closed:  # a jump over the whole ring
            self._close(number + 1 - self._window)
        self._numbers[place] = number
        self._here[place] = False
        return True

    def settle(self, frames: int) -> None:
        """Close frames 0 to ``frames`` - 1: no more packets of them are taken."""
        with self._lock:
            self._close(frames)

    def _close(self, frames: int) -> None:
        """Close frames 0 to ``frames`` - 1 as they are, and those after them that are complete."""
        while True:
            place = self.closed % self._depth
            if self._numbers[place] == self.closed:
                lacking = PACKETS - int(np.count_nonzero(self._here[place]))
                if lacking and self.closed >= frames:
                    return
                if lacking:
                    self.counts.incomplete += 1
                    self._packets[place, ~self._here[place]] = ABSENT
                self._record(self.closed + 1, lacking)
            elif self.closed < frames:
                begun = self._numbers[self._numbers > self.closed]
                end = min(frames, int(begun.min())) if len(begun) else frames
                self.counts.absent += end - self.closed
                self._record(end, PACKETS)
            else:
                return

    def _record(self, end: int, lacking: int) -> None:
        """Note that frames up to ``end`` - 1 are closed, and how many packets of each are missing."""
        self.counts.lacking += (end - self.closed) * lacking
        self._lacking[np.arange(max(self.closed, end - KEPT), end) % KEPT] = lacking
        self.closed = end

    def frames(self, numbers: Sequence[int]) -> Array:
        """Return frames (n, 512, 1024) uint16 of the leading closed numbers, n >= 1; ``numbers`` is a range.

        A view of the ring, held until the next call; the frame of absent packets alone where there is none.
        """
        with self._lock:
            places = leading(numbers, self._depth)
            asked = np.asarray(numbers[: len(places)])
            here = self._numbers[places.start : places.stop : places.step] == asked
            count = len(here) if here.all() else int(np.argmin(here))
            self._held = range(int(asked[0]), int(asked[count - 1]) + 1) if count else range(0)
            if count:
                frames = self._frames[places.start : places.stop : places.step][:count]
                frames.setflags(write=False)
                return frames
            if self._lacking[asked[0] % KEPT] < PACKETS:
                self.counts.forgotten += 1
                self._lacking[asked[0] % KEPT] = PACKETS
            return self._nothing

    def lacking(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Return how many packets each of these closed frames lacks, (n,) uint8."""
        lacking: NDArray[np.uint8] = self._lacking[np.asarray(numbers, np.int64) % KEPT]
        return lacking

    def stamps(self, numbers: Sequence[int]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Return the time of frames, (n,) uint64 ns since the start of the measurement, and which are known.

        It is the detector's time.
        """
        places = np.asarray(numbers, np.int64) % KEPT
        return self._stamps[places] * np.uint64(TICK_NS), self._stamped[places] == np.asarray(numbers)

    def arrivals(self, numbers: Sequence[int]) -> NDArray[np.int64]:
        """Return when the first packet of frames arrived, (n,) ns since the epoch; of those whose stamps are known."""
        arrived: NDArray[np.int64] = self._arrived[np.asarray(numbers, np.int64) % KEPT]
        return arrived


WITNESSES = 3
"""Minimal number of frames; or as many as the window has."""

MOST_KEPT = 24 * PACKETS
"""Maximal number of packets that are kept aside."""


@dataclass(frozen=True)
class _Kept:
    """Packets (n,) of one read of the socket, and when they arrived."""

    packets: Array
    numbers: NDArray[np.int64]
    at_s: float


class Gate:
    """A filter of the packets of one module. Times are of one clock, in seconds."""

    def __init__(self, window: int, patience_s: float, first: int) -> None:
        """Make a closed gate; ``first`` is the detector's number of frame 0."""
        self.begun = False
        """A frame of the acquisition has arrived."""
        self.stale = 0
        """Number of packets that were dropped."""
        self.stale_frames: tuple[int, int] | None = None
        """Lowest and highest frame of the packets that were dropped."""
        self._window, self._patience_s, self._first = window, patience_s, first
        self._needed = max(WITNESSES, window)
        self._highest, self._near_s = -1, -np.inf
        self._start_s, self._frames = 0.0, 2**62
        self._period_s: float | None = None
        self._kept: deque[_Kept] = deque()

    def start(self, now_s: float, frames: int, period_s: float | None) -> None:
        """Begin an acquisition of ``frames`` frames; their distance is None where it is not known."""
        self._start_s, self._frames, self._period_s = now_s, frames, period_s

    def through(self, packets: Array, now_s: float) -> list[Array]:
        """Return which packets to take now: some of these, (n,), and of those that were kept aside."""
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
        """Return packets that are plausible by themselves; the others are kept."""
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
        """Return what to take of what was kept aside, since nothing more arrives."""
        if not self.begun:
            return []
        if whole := self._witnesses():
            self._highest = max(self._highest, *whole)
        taken = self._take()
        while self._kept:
            self._count(self._kept.popleft())
        return taken

    def _release(self, now_s: float) -> list[Array]:
        """Return what the stream has reached, or has jumped to."""
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
        """Return the highest of increasing frame numbers, from one to the next no farther than the window."""
        for number in numbers:
            if number > highest + self._window:
                break
            highest = max(highest, number)
        return highest

    def _possible(self, number: int, now_s: float) -> bool:
        """Return whether a frame, if it is the first that has arrived, can have been taken since the start."""
        if self.begun or self._period_s is None:
            return True
        return number * self._period_s <= now_s - self._start_s + self._window * self._period_s

    def _witnesses(self) -> list[int]:
        """Return frames that arrived more than by half since the stream was where it was expected."""
        counts = self._counts(self._near_s)
        return [number for number, count in counts.items() if count > PACKETS // 2]

    def _counts(self, after_s: float = -np.inf) -> dict[int, int]:
        """Return the number of packets of each frame that are kept, in the order of frames."""
        kept = [kept.numbers for kept in self._kept if kept.at_s > after_s]
        if not kept:
            return {}
        numbers, counts = np.unique(np.concatenate(kept), return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))

    def _take(self) -> list[Array]:
        """Return packets that the stream has reached, which it does not get ahead by; the others stay."""
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
        """Drop what has been kept for too long, and what is too much.

        Before the first frame triggers may be rare.
        """
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
