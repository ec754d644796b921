"""The rank of a RASHPA-compliant detector: its modules write to the receivers' memory by themselves.

The rank prepares, starts and stops the detector; it moves no frame. The deck shows no call that gives librashpa the
memory of a receiver, or that tells a receiver of an event. So in this version nothing that such a detector writes is
received: a run ends after ``acquisition.timeout``, and every frame that was due is told as missing.
"""

import time
from collections.abc import Callable

from lima2cli.detectors.base import Detector, State
from lima2cli.detectors.lifecycle import ENDLESS
from lima2cli.foreign import call_foreign
from lima2cli.human import seconds_text
from lima2cli.program.records import DetectorProgram
from lima2cli.runtime import messages
from lima2cli.runtime.messages import Failure, SourceReport, Start
from lima2cli.runtime.usage import usage
from lima2cli.transport.base import Port


class CompliantRank:
    """Runs a `DetectorProgram` without serving its flows; `step` obeys one message and looks at the clock."""

    def __init__(self, program: DetectorProgram, port: Port, detector: Detector) -> None:
        self.done = False
        self._program, self._port, self._detector = program, port, detector
        self._deadline: float | None = None

    def prepare(self) -> None:
        """Set up the data flows and say so, or that it failed."""
        if self._do(lambda: self._detector.prepare(self._program.acquisition, self._program.transfer)):
            self._port.send(0, (messages.READY, None))

    def step(self) -> bool:
        """Obey one message, or find that no frame has come for too long."""
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
            call_foreign(operation)
        except Exception as error:  # noqa: BLE001  a detector may fail in any way; the others must be told
            self._fail(f"detector: {error or type(error).__name__}", repr(error))
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
            self._do(self._detector.reset)  # a failure now changes nothing for the frames, and nobody listens
            self.done = True

    def _stop(self) -> int:
        """Stop the detector; how many frames were due by then, 0 where that has no end."""
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
