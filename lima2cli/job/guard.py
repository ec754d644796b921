"""Guard of a run in one process whose users' code never returns from C: it is ended from outside.

No thread of such a process can do anything where the code holds the interpreter's lock. So a child of it, forked before
users' code is called, sleeps until it is notified (by `watch`, or by the C thread of faulthandler) that a call does not
return. It then stops the process, makes the files readable, writes the summary, and has the process end with the exit
code of a run that has failed.
"""

import ctypes
import os
import pickle
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from lima2cli.errors import FAILED, UserCodeError
from lima2cli.foreign import ALIVE, WATCH, hung_at, is_foreign, place_of
from lima2cli.job.loopback import descriptor_of
from lima2cli.paths import unlock
from lima2cli.plan.ir import Plan
from lima2cli.runs.ending import conclude
from lima2cli.runs.processes import started
from lima2cli.secret import hide

GONE = "the process was killed, or users' code ended it"

PR_SET_PTRACER = 0x59616D61

LAST_LINES_S = 1.0
"""Seconds without a line after which the last one has come; a process that was only stopped has sent one by then."""


class Guard:
    """The child that watches this process, from `begin` on; it ends with it, or with `end`."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self._plan, self._directory = plan, directory
        self._child, self._pipe, self._process, self._exit = 0, -1, os.getpid(), os._exit

    def begin(self) -> None:
        """Fork the child, once; where that can't be done, or known, nothing watches."""
        if self._child or not hasattr(os, "pidfd_open"):
            return
        ears, mouth = os.pipe()
        os.set_inheritable(mouth, False)
        parent = os.pidfd_open(os.getpid())
        self._child = os.fork()
        if self._child == 0:
            try:
                self._sleep(ears, parent)
            finally:
                os._exit(0)
        os.close(ears)
        os.close(parent)
        library = ctypes.CDLL(None)
        library.signal(FAILED, library._exit)  # the number of the signal is then the exit code
        library.prctl(PR_SET_PTRACER, self._child, 0, 0, 0)  # it may take descriptors, under Yama too
        self._pipe, self._exit = mouth, os._exit
        os._exit = self._ended  # type: ignore[assignment]
        WATCH.last_resort, WATCH.dump_to = self._tell, mouth

    def _tell(self, why: str) -> None:
        os.write(self._pipe, f"{UserCodeError.__name__}: {why}\n".encode())
        time.sleep(60)  # the child takes it from here

    def _ended(self, code: int) -> NoReturn:
        """End in place of ``os._exit``: the exit code of users' code is not the outcome of the run."""
        if os.getpid() == self._process:
            place = place_of((frame.filename, frame.lineno or 0) for frame in traceback.extract_stack())
            self._tell(f"{place}os._exit({code}) ended the process")
        self._exit(code)

    def end(self) -> None:
        """End the child: all calls have returned."""
        if not self._child:
            return
        WATCH.rest()
        os._exit = self._exit
        ctypes.CDLL(None).signal(FAILED, None)
        with suppress(OSError):
            os.close(self._pipe)
        with suppress(OSError):
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        self._child = 0

    def _sleep(self, ears: int, parent: int) -> None:
        """Sleep until notified, in the child.

        It takes no part in what happens to the process: signals, files, streams.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        kept = {0, 1, 2, ears, parent}
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in kept:
                with suppress(OSError):
                    os.close(int(name))
        message, process = _heard(ears, parent), self._process
        if GONE not in message:
            os.kill(process, signal.SIGSTOP)
        document = os.memfd_create("lima2-plan")
        os.write(document, pickle.dumps((self._plan, str(self._directory), message, process)))
        os.lseek(document, 0, os.SEEK_SET)
        os.dup2(document, 0)
        command = [sys.executable, "-P", "-m", "lima2cli.job.guard"]
        os.execve(command[0], command, {**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE"})


def functions_of(plan: Plan) -> dict[str, str]:
    """Return users' functions of a plan, by the nodes that call them."""
    named = {step.name: str(getattr(step.node, "function", None) or "") for step in plan.steps}
    return {name: function for name, function in {**named, "--receiver": plan.processing or ""}.items() if function}


def calls_others(plan: Plan) -> bool:
    """Return whether a plan has code that others wrote: functions, and kinds of packages."""
    kinds = [type(step.node) for step in plan.steps] + [type(plan.detector)]
    return bool(functions_of(plan)) or any(map(is_foreign, kinds))


def _heard(ears: int, parent: int) -> str:
    """Return the notification of a call that does not return, or that the process is gone."""
    poll, message = select.poll(), b""
    poll.register(ears, select.POLLIN)
    poll.register(parent, select.POLLIN)
    while True:
        ready = dict(poll.poll(1000 * LAST_LINES_S if message else None))
        if parent in ready:
            return f"{UserCodeError.__name__}: {GONE}"
        if not ready:
            return message.decode(errors="replace")
        more = os.read(ears, 1 << 16)
        if more.endswith(ALIVE):  # it was stopped, and goes on
            message = b""
            continue
        if not more:  # users' code has closed it
            poll.unregister(ears)
        message += more


def main() -> None:
    """End the run of a process that does not end it itself."""
    plan, directory, message, process = pickle.loads(sys.stdin.buffer.read())  # noqa: S301  of its own fork
    reason = hung_at(message, functions_of(plan)) or message
    gone = GONE in message
    try:
        try:
            if not gone:
                _unlock(process, directory)
        except (OSError, AttributeError):  # not allowed here: its files are locked until it has ended
            _end(process)
        _, summary = conclude(plan, [Path(directory)], reason)
        if summary["reason"] == reason:  # else it had ended before
            print(f"failed: {hide(reason)}; files: {directory}", file=sys.stderr, flush=True)
    finally:
        if not gone:
            _end(process)


def _unlock(process: int, directory: str) -> None:
    """Unlock the files of a process that is stopped, and will not go on.

    Raises:
        OSError: the system refuses.
    """
    known = os.pidfd_open(process)
    for name in os.listdir(f"/proc/{process}/fd"):
        if os.path.realpath(f"/proc/{process}/fd/{name}").startswith(directory + os.sep):
            taken = descriptor_of(known, int(name))
            unlock(taken)
            os.close(taken)
    os.close(known)


def _end(process: int) -> None:
    """End the process that is stopped: by its own exit code, where users' code has not taken the signal."""
    with suppress(ProcessLookupError):
        os.kill(process, FAILED)
        os.kill(process, signal.SIGCONT)
        time.sleep(0.5)
        if started(process):
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
