"""The control rank: starts, stops and ends a run, and accounts for every frame.

It never blocks and moves no data. Normal end: modules are done, receivers are notified, files are closed. Stop (Ctrl-C,
an overrun under `stop`, a failed rank): modules pause and report their next frame number; the highest, F, becomes the
end of the acquisition: receivers learn it first, then every module serves all frames below F, so that blocks are whole.

Where acquisitions are repeated, the next is prepared and starts as soon as the modules are done with one and the
receivers' memory may be written again; what the receivers still have to save, and the masters, follow meanwhile.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lima2cli import messages
from lima2cli.accounting.acquisitions import Acquisitions, Completion, LiveAcquisition, Outcome
from lima2cli.errors import EnvironmentUnfit, RunFailed
from lima2cli.facts import Facts
from lima2cli.files.appending import load_libraries
from lima2cli.files.fields import keep_facts
from lima2cli.messages import Ended, Failure, ReceiverReport, Start, WorkerReport
from lima2cli.plan.ir import Plan
from lima2cli.program import ControlProgram
from lima2cli.ranks.answers import Answers
from lima2cli.ranks.outputs import LiveMasters, Places
from lima2cli.ranks.progress import Progress, check_ready, check_silence, triggers_done
from lima2cli.ranks.requested import Requested
from lima2cli.runs import channel as job_events
from lima2cli.runs.channel import BY_USER, Stop
from lima2cli.transport.base import Port
from lima2cli.units import seconds_text

START_DELAY_NS = 2_000_000
"""Nanoseconds from the order to start to frame 0, so that all ranks have received it."""

SHORTEST_PATIENCE_S = 10.0
"""Minimal time, in seconds, that modules which are to pause have for the work in hand."""

ANSWERS = {
    "preparing": messages.READY,
    "running": messages.DONE,
    "pausing": messages.NEXT,
    "limiting": messages.LIMITED,
    "serving": messages.DONE,
    "ending": messages.FINISHED,
    "leaving": messages.FINISHED,
}
"""Message that every rank that is waited for sends in a phase."""

Emit = Callable[[dict[str, Any]], None]


class ControlRank:
    """The state machine of a `ControlProgram`.

    emit       gets progress;  close   writes what ends an acquisition (masters, summary) in its directory
    directory  of the first acquisition;  another   makes that of the next, from that of one before. Raises
               `EnvironmentUnfit`
    """

    def __init__(
        self,
        program: ControlProgram,
        port: Port,
        emit: Emit,
        close: Callable[[Outcome, str], None],
        order: Callable[[], Stop | None],
        directory: str,
        another: Callable[[str], str],
    ) -> None:
        self.done = False
        self._plan: Plan = program.plan
        self._port, self._order = port, order
        self._launcher = emit
        self._another = another
        roles = self._plan.ranks
        self._detectors = {role.rank for role in roles if role.role == "detector"}
        self._receivers = {role.rank for role in roles if role.role == "receiver"}
        self._workers = {role.rank for role in roles if role.role == "worker"}
        self._waiting_for: set[int] = self._detectors | self._receivers | self._workers
        self.phase = "preparing"
        self._acquisitions = Acquisitions(directory, self._plan, self._receivers)
        self._prepared = self._plan.acquisition
        self._completion = Completion(close)
        self._progress = Progress(self._plan)
        self._masters = LiveMasters(self._plan, self.warn)
        self._places = Places(directory)
        self._requested = Requested(self._plan, self, self._places, self._masters)
        self._answers = Answers(self._plan, self._requested)
        self._stopped: Stop | None = None
        self._next = 0
        self._heard: dict[int, float] = {}
        self._paused_at = time.monotonic()

    def emit(self, event: dict[str, Any]) -> None:
        """Report an event to the launcher, and to those that watch."""
        self._launcher(event)
        self._answers.push(event)

    @property
    def now(self) -> LiveAcquisition:
        """The acquisition that started, or was announced, last."""
        return self._acquisitions.now

    @property
    def outcome(self) -> Outcome:
        """Outcome of the last acquisition."""
        return self.now.outcome

    def prepare(self) -> None:
        """Load the libraries that write the end of the run: this rank has nothing else to do now."""
        if self._plan.channels or self._plan.tables:
            load_libraries()
        self._masters.begin(self.now)
        try:
            self._answers.listen(self.now.directory)
        except OSError as error:
            self.warn(f"this run can't be controlled from outside: {error}")

    def close(self) -> None:
        """End the files that are being written; after `done`, or where the run is given up."""
        self._completion.shutdown()
        self._answers.close()
        self._places.close()

    def step(self) -> bool:
        """Handle all messages, then look at the clock; return whether there was a message.

        Where turns are long there is always one.
        """
        handled = False
        while not self.done and (mail := self._port.receive()) is not None:
            self._handle(*mail)
            handled = True
        handled |= self._answers.poll(lambda: (self.now, self.phase))
        if self._answers.abort_asked:
            self._answers.abort_asked = False
            self._launcher({"type": "abort"})
        order = self._order()  # asked each time: what keeps the channel going
        self._stopped = self._stopped or order or (BY_USER if self._answers.stop_asked else None)
        self._requested.changing.look_at_clock()
        self._look_at_files()
        self._look_at_directory()
        if self.phase == "armed":
            self.look_at_requests()
        elif self.phase == "running":
            if self._stopped is not None:
                self._pause(self._stopped.state, self._stopped.reason)
            else:
                self._look_at_clock()
        elif self.phase == "pausing":
            self._check_answers()
        elif self.phase == "leaving":
            self._check_workers()
        else:
            self._check_silence()
        return handled

    def rest(self) -> None:
        """Rest until a request comes, or for a moment: a short one while somebody waits for the first frames."""
        self._answers.wait(self._requested.rest_s)

    def _handle(self, rank: int, message: tuple[str, Any]) -> None:
        kind, content = message
        self._heard[rank] = time.monotonic()
        if kind == messages.FAILED:
            self._fail(content)
        elif kind == messages.OVERRUN:
            self._overrun(*content)
        elif kind == messages.WARNED:
            self.warn(content)
        elif kind == messages.FACTS:
            self._inform(content)
        elif kind == messages.STATS:
            self._acquisitions.of(content.acquisition).take(rank, content)
            self._progress.report()
        elif kind == messages.CHANGED:
            self._requested.changing.answered(rank, *content)
        elif kind == messages.TAPPED:
            self._answers.show(rank, content)
        elif kind == messages.WAITING:
            self._progress.moved()
        elif kind == messages.NEXT:
            self._next = max(self._next, content)
        elif kind == messages.DONE:
            self.outcome.sources[rank] = content
        elif kind == messages.SILENT:
            self.outcome.silent.add(content)
        elif isinstance(content, WorkerReport):
            self.outcome.workers[rank] = content
        elif isinstance(content, ReceiverReport):
            self._finished(rank, content)
            return
        if kind == ANSWERS.get(self.phase) or (kind == messages.FAILED and self.phase == "preparing"):
            self._answered(rank)

    def _answered(self, rank: int) -> None:
        """Note the answer of one rank of those that are waited for; when all have answered, begin the next phase."""
        self._waiting_for.discard(rank)
        if self._waiting_for:
            return
        if self.phase == "preparing":
            self._start_or_not()
        elif self.phase == "pausing":
            self._limit()
        elif self.phase == "limiting":
            self._serve_rest()
        elif self.phase in ("running", "serving"):
            self._end()
        elif self.phase == "ending":
            self._let_workers_go()
        elif self.phase == "leaving":
            self._finish()

    def send(self, ranks: set[int], kind: str, what: Any) -> None:
        """Send a message to ranks."""
        for rank in sorted(ranks):
            self._port.send(rank, (kind, what))

    def _start_or_not(self) -> None:
        if self._stopped is not None and self.outcome.state == "complete":
            self.outcome.state, self.outcome.reason = self._stopped.state, f"{self._stopped.reason}, before it started"
        if self._acquisitions.faultless and self._plan.on_request and self._answers.asked is None:
            self.phase = "armed"
            self.emit(job_events.armed(self.now))
            return
        if self._acquisitions.faultless:
            self._start_as_asked()
            return
        self.phase = "ending"  # with what the receivers still have of earlier ones
        self._waiting_for = self._acquisitions.behind
        if len(self._acquisitions) == 1:
            self._finish()
        elif not self._waiting_for:
            self._let_workers_go()

    def look_at_requests(self) -> None:
        """Start, or end, an acquisition that is armed."""
        if self.phase != "armed":
            return
        if self._answers.asked is not None or self._stopped is not None or not self._acquisitions.faultless:
            self._start_or_not()
        else:
            self._check_silence()

    def _start_as_asked(self) -> None:
        """Start, or prepare the modules first where other frames, or another period, are asked for."""
        self._requested.hurry()
        if self._answers.asked is not None:
            self.now.plan = self._plan.asked(*self._answers.asked)
        if self.now.plan.acquisition == self._prepared:
            self._start()
            return
        self._prepared = self.now.plan.acquisition
        self.phase, self._waiting_for = "preparing", set(self._detectors)
        self._paused_at = time.monotonic()
        self.send(self._detectors, messages.PREPARE, self._prepared)

    def _start(self) -> None:
        self._requested.describe(self._answers.description)
        self._answers.asked = self._answers.description = None
        outcome, plan = self.outcome, self.now.plan
        outcome.start_ns, outcome.period_s = time.time_ns() + START_DELAY_NS, plan.period_s
        self._progress.begin(plan)
        self._next = 0
        self.phase, self._waiting_for = "running", set(self._detectors)
        self.emit(job_events.started(self.now))
        start = Start(outcome.number, outcome.start_ns, self.now.directory, plan.frames)
        self.send(self._receivers | self._detectors, messages.START, start)

    def _inform(self, facts: Facts) -> None:
        """Keep what the detector knows of the acquisition that starts, or goes on."""
        try:
            keep_facts(Path(self.now.directory), facts)
        except (OSError, ValueError) as error:
            self.warn(f"facts of the detector can't be kept: {error}")
        self._masters.inform(self.now, facts)

    def _check_answers(self) -> None:
        """Fail the run where a module does not answer in time.

        Otherwise the run would hang: better that the ranks are ended, and files are as last flushed.
        """
        if time.monotonic() - self._paused_at > max(self._plan.timeout_s, SHORTEST_PATIENCE_S):
            silent = ", ".join(map(str, sorted(self._waiting_for)))
            raise RunFailed(f"{self.outcome.reason}; then rank {silent} (detector) did not answer")

    def _check_silence(self) -> None:
        """Raise `RunFailed` where a receiver, or a rank that is not ready, has been silent for too long.

        A receiver that hangs, or that others wait for in a collective, would hang the run, and so would a rank that
        never gets ready.
        """
        if self.phase == "preparing":
            check_ready(
                self._plan, {rank: max(self._heard.get(rank, 0.0), self._paused_at) for rank in self._waiting_for}
            )
        awaited = {rank for one in self._acquisitions.begun for rank in one.waiting}
        heard = {rank: max(self._heard.get(rank, 0.0), self._paused_at) for rank in awaited}
        check_silence(self._plan, heard, self.outcome.reason)

    def _pause(self, state: str, reason: str) -> None:
        self._paused_at = time.monotonic()
        self.outcome.state, self.outcome.reason = state, reason
        self.phase = "pausing"
        self._waiting_for = set(self._detectors)
        self.emit(job_events.message_event(state, reason))
        self.send(self._detectors, messages.PAUSE, None)

    def _limit(self) -> None:
        self.phase, self._waiting_for = "limiting", set(self._receivers)
        self.send(self._receivers, messages.LIMIT, self._next)

    def _serve_rest(self) -> None:
        """Let modules serve what is below the limit; those that had served everything have reported so already."""
        self.phase, self._waiting_for = "serving", self._detectors - set(self.outcome.sources)
        broken = {failure.rank for failure in self.outcome.failures}
        modules = frozenset(m for role in self._plan.ranks if role.rank in broken for m in role.modules)
        self.send(self._waiting_for, messages.LIMIT, (self._next, modules))
        if not self._waiting_for:
            self._end()

    def _end(self) -> None:
        stopped = self.phase == "serving"
        frames = self.now.plan.frames
        self._acquisitions.end(self._next if stopped or frames is None else frames)
        directory = None if stopped else self._directory_of_next()
        self.send(self._receivers, messages.ENDED, Ended(self.outcome.frames, last=directory is None))
        if directory is not None:
            self._announce(directory)
            return
        self.phase, self._waiting_for = "ending", set(self.now.waiting)

    def _directory_of_next(self) -> str | None:
        """Return the directory of the acquisition that follows; None where none does."""
        enough = 0 < self._plan.repeat <= len(self._acquisitions)
        if self._stopped is not None or not self._acquisitions.well or enough:
            return None
        try:
            directory = self._another(self.now.directory)
            self._answers.announce(directory)
            self._places.add(directory)
        except (EnvironmentUnfit, OSError) as error:
            self.outcome.fail(f"no more acquisitions: {error}")
            return None
        return directory

    def _announce(self, directory: str) -> None:
        """Announce another acquisition, once all can take it."""
        self._requested.hurry()
        self.emit({"type": "directory", "directory": directory})
        self._acquisitions.add(directory)
        self.phase, self._waiting_for = "preparing", self._detectors | self._receivers
        self._paused_at = time.monotonic()
        self.send(self._waiting_for, messages.PREPARE, self._prepared)
        self._masters.begin(self.now)  # while they prepare

    def _finished(self, rank: int, report: ReceiverReport) -> None:
        """Note that a receiver has ended the files of an acquisition.

        Those of the last are completed when all ranks are done.
        """
        acquisition = self._acquisitions.of(report.acquisition)
        acquisition.outcome.receivers[report.receiver] = report
        acquisition.waiting.discard(rank)
        acquisition.end(rank, report)
        if not acquisition.waiting:
            self._report(acquisition, self._progress.now(acquisition))
            if acquisition is not self.now:
                self._complete(acquisition)
        if self.phase == "ending" and not any(rank in one.waiting for one in self._acquisitions.begun):
            self._answered(rank)

    def _look_at_files(self) -> None:
        """Take note of the files that have been written."""
        for acquisition in self._completion.done():
            outcome = acquisition.outcome
            given_back = outcome.number and not outcome.start_ns and outcome.state == "stopped"
            if self._plan.repeat != 1 and not given_back:
                self.emit(job_events.completed(acquisition))
        if self.phase == "closing" and self._completion.idle:
            self._quit()

    def _let_workers_go(self) -> None:
        """Let workers end, once receivers have all that was replied."""
        self.phase, self._waiting_for = "leaving", self._workers - self.outcome.silent
        self._paused_at = time.monotonic()
        self.send(self._waiting_for, messages.ENDED, None)
        if not self._waiting_for:
            self._finish()

    def _check_workers(self) -> None:
        """Let a worker take its time to end, but not forever: the run ends without it."""
        if time.monotonic() - self._paused_at > max(self._plan.timeout_s, SHORTEST_PATIENCE_S):
            silent = ", ".join(map(str, sorted(self._waiting_for)))
            self.outcome.warnings.append(f"rank {silent} (worker) did not end and was ended")
            self.outcome.silent |= self._waiting_for
            self._finish()

    def _finish(self) -> None:
        self.phase = "closing"
        if self.outcome.start_ns:  # else it never started
            self.outcome.seconds = (time.time_ns() - self.outcome.start_ns) * 1e-9
        self._look_at_directory(now=True)
        self._complete(self.now)

    def _quit(self) -> None:
        self.send(self._detectors | self._receivers | self._workers, messages.QUIT, None)
        self.done = True

    def _look_at_directory(self, *, now: bool = False) -> None:
        """Check the run directory from time to time, or ``now``.

        A run whose directory was removed is ended, as long as its open files take frames.
        """
        if self.outcome.state == "complete" and (gone := self._places.gone(now=now)):
            self._fail_run(self.outcome, gone)

    def _complete(self, acquisition: LiveAcquisition) -> None:
        """Write what ends an acquisition, where its directory is now.

        Raises:
            RunFailed: the directory was removed.
        """
        acquisition.directory = self._places.found(acquisition.outcome.number)
        self._completion.begin(acquisition)

    def _fail(self, failure: Failure) -> None:
        self._look_at_directory(now=True)
        outcome = self._acquisitions.of(failure.acquisition).outcome
        outcome.failures.append(failure)
        self.emit(job_events.failed(failure))
        self._fail_run(outcome, failure.message)
        if self.phase == "serving" and failure.rank in self._detectors:
            self._serve_rest()  # the others must not wait for what this one does not write

    def _overrun(self, acquisition: int, flow: str, frame: int) -> None:
        outcome = self._acquisitions.of(acquisition).outcome
        outcome.overrun = True
        self._fail_run(outcome, f"overrun in {flow}, frame {frame} is lost: receivers were too slow (overrun: stop)")

    def _fail_run(self, outcome: Outcome, reason: str) -> None:
        """Fail the run: what is under way goes on to its end, and no other acquisition follows.

        The first reason counts.
        """
        if outcome is not self.outcome:
            outcome.fail(reason)
        if self.phase == "running":
            self._pause("failed", reason)
        else:
            self.outcome.fail(reason)

    def warn(self, text: str) -> None:
        """Report a warning, once, and keep it for the summary."""
        if text not in self.outcome.warnings:
            self.outcome.warnings.append(text)
            self.emit(job_events.message_event("warning", f"warning: {text}"))

    def _report(self, acquisition: LiveAcquisition, event: dict[str, Any]) -> None:
        """Report progress, once masters have the rows that users may wait for."""
        self._masters.follow(acquisition, event["rows"], now=triggers_done(acquisition))
        self.emit(event)

    def _look_at_clock(self) -> None:
        event = self._progress.event(self.now)
        if event is None:
            return
        self._report(self.now, event)
        if self._progress.stuck:
            self._pause("failed", f"no frame for {seconds_text(self._plan.timeout_s)}")
