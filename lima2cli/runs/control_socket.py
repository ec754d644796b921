"""Requests of users to a run that goes on: where it can be asked (``control.json``), and the socket that answers."""

import contextlib
import json
import os
import secrets
import selectors
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lima2cli.errors import RunFailed, UnreadableInput
from lima2cli.paths import json_object, read_json_object
from lima2cli.runs.processes import started
from lima2cli.secret import hidden

FILE = "control.json"
PREFIX = "lima2-"
"""Prefix of the name of a socket."""

VERSION = 1


def announce(directory: Path, name: str | None = None) -> None:
    """Note that this process runs what goes on in ``directory``.

    ``name`` is of its socket, None while there is none yet. Readers see the old file or the new one, never a part.

    Raises:
        OSError: the file can't be written.
    """
    content: dict[str, Any] = {"version": VERSION, "host": socket.gethostname(), "pid": os.getpid()}
    content |= {"started": started(os.getpid())} if name is None else {"socket": name}
    part = directory / f".{FILE}.part"
    part.write_text(json.dumps(content) + "\n")
    part.replace(directory / FILE)


def where(directory: Path) -> dict[str, Any] | None:
    """Return where a run can be asked, from its directory; None where no run goes on there.

    Raises:
        UnreadableInput: the file can't be read.
    """
    if not directory.is_dir():
        raise UnreadableInput(f"there is no run directory {directory}")
    try:
        content = read_json_object(directory / FILE)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UnreadableInput(f"{directory / FILE} can't be read: {error}") from error
    sound = isinstance(content.get("socket", ""), str) and isinstance(content.get("pid"), int)
    if not sound:
        raise UnreadableInput(f"{directory / FILE} is none of lima2's")
    return content


def elsewhere(told: dict[str, Any]) -> bool:
    """Return whether a run is one of another machine."""
    return told.get("host") != socket.gethostname()


def starting(told: dict[str, Any]) -> bool:
    """Return whether a run is being started: it has no socket yet, and its launcher is there, on this machine."""
    if "socket" in told or elsewhere(told):
        return False
    now = started(told["pid"])
    return now != "" and now == told.get("started")


def forget(directory: Path) -> None:
    """Remove what an aborted run has left about where to ask, where that can be.

    That may be a part of it, or what a machine that went down has left.
    """
    with suppress(OSError):
        (directory / f".{FILE}.part").unlink(missing_ok=True)
        try:
            place = where(directory)
            here = place is not None and not elsewhere(place)
        except UnreadableInput:
            here = os.access(directory / FILE, os.R_OK)  # it is damaged
        if here:
            (directory / FILE).unlink(missing_ok=True)


CREDENTIALS = struct.Struct("3i")
"""Process, user and group id of a peer (struct ucred)."""


def same_user(peer: socket.socket) -> bool:
    """Return whether a process of the same user is at the other end (SO_PEERCRED)."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    return bool(CREDENTIALS.unpack(credentials)[1] == os.getuid())


LONGEST = 4096
"""Maximal bytes of a request or an answer, and its end of line."""

PATIENCE_S = 10.0
"""Seconds that a run has to answer."""

Answer = Callable[[Mapping[str, Any]], dict[str, Any]]


class Requests:
    """The side of the run: `poll` answers the requests that have come, and never waits."""

    def __init__(self) -> None:
        """Listen.

        Raises:
            OSError: there can't be a socket.
        """
        self._files: list[Path] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._name = PREFIX + secrets.token_hex(16)
        self._listener.bind(f"\0{self._name}")
        self._listener.listen()
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._came: dict[socket.socket, bytes] = {}

    def announce(self, directory: str) -> None:
        """Note in a run directory where to ask.

        Raises:
            OSError: the file can't be written.
        """
        announce(Path(directory), self._name)
        self._files.append(Path(directory) / FILE)

    def poll(self, answer: Answer) -> None:
        """Answer the requests that are there."""
        for key, _ in self._selector.select(0):
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
        self._came[caller] += more
        line, end, _ = self._came[caller].partition(b"\n")
        if end or len(line) > LONGEST:
            with contextlib.suppress(OSError):
                caller.send(json.dumps(hidden(_answered(line, answer))).encode() + b"\n")
        if end or not more or len(line) > LONGEST:
            self._selector.unregister(caller)
            del self._came[caller]
            caller.close()

    def close(self) -> None:
        """Close the socket: no requests are taken any more."""
        for file in self._files:
            with contextlib.suppress(OSError):  # its directory went, or may not be written to any more
                file.unlink()
        self._selector.close()
        self._listener.close()


def _answered(line: bytes, answer: Answer) -> dict[str, Any]:
    try:
        request = json_object(line) if len(line) <= LONGEST else {}
    except ValueError:
        request = {}
    if not isinstance(request.get("do"), str):
        return {"ok": False, "message": "this is no request"}
    return answer(request)


def ask(directory: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Send a request to a run and return its answer, with ``ok``, and a ``message`` where that is false.

    Raises:
        UnreadableInput: there is no run directory.
        RunFailed: its run was aborted, is out of reach, or does not answer.
    """
    place = where(directory)
    if place is None:
        return {"ok": False, "message": f"no run goes on in {directory}: it has ended, or has not begun"}
    if place.get("host") != socket.gethostname():
        raise RunFailed(f"the run in {directory} is controlled on {place.get('host')}: ask there")
    if starting(place):
        return {"ok": False, "message": f"not yet: the run in {directory} is being started"}
    gone = f"the run in {directory} was broken off (process {place['pid']} is gone): lima2 recover {directory}"
    if "socket" not in place:
        raise RunFailed(gone)
    try:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(PATIENCE_S)
            caller.connect(f"\0{place['socket']}")
            if not same_user(caller):
                raise RunFailed(f"the run in {directory} is another user's")
            caller.sendall(json.dumps(request).encode() + b"\n")
            with caller.makefile("rb") as file:
                answer = json_object(file.readline(2 * LONGEST))
    except TimeoutError as error:
        raise RunFailed(f"the run in {directory} does not answer") from error
    except (OSError, ValueError) as error:
        raise RunFailed(gone) from error
    return answer
