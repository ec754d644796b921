"""The side of the run of its control socket: requests are answered, events and frames are sent to those who asked."""

import contextlib
import json
import math
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.paths import json_object
from lima2cli.runs.control_socket import FILE, PREFIX, announce, same_user
from lima2cli.secret import hidden

LONGEST = 4096
"""Maximal bytes of a request, with the end of line."""

AT_ONCE = 64
"""Requests that are handled in one turn."""

BACKLOG_BYTES = 1 << 18
"""Bytes of events that one who watches has not taken yet; beyond, reports of progress are left out.

At the double of it the connection is closed: whoever watches has stopped.
"""

LAST_EVENTS_S = 0.5
"""Seconds that those who watch have to take the last events."""

MOST_TAPS = 64
"""Maximal number of those that look at frames of one run at a time: for each a frame is kept while it is sent."""

Answer = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass
class Tap:
    """One who looks at a flow or node: the least seconds from one frame to the next, and what is being sent."""

    node: str
    period_s: float
    parts: deque[memoryview] = field(default_factory=deque)
    sent_at: float = -math.inf
    last: tuple[int, int] = (0, -1)

    def waits(self, now: float) -> bool:
        """Return whether the next frame is due, and the last one is sent."""
        return not self.parts and now - self.sent_at >= self.period_s

    def send(self, head: Mapping[str, Any], pixels: memoryview) -> None:
        """Send a line, and bytes behind it, as far as they are taken."""
        self.parts += (memoryview(_line(head)), pixels)

    def newer(self, head: Mapping[str, Any]) -> bool:
        """Return whether a frame comes after those before; receivers send theirs at different times."""
        before, self.last = self.last, max(self.last, (head["acquisition"], head["frame_number"]))
        return self.last > before


