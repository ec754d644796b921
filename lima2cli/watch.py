"""Calls of users' code that do not return.

A thread looks at the clock. Where a call takes too long it sends this process a signal, whose handler raises
`TookTooLong` in the call: so it has failed as any other that raises, at the line where it hung. A call in C that never
comes back to Python hears no signal; `last_resort` may end the process then. Where it holds the interpreter's lock,
too, no thread of this process can do anything: then a thread of faulthandler's, which is C, writes where it is to a
file, and may end the process.
"""

import faulthandler
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from lima2cli.foreign import LIBRARIES, place_of
from lima2cli.human import seconds_text

SIGNAL = signal.SIGRTMIN + 7
LOOK_S, AGAIN_S, RESORT_S = 0.1, 1.0, 5.0
"""From one look at the clock to the next, from one signal to the next, from the first to the last resort."""

ARM_S, SILENT_S = 1.0, 3.0
"""From one setting of the C thread to the next, and how long this one's may be late."""

IMPORT_S, CALL_S = 45.0, 25.0
"""How long an import or the making of an object, and a call for a block, may take at least."""


ALIVE = b"alive\n"
"""Written where a process that may have been given up has only slept."""


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
    """The calls of one process, in its main thread. ``timeout_s`` of the acquisition is the least that a call has,
    ``most_s`` the most that one for a block has."""

    def __init__(self) -> None:
        self.timeout_s, self.most_s = 0.0, math.inf
        self.last_resort: Callable[[str], None] = lambda text: None
        self.dump_to: int | None = None
        self.dump_ends = False
        self._lock = threading.Lock()
        self._call: _Call | None = None
        self._thread: threading.Thread | None = None

    @contextmanager
    def during(self, what: str, least_s: float) -> Iterator[None]:
        """Watch one call; ``what`` is called, for messages. Raises `TookTooLong` in it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        limit_s = max(self.timeout_s, least_s)
        call = _Call(what, limit_s if least_s > CALL_S else min(limit_s, self.most_s), time.monotonic())
        if self._thread is None or not self._thread.is_alive():
            self._arm(call, late=False)  # it may never have its turn
            self._thread = threading.Thread(target=self._look, name="lima2-watch", daemon=True)
            self._thread.start()
        if signal.getsignal(SIGNAL) is not _ring:
            signal.signal(SIGNAL, _ring)
        outer, self._call = self._call, call
        try:
            yield
        finally:
            self._call = outer

    @property
    def used(self) -> bool:
        """Whether there were any calls."""
        return self._thread is not None

    def _look(self) -> None:
        rung = armed = looked = time.monotonic()
        armed_for: _Call | None = None
        while True:
            time.sleep(LOOK_S)
            call, now = self._call, time.monotonic()
            if now - armed > ARM_S or call is not armed_for:
                self._arm(call, late=now - looked > SILENT_S)
                armed, armed_for = now, call
            looked = now
            if call is None or call.over_s < 0:
                continue
            if now - rung > AGAIN_S:
                rung = now
                signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
            if call.over_s > RESORT_S and self._call is call:
                self.last_resort(f"{_where()}TookTooLong: {_words(call)} ({call.what})")

    def _arm(self, call: _Call | None, *, late: bool) -> None:
        """Set the C thread to after the last resort; ``late``: the process has slept, and may have been given up."""
        with self._lock:
            if self.dump_to is None:
                return
            if late and not self.dump_ends:
                os.write(self.dump_to, ALIVE)
            left = max(self.timeout_s, IMPORT_S) if call is None else max(0.0, -call.over_s)
            faulthandler.dump_traceback_later(left + RESORT_S + SILENT_S, file=self.dump_to, exit=self.dump_ends)

    def rest(self) -> None:
        """Nothing is watched any more from outside."""
        with self._lock:
            self.dump_to, self.last_resort = None, lambda text: None
            faulthandler.cancel_dump_traceback_later()

    def ring(self) -> None:
        """Raise `TookTooLong` where the call that is under way is due."""
        call = self._call
        if call is not None and call.over_s >= 0:
            raise TookTooLong(_words(call))


def _words(call: _Call) -> str:
    return f"it had not returned after {seconds_text(call.limit_s)}"


def _where() -> str:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return place_of((it.filename, it.lineno or 0) for it in traceback.extract_stack(frame))


DUMPED = re.compile(r"^Timeout \(", re.MULTILINE)
DUMPED_FRAME = re.compile(r'^  File "(.+)", line (\d+) in ', re.MULTILINE)


def hung_at(text: str, functions: Mapping[str, str]) -> str | None:
    """What faulthandler, or `last_resort`, has written, as the reason of a run's end; None where nothing of it.

    functions   of nodes, by their names
    """
    told = re.search(r"^UserCodeError: (.+)", text, re.MULTILINE)
    dumped = DUMPED.search(text)
    if told:
        words = told[1]
    elif dumped:
        threads = re.split(r"^(?:Current t|T)hread .*$", text[dumped.end() :], flags=re.MULTILINE)
        stacks = [[(file, int(line)) for file, line in DUMPED_FRAME.findall(it)][::-1] for it in threads]
        stacks = stacks[::-1]  # the main thread is the last
        own = [[it for it in stack if not it[0].startswith(LIBRARIES)] for stack in stacks]
        place = next(filter(None, map(place_of, [*own, *stacks])), "")
        words = f"{place}TookTooLong: it did not come back from C, and held the interpreter's lock"
    else:
        return None
    files = {function.rpartition(":")[0].rpartition("/")[2]: node for node, function in functions.items()}
    node = next((node for file, node in files.items() if file and f"{file}:" in words), None)
    return words if node is None else f"{node}: {words}"


def _ring(number: int, frame: object) -> None:
    WATCH.ring()


WATCH = Watch()
