"""MPI ranks that stay: one ``mpiexec`` serves the runs of all tests of a process, each on the first ranks of it.

A run costs milliseconds there, where starting processes costs it a second or two. Everything else is as in a run that
is launched: the same program of each rank, the same channel to rank 0, the same log. What a launch is about (plans with
programs of users, hosts, CPUs; secrets, signals, kills) is not for it: those plans, and all runs of tests with
``pytest.mark.launch``, are launched.

A rank that ends takes the others with it, as it does in a launched run; the next run then starts new ones.
"""

import faulthandler
import gc
import json
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from lima2cli.accounting.record import RunRecord
from lima2cli.errors import ExitCode
from lima2cli.foreign import WATCH, call_foreign
from lima2cli.job import launch
from lima2cli.job.launch import LOG, Directories, Emit, Log, Ranks, Signals, run_with_mpiexec
from lima2cli.job.loopback import local_variables
from lima2cli.plan.ir import Plan
from lima2cli.runs.channel import BY_USER, Job, JobServer, Launcher
from lima2cli.runs.ending import conclude
from lima2cli.runs.processes import descendants, kill, started, sweep
from lima2cli.secret import known
from tests import ROOT

FEWEST = 5
"""Ranks that are started for the first run; more where it needs more."""

START_S = 120.0
"""Seconds that ranks have to start, on a busy machine too."""

HIDDEN = ("PMI", "HYDRA", "PYTHONDONTWRITEBYTECODE")
"""Beginnings of variables that ranks have of their own; the last would compile all modules anew in every one."""

PROGRAM = f"import sys; sys.path.append({str(ROOT)!r}); from tests.world import serve; serve(sys.argv[1])"


def environment() -> dict[str, str]:
    """Return the environment, without what would make a run join another's ranks."""
    return {key: value for key, value in os.environ.items() if not key.startswith(HIDDEN)}


class World:
    """Ranks that wait for runs, started by an mpiexec of their own."""

    def __init__(self, mpiexec: str, size: int) -> None:
        self._began_ns = time.time_ns()
        name = f"lima2-world-{os.getpid()}-{time.monotonic_ns()}"
        command = [mpiexec, "-n", str(size), sys.executable, "-P", "-m", "mpi4py", "-c", PROGRAM, name]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{name}")
            listener.listen(size)
            listener.settimeout(START_S)
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment() | local_variables(), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            callers = [listener.accept()[0] for _ in range(size)]
        self.ranks = [rank for _, rank in sorted((int(caller.recv(16)), caller) for caller in callers)]

    def run(self, plan: Plan, base: Path, directory: Path, emit: Emit, signals: Signals) -> tuple[Path, dict[str, Any]]:
        """Run a plan, as `run_with_mpiexec` does."""
        directories, log, ranks = (
            Directories(directory, emit, signals.abort),
            Log(directory),
            self.ranks[: len(plan.ranks)],
        )
        server = JobServer(Job(plan, str(base), str(directory)))
        signals.on_first, signals.on_second = lambda: server.stop(BY_USER), self.end
        with tempfile.NamedTemporaryFile() as output, closing(directories), closing(log), closing(server):
            order = {
                "ranks": len(ranks), "channel": server.name, "cwd": os.getcwd(), "environment": environment(),
                "output": output.name, "log": str(directory / LOG),
            }  # fmt: skip
            for rank in ranks:
                rank.sendall(json.dumps(order).encode() + b"\n")
            try:
                fine = self._attend(server, ranks, directories)
            except BaseException:
                self.end()
                raise
            for line in output.read().splitlines():
                launch._pass_on(line, directories, log)
            reason = "ended at once by the user" if len(signals.received) > 1 else directories.gone()
            if not fine:
                self.end()
                joined = cast(Ranks, SimpleNamespace(joined=True, first=None))
                reason = reason or launch._why(self.process.wait(), log, joined, plan)
            state = "stopped" if len(signals.received) > 1 else "failed"
            return conclude(RunRecord.of(plan), directories.all, reason or "it was not closed", state)

    def _attend(self, server: JobServer, ranks: list[socket.socket], emit: Emit) -> bool:
        """Pass on events until all ranks have done their part; return False where one has ended."""
        waiting = set(ranks)
        with selectors.DefaultSelector() as selector:
            for one in (server.listener, *ranks):
                selector.register(one, selectors.EVENT_READ)
            while waiting or not server.ended:
                for key, _ in selector.select():
                    if key.fileobj is server.listener:
                        if (caller := server.accept()) is not None:
                            selector.register(caller, selectors.EVENT_READ)
                    elif key.fileobj is server.connection:
                        for event in server.events():
                            emit(event)
                        if server.ended:
                            selector.unregister(key.fileobj)
                    elif cast(socket.socket, key.fileobj).recv(16):
                        waiting.discard(cast(socket.socket, key.fileobj))
                        selector.unregister(key.fileobj)
                    else:
                        return False
        return True

    def end(self) -> None:
        """End all ranks at once; other tests look for what is left in shared memory."""
        processes = descendants(self.process.pid) if self.alive else []  # else another process may have its number
        for rank in self.ranks:
            rank.close()
        if self.alive:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # mpiexec; its proxy ends the ranks
        self.process.wait()
        kill(lambda: [pid for pid in processes if started(pid)])
        sweep(self._began_ns)

    @property
    def alive(self) -> bool:
        """Return True if no rank has ended."""
        return self.process.poll() is None


