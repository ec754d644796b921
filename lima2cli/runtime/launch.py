"""Starts the ranks of a plan, and stays outside of them: it handles signals, passes events on, and tells the truth
when ranks die.

Under MPI each rank is a process of ``mpiexec``; the launcher itself is no rank. Where MPI is not installed all
ranks run in this process.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lima2cli.errors import EnvironmentUnfit
from lima2cli.plan.records import Plan
from lima2cli.runtime.closing import close_broken, read_summary
from lima2cli.runtime.job import STOP, Job, write_job

LOG = "lima2.log"
RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
"""Set by mpiexec and srun in the processes that they start."""

Emit = Callable[[dict[str, Any]], None]


@dataclass
class Signals:
    """What the user asked for: the first signal stops the run cleanly, the second at once."""

    received: list[int] = field(default_factory=list)
    on_first: Callable[[], None] = lambda: None
    on_second: Callable[[], None] = lambda: None

    def handle(self, number: int, frame: object) -> None:
        """Signal handler."""
        self.received.append(number)
        (self.on_first if len(self.received) == 1 else self.on_second)()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While a run is on."""
        before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def under_mpi() -> bool:
    """Whether this process was itself started by mpiexec or srun as one of several ranks."""
    return any(name in os.environ for name in RANK_VARIABLES)


def find_mpiexec() -> str | None:
    """The launcher of the MPI that this Python uses: beside the interpreter first, then on the path."""
    if importlib.util.find_spec("mpi4py") is None:
        return None
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def run_with_mpiexec(
    mpiexec: str, plan: Plan, base: Path, directory: Path, emit: Emit, signals: Signals
) -> dict[str, Any]:
    """Run on MPI ranks; returns the summary, which is there whatever happened to the ranks."""
    path, digest = write_job(Job(plan, str(base), str(directory)))
    ranks = [mpiexec, "-n", str(len(plan.ranks)), sys.executable, "-m", "mpi4py"]
    command = [*ranks, "-m", "lima2cli.runtime.worker", str(path), digest]
    with (directory / LOG).open("wb") as log:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        except OSError as error:
            raise EnvironmentUnfit(f"cannot start {mpiexec}: {error}") from error
        assert process.stdin is not None
        assert process.stdout is not None
        signals.on_first = lambda: _send_stop(process)
        signals.on_second = lambda: _kill(process)
        with signals.installed():
            for line in process.stdout:
                _pass_on(line, emit)
            code = process.wait()
    path.unlink(missing_ok=True)
    summary = read_summary(directory)
    if summary is None:
        summary = close_broken(plan, directory, _why(code, signals))
    return summary


def _send_stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(STOP)
        process.stdin.flush()
    except (BrokenPipeError, ValueError):
        return


def _kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def _pass_on(line: bytes, emit: Emit) -> None:
    """An event of the control rank; anything else is something that user code printed."""
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if isinstance(event, dict) and "type" in event:
        emit(event)
    elif text := line.decode(errors="replace").rstrip():
        emit({"type": "event", "event": "output", "message": text})


def _why(code: int, signals: Signals) -> str:
    if len(signals.received) > 1:
        return "ended at once by the user"
    return f"the ranks ended without a summary (mpiexec: exit code {code}); see {LOG}"
