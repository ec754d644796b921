"""One run of a plan, from an empty directory to its summary: by ranks that are started, or that are there already."""

import atexit
import datetime
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lima2cli.accounting.record import RunRecord
from lima2cli.accounting.summary import Summary, reserve_summary
from lima2cli.errors import EndedAtOnce, EnvironmentUnfit, ExitCode, RunFailed, of_signal
from lima2cli.files.disk import advice, library_is_broken
from lima2cli.foreign import call_foreign, error_text
from lima2cli.job.guard import Guard, calls_others
from lima2cli.job.launch import AT_ONCE, Directories, Emit, Signals, find_mpiexec, run_with_mpiexec
from lima2cli.job.resources import (
    check_devices,
    check_disk,
    check_files,
    check_memory,
    check_placement,
    check_programs,
    report_disk,
    without_placement,
)
from lima2cli.plan.figures import end_bytes
from lima2cli.plan.ir import Plan
from lima2cli.ranks.loop import run_inline
from lima2cli.runs import channel as job_events
from lima2cli.runs.channel import BY_USER, Job, Stop
from lima2cli.runs.control_socket import announce
from lima2cli.runs.directory import Claim, make_directory
from lima2cli.runs.ending import conclude
from lima2cli.runs.ownership import LOG, RunNames, has_saved, listed
from lima2cli.runs.processes import sweep
from lima2cli.runs.saved_plan import Origin, plan_contents
from lima2cli.secret import hide


def run_plan(
    plan: Plan, origin: Origin, emit: Emit, *, transport: str, latest: bool = True
) -> tuple[Path, Summary, int]:
    """Run; return the directory, the summary and the exit code.

    ``transport`` is ``auto`` (MPI where it is installed), ``mpi`` or ``inline``; ``latest``: the link of that name
    next to the directory points to it from then on.

    Raises:
        EnvironmentUnfit: before anything is started.
        RunFailed: not even the summary can be written.
    """
    mpiexec = find_mpiexec() if transport != "inline" else None
    if transport == "mpi" and mpiexec is None:
        raise EnvironmentUnfit("no MPI here: pip install 'lima2cli[mpi]', or --transport inline")
    check_programs(plan, origin.base, by_mpi=mpiexec is not None)
    plan.detector.check_machine()
    sweep()  # what earlier runs have left is no room for this one
    placed = plan if mpiexec is not None else without_placement(plan)
    check_memory(placed, shared=mpiexec is not None)
    check_files(placed, origin.base)
    warnings = check_disk(placed, origin.base)
    check_placement(placed)
    check_devices(placed)
    claim = open_directory(plan, origin, latest=latest)
    report_disk(plan, warnings, emit)
    if transport == "auto" and mpiexec is None:
        emit({"type": "event", "event": "inline", "message": "no MPI here: all ranks run in this process"})
    if mpiexec is None and any(placement.requested for placement in plan.placements):
        message = "all ranks run in this process: `host`, `cpus` and `numa` of receivers have no effect"
        emit({"type": "event", "event": "placement", "message": message})
    signals, here = Signals(), Path.cwd()
    with settled(claim, emit) as settle, signals.installed():
        if mpiexec is not None:
            ended = run_with_mpiexec(mpiexec, plan, origin.base.resolve(), claim.path.resolve(), emit, signals)
        else:
            ended = _run_inline(plan, origin.base, claim.path.resolve(), emit, signals)
        os.chdir(here)  # which users' code may have changed
        directory, summary = display_path(settle(ended[0])), ended[1]
    emit(done(directory, summary))
    return directory, summary, exit_code(summary, signals)


@contextmanager
def settled(claim: Claim, emit: Emit) -> Iterator[Callable[[Path], Path]]:
    """Guard a directory while a run goes on in it; decide at its end which run stays there.

    The run before has its place again where this one saved nothing. The yielded function takes where a run has ended,
    and returns where that lies now.

    Of a run that could not be started nothing is left; one that is given up with another exception leaves the one
    before where it was put.
    """

    def notify(message: str) -> None:
        emit(job_events.message_event("overwrite", message))

    def settle(ended: Path) -> Path:
        before, saved = claim.before, has_saved(ended)
        if before is None:
            return ended
        try:
            return settle_before(ended, before, saved)
        except OSError as error:
            notify(f"the previous run is in {before}: {error}")
            return ended

    def settle_before(ended: Path, before: Path, saved: bool | None) -> Path:
        if saved:
            left = claim.keep()
            if left:
                notify(f"{before} is kept: it contains {listed(left)}")
        elif saved is None:
            notify(f"the previous run is in {before}")
        else:
            ended = claim.give_back().resolve()
            notify(f"nothing was saved: {claim} is the previous run, {display_path(ended)} what this run left")
        return ended

    try:
        yield settle
    except EnvironmentUnfit:
        with suppress(OSError):
            claim.undo()
        raise
    except BaseException:
        if claim.before is not None:
            notify(f"the previous run is in {claim.before}")
        raise
    finally:
        claim.release()


def done(directory: Path, summary: Summary) -> dict[str, Any]:
    """Return the last event of a run: how it ended, and all that went wrong."""
    wrong = {"problems": list(summary.problems), "warnings": list(summary.warnings)}
    return {"type": "done", "state": summary.state, "reason": summary.reason, **wrong, "directory": str(directory)}


