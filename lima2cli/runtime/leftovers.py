"""Shared memory of MPI that processes left in /dev/shm when they were killed while they started.

MPICH and UCX make files there, which all ranks map and then unlink; who is killed before leaves them. A file is
removed only where it is of this user and no process has it mapped or open. Of older ones, ranks that cannot be seen
from here (in another container that shares /dev/shm) have mapped what they need by now, and lose nothing either.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

SHARED = Path("/dev/shm")
NAMES = re.compile(r"(mpich|ucx)_shm_\w+")
MAPPING = re.compile(r"^\S+ \S+ \S+ (\w+):(\w+) (\d+)", re.MULTILINE)

OLD_S = 120.0
"""No start takes so long."""

Key = tuple[int, int]
"""Device and inode."""


def sweep(since_ns: int | None = None, folder: Path = SHARED) -> list[str]:
    """Remove what no living process uses: files made since ``since_ns`` (`time.time_ns`), by default all old ones.
    Returns their names; nothing is removed where it cannot be known."""
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
    """Those of some files that any process has mapped or open; None where a process of this user cannot be asked."""
    wanted, found = set(keys), set[Key]()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        process = Path("/proc", name)
        try:
            found |= wanted.intersection(_held(process))
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        except PermissionError:
            with suppress(OSError):
                if name != "1" and process.stat().st_uid == os.getuid():  # 1 is no rank, where it cannot be asked
                    return None
        except OSError:
            return None
    return found


def _held(process: Path) -> Iterator[Key]:
    """Files that are open are looked for first: one that is being mapped is closed after that, and is never missed."""
    for link in os.listdir(process / "fd"):
        with suppress(FileNotFoundError):
            status = os.stat(process / "fd" / link)
            yield status.st_dev, status.st_ino
    for major, minor, inode in MAPPING.findall((process / "maps").read_text(errors="replace")):
        yield os.makedev(int(major, 16), int(minor, 16)), int(inode)
