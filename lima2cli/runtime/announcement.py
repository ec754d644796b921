"""``control.json``: says in a run directory that a run goes on there, and where it can be asked.

The launcher writes it with the directory, without ``socket``: the run is being started. The control rank replaces it.
"""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

from lima2cli.errors import UnreadableInput
from lima2cli.plain import read_json_object
from lima2cli.runtime.process import started

FILE = "control.json"
PREFIX = "lima2-"
"""Of the directory of a socket."""

VERSION = 1


def announce(directory: Path, path: str | None = None) -> None:
    """Say that this process runs what goes on in ``directory``; ``path`` of its socket, None while there is none yet.
    Readers see the old file or the new one, never a part. OSError."""
    told: dict[str, Any] = {"version": VERSION, "host": socket.gethostname(), "pid": os.getpid()}
    told |= {"started": started(os.getpid())} if path is None else {"socket": path}
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


def starting(told: dict[str, Any]) -> bool:
    """Whether a run is being started: it has no socket yet, and its launcher is there, on this machine."""
    if "socket" in told or told.get("host") != socket.gethostname():
        return False
    now = started(told["pid"])
    return now != "" and now == told.get("started")


def forget(directory: Path) -> None:
    """Clear what a run that was broken off has left of its socket."""
    try:
        told = where(directory)
    except UnreadableInput:
        return
    if told is None or told.get("host") != socket.gethostname():
        return
    folder = Path(told["socket"]).parent if "socket" in told else None
    if folder and folder.name.startswith(PREFIX) and folder.is_dir() and folder.stat().st_uid == os.getuid():
        shutil.rmtree(folder, ignore_errors=True)
    (directory / FILE).unlink(missing_ok=True)
