"""Launch of the ranks of a plan, from outside of them: signals, events, and a true report when ranks die.

Under MPI each rank is a process of ``mpiexec``; the launcher itself is not a rank. Where MPI is not installed all ranks
run in this process.
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
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import field
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from lima2cli.accounting.record import RunRecord
from lima2cli.accounting.summary import Summary
from lima2cli.dataclass import dataclass
from lima2cli.errors import EnvironmentUnfit
from lima2cli.files.disk import allocate
from lima2cli.foreign import hung_at
from lima2cli.job.guard import functions_of
from lima2cli.job.loopback import Confined, is_alone, local_variables
from lima2cli.job.resources import host_options, hosts_of, is_here
from lima2cli.plan.ir import Plan
from lima2cli.ranks.progress import rank_name
from lima2cli.runs.channel import BY_USER, LAUNCHED, Job, JobServer, Lines, Stop
from lima2cli.runs.ending import conclude
from lima2cli.runs.ownership import LOG
from lima2cli.runs.processes import HeldDirectory, await_end, ending, kill, parent_of, processes_with, started, sweep
from lima2cli.secret import hide, known

AT_ONCE = "ended at once by the user"
NO_MPIEXEC = Stop(
    "failed", "mpiexec, or the process that it had started the ranks with, was killed: they ended in order"
)

ORDERLY_END_S = 60.0
"""Seconds that ranks which have lost their mpiexec have to end in order."""

LAST_WORDS_S = 5.0
"""Seconds that ranks have to end after mpiexec has."""

MPIEXEC_SAYS = re.compile(rb"=+$|=   |YOUR APPLICATION TERMINATED|This typically refers|Please see the FAQ")
ERROR = re.compile(r"ssh: |[\w.]*(Error|Exception|RunFailed|Unfit|FileProblem)\b")
"""Pattern of the last line of a traceback, or of why another machine was not reached."""

ABORTED = re.compile(r"MPI_Abort\(.*\) - process (\d+)")
"""Pattern of MPICH's message about a rank that has ended the job."""

NOT_STARTED = "Launch proxy failed"
"""A part of what MPICH's mpiexec prints where it reached no other machine; what ssh printed before may be lost."""

START_UP_S = 60.0
"""Seconds that programs of the user's have to join. Where one of them ends before it does, mpiexec does not notice."""

RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
"""Variables that mpiexec and srun set in the processes that they start."""

Emit = Callable[[dict[str, Any]], None]


def job_rank() -> int | None:
    """Return the rank of this process in the job that mpiexec or srun started, None where none did."""
    ranks = [os.environ[name] for name in RANK_VARIABLES if name in os.environ]
    return int(ranks[0]) if ranks else None


@dataclass(repr=False)  # `signal.getsignal` makes one each time, for an exception that it catches
class Signals:
    """Signals of the user: the first stops the run cleanly, the second, or a request to abort it, at once."""

    received: list[int] = field(default_factory=list)
    on_first: Callable[[], None] = lambda: None
    on_second: Callable[[], None] = lambda: None
    aborted: bool = False

    @property
    def at_once(self) -> bool:
        """Return whether the run was to end at once."""
        return self.aborted or len(self.received) > 1

    def abort(self) -> None:
        """End the run at once."""
        self.aborted = True
        self.on_second()

    def handle(self, number: int, frame: object) -> None:
        """Handle a signal."""
        self.received.append(number)
        (self.on_first if len(self.received) == 1 else self.on_second)()

    def keep(self) -> None:
        """Take the signals again, where users' code in this process has taken them."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != self.handle:
                signal.signal(number, self.handle)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals of a run. A terminal that closes (SIGHUP) does not stop it."""
        before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def find_mpiexec() -> str | None:
    """Return the launcher of the MPI that this Python uses: next to the interpreter first, then on the path."""
    if importlib.util.find_spec("mpi4py") is None:
        return None
    neighbour = Path(sys.executable).with_name("mpiexec")
    return str(neighbour) if neighbour.exists() else shutil.which("mpiexec")


