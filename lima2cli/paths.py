"""Paths with links followed, locks of whole files (flock(2)), and JSON objects that others may have damaged."""

import errno
import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def real(path: Path) -> Path:
    """Return the path with all links followed; it need not exist."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):  # no name that a file can have
        return path.absolute()


def is_file(path: Path) -> bool:
    """Return True if there is such a file; False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def same(one: Path, other: Path) -> bool:
    """Return True if two paths lead to one file or directory, links followed."""
    try:
        return one == other or os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def held_in(directory: Path, paths: Iterable[str | Path]) -> list[Path]:
    """Return the paths that are a directory, or lead into it, links followed.

    A directory that is mounted elsewhere, too, is the same there.
    """
    folder = real(directory)
    known: dict[Path, bool] = {}

    def inside(path: Path) -> bool:
        if path not in known:
            known[path] = same(path, folder) or (path.parent != path and inside(path.parent))
        return known[path]

    return [path for path in map(Path, paths) if inside(real(path))]


LARGEST = 64 << 20
"""Most bytes of a file that is read; those of lima2 are far smaller."""


def json_object(text: str | bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises: ValueError where it is none, one that is nested too deep, or no UTF-8.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is not an object but {type(value).__name__}")
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises: OSError where it can't be read, ValueError as of `json_object`.
    """
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
    return json_object(data)


NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""Error numbers of file systems without locks."""


def lock(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file for this process alone; return False where another one holds it.

    Where the file system has no locks it counts as locked.

    Raises: OSError.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in NO_LOCKS:
            raise
    return True


def unlock(descriptor: int) -> None:
    """Unlock a file for all that have it open by the same `open`.

    Raises: OSError.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


__all__ = ["held_in", "is_file", "real", "same"]
