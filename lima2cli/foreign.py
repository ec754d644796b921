"""Run code of others in our processes: functions of users, and classes of plugins."""

import atexit
import builtins
import ctypes
import importlib
import io
import math
import os
import re
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import thread as pools
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import ParamSpec, TypeVar

from lima2cli.dataclass import dataclass
from lima2cli.errors import EndedAtOnce, Lima2Error, UserCodeError
from lima2cli.units import seconds_text

P = ParamSpec("P")
T = TypeVar("T")

PACKAGE, IMPORTLIB = (str(Path(file).parent) for file in (__file__, importlib.__file__))
"""Folders of code that is not others', and calls it."""

LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
"""Folders of code that others' calls: its place says less than that of the call."""

LONGEST = 2000
"""Most characters of a message that are kept."""


class ExitError(Lima2Error):
    """A raised object that is not an `Exception`: SystemExit, KeyboardInterrupt, GeneratorExit, and the like."""


def call_foreign(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call code of others so that whatever it raises can be caught as an Exception.

    ``sys.exit()`` ends no rank, and a KeyboardInterrupt that no key has raised no run: these, and all that is no
    Exception, become an `ExitError` of the same traceback. A child that it forks, and that returns from it, ends here:
    there is one of each rank.

    Raises: the errors of ``function``, else.
    """
    process = os.getpid()
    try:
        return function(*args, **kwargs)
    except (Exception, EndedAtOnce):
        raise
    except BaseException as error:
        raise ExitError(error_text(error)).with_traceback(error.__traceback__) from error
    finally:
        if os.getpid() != process:
            os._exit(0)


def error_text(error: BaseException) -> str:
    """Return kind and message of an exception in one line; for one that stands for another, those of that."""
    if isinstance(error, ExitError | UserCodeError):
        return str(error)
    try:
        text = str(error)[:LONGEST]
    except BaseException:  # noqa: BLE001  its __str__ is others' code, too
        text = "(it cannot be printed)"
    return f"{type(error).__name__}: {' '.join(text.split())}".rstrip(": ")


def is_foreign(kind: type) -> bool:
    """Return True if a class is of a package that others wrote."""
    return not kind.__module__.startswith("lima2cli.")


def place_of(frames: Iterable[tuple[str, int]]) -> str:
    """Return the most telling frame of others' code, as ``u.py:5: ``; empty where there is none. ``frames`` are files
    with lines, the innermost last.
    """
    stack = list(frames)
    called = next((at for at, (file, _) in enumerate(stack) if file.startswith(PACKAGE)), 0)  # by us, who by a script
    known = [frame for frame in stack[called:] if not frame[0].startswith(("<", PACKAGE, IMPORTLIB))]
    known = [frame for frame in known if not frame[0].startswith(LIBRARIES)] or known
    return f"{Path(known[-1][0]).name}:{known[-1][1]}: " if known else ""


_UMASK: int | None = None
"""Mask of the modes of new files (umask(2)) before users' code was called first."""

_MODULES: dict[str, ModuleType] = {}
"""Modules that were there when users' code was last called."""


def _note_umask() -> None:
    global _UMASK
    _UMASK = os.umask(0o077)  # nothing else asks for it
    os.umask(_UMASK)


def restore_standards() -> None:
    """Open descriptors 0 to 2 again where they were closed, and put back hooks, `open` and modules that were removed,
    and the mask of files' modes.

    Else a file of the run would get the number, and with it everything that is printed; no thread could be started, no
    file opened, and libraries of C would be loaded a second time.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
    for module, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        if not callable(getattr(module, name)):
            setattr(module, name, getattr(module, f"__{name}__"))
    if _UMASK is not None:
        os.umask(_UMASK)
    if not callable(builtins.open):
        builtins.open = io.open
    if len(sys.modules) != len(_MODULES):
        for name, module in _MODULES.items():
            sys.modules.setdefault(name, module)
        _MODULES.update(sys.modules)


SIGNAL = signal.SIGRTMIN + 7
LOOK_S, AGAIN_S, RESORT_S = 0.1, 1.0, 5.0
"""Seconds from one look at the clock to the next, from one signal to the next, from the first to the last resort."""

ARM_S, SILENT_S = 1.0, 3.0
"""Seconds from one call of `Watch.arm` to the next, and by how much the next may be late."""

IMPORT_S, CALL_S = 45.0, 25.0
"""Least seconds allowed for an import or the making of an object, and for a call for a block."""


class TookTooLong(BaseException):
    """Raised in a call that has taken too long; no Exception, so that it is seldom caught there."""


@dataclass
class _Call:
    what: str
    limit_s: float
    since: float

    @property
    def over_s(self) -> float:
        return time.monotonic() - self.since - self.limit_s


class Watch:
    """The calls of one process, in its main thread. ``timeout_s`` of the acquisition is the least that a call has,
    ``most_s`` the most that one for a block has.

    ``arm`` is called again and again with the seconds after which a process that does not call it any more is to be
    given up: its code holds the interpreter's lock.
    """

    def __init__(self) -> None:
        self.timeout_s, self.most_s = 0.0, math.inf
        self.last_resort: Callable[[str], None] = lambda text: None
        self.arm: Callable[[float], None] | None = None
        self._lock = threading.Lock()
        self._call: _Call | None = None
        self._thread: threading.Thread | None = None

    @contextmanager
    def during(self, what: str, least_s: float) -> Iterator[None]:
        """Watch one call; ``what`` names it in messages.

        Raises: TookTooLong in the call.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        limit_s = max(self.timeout_s, least_s)
        call = _Call(what, limit_s if least_s > CALL_S else min(limit_s, self.most_s), time.monotonic())
        if self._thread is None or not self._thread.is_alive():
            _note_umask()
            self._arm(call)  # the thread may never have its turn
            self._thread = threading.Thread(target=self._look, name="lima2-watch", daemon=True)
            self._thread.start()
        if signal.getsignal(SIGNAL) is not _ring:
            signal.signal(SIGNAL, _ring)
        outer, self._call = self._call, call
        try:
            yield
        finally:
            self._call = outer

    @property
    def used(self) -> bool:
        """Return True if there were any calls."""
        return self._thread is not None

    def _look(self) -> None:
        rung = armed = time.monotonic()
        armed_for: _Call | None = None
        while True:
            time.sleep(LOOK_S)
            call, now = self._call, time.monotonic()
            if now - armed > ARM_S or call is not armed_for:
                self._arm(call)
                armed, armed_for = now, call
            if call is None or call.over_s < 0:
                continue
            if now - rung > AGAIN_S:
                rung = now
                signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
            if call.over_s > RESORT_S and self._call is call:
                self.last_resort(f"{_where()}TookTooLong: {_words(call)} ({call.what})")

    def _arm(self, call: _Call | None) -> None:
        with self._lock:
            if self.arm is not None:
                left = max(self.timeout_s, IMPORT_S) if call is None else max(0.0, -call.over_s)
                self.arm(left + RESORT_S + SILENT_S)  # after the last resort

    def rest(self) -> None:
        """Stop watching from outside."""
        with self._lock:
            self.arm, self.last_resort = None, lambda text: None

    def ring(self) -> None:
        """Interrupt the current call if it is due.

        Raises: TookTooLong.
        """
        call = self._call
        if call is not None and call.over_s >= 0:
            raise TookTooLong(_words(call))


def _words(call: _Call) -> str:
    return f"it had not returned after {seconds_text(call.limit_s)}"


def _where() -> str:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return place_of((summary.filename, summary.lineno or 0) for summary in traceback.extract_stack(frame))


DUMPED = re.compile(r"^(?:Timeout \(|Thread |Current thread )", re.MULTILINE)
DUMPED_FRAME = re.compile(r'^  File "(.+)", line (\d+) in ', re.MULTILINE)


def hung_at(text: str, functions: Mapping[str, str]) -> str | None:
    """Return the reason of a run's end from the output of faulthandler, or `last_resort`; None where there is none.

    functions   of nodes, by their names
    """
    message = re.search(r"^UserCodeError: (.+)", text, re.MULTILINE)
    dumped = DUMPED.search(text)
    if message:
        words = message[1]
    elif dumped:
        threads = re.split(r"^(?:Current t|T)hread .*$", text[dumped.start() :], flags=re.MULTILINE)
        stacks = [[(file, int(line)) for file, line in DUMPED_FRAME.findall(thread)][::-1] for thread in threads]
        stacks = stacks[::-1]  # the main thread is the last
        own = [[thread for thread in stack if not thread[0].startswith(LIBRARIES)] for stack in stacks]
        place = next(filter(None, map(place_of, [*own, *stacks])), "")
        words = f"{place}TookTooLong: it did not return from C, and held the interpreter's lock"
    else:
        return None
    files = {function.rpartition(":")[0].rpartition("/")[2]: node for node, function in functions.items()}
    node = next((node for file, node in files.items() if file and f"{file}:" in words), None)
    return words if node is None else f"{node}: {words}"


def _ring(number: int, frame: object) -> None:
    WATCH.ring()


WATCH = Watch()


def lingering() -> dict[str, str]:
    """Return threads that the end of this process would wait for, by name, each with its current file and line. Those
    of lima2, and idle ones of pools, end by themselves.
    """
    frames = sys._current_frames()
    places = {}
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if thread.daemon or thread is threading.main_thread() or frame is None:
            continue
        if frame.f_code.co_filename == pools.__file__ or any(file.startswith(PACKAGE) for file in _files(frame)):
            continue
        places[thread.name] = _place(frame)
    return places


ENDINGS: list[Callable[[], None]] = []
"""Calls with which a program that called users' code begins to end."""


def leave(code: int) -> None:
    """End this process with ``code``, without waiting, where users' code was called, or threads of it go on.

    Else return. Its exit handlers have as long as a call.
    """
    if not lingering() and not WATCH.used:
        return
    for end in ENDINGS:
        end()
    if "mpi4py.MPI" not in sys.modules:  # ranks are ended by their launcher
        sys.unraisablehook = _ignore  # else the interpreter prints a traceback of a handler that is late
        with suppress(TookTooLong), WATCH.during("atexit", CALL_S):
            atexit._run_exitfuncs()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # whoever reads it has gone
            continue
    if mpi is not None:  # MPICH takes leave of mpiexec in a handler of C's exit(3); without it mpiexec kills the others
        ctypes.PyDLL(None).exit(code)
    os._exit(code)


def _ignore(unraisable: object) -> None:
    """Ignore an unraisable exception."""


def _files(frame: FrameType | None) -> list[str]:
    files = []
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    return files


def _place(frame: FrameType) -> str:
    """Return file and line of the innermost frame that is not of the standard library."""
    library, here = str(Path(os.__file__).parent), frame
    while here.f_code.co_filename.startswith(library) and "site-packages" not in here.f_code.co_filename:
        if here.f_back is None:
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        here = here.f_back
    if here.f_code.co_filename == threading.__file__:
        here = frame
    return f"{Path(here.f_code.co_filename).name}:{here.f_lineno}"
