"""A run that Python programs watch and drive: its events, and requests to it."""

import json
import os
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lima2cli.accounting.summary import Summary, read_summary
from lima2cli.drive.contents import Contents
from lima2cli.drive.event_log import EventLog
from lima2cli.drive.pipelines import PipelineInvalid, message_of
from lima2cli.errors import (
    BY_SIGNAL,
    EnvironmentUnfit,
    ExitCode,
    FileProblem,
    Lima2Error,
    RunFailed,
    StateError,
    UnreadableInput,
)
from lima2cli.runs.control_socket import HangUp, ask, watch, where
from lima2cli.runs.ending import record_of

if TYPE_CHECKING:
    from lima2cli.notebook import Picture


def _event_of(line: str) -> dict[str, Any] | None:
    """Return the event that a line holds; None where it is something else, such as what users' code prints."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("type"), str) else None


class Progress:
    """Iterator of the events of progress of a run, from now to its end.

    Each is a dict as `lima2 run --progress json` prints it: ``flows`` (received, lost), ``saved`` and ``rows`` by node.
    """

    def __init__(self, run: "Run") -> None:
        self._log, self._next = run._log, run._log.count

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        """Wait for the next event."""
        while (found := self._log.next(self._next)) is not None:
            self._next = found[0] + 1
            if found[1].get("type") == "progress":
                return found[1]
        raise StopIteration


class Run(Contents):
    """A run that goes on, or one that has ended. As a context manager it is stopped, and waited for, at the end."""

    def __init__(
        self,
        *,
        process: "subprocess.Popen[str] | None" = None,
        directory: Path | None = None,
        text: str = "",
        watched: bool = True,
    ) -> None:
        self._process, self._directory = process, directory
        self._log = EventLog()
        self._hang_up = HangUp()
        self._started = 0
        self._called: list[Callable[[dict[str, Any]], None]] = []
        self._printed: list[str] = []
        self._threads: list[threading.Thread] = []
        if process is not None:
            self._begin(self._read, process)
            self._begin(self._read_errors, process)
            self._begin(self._feed, process, text)
        elif watched and directory is not None and where(directory) is not None:
            self._begin(self._watch)
        else:
            self._log.end()

    def _begin(self, function: Callable[..., None], *what: Any) -> None:
        thread = threading.Thread(target=function, args=what, daemon=True)
        self._threads.append(thread)
        thread.start()

    @staticmethod
    def _feed(process: "subprocess.Popen[str]", text: str) -> None:
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as stdin:  # it ended before it read all
            stdin.write(text)

    def _read_errors(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            self._printed.extend(line.rstrip() for line in lines)

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                event = _event_of(line)
                if event is None:
                    self._printed.append(line.rstrip())
                else:
                    self._take(event)
        self._log.end()

    def _watch(self) -> None:
        assert self._directory is not None
        try:
            for event in watch(self._directory, self._hang_up):
                if "type" in event:
                    self._take(event)
        except (RunFailed, UnreadableInput):
            pass  # it has ended, or was aborted: `state` says so
        self._log.end()

    def _take(self, event: dict[str, Any]) -> None:
        there = event["type"] in ("start", "done") or event.get("event") == "moved"
        if "directory" in event and (self._directory is None or there):
            self._directory = Path(event["directory"]).resolve()
        self._log.add(event)
        for function in self._called:
            try:
                function(event)
            except Exception:  # noqa: BLE001  it may fail in any way; the events of others must not end with it
                traceback.print_exc()

    def _wait_until_ready(self) -> None:
        for event in self.follow():
            if event["type"] == "start" or event.get("event") == "armed":
                return
        self._check_end()

    def _check_end(self) -> None:
        """Raise what the exit code of the process means, unless that is fine."""
        assert self._process is not None
        for thread in self._threads:
            thread.join()
        code, words = self._process.wait(), "\n".join(self._printed)
        problems = [event for event in self.events if event["type"] == "error" and "rule" in event]
        if code == ExitCode.PROBLEMS:
            raise PipelineInvalid(problems)
        message = "; ".join(message_of(one) for one in problems) or words
        if code == ExitCode.USAGE:
            raise UnreadableInput(message)
        if code == ExitCode.UNFIT:
            raise EnvironmentUnfit(message)
        if code not in (ExitCode.FINE, ExitCode.DATA_LOST) and 0 < code < BY_SIGNAL:
            raise RunFailed(self._reason() or message or f"lima2 run ended with exit code {code}")

    def _reason(self) -> str:
        done = [event for event in self.events if event["type"] == "done"]
        return str(done[-1]["reason"] or "") if done else ""

    @property
    def events(self) -> list[dict[str, Any]]:
        """All its events so far, as `lima2 run --progress json` prints them; of those of progress the last 1000."""
        return self._log.all()

    def follow(self) -> Iterator[dict[str, Any]]:
        """Yield its events as they come, those so far first, to its end."""
        number = 0
        while (found := self._log.next(number)) is not None:
            number = found[0] + 1
            yield found[1]

    @property
    def printed(self) -> list[str]:
        """Lines of the run other than events: messages, and what users' code prints in a run of one process."""
        return list(self._printed)

    @property
    def directory(self) -> Path:
        """The run directory; of several acquisitions that of the last that has started."""
        if self._directory is None:
            raise StateError("the run has no directory yet")
        return self._directory

    def _ask(self, do: str, **more: Any) -> dict[str, Any]:
        answer = ask(self.directory, {"version": 1, "do": do} | more)
        if not answer.get("ok"):
            raise StateError(str(answer.get("message")))
        return answer

    def start(
        self,
        frames: int | None = None,
        period: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        """Start the acquisition that is armed, of the pipeline's frames and period (s), or of fewer, and slower.

        metadata   what its files say besides what the pipeline does: ``title``, ``sample``, ``extra`` (a mapping)
        directory  where its files go, relative to the working directory of this program: a new directory, or an empty
                   one, on the file system of the one that was made ready, which becomes a link to it

        Raises:
            StateError: none is armed, or it can't be had like this.
        """
        place = None if directory is None else os.path.abspath(directory)
        asked = {"frames": frames, "period": period, "metadata": metadata, "directory": place}
        answer = self._ask("start", **{key: value for key, value in asked.items() if value is not None})
        if "directory" in answer:
            self._directory = Path(answer["directory"])

    def acquire(
        self,
        frames: int | None = None,
        period: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> int:
        """Wait until the next acquisition is armed, and start it as `start` does; return its number, from 1.

        For runs of `repeat: 0` and `start: request`. `completed` waits for its files.

        Raises:
            RunFailed: the run has ended.
            StateError: it can't be had like this.
        """
        self._await(lambda event: event.get("event") == "armed" and event["acquisition"] > self._started)
        self.start(frames, period, metadata, directory)
        self._started += 1
        return self._started

    def completed(self, number: int) -> dict[str, Any]:
        """Wait until all files of an acquisition are written; return its event.

        It has ``state``, ``directory``, ``frames`` and ``dead_time_s``, the seconds since the last frame before it.

        Raises:
            RunFailed: the run has ended without it.
        """
        return self._await(lambda event: event["type"] == "acquisition" and event["number"] == number)

    def _await(self, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first event of a kind, which may have come already."""
        for event in self.follow():
            if is_it(event):
                return event
        raise RunFailed(f"the run in {self.directory} has ended: {self._reason() or self.state}")

    def set(self, node: str, parameter: str, value: Any) -> int:
        """Change a parameter of a node, as pipelines have it; return the frame from which on it applies.

        Raises:
            StateError: it can't be changed, or not to this.
        """
        return int(self._ask("set", node=node, parameter=parameter, value=value)["frame"])

    def trigger(self, count: int = 1) -> None:
        """Fire software triggers. Raises `StateError` where the run takes none, or not so many."""
        self._ask("trigger", count=count)

    def abort(self) -> None:
        """End the run at once; frames in flight are lost. Raises `StateError` where it does not go on."""
        self._ask("abort")

    def stop(self) -> None:
        """End the run in order; frames in flight are saved. It may have ended already."""
        if self.live:
            try:
                self._ask("stop")
            except (StateError, RunFailed):
                if self.live and self._process is not None:
                    self._process.send_signal(signal.SIGTERM)

    def status(self, *, detail: bool = False) -> dict[str, Any]:
        """Return how far it is: ``state``, ``flows``, ``saved``, ``rows``, ``triggers``, ``seconds``.

        detail  with all that `lima2 top` shows, ``visible``: what can be looked at, its shape, dtype and view, and
                ``changeable``: parameters that `set` changes, by node, and their values now; ``regions`` of nodes that
                were changed
        """
        return self._ask("status", detail=detail)

    @property
    def live(self) -> bool:
        """True while it goes on."""
        return not self._log.ended

    @property
    def state(self) -> str:
        """Such as ``armed`` or ``running``; ``complete``, ``stopped``, ``failed`` or ``aborted`` at the end."""
        if self.live:
            try:
                return str(self.status()["state"])
            except (StateError, RunFailed):
                pass  # it ends right now
        summary = self.summary
        return "aborted" if summary is None else summary.state

    @property
    def progress(self) -> Progress:
        """Events of progress, from now on, pushed by the run."""
        return Progress(self)

    def on_event(self, function: Callable[[dict[str, Any]], None]) -> None:
        """Have a function called with each event from now on, in a thread."""
        self._called.append(function)

    def wait(self, timeout: float | None = None) -> Summary:
        """Wait for its end and return its summary.

        Raises:
            TimeoutError: it goes on after ``timeout`` seconds.
            RunFailed: it failed, or was aborted.
        """
        if not self._log.wait_for_end(timeout):
            raise TimeoutError(f"the run in {self.directory} goes on")
        if self._process is not None:
            self._check_end()
        summary = self.summary_soon()
        if summary is None and not self.directory.exists():
            raise RunFailed(f"{self.directory} was removed: the acquisition never started, or somebody removed it")
        if summary is None:
            raise RunFailed(f"the run in {self.directory} was aborted: lima2 recover {self.directory}")
        if summary.state == "failed":
            raise RunFailed(summary.reason or "the run failed")
        return summary

    def summary_soon(self) -> Summary | None:
        """Return the summary of a run that has ended; None where it was aborted.

        The last event of a run that others have started comes before its summary is written.
        """
        end = time.monotonic() + SUMMARY_S
        while (summary := self.summary) is None and self._process is None and time.monotonic() < end:
            time.sleep(0.01)
        return summary

    @property
    def summary(self) -> Summary | None:
        """The account of all frames; None before the end."""
        return read_summary(self.directory)

    def leave(self) -> None:
        """Watch it no longer, where it was opened, not started, here: no events come any more, and it goes on."""
        self._hang_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it, where it goes on, and wait; a failure of the run is raised unless another error is on its way."""
        self.stop()
        try:
            self.wait()
        except Lima2Error:
            if error is None:
                raise

    def _repr_html_(self) -> str:
        """Return how it does now, as notebooks show it: its state, a frame, flows and nodes."""
        from lima2cli.notebook import ended_rows, live_rows, run_html

        if self._directory is None:
            return run_html("lima2 run", "it starts" if self.live else "it has not begun", None, [], [])
        state, summary = self.state, None if self.live else self.summary
        flows, nodes = ([], []) if summary is None else ended_rows(summary)
        if self.live:
            with suppress(StateError, RunFailed):  # it ends right now
                flows, nodes = live_rows(self.status())
        reason = None if summary is None else summary.reason
        return run_html(self.directory.name, state, self._picture(), flows, nodes, reason)

    def _picture(self) -> "Picture | None":
        """Return the last frame that a node has saved; else, while it goes on, the next of a flow or node."""
        from lima2cli.notebook import Picture

        with suppress(UnreadableInput):  # a directory that somebody removed
            for node in record_of(self.directory).channels:
                with suppress(FileProblem):  # it has none yet
                    last = self.last(node)
                    return Picture(node, last.number, last.pixels, last.mask)
        hang_up = HangUp()
        timer = threading.Timer(GLANCE_S, hang_up)
        timer.start()
        try:
            if self.live and (names := self.status(detail=True)["visible"]):
                for frame in self.tap(next(iter(names)), count=1, hang_up=hang_up):
                    return Picture(frame.node, frame.number, frame.pixels, frame.mask)
        except (StateError, RunFailed):  # it ends right now
            pass
        finally:
            timer.cancel()
        return None

    def __repr__(self) -> str:
        return f"<lima2 run {self._directory or 'that starts'}: {'live' if self.live else self.state}>"


GLANCE_S = 0.3
"""Seconds that a notebook waits for a frame that is not saved."""

SUMMARY_S = 10.0
"""Seconds from the last event of a run to its summary."""
