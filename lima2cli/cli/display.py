"""Display of a run for users, by a thread of its own, so that the run never waits for a terminal."""

import json
import os
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from enum import StrEnum
from io import UnsupportedOperation
from typing import Any, TextIO

from lima2cli.secret import hidden, hide
from lima2cli.units import count_text, frames_text, seconds_text


class ProgressStyle(StrEnum):
    """Styles of the progress of a run."""

    AUTO = "auto"
    TTY = "tty"
    PLAIN = "plain"
    JSON = "json"
    NONE = "none"


PLAIN_PERIOD_S = 10.0


class ProgressPrinter:
    """Printer of the events of a run: one line that is drawn again on a terminal, else a line per 10 s and per event.

    With `ProgressStyle.NONE` errors and warnings only.
    """

    def __init__(self, mode: ProgressStyle, out: TextIO) -> None:
        if mode is ProgressStyle.AUTO:
            mode = ProgressStyle.TTY if out.isatty() else ProgressStyle.PLAIN
        self._mode, self._out = mode, out
        self._printed_at, self._open = time.monotonic(), False
        self._told: set[str] = set()

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
            self._told.add(event["message"].removeprefix("warning: "))
        elif kind == "done":
            problems = [f"problem: {text}" for text in event["problems"] if text not in self._told]
            warnings = [f"warning: {text}" for text in event["warnings"] if text not in self._told]
            ended = [] if event["state"] == "complete" else [f"{event['state']}: {event['reason']}"]
            for text in (*problems, *warnings, *ended):
                self._line(text)

    def _show(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "start":
            frames = "until stopped" if event["frames"] is None else frames_text(event["frames"])
            which = f" {event['acquisition']} of {event['of']}" if event.get("of", 1) > 1 else ""
            self._line(f"{event['name']}{which}: started, {frames}")
        elif kind == "acquisition":
            dead = event["dead_time_s"]
            after = "" if dead is None else f", {seconds_text(dead)} after the one before"
            which, frames = f"{event['number']} of {event['of']}", frames_text(event["frames"])
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
            self._out.write("\n")

    def _progress(self, event: dict[str, Any]) -> None:
        flows = event["flows"]
        seconds = event["seconds"]
        parts = []
        for name, count in flows.items():
            lost = f" ({count_text(count['lost'])} lost)" if count["lost"] else ""
            rate = count["received"] / seconds if seconds > 0 else 0.0
            parts.append(f"{name} {count_text(count['received'])}{lost} {count_text(round(rate))}/s")
        text = f"{seconds_text(round(seconds, 1)):>10}  " + "  ".join(parts)
        if self._mode is ProgressStyle.TTY:
            self._out.write(f"\r\x1b[K{text[:200]}")
            self._out.flush()
            self._open = True
        elif time.monotonic() - self._printed_at >= PLAIN_PERIOD_S:
            self._line(text)

    def _line(self, text: str) -> None:
        self._printed_at = time.monotonic()
        self._out.write(("\r\x1b[K" if self._open else "") + text + "\n")
        self._out.flush()
        self._open = False


KEPT = 1000
"""Number of events that are kept for a display that takes none; beyond, reports of progress are left out."""

LAST_WORDS_S = 5.0
"""Seconds that the display has to take the rest at the end of a run."""


class Display:
    """Display of the events of a run (see `ProgressPrinter`) and its end.

    The reader may be slow, blocked, full or gone: nothing is raised, and `close` returns what could not be shown.
    """

    def __init__(self, mode: ProgressStyle) -> None:
        self._out, self._err = _own(sys.stdout), _own(sys.stderr)
        self._show = ProgressPrinter(mode, self._out if mode is ProgressStyle.JSON else self._err)
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
            return "standard output or standard error takes nothing any more: the rest was not shown"
        if self._broken:
            return f"the progress could not be shown to its end: {self._broken}"
        return f"{self._left_out} reports of progress were not shown: nobody took them" if self._left_out else None

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
