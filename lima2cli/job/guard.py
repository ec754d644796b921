"""Guard of a run in one process whose users' code never returns from C: it is ended from outside.

No thread of such a process can do anything where the code holds the interpreter's lock. So a child of it, forked before
users' code is called, is notified again and again how long to wait for the next notice. Where that does not come, or
a call is reported not to return, it stops the process, makes the files readable, writes the summary, and has the
process end with the exit code of a run that has failed.
"""

import ctypes
import faulthandler
import os
import pickle
import re
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from lima2cli.accounting.record import RunRecord
from lima2cli.errors import ExitCode, UserCodeError
from lima2cli.foreign import ENDINGS, SILENT_S, WATCH, error_text, hung_at, is_foreign, place_of, restore_standards
from lima2cli.job.loopback import call_c, descriptor_of
from lima2cli.paths import unlock
from lima2cli.plan.ir import Plan
from lima2cli.runs.ending import conclude
from lima2cli.runs.processes import HeldDirectory, await_end, descendants, is_stopped, kill, started
from lima2cli.secret import hide

DUMP = signal.SIGRTMIN + 6
DUE = re.compile(rb"due ([\d.]+)\n")

ASKED = 2
"""Times that a process is not heard of before it is asked where it is."""

SILENT = "TookTooLong: it did not return from C, and held the interpreter's lock"
GONE = "the process was killed, or users' code ended it"

PR_SET_PTRACER, PR_SET_CHILD_SUBREAPER = 0x59616D61, 36

LAST_LINES_S = 1.0
"""Seconds without a line after which the last one has come; a process that was only stopped has sent one by then."""


