"""A receiver rank: takes complete groups from its memory, runs the nodes, gives the memory back."""

import time

from lima2cli.artefacts.appending import load_libraries
from lima2cli.program.records import ReceiverProgram
from lima2cli.runtime import messages
from lima2cli.runtime.graph import FlowGraph
from lima2cli.runtime.messages import Failure, ReceiverReport
from lima2cli.runtime.reader import Batch, FlowReader
from lima2cli.runtime.usage import usage
from lima2cli.spec import Block, Files
from lima2cli.transport.base import Port

STATS_PERIOD_NS = 500_000_000


class ReceiverRank:
    """Runs a `ReceiverProgram`; `step` gives every flow one turn and says whether there was work."""

    def __init__(self, program: ReceiverProgram, port: Port, files: Files, directory: str) -> None:
        self.done = False
        self._program, self._port, self._files, self._directory = program, port, files, directory
        self._readers = [FlowReader(flow, port) for flow in program.flows]
        self._graphs: list[FlowGraph] = []
        self._overran: set[str] = set()
        self._ended = self._reported = False
        self._stats_ns = 0

    def prepare(self) -> None:
        """Say that the memory is there and filled; files are opened at the start, whose time they hold."""
        if self._program.channels or self._program.tables:
            load_libraries()
        self._port.send(0, (messages.READY, None))

    def step(self) -> bool:
        """One turn."""
        if (mail := self._port.receive()) is not None:
            self._obey(*mail[1])
            return True
        worked = False
        for index in range(len(self._graphs)):
            batch = self._readers[index].poll()
            if batch is not None:
                self._process(index, batch)
                worked = True
            else:
                self._readers[index].rest()
            if self._readers[index].count.lost:
                self._report_overrun(self._readers[index])
        now = time.perf_counter_ns()
        if now - self._stats_ns > STATS_PERIOD_NS and self._graphs and not self._reported:
            self._stats_ns = now
            self._tell()
        if self._ended and not worked and not self._reported and all(r.finished for r in self._readers):
            self._finish()
        return worked

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
            self._ended = True
        elif kind == messages.QUIT:
            self.done = True

    def _open(self, start_ns: int) -> None:
        for flow in self._program.flows:
            graph = FlowGraph(flow, self._program, self._files, self._directory, start_ns)
            self._graphs.append(graph)
            self._report_failures(graph)

    def _process(self, index: int, batch: Batch) -> None:
        """Nodes first, then the second check, then what lasts; the memory is given back whatever happens.

        Where losses are allowed (`overrun: continue`) a checked copy is processed: the memory is given back at once,
        and a receiver that is always too slow still saves what it can instead of losing each frame while it reads it.
        So it is where nodes keep a state or are the user's: they never see data that may be torn.
        """
        reader, graph, block = self._readers[index], self._graphs[index], batch.block
        if not block.stable and (reader.flow.gdt.overrun == "continue" or graph.transforms):
            block = Block(block.frames.copy(), block.numbers, block.times)
            intact = reader.intact(batch)
            reader.release(batch, intact)
            if intact:
                graph.commit(graph.stage(block, time.time_ns()), int(block.numbers[0]))
        else:
            staged = graph.stage(block, time.time_ns())
            intact = reader.intact(batch)
            if intact:
                graph.commit(staged, int(block.numbers[0]))
            reader.release(batch, intact)
        self._report_failures(graph)

    def _report_overrun(self, reader: FlowReader) -> None:
        gdt = reader.flow.gdt
        if gdt.overrun == "stop" and gdt.name not in self._overran:
            self._overran.add(gdt.name)
            buffer, visit, _ = reader.count.lost[0]
            self._port.send(0, (messages.OVERRUN, (gdt.name, int(gdt.rule.numbers(buffer, visit, 1)[0]))))

    def _report_failures(self, graph: FlowGraph) -> None:
        for failed in graph.failures():
            detail = "; ".join(getattr(failed, "__notes__", []))
            failure = Failure(self._program.rank, str(failed), failed.node, failed.frame, detail)
            self._port.send(0, (messages.FAILED, failure))

    def _saved(self) -> dict[str, int]:
        return {name: count for graph in self._graphs for name, count in graph.saved.items()}

    def _tell(self) -> None:
        """Flush what was committed and tell the control rank how far this receiver is."""
        flows = {}
        for graph, reader in zip(self._graphs, self._readers, strict=True):
            graph.flush()
            self._report_failures(graph)
            lost = sum(visits for _, _, visits in reader.count.lost) * reader.flow.gdt.rule.blocks
            flows[reader.flow.gdt.name] = (reader.count.received, lost, reader.count.peak_fill)
        stats = {"receiver": self._program.receiver, "flows": flows, "saved": self._saved()}
        self._port.send(0, (messages.STATS, stats))

    def close(self) -> None:
        """End all files."""
        for graph in self._graphs:
            graph.close()
            self._report_failures(graph)

    def _finish(self) -> None:
        self.close()
        flows = {reader.flow.gdt.name: reader.count for reader in self._readers}
        dropped = {name: ranges for graph in self._graphs for name, ranges in graph.dropped.items()}
        report = ReceiverReport(self._program.receiver, flows, self._saved(), dropped, usage())
        self._port.send(0, (messages.FINISHED, report))
        self._reported = True
