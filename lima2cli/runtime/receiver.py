"""A receiver rank: takes complete groups from its memory, runs the nodes, gives the memory back."""

import time

from lima2cli.artefacts.appending import load_libraries
from lima2cli.program.records import ReceiverProgram
from lima2cli.runtime import messages
from lima2cli.runtime.arrivals import Hold
from lima2cli.runtime.graph import Graph, copy_of
from lima2cli.runtime.messages import Failure, Measured, ReceiverReport
from lima2cli.runtime.processing import OwnProcessing, start_processing
from lima2cli.runtime.reader import Absent, Batch, FlowReader
from lima2cli.runtime.usage import usage
from lima2cli.spec import Files
from lima2cli.transport.base import Port

STATS_PERIOD_NS = 500_000_000


class ReceiverRank:
    """Runs a `ReceiverProgram`; `step` gives every flow one turn and says whether there was work."""

    def __init__(self, program: ReceiverProgram, port: Port, files: Files, directory: str) -> None:
        self.done = False
        self._program, self._port, self._files, self._directory = program, port, files, directory
        self._readers = [
            FlowReader(flow, port, single=flow.gdt.place is not None, threads=program.threads) for flow in program.flows
        ]
        self._graph: Graph | None = None
        self._own: OwnProcessing | None = None
        self._overran: set[str] = set()
        self._ended = self._reported = False
        self._frames = self._stats_ns = self._busy_ns = 0

    def prepare(self) -> None:
        """Say that the memory is there and filled; files are opened at the start, whose time they hold."""
        if self._program.channels or self._program.tables:
            load_libraries()
        try:
            self._own = start_processing(self._program, self._files, self._directory, self._readers)
        except Exception as error:  # noqa: BLE001  user code may raise anything
            self._port.send(0, (messages.FAILED, Failure(self._program.rank, str(error))))
        else:
            self._port.send(0, (messages.READY, None))

    def step(self) -> bool:
        """One turn."""
        if (mail := self._port.receive()) is not None:
            self._obey(*mail[1])
            return True
        before = time.perf_counter_ns()
        worked = self._graph is not None and self._turn(self._graph)
        now = time.perf_counter_ns()
        self._busy_ns += now - before if worked else 0
        if now - self._stats_ns > STATS_PERIOD_NS and self._graph is not None and not self._reported:
            self._stats_ns = now
            self._tell(self._graph)
        return worked

    def _turn(self, graph: Graph) -> bool:
        """Every flow, and what waits in the graph, once."""
        worked = False
        for reader in self._readers:
            came = None if graph.full(reader.flow.gdt.flow) else reader.poll()
            if isinstance(came, Batch):
                self._process(graph, reader, came)
            elif came is not None:
                self._skip(graph, reader, came)
            else:
                reader.rest()
            worked |= came is not None
            if reader.count.lost:
                self._report_overrun(reader)
        worked |= graph.poll()
        self._report_failures(graph)
        if self._ended and not worked and not self._reported and self._over(graph):
            self._finish(graph)
        return worked

    def _over(self, graph: Graph) -> bool:
        return all(reader.read for reader in self._readers) and graph.drain(self._frames)

    def _obey(self, kind: str, what: object) -> None:
        if kind == messages.START:
            assert isinstance(what, int)
            self._open(what)
        elif kind == messages.LIMIT:
            assert isinstance(what, int)
            for reader in self._readers:
                reader.limit(what)
            self._port.send(0, (messages.LIMITED, None))
        elif kind == messages.ENDED:
            assert isinstance(what, int)
            for reader in self._readers:
                reader.limit(what)
                reader.end()
            self._ended, self._frames = True, what
        elif kind == messages.QUIT:
            self.done = True

    def _open(self, start_ns: int) -> None:
        self._graph = Graph(self._program, self._port, self._files, self._directory, start_ns, self._own)
        self._report_failures(self._graph)

    def _process(self, graph: Graph, reader: FlowReader, batch: Batch) -> None:
        """Nodes first, then the second check, then what lasts; the memory is given back whatever happens.

        Where losses are allowed (`overrun: continue`) a checked copy is processed: the memory is given back at once,
        and a receiver that is always too slow still saves what it can instead of losing each frame while it reads it.
        So it is where nodes wait, keep a state or are the user's: they never see data that may be torn.
        """
        flow, block, now = reader.flow.gdt.flow, batch.block, time.time_ns()
        if block.stable:
            hold = Hold(lambda: reader.release(batch, True))
            graph.commit(graph.stage(flow, block, now, hold), int(block.numbers[0]))
            graph.note(reader.flow.gdt.name, block.numbers, reader.ends(batch))
            hold.done()
        elif reader.flow.gdt.overrun == "continue" or graph.needs_stable:
            block = copy_of(block)
            intact = reader.intact(batch)
            reader.release(batch, intact)
            if intact:
                graph.commit(graph.stage(flow, block, now), int(block.numbers[0]))
                graph.note(reader.flow.gdt.name, block.numbers, block.times[-1:])
            else:
                graph.absent(flow, int(block.numbers[-1]))
        else:
            staged = graph.stage(flow, block, now)
            intact = reader.intact(batch)
            if intact:
                graph.commit(staged, int(block.numbers[0]))
                graph.note(reader.flow.gdt.name, block.numbers, block.times[-1:])
            reader.release(batch, intact)

    def _skip(self, graph: Graph, reader: FlowReader, absent: Absent) -> None:
        """What waits must know that these will not come."""
        if graph.needs_stable:
            for last in absent.lasts:
                graph.absent(reader.flow.gdt.flow, last)

    def _report_overrun(self, reader: FlowReader) -> None:
        gdt = reader.flow.gdt
        if gdt.overrun == "stop" and gdt.name not in self._overran:
            self._overran.add(gdt.name)
            buffer, visit, _ = reader.count.lost[0]
            self._port.send(0, (messages.OVERRUN, (gdt.name, int(gdt.rule.numbers(buffer, visit, 1)[0]))))

    def _report_failures(self, graph: Graph) -> None:
        for text in graph.warnings():
            self._port.send(0, (messages.WARNED, text))
        for rank in graph.silent():
            self._port.send(0, (messages.SILENT, rank))
        for failed in graph.failures():
            detail = "; ".join(getattr(failed, "__notes__", []))
            failure = Failure(self._program.rank, str(failed), failed.node, failed.frame, detail)
            self._port.send(0, (messages.FAILED, failure))

    def _tell(self, graph: Graph) -> None:
        """Flush what was committed and tell the control rank how far this receiver is."""
        graph.flush()
        self._report_failures(graph)
        flows = {}
        for reader in self._readers:
            lost = sum(visits for _, _, visits in reader.count.lost) * reader.flow.gdt.rule.blocks
            flows[reader.flow.gdt.name] = (reader.count.received, lost, reader.count.peak_fill)
        stats = {"receiver": self._program.receiver, "flows": flows, "saved": graph.saved}
        self._port.send(0, (messages.STATS, stats))

    def close(self) -> None:
        """End all files."""
        if self._graph is not None:
            self._graph.close()
            self._report_failures(self._graph)

    def _finish(self, graph: Graph) -> None:
        self.close()
        flows = {reader.flow.gdt.name: reader.count for reader in self._readers}
        report = ReceiverReport(
            self._program.receiver, flows, graph.saved, graph.dropped, graph.vetoed, graph.beside, usage(),
            Measured(self._busy_ns * 1e-9, graph.spent, graph.paces),
        )  # fmt: skip
        self._port.send(0, (messages.FINISHED, report))
        self._reported = True
