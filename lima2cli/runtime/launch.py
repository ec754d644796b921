"""Starts the ranks of a plan, and stays outside of them: it handles signals, passes events on, and tells the truth
when ranks die.

Under MPI each rank is a process of ``mpiexec``; the launcher itself is no rank. Where MPI is not installed all
ranks run in this process.
"""

import importlib.util
import os
import re
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from lima2cli.errors import EnvironmentUnfit
from lima2cli.plan.records import Plan
from lima2cli.runtime.broken import conclude
from lima2cli.runtime.job import BY_USER, LAUNCHED, Job, JobServer, Lines, Stop
from lima2cli.runtime.ownership import LOG
from lima2cli.runtime.placement import host_options
from lima2cli.runtime.process import started
from lima2cli.secret import hide, known

AT_ONCE = "ended at once by the user"
NO_MPIEXEC = Stop("failed", "mpiexec, or what it had started the ranks with, was killed: they ended in order")

ORDERLY_END_S = 60.0
"""Ranks that have lost their mpiexec may take so long to end in order."""

LAST_WORDS_S = 5.0
"""Ranks have so long to end after mpiexec has."""

MPIEXEC_SAYS = re.compile(rb"=+$|=   |YOUR APPLICATION TERMINATED|This typically refers|Please see the FAQ")
ERROR = re.compile(r"ssh: |[\w.]*(Error|Exception|RunFailed|Unfit|FileProblem)\b")
"""The last line of a traceback, or why another machine was not reached."""

START_UP_S = 60.0
"""Programs of the user's have so long to join. Where one of them ends before it does, mpiexec does not notice."""

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
        """While a run is on. That a terminal closes (SIGHUP) is no wish: the run goes on."""
        before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def find_mpiexec() -> str | None:
    """The launcher of the MPI that this Python uses: beside the interpreter first, then on the path."""
    if importlib.util.find_spec("mpi4py") is None:
        return None
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


class Directories:
    """The run directories of a job, one for each acquisition: noted from its events, which are passed on."""

    def __init__(self, first: Path, emit: Emit) -> None:
        self.all, self._emit = [first], emit

    def __call__(self, event: dict[str, Any]) -> None:
        """An event of the control rank."""
        if event["type"] == "directory":
            self.all.append(Path(event["directory"]))
        else:
            self._emit(event)


class Ranks:
    """The processes of a run: mpiexec, and the ranks on this machine with the times that they were started.

    ``first`` is the rank that was the first seen to end; a busy machine may see another one than that which died.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._started: dict[int, str] = {}
        self._pids: list[int] = []
        self.first: int | None = None

    def know(self, ranks: list[tuple[str, int]]) -> None:
        """Host and process of each rank."""
        self._started = {pid: started(pid) for host, pid in ranks if host == socket.gethostname()}
        self._pids = [pid for _, pid in ranks]
        threading.Thread(target=self._watch, args=(ranks,), daemon=True).start()

    def _watch(self, ranks: list[tuple[str, int]]) -> None:
        """Wait for the first rank on this machine to end. mpiexec then ends the others, within milliseconds, and does
        not say which was the first (the process that it names is any of them)."""
        poll, ranks_by = select.poll(), {}
        for rank, (host, pid) in enumerate(ranks):
            with suppress(OSError, AttributeError):  # it has ended; or this system has no such thing
                if host == socket.gethostname():
                    ranks_by[os.pidfd_open(pid)] = rank
        for descriptor in ranks_by:
            poll.register(descriptor, select.POLLIN)
        ended = poll.poll() if ranks_by else []
        if len(ended) == 1:  # of several, seen too late, any may have been the first
            self.first = ranks_by[ended[0][0]]
        for descriptor in ranks_by:
            os.close(descriptor)

    @property
    def joined(self) -> bool:
        """Whether they are all there."""
        return bool(self._pids)

    def give_up(self) -> None:
        """End what has been started, unless all have joined."""
        if not self.joined:
            self._process.terminate()  # mpiexec ends the others

    def kill(self) -> None:
        """End all at once."""
        for pid in self._alive():
            os.kill(pid, signal.SIGKILL)
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def gone(self) -> None:
        """Wait for the end of all ranks, which may come after that of mpiexec; help where it doesn't come."""
        deadline = time.monotonic() + LAST_WORDS_S
        while self._alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        for pid in self._alive():
            os.kill(pid, signal.SIGKILL)

    def _alive(self) -> list[int]:
        return [pid for pid, since in self._started.items() if since and started(pid) == since]


LAST_LINES_S = 5.0
"""The last lines of ranks may take so long to reach the log."""


def run_with_mpiexec(
    mpiexec: str, plan: Plan, base: Path, directory: Path, emit: Emit, signals: Signals
) -> tuple[Path, dict[str, Any]]:
    """Run on MPI ranks; returns what `conclude` does: summaries are there whatever happened to the ranks."""
    directories = Directories(directory, emit)
    server = JobServer(Job(plan, str(base), str(directory)))
    command = command_line(mpiexec, plan, base, [server.name])
    with (directory / LOG).open("wb") as log, closing(server):
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
                stderr=subprocess.PIPE if known() else log,  # what has secrets in it does not reach the log as it is
                env={**os.environ, LAUNCHED: "1"},
            )  # fmt: skip
        except OSError as error:
            raise EnvironmentUnfit(f"cannot start {mpiexec}: {error}") from error
        ranks = Ranks(process)
        signals.on_first, signals.on_second = lambda: server.stop(BY_USER), ranks.kill
        if signals.received:  # while they were being started
            server.stop(BY_USER)
        patience = threading.Timer(START_UP_S, ranks.give_up)
        patience.start()
        code = _attend(process, server, ranks, directories, log)
        patience.cancel()
        ranks.gone()
    at_once = len(signals.received) > 1
    reason = AT_ONCE if at_once else _why(code, directory / LOG, ranks, plan)
    return conclude(plan, directories.all, reason, "stopped" if at_once else "failed")


