"""One flow as one receiver sees it: which groups are complete, in the order of the groups, without a copy."""

import time
from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.frames import Array, Block
from lima2cli.graph.protocol import END
from lima2cli.graph.receiver_buffer import COMPLETE, NOT_WRITTEN, OVERWRITTEN, ReceiverBuffer
from lima2cli.graph.unpacking import Unpacker
from lima2cli.messages import FlowCount, Spent
from lima2cli.packed import PackedBlock, taken
from lima2cli.program import END_FULL, END_OK, END_WORDS, ReceiverFlow, end_mark
from lima2cli.transport.base import Port

RowRanges = list[tuple[int, int]]
"""First and last index, among the selected frames, of consecutive ones."""


def add_rows(rows: RowRanges, indices: NDArray[np.int64]) -> None:
    """Note indices, in increasing order, after those that were noted before."""
    for index in map(int, indices):
        if rows and rows[-1][1] == index - 1:
            rows[-1] = (rows[-1][0], index)
        else:
            rows.append((index, index))


BATCH_BYTES = 4 << 20
"""Approximate maximal size of a batch, in bytes.

Enough to make Python's cost small, few enough to give memory back early. Where several threads work on it, it may have
a group for each.
"""

EXPOSED_NS = 2_000_000
"""Nanoseconds that a batch of flows that do not wait may take.

Until it is done, its frames lie where they may be overwritten.
"""

DRIFT = 1.1
"""Factor by which a group may seem to cost more than the previous one, on a machine that others also use."""


@dataclass(slots=True)
class Batch:
    """Consecutive complete visits of one local buffer, as one block of frames.

    failed  indices, among the selected frames, of those that the block lacks: a module failed to give its part
    room    memory of unpacked frames, which is given back with the batch
    """

    buffer: ReceiverBuffer
    visit: int
    visits: int
    block: Block
    released: bool = False
    failed: NDArray[np.int64] | None = None
    room: Array | None = None


@dataclass(frozen=True, slots=True)
class Absent:
    """Consecutive visits that will not come: lost, or missing. ``lasts`` are the last frames of their groups."""

    lasts: Iterator[int]


