"""Threads of users' code that go on when all is done, and ends of processes that do not wait for them."""

import atexit
import ctypes
import os
import sys
import threading
from concurrent.futures import thread as pools
from contextlib import suppress
from pathlib import Path
from types import FrameType

from lima2cli.watch import CALL_S, WATCH, TookTooLong

PACKAGE = str(Path(__file__).parent)


def lingering() -> dict[str, str]:
    """Threads that the end of this process would wait for, by name, each with the file and line where it is. Those of
    lima2, and idle ones of pools, end by themselves."""
    frames = sys._current_frames()
    found = {}
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if thread.daemon or thread is threading.main_thread() or frame is None:
            continue
        if frame.f_code.co_filename == pools.__file__ or any(file.startswith(PACKAGE) for file in _files(frame)):
            continue
        found[thread.name] = _place(frame)
    return found


def leave(code: int) -> None:
    """End this process with ``code``, without waiting, where users' code was called, or threads of it go on; else
    return. What it wants to do at the end has as long as a call."""
    if not lingering() and not WATCH.used:
        return
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
    """Nothing."""


def _files(frame: FrameType | None) -> list[str]:
    files = []
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    return files


def _place(frame: FrameType) -> str:
    """File and line of the innermost frame that is not of the standard library."""
    library, here = str(Path(os.__file__).parent), frame
    while here.f_code.co_filename.startswith(library) and "site-packages" not in here.f_code.co_filename:
        if here.f_back is None:
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        here = here.f_back
    if here.f_code.co_filename == threading.__file__:
        here = frame
    return f"{Path(here.f_code.co_filename).name}:{here.f_lineno}"
