"""Leavings of faults: processes, shared memory, files of temporary folders, sockets. There should be nothing."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lima2cli.runs.control_socket import PREFIX
from lima2cli.runs.processes import NAMES, SHARED, _used, processes_with

MARK = "LIMA2_FAULTS_"
"""Begins the name of a variable in the environment of what is started, and so of all that this starts."""

PATIENCE_S = 90.0
"""Ranks without a launcher end in order."""


class Leavings:
    """All that is there now; what `left` lists was not, and is not of others: they may use the machine, too.

    folder  stands for the folder of temporary files
    """

    def __init__(self, folder: Path) -> None:
        self._mark = MARK + uuid.uuid4().hex
        self._folder = folder
        self._shared, self._sockets = _shared(), set(_sockets())

    @property
    def environment(self) -> dict[str, str]:
        """For the processes that are started."""
        hidden = ("PMI", "HYDRA", "LIMA2_LAUNCHED")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
        return kept | {self._mark: "1", "TMPDIR": str(self._folder)}

    def processes(self) -> list[int]:
        """Return the processes that go on."""
        return list(processes_with(self._mark, "1"))

    def left(self, patience_s: float = PATIENCE_S) -> list[str]:
        """In words; processes have ``patience_s`` to end."""
        end = time.monotonic() + patience_s
        while (going := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        found = [f"process {pid} is left: {_command(pid)}" for pid in going]
        found += [f"socket {name[1:]} is left" for name in sorted(self._ours(going))]
        new = _shared().keys() - self._shared.keys()
        if new:  # others that start have theirs open in a moment
            time.sleep(1)
            kept = {name: key for name, key in _shared().items() if name in new}
            used = _used(kept.values()) or set()
            found += [f"/dev/shm/{name} is left" for name, key in sorted(kept.items()) if key not in used]
        return found + [f"{path} is left" for path in sorted(self._folder.iterdir()) if "pytest" not in path.name]

    def _ours(self, going: list[int]) -> Iterator[str]:
        """Sockets that were not there, and that no process of others holds."""
        new = {name: inode for name, inode in _sockets().items() if name not in self._sockets}
        if new:
            held = {inode: pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) for inode in _held(pid)}
            now = _sockets()
            yield from (name for name, inode in new.items() if name in now and held.get(inode, -1) in [-1, *going])


def _sockets() -> dict[str, str]:
    """Abstract sockets of lima2 with their inodes."""
    found = {}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) == 8 and words[7].startswith(f"@{PREFIX}"):
            found[words[7]] = words[6]
    return found


def _held(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                link = os.readlink(f"/proc/{pid}/fd/{name}")
                if link.startswith("socket:["):
                    yield link[8:-1]


def _shared() -> dict[str, tuple[int, int]]:
    """Files of MPI in shared memory."""
    found = {}
    for name in os.listdir(SHARED):
        if NAMES.fullmatch(name):
            with suppress(OSError):
                status = os.stat(SHARED / name)
                found[name] = (status.st_dev, status.st_ino)
    return found


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    return "?"
