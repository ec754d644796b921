"""A run by ranks that are there already: under ``mpiexec -n N lima2 run`` all processes are the same program.

Rank 0 leads: it alone reads the pipeline, makes the directory, and reports. The others follow: they wait for the
message that the run begins, or that it does not.
"""

import atexit
import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lima2cli.accounting.record import RunRecord
from lima2cli.accounting.summary import Summary
from lima2cli.errors import EnvironmentUnfit, ExitCode
from lima2cli.job.launch import RANK_VARIABLES, Directories, Emit, Signals
from lima2cli.job.resources import check_disk, check_files, check_memory, report_disk, without_placement
from lima2cli.job.run import display_path, done, exit_code, open_directory, settled
from lima2cli.plan.ir import Plan
from lima2cli.runs.channel import BY_USER, Job
from lima2cli.runs.ending import conclude
from lima2cli.runs.saved_plan import Origin
from lima2cli.secret import hide


def job_rank() -> int | None:
    """Return the rank of this process in the job that mpiexec or srun started, None where none did."""
    ranks = [os.environ[name] for name in RANK_VARIABLES if name in os.environ]
    return int(ranks[0]) if ranks else None


def _world() -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise EnvironmentUnfit(f"started as a rank of a job, but there is no MPI here: {error}") from error
    return MPI.COMM_WORLD


class Leader:
    """Rank 0, from the first moment on: if it ends before the run begins, it orders the others to end, too."""

    def __init__(self) -> None:
        self._world = _world()
        self._joined = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._joined:
            self._world.bcast(False)

    def run(self, plan: Plan, origin: Origin, emit: Emit) -> tuple[Path, Summary, int]:
        """Run; return the directory, the summary and the exit code.

        Raises:
            EnvironmentUnfit: the run can't be started.
        """
        from lima2cli.job.rank_main import run_ranks

        size = self._world.Get_size()
        if size != len(plan.ranks):
            raise EnvironmentUnfit(
                f"this job has {size} ranks, the plan needs {len(plan.ranks)}: 1 control, "
                f"{_count(plan, 'detector')} detector, {_count(plan, 'receiver')} receivers{_workers(plan)}; "
                f"mpiexec -n {len(plan.ranks)}, or without mpiexec"
            )
        plan.detector.check_machine()
        check_memory(without_placement(plan), shared=True)
        check_files(without_placement(plan), origin.base)
        warnings = check_disk(without_placement(plan), origin.base)
        claim = open_directory(plan, origin)
        directory = claim.path.resolve()
        report_disk(plan, warnings, emit)
        if any(placement.host for placement in plan.placements):
            message = "what started this job chose the hosts of its ranks: `host` of receivers has no effect"
            emit({"type": "event", "event": "placement", "message": message})
        signals, stop = Signals(), threading.Event()
        signals.on_first, signals.on_second = stop.set, lambda: self._world.Abort(ExitCode.INTERRUPTED)
        job = Job(plan, str(origin.base.resolve()), str(directory))
        directories = Directories(directory, emit, signals.abort)
        self._joined = True
        self._world.bcast(True)
        with settled(claim, emit) as settle:
            with signals.installed():
                try:
                    outcome = run_ranks(job, directories, lambda: BY_USER if stop.is_set() else None)
                except BaseException as error:  # noqa: BLE001  the others would wait forever
                    _abort(self._world, error)
            ended, summary = conclude(RunRecord.of(plan), directories.all, directories.gone() or "it was not closed")
            directories.close()
            ended = settle(ended)
        code = exit_code(summary, signals)
        if outcome is not None and outcome.silent:
            atexit.register(lambda: self._world.Abort(code))
        emit(done(display_path(ended), summary))
        return display_path(ended), summary, code


def _count(plan: Plan, role: str) -> int:
    return sum(rank.role == role for rank in plan.ranks)


def _workers(plan: Plan) -> str:
    """Return the workers of a plan in words, with the node of each."""
    nodes = [role.worker for role in plan.ranks if role.worker is not None]
    return f", {len(nodes)} workers ({', '.join(nodes)})" if nodes else ""


def follow() -> None:
    """Run any rank but the first."""
    from lima2cli.job.rank_main import run_ranks

    world = _world()
    with Signals().installed():  # rank 0 reports what they mean
        if world.bcast(None):
            try:
                run_ranks(None, lambda event: None, lambda: None)
            except BaseException as error:  # noqa: BLE001
                _abort(world, error)


def _abort(world: Any, error: BaseException) -> None:
    print(hide(f"error on rank {world.Get_rank()}: {type(error).__name__}: {error}"), file=sys.stderr, flush=True)
    world.Abort(ExitCode.FAILED)