def command_line(mpiexec: str, plan: Plan, base: Path, arguments: list[str]) -> list[str]:
    """The command that starts the ranks of a plan, on their hosts: those of lima2 as one program, others with theirs
    (MPMD)."""
    # -P: the working directory is data; what lies there never stands for a module of the same name
    own = [sys.executable, "-P", "-m", "mpi4py", "-m", "lima2cli.runtime.worker", *arguments]
    programs: list[str] = []
    for program, roles in groupby(plan.ranks, plan.command_of):
        count = ["-n", str(len(list(roles)))]
        programs += [":"] if programs else []
        programs += [*count, *own] if program is None else [*count, "-wdir", str(base), *executable(program)]
    return [mpiexec, *host_options(plan), *programs]


def executable(program: tuple[str, ...]) -> list[str]:
    """A command with the Python that runs this for ``python``."""
    return [sys.executable if program[0] == "python" else program[0], *program[1:]]


def _attend(process: subprocess.Popen[bytes], server: JobServer, ranks: Ranks, emit: Emit, log: IO[bytes]) -> int:
    """Pass on events of the control rank and what programs print, until mpiexec and the control rank have ended; the
    exit code of mpiexec. Where it ends first, the ranks are asked to end in order."""
    assert process.stdout is not None
    output, lines, deadline = process.stdout, Lines(), None
    errors = None if process.stderr is None else _log_hidden(process.stderr, log)
    with selectors.DefaultSelector() as selector, closing_after(errors):
        selector.register(output, selectors.EVENT_READ)
        selector.register(server.listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(None if deadline is None else max(0.0, deadline - time.monotonic())):
                if key.fileobj is server.listener:
                    if (caller := server.accept()) is not None:
                        selector.register(caller, selectors.EVENT_READ)
                elif key.fileobj is output:
                    more = os.read(output.fileno(), 1 << 16)
                    if not more:
                        selector.unregister(output)
                        output.close()
                    for line in lines.feed(more) if more else lines.end():
                        _pass_on(line, emit, log)
                else:
                    for event in server.events():
                        ranks.know(event["ranks"]) if event["type"] == "ranks" else emit(event)
                    if server.ended:
                        selector.unregister(key.fileobj)
            if not output.closed:
                continue
            if server.connection is None or server.ended:
                return process.wait()
            if deadline is None:
                server.stop(NO_MPIEXEC)
                deadline = time.monotonic() + ORDERLY_END_S
            elif time.monotonic() > deadline:
                return process.wait()


def _log_hidden(stream: IO[bytes], log: IO[bytes]) -> threading.Thread:
    """Copy what ranks write to standard error to the log, secrets hidden, until they have ended."""

    def copy() -> None:
        with stream:
            for line in stream:
                log.write(hide(line.decode(errors="replace")).encode())
                log.flush()

    thread = threading.Thread(target=copy, name="log", daemon=True)
    thread.start()
    return thread


@contextmanager
def closing_after(thread: threading.Thread | None) -> Iterator[None]:
    """Wait for a thread at the end, a little: a process that ranks have left behind may hold its stream open."""
    try:
        yield
    finally:
        if thread is not None:
            thread.join(LAST_LINES_S)


def _pass_on(line: bytes, emit: Emit, log: IO[bytes]) -> None:
    """What mpiexec says of ranks that died, which goes to the log; else what a program of the user's printed."""
    if MPIEXEC_SAYS.match(line):
        log.write(hide(line.decode(errors="replace")).encode() + b"\n")
    elif text := line.decode(errors="replace").rstrip():
        emit({"type": "event", "event": "output", "message": text})


def _why(code: int, log: Path, ranks: Ranks, plan: Plan) -> str:
    """What is known of the end of ranks that left no summary: who was seen to end first, the last error in the log."""
    lines = log.read_text(errors="replace").splitlines()
    workers = list(dict.fromkeys(role.worker for role in plan.ranks if plan.command_of(role)))
    if not ranks.joined and workers:
        return f"the programs of {', '.join(map(str, workers))} did not all join the run (lima2cli.worker); see {LOG}"
    errors = [line for line in lines if ERROR.match(line)]
    said = f": {errors[-1]}" if errors else ""
    if ranks.first is not None and not errors:
        said = f": rank {ranks.first} ({_name(plan, ranks.first)}) was the first seen to end"
    return f"the ranks ended without a summary (mpiexec: exit code {code}){said}; see {LOG}"


def _name(plan: Plan, rank: int) -> str:
    """A rank for people."""
    role = plan.ranks[rank]
    if role.receiver is not None:
        return plan.receivers[role.receiver]
    return role.role if role.worker is None else f"worker of {role.worker}"
