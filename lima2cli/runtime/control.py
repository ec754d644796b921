"""The control rank: starts, stops and ends a run, and knows what became of every frame.

It never blocks and moves no data. Normal end: modules are done, receivers are told so, files are closed. Stop (Ctrl-C,
an overrun under `stop`, a failed rank): modules pause and say their next frame number; the highest, F, becomes the
end of the acquisition: receivers learn it first, then every module serves all frames below F, so that blocks are whole.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lima2cli.artefacts.appending import load_libraries
from lima2cli.errors import RunFailed
from lima2cli.plan.records import Plan
from lima2cli.program.records import ControlProgram
from lima2cli.runtime import messages
from lima2cli.runtime.messages import Ended, Failure, ReceiverReport, SourceReport, Start, WorkerReport
from lima2cli.transport.base import Port

START_DELAY_NS = 2_000_000
"""From the order to start to frame 0, so that all ranks have heard."""

PROGRESS_PERIOD_S = 0.5

SHORTEST_PATIENCE_S = 10.0
"""Modules that are told to pause have at least so long for what they are doing."""

ANSWERS = {
    "preparing": messages.READY,
    "running": messages.DONE,
    "pausing": messages.NEXT,
    "limiting": messages.LIMITED,
    "serving": messages.DONE,
    "ending": messages.FINISHED,
    "leaving": messages.FINISHED,
}
"""The message that every rank that is waited for sends in a phase."""

Emit = Callable[[dict[str, Any]], None]


@dataclass
class Outcome:
    """What a run came to: ``state`` complete, stopped or failed, why, and the reports of all ranks.

    silent   ranks of workers that do not answer, and won't take part in the end of the job
    """

    state: str = "complete"
    reason: str | None = None
    overrun: bool = False
    frames: int = 0
    start_ns: int = 0
    seconds: float = 0.0
    receivers: dict[int, ReceiverReport] = field(default_factory=dict)
    sources: dict[int, SourceReport] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    workers: dict[int, WorkerReport] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)


class ControlRank:
    """Runs a `ControlProgram`. ``emit`` gets progress, ``close`` writes what ends a run (masters, summary)."""

    def __init__(
        self,
        program: ControlProgram,
        port: Port,
        emit: Emit,
        close: Callable[[Outcome], None],
        stop_asked: Callable[[], bool],
        directory: str,
    ) -> None:
        self.done = False
        self._directory = directory
        self.outcome = Outcome()
        self._plan: Plan = program.plan
        self._port, self._emit, self._close, self._stop_asked = port, emit, close, stop_asked
        roles = self._plan.ranks
        self._detectors = {role.rank for role in roles if role.role == "detector"}
        self._receivers = {role.rank for role in roles if role.role == "receiver"}
        self._workers = {role.rank for role in roles if role.role == "worker"}
        self._waiting_for: set[int] = self._detectors | self._receivers | self._workers
        self._phase = "preparing"
        self._next = 0
        self._flows: dict[int, dict[str, tuple[int, int, float]]] = {}
        self._saved: dict[int, dict[str, int]] = {}
        self._progress_at = self._moved_at = time.monotonic()
        self._seen = -1
        self._paused_at = 0.0

    def prepare(self) -> None:
        """What ends the run is written by this rank, which has nothing to do now."""
        if self._plan.channels or self._plan.tables:
            load_libraries()

    def step(self) -> bool:
        """Handle all messages, then look at the clock: where turns are long there is always a message."""
        handled = False
        while not self.done and (mail := self._port.receive()) is not None:
            self._handle(*mail)
            handled = True
        if self._phase == "running":
            if self._stop_asked():
                self._pause("stopped", "stopped by the user")
            else:
                self._look_at_clock()
        elif self._phase == "pausing":
            self._check_answers()
        elif self._phase == "leaving":
            self._check_workers()
        return handled

    def _handle(self, rank: int, message: tuple[str, Any]) -> None:
        kind, what = message
        if kind == messages.FAILED:
            self._fail(what)
        elif kind == messages.OVERRUN:
            self._overrun(*what)
        elif kind == messages.WARNED and what not in self.outcome.warnings:
            self.outcome.warnings.append(what)
            self._emit({"type": "event", "event": "warning", "message": f"warning: {what}"})
        elif kind == messages.STATS:
            self._flows[rank], self._saved[rank] = what["flows"], what["saved"]
        elif kind == messages.WAITING:
            self._moved_at = time.monotonic()
        elif kind == messages.NEXT:
            self._next = max(self._next, what)
        elif kind == messages.DONE:
            self.outcome.sources[rank] = what
        elif kind == messages.SILENT:
            self.outcome.silent.add(what)
        elif isinstance(what, WorkerReport):
            self.outcome.workers[rank] = what
        elif kind == messages.FINISHED:
            self.outcome.receivers[what.receiver] = what
        if kind == ANSWERS.get(self._phase) or (kind == messages.FAILED and self._phase == "preparing"):
            self._answered(rank)

    def _answered(self, rank: int) -> None:
        """One rank of those that are waited for; when all have answered, the next phase."""
        self._waiting_for.discard(rank)
        if self._waiting_for:
            return
        if self._phase == "preparing":
            if self.outcome.failures:
                self._finish()
            else:
                self._start()
        elif self._phase == "pausing":
            self._limit()
        elif self._phase == "limiting":
            self._serve_rest()
        elif self._phase in ("running", "serving"):
            self._end()
        elif self._phase == "ending":
            self._let_workers_go()
        elif self._phase == "leaving":
            self._finish()

    def _tell(self, ranks: set[int], kind: str, what: Any) -> None:
        for rank in sorted(ranks):
            self._port.send(rank, (kind, what))

    def _start(self) -> None:
        self.outcome.start_ns = time.time_ns() + START_DELAY_NS
        self._moved_at = time.monotonic()
        self._phase, self._waiting_for = "running", set(self._detectors)
        self._emit({"type": "start", "name": self._plan.name, "frames": self._plan.frames})
        self._tell(self._receivers | self._detectors, messages.START, Start(0, self.outcome.start_ns, self._directory))

    def _check_answers(self) -> None:
        """A module that hangs would hang the run: better that the ranks are ended, and files are as last flushed."""
        if time.monotonic() - self._paused_at > max(self._plan.timeout_s, SHORTEST_PATIENCE_S):
            silent = ", ".join(map(str, sorted(self._waiting_for)))
            raise RunFailed(f"{self.outcome.reason}; then rank {silent} (detector) did not answer")

    def _pause(self, state: str, reason: str) -> None:
        self._paused_at = time.monotonic()
        self.outcome.state, self.outcome.reason = state, reason
        self._phase = "pausing"
        self._waiting_for = set(self._detectors)
        self._emit({"type": "event", "event": state, "message": reason})
        self._tell(self._detectors, messages.PAUSE, None)

    def _limit(self) -> None:
        self._phase, self._waiting_for = "limiting", set(self._receivers)
        self._tell(self._receivers, messages.LIMIT, self._next)

    def _serve_rest(self) -> None:
        """Modules serve what is below the limit; those that had served everything before have said so already."""
        self._phase, self._waiting_for = "serving", self._detectors - set(self.outcome.sources)
        broken = {failure.rank for failure in self.outcome.failures}
        modules = frozenset(m for role in self._plan.ranks if role.rank in broken for m in role.modules)
        self._tell(self._waiting_for, messages.LIMIT, (self._next, modules))
        if not self._waiting_for:
            self._end()

    def _end(self) -> None:
        self.outcome.seconds = (time.time_ns() - self.outcome.start_ns) * 1e-9
        stopped = self._phase == "serving"
        limit = self._next if stopped or self._plan.frames is None else self._plan.frames
        self.outcome.frames = limit
        self._phase, self._waiting_for = "ending", set(self._receivers)
        self._tell(self._receivers, messages.ENDED, Ended(limit, last=True))

    def _let_workers_go(self) -> None:
        """Receivers have all that was replied."""
        self._phase, self._waiting_for = "leaving", self._workers - self.outcome.silent
        self._paused_at = time.monotonic()
        self._tell(self._waiting_for, messages.ENDED, None)
        if not self._waiting_for:
            self._finish()

    def _check_workers(self) -> None:
        """A worker may take its time to end, but not for ever: the run ends without it."""
        if time.monotonic() - self._paused_at > max(self._plan.timeout_s, SHORTEST_PATIENCE_S):
            silent = ", ".join(map(str, sorted(self._waiting_for)))
            self.outcome.warnings.append(f"rank {silent} (worker) did not end and was ended")
            self.outcome.silent |= self._waiting_for
            self._finish()

    def _finish(self) -> None:
        self._phase = "closing"
        if self.outcome.start_ns:  # else it never started
            self.outcome.seconds = (time.time_ns() - self.outcome.start_ns) * 1e-9
        self._close(self.outcome)
        self._quit()

    def _quit(self) -> None:
        self._tell(self._detectors | self._receivers | self._workers, messages.QUIT, None)
        self.done = True

    def _fail(self, failure: Failure) -> None:
        self.outcome.failures.append(failure)
        self._emit({"type": "error", "message": failure.message, "rank": failure.rank, "node": failure.node,
                    "frame": failure.frame, "detail": failure.detail})  # fmt: skip
        self._fail_run(failure.message)
        if self._phase == "serving" and failure.rank in self._detectors:
            self._serve_rest()  # the others must not wait for what this one does not write

    def _overrun(self, acquisition: int, flow: str, frame: int) -> None:
        self.outcome.overrun = True
        self._fail_run(f"overrun in {flow}, frame {frame} is lost: receivers were too slow (overrun: stop)")

    def _fail_run(self, reason: str) -> None:
        """The first reason counts; what is under way goes on to its end."""
        if self._phase == "running":
            self._pause("failed", reason)
        elif self.outcome.state != "failed":
            self.outcome.state, self.outcome.reason = "failed", reason

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if now - self._progress_at < PROGRESS_PERIOD_S:
            return
        self._progress_at = now
        flows = self._totals()
        seen = sum(received + lost for received, lost in flows.values())
        if seen != self._seen:
            self._seen, self._moved_at = seen, now
        self._emit({
            "type": "progress", "seconds": (time.time_ns() - self.outcome.start_ns) * 1e-9,
            "flows": {name: {"received": r, "lost": n} for name, (r, n) in flows.items()},
            "saved": self._saved_totals(),
        })  # fmt: skip
        self._check_timeout(now)

    def _check_timeout(self, now: float) -> None:
        """No frame for too long. What the receivers report comes in groups, and as seldom as events say."""
        plan = self._plan
        periods = [
            (plan.period_s or 0) * gdt.rule.step * gdt.rule.blocks * gdt.rule.buffers * gdt.group_event
            for gdt in plan.gdts
            if gdt.group_event
        ]
        if periods and now - self._moved_at > plan.timeout_s + min(periods):
            self._pause("failed", f"no frame for {plan.timeout_s:g} s")

    def _totals(self) -> dict[str, tuple[int, int]]:
        """Frames received and lost; of a flow whose receivers hold parts of frames those of the one most behind."""
        counts = {gdt.name: (0, 0) for gdt in self._plan.gdts}
        for flows in self._flows.values():
            for name, (received, lost, _) in flows.items():
                counts[name] = (counts[name][0] + received, counts[name][1] + lost)
        totals: dict[str, tuple[int, int]] = {}
        for gdt in self._plan.gdts:
            totals[gdt.flow] = min(totals.get(gdt.flow, counts[gdt.name]), counts[gdt.name])
        return totals

    def _saved_totals(self) -> dict[str, int]:
        totals: dict[str, int] = {}
        for saved in self._saved.values():
            for name, count in saved.items():
                totals[name] = totals.get(name, 0) + count
        return totals
