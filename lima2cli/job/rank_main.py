"""Main program of an MPI rank: ``python -P -m mpi4py -m lima2cli.job.rank_main CHANNEL``, started by the launcher.

Rank 0 gets the job, and orders to stop, over the channel of that name, and sends events there (see `job`). Ranks print
nothing; what users' code prints is passed on by mpiexec.
"""

import faulthandler
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mpi4py import MPI

from lima2cli.accounting.acquisitions import Outcome
from lima2cli.errors import EnvironmentUnfit, ExitCode, UserCodeError
from lima2cli.foreign import WATCH, call_foreign, leave
from lima2cli.job.resources import settle, sleep_exactly, touch
from lima2cli.plan.ir import Placement
from lima2cli.program import ControlProgram, ReceiverProgram, WorkerProgram, lower
from lima2cli.ranks.loop import make_rank, memory_of, turn, turn_control
from lima2cli.runs.channel import LAUNCHED, Job, Launcher, Stop
from lima2cli.transport.mpi_window import MpiPort

if TYPE_CHECKING:
    from lima2cli.ranks.control import ControlRank, Emit


SHARE = 0.8
"""Share of the time in which a worker must reply that its code may take: it can then still report where that hangs."""


def main() -> None:
    """Run this rank's program until the control rank ends the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher decides
    launcher = Launcher(sys.argv[1]) if MPI.COMM_WORLD.Get_rank() == 0 else None
    ranks = MPI.COMM_WORLD.gather((socket.gethostname(), os.getpid()))
    WATCH.last_resort, WATCH.arm = _end, _give_up_after
    if launcher is None:
        call_foreign(run_ranks, None, lambda event: None, lambda: None)
        leave(ExitCode.FINE)
        return
    launcher.emit({"type": "ranks", "ranks": ranks})
    outcome = call_foreign(run_ranks, launcher.job, launcher.emit, launcher.order)
    launcher.close()
    if outcome is not None and outcome.silent:
        MPI.COMM_WORLD.Abort(0)
    leave(ExitCode.FINE)


def _give_up_after(seconds: float) -> None:
    """Let a thread of faulthandler, which is C and needs no lock, end this process unless it is called again."""
    faulthandler.dump_traceback_later(seconds, file=2, exit=True)  # users' code may have closed sys.stderr


def _end(why: str) -> None:
    """End this rank, and with it the job, since users' code in C does not return.

    The last line of the log has the reason.
    """
    print(f"{UserCodeError.__name__}: {why}", file=sys.stderr, flush=True)
    os._exit(ExitCode.FAILED)


def run_ranks(
    job: Job | None, emit: "Emit", order: Callable[[], Stop | None], world: MPI.Intracomm = MPI.COMM_WORLD
) -> Outcome | None:
    """Run one rank of a job that rank 0 of ``world`` knows; collective over it.

    Rank 0 gets the outcome, others None.

    Where the outcome has silent workers the job can't end in order: everything is written, and rank 0 has to abort it.
    """
    made = None
    if job is not None:
        wiring, programs = lower(job.plan)
        made = [(wiring, program, job.base, job.directory, job.plan.timeout_s) for program in programs]
    wiring, program, base, directory, WATCH.timeout_s = world.scatter(made)
    if isinstance(program, WorkerProgram):
        WATCH.most_s = SHARE * WATCH.timeout_s
    placement = program.placement if isinstance(program, ReceiverProgram) else Placement()
    settle(placement)  # before memory and threads are made
    port = MpiPort(memory_of(wiring, Path(base)), world)
    if placement.numa is not None:
        for index, region in enumerate(wiring.regions):
            if wiring.owners[index] == program.rank and region.path is None:
                touch(port.memory(index))
    rank = make_rank(program, port, Path(base), directory, emit, order)
    rank.prepare()
    sleep_exactly()
    gc.freeze()  # what there is now stays to the end: the collector need not go through it while frames come
    if not isinstance(program, ControlProgram):
        turn(rank)
        port.close()
        return None
    control = cast("ControlRank", rank)
    try:
        turn_control(control)
    finally:
        control.close()
    if not control.outcome.silent:
        port.close()
    return control.outcome


def join() -> tuple[WorkerProgram, MpiPort]:
    """Join a run as a program of the user's; collective over the world.

    Ends the job where the plan has another rank here.

    Raises:
        EnvironmentUnfit: there is no run to join.
    """
    world = MPI.COMM_WORLD
    if world.Get_size() == 1:
        raise EnvironmentUnfit("this program joins a run: name it in `command` of a node `mpi`, and start the pipeline")
    if LAUNCHED in os.environ:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher decides
        world.gather((socket.gethostname(), os.getpid()))
    else:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # rank 0 decides
        if not world.bcast(None):
            raise SystemExit(0)
    wiring, program, base, _, WATCH.timeout_s = world.scatter(None)
    if not isinstance(program, WorkerProgram) or program.workers.command is None:
        print(
            f"error: rank {world.Get_rank()} is not a worker of a `command`: `lima2 plan` lists ranks", file=sys.stderr
        )
        world.Abort(ExitCode.FAILED)
    return program, MpiPort(memory_of(wiring, Path(base)))


if __name__ == "__main__":
    main()
