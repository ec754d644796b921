"""Display of a run for users, by a thread of its own, so that the run never waits for a terminal."""

import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from io import UnsupportedOperation
from pathlib import Path
from typing import Any, TextIO

from lima2cli.cli.progress_line import Window, progress_line
from lima2cli.secret import hidden, hide
from lima2cli.units import frames_text, seconds_text, which_text


class ProgressStyle(StrEnum):
    """Styles of the progress of a run."""

    AUTO = "auto"
    TTY = "tty"
    PLAIN = "plain"
    JSON = "json"
    NONE = "none"


PLAIN_PERIOD_S = 10.0

Table = Callable[[Path], list[str]]
"""Function that returns lines about a run, by its directory."""

CLEAR = "\r\x1b[J"
"""Go to the begin of the line, and clear it and all that is below (ECMA-48)."""


class ProgressPrinter:
    """Printer of the events of a run: one line that is drawn again on a terminal, else a line per 10 s and per event.

    With `ProgressStyle.NONE` errors and warnings only.

    table  gives lines to be drawn below that line, by the run directory
    """

    def __init__(self, mode: ProgressStyle, out: TextIO, table: Table | None = None) -> None:
        if mode is ProgressStyle.AUTO:
            mode = ProgressStyle.TTY if out.isatty() else ProgressStyle.PLAIN
        self._mode, self._out, self._table = mode, out, table
        self._directory: Path | None = None
        self._printed_at, self._open = time.monotonic(), False
        self._printed: set[str] = set()
        self._window = Window()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        event = hidden(event)
        if self._mode is ProgressStyle.JSON:
            self._out.write(json.dumps(event) + "\n")
            self._out.flush()
        elif self._mode is not ProgressStyle.NONE:
            self._show(event)
        else:
            self._show_problems(event)

    def _show_problems(self, event: dict[str, Any]) -> None:
        """Show errors and warnings, while they arrive and as the run ends; each once."""
        kind = event["type"]
        if kind == "error" or (kind == "event" and event["event"] == "warning"):
            self._show(event)
            self._printed.add(event["message"].removeprefix("warning: "))
        elif kind == "done":
            problems = [f"problem: {text}" for text in event["problems"] if text not in self._printed]
            warnings = [f"warning: {text}" for text in event["warnings"] if text not in self._printed]
            ended = [] if event["state"] == "complete" else [f"{event['state']}: {event['reason']}"]
            for text in (*problems, *warnings, *ended):
                self._line(text)

    def _show(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "start":
            frames = "until stopped" if event["frames"] is None else frames_text(event["frames"])
            which = "" if event.get("of", 1) == 1 else f" {which_text(event['acquisition'], event['of'])}"
            self._line(f"{event['name']}{which}: started, {frames}")
            self._directory = Path(event["directory"])
        elif kind == "acquisition":
            dead = event["dead_time_s"]
            after = "" if dead is None else f", {seconds_text(dead)} after the previous one"
            which, frames = which_text(event["number"], event["of"]), frames_text(event["frames"])
            self._line(f"acquisition {which}: {event['state']}, {frames}{after}, {event['directory']}")
        elif kind == "progress":
            self._progress(event)
        elif kind == "event":
            self._line(event["message"])
        elif kind == "error":
            where = "".join(f", {key} {event[key]}" for key in ("node", "frame") if event.get(key) is not None)
            detail = f" ({event['detail']})" if event.get("detail") else ""
            self._line(f"error on rank {event['rank']}{where}: {event['message']}{detail}")
        elif kind == "done" and self._open:
            self._out.write("\n\x1b[J")

    def _progress(self, event: dict[str, Any]) -> None:
        before = self._window.before(event)
        if self._mode is ProgressStyle.TTY:
            columns, lines = _size(self._out)
            line = progress_line(event, before, columns - 1)
            below = [row[: columns - 1] for row in self._below()[: max(0, lines - 2)]]
            up = f"\x1b[{len(below)}A" if below else ""  # the cursor stays in the line
            self._out.write(CLEAR + "\n".join([line, *below]) + up)
            self._out.flush()
            self._open = True
        elif time.monotonic() - self._printed_at >= PLAIN_PERIOD_S:
            self._line(progress_line(event, before))

    def _below(self) -> list[str]:
        return [] if self._table is None or self._directory is None else self._table(self._directory)

    def _line(self, text: str) -> None:
        self._printed_at = time.monotonic()
        self._out.write((CLEAR if self._open else "") + text + "\n")
        self._out.flush()
        self._open = False


def _size(stream: TextIO) -> tuple[int, int]:
    """Return the columns and lines of a terminal in characters; some numbers where it is none, or tells none."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        size = os.terminal_size((0, 0))
    return size.columns or COLUMNS, size.lines or LINES


COLUMNS = 120
"""Width of a terminal that does not tell its own."""

LINES = 24
"""Height of such a terminal."""

KEPT = 1000
"""Number of events that are kept for a display that takes none; beyond, reports of progress are left out."""

LAST_WORDS_S = 5.0
"""Seconds that the display has to take the rest at the end of a run."""


class Display:
    """Display of the events of a run, and its end; ``mode`` and ``table`` as of `ProgressPrinter`.

    The reader may be slow, blocked, full or gone: nothing is raised, and `close` returns what could not be shown.
    """

    def __init__(self, mode: ProgressStyle, table: Table | None = None) -> None:
        self._out, self._err = _own(sys.stdout), _own(sys.stderr)
        self._show = ProgressPrinter(mode, self._out if mode is ProgressStyle.JSON else self._err, table)
        self._waiting: deque[dict[str, Any] | str] = deque()
        self._news = threading.Condition()
        self._closed, self._left_out, self._broken = False, 0, ""
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)
        self._thread.start()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event, later."""
        if len(self._waiting) > KEPT and event["type"] == "progress":
            self._left_out += 1
            return
        self._put(event)

    def print(self, text: str) -> None:
        """Write to standard output, after all events before; ``text`` ends with the end of a line."""
        self._put(hide(text))

    def close(self) -> str | None:
        """Wait a little for what is still to be shown; return why not everything was, None where it was."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join(LAST_WORDS_S)
        if self._thread.is_alive():
            return "standard output or standard error is blocked: the rest was not shown"
        if self._broken:
            return f"the progress could not be shown completely: {self._broken}"
        return (
            f"{self._left_out} progress reports were not shown: the output was not read fast enough"
            if self._left_out
            else None
        )

    def _put(self, item: dict[str, Any] | str) -> None:
        with self._news:
            self._waiting.append(item)
            self._news.notify()

    def _run(self) -> None:
        while (item := self._next()) is not None:
            try:
                self._one(item)
            except (OSError, ValueError) as error:
                self._broken = self._broken or str(error)
        for stream in {self._out, self._err} - {sys.stdout, sys.stderr}:
            with suppress(OSError):
                stream.close()

    def _one(self, item: dict[str, Any] | str) -> None:
        if isinstance(item, str):
            self._out.write(item)
            self._out.flush()
        else:
            self._show(item)

    def _next(self) -> dict[str, Any] | str | None:
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._closed)
            return self._waiting.popleft() if self._waiting else None


def _own(stream: TextIO | None) -> TextIO:
    """Return the same file as a stream of its own; where there is none, nothing is shown.

    Python's own would be flushed as the program ends, and waited for.
    """
    try:
        if stream is None:
            return open(os.devnull, "w", encoding="utf-8")
        return os.fdopen(os.dup(stream.fileno()), "w", buffering=1, encoding=stream.encoding, errors="replace")
    except UnsupportedOperation:  # no file of the system: what a program that calls this one has put there
        assert stream is not None
        return stream
