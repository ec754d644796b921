"""``control.json``: says in a run directory that a run goes on there, and where it can be asked.

The launcher writes it with the directory, without ``socket``: the run is being started. The control rank replaces it.
"""

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from lima2cli.errors import UnreadableInput
from lima2cli.plain import read_json_object
from lima2cli.runtime.process import started

FILE = "control.json"
PREFIX = "lima2-"
"""Of the name of a socket."""

VERSION = 1


def announce(directory: Path, name: str | None = None) -> None:
    """Say that this process runs what goes on in ``directory``; ``name`` of its socket, None while there is none yet.
    Readers see the old file or the new one, never a part. OSError."""
    told: dict[str, Any] = {"version": VERSION, "host": socket.gethostname(), "pid": os.getpid()}
    told |= {"started": started(os.getpid())} if name is None else {"socket": name}
    part = directory / f".{FILE}.part"
    part.write_text(json.dumps(told) + "\n")
    part.replace(directory / FILE)


def where(directory: Path) -> dict[str, Any] | None:
    """What a run directory says; None where no run goes on there. Raises `UnreadableInput`."""
    if not directory.is_dir():
        raise UnreadableInput(f"there is no run directory {directory}")
    try:
        told = read_json_object(directory / FILE)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UnreadableInput(f"{directory / FILE} can't be read: {error}") from error
    sound = isinstance(told.get("socket", ""), str) and isinstance(told.get("pid"), int)
    if not sound:
        raise UnreadableInput(f"{directory / FILE} is none of lima2's")
    return told


def elsewhere(told: dict[str, Any]) -> bool:
    """Whether a run is one of another machine."""
    return told.get("host") != socket.gethostname()


def starting(told: dict[str, Any]) -> bool:
    """Whether a run is being started: it has no socket yet, and its launcher is there, on this machine."""
    if "socket" in told or elsewhere(told):
        return False
    now = started(told["pid"])
    return now != "" and now == told.get("started")


def forget(directory: Path) -> None:
    """Clear what a run that was broken off says of itself, where that can be; a part of it too, or what a machine that
    went down has left."""
    with suppress(OSError):
        (directory / f".{FILE}.part").unlink(missing_ok=True)
        try:
            told = where(directory)
            here = told is not None and not elsewhere(told)
        except UnreadableInput:
            here = os.access(directory / FILE, os.R_OK)  # it is damaged
        if here:
            (directory / FILE).unlink(missing_ok=True)
