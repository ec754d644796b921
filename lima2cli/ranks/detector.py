"""A detector rank: its modules push their parts of frames into the receivers' memory."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lima2cli import messages
from lima2cli.detectors.base import AcqParams, Detector, Foresees, Informs, SendsPacked, State, Wakes, Warns
from lima2cli.detectors.lifecycle import ENDLESS
from lima2cli.foreign import CALL_S, IMPORT_S, WATCH, call_foreign, is_foreign
from lima2cli.frames import Array
from lima2cli.geometry import Rect, Rule
from lima2cli.messages import Failure, SourceReport, Start, usage
from lima2cli.nodes.user_function import words
from lima2cli.packed import HEAD_BYTES, head_of
from lima2cli.program import END_FULL, END_OK, DetectorProgram, Route, SourceFlow, Target, end_mark
from lima2cli.transport.base import Port, PutChannel
from lima2cli.units import seconds_text

GROUPS_PER_STEP = 8
"""Groups served before the mail is looked at again."""

JOINED_BYTES = 1 << 20
"""Bytes of each local buffer up to which groups that are there are written together, and share flushes and words."""

MESSAGES_S = 2e-3
"""Seconds between looks at the mail, while a detector says when there are frames."""

SHORTEST_S, LONGEST_S = 20e-6, 500e-6
"""Shortest and longest rest, in seconds, of a rank whose detector foresees when there are frames."""

WAITING_PERIOD_NS = 500_000_000

T = TypeVar("T")


def call_detector(detector: Detector, function: Callable[[], T], least_s: float = CALL_S) -> T:
    """Return what a function of a detector does; of one that a package brings, in time.

    Raises: the errors of ``function``, and `ExitError`; see `call_foreign`.
    """
    if not is_foreign(type(detector)):
        return call_foreign(function)

    def watched() -> T:
        with WATCH.during("detector", least_s):
            return function()

    return call_foreign(watched)


def reason_of(detector: Detector, error: Exception) -> str:
    """Return why a detector failed, in a line; of one that a package brings with its file and line."""
    return words(error) if is_foreign(type(detector)) else str(error) or type(error).__name__


class _Cursor:
    """The next group of one flow. ``last`` is its last frame, None when all are served.

    ``most`` groups of each local buffer may be written together: 1 where they differ in more than their places.
    ``failed`` are the groups, as (rank, first word) of their failure words, in which frames are marked as failed now.
    """

    def __init__(self, flow: SourceFlow, modules: Sequence[Rect], port: Port) -> None:
        gdt = flow.gdt
        self.flow, self.gdt, self.rule = flow, gdt, gdt.rule
        self.released = [0] * len(flow.targets)
        self.failed: set[tuple[int, int]] = set()
        self.base = 0
        self.begin()
        width, layout = gdt.pixel_bytes, gdt.layout
        sizes = [(1, layout.pitch) if gdt.packed else (r.cut.height, r.cut.width * width) for r in flow.routes]
        self.cuts = [None if _whole(r.cut, modules[r.module]) else r.cut.within(Rect(0, 0, 0, 0)) for r in flow.routes]
        self.channels: list[list[PutChannel]] = [
            [port.put_channel(t.region, *size, layout.pitch, layout.stride) for size in sizes] for t in flow.targets
        ]
        self.headers = [
            port.put_channel(t.region, 1, 16, 16, layout.stride) if gdt.header else None for t in flow.targets
        ]

        self.most = self._most()

    def _most(self) -> int:
        gdt, rule = self.gdt, self.rule
        if gdt.packed or gdt.header or rule.bounded or rule.overwrite:
            return 1
        depth = rule.depth if gdt.waits else rule.depth // 4  # what does not wait destroys as much at once
        return min(depth, JOINED_BYTES // (rule.blocks * rule.stride))

    def follow(self, frames: int) -> None:
        """Begin the acquisition after one of ``frames`` frames: visits, as the words count them, go on."""
        self.base += self.rule.epoch(self.rule.selected(frames) or 0)
        self.begin()

    def begin(self) -> None:
        """Reset groups and counts."""
        self.group, self.blocks, self.last, self.numbers = 0, 0, -1, range(0)
        self.written = [0] * len(self.flow.targets)
        self.dropped, self.waited_ns, self.waiting_since = 0, 0, 0
        self.broken = False

    def seek(self, frames: int | None) -> None:
        """Point to the group that is next when ``frames`` are acquired in all."""
        rule = self.rule
        self.blocks = rule.blocks_of_group(self.group, rule.selected(frames))
        if not self.blocks:
            self.last = -1
            return
        first = rule.frame(self.group * rule.blocks)
        self.last = first + (self.blocks - 1) * rule.step
        self.numbers = range(first, self.last + 1, rule.step)


def _runs(rule: Rule, group: int, groups: int) -> list[range]:
    """Return the numbers of the frames of a group and of those that follow it in its local buffer, in few ranges."""
    frames, apart = rule.blocks * rule.step, rule.blocks * rule.buffers * rule.step
    first = rule.frame(group * rule.blocks)
    if rule.buffers == 1:
        return [range(first, first + groups * frames, rule.step)]
    if rule.blocks == 1:
        return [range(first, first + groups * apart, apart)]
    return [range(start, start + frames, rule.step) for start in range(first, first + groups * apart, apart)]


def _whole(cut: Rect, module: Rect) -> bool:
    return (cut.width, cut.height) == (module.width, module.height)


class DetectorRank:
    """The state machine of a `DetectorProgram`; `step` does a little and returns whether there was anything to do."""

    def __init__(self, program: DetectorProgram, port: Port, detector: Detector) -> None:
        self.done = False
        self._program, self._port, self._detector = program, port, detector
        self._acquisition = program.acquisition
        self._frames = self._acquisition.frames
        self._cursors = [_Cursor(flow, program.info.modules, port) for flow in program.flows]
        self._acquired, self._next = 0, 0
        self._running = self._paused = self._reported = self._failed = False
        self._number = self._put_ns = self._flush_ns = self._told_ns = self._first_ns = self._last_ns = 0
        self._behind, self._cpu_s = 0, 0.0
        self._warned: set[str] = set()
        self._informed = True
        self._wakes = detector if isinstance(detector, Wakes) else None
        self._foresees = detector if isinstance(detector, Foresees) else None

    def prepare(self) -> None:
        """Get the detector ready and report so, or that it failed."""
        self._informed = not isinstance(self._detector, Informs)
        if self._do(lambda: self._detector.prepare(self._acquisition, self._program.transfer)):
            self._warn()
            self._port.send(0, (messages.READY, None))

    def step(self) -> bool:
        """Serve a few groups, or obey one message; return whether there was anything to do."""
        if (mail := self._port.receive()) is not None:
            self._obey(*mail[1])
            return True
        if not self._informed:
            self._inform()
        if not self._running or self._paused:
            return False
        try:
            return call_detector(self._detector, self._serve_some)
        except Exception as error:  # noqa: BLE001  a detector may fail in any way; the others must know
            due = [(cursor.last, cursor.numbers[0]) for cursor in self._cursors if cursor.last >= 0]
            self._fail(error, min(due)[1] if due else None)
            return True

    def rest(self, seconds: float) -> None:
        """Rest for so long; where only frames are waited for, and the detector knows when they come, until then."""
        acquiring = self._running and not self._paused and not any(one.waiting_since for one in self._cursors)
        if acquiring and (wakes := self._wakes) is not None:
            self._do(lambda: wakes.wait(MESSAGES_S))
        else:
            time.sleep(self._left_s(seconds) if acquiring and self._foresees is not None else seconds)

    def _left_s(self, seconds: float) -> float:
        """Return how long to rest until the next group is there, as the detector foresees it; else ``seconds``."""
        last = min((cursor.last for cursor in self._cursors if cursor.last >= 0), default=-1)
        foresees, due_ns = self._foresees, list[int | None]()
        if last < 0 or foresees is None or not self._do(lambda: due_ns.append(foresees.due_ns(last))):
            return seconds
        left = None if due_ns[0] is None else (due_ns[0] - time.time_ns()) * 1e-9
        return seconds if left is None else min(max(left, SHORTEST_S), LONGEST_S)

    def _serve_some(self) -> bool:
        served = 0
        while served < GROUPS_PER_STEP and self._serve():
            served += 1
        return served > 0

    def _do(self, operation: Callable[[], None]) -> bool:
        """Return whether an operation of the detector succeeded; report a failure to the control rank."""
        try:
            call_detector(self._detector, operation, IMPORT_S)
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return False
        return True

    def _fail(self, error: Exception, frame: int | None = None) -> None:
        self._failed = self._paused = True
        modules = ", ".join(map(str, self._program.modules))
        message = f"detector, modules {modules}: {reason_of(self._detector, error)}"
        self._port.send(0, (messages.FAILED, Failure(self._program.rank, message, frame=frame, detail=repr(error))))

    def _obey(self, kind: str, what: object) -> None:
        if kind == messages.START:
            assert isinstance(what, Start)
            self._start(what)
        elif kind == messages.PREPARE:
            assert isinstance(what, AcqParams)
            self._acquisition = what
            again, self._running = self._running, False
            if self._do(self._detector.stop if again else self._detector.reset):
                self.prepare()
        elif kind == messages.TRIGGER:
            assert isinstance(what, int)
            for _ in range(what):
                self._do(self._detector.trigger)
        elif kind == messages.PAUSE:
            self._paused = True
            if not self._failed:
                self._do(self._detector.stop)
            self._port.send(0, (messages.NEXT, self._next))
        elif kind == messages.LIMIT:
            assert isinstance(what, tuple)
            self._limit(*what)
        elif kind == messages.QUIT:
            self._do(self._detector.reset)  # a failure now changes nothing for the frames, and is not reported
            self.done = True

    def _start(self, start: Start) -> None:
        if start.number:
            assert self._frames is not None
            for cursor in self._cursors:
                cursor.follow(self._frames)
        self._number, self._frames = start.number, self._acquisition.frames
        self._acquired = self._next = self._behind = 0
        self._put_ns = self._flush_ns = self._first_ns = self._last_ns = 0
        self._cpu_s = usage().cpu_s
        self._paused = self._reported = False
        for cursor in self._cursors:
            cursor.seek(self._frames)
        self._running = self._do(lambda: self._detector.start(start.start_ns))

    def _limit(self, frames: int, broken: frozenset[int]) -> None:
        self._frames = self._acquired = frames
        if self._reported:
            return
        if self._failed:
            self._finish()  # what it has not written is missing, and the receivers will see that
            return
        self._paused = False
        for cursor in self._cursors:
            cursor.seek(frames)
            cursor.broken = not broken.isdisjoint(part.module for part in cursor.gdt.parts)

    def _serve(self) -> bool:
        if self._reported:
            return False
        cursor = None
        for one in self._cursors:
            if one.last >= 0 and (cursor is None or one.last < cursor.last):
                cursor = one
        if cursor is None:
            return self._finish()
        if cursor.last >= self._acquired:
            self._acquired = max(self._acquired, self._detector.nb_acq_frames())
            if cursor.last >= self._acquired:
                return False
            self._behind = max(self._behind, self._acquired - 1 - cursor.last)  # due since the last check
        if (groups := self._joined(cursor)) > 1:
            self._send_joined(cursor, groups)
            cursor.group += groups * cursor.rule.buffers
            cursor.last = cursor.rule.frame(cursor.group * cursor.rule.blocks - 1)
        elif self._send_group(cursor):
            cursor.group += 1
        else:
            if cursor.broken:  # a module that failed keeps this place from ever being released
                cursor.last = -1
            return False
        self._next = max(self._next, cursor.last + 1)
        cursor.seek(self._frames)
        return True

    def _joined(self, cursor: _Cursor) -> int:
        """Return how many groups of each local buffer can be written together now; below 2 none can.

        Their frames are there, their places follow each other, and have been released: nothing waits for them. So a
        flow may be ahead of others, but the rank waits for memory only where all groups that end before are written,
        as if it wrote them frame by frame: joins find at least what `plan.join_depth` has counted on.
        """
        if cursor.most < 2:
            return 1
        rule = cursor.rule
        index, visit = rule.turn(cursor.group)
        if index:
            return 1
        there = self._acquired if self._frames is None else min(self._acquired, self._frames)
        rounds = ((rule.selected(there) or 0) // rule.blocks - cursor.group) // rule.buffers
        groups = min(cursor.most, rounds, rule.groups_per_buffer - rule.position(visit))
        if groups > 1 and cursor.gdt.waits:
            free = rule.depth - cursor.base - visit
            for place, released in enumerate(cursor.released):
                if released + free < groups:
                    cursor.released[place] = int(self._port.read(cursor.flow.credits + place, 1)[0])
            groups = min(groups, min(cursor.released) + free)
            if groups > 1:
                self._end_wait(cursor)
        return groups

    def _send_joined(self, cursor: _Cursor, groups: int) -> None:
        """Write so many groups of each local buffer to their places, which follow each other."""
        rule, flow, port = cursor.rule, cursor.flow, self._port
        visit = cursor.group // rule.buffers
        position, offset = rule.position(visit), rule.group_offset(visit)
        marks = 2 * np.arange(cursor.base + visit, cursor.base + visit + groups, dtype=np.uint64)
        for index, target in enumerate(flow.targets):
            runs = _runs(rule, cursor.group + index, groups)
            for route, channel, cut in zip(flow.routes, cursor.channels[index], cursor.cuts, strict=True):
                words = target.generations + position * flow.contributors + route.contributor
                port.store_words(target.rank, words, marks + np.uint64(1), flow.contributors)
                before = time.perf_counter_ns()
                place = 0
                for numbers in runs:
                    if place:
                        channel.flush()  # the detector may use the memory of the frames before for these
                    start = target.offset + offset + route.offset_in_slot + place * rule.stride
                    self._put(cursor, route.module, channel, cut, start, numbers)
                    if route.contributor == 0:
                        self._put_times(target, position * rule.blocks + place, numbers)
                    self._put_failures(cursor, route, target, position + place // rule.blocks, numbers)
                    place += len(numbers)
                flushing = time.perf_counter_ns()
                channel.flush()
                flushed = time.perf_counter_ns()
                self._put_ns += flushed - before
                self._flush_ns += flushed - flushing
                port.store_words(target.rank, words, marks + np.uint64(2), flow.contributors)
            cursor.written[index] += groups * rule.blocks

    def _send_group(self, cursor: _Cursor) -> bool:
        """Write one group to its place; return False where memory isn't released yet."""
        rule, flow, port = cursor.rule, cursor.flow, self._port
        index, visit = rule.turn(cursor.group)
        if rule.dropped(visit):
            cursor.dropped += cursor.blocks
            return True
        if cursor.gdt.waits and not self._credit(cursor, index, cursor.base + visit):
            return False
        target, position = flow.targets[index], rule.position(visit)
        base = target.offset + rule.group_offset(visit)
        for route, channel, cut in zip(flow.routes, cursor.channels[index], cursor.cuts, strict=True):
            word = target.generations + position * flow.contributors + route.contributor
            port.store(target.rank, word, 2 * (cursor.base + visit) + 1)
            before = time.perf_counter_ns()
            heads: Sequence[Array] = ()  # of packed frames, which must stay until they are written
            if cursor.gdt.packed:
                heads = self._put_packed(cursor, route.module, channel, base + route.offset_in_slot)
            else:
                self._put(cursor, route.module, channel, cut, base + route.offset_in_slot, cursor.numbers)
            if route.contributor == 0:
                times = self._put_times(target, position * rule.blocks, cursor.numbers)
                self._put_headers(cursor, index, base, times)
            self._put_failures(cursor, route, target, position, cursor.numbers)
            flushing = time.perf_counter_ns()
            channel.flush()
            del heads
            flushed = time.perf_counter_ns()
            self._put_ns += flushed - before
            self._flush_ns += flushed - flushing
            port.store(target.rank, word, 2 * (cursor.base + visit) + 2)
        cursor.written[index] += cursor.blocks
        return True

    def _put(
        self,
        cursor: _Cursor,
        module: int,
        channel: PutChannel,
        cut: tuple[slice, slice] | None,
        offset: int,
        numbers: range,
    ) -> None:
        """Write frames from ``offset`` on, to be flushed by the caller."""
        dataset, sent = cursor.gdt.dataset, 0
        while True:
            frames: Array = self._detector.get_frames(dataset, module, numbers[sent:])
            channel.put(frames if cut is None else frames[:, cut[0], cut[1]], offset + sent * cursor.gdt.layout.stride)
            sent += len(frames)
            if sent >= len(numbers):
                return
            channel.flush()  # the detector may use the memory of these frames for the next

    def _put_packed(self, cursor: _Cursor, module: int, channel: PutChannel, offset: int) -> Sequence[Array]:
        """Write the frames of a group as they come; return what must stay until the channel is flushed."""
        assert isinstance(self._detector, SendsPacked)
        layout, heads = cursor.gdt.layout, []
        for compression, data in self._detector.packed(cursor.gdt.dataset, module, cursor.numbers):
            if len(data) > layout.pitch - HEAD_BYTES:
                raise ValueError(f"a compressed frame of {len(data)} bytes for a slot of {layout.pitch}")
            heads.append(head_of(compression, data))
            channel.put_bytes(heads[-1], offset)
            if data:
                channel.put_bytes(data, offset + HEAD_BYTES)
            offset += layout.stride
        return heads

    def _put_failures(self, cursor: _Cursor, route: Route, target: Target, position: int, numbers: range) -> None:
        """Write which frames of a group, and of those at the places behind it, the module has failed to give.

        Words of groups without such frames, which were 0 before, are left as they are.
        """
        if target.failures is None:
            return
        missing = self._detector.missing(cursor.gdt.dataset, route.module, numbers)
        if missing is None and not cursor.failed:
            return
        blocks = cursor.rule.blocks
        for start in range(0, len(numbers), blocks):
            words = np.zeros(blocks, np.uint64)
            if missing is not None:
                part = missing[start : start + blocks]
                words[: len(part)] = part
            place = (position + start // blocks) * cursor.flow.contributors + route.contributor
            group = (target.rank, target.failures + place * blocks)
            if words.any():
                cursor.failed.add(group)
            elif group in cursor.failed:
                cursor.failed.discard(group)
            else:
                continue
            self._port.put_words(*group, words)

    def _put_times(self, target: Target, block: int, numbers: range) -> NDArray[np.uint64]:
        """Write the detector's times of frames, from that of a block of a local buffer on; return them."""
        times = self._detector.times(numbers)
        self._first_ns, self._last_ns = self._first_ns or int(times[0]), max(self._last_ns, int(times[-1]))
        self._port.put_words(target.rank, target.times + block, times)
        return times

    def _put_headers(self, cursor: _Cursor, index: int, base: int, times: NDArray[np.uint64]) -> None:
        """Write the headers of the slots of a group, where they were asked for."""
        header = cursor.headers[index]
        if header is not None:
            fields = np.stack([np.asarray(cursor.numbers, np.uint64), times], axis=1).astype("<u8")
            header.put(fields.view(np.uint8).reshape(len(fields), 1, 16), base)
            header.flush()

    def _credit(self, cursor: _Cursor, index: int, visit: int) -> bool:
        """Return whether the place of a visit has been released; count the time spent waiting for it.

        Visits of all acquisitions count on.
        """
        needed = visit - cursor.rule.depth + 1
        if cursor.released[index] < needed:
            cursor.released[index] = int(self._port.read(cursor.flow.credits + index, 1)[0])
            if cursor.released[index] < needed:
                self._wait(cursor)
                return False
        self._end_wait(cursor)
        return True

    def _end_wait(self, cursor: _Cursor) -> None:
        if cursor.waiting_since:
            cursor.waited_ns += time.perf_counter_ns() - cursor.waiting_since
            cursor.waiting_since = 0

    def _wait(self, cursor: _Cursor) -> None:
        """Note since when it waits, and report it now and then: slow receivers are not a dead detector."""
        now = time.perf_counter_ns()
        if not cursor.waiting_since:
            cursor.waiting_since = now
        if now - max(cursor.waiting_since, self._told_ns) > WAITING_PERIOD_NS:
            self._told_ns = now
            self._port.send(0, (messages.WAITING, None))

    def _inform(self) -> None:
        """Pass on the facts of the acquisition, once they are there."""
        assert isinstance(self._detector, Informs)
        try:
            facts = call_detector(self._detector, self._detector.facts)
        except Exception as error:  # noqa: BLE001  frames can be taken without
            self._informed = True
            text = f"facts of the detector are not saved: {reason_of(self._detector, error)}"
            self._port.send(0, (messages.WARNED, text))
            return
        if facts is not None:
            self._informed = True
            kept, doubts = facts.fitting(self._program.info)
            self._port.send(0, (messages.FACTS, kept))
            for text in doubts:
                self._port.send(0, (messages.WARNED, text))

    def _warn(self) -> None:
        """Pass on warnings of the detector that were not passed on yet."""
        for text in self._detector.warnings() if isinstance(self._detector, Warns) else ():
            if text not in self._warned:
                self._warned.add(text)
                self._port.send(0, (messages.WARNED, text))

    def _finish(self) -> bool:
        self._warn()
        if not self._informed:
            self._inform()
        for cursor in self._cursors:
            self._write_end_records(cursor)
        report = SourceReport(
            self._program.rank,
            {c.gdt.name: c.waited_ns * 1e-9 for c in self._cursors},
            self._next,
            {c.gdt.name: c.dropped for c in self._cursors},
            time.time_ns(),
            self._put_ns * 1e-9,
            usage(),
            self._flush_ns * 1e-9,
            self._behind,
            usage().cpu_s - self._cpu_s,
            self._first_ns,
            self._last_ns,
        )
        self._port.send(0, (messages.DONE, report))
        self._reported = True
        return True

    def _write_end_records(self, cursor: _Cursor) -> None:
        """Write one end record per module and receiver; the mark last."""
        flow = cursor.flow
        for rank, first in flow.ends:
            written = sum(n for n, t in zip(cursor.written, flow.targets, strict=True) if t.rank == rank)
            body = np.array([written, cursor.dropped, self._next], np.uint64)
            status = END_FULL if cursor.dropped else END_OK
            for route in flow.routes:
                word = first + route.contributor * (len(body) + 1)
                self._port.put_words(rank, word + 1, body)
                self._port.store(rank, word, end_mark(self._number, status))


class CompliantRank:
    """The state machine of a `DetectorProgram` that does not serve its flows.

    `step` obeys one message and looks at the clock.
    """

    def __init__(self, program: DetectorProgram, port: Port, detector: Detector) -> None:
        self.done = False
        self._program, self._port, self._detector = program, port, detector
        self._deadline: float | None = None

    def prepare(self) -> None:
        """Set up the data flows and report so, or that it failed."""
        if self._do(lambda: self._detector.prepare(self._program.acquisition, self._program.transfer)):
            self._port.send(0, (messages.READY, None))

    def step(self) -> bool:
        """Obey one message, or note that no frame has come for too long; return whether there was a message."""
        if (mail := self._port.receive()) is not None:
            self._obey(*mail[1])
            return True
        if self._deadline is None or time.monotonic() < self._deadline:
            return False
        self._fail(
            f"no frame for {seconds_text(self._program.timeout_s)}: the data flows were set up and the detector "
            "started, but this version of lima2 does not receive what a RASHPA detector writes"
        )
        return True

    def _do(self, operation: Callable[[], None]) -> bool:
        try:
            call_detector(self._detector, operation, IMPORT_S)
        except Exception as error:  # noqa: BLE001  a detector may fail in any way; the others must know
            self._fail(f"detector: {reason_of(self._detector, error)}", repr(error))
            return False
        return True

    def _fail(self, message: str, detail: str = "") -> None:
        self._deadline = None
        self._port.send(0, (messages.FAILED, Failure(self._program.rank, message, detail=detail)))

    def _obey(self, kind: str, what: object) -> None:
        if kind == messages.START:
            assert isinstance(what, Start)
            start_ns = what.start_ns
            if self._do(lambda: self._detector.start(start_ns)):
                self._deadline = time.monotonic() + self._program.timeout_s
        elif kind == messages.PAUSE:
            self._deadline = None
            self._port.send(0, (messages.NEXT, self._stop()))
        elif kind == messages.LIMIT:
            assert isinstance(what, tuple)
            self._report(what[0])
        elif kind == messages.QUIT:
            self._do(self._detector.reset)  # a failure now changes nothing for the frames, and is not reported
            self.done = True

    def _stop(self) -> int:
        """Stop the detector; return how many frames were due by then, 0 where that has no end."""
        if self._detector.status() is not State.RUNNING:
            return 0  # it never started
        due = self._detector.nb_acq_frames()
        self._do(self._detector.stop)
        return 0 if due >= ENDLESS else due

    def _report(self, served: int) -> None:
        flows = {flow.gdt.name: 0 for flow in self._program.flows}
        waited = dict.fromkeys(flows, 0.0)
        report = SourceReport(self._program.rank, waited, served, flows, 0, 0.0, usage())  # nothing was sent
        self._port.send(0, (messages.DONE, report))
