"""One flow as one receiver sees it: which groups are complete, in the order of the groups, without copies.

The receiver polls the generation words in its own memory (`LocalBuffer`). Group events decide when it is *told*;
consecutive groups that it was told of make one batch.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lima2cli.program.records import END_FULL, END_OK, END_WORDS, ReceiverFlow, end_mark
from lima2cli.runtime.incomplete import add_rows, without
from lima2cli.runtime.local_buffer import COMPLETE, NOT_WRITTEN, OVERWRITTEN, LocalBuffer
from lima2cli.runtime.messages import FlowCount
from lima2cli.spec import Block
from lima2cli.transport.base import Port

BATCH_BYTES = 4 << 20
"""A batch is about so large at most: enough to make Python's cost small, few enough to give memory back early. Where
several threads work on it, it may have a group for each."""

EXPOSED_NS = 2_000_000
"""Of flows that do not wait a batch has so many groups as are done in about this time: until then they lie where they
may be overwritten."""


@dataclass(slots=True)
class Batch:
    """Consecutive complete visits of one local buffer, as one block of frames.

    failed  indices, among the selected frames, of those that the block lacks: a module failed to give its part
    """

    buffer: LocalBuffer
    visit: int
    visits: int
    block: Block
    released: bool = False
    failed: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Absent:
    """Consecutive visits that will not come: lost, or missing. ``lasts`` are the last frames of their groups."""

    lasts: Iterator[int]


class FlowReader:
    """Gives batches in the order of groups until all are processed, lost or missing.

    Batches may be released later and in another order than they came; their memory is given back in order.
    ``single``: a batch is one group.
    """

    def __init__(self, flow: ReceiverFlow, port: Port, *, single: bool = False, threads: int = 1) -> None:
        self.flow, self._port = flow, port
        self._gdt, self._rule, self._modules = flow.gdt, flow.gdt.rule, flow.contributors
        self._buffers = [LocalBuffer(own, flow, port) for own in flow.buffers]
        for buffer in self._buffers:
            buffer.fill(self._gdt.gap_value)
            buffer.frames.flags.writeable = False
        self._epoch = 0 if self._gdt.selected is None else self._rule.epoch(self._gdt.selected)
        self._held: deque[Batch] = deque()
        self.begin(0)
        block_bytes = max(1, self._gdt.source.area * self._gdt.pixel_bytes * self._rule.blocks)
        deep = max(1, self._rule.depth // 4)
        batched = len(self._buffers) == 1 and not single
        self._largest = max(1, min(max(BATCH_BYTES // block_bytes, threads), deep, 1024)) if batched else 1
        self._most = self._largest if self._gdt.waits else 1
        self._credit_every = max(1, self._rule.depth // 8)
        self._nothing = Block(np.empty(0), np.empty(0, np.uint64), np.empty(0, np.uint64))

    def begin(self, acquisition: int) -> None:
        """The first acquisition (0), or the next, once the one before is `free`. Visits begin anew; the words in
        control memory go on."""
        self._selected = self._gdt.selected
        self._turn, self._ended = 0, False
        self.count = FlowCount()
        for buffer in self._buffers:
            buffer.begin(acquisition * self._epoch)
            if acquisition:
                self._send_credits(buffer)

    def limit(self, frames: int) -> None:
        """The acquisition ends before frame ``frames``."""
        self._selected = self._rule.selected(frames)

    def end(self, status: str) -> None:
        """All modules have stopped: nothing more will be written. ``status`` is what `end_status` gave then."""
        self._ended = True
        self.count.status = status
        if self._gdt.end_event:
            self.count.end_events += 1

    @property
    def read(self) -> bool:
        """Whether every visit has come or is known not to come; some may still be held."""
        return self._ended and self._next() is None

    @property
    def free(self) -> bool:
        """Whether all memory of this acquisition has been given back."""
        return self.read and not self._held

    def _next(self) -> tuple[LocalBuffer, int] | None:
        """The local buffer and visit that come next; None if there are no more."""
        visit, turn = divmod(self._turn, len(self._buffers))
        buffer = self._buffers[turn]
        if self._rule.dropped(visit):
            return None
        if self._selected is not None and visit >= self._rule.visits(buffer.index, self._selected):
            return None  # later ones of this receiver come after it in the order of groups
        return buffer, visit

    def poll(self) -> Batch | Absent | None:
        """What comes next, if the receiver has been told of it. Counts what is lost."""
        found = self._next()
        if found is None:
            return None
        buffer, visit = found
        if visit >= buffer.told and not self._look(buffer, visit):
            return None
        most = 1 if self._ended else min(buffer.told - visit, self._most)
        state = COMPLETE if self._gdt.waits and not self._ended else buffer.state(visit)
        visits = self._usable(buffer, visit, most) if state == COMPLETE else 0
        if state == COMPLETE and not visits:
            state = NOT_WRITTEN
        if state == COMPLETE:
            return self._batch(buffer, visit, visits)
        lost = state == OVERWRITTEN
        absent = self._overtaken(buffer, visit) if lost else 1
        self._count_absent(self.count.lost if lost else self.count.missing, buffer, visit, absent)
        self._turn += absent if len(self._buffers) == 1 else 1
        if self._held:
            self._held.append(Batch(buffer, visit, absent, self._nothing, True))
        else:
            self._give_back(buffer, visit + absent)
        return Absent(self._last(buffer, one) for one in range(visit, visit + absent))

    def _last(self, buffer: LocalBuffer, visit: int) -> int:
        """Number of the last frame of a group."""
        rule, group = self._rule, buffer.index + visit * self._rule.buffers
        return rule.frame(group * rule.blocks + rule.blocks_of_group(group, self._selected) - 1)

    def _overtaken(self, buffer: LocalBuffer, visit: int) -> int:
        """How many visits to give up where the writer has overtaken the receiver.

        Those that are half a buffer behind the writer go with those that are gone: the oldest that is left would be
        overwritten while it is read, again and again.
        """
        if len(self._buffers) > 1 or self._ended:
            return 1
        return max(1, buffer.writing(visit) - self._rule.depth // 2 - visit)

    def _look(self, buffer: LocalBuffer, visit: int) -> bool:
        """Move the horizon of what the receiver was told; whether it moved beyond ``visit``."""
        if self._ended:
            self._tell_rest(buffer)
            return True
        period = self._gdt.group_event
        if period == 0:
            return False
        full = None if self._selected is None else self._rule.full_visits(buffer.index, self._selected)
        if period == 1:
            told = visit + buffer.complete(visit, self._most if full is None else min(self._most, full - visit))
        else:
            boundary = (visit // period + 1) * period - 1
            whole = full is None or boundary < full
            told = boundary + 1 if whole and buffer.complete(boundary, 1) else visit
        if told <= visit:
            return False
        self.count.group_events += told // period - buffer.told // period
        buffer.told = told
        if buffer.look_at_fill():
            self.count.peak_fill = max(self.count.peak_fill, buffer.filled / self._rule.depth)
        return True

    def _tell_rest(self, buffer: LocalBuffer) -> None:
        """After the end everything is told; group events that nobody had looked at yet still count."""
        assert self._selected is not None
        period = self._gdt.group_event
        if period:
            full = self._rule.full_visits(buffer.index, self._selected)
            boundary = full // period * period - 1
            while boundary >= buffer.told and not buffer.complete(boundary, 1):
                boundary -= period
            self.count.group_events += max(0, (boundary + 1) // period - buffer.told // period)
        buffer.told = self._rule.visits(buffer.index, self._selected)

    def _usable(self, buffer: LocalBuffer, visit: int, visits: int) -> int:
        """How many complete visits from ``visit`` on have a frame that no module failed to give, each."""
        if buffer.failures is None:
            return visits
        visits = min(visits, buffer.positions - self._rule.position(visit))
        last = self._rule.blocks_of_group(buffer.index + (visit + visits - 1) * self._rule.buffers, self._selected)
        self._port.sync()
        return buffer.failures.usable(self._rule.position(visit), visits, last)

    def _batch(self, buffer: LocalBuffer, visit: int, visits: int) -> Batch:
        rule = self._rule
        visits = min(visits, buffer.positions - rule.position(visit))
        last_group = buffer.index + (visit + visits - 1) * rule.buffers
        blocks = (visits - 1) * rule.blocks + rule.blocks_of_group(last_group, self._selected)
        first = rule.position(visit) * rule.blocks
        self._port.sync()
        times = buffer.times[first : first + blocks]
        numbers = rule.numbers(buffer.index, visit, visits)[:blocks]
        stable = self._gdt.waits or self._rule.bounded or self._ended
        block = Block(buffer.frames[first : first + blocks], numbers, times if stable else times.copy(), stable)
        batch = Batch(buffer, visit, visits, block)
        self._leave_out_failed(batch, rule.position(visit), blocks)
        self._turn += visits if len(self._buffers) == 1 else 1
        self._held.append(batch)
        return batch

    def _leave_out_failed(self, batch: Batch, position: int, blocks: int) -> None:
        """Keep the frames of a batch that are whole."""
        failures = batch.buffer.failures
        failed = None if failures is None else failures.of(position, batch.visits, blocks)
        if failed is not None:
            numbers = batch.block.numbers[failed].astype(np.int64)
            batch.failed = (numbers - self._rule.start) // self._rule.step
            batch.block = without(batch.block, failed)

    def took(self, batch: Batch, elapsed_ns: int) -> None:
        """For how long a batch was worked on: the next may be larger, or has to be smaller."""
        if self._gdt.waits:
            return
        if elapsed_ns > EXPOSED_NS:
            self._most = max(1, batch.visits // 2)
        elif batch.visits == self._most and elapsed_ns < EXPOSED_NS // 2:
            self._most = min(2 * self._most, self._largest)

    def intact(self, batch: Batch) -> bool:
        """The second check, after the data were used: nothing was overwritten meanwhile, of which the first visit would
        have been the first."""
        if batch.block.stable:
            return True
        self._port.sync()
        return batch.buffer.state(batch.visit) == COMPLETE

    def ends(self, batch: Batch) -> NDArray[np.uint64]:
        """The detector's times of the last frame of each group of a batch, (groups,) ns."""
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
            self._give_back(first.buffer, first.visit + first.visits)

    def _give_back(self, buffer: LocalBuffer, visits: int) -> None:
        buffer.released = visits
        if buffer.released - buffer.credited >= self._credit_every:
            self._send_credits(buffer)

    def _send_credits(self, buffer: LocalBuffer) -> None:
        for rank, word in self.flow.credits:
            self._port.store(rank, word + buffer.index, buffer.base + buffer.released)
        buffer.credited = buffer.released

    def rest(self) -> None:
        """Nothing to do: send the credits that were held back to send fewer of them."""
        for buffer in self._buffers:
            if buffer.credited < buffer.released:
                self._send_credits(buffer)

    def absent_numbers(self) -> NDArray[np.uint64]:
        """Numbers of the frames that are lost or missing, as far as is known, in order."""
        rule, selected = self._rule, self._selected
        visits = [rule.numbers(*visits) for visits in (*self.count.lost, *self.count.missing)]
        rows = [np.arange(first, last + 1, dtype=np.uint64) for first, last in self.count.incomplete]
        numbers = np.concatenate([*visits, *(r * np.uint64(rule.step) + np.uint64(rule.start) for r in rows),
                                  np.empty(0, np.uint64)])  # fmt: skip
        end = 2**64 - 1 if selected is None else rule.frame(selected)
        return np.sort(numbers[numbers < np.uint64(end)])

    @staticmethod
    def _count_absent(into: list[tuple[int, int, int]], buffer: LocalBuffer, visit: int, visits: int) -> None:
        if into and into[-1][0] == buffer.index and into[-1][1] + into[-1][2] == visit:
            into[-1] = (buffer.index, into[-1][1], into[-1][2] + visits)
        else:
            into.append((buffer.index, visit, visits))

    def end_status(self, acquisition: int) -> str:
        """The modules' end records of an acquisition, merged; to be asked before the next one starts. A lower mark
        means that a module never wrote one."""
        marks = self._port.read(self.flow.ends, self._modules * END_WORDS).reshape(self._modules, END_WORDS)[:, 0]
        if int(marks.min()) < end_mark(acquisition, END_OK):
            return "incomplete"
        return "full" if int(marks.max()) == end_mark(acquisition, END_FULL) else "ok"
