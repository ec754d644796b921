"""One run of a plan, from an empty directory to its summary, by whatever transport there is."""

import datetime
import shutil
import signal
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lima2cli.errors import EnvironmentUnfit
from lima2cli.plan.records import Plan
from lima2cli.runtime.announcement import announce
from lima2cli.runtime.broken import conclude
from lima2cli.runtime.directory import make_directory
from lima2cli.runtime.environment import check_files, check_memory, check_placement, check_programs
from lima2cli.runtime.job import BY_USER
from lima2cli.runtime.launch import AT_ONCE, LOG, Directories, Emit, Signals, find_mpiexec, run_with_mpiexec
from lima2cli.runtime.origin import Origin
from lima2cli.runtime.placement import all_here
from lima2cli.runtime.ranks import run_inline
from lima2cli.runtime.saved_plan import plan_contents

COMPLETE, FAILED, DATA_LOST, UNFIT = 0, 10, 11, 12
"""Exit codes of a run, as the command line documents them; 128 + n after signal n."""


def run_plan(
    plan: Plan, origin: Origin, emit: Emit, *, transport: str, latest: bool = True
) -> tuple[Path, dict[str, Any], int]:
    """Run; gives the directory, the summary and the exit code.

    ``transport`` is ``auto`` (MPI where it is installed), ``mpi`` or ``inline``; ``latest``: the link of that name
    beside the directory points to it from then on. Raises `EnvironmentUnfit` before anything is started, `RunFailed`
    where not even the summary can be written.
    """
    mpiexec = find_mpiexec() if transport != "inline" else None
    if transport == "mpi" and mpiexec is None:
        raise EnvironmentUnfit("no MPI here: pip install 'lima2cli[mpi]', or --transport inline")
    check_programs(plan, origin.base, by_mpi=mpiexec is not None)
    plan.detector.check_machine()
    placed = plan if mpiexec is not None else all_here(plan)
    check_memory(placed, shared=mpiexec is not None)
    check_files(placed, origin.base)
    check_placement(placed)
    directory = open_directory(plan, origin, latest=latest)
    if transport == "auto" and mpiexec is None:
        emit({"type": "event", "event": "inline", "message": "no MPI here: all ranks run in this process"})
    if mpiexec is None and any(it.said for it in plan.placements):
        message = "all ranks run in this process: `host`, `cpus` and `numa` of receivers mean nothing"
        emit({"type": "event", "event": "placement", "message": message})
    signals = Signals()
    with signals.installed():
        if mpiexec is not None:
            ended = run_with_mpiexec(mpiexec, plan, origin.base.resolve(), directory.resolve(), emit, signals)
        else:
            ended = _run_inline(plan, origin.base, directory.resolve(), emit, signals)
    directory, summary = as_seen(ended[0]), ended[1]
    emit(done(directory, summary))
    return directory, summary, exit_code(summary, signals)


def done(directory: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The last event of a run: how it ended, and all that went wrong."""
    told = {key: summary[key] for key in ("state", "reason", "problems", "warnings")}
    return {"type": "done", **told, "directory": str(directory)}


def note(directory: Path, text: str) -> None:
    """Add a line to the log of a run, where that can be written."""
    with suppress(OSError), (directory / LOG).open("a", encoding="utf-8") as log:
        log.write(f"{text}\n")


def as_seen(directory: Path) -> Path:
    """As users of this working directory name it."""
    here = Path.cwd()
    return directory.relative_to(here) if directory.is_relative_to(here) else directory


def open_directory(plan: Plan, origin: Origin, *, latest: bool = True) -> Path:
    """Make the run directory, with the pipeline and the plan in it. Raises `EnvironmentUnfit`; nothing is left then."""
    now = datetime.datetime.now().astimezone()
    directory = make_directory(plan.output_directory, plan.name, plan.if_exists, now, latest=latest)
    try:
        announce(directory)  # before the plan, which makes it a run directory
        origin.write(directory, plan_contents(plan))
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise EnvironmentUnfit(f"cannot write in the run directory: {error}") from error
    return directory


def _run_inline(plan: Plan, base: Path, directory: Path, emit: Emit, signals: Signals) -> tuple[Path, dict[str, Any]]:
    """The second signal ends the run at once; files are then closed with what they have."""
    stop = threading.Event()

    def give_up() -> None:
        signals.on_second = lambda: None
        raise KeyboardInterrupt

    signals.on_first, signals.on_second = stop.set, give_up
    if signals.received:
        stop.set()
    directories = Directories(directory, emit)
    try:
        run_inline(plan, base, str(directory), directories, lambda: BY_USER if stop.is_set() else None)
    except KeyboardInterrupt:
        return conclude(plan, directories.all, AT_ONCE, "stopped")
    except Exception as error:  # noqa: BLE001  as when a rank dies: the truth is in the files and in the log
        (directory / LOG).write_text(traceback.format_exc())
        return conclude(plan, directories.all, f"{type(error).__name__}: {error}; see {LOG}")
    return conclude(plan, directories.all, "it was not closed")


def exit_code(summary: Mapping[str, Any], signals: Signals) -> int:
    """What the process ends with."""
    if signals.received and summary["state"] != "complete":
        return 128 + int(signal.Signals(signals.received[0]))
    if summary.get("overrun") or summary.get("losses"):
        return DATA_LOST
    return FAILED if summary["state"] == "failed" else COMPLETE