class Requests:
    """The side of the run: `poll` answers the requests that have come, and never waits.

    The connection of one whose answer has ``watch`` stays open: it gets the events that are pushed, one a line. So does
    that of one whose answer has a `Tap`: it gets frames.
    """

    def __init__(self) -> None:
        """Listen.

        Raises:
            OSError: there can't be a socket.
        """
        self._files: list[Path] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._name = PREFIX + os.urandom(16).hex()
        self._listener.bind(f"\0{self._name}")
        self._listener.listen()
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._came: dict[socket.socket, bytes] = {}
        self._watching: dict[socket.socket, bytearray] = {}
        self.taps: dict[socket.socket, Tap] = {}
        self._later: dict[int, socket.socket] = {}

    def announce(self, directory: str) -> None:
        """Note in a run directory where to ask.

        Raises:
            OSError: the file can't be written.
        """
        announce(Path(directory), self._name)
        self._files.append(Path(directory) / FILE)

    def moved(self, directory: str) -> None:
        """Note that the run directory that was announced last has been moved, with what it says."""
        self._files[-1] = Path(directory) / FILE

    def poll(self, answer: Answer) -> bool:
        """Answer the requests that are there; return whether a frame is being sent, which takes several turns."""
        for _ in range(AT_ONCE):
            ready = self._selector.select(0)
            if not ready:
                break
            self._handle(ready, answer)
        for watcher in list(self._watching):
            self._send(watcher)
        for caller in list(self.taps):
            self._send_frame(caller)
        return any(tap.parts for tap in self.taps.values())

    def wait(self, seconds: float) -> None:
        """Wait until somebody asks, or a connection is closed, so long at most."""
        self._selector.select(seconds)

    def wanted(self) -> set[str]:
        """Return the flows and nodes of which somebody waits for the next frame."""
        now = time.monotonic()
        return {tap.node for tap in self.taps.values() if tap.waits(now)}

    def give(self, head: Mapping[str, Any], pixels: memoryview) -> None:
        """Send a frame, its bytes behind a line about it, to those that wait for it; others get a later one."""
        now = time.monotonic()
        for caller, tap in list(self.taps.items()):
            if tap.node == head["node"] and tap.waits(now) and tap.newer(head):
                tap.sent_at = now
                tap.send(head, pixels)
                self._send_frame(caller)

    def _send_frame(self, caller: socket.socket) -> None:
        parts = self.taps[caller].parts
        try:
            while parts:
                parts[0] = parts[0][caller.send(parts[0]) :]
                if not parts[0]:
                    parts.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._forget(caller)

    def _handle(self, ready: Sequence[tuple[selectors.SelectorKey, int]], answer: Answer) -> None:
        for key, _ in ready:
            if key.fileobj is self._listener:
                with contextlib.suppress(OSError):  # whoever called has gone again
                    caller, _ = self._listener.accept()
                    if not same_user(caller):
                        caller.close()
                        continue
                    caller.setblocking(False)
                    self._came[caller] = b""
                    self._selector.register(caller, selectors.EVENT_READ)
            elif isinstance(key.fileobj, socket.socket):
                self._read(key.fileobj, answer)

    def _read(self, caller: socket.socket, answer: Answer) -> None:
        try:
            more = caller.recv(LONGEST)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if caller in self._watching or caller in self.taps or caller in self._later.values():
            if not more:
                self._forget(caller)
            return
        self._came[caller] += more
        line, end, _ = self._came[caller].partition(b"\n")
        if end or len(line) > LONGEST:
            answered = _answered(line, answer)
            tap, later = answered.pop("tap", None), answered.pop("later", None)
            if later is not None:
                self._later[later] = caller
                del self._came[caller]
                return
            if answered.pop("watch", False):
                self._watching[caller] = bytearray(_line(answered))
                del self._came[caller]
                return
            if tap is not None and len(self.taps) < MOST_TAPS:
                tap.parts.appendleft(memoryview(_line(answered)))
                self.taps[caller] = tap
                del self._came[caller]
                return
            if tap is not None:
                answered = {"ok": False, "message": f"{MOST_TAPS} look at frames of this run already"}
            with contextlib.suppress(OSError):
                caller.send(_line(answered))
        if end or not more or len(line) > LONGEST:
            self._selector.unregister(caller)
            del self._came[caller]
            caller.close()

    def push(self, event: Mapping[str, Any]) -> None:
        """Send an event to those that watch; one that takes nothing for long is left."""
        if not self._watching:
            return
        line = _line(event)
        for watcher, backlog in list(self._watching.items()):
            if len(backlog) > 2 * BACKLOG_BYTES:
                self._forget(watcher)
            elif len(backlog) <= BACKLOG_BYTES or event.get("type") != "progress":
                backlog += line
                self._send(watcher)

    def _send(self, watcher: socket.socket) -> None:
        backlog = self._watching[watcher]
        try:
            while backlog:
                del backlog[: watcher.send(backlog)]
        except BlockingIOError:
            return
        except OSError:
            self._forget(watcher)

    def _forget(self, watcher: socket.socket) -> None:
        self._selector.unregister(watcher)
        self._later = {number: caller for number, caller in self._later.items() if caller is not watcher}
        self._watching.pop(watcher, None)
        self.taps.pop(watcher, None)
        watcher.close()

    def close(self) -> None:
        """Close the socket: no requests are taken any more. Those that watch get the last events first."""
        end = time.monotonic() + LAST_EVENTS_S
        while self._unsent() and time.monotonic() < end:
            for watcher in list(self._watching):
                self._send(watcher)
            for caller in list(self.taps):
                self._send_frame(caller)
            time.sleep(1e-3)
        for caller in (*self._watching, *self.taps, *self._later.values()):
            self._forget(caller)
        for file in self._files:
            with contextlib.suppress(OSError):  # its directory went, or may not be written to any more
                file.unlink()
        self._selector.close()
        self._listener.close()

    def reply(self, number: int, answer: Mapping[str, Any]) -> None:
        """Answer a request whose answer had to wait (``later``); whoever asked may have gone."""
        caller = self._later.get(number)
        if caller is not None:
            with contextlib.suppress(OSError):
                caller.send(_line(answer))
            self._forget(caller)

    def _unsent(self) -> bool:
        return any(self._watching.values()) or any(tap.parts for tap in self.taps.values())


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(hidden(content)).encode() + b"\n"


def _answered(line: bytes, answer: Answer) -> dict[str, Any]:
    try:
        request = json_object(line) if len(line) <= LONGEST else {}
    except ValueError:
        request = {}
    if not isinstance(request.get("do"), str):
        return {"ok": False, "message": "not a valid request"}
    return answer(request)