class Directories:
    """Run directories of a job, one for each acquisition: noted from its events, which are passed on.

    ``abort`` is called where the control rank was asked to end the run at once.
    """

    def __init__(self, first: Path, emit: Emit, abort: Callable[[], None]) -> None:
        self._held, self._emit, self._abort = [HeldDirectory(first)], emit, abort

    @property
    def all(self) -> list[Path]:
        """Return where they are now.

        Raises:
            RunFailed: one was removed.
        """
        return [one.found() for one in self._held]

    def gone(self) -> str | None:
        """Return a sentence where one is no longer where it was."""
        return next(filter(None, (one.gone() for one in self._held)), None)

    def close(self) -> None:
        """Release the directories."""
        for one in self._held:
            one.close()

    def __call__(self, event: dict[str, Any]) -> None:
        """Take an event of the control rank."""
        if event["type"] == "directory":
            with suppress(OSError):  # it went at once
                self._held.append(HeldDirectory(event["directory"]))
        elif event["type"] == "abort":
            self._abort()
        else:
            if event.get("event") == "moved":
                self._held[event["acquisition"] - 1].path = Path(event["directory"])
            self._emit(event)


class Ranks:
    """Processes of a job: mpiexec, those that it has started, and those that users' code has started as well.

    All on this machine are known by the job's name in their environment.

    ``first`` is who was the first to end, where that is sure: the number of a rank, or the name of another process.
    """

    def __init__(self, process: subprocess.Popen[bytes], job: str, confined: Confined | None = None) -> None:
        self._process, self._job, self._confined = process, job, confined
        self.joined = False
        self.first: int | str | None = None
        self._seen: dict[int, str] = {}

    def set_ranks(self, ranks: list[tuple[str, int]]) -> None:
        """Note host and process of each rank: they are all there."""
        self.joined = True
        if self._confined is not None:
            self._confined.settle()
        self._see(pid for host, pid in ranks if host == socket.gethostname())
        if all(host == socket.gethostname() for host, _ in ranks):  # else one that is not seen may be the first
            processes: dict[int, int | str] = {pid: rank for rank, (_, pid) in enumerate(ranks)}
            processes[self._process.pid] = "mpiexec"
            for _, pid in ranks:
                processes.setdefault(
                    parent_of(pid) or self._process.pid, "the process of mpiexec that started the ranks"
                )
            threading.Thread(target=self._watch, args=(processes,), daemon=True).start()

    def _watch(self, processes: dict[int, int | str]) -> None:
        """Wait for the first process to end.

        mpiexec then ends the others, within milliseconds, and does not report which was the first (the process that it
        names is any of them). It may hear of an end before the system reports it: the process that is seen to end is
        the first only where no other is about to.
        """
        poll, known = select.poll(), dict[int, int | str]()
        with (
            ExitStack() as opened,
            suppress(OSError, AttributeError),
        ):  # one has ended; or this system has no such thing
            states = [opened.enter_context(open(f"/proc/{pid}/stat", "rb", buffering=0)) for pid in processes]
            for pid, member in processes.items():
                known[descriptor := os.pidfd_open(pid)] = member
                opened.callback(os.close, descriptor)
                poll.register(descriptor, select.POLLIN)
            ended = poll.poll()
            if len(ended) == 1 and sum(map(ending, states)) == 1:  # of several, any may have been the first
                self.first = known[ended[0][0]]

    def give_up(self) -> None:
        """End what has been started, unless all have joined."""
        if not self.joined:
            self._process.terminate()  # mpiexec ends the others

    def kill(self) -> None:
        """End all at once; those, too, that are being started meanwhile."""
        if self._process.poll() is None:
            self._process.kill()
        kill(self.left, LAST_WORDS_S)

    def gone(self) -> None:
        """Wait for the end of all, which may come after that of mpiexec; help where it doesn't come."""
        await_end(self.left, LAST_WORDS_S)
        self.kill()

    def left(self) -> list[int]:
        """Return the processes of the job on this machine that have not closed all their files.

        One that ends gives up its memory, and with it its environment, before its files: so those that were seen once
        are looked at by their numbers.
        """
        self._see(processes_with(LAUNCHED, self._job))
        return [pid for pid, start in self._seen.items() if started(pid) == start]

    def _see(self, pids: Iterable[int]) -> None:
        self._seen = self._seen | {pid: start for pid in pids if (start := started(pid))}  # a signal may come between


