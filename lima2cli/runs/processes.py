"""Processes of a run, the shared memory that they leave when killed, and the directory that may move under them."""

import os
import re
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from lima2cli.errors import RunFailed

EXITING = 0x4
"""Flag PF_EXITING of a process (proc(5), stat, field 9)."""


def started(pid: int) -> str:
    """Return when a process was started (proc(5), stat, field 22); empty where it has ended and closed its files."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        threads = len(os.listdir(f"/proc/{pid}/task"))  # the first may have ended while others still hold the files
    except OSError:
        return ""
    return "" if fields[0] in "ZX" and threads <= 1 else fields[19]


def processes_with(variable: str, value: str) -> Iterator[int]:
    """Yield the processes of this machine in whose environment a variable has a value.

    They are those of a job, whoever started them.
    """
    wanted = f"{variable}={value}".encode()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError):
                if wanted in Path("/proc", name, "environ").read_bytes().split(b"\0") and started(int(name)):
                    yield int(name)


def ending(stat: IO[bytes]) -> bool:
    """Return whether a process has ended or is about to, by its open file ``/proc/PID/stat``."""
    try:
        fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return True
    return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & EXITING)


def is_stopped(pid: int) -> bool:
    """Return True for a process that is stopped (proc(5), stat, field 3)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False


def parent_of(pid: int) -> int | None:
    """Return the process that has started another, or that has it now; None where that has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def descendants(pid: int) -> list[int]:
    """Return the processes of this machine that descend from one, and have not ended.

    Those whose parent has ended are among them where the process is a subreaper (prctl(2)).
    """
    parents = {int(name): parent_of(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one and started(child)]
    return found[1:]


PATIENCE_S = 5.0
"""Seconds that processes have to end, and again to be gone when they were killed."""


def await_end(left: Callable[[], Collection[int]], seconds: float = PATIENCE_S) -> None:
    """Wait a little for the processes ``left()`` to end."""
    deadline = time.monotonic() + seconds
    while left() and time.monotonic() < deadline:
        time.sleep(0.02)


def kill(left: Callable[[], Collection[int]], seconds: float = PATIENCE_S) -> None:
    """Kill the processes ``left()``, those that are being started meanwhile, too, and wait a little for them to go."""
    deadline = time.monotonic() + seconds
    while (pids := left()) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(OSError):  # it has ended, or is another user's
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


SHARED = Path("/dev/shm")
NAMES = re.compile(r"(mpich|ucx)_shm_\w+")
MAPPING = re.compile(r"^\S+ \S+ \S+ (\w+):(\w+) (\d+)", re.MULTILINE)

OLD_S = 120.0
"""Seconds within which every start is done."""

Key = tuple[int, int]
"""Device and inode of a file."""


def sweep(since_ns: int | None = None, folder: Path = SHARED) -> list[str]:
    """Remove files that no living process uses, made since ``since_ns`` (`time.time_ns`), by default all old ones.

    Returns their names; nothing is removed where it cannot be known.
    """
    candidates = {}
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                ours = NAMES.fullmatch(entry.name) and status.st_uid == os.getuid() and entry.is_file()
                made = status.st_ctime_ns
                if ours and (made >= since_ns if since_ns is not None else made < time.time_ns() - OLD_S * 1e9):
                    candidates[status.st_dev, status.st_ino] = entry.path
    if not candidates:
        return []
    used = _used(candidates)
    removed = []
    for key, path in candidates.items():
        if used is not None and key not in used:
            with suppress(OSError):
                os.unlink(path)
                removed.append(Path(path).name)
    return sorted(removed)


def _used(keys: Iterable[Key]) -> set[Key] | None:
    """Return those of some files that any process has mapped or open.

    None where a process of this user cannot be asked.
    """
    wanted, used = set(keys), set[Key]()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        process = Path("/proc", name)
        try:
            used |= wanted.intersection(_held(process))
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        except PermissionError:
            with suppress(OSError):
                if name != "1" and process.stat().st_uid == os.getuid():  # 1 is not a rank, where it cannot be asked
                    return None
        except OSError:
            return None
    return used


def _held(process: Path) -> Iterator[Key]:
    """Yield the files that a process holds.

    Open files are looked for first: one that is being mapped is closed after that, and is never missed.
    """
    for link in os.listdir(process / "fd"):
        with suppress(FileNotFoundError):
            status = os.stat(process / "fd" / link)
            yield status.st_dev, status.st_ino
    for major, minor, inode in MAPPING.findall((process / "maps").read_text(errors="replace")):
        yield os.makedev(int(major, 16), int(minor, 16)), int(inode)


class HeldDirectory:
    """A directory that is held open, until `close`.

    ``path`` is where it was, absolute; set by whoever moves it.

    Raises:
        OSError: it can't be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.descriptor = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def now(self) -> Path | None:
        """Return where it is now; None where it was removed."""
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self.descriptor)):
                return self.path
        except OSError:  # nothing has that name any more
            pass
        return self._moved()

    def _moved(self) -> Path | None:
        try:
            path = Path(os.readlink(f"/proc/self/fd/{self.descriptor}"))
            return path if os.path.samestat(os.stat(path), os.fstat(self.descriptor)) else None
        except OSError:
            return None

    def gone(self) -> str | None:
        """Return a sentence where it is no longer where it was, else None."""
        now = self.now()
        if now == self.path:
            return None
        became = "removed" if now is None else f"renamed to {now}"
        return f"the run directory is gone: {self.path} was {became} during the run"

    def found(self) -> Path:
        """Return where it is now.

        Raises:
            RunFailed: it was removed.
        """
        now = self.now()
        if now is None:
            raise RunFailed(f"{self.gone()}; nothing of the run is kept")
        return now

    def close(self) -> None:
        """Release the directory."""
        os.close(self.descriptor)
