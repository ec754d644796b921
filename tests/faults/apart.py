"""The program in a copy of this process, which has imported all that it needs, with what it cost."""

import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lima2cli.cli import app

WAITING = 10
"""Times as long as it may compute a call may take: the machine may be busy."""


@dataclass(frozen=True)
class Ended:
    """A call of the program. ``code``: exit code, negative the signal that ended it (-9: it took too long).
    ``memory``: bytes at most, beyond those at its start; of a process that died it is 0.
    """

    code: int
    said: str
    cpu_s: float
    memory: int


def forked(
    words: list[str],
    folder: Path,
    seconds: float,
    addresses: int = 32 << 30,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Ended:
    """Call the program in ``folder``, for some seconds of CPU time at most, with some bytes of address space.

    environment  variables that are set in addition
    """
    output, cost = folder / "output", folder / "cost"
    cost.unlink(missing_ok=True)
    pid = os.fork()
    if not pid:
        code = 3
        try:
            os.environ.update(environment)
            tempfile.tempdir = None  # TMPDIR may be another
            _alone(output, folder, addresses)
            most = int(seconds + time.process_time()) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (most, most))
            reset_peak()
            before, begun = status("VmRSS"), time.process_time()
            try:
                app(words, prog_name="lima2")
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            cost.write_text(json.dumps([time.process_time() - begun, status("VmHWM") - before]))
        except BaseException as error:  # noqa: BLE001 - a traceback is a fault to be reported
            print(f"internal-error {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end, done = time.monotonic() + WAITING * seconds, 0
    while not done:
        done, ended = os.waitpid(pid, os.WNOHANG)
        if not done and time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    cpu, memory = json.loads(cost.read_text()) if cost.exists() else (0.0, 0)
    said = output.read_bytes()[: 1 << 20].decode(errors="replace") if output.exists() else ""
    return Ended(os.waitstatus_to_exitcode(ended), said, cpu, memory)


def _alone(output: Path, folder: Path, addresses: int) -> None:
    """Standard streams, directory, session and limits of its own."""
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(written, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.chdir(folder)
    os.setsid()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_AS, (addresses, resource.RLIM_INFINITY))


def reset_peak() -> None:
    """Forget the most resident bytes so far."""
    Path("/proc/self/clear_refs").write_text("5")


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status: ``VmRSS``, or ``VmHWM``, the most since `reset_peak`."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) << 10
