"""A run as it goes on, on a terminal or off it."""

import json
import time
from enum import StrEnum
from typing import Any, TextIO

from lima2cli.human import count_text, frames_text, seconds_text
from lima2cli.secret import hidden


class Progress(StrEnum):
    """How a run tells of itself."""

    AUTO = "auto"
    TTY = "tty"
    PLAIN = "plain"
    JSON = "json"
    NONE = "none"


PLAIN_PERIOD_S = 10.0


class ProgressPrinter:
    """Prints the events of a run: one line that is drawn again on a terminal, else a line per 10 s and per event.

    With `Progress.NONE` errors and warnings only.
    """

    def __init__(self, mode: Progress, out: TextIO) -> None:
        if mode is Progress.AUTO:
            mode = Progress.TTY if out.isatty() else Progress.PLAIN
        self._mode, self._out = mode, out
        self._printed_at, self._open = time.monotonic(), False
        self._told: set[str] = set()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        event = hidden(event)
        if self._mode is Progress.JSON:
            self._out.write(json.dumps(event) + "\n")
            self._out.flush()
        elif self._mode is not Progress.NONE:
            self._show(event)
        else:
            self._show_problems(event)

    def _show_problems(self, event: dict[str, Any]) -> None:
        """What is no progress: errors and warnings, while they come and as the run ends; each once."""
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
        if self._mode is Progress.TTY:
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
