"""One run of a plan, from an empty directory to its summary, by whatever transport there is."""

import datetime
import json
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lima2cli.errors import EnvironmentUnfit
from lima2cli.plan.figures import plan_figures
from lima2cli.plan.records import Plan
from lima2cli.runtime.closing import read_summary
from lima2cli.runtime.directory import make_directory
from lima2cli.runtime.environment import check_files, check_memory
from lima2cli.runtime.job import Job
from lima2cli.runtime.launch import Emit, Signals, find_mpiexec, run_with_mpiexec
from lima2cli.runtime.ranks import run_inline

COMPLETE, FAILED, DATA_LOST, UNFIT = 0, 10, 11, 12
"""Exit codes of a run, as the command line documents them; 128 + n after signal n."""

PLAN_FILE, PIPELINE_FILE = "plan.json", "pipeline.yaml"


def run_plan(plan: Plan, text: str, base: Path, emit: Emit, *, transport: str) -> tuple[Path, dict[str, Any], int]:
    """Run; gives the directory, the summary and the exit code.

    ``text`` is the pipeline's source, kept with the data; ``base`` resolves the file names in it; ``transport`` is
    ``auto`` (MPI where it is installed), ``mpi`` or ``inline``. Raises `EnvironmentUnfit` before anything is started.
    """
    mpiexec = find_mpiexec() if transport != "inline" else None
    if transport == "mpi" and mpiexec is None:
        raise EnvironmentUnfit("no MPI here: pip install 'lima2cli[mpi]', or --transport inline")
    check_memory(plan, shared=mpiexec is not None)
    check_files(plan, base)
    directory = _open_directory(plan, text)
    if transport == "auto" and mpiexec is None:
        emit({"type": "event", "event": "inline", "message": "no MPI here: all ranks run in this process"})
    signals = Signals()
    if mpiexec is not None:
        summary = run_with_mpiexec(mpiexec, plan, base.resolve(), directory.resolve(), emit, signals)
    else:
        summary = _run_inline(plan, base, directory, emit, signals)
    emit({"type": "done", "state": summary["state"], "directory": str(directory)})
    return directory, summary, exit_code(summary, signals)


def _open_directory(plan: Plan, text: str) -> Path:
    directory = make_directory(plan.output_directory, plan.name, plan.if_exists, datetime.datetime.now().astimezone())
    (directory / PIPELINE_FILE).write_text(text)
    (directory / PLAN_FILE).write_text(json.dumps(plan_figures(plan), indent=1) + "\n")
    return directory


def _run_inline(plan: Plan, base: Path, directory: Path, emit: Emit, signals: Signals) -> dict[str, Any]:
    """The second signal interrupts for good; files are then as they were last flushed."""
    stop = threading.Event()

    def give_up() -> None:
        raise KeyboardInterrupt

    signals.on_first, signals.on_second = stop.set, give_up
    with signals.installed():
        run_inline(plan, base, str(directory), emit, stop.is_set)
    summary = read_summary(directory)
    assert summary is not None
    return summary


def run_joined(plan: Plan, text: str, base: Path, emit: Emit) -> tuple[Path | None, dict[str, Any] | None, int]:
    """Run as one of the ranks of a job that is already under way; all ranks call this with the same plan.

    Only rank 0 makes the directory, reports, and gets directory and summary.
    """
    from mpi4py import MPI

    from lima2cli.runtime.worker import run_ranks

    world = MPI.COMM_WORLD
    signals, stop = Signals(), threading.Event()
    signals.on_first = stop.set
    job, directory = None, None
    with signals.installed():
        try:
            if world.Get_size() != len(plan.ranks):
                raise EnvironmentUnfit(
                    f"this job has {world.Get_size()} ranks, the plan needs {len(plan.ranks)}: 1 control, "
                    f"{len(plan.ranks) - 1 - len(plan.receivers)} detector, {len(plan.receivers)} receivers"
                )
            if world.Get_rank() == 0:
                check_memory(plan, shared=True)
                check_files(plan, base)
                directory = _open_directory(plan, text)
                job = Job(plan, str(base.resolve()), str(directory.resolve()))
            run_ranks(job, emit, stop.is_set)
        except BaseException as error:
            if world.Get_size() > 1 and not isinstance(error, EnvironmentUnfit):
                world.Abort(FAILED)  # the others would wait for ever
            raise
    if directory is None:
        return None, None, COMPLETE
    summary = read_summary(directory)
    assert summary is not None
    return directory, summary, exit_code(summary, signals)


def exit_code(summary: Mapping[str, Any], signals: Signals) -> int:
    """What the process ends with."""
    if signals.received and summary["state"] != "complete":
        return 128 + int(signal.Signals(signals.received[0]))
    if summary["state"] == "failed":
        return DATA_LOST if summary.get("overrun") else FAILED
    return COMPLETE