class Worlds:
    """The ranks of this process, if there are any."""

    now: World | None = None
    owner = 0
    launched = False
    """A test is about the launch."""

    file: Path | None = None
    """The file of the test."""

    @classmethod
    def of(cls, mpiexec: str, size: int) -> World:
        """Return ranks that are at least so many."""
        if cls.now is None or cls.owner != os.getpid() or not cls.now.alive or len(cls.now.ranks) < size:
            cls.end()
            cls.now, cls.owner = World(mpiexec, max(FEWEST, size)), os.getpid()
        return cls.now

    @classmethod
    def end(cls) -> None:
        """End them."""
        if cls.now is not None and cls.owner == os.getpid():
            cls.now.end()
        cls.now = None


def run_in_world(
    mpiexec: str, plan: Plan, base: Path, directory: Path, emit: Emit, signals: Signals
) -> tuple[Path, dict[str, Any]]:
    """Stand for `lima2cli.job.launch.run_with_mpiexec`."""
    placed = any(placement.requested for placement in plan.placements)
    if Worlds.launched or known() or placed or any(map(plan.command_of, plan.ranks)):
        return run_with_mpiexec(mpiexec, plan, base, directory, emit, signals)
    return Worlds.of(mpiexec, len(plan.ranks)).run(plan, base, directory, emit, signals)


def serve(name: str) -> None:
    """Run this rank's part of each run that is ordered, until there are no more orders."""
    from mpi4py import MPI

    from lima2cli.job.rank_main import _end, _give_up_after, run_ranks

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    world, own = MPI.COMM_WORLD, dict(os.environ)
    WATCH.last_resort, WATCH.arm = _end, _give_up_after
    with socket.socket(socket.AF_UNIX) as client, os.fdopen(os.dup(2), "wb") as errors:
        client.connect(f"\0{name}")
        client.sendall(str(world.Get_rank()).encode())
        for line in client.makefile():
            order = json.loads(line)
            os.chdir(order["cwd"])
            os.environ.clear()
            os.environ.update(own | order["environment"])
            _redirect(order["output"], 1)
            _redirect(order["log"], 2)
            WATCH.most_s = math.inf
            group = world.group.Incl(range(order["ranks"]))
            part = world.Create_group(group)
            try:
                if world.Get_rank() == 0:
                    launcher = Launcher(order["channel"])
                    outcome = call_foreign(run_ranks, launcher.job, launcher.emit, launcher.order, part)
                    launcher.close()
                    if outcome is not None and outcome.silent:
                        world.Abort(0)
                else:
                    call_foreign(run_ranks, None, lambda event: None, lambda: None, part)
            except BaseException:  # noqa: BLE001  as `python -m mpi4py` does it
                traceback.print_exc()
                sys.stderr.flush()
                world.Abort(ExitCode.FAILED)
            part.Free()
            group.Free()
            faulthandler.cancel_dump_traceback_later()
            gc.collect()
            sys.stdout.flush()
            os.dup2(errors.fileno(), 2)
            client.sendall(b"done")
        os._exit(0)


def _redirect(path: str, descriptor: int) -> None:
    """Let what is written to a descriptor go to the end of a file."""
    opened = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.dup2(opened, descriptor)
    os.close(opened)