class Guard:
    """The child that watches this process, from `begin` on; it ends with it, or with `end`."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self._plan, self._held = plan, HeldDirectory(directory)
        self._child, self._pipe, self._inode, self._process, self._exit = 0, -1, 0, os.getpid(), os._exit
        self._input, self._unraisable = -1, sys.unraisablehook

    def begin(self) -> None:
        """Fork the child, once; where that can't be done, or known, nothing watches."""
        if self._child or not hasattr(os, "pidfd_open"):
            return
        restore_standards()  # descriptors 0 to 2 are there
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
        library.prctl(PR_SET_PTRACER, self._child, 0, 0, 0)  # it may take descriptors, under Yama too
        library.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if _end_descendants not in ENDINGS:
            ENDINGS.append(_end_descendants)
        self._can_be_ended()
        self._unraisable, sys.unraisablehook = sys.unraisablehook, _warn
        self._input = os.dup(0)  # as for ranks, there is none
        os.dup2(nothing := os.open(os.devnull, os.O_RDONLY), 0)
        os.close(nothing)
        self._pipe, self._inode, self._exit = mouth, os.fstat(mouth).st_ino, os._exit
        os._exit = self._ended  # type: ignore[assignment]
        faulthandler.register(DUMP, file=mouth)  # whoever hears it writes where all threads are; none of them moves
        WATCH.last_resort, WATCH.arm = self._report, self._give_up_after

    def _give_up_after(self, seconds: float) -> None:
        with suppress(OSError):  # the child is gone
            if os.fstat(self._pipe).st_ino == self._inode:  # else the number is another file's
                os.write(self._pipe, f"due {seconds:.3f}\n".encode())

    @staticmethod
    def _can_be_ended() -> None:
        """Let a signal end the process whose number is the exit code, whatever users' code has made of signals."""
        library = ctypes.CDLL(None)
        library.signal(ExitCode.FAILED, library._exit)

    def hand_over(self, why: str) -> None:
        """Have the child end the run, and this process; return where there is none."""
        if self._child:
            self._report(why)

    def _report(self, why: str) -> None:
        self._can_be_ended()
        os.write(self._pipe, f"{UserCodeError.__name__}: {why}\n".encode())
        time.sleep(60)  # the child takes it from here

    def _ended(self, code: int) -> NoReturn:
        """End in place of ``os._exit``: the exit code of users' code is not the outcome of the run."""
        if os.getpid() == self._process:
            place = place_of((frame.filename, frame.lineno or 0) for frame in traceback.extract_stack())
            self._report(f"{place}os._exit({code}) ended the process")
        self._exit(code)

    def end(self) -> None:
        """End the child: all calls have returned."""
        self._held.close()
        if not self._child:
            return
        WATCH.rest()
        faulthandler.unregister(DUMP)
        os._exit = self._exit
        ctypes.CDLL(None).signal(ExitCode.FAILED, None)
        sys.unraisablehook = self._unraisable
        os.dup2(self._input, 0)
        os.close(self._input)
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
        kept = {0, 1, 2, ears, parent, self._held.descriptor}
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in kept:
                with suppress(OSError):
                    os.close(int(name))
        message, process = _heard(ears, parent, self._process), self._process
        if GONE not in message:
            os.kill(process, signal.SIGSTOP)
        document, directory = os.memfd_create("lima2-plan"), os.path.realpath(self._held.now() or self._held.path)
        os.write(document, pickle.dumps((self._plan, directory, message, process)))
        os.lseek(document, 0, os.SEEK_SET)
        os.dup2(document, 0)
        command = [sys.executable, "-P", "-m", "lima2cli.job.guard"]
        os.execve(command[0], command, {**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE"})


def _end_descendants() -> None:
    """Wait for the processes that users' code has left, and kill those that do not end."""
    left = partial(descendants, os.getpid())
    await_end(left)
    kill(left)


def _warn(unraisable: Any) -> None:
    """Print an exception that nothing catches, as of a finaliser, in a line."""
    error = unraisable.exc_value or unraisable.exc_type()
    print(f"warning: ignored, in users' code: {hide(error_text(error))}", file=sys.stderr)


def functions_of(plan: Plan) -> dict[str, str]:
    """Return users' functions of a plan, by the nodes that call them."""
    named = {step.name: step.node.calls or "" for step in plan.steps}
    return {name: function for name, function in {**named, "--receiver": plan.processing or ""}.items() if function}


def calls_others(plan: Plan) -> bool:
    """Return whether a plan has code that others wrote: functions, and kinds of packages."""
    kinds = [type(step.node) for step in plan.steps] + [type(plan.detector)]
    return bool(functions_of(plan)) or any(map(is_foreign, kinds))


def _heard(ears: int, parent: int, process: int) -> str:
    """Return the notification of a call that does not return, or that the process is gone.

    A process that was due and is silent may have been stopped until now: it has `SILENT_S` to be heard of, and is then
    asked where it is.
    """
    poll, message, wait, missed = select.poll(), b"", None, 0
    poll.register(ears, select.POLLIN)
    poll.register(parent, select.POLLIN)
    while True:
        ready = dict(poll.poll(None if wait is None else 1000 * wait))
        if parent in ready:
            return f"{UserCodeError.__name__}: {GONE}"
        if ready:
            more, missed = os.read(ears, 1 << 16), 0
            due = DUE.findall(more)
            message += DUE.sub(b"", more)
            wait = LAST_LINES_S if message else float(due[-1]) if due else None
            if not more:  # users' code has closed it
                poll.unregister(ears)
            continue
        missed = 0 if is_stopped(process) else missed + 1
        if message or missed > ASKED:
            return message.decode(errors="replace") or f"{UserCodeError.__name__}: {SILENT}"
        if missed == ASKED:
            call_c("tgkill", process, process, DUMP)  # its main thread
        wait = SILENT_S


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
        _, summary = conclude(RunRecord.of(plan), [Path(directory)], reason)
        if summary.reason == reason:  # else it had ended before
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
        os.kill(process, ExitCode.FAILED)
        os.kill(process, signal.SIGCONT)
        time.sleep(0.5)
        if started(process):
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