class FlowReader:
    """Reader of one flow: gives batches in the order of groups until all are processed, lost or missing.

    Batches may be released later and in another order than they arrived; their memory is given back in order.
    ``single``: a batch is one group.
    """

    def __init__(self, flow: ReceiverFlow, port: Port, *, single: bool = False, threads: int = 1) -> None:
        self.flow, self._port = flow, port
        self._gdt, self._rule, self._modules = flow.gdt, flow.gdt.rule, flow.contributors
        self._buffers = [ReceiverBuffer(own, flow, port) for own in flow.buffers]
        for buffer in self._buffers:
            buffer.fill(0 if self._gdt.packed else self._gdt.gap_value)
            buffer.frames.flags.writeable = False
        shape, dtype = (self._gdt.source.height, self._gdt.source.width), self._gdt.dtype
        self._unpacker = Unpacker(shape, dtype, threads) if self._gdt.packed else None
        self.damaged = 0
        self._base = 0
        self._held: deque[Batch] = deque()
        self._begin()
        block_bytes = max(1, self._gdt.source.area * self._gdt.pixel_bytes * self._rule.blocks)
        deep = max(1, self._rule.depth // 4)
        batched = len(self._buffers) == 1 and not single
        self._largest = max(1, min(max(BATCH_BYTES // block_bytes, threads), deep, 1024)) if batched else 1
        self._most, self._visit_ns = self._largest if self._gdt.waits else 1, 0.0
        self._credit_every = max(1, self._rule.depth // 8)
        self._nothing = Block(np.empty(0), np.empty(0, np.uint64), np.empty(0, np.uint64))

    def follow(self) -> None:
        """Begin the acquisition after one whose end is known: visits start again, the words in control memory go on."""
        self._base += self._rule.epoch(self._selected or 0)
        self._begin()
        for buffer in self._buffers:
            self._send_credits(buffer)

    def _begin(self) -> None:
        self._selected = self._gdt.selected
        self._turn, self._ended = 0, False
        self.count = FlowCount()
        self.unpacking = Spent()
        """Cost of taking frames that come packed out of their slots, and of unpacking them."""
        for buffer in self._buffers:
            buffer.begin(self._base)

    def limit(self, frames: int) -> None:
        """Limit the acquisition: it ends before frame ``frames``."""
        self._selected = self._rule.selected(frames)

    def end(self, status: str) -> None:
        """Note that all modules have stopped and write no more; ``status`` is what `end_status` gave then."""
        self._ended = True
        self.count.status = status
        if self._gdt.end_event:
            self.count.end_events += 1

    @property
    def read(self) -> bool:
        """Return whether every visit has come or is known not to come; some may still be held."""
        return self._ended and self._next() is None

    @property
    def free(self) -> bool:
        """Return whether all memory of this acquisition has been given back."""
        return self.read and not self._held

    def _next(self) -> tuple[ReceiverBuffer, int] | None:
        """Return the next local buffer and visit; None if there are no more."""
        visit, turn = divmod(self._turn, len(self._buffers))
        buffer = self._buffers[turn]
        if self._rule.dropped(visit):
            return None
        if self._selected is not None and visit >= self._rule.visits(buffer.index, self._selected):
            return None  # later ones of this receiver come after it in the order of groups
        return buffer, visit

    def poll(self) -> Batch | Absent | None:
        """Return what comes next, if it has been reported to the receiver; count what is lost."""
        place = self._next()
        if place is None:
            return None
        buffer, visit = place
        if visit >= buffer.notified and not self._look(buffer, visit):
            return None
        most = 1 if self._ended else min(buffer.notified - visit, self._most)
        state = COMPLETE if self._gdt.waits and not self._ended else buffer.state(visit)
        visits = self._usable(buffer, visit, most) if state == COMPLETE else 0
        if state == COMPLETE and not visits:
            state = NOT_WRITTEN
        if state == COMPLETE:
            arrived = self._batch(buffer, visit, visits)
            if isinstance(arrived, Batch):
                return arrived
            state = arrived
        lost = state == OVERWRITTEN
        absent = self._overtaken(buffer, visit) if lost else 1
        self._count_absent(self.count.lost if lost else self.count.missing, buffer, visit, absent)
        self._turn += absent if len(self._buffers) == 1 else 1
        if self._held:
            self._held.append(Batch(buffer, visit, absent, self._nothing, True))
        else:
            self._give_back(buffer, visit + absent)
        return Absent(self._last(buffer, one) for one in range(visit, visit + absent))

    def _last(self, buffer: ReceiverBuffer, visit: int) -> int:
        """Return the number of the last frame of a group."""
        rule, group = self._rule, self._rule.group_of(buffer.index, visit)
        return rule.frame(group * rule.blocks + rule.blocks_of_group(group, self._selected) - 1)

    @property
    def undecided(self) -> int:
        """Number of the first frame of this receiver that has not been given yet; `END` where there is none."""
        place = self._next()
        if place is None:
            return END
        group = self._rule.group_of(place[0].index, place[1])
        return self._rule.frame(group * self._rule.blocks)

    @property
    def fill(self) -> float:
        """Fill of the fullest of the local buffers now, as a share of its depth."""
        return max(buffer.held for buffer in self._buffers) / self._rule.depth

    def _overtaken(self, buffer: ReceiverBuffer, visit: int) -> int:
        """Return how many visits to give up where the writer has overtaken the receiver.

        Those that are half a buffer behind the writer go with those that are gone: the oldest that is left would be
        overwritten while it is read, again and again.
        """
        if len(self._buffers) > 1 or self._ended:
            return 1
        return max(1, buffer.writing(visit) - self._rule.depth // 2 - visit)

    def _look(self, buffer: ReceiverBuffer, visit: int) -> bool:
        """Move the horizon of what was reported to the receiver; return whether it moved beyond ``visit``."""
        if self._ended:
            self._tell_rest(buffer)
            return True
        period = self._gdt.group_event
        if period == 0:
            return False
        full = None if self._selected is None else self._rule.full_visits(buffer.index, self._selected)
        if period == 1:
            horizon = visit + buffer.complete(visit, self._most if full is None else min(self._most, full - visit))
        else:
            boundary = (visit // period + 1) * period - 1
            whole = full is None or boundary < full
            horizon = boundary + 1 if whole and buffer.complete(boundary, 1) else visit
        if horizon <= visit:
            return False
        self.count.group_events += horizon // period - buffer.notified // period
        buffer.notified = horizon
        if buffer.look_at_fill():
            self.count.peak_fill = max(self.count.peak_fill, buffer.filled / self._rule.depth)
        return True

    def _tell_rest(self, buffer: ReceiverBuffer) -> None:
        """Treat everything as reported, after the end; group events that were not read yet still count."""
        assert self._selected is not None
        period = self._gdt.group_event
        if period:
            full = self._rule.full_visits(buffer.index, self._selected)
            boundary = full // period * period - 1
            while boundary >= buffer.notified and not buffer.complete(boundary, 1):
                boundary -= period
            self.count.group_events += max(0, (boundary + 1) // period - buffer.notified // period)
        buffer.notified = self._rule.visits(buffer.index, self._selected)

    def _usable(self, buffer: ReceiverBuffer, visit: int, visits: int) -> int:
        """Return how many complete visits from ``visit`` on have, each, a frame that no module failed to give."""
        if buffer.failures is None:
            return visits
        visits = min(visits, buffer.positions - self._rule.position(visit))
        last_group = self._rule.group_of(buffer.index, visit + visits - 1)
        last = self._rule.blocks_of_group(last_group, self._selected)
        self._port.sync()
        return buffer.failures.usable(self._rule.position(visit), visits, last)

    def _batch(self, buffer: ReceiverBuffer, visit: int, visits: int) -> Batch | int:
        """Return complete visits as a batch; of frames that come packed, what became of them meanwhile, where none is.

        Those are copied: from then on nothing can overwrite them.
        """
        rule = self._rule
        visits = min(visits, buffer.positions - rule.position(visit))
        last_group = rule.group_of(buffer.index, visit + visits - 1)
        blocks = (visits - 1) * rule.blocks + rule.blocks_of_group(last_group, self._selected)
        first = rule.position(visit) * rule.blocks
        self._port.sync()
        times = buffer.times[first : first + blocks]
        numbers = rule.numbers(buffer.index, visit, visits)[:blocks]
        stable = self._gdt.waits or self._rule.bounded or self._ended
        failed = None if buffer.failures is None else buffer.failures.of(rule.position(visit), visits, blocks)
        frames, room = buffer.frames[first : first + blocks], None
        if self._unpacker is None:
            block = Block(frames, numbers, times if stable else times.copy(), stable)
        else:
            before = time.perf_counter_ns()
            block = PackedBlock(taken(frames[:, 0]), self._unpacker.frames, numbers, times.copy())
            if not stable and buffer.state(visit) != COMPLETE:
                return OVERWRITTEN
            room, damaged = self._unpack(self._unpacker, block)
            self.unpacking.stage_ns += time.perf_counter_ns() - before
            self.unpacking.frames += len(numbers)
            if damaged is not None:
                if damaged.all() and visits > 1:
                    return self._batch(buffer, visit, 1)
                self.damaged += int(np.count_nonzero(damaged if failed is None else damaged & ~failed))
                if damaged.all():
                    return NOT_WRITTEN
                failed = damaged
        batch = Batch(buffer, visit, visits, block, room=room)
        if failed is not None:
            batch.failed = rule.index(numbers[failed].astype(np.int64))
            batch.block = block.part(~failed)
        self._turn += visits if len(self._buffers) == 1 else 1
        self._held.append(batch)
        return batch

    def _unpack(self, unpacker: Unpacker, block: PackedBlock) -> tuple[Array | None, NDArray[np.bool_] | None]:
        """Unpack the frames of a block where their pixels are read; return their memory, and which are damaged.

        Those that never came are among these. Where no node reads the pixels most are only looked at for missing parts.
        """
        packed = block.packed
        if not self.flow.unpacks:
            damaged = unpacker.damaged(packed, self._gdt.packed)
            return None, damaged if damaged.any() else None
        frames, damaged = unpacker.unpack(packed)
        shown = frames.view()
        shown.flags.writeable = False
        block.frames = shown
        return frames, damaged if damaged.any() else None

    def took(self, batch: Batch, elapsed_ns: int) -> None:
        """Note for how long, in seconds, a batch was worked on: the next may be larger, or has to be smaller."""
        if self._gdt.waits:
            return
        cost = max(1.0, elapsed_ns / batch.visits)
        self._visit_ns = min(cost, DRIFT * self._visit_ns) if self._visit_ns else cost  # without the time of others
        self._most = max(1, min(int(EXPOSED_NS / self._visit_ns), self._largest))

    def intact(self, batch: Batch) -> bool:
        """Return whether nothing was overwritten while the data were used (the second check).

        The first visit of the batch would be the first to be overwritten.
        """
        if batch.block.stable:
            return True
        self._port.sync()
        return batch.buffer.state(batch.visit) == COMPLETE

    def ends(self, batch: Batch) -> NDArray[np.uint64]:
        """Return the detector's times of the last frame of each group of a batch, (groups,) ns."""
        times, blocks = batch.block.times, self._rule.blocks
        return times[-1:] if batch.visits == 1 else times[blocks - 1 :: blocks]

    def release(self, batch: Batch, intact: bool) -> None:
        """Count a batch and give its memory back, once all before it were released."""
        if intact:
            self.count.received += len(batch.block.numbers)
            if batch.failed is not None:
                add_rows(self.count.incomplete, batch.failed)
        else:
            self._count_absent(self.count.lost, batch.buffer, batch.visit, batch.visits)
        batch.released = True
        while self._held and self._held[0].released:
            first = self._held.popleft()
            if first.room is not None and self._unpacker is not None:
                self._unpacker.give_back(first.room)
            self._give_back(first.buffer, first.visit + first.visits)

    def _give_back(self, buffer: ReceiverBuffer, visits: int) -> None:
        buffer.released = visits
        if buffer.released - buffer.credited >= self._credit_every:
            self._send_credits(buffer)

    def _send_credits(self, buffer: ReceiverBuffer) -> None:
        for rank, word in self.flow.credits:
            self._port.store(rank, word + buffer.index, buffer.base + buffer.released)
        buffer.credited = buffer.released

    def rest(self) -> None:
        """Send the credits that were held back to send fewer of them: there is nothing else to do."""
        for buffer in self._buffers:
            if buffer.credited < buffer.released:
                self._send_credits(buffer)

    @property
    def done(self) -> int:
        """Number of the flow's frames that were read here, or are lost, before the first that may still be read."""
        return sum(buffer.released for buffer in self._buffers) * self._rule.blocks

    def counted(self) -> FlowCount:
        """Return the account of the flow, with what is done so far."""
        self.count.done = {buffer.index: buffer.released for buffer in self._buffers}
        return self.count

    def absent_numbers(self) -> NDArray[np.uint64]:
        """Return the numbers of the frames that are lost or missing, as far as is known, in order."""
        rule, selected = self._rule, self._selected
        visits = [rule.numbers(*visits) for visits in (*self.count.lost, *self.count.missing)]
        rows = [np.arange(first, last + 1, dtype=np.uint64) for first, last in self.count.incomplete]
        numbers = np.concatenate([*visits, *(r * np.uint64(rule.step) + np.uint64(rule.start) for r in rows),
                                  np.empty(0, np.uint64)])  # fmt: skip
        end = 2**64 - 1 if selected is None else rule.frame(selected)
        return np.sort(numbers[numbers < np.uint64(end)])

    @staticmethod
    def _count_absent(into: list[tuple[int, int, int]], buffer: ReceiverBuffer, visit: int, visits: int) -> None:
        if into and into[-1][0] == buffer.index and into[-1][1] + into[-1][2] == visit:
            into[-1] = (buffer.index, into[-1][1], into[-1][2] + visits)
        else:
            into.append((buffer.index, visit, visits))

    def end_status(self, acquisition: int) -> str:
        """Return the modules' end records of an acquisition, merged; to be asked before the next one starts.

        A lower mark means that a module never wrote one.
        """
        marks = self._port.read(self.flow.ends, self._modules * END_WORDS).reshape(self._modules, END_WORDS)[:, 0]
        if int(marks.min()) < end_mark(acquisition, END_OK):
            return "incomplete"
        return "full" if int(marks.max()) == end_mark(acquisition, END_FULL) else "ok"
