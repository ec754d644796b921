"""What people see of a run: shown by a thread of its own, so that the run never waits for a terminal or a pipe."""

import os
import sys
import threading
from collections import deque
from contextlib import suppress
from io import UnsupportedOperation
from typing import Any, TextIO

from lima2cli.cli.progress import Progress, ProgressPrinter
from lima2cli.secret import hide

KEPT = 1000
"""Events that are kept for a display that takes none; beyond, reports of progress are left out."""

LAST_WORDS_S = 5.0
"""The display has so long to take the rest at the end of a run."""


class Display:
    """Shows the events of a run (see `ProgressPrinter`) and its end.

    Whoever reads may be slow, blocked, full or gone: nothing is raised, and `close` says what could not be shown.
    """

    def __init__(self, mode: Progress) -> None:
        self._out, self._err = _own(sys.stdout), _own(sys.stderr)
        self._show = ProgressPrinter(mode, self._out if mode is Progress.JSON else self._err)
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
        """Wait a little for what is still to be shown; why not everything was, None where it was."""
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
    """The same file as a stream that nobody else uses: Python's own would be flushed as the program ends, and waited
    for; where there is none, nothing is shown."""
    try:
        if stream is None:
            return open(os.devnull, "w", encoding="utf-8")
        return os.fdopen(os.dup(stream.fileno()), "w", buffering=1, encoding=stream.encoding, errors="replace")
    except UnsupportedOperation:  # no file of the system: what a program that calls this one has put there
        assert stream is not None
        return stream
