"""Frames of one module out of packets that come in any order, several times, late, or never.

Frames lie in a ring: frame f in place ``f % depth``. A frame is *closed*, and can be asked for, once it is complete
and all before it are closed, or once a packet has come of a frame ``window`` later: nothing more comes then.
A packet of a closed frame is late, and left out: what was handed out never changes. A frame stays until its place is
needed for the frame ``depth`` later; frames that are held (`Assembler.frames`) keep their places, and what would go
there is overrun.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lima2cli.detectors.jungfrau_packets import ABSENT, COLUMNS, PACKETS, PIXELS, ROWS, TICK_NS
from lima2cli.detectors.sources import leading
from lima2cli.spec import Array

KEPT = 1 << 16
"""Frames of which times and packets that never came are remembered."""


@dataclass
class Counts:
    """What became of packets and frames.

    taken      packets put in their place;  duplicate: that were there already;  late: of closed frames
    outside    of frames that are not of the acquisition, or no packet of a module
    overrun    for whose frame there was no room
    incomplete closed frames that lack packets;  absent: all of them;  lacking: packets of closed frames that never came
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
    """The ring of one module. `take` and `settle` are for one thread, the others for another."""

    def __init__(self, depth: int, window: int, first: int = 1, rotated: bool = False) -> None:
        """``first`` is the detector's number of frame 0; ``rotated`` turns the module by 180 degrees.

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
        """The highest number of a frame of which a packet has come, -1 for none."""
        return self._highest

    def limit(self, frames: int) -> None:
        """The acquisition has so many frames; packets of others are outside."""
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
        """The packets of one frame."""
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
        """Give a place to a frame; False where the one lies there that is held."""
        old = int(self._numbers[place])
        if old in self._held:
            return False
        if old >= self.closed:  # a jump over the whole ring
            self._close(number + 1 - self._window)
        self._numbers[place] = number
        self._here[place] = False
        return True

    def settle(self, frames: int) -> None:
        """Close frames 0 to ``frames`` - 1: nothing more comes of them."""
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
        """Frames up to ``end`` - 1 are closed, and so many packets of each never came."""
        self.counts.lacking += (end - self.closed) * lacking
        self._lacking[np.arange(max(self.closed, end - KEPT), end) % KEPT] = lacking
        self.closed = end

    def frames(self, numbers: Sequence[int]) -> Array:
        """Frames (n, 512, 1024) uint16 of the leading closed numbers, n >= 1; ``numbers`` is a range.

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
        """How many packets each of these closed frames lacks, (n,) uint8."""
        lacking: NDArray[np.uint8] = self._lacking[np.asarray(numbers, np.int64) % KEPT]
        return lacking

    def stamps(self, numbers: Sequence[int]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """The detector's time of frames, (n,) uint64 ns since the start of the measurement, and which are known."""
        places = np.asarray(numbers, np.int64) % KEPT
        return self._stamps[places] * np.uint64(TICK_NS), self._stamped[places] == np.asarray(numbers)

    def arrivals(self, numbers: Sequence[int]) -> NDArray[np.int64]:
        """When the first packet of frames came, (n,) ns since the epoch; of those whose stamps are known."""
        arrived: NDArray[np.int64] = self._arrived[np.asarray(numbers, np.int64) % KEPT]
        return arrived