def note(directory: Path, text: str) -> None:
    """Add a line to the log of a run, where that can be written."""
    with suppress(OSError), (directory / LOG).open("a", encoding="utf-8") as log:
        log.write(f"{hide(text)}\n")


def display_path(directory: Path) -> Path:
    """Return a path as users of this working directory name it."""
    here = Path.cwd()
    return directory.relative_to(here) if directory.is_relative_to(here) else directory


def open_directory(plan: Plan, origin: Origin, *, latest: bool = True) -> Claim:
    """Make the run directory, with the pipeline and the plan in it, and return its claim.

    Raises:
        EnvironmentUnfit: it can't be made; nothing is left then.
    """
    now = datetime.datetime.now().astimezone()
    claim = make_directory(
        plan.output_directory, plan.name, plan.if_exists, now,
        latest=latest, names=RunNames.of(plan), inputs=plan.inputs,
    )  # fmt: skip
    try:
        announce(claim.path)  # before the plan, which lists it among the runs
        origin.write(claim.path, plan_contents(plan), RunRecord.of(plan))
        reserve_summary(claim.path, end_bytes(plan))
    except OSError as error:
        with suppress(OSError):
            claim.undo()
        help = "; ".join(["", *advice([str(error)], claim, whole=True)])
        raise EnvironmentUnfit(f"cannot write in the run directory: {error}{help}") from error
    return claim


def _run_inline(plan: Plan, base: Path, directory: Path, emit: Emit, signals: Signals) -> tuple[Path, Summary]:
    """Run all ranks in this process; the second signal ends the run at once, with files closed as they are."""
    stop = threading.Event()

    def give_up() -> None:
        signals.on_second = lambda: None
        raise EndedAtOnce

    def order() -> Stop | None:
        signals.keep()
        return BY_USER if stop.is_set() else None

    signals.on_first, signals.on_second = stop.set, give_up
    if signals.received:
        stop.set()
    with closing(Directories(directory, emit, signals.abort)) as directories:
        reason, state = "it was not closed", "failed"
        guard = Guard(plan, directory)
        try:
            if calls_others(plan):
                guard.begin()
            call_foreign(run_inline, plan, base.resolve(), str(directory), directories, order)
        except EndedAtOnce:
            reason, state = AT_ONCE, "stopped"
        except Exception as error:  # noqa: BLE001  as when a rank dies: the truth is in the files and in the log
            reason = f"{error_text(error)}; see {LOG}"
            note(directories.all[0], hide(traceback.format_exc()))
        try:
            if library_is_broken():  # by a disk that fails; another process can read the files
                help = advice([reason], directory, whole=False) or [f"`lima2 recover {directory}` ends it"]
                raise RunFailed(f"{reason}; its files cannot be ended here; {help[0]}")
            return conclude(RunRecord.of(plan), directories.all, directories.gone() or reason, state)
        except RunFailed:
            raise
        except Exception as error:
            guard.hand_over(f"users' code has made this process unusable: {error_text(error)}")
            raise
        finally:
            guard.end()


def exit_code(summary: Summary, signals: Signals) -> int:
    """Return the exit code of the process."""
    if signals.received and summary.state == "stopped":
        return of_signal(int(signal.Signals(signals.received[0])))
    if summary.overrun or summary.losses:
        return ExitCode.DATA_LOST
    return ExitCode.FAILED if summary.state == "failed" else ExitCode.FINE


def _world() -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise EnvironmentUnfit(f"started as a rank of a job, but there is no MPI here: {error}") from error
    return MPI.COMM_WORLD


class Leader:
    """Rank 0 of a job that is the same program on all ranks: ``mpiexec -n N lima2 run``.

    It alone reads the pipeline, makes the directory, and reports. The others `follow`: they wait for the message that
    the run begins, or that it does not; it does not, either, if this rank ends before.
    """

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

    def fitted(self, plan: Plan, origin: Origin) -> tuple[Plan, Origin]:
        """Return the plan with as many detector ranks as this job leaves for them, if it can have so many.

        The number of cores with which it can be compiled again is then that number.
        """
        from lima2cli.plan.compile import fitted

        fitting = fitted(plan, self._world.Get_size())
        if fitting is None or fitting.ranks == plan.ranks:
            return plan, origin
        return fitting, replace(origin, cores=_count(fitting, "detector"))

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


END_S = 5.0
"""Seconds that it has to end after the run."""


class Publication:
    """A process of its own that shows a run as process variables of EPICS, where the pipeline asks for that.

    It begins with the first event that names the run directory; nothing that becomes of it concerns the run.
    """

    def __init__(self, prefix: str | None) -> None:
        """Take the prefix of the variables; None: there are none.

        Raises:
            EnvironmentUnfit: the extra is not installed.
        """
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None
        if prefix is not None and importlib.util.find_spec("p4p") is None:
            raise EnvironmentUnfit("output.pva: p4p is not installed: pip install 'lima2cli[pva]'")

    def look(self, event: Mapping[str, Any]) -> None:
        """Look at an event of the run."""
        if self._prefix is None or self._process is not None:
            return
        if "directory" in event and (event["type"] == "start" or event.get("event") == "armed"):
            command = [sys.executable, "-P", "-m", "lima2cli.pva", str(event["directory"]), self._prefix]
            nothing = subprocess.DEVNULL
            self._process = subprocess.Popen(
                command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
            )

    def close(self) -> None:
        """End it, after the run."""
        if self._process is None:
            return
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