LOG_BYTES = 1 << 16
"""Bytes on the disk that are kept for a log."""


class Log:
    """The log of a run, which does not need it: lines that no disk takes are left out.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self, directory: Path) -> None:
        self._file = (directory / LOG).open("w+b", buffering=0)
        self.fileno = self._file.fileno
        with suppress(OSError):  # an mpiexec that cannot write there ends
            allocate(self.fileno(), 0, LOG_BYTES)

    def write(self, line: bytes) -> None:
        """Add a line and its end."""
        with suppress(OSError):
            self._file.write(line)

    def lines(self) -> list[str]:
        """Return all that is in it; nothing where it can't be read any more."""
        try:
            self._file.seek(0)
            return self._file.read().decode(errors="replace").splitlines()
        except OSError:
            return []

    def close(self) -> None:
        """End it."""
        with suppress(OSError), self._file:
            self._file.truncate(os.fstat(self.fileno()).st_size)  # gives back what was kept for it


LAST_LINES_S = 5.0
"""Seconds that the last lines of ranks may take to reach the log."""


def run_with_mpiexec(
    mpiexec: str, plan: Plan, base: Path, directory: Path, emit: Emit, signals: Signals
) -> tuple[Path, Summary]:
    """Run on MPI ranks; return what `conclude` does: summaries are there whatever happened to the ranks."""
    directories, began_ns = Directories(directory, emit, signals.abort), time.time_ns()
    try:
        log = Log(directory)
    except OSError as error:
        raise EnvironmentUnfit(f"cannot write in the run directory: {error}") from error
    server = JobServer(Job(plan, str(base), str(directory)))
    command, alone = command_line(mpiexec, plan, base, [server.name]), is_alone(plan)
    with closing(directories), closing(log), closing(server):
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
                # what has secrets in it does not reach the log as it is
                stderr=subprocess.PIPE if known() else log.fileno(),
                env={**os.environ, **(local_variables() if alone else {}), LAUNCHED: server.name},
            )  # fmt: skip
        except OSError as error:
            raise EnvironmentUnfit(f"cannot start {mpiexec}: {error}") from error
        ranks = Ranks(process, server.name, Confined(process.pid) if alone else None)
        signals.on_first, signals.on_second = lambda: server.stop(BY_USER), ranks.kill
        if signals.received:  # while they were being started
            server.stop(BY_USER)
        patience = threading.Timer(START_UP_S, ranks.give_up)
        patience.daemon = True
        patience.start()
        code = _attend(process, server, ranks, directories, log)
        patience.cancel()
        ranks.gone()
        sweep(began_ns)
        reason = AT_ONCE if signals.at_once else directories.gone() or _why(code, log, ranks, plan)
        return conclude(RunRecord.of(plan), directories.all, reason, "stopped" if signals.at_once else "failed")


def command_line(mpiexec: str, plan: Plan, base: Path, arguments: list[str]) -> list[str]:
    """Return the command that starts the ranks of a plan, on their hosts.

    Those of lima2 are one program, others have theirs (MPMD).
    """
    # -P: the working directory is data; what lies there never stands for a module of the same name
    own = [sys.executable, "-P", "-m", "mpi4py", "-m", "lima2cli.job.rank_main", *arguments]
    programs: list[str] = []
    for program, roles in groupby(plan.ranks, plan.command_of):
        count = ["-n", str(len(list(roles)))]
        programs += [":"] if programs else []
        programs += [*count, *own] if program is None else [*count, "-wdir", str(base), *executable(program)]
    return [mpiexec, *host_options(plan), *programs]


