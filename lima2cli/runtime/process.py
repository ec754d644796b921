"""Processes of this machine, told from later ones of the same number."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

EXITING = 0x4
"""PF_EXITING among the flags of a process (proc(5), stat, field 9)."""


def started(pid: int) -> str:
    """When a process was started (proc(5), stat, field 22); empty where it has ended, with all its files closed."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        threads = len(os.listdir(f"/proc/{pid}/task"))  # the first may have ended while others still hold the files
    except OSError:
        return ""
    return "" if fields[0] in "ZX" and threads <= 1 else fields[19]


def processes_with(variable: str, value: str) -> Iterator[int]:
    """Processes of this machine in whose environment a variable has a value: those of a job, whoever started them."""
    wanted = f"{variable}={value}".encode()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError):
                if wanted in Path("/proc", name, "environ").read_bytes().split(b"\0") and started(int(name)):
                    yield int(name)


def ending(stat: IO[bytes]) -> bool:
    """Whether a process has ended or is about to, by its open file ``/proc/PID/stat``."""
    try:
        fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return True
    return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & EXITING)


def parent_of(pid: int) -> int | None:
    """The process that has started another, or that has it now; None where that has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
