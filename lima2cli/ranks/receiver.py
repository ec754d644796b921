"""A receiver rank: takes complete groups from its memory, runs the nodes, gives the memory back."""

import os
import socket
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

from lima2cli import messages
from lima2cli.accounting.record import Ledger, Line
from lima2cli.dataclass import dataclass
from lima2cli.errors import EnvironmentUnfit, StateError
from lima2cli.files.appending import load_libraries
from lima2cli.files.nexus import ledger_file
from lima2cli.foreign import lingering
from lima2cli.frames import Files
from lima2cli.graph.executor import Executor
from lima2cli.graph.flow_reader import Absent, Batch, FlowReader
from lima2cli.graph.protocol import Lease
from lima2cli.graph.user_program import start_processing
from lima2cli.messages import (
    Change,
    Counts,
    Ended,
    Failure,
    Measured,
    ReceiverReport,
    Spent,
    Start,
    Stats,
    median_and_p99,
    usage,
)
from lima2cli.program import ReceiverProgram
from lima2cli.transport.base import Port
from lima2cli.units import counted_text

STATS_PERIOD_NS, BEAT_NS = 100_000_000, 500_000_000
"""Nanoseconds from one report to the next, while there is news and without."""

PAUSE_NS = 5_000_000
"""Nanoseconds after which a file may be flushed at any moment of a pause; before, only when the pause begins."""

BUSY_SHARE, IDLE_SHARE = 50, 4
"""Time from one flush of the files to the next, in times of what a flush takes: at full load, and after a trigger."""


@dataclass
class _Order:
    """An acquisition, as far as the control rank has reported it.

    The frame before which it ends, and what the end records of each flow held then.
    """

    start: Start
    frames: int | None = None
    ended: tuple[str, ...] | None = None
    last: bool = False


@dataclass
class _Report:
    """A report to be sent once the files of ``unflushed`` are flushed; ``flush_ns``: what that has taken so far."""

    begun_ns: int
    unflushed: list[str]
    stats: Stats
    line: Line | None
    flush_ns: int = 0


