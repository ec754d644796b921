"""A local buffer as its receiver reads it: which visits are complete, and the frames that lie there."""

from bisect import bisect_left

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from lima2cli.frames import Array
from lima2cli.program import OwnBuffer, ReceiverFlow
from lima2cli.transport.base import Port


class Failures:
    """Failure words of one local buffer: ``words`` (positions * modules * blocks,) in the receiver's own memory."""

    def __init__(self, words: NDArray[np.uint64], modules: int, blocks: int) -> None:
        self._words = words.reshape(-1, modules, blocks)

    def of(self, position: int, visits: int, blocks: int) -> NDArray[np.bool_] | None:
        """Return which of the first ``blocks`` blocks of the visits from ``position`` on lack a part; None = none."""
        words = self._words[position : position + visits]
        if not words.any():
            return None
        failed = np.asarray(words.any(axis=1)).ravel()[:blocks]
        return failed if failed.any() else None

    def usable(self, position: int, visits: int, last: int) -> int:
        """Return how many of the leading visits have a whole block each.

        last  number of blocks of the last visit
        """
        words = self._words[position : position + visits]
        if not words.any():
            return visits
        failed = np.array(words.any(axis=1))
        failed[-1, last:] = True
        whole = np.count_nonzero(~failed, axis=1)
        return visits if whole.all() else int(whole.argmin())


COMPLETE, OVERWRITTEN, NOT_WRITTEN = 0, 1, -1
"""State of a visit, as far as it can be seen."""


class ReceiverBuffer:
    """A local buffer, as its receiver reads it.

    Visits count from 0 in each acquisition; in the words they go on, from ``base``.

    frames    (positions * blocks, height, width), of the flow's dtype; of one whose frames come packed the bytes of
              slots, (positions * blocks, 1, bytes) uint8
    times     (positions * blocks,) uint64, ns
    notified      before this visit the receiver may look
    released  before this one it has given back;  credited  before this one it has reported so
    filled    how many visits after ``released`` were ever written at once
    """

    def __init__(self, own: OwnBuffer, flow: ReceiverFlow, port: Port) -> None:
        gdt, rule, layout = flow.gdt, flow.gdt.rule, flow.gdt.layout
        self.index, self._first, self._port = own.index, own.generations, port
        self._position, self._modules = rule.position, flow.contributors
        self.base = self.notified = self.released = self.credited = self.filled = 0
        self.positions = rule.depth if gdt.selected is None else max(1, min(rule.depth, rule.visits(0, gdt.selected)))
        start = own.offset + rule.start_slot * rule.stride + layout.payload_offset
        memory = port.memory(own.region)[start:]
        rows = (1, layout.pitch) if gdt.packed else (gdt.source.height, gdt.source.width * gdt.pixel_bytes)
        raw = as_strided(memory, (self.positions * rule.blocks, *rows), (rule.stride, layout.pitch, 1))
        self.frames: Array = raw if gdt.packed else raw.view(gdt.dtype)
        self.times: NDArray[np.uint64] = port.words(own.times, self.positions * rule.blocks)
        self.failures = None if own.failures is None else _failures(port, own.failures, self.positions, flow)
        self._generations = port.words(own.generations, self.positions * flow.contributors).reshape(self.positions, -1)

    def fill(self, value: float) -> None:
        """Fill the buffer with the gap value, which stays where no module writes.

        Thus no page is touched for the first time during the run.
        """
        self.frames[...] = value

    def begin(self, base: int) -> None:
        """Begin an acquisition whose visit 0 is visit ``base`` in the words."""
        self.base, self.notified, self.released, self.filled = base, 0, 0, 0

    def complete(self, visit: int, most: int) -> int:
        """Return how many visits from ``visit`` on are written, at most ``most`` and not beyond the buffer's end."""
        position = self._position(visit)
        most = min(most, self.positions - position)
        if most <= 0 or not self._written(visit):
            return 0
        hint = self._generations[position : position + most]  # plain loads: they keep the atomics off the modules' way
        most = _leading(hint, self.base + visit, most)
        return _leading(self._words(visit, most), self.base + visit, most) if most else 0

    def state(self, visit: int) -> int:
        """Return the state of a visit: `COMPLETE`, `OVERWRITTEN` or `NOT_WRITTEN`."""
        words, due = self._words(visit, 1), 2 * (self.base + visit) + 2
        if int(words.max()) > due:
            return OVERWRITTEN
        return COMPLETE if int(words.min()) == due else NOT_WRITTEN

    def writing(self, visit: int) -> int:
        """Return the visit that is being written, or was written last, where ``visit`` was."""
        return (int(self._words(visit, 1).max()) - 1) // 2 - self.base

    def look_at_fill(self) -> bool:
        """Count the visits that are written and not given back; return whether they are more than ever before.

        It is one plain load where they are not.
        """
        before = self.filled
        while self.filled < self.positions:
            if not self._begun(self.released + self.filled):
                break
            self.filled += 1
        return self.filled > before

    @property
    def held(self) -> int:
        """Number of visits that are written now and not given back; found in few loads, since they have an order."""
        return bisect_left(range(self.positions), True, key=lambda ahead: not self._begun(self.released + ahead))

    def _written(self, visit: int) -> bool:
        """Return whether a module has written a visit: a plain load, which is all that an idle look costs."""
        return int(self._generations[self._position(visit), 0]) >= 2 * (self.base + visit) + 2

    def _begun(self, visit: int) -> bool:
        """Return whether a module has written a visit, or writes it."""
        return int(self._generations[visit % self.positions, 0]) > 2 * (self.base + visit)

    def _words(self, visit: int, visits: int) -> NDArray[np.uint64]:
        first = self._first + self._position(visit) * self._modules
        return self._port.read(first, visits * self._modules).reshape(visits, self._modules)


def _failures(port: Port, first: int, positions: int, flow: ReceiverFlow) -> Failures:
    words = port.words(first, positions * flow.contributors * flow.gdt.rule.blocks)
    return Failures(words, flow.contributors, flow.gdt.rule.blocks)


def _leading(words: NDArray[np.uint64], visit: int, visits: int) -> int:
    """Return how many of the visits from ``visit`` on all modules have written; words (visits, modules)."""
    if visits == 1:
        return int(int(words.min()) >= 2 * visit + 2)
    due = np.arange(2 * visit + 2, 2 * (visit + visits) + 2, 2, dtype=np.uint64)
    written = words.min(axis=1) >= due
    return visits if written.all() else int(written.argmin())
