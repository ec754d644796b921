"""A local buffer as its receiver reads it: views of its blocks and times, and its words of the generation protocol.

There is one generation word per position and contributing module, in the receiver's own memory. A module stores 2v + 1
before it writes its part of visit v, and 2v + 2 after it. So visit v is complete when the words of all modules are
2v + 2; one above that means that the visit was overwritten.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from lima2cli.program.records import OwnBuffer, ReceiverFlow
from lima2cli.runtime.incomplete import Failures
from lima2cli.spec import Array
from lima2cli.transport.base import Port

COMPLETE, OVERWRITTEN, NOT_WRITTEN = 0, 1, -1
"""What can be seen of a visit."""


class LocalBuffer:
    """Visits count from 0 in each acquisition; in the words they go on, from ``base``.

    frames    (positions * blocks, height, width), of the flow's dtype;  times  (positions * blocks,) uint64, ns
    told      before this visit the receiver may look;  released, credited  before these it has given back, and said so
    filled    how many visits after ``released`` were ever written at once
    """

    def __init__(self, own: OwnBuffer, flow: ReceiverFlow, port: Port) -> None:
        gdt, rule, layout = flow.gdt, flow.gdt.rule, flow.gdt.layout
        self.index, self._first, self._port = own.index, own.generations, port
        self._position, self._modules = rule.position, flow.contributors
        self.base = self.told = self.released = self.credited = self.filled = 0
        self.positions = rule.depth if gdt.selected is None else max(1, min(rule.depth, rule.visits(0, gdt.selected)))
        start = own.offset + rule.start_slot * rule.stride + layout.payload_offset
        memory = port.memory(own.region)[start:]
        shape = (self.positions * rule.blocks, gdt.source.height, gdt.source.width)
        bytes_shape = (*shape[:2], shape[2] * gdt.pixel_bytes)
        raw = as_strided(memory, bytes_shape, (rule.stride, layout.pitch, 1))
        self.frames: Array = _pixels(raw, gdt.dtype)
        self.times: NDArray[np.uint64] = port.words(own.times, self.positions * rule.blocks)
        self.failures = None if own.failures is None else _failures(port, own.failures, self.positions, flow)
        self._generations = port.words(own.generations, self.positions * flow.contributors).reshape(self.positions, -1)

    def fill(self, value: float) -> None:
        """What no module writes holds the gap value; and no page is touched for the first time during the run."""
        self.frames[...] = value

    def begin(self, base: int) -> None:
        """An acquisition whose visit 0 is visit ``base`` in the words."""
        self.base, self.told, self.released, self.filled = base, 0, 0, 0

    def complete(self, visit: int, most: int) -> int:
        """How many visits from ``visit`` on are written, at most ``most`` and not beyond the buffer's end."""
        position = self._position(visit)
        most = min(most, self.positions - position)
        if most <= 0:
            return 0
        hint = self._generations[position : position + most]  # plain loads: they keep the atomics off the modules' way
        most = _leading(hint, self.base + visit, most)
        return _leading(self._words(visit, most), self.base + visit, most) if most else 0

    def state(self, visit: int) -> int:
        """`COMPLETE`, `OVERWRITTEN` or `NOT_WRITTEN`."""
        words, due = self._words(visit, 1), 2 * (self.base + visit) + 2
        if int(words.max()) > due:
            return OVERWRITTEN
        return COMPLETE if int(words.min()) == due else NOT_WRITTEN

    def writing(self, visit: int) -> int:
        """The visit that is being written, or was written last, where ``visit`` was."""
        return (int(self._words(visit, 1).max()) - 1) // 2 - self.base

    def look_at_fill(self) -> bool:
        """Whether more visits than ever are written and not given back; one plain load where they are not."""
        before = self.filled
        while self.filled < self.positions:
            visit = self.released + self.filled
            if int(self._generations[visit % self.positions, 0]) <= 2 * (self.base + visit):
                break
            self.filled += 1
        return self.filled > before

    def _words(self, visit: int, visits: int) -> NDArray[np.uint64]:
        first = self._first + self._position(visit) * self._modules
        return self._port.read(first, visits * self._modules).reshape(visits, self._modules)


def _failures(port: Port, first: int, positions: int, flow: ReceiverFlow) -> Failures:
    words = port.words(first, positions * flow.contributors * flow.gdt.rule.blocks)
    return Failures(words, flow.contributors, flow.gdt.rule.blocks)


def _pixels(raw: NDArray[np.uint8], dtype: str) -> Array:
    """Bytes (n, h, w * itemsize) with contiguous rows as pixels (n, h, w), without a copy."""
    return raw.view(dtype)


def _leading(words: NDArray[np.uint64], visit: int, visits: int) -> int:
    """How many of the visits from ``visit`` on all modules have written; words (visits, modules)."""
    if visits == 1:
        return int(int(words.min()) >= 2 * visit + 2)
    due = np.arange(2 * visit + 2, 2 * (visit + visits) + 2, 2, dtype=np.uint64)
    written = words.min(axis=1) >= due
    return visits if written.all() else int(written.argmin())
