"""Measurements of this machine, each in bounded time: a start of two ranks with their bandwidth, and a disk's."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lima2cli.errors import EnvironmentUnfit
from lima2cli.human import seconds_text
from lima2cli.runtime.launch import RANK_VARIABLES
from lima2cli.runtime.loopback import Confined, local_variables

START_S = 30.0
"""Two ranks that have not ended by then hang."""

DISK_S = 0.5
DISK_BYTES = 256 << 20
PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class PutRate:
    """What two ranks told: bytes per second, the MPI library, and the seconds from start to end."""

    bytes_per_s: float
    library: str
    seconds: float


def measure_put(mpiexec: str, timeout_s: float = START_S) -> PutRate:
    """Start two ranks that write to each other's memory. Raises `EnvironmentUnfit` where they fail or hang."""
    command = [mpiexec, "-n", "2", sys.executable, "-m", "mpi4py", "-m", "lima2cli.runtime.put_probe"]
    environment = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    begin = time.monotonic()
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", env={**environment, **local_variables()}, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise EnvironmentUnfit(f"cannot start {mpiexec}: {error}") from error
    Confined(process.pid)
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise EnvironmentUnfit(f"two MPI ranks have not ended after {seconds_text(timeout_s)}") from None
        raise
    return _told(process.returncode, output, errors, time.monotonic() - begin)


def _told(code: int, output: str, errors: str, seconds: float) -> PutRate:
    for line in output.splitlines():
        with suppress(ValueError, TypeError, KeyError):
            said = json.loads(line)
            if code == 0:
                return PutRate(float(said["bytes_per_s"]), str(said["library"]), seconds)
    last = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "nothing was said")
    raise EnvironmentUnfit(f"two MPI ranks failed (exit code {code}): {last}")


def measure_disk(folder: Path, seconds: float = DISK_S, limit: int = DISK_BYTES) -> float:
    """Bytes per second written to a file of a folder until they are on the disk; the file is removed.

    It ends after ``seconds`` or ``limit`` bytes, and what the disk then takes to hold them. Raises OSError.
    """
    piece = os.urandom(PIECE_BYTES // 4) * 4  # no file system can compress it
    with tempfile.TemporaryFile(dir=folder, prefix=".lima2-doctor-", buffering=0) as file:
        begin, written = time.perf_counter(), 0
        while written < limit and time.perf_counter() - begin < seconds:
            written += file.write(piece)
            os.fdatasync(file.fileno())
        return written / (time.perf_counter() - begin)