class ReceiverRank:
    """The state machine of a `ReceiverProgram`; `step` gives every flow one turn and returns whether there was work.

    Acquisitions are done one after the other. The next may be arriving while one is still being saved.
    """

    def __init__(self, program: ReceiverProgram, port: Port, files: Files, directory: str) -> None:
        self.done = False
        self._program, self._port, self._files, self._directory = program, port, files, directory
        self._readers = [
            FlowReader(flow, port, single=flow.gdt.place is not None, threads=program.threads) for flow in program.flows
        ]
        self._graph: Executor | None = None
        self._ledger: Ledger | None = None
        self._unwritten = False
        self._orders: deque[_Order] = deque()
        self._overran: set[str] = set()
        self._asked = self._held = False
        self._stats_ns = self._flush_ns = self._busy_ns = 0
        self._news = False
        self._report: _Report | None = None
        self._worked_ns, self._pausing = 0, False
        self._cpu_s = 0.0
        self._threads = lingering().keys()

    @property
    def _order(self) -> _Order | None:
        """The acquisition that is processed."""
        return self._orders[0] if self._orders else None

    def prepare(self) -> None:
        """Read calibrations, make kernels and files, load libraries; report that all is there, or what is not."""
        if self._program.channels or self._program.tables:
            load_libraries()
        if not os.path.isdir(self._directory):
            message = f"{socket.gethostname()} does not see the run directory {self._directory}"
            help = "all hosts of a run must share its file system, under the same path"
            self._port.send(0, (messages.FAILED, Failure(self._program.rank, f"{message}: {help}")))
            return
        try:
            own = start_processing(self._program, self._files, self._directory, self._readers)
        except Exception as error:  # noqa: BLE001  user code may raise anything
            self._port.send(0, (messages.FAILED, Failure(self._program.rank, str(error))))
            return
        try:
            self._graph = Executor(self._program, self._port, self._files, own)
        except EnvironmentUnfit as error:
            self._port.send(0, (messages.FAILED, Failure(self._program.rank, f"{socket.gethostname()}: {error}")))
            return
        self._ready(self._graph, self._directory)
        if not self._report_failures(self._graph):
            self._port.send(0, (messages.READY, None))

    def step(self) -> bool:
        """Do one turn; return whether there was work."""
        if (mail := self._port.receive()) is not None:
            self._obey(*mail[1])
            return True
        worked = False
        if self._graph is not None and self._order is not None:
            before = time.perf_counter_ns()
            worked = self._turn(self._graph, self._order)
            now = time.perf_counter_ns()
            self._busy_ns += now - before if worked else 0
            self._news |= worked
            if self._order is not None:
                worked |= self._report_progress(self._graph, self._order, now, worked)
        if self._asked and self._free():
            self._asked = False
            self._port.send(0, (messages.READY, None))
        return worked

    def _due(self, now: int, worked: bool) -> bool:
        """Return whether it is time to flush and to report: after a trigger as soon as its frames are done."""
        since = now - self._stats_ns
        if not self._news:
            return since > BEAT_NS
        if self._program.triggered and not worked and since > IDLE_SHARE * self._flush_ns:
            return True
        return since > max(STATS_PERIOD_NS, BUSY_SHARE * self._flush_ns)

    def _ready(self, graph: Executor, directory: str) -> None:
        """Announce an acquisition whose files go to ``directory``, and begin its ledger there."""
        graph.ready(directory)
        try:
            self._ledger = Ledger(directory, self._program.name, self._program.receiver)
        except OSError as error:
            self._warn_of_ledger(error)

    def _free(self) -> bool:
        """Return whether another acquisition may be written to the memory.

        Sources that do not wait would destroy what is still to be read.
        """
        return all(reader.flow.gdt.waits for reader in self._readers) or self._order is None

    def _turn(self, graph: Executor, order: _Order) -> bool:
        """Give every flow, and what waits in the graph, one turn; return whether there was work."""
        worked = False
        for reader in self._readers:
            arrived = None if self._held or graph.full(reader.flow.gdt.flow) else reader.poll()
            if isinstance(arrived, Batch):
                before = time.perf_counter_ns()
                self._process(graph, reader, arrived)
                reader.took(arrived, time.perf_counter_ns() - before)
            elif arrived is not None:
                self._skip(graph, reader, arrived)
            else:
                reader.rest()
            worked |= arrived is not None
            if reader.count.lost:
                self._report_overrun(reader)
        worked |= graph.poll()
        for tapped in graph.taps.taken():
            self._port.send(0, (messages.TAPPED, replace(tapped, acquisition=order.start.number)))
        self._report_failures(graph)
        if order.ended is not None and not worked and self._over(graph, order):
            self._finish(graph, order)
        return worked

    def _over(self, graph: Executor, order: _Order) -> bool:
        assert order.frames is not None
        return all(reader.read for reader in self._readers) and graph.drain(order.frames)

    def _obey(self, kind: str, what: object) -> None:
        """Obey one message.

        The end is of the acquisition that started last, which is not always the one that is processed.
        """
        if kind == messages.START:
            assert isinstance(what, Start)
            self._orders.append(_Order(what, what.frames))
            if len(self._orders) == 1:
                self._begin(self._orders[0])
        elif kind == messages.LIMIT:
            assert isinstance(what, int)
            order = self._orders[-1]
            order.frames = what
            self._look_at(order)
            self._port.send(0, (messages.LIMITED, None))
        elif kind == messages.ENDED:
            assert isinstance(what, Ended)
            order = self._orders[-1]
            order.frames, order.last = what.frames, what.last
            order.ended = tuple(reader.end_status(order.start.number) for reader in self._readers)
            self._look_at(order)
        elif kind == messages.PREPARE:
            self._asked = True
        elif kind in (messages.CHANGE, messages.HOLD, messages.SETTLE):
            self._change(kind, what)
        elif kind == messages.TAP:
            assert isinstance(what, str)
            if self._graph is not None:
                self._graph.taps.ask(what)
        elif kind == messages.QUIT:
            self._close_ledger()
            if self._graph is not None:
                self._graph.close()
                self._graph.leave()  # what fails now is of a run that has failed, or was reported
            self.done = True

    def _change(self, kind: str, what: object) -> None:
        """Take part in a change of a parameter, see `ranks.requested`."""
        graph = self._graph
        assert graph is not None
        if isinstance(what, Change):
            wrong: str | None = None
            try:
                graph.prepare_change(what)
            except StateError as error:
                wrong = str(error)
            self._port.send(0, (messages.CHANGED, (what.number, wrong)))
        elif kind == messages.HOLD:
            self._held = True
            self._port.send(0, (messages.CHANGED, (what, 0 if self._order is None else graph.reached)))
        else:
            assert isinstance(what, tuple)
            self._held = False
            graph.changes.settle(what[1])

    def _begin(self, order: _Order) -> None:
        """Begin the next acquisition in turn."""
        assert self._graph is not None
        self._overran.clear()
        self._report = None
        self._busy_ns, self._cpu_s = 0, usage().cpu_s
        if order.start.number:
            for reader in self._readers:
                reader.follow()
            self._ready(self._graph, order.start.directory)
        elif order.start.directory != self._directory:  # it was moved: what was made ahead is made there again
            self._graph.close()
            self._close_ledger()
            self._ready(self._graph, order.start.directory)
        self._graph.begin(order.start.start_ns)
        self._look_at(order)
        self._report_failures(self._graph)

    def _look_at(self, order: _Order) -> None:
        """Apply what is known of the end of an acquisition; of one whose turn has not come, later."""
        if order is not self._order:
            return
        for place, reader in enumerate(self._readers):
            if order.frames is not None:
                reader.limit(order.frames)
            if order.ended is not None:
                reader.end(order.ended[place])

    def _process(self, graph: Executor, reader: FlowReader, batch: Batch) -> None:
        """Run nodes first, then the second check, then what lasts; the memory is given back whatever happens.

        Where losses are allowed (`overrun: continue`) a checked copy is processed: the memory is given back at once,
        and a receiver that is always too slow still saves what it can instead of losing each frame while it reads it.
        So it is where nodes wait, keep a state or are the user's: they never see data that may be torn. And so it is
        while a change is due, since a batch that is cut there is lost as a whole, or not at all.
        """
        flow, block, now = reader.flow.gdt.flow, batch.block, time.time_ns()
        if block.stable:
            hold = Lease(lambda: reader.release(batch, True))
            for part in graph.parts(flow, block):
                graph.commit(graph.stage(flow, part, now, hold), int(part.numbers[0]))
            graph.timings.note(reader.flow.gdt.name, block.numbers, reader.ends(batch))
            hold.done()
        elif reader.flow.gdt.overrun == "continue" or graph.needs_stable or graph.changes.due:
            block = block.copy()
            intact = reader.intact(batch)
            reader.release(batch, intact)
            if intact:
                for part in graph.parts(flow, block):
                    graph.commit(graph.stage(flow, part, now), int(part.numbers[0]))
                graph.timings.note(reader.flow.gdt.name, block.numbers, reader.ends(batch))
            else:
                graph.absent(flow, int(block.numbers[-1]))
        else:
            staged = graph.stage(flow, block, now)
            intact = reader.intact(batch)
            if intact:
                graph.commit(staged, int(block.numbers[0]))
                graph.timings.note(reader.flow.gdt.name, block.numbers, reader.ends(batch))
            reader.release(batch, intact)

    def _skip(self, graph: Executor, reader: FlowReader, absent: Absent) -> None:
        """Report to what waits that these will not come."""
        if graph.needs_stable:
            for last in absent.lasts:
                graph.absent(reader.flow.gdt.flow, last)

    def _report_overrun(self, reader: FlowReader) -> None:
        gdt = reader.flow.gdt
        if gdt.overrun == "stop" and gdt.name not in self._overran:
            self._overran.add(gdt.name)
            buffer, visit, _ = reader.count.lost[0]
            frame = int(gdt.rule.numbers(buffer, visit, 1)[0])
            self._port.send(0, (messages.OVERRUN, (self._number, gdt.name, frame)))

    @property
    def _number(self) -> int | None:
        return None if self._order is None else self._order.start.number

    def _report_failures(self, graph: Executor) -> bool:
        """Report failures, and warnings, too; return whether there were any failures."""
        for text in graph.counts.warnings():
            self._port.send(0, (messages.WARNED, text))
        for rank in graph.counts.silent():
            self._port.send(0, (messages.SILENT, rank))
        failures = graph.failures()
        for failed in failures:
            detail = "; ".join(getattr(failed, "__notes__", []))
            failure = Failure(self._program.rank, str(failed), failed.node, failed.frame, detail, self._number)
            self._port.send(0, (messages.FAILED, failure))
        return bool(failures)

    def _report_damaged(self) -> None:
        """Report frames that came compressed, and could not be unpacked: they are missing."""
        for reader in self._readers:
            if reader.damaged:
                text = f"{counted_text(reader.damaged, 'frame')} of {reader.flow.gdt.flow} could not be decompressed"
                self._port.send(0, (messages.WARNED, text))
            reader.damaged = 0

    def _report_threads(self) -> None:
        """Report threads that users' code has left: the process does not wait for them."""
        functions = [(step.name, step.node.calls or "") for step in self._program.steps]
        for name, place in lingering().items():
            if name in self._threads:  # of the program that has called lima2
                continue
            file = place.partition(":")[0]
            nodes = [node for node, function in functions if Path(function.rpartition(":")[0]).name == file]
            whose = f"{', '.join(nodes)}: " if nodes else ""
            self._port.send(
                0, (messages.WARNED, f"{whose}thread {name} did not end with the run (at {place}), and is ended")
            )

    def _report_progress(self, graph: Executor, order: _Order, now: int, worked: bool) -> bool:
        """Flush what was committed and then report it, where that is due; return whether something was flushed.

        A file in each pause between frames, when it begins, so that none waits for all of them; all at once where there
        are no pauses, and behind a trigger.
        """
        begins, self._pausing = not (worked or self._pausing), not worked
        if worked:
            self._worked_ns = now
        elif not begins and now - self._worked_ns < PAUSE_NS and not self._program.triggered:
            return False
        if self._report is None:
            if not self._due(now, worked):
                return False
            unflushed = graph.saving
            while self._program.triggered and unflushed:  # whoever has fired waits for all of it
                graph.flush(unflushed.pop())
            self._report, self._news = self._begun_report(graph, order, now, unflushed), False
        report = self._report
        if worked and now - report.begun_ns < STATS_PERIOD_NS:
            return False
        while report.unflushed:
            graph.flush(report.unflushed.pop())
            if not worked:
                break
        self._report_failures(graph)
        if not report.unflushed:
            self._write(report.line)
            self._port.send(0, (messages.STATS, replace(report.stats, saved=graph.counts.saved)))  # as of the flushes
            self._report = None
        self._stats_ns = time.perf_counter_ns()
        report.flush_ns += self._stats_ns - now
        self._flush_ns = report.flush_ns
        return True

    def _begun_report(self, graph: Executor, order: _Order, now: int, unflushed: list[str]) -> _Report:
        """Return what there is to report now, once the files of ``unflushed`` are flushed."""
        flows = {}
        for reader in self._readers:
            lost = sum(visits for _, _, visits in reader.count.lost) * reader.flow.gdt.rule.blocks
            flows[reader.flow.gdt.name] = (reader.count.received, lost, reader.fill)
        used, timings = usage(), graph.timings
        stats = Stats(
            acquisition=order.start.number, flows=flows, saved=graph.counts.saved, done=self._done(),
            undecided=graph.undecided({reader.flow.gdt.flow: reader.undecided for reader in self._readers}),
            spent={name: replace(spent) for name, spent in self._spent(graph).items()},
            latency=median_and_p99(timings.paces), seconds=(time.time_ns() - order.start.start_ns) * 1e-9,
            busy_s=self._busy_ns * 1e-9, used=replace(used, cpu_s=used.cpu_s - self._cpu_s), pid=os.getpid(),
        )  # fmt: skip
        line = None if self._ledger is None else self._ledger.line(self._counts(graph), order.frames)
        return _Report(now, unflushed, stats, line)

    def _spent(self, graph: Executor) -> dict[str, Spent]:
        """Return the costs of nodes, and those of flows whose frames come compressed, by name."""
        unpacking = {reader.flow.gdt.flow: reader.unpacking for reader in self._readers if reader.unpacking.frames}
        return unpacking | graph.timings.spent

    def _done(self) -> dict[str, int]:
        """Return how many of its frames this receiver has gone through, by flow, whatever became of them."""
        return {reader.flow.gdt.name: reader.done for reader in self._readers}

    def _counts(self, graph: Executor) -> Counts:
        flows = {reader.flow.gdt.name: reader.counted() for reader in self._readers}
        nodes = graph.counts
        return Counts(flows=flows, dropped=nodes.dropped, vetoed=nodes.vetoed, beside=nodes.single)

    def _note(self, counts: Counts, order: _Order) -> None:
        """Write to the ledger what is known of the frames; it is in the files by now."""
        self._write(None if self._ledger is None else self._ledger.line(counts, order.frames))

    def _write(self, line: Line | None) -> None:
        if self._ledger is not None and line is not None:
            try:
                self._ledger.write(line)
            except OSError as error:
                self._warn_of_ledger(error)

    def _warn_of_ledger(self, error: OSError) -> None:
        """Report, once, that a ledger is not written: a run that goes well does not need it."""
        if not self._unwritten:
            self._unwritten = True
            ledger = ledger_file(self._program.name, self._program.receiver)
            help = "should this receiver be killed, it is not known why frames are in no file"
            self._port.send(0, (messages.WARNED, f"{ledger} can't be written: {error}; {help}"))

    def close(self) -> None:
        """End all files."""
        if self._graph is not None:
            self._graph.close()
            if self._order is not None:
                self._note(self._counts(self._graph), self._order)
            self._graph.leave()
            self._report_failures(self._graph)
        self._close_ledger()

    def _close_ledger(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def _finish(self, graph: Executor, order: _Order) -> None:
        """End an acquisition that is read: end its files, report, go on with the next one, if that is there already."""
        graph.close()
        self._report = None
        if order.last:
            graph.leave()
            self._report_threads()
        self._report_failures(graph)
        self._report_damaged()
        counts = self._counts(graph)
        self._note(counts, order)
        self._close_ledger()
        cpu_s = usage().cpu_s - self._cpu_s
        measured = Measured(self._busy_ns * 1e-9, cpu_s, self._spent(graph), graph.timings.paces)
        report = ReceiverReport(
            **vars(counts), receiver=self._program.receiver, saved=graph.counts.saved, usage=usage(),
            measured=measured, acquisition=order.start.number,
        )  # fmt: skip
        self._port.send(0, (messages.FINISHED, report))
        self._orders.popleft()
        if self._orders:
            self._begin(self._orders[0])
