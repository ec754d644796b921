"""Main program of an MPI rank: ``python -m mpi4py -m lima2cli.runtime.worker``, started by the launcher.

Rank 0 reads the job from its standard input, then the word ``stop``; it writes one JSON object a line to its standard
output. The other ranks print nothing.
"""

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from mpi4py import MPI

from lima2cli.program.lower import lower
from lima2cli.runtime.control import ControlRank, Emit, Outcome
from lima2cli.runtime.job import STOP, Job, read_job
from lima2cli.runtime.ranks import CONTROL_SLEEP_S, make_rank, memory_of, turn
from lima2cli.transport.mpi import MpiPort


def main() -> None:
    """Run this rank's program until the control rank ends the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher decides
    stop = threading.Event()
    job = read_job(sys.stdin.buffer) if MPI.COMM_WORLD.Get_rank() == 0 else None
    if job is not None:
        threading.Thread(target=_listen, args=(stop,), daemon=True).start()
    run_ranks(job, _print, stop)


def run_ranks(job: Job | None, emit: Emit, stop: threading.Event) -> Outcome | None:
    """Run one rank of a job that rank 0 knows; collective over the world. Rank 0 gets the outcome."""
    world = MPI.COMM_WORLD
    made = None
    if job is not None:
        wiring, programs = lower(job.plan)
        made = [(wiring, program, job.base, job.directory) for program in programs]
    wiring, program, base, directory = world.scatter(made)
    port = MpiPort(memory_of(wiring, Path(base)))
    rank = make_rank(program, port, Path(base), directory, emit, stop.is_set)
    rank.prepare()
    if isinstance(rank, ControlRank):
        turn(rank, CONTROL_SLEEP_S, CONTROL_SLEEP_S)
    else:
        turn(rank)
    port.close()
    return rank.outcome if isinstance(rank, ControlRank) else None


def _listen(stop: threading.Event) -> None:
    for line in sys.stdin.buffer:
        if line == STOP:
            stop.set()


def _print(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
