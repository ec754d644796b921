"""A receiver rank: takes complete groups from its memory, runs the nodes, gives the memory back."""

import time

from lima2cli.program.records import ReceiverProgram
from lima2cli.runtime import messages
from lima2cli.runtime.graph import FlowGraph, NodeFailed
from lima2cli.runtime.messages import Failure, ReceiverReport
from lima2cli.runtime.reader import Batch, FlowReader
from lima2cli.runtime.usage import usage
from lima2cli.spec import Files
from lima2cli.transport.base import Port

STATS_PERIOD_NS = 500_000_000


class ReceiverRank:
    """Runs a `ReceiverProgram`; `step` gives every flow one turn and says whether there was work."""

    def __init__(self, program: ReceiverProgram, port: Port, files: Files, directory: str) -> None:
        self.done = False
        self._program, self._port, self._files, self._directory = program, port, files, directory
        self._readers = [FlowReader(flow, port) for flow in program.flows]
        self._graphs: list[FlowGraph | None] = []
        self._saved: dict[str, int] = {}
        self._ended = self._reported = False
        self._stats_ns = 0

    def prepare(self) -> None:
        """Say that the memory is there and filled; files are opened at the start, whose time they hold."""
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
            try:
                graph = FlowGraph(flow, self._program, self._files, self._directory, start_ns)
            except Exception as error:  # noqa: BLE001  files that cannot be opened, nodes that cannot start
                self._graphs.append(None)
                self._fail(Failure(self._program.rank, f"cannot start the nodes of {flow.gdt.name}: {error}"))
            else:
                self._graphs.append(graph)
                self._saved |= graph.saved

    def _process(self, index: int, batch: Batch) -> None:
        """Nodes first, then the second check, then what lasts; the memory is given back whatever happens."""
        reader, graph = self._readers[index], self._graphs[index]
        block = batch.block
        try:
            staged = graph.stage(block, time.time_ns()) if graph is not None else []
            intact = reader.intact(batch)
            if intact and graph is not None:
                graph.commit(staged, int(block.numbers[0]))
        except NodeFailed as failed:
            intact = reader.intact(batch)
            self._drop_graph(index, failed)
        reader.release(batch, intact)
        if not intact or reader.count.lost:
            self._report_overrun(reader, int(block.numbers[0]))

    def _report_overrun(self, reader: FlowReader, frame: int) -> None:
        gdt = reader.flow.gdt
        if gdt.overrun == "stop" and reader.count.lost:
            self._port.send(0, (messages.OVERRUN, (gdt.name, frame)))

    def _drop_graph(self, index: int, failed: NodeFailed) -> None:
        """After a failure the flow is still drained, so that nobody waits for it, but nothing more is saved."""
        graph = self._graphs[index]
        self._graphs[index] = None
        if graph is not None:
            try:
                graph.close()
            except NodeFailed as again:
                failed.add_note(str(again))
            self._saved |= graph.saved
        detail = "; ".join(getattr(failed, "__notes__", []))
        self._fail(Failure(self._program.rank, str(failed), failed.node, failed.frame, detail))

    def _fail(self, failure: Failure) -> None:
        self._port.send(0, (messages.FAILED, failure))

    def _tell(self) -> None:
        """Flush what was committed and tell the control rank how far this receiver is."""
        flows = {}
        for index, reader in enumerate(self._readers):
            graph = self._graphs[index]
            if graph is not None:
                try:
                    graph.flush()
                except NodeFailed as failed:
                    self._drop_graph(index, failed)
                self._saved |= graph.saved
            lost = sum(visits for _, _, visits in reader.count.lost) * reader.flow.gdt.rule.blocks
            flows[reader.flow.gdt.name] = (reader.count.received, lost, reader.count.peak_fill)
        self._port.send(0, (messages.STATS, {"receiver": self._program.receiver, "flows": flows, "saved": self._saved}))

    def _finish(self) -> None:
        for index, graph in enumerate(self._graphs):
            if graph is None:
                continue
            try:
                graph.close()
            except NodeFailed as failed:
                self._graphs[index] = None
                self._fail(Failure(self._program.rank, str(failed), failed.node))
            self._saved |= graph.saved
        flows = {reader.flow.gdt.name: reader.count for reader in self._readers}
        report = ReceiverReport(self._program.receiver, flows, dict(self._saved), usage())
        self._port.send(0, (messages.FINISHED, report))
        self._reported = True
