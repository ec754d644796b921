"""Requests of users to a run that goes on: where it can be asked (``control.json``), and asking."""

import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from lima2cli.errors import RunFailed, StateError, UnreadableInput
from lima2cli.paths import json_object, read_json_object
from lima2cli.runs.processes import started

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
        raise UnreadableInput(f"{directory / FILE} is not a file of lima2")
    return content


def elsewhere(place: dict[str, Any]) -> bool:
    """Return whether a run is one of another machine."""
    return place.get("host") != socket.gethostname()


def starting(place: dict[str, Any]) -> bool:
    """Return whether a run is starting: it has no socket yet, and its launcher is there, on this machine."""
    if "socket" in place or elsewhere(place):
        return False
    now = started(place["pid"])
    return now != "" and now == place.get("started")


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


class HangUp:
    """Ends a `watch` or a `tap` from another thread, as if the run had ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._caller: socket.socket | None = None
        self.asked = False

    def __call__(self) -> None:
        """End it now, or as soon as it begins."""
        with self._lock:
            self.asked = True
            self._shut()

    def holds(self, caller: socket.socket | None) -> None:
        """Note the connection that is to be ended; None where it has been closed."""
        with self._lock:
            self._caller = caller
            if self.asked:
                self._shut()

    def _shut(self) -> None:
        if self._caller is not None:
            with suppress(OSError):  # the run has ended meanwhile
                self._caller.shutdown(socket.SHUT_RDWR)


LONGEST_ANSWER = 1 << 20
"""Maximal bytes of an answer or an event, with the end of line."""

PATIENCE_S = 10.0
"""Seconds that a run has to answer."""


def ask(directory: Path, request: Mapping[str, Any], patience_s: float = PATIENCE_S) -> dict[str, Any]:
    """Send a request to a run and return its answer, with ``ok``, and a ``message`` where that is false.

    patience_s  seconds that it has to answer

    Raises:
        UnreadableInput: there is no run directory.
        RunFailed: its run was aborted, is out of reach, or does not answer.
    """
    place = _place(directory)
    if isinstance(place, str):
        return {"ok": False, "message": place}
    with _asked(directory, place, request, patience_s=patience_s) as file:
        return json_object(file.readline(LONGEST_ANSWER))


def watch(directory: Path, hang_up: HangUp | None = None) -> Iterator[dict[str, Any]]:
    """Yield the answer to a request for the status of a run, and then its events as they come, to its end.

    hang_up  ends it before

    Where the run refuses, or does not go on, its answer is all there is; ``ok`` is false then.

    Raises: as `ask`.
    """
    place = _place(directory)
    if isinstance(place, str):
        yield {"ok": False, "message": place}
        return
    with _asked(directory, place, {"do": "watch"}, hang_up or HangUp()) as file:
        while (line := file.readline(LONGEST_ANSWER)).endswith(b"\n"):
            yield json_object(line)


def tap(
    directory: Path, node: str, period_s: float = 0.0, hang_up: HangUp | None = None
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield frames of a flow or node of a run as they come, to its end: what is told of each, and its bytes.

    Where pixels are masked in all frames the mask comes first, its ``type`` is ``mask``.

    period_s  the least seconds from one to the next; frames that come while one is sent are left out
    hang_up   ends it before

    Raises: as `ask`; `StateError` where the run refuses, or does not go on.
    """
    place = _place(directory)
    if isinstance(place, str):
        raise StateError(place)
    request = {"version": VERSION, "do": "tap", "node": node, "period": period_s, "mask": True}
    hang_up = hang_up or HangUp()
    with _asked(directory, place, request, hang_up) as file:
        line = file.readline(LONGEST_ANSWER)
        if hang_up.asked:
            return
        answer = json_object(line)
        if not answer.get("ok"):
            raise StateError(str(answer.get("message")))
        while (line := file.readline(LONGEST_ANSWER)).endswith(b"\n"):
            head = json_object(line)
            pixels = file.read(int(head["bytes"]))
            if len(pixels) < head["bytes"]:
                return  # the run has ended meanwhile
            yield head, pixels


def _place(directory: Path) -> dict[str, Any] | str:
    """Return where a run can be asked, or why it can't be asked now.

    Raises:
        UnreadableInput: there is no run directory.
        RunFailed: its run was aborted or is out of reach.
    """
    place = where(directory)
    if place is None:
        return f"no run is active in {directory}: it has ended, or has not begun"
    if elsewhere(place):
        raise RunFailed(f"the run in {directory} is controlled on {place.get('host')}: ask there")
    if starting(place):
        return f"not yet: the run in {directory} is starting"
    if "socket" not in place:
        raise RunFailed(_gone(directory, place))
    return place


def _gone(directory: Path, place: Mapping[str, Any]) -> str:
    return f"the run in {directory} was aborted (process {place['pid']} is gone): lima2 recover {directory}"


@contextlib.contextmanager
def _asked(
    directory: Path,
    place: Mapping[str, Any],
    request: Mapping[str, Any],
    hang_up: HangUp | None = None,
    patience_s: float = PATIENCE_S,
) -> Iterator[BinaryIO]:
    """Give the answers to a request, a line each. With ``hang_up`` they may come at any time, until it is called."""
    try:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(patience_s)
            caller.connect(f"\0{place['socket']}")
            if not same_user(caller):
                raise RunFailed(f"the run in {directory} is another user's")
            caller.sendall(json.dumps(request).encode() + b"\n")
            if hang_up is None:
                with caller.makefile("rb") as file:
                    yield file
                return
            caller.settimeout(None)
            hang_up.holds(caller)
            try:
                with caller.makefile("rb") as file:
                    yield file
            finally:
                hang_up.holds(None)
    except TimeoutError as error:
        raise RunFailed(f"the run in {directory} does not answer") from error
    except (OSError, ValueError) as error:
        raise RunFailed(_gone(directory, place)) from error
