"""Map files into memory as memspaces.

Such a file is as large as its memspace, and nothing else is in it. Its marker lies next to it: ``NAME.lima2`` holds the
file's inode and its size, so that it marks no other file that has taken that name. The file is locked as long as it is
mapped: it is one memspace of one run at a time.
"""

import json
import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.errors import EnvironmentUnfit
from lima2cli.paths import lock, unlock

SUFFIX = ".lima2"
VERSION = 1

IN_USE = "is the memspace of an active run"
OTHER = "exists, and is not a memspace that lima2 has made"


class MappedFile:
    """A file of ours, mapped and locked until `close`; ``memory`` are its bytes, writable."""

    def __init__(self, handle: IO[bytes], size: int) -> None:
        self._handle = handle
        self.memory: NDArray[np.uint8] = np.memmap(handle, np.uint8, "r+", shape=(size,))

    def close(self) -> None:
        """Flush it to the disk and release it; ``memory`` stays valid for those who still have it."""
        self.memory.flush()  # type: ignore[attr-defined]
        unlock(self._handle.fileno())  # the mapping keeps the file open, too
        self._handle.close()


def map_file(path: str, size: int) -> MappedFile:
    """Map a file of ``size`` bytes, created where it does not exist, else one of ours.

    Raises: EnvironmentUnfit where it is another file or in use, which is left as it is; OSError.
    """
    file, size = Path(path), max(1, size)
    file.parent.mkdir(parents=True, exist_ok=True)
    if (reason := objection(file)) is not None:
        raise EnvironmentUnfit(f"{path} {reason}")
    flags = 0 if os.path.lexists(file) else os.O_CREAT | os.O_EXCL
    descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o666)
    handle = os.fdopen(descriptor, "r+b")
    try:
        if not lock(descriptor):
            raise EnvironmentUnfit(f"{path} {IN_USE}")
        status = os.fstat(descriptor)
        if not flags and (reason := _objection_to(status, file)) is not None:  # looked at again, now that it is locked
            raise EnvironmentUnfit(f"{path} {reason}")
        _mark(file, status.st_ino, size, status.st_size)  # the file stays ours whenever this is cut short
        os.ftruncate(descriptor, size)
        _mark(file, status.st_ino, size)
        return MappedFile(handle, size)
    except BaseException:
        handle.close()
        raise


def objection(path: Path, *, in_use: bool = False) -> str | None:
    """Return the reason why a file can't be a memspace, in words that follow its name; None where it can.

    Nothing is changed. ``in_use``: also that a run uses it now.
    """
    if path.name.endswith(SUFFIX):
        return f"has a name that ends with {SUFFIX}, as those of markers do"
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return _objection_to_folder(path) or _objection_to_marker(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return f"cannot be made: {error.strerror if isinstance(error, OSError) else error}"
    if (reason := _objection_to(status, path)) is not None:
        return reason
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return f"cannot be written to: {error.strerror}"
    try:
        return IN_USE if in_use and not lock(descriptor) else None
    finally:
        os.close(descriptor)


def allocated(path: Path) -> int:
    """Return the bytes that a file has on the disk, 0 where there is none."""
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0


def _objection_to(status: os.stat_result, path: Path) -> str | None:
    if stat.S_ISLNK(status.st_mode):
        return "is a link: name the file itself"
    if stat.S_ISDIR(status.st_mode):
        return "is a directory"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_nlink > 1:
        return "also has another name (a hard link)"
    marker = _marker_data(path)
    if marker is None:
        return _objection_to_marker(path) or OTHER
    return None if marker["inode"] == status.st_ino and status.st_size in marker["sizes"] else OTHER


def _objection_to_folder(path: Path) -> str | None:
    folder = path.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        return f"cannot be made: {folder} is not a directory"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"cannot be made: {folder} cannot be written to"


def _objection_to_marker(path: Path) -> str | None:
    marker = _marker(path)
    if os.path.lexists(marker) and _marker_data(path) is None:
        return f"needs {marker.name} next to it, which exists and is not a file of lima2"
    return None


def _marker(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def _marker_data(path: Path) -> dict[str, Any] | None:
    """Return the contents of a file's marker, None where there is none."""
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        with os.fdopen(os.open(_marker(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
            marker = json.loads(file.read(4096))
        if marker["memspace"] == VERSION and isinstance(marker["inode"], int) and isinstance(marker["sizes"], list):
            return dict(marker)
    return None


def _mark(path: Path, inode: int, *sizes: int) -> None:
    """Write the marker in one step."""
    part = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    with part.open("x") as file:
        file.write(json.dumps({"memspace": VERSION, "inode": inode, "sizes": sizes}) + "\n")
    part.replace(_marker(path))