def executable(program: tuple[str, ...]) -> list[str]:
    """Return a command with the Python that runs this for ``python``."""
    return [sys.executable if program[0] == "python" else program[0], *program[1:]]


def _attend(process: subprocess.Popen[bytes], server: JobServer, ranks: Ranks, emit: Emit, log: Log) -> int:
    """Pass on events of the control rank and what programs print, until mpiexec and the control rank have ended.

    Returns the exit code of mpiexec. Where it ends first, the ranks are asked to end in order.
    """
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
                        ranks.set_ranks(event["ranks"]) if event["type"] == "ranks" else emit(event)
                    if server.ended:  # all is written
                        selector.unregister(key.fileobj)
                        deadline = time.monotonic() + LAST_WORDS_S
            if output.closed and (server.connection is None or server.ended):
                return process.wait()
            if output.closed and deadline is None:
                server.stop(NO_MPIEXEC)
                deadline = time.monotonic() + ORDERLY_END_S
            elif deadline is not None and time.monotonic() > deadline:
                return _end_rest(process, ranks, emit, written=server.ended)


def _end_rest(process: subprocess.Popen[bytes], ranks: Ranks, emit: Emit, *, written: bool) -> int:
    """End what goes on though the run is over: threads and children of users' code, ranks that hang in their end."""
    if written and process.poll() is None:
        message = f"warning: processes of the run did not end within {LAST_WORDS_S:g} s after it, and were ended"
        emit({"type": "event", "event": "warning", "message": message})
    ranks.kill()
    return process.wait()


def _log_hidden(stream: IO[bytes], log: Log) -> threading.Thread:
    """Copy what ranks write to standard error to the log, secrets hidden, until they have ended."""

    def copy() -> None:
        with stream:
            for line in stream:
                log.write(hide(line.decode(errors="replace")).encode())

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


def _pass_on(line: bytes, emit: Emit, log: Log) -> None:
    """Pass on a line of mpiexec about ranks that died, to the log; else what a program of the user's printed."""
    if MPIEXEC_SAYS.match(line):
        log.write(hide(line.decode(errors="replace")).encode() + b"\n")
    elif text := line.decode(errors="replace").rstrip():
        emit({"type": "event", "event": "output", "message": text})


AS_ROOT = "has detected an attempt to run as root"
"""A part of what Open MPI prints."""


def _why(code: int, log: Log, ranks: Ranks, plan: Plan) -> str:
    """Return the known reason of the end of ranks that left no summary.

    It is which process was seen to end first, and the last error in the log.
    """
    lines = log.lines()
    workers = list(dict.fromkeys(role.worker for role in plan.ranks if plan.command_of(role)))
    if not ranks.joined and workers:
        return f"the programs of {', '.join(map(str, workers))} did not all join the run (lima2cli.worker); see {LOG}"
    errors = [line for line in lines if ERROR.match(line)]
    aborted = [match[1] for line in lines if (match := ABORTED.search(line))]
    hung, reason = hung_at("\n".join(lines), functions_of(plan)), ""
    if hung:
        reason = f": {hung}"
    elif any(AS_ROOT in line for line in lines):
        reason = ": Open MPI runs as root only with OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
    elif any(NOT_STARTED in line for line in lines):
        others = " or ".join(host for host in hosts_of(plan) if not is_here(host))
        reason = f": no process could be started on {others}" + (f" ({errors[-1]})" if errors else "")
    elif errors:
        reason = f": {errors[-1]}"
    elif len(set(aborted)) == 1:
        reason = f": rank {aborted[0]} ({rank_name(plan, int(aborted[0]))}) ended the job (MPI_Abort)"
    elif isinstance(ranks.first, int):
        reason = f": rank {ranks.first} ({rank_name(plan, ranks.first)}) was the first to end"
    elif ranks.first is not None:
        reason = f": {ranks.first} was the first to end"
    return f"the ranks ended without a summary (mpiexec: exit code {code}){reason}; see {LOG}"
