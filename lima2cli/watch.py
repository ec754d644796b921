"""Calls of users' code that do not return.

A thread looks at the clock. Where a call takes too long it sends this process a signal, whose handler raises
`TookTooLong` in the call: so it has failed as any other that raises, at the line where it hung. A call in C that never
comes back to Python hears no signal; `last_resort` may end the process then.
"""

import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lima2cli.human import seconds_text

SIGNAL = signal.SIGRTMIN + 7
LOOK_S, AGAIN_S, RESORT_S = 0.1, 1.0, 5.0
"""From one look at the clock to the next, from one signal to the next, from the first to the last resort."""

IMPORT_S, CALL_S = 60.0, 30.0
"""How long an import or the making of an object, and a call for a block, may take at least."""


class TookTooLong(BaseException):
    """Raised in a call that has taken too long; no Exception, so that it is seldom caught there."""


@dataclass
class _Call:
    what: str
    limit_s: float
    since: float

    @property
    def over_s(self) -> float:
        return time.monotonic() - self.since - self.limit_s


class Watch:
    """The calls of one process, in its main thread. ``timeout_s`` of the acquisition is the least that a call has."""

    def __init__(self) -> None:
        self.timeout_s = 0.0
        self.last_resort: Callable[[str], None] = lambda text: None
        self._call: _Call | None = None
        self._thread: threading.Thread | None = None

    @contextmanager
    def during(self, what: str, least_s: float) -> Iterator[None]:
        """Watch one call; ``what`` is called, for messages. Raises `TookTooLong` in it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._look, name="lima2-watch", daemon=True)
            self._thread.start()
        if signal.getsignal(SIGNAL) is not _ring:
            signal.signal(SIGNAL, _ring)
        outer, self._call = self._call, _Call(what, max(self.timeout_s, least_s), time.monotonic())
        try:
            yield
        finally:
            self._call = outer

    def _look(self) -> None:
        rung = 0.0
        while True:
            time.sleep(LOOK_S)
            call, now = self._call, time.monotonic()
            if call is None or call.over_s < 0:
                continue
            if now - rung > AGAIN_S:
                rung = now
                signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
            if call.over_s > RESORT_S and self._call is call:
                self.last_resort(f"{_where()}TookTooLong: {_words(call)} ({call.what})")

    def ring(self) -> None:
        """Raise `TookTooLong` where the call that is under way is due."""
        call = self._call
        if call is not None and call.over_s >= 0:
            raise TookTooLong(_words(call))


def _words(call: _Call) -> str:
    return f"it had not returned after {seconds_text(call.limit_s)}"


def _where() -> str:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    trace = traceback.extract_stack(frame)[-1:]
    return "".join(f"{Path(it.filename).name}:{it.lineno}: " for it in trace)


def _ring(number: int, frame: object) -> None:
    WATCH.ring()


WATCH = Watch()
