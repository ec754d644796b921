"""Calls of code that others wrote: functions of users, and the classes of plugins."""

import importlib
import os
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

from lima2cli.errors import EndedAtOnce, Lima2Error, UserCodeError

P = ParamSpec("P")
T = TypeVar("T")

PACKAGE, IMPORTLIB = (str(Path(file).parent) for file in (__file__, importlib.__file__))
"""Folders of code that is not others', and calls it."""

LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
"""Folders of code that others' calls: its place says less than that of the call."""

LONGEST = 2000
"""Characters of a message that are kept."""


class ExitError(Lima2Error):
    """What was raised and is no Exception: SystemExit, KeyboardInterrupt, GeneratorExit, and the like."""


def call_foreign(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what others wrote, so that whatever it raises can be caught as an Exception.

    ``sys.exit()`` ends no rank, and a KeyboardInterrupt that no key has raised no run: these, and all that is no
    Exception, become an `ExitError` of the same traceback. A child that it forks, and that returns from it, ends here:
    there is one of each rank. Raises what ``function`` raises, else.
    """
    process = os.getpid()
    try:
        return function(*args, **kwargs)
    except (Exception, EndedAtOnce):
        raise
    except BaseException as error:
        raise ExitError(said(error)).with_traceback(error.__traceback__) from error
    finally:
        if os.getpid() != process:
            os._exit(0)


def said(error: BaseException) -> str:
    """Kind and message of an exception in one line; of one that stands for another, those of that."""
    if isinstance(error, ExitError | UserCodeError):
        return str(error)
    try:
        text = str(error)[:LONGEST]
    except BaseException:  # noqa: BLE001  its __str__ is others' code, too
        text = "(it cannot be printed)"
    return f"{type(error).__name__}: {' '.join(text.split())}".rstrip(": ")


def is_foreign(kind: type) -> bool:
    """Whether a class is of a package that others wrote."""
    return not kind.__module__.startswith("lima2cli.")


def place_of(frames: Iterable[tuple[str, int]]) -> str:
    """Of frames, files with lines, the innermost last: that of others' code which says most, as ``u.py:5: ``; empty
    where there is none."""
    stack = list(frames)
    called = next((at for at, (file, _) in enumerate(stack) if file.startswith(PACKAGE)), 0)  # by us, who by a script
    known = [it for it in stack[called:] if not it[0].startswith(("<", PACKAGE, IMPORTLIB))]
    known = [it for it in known if not it[0].startswith(LIBRARIES)] or known
    return f"{Path(known[-1][0]).name}:{known[-1][1]}: " if known else ""


def standard_descriptors() -> None:
    """Open descriptors 0 to 2 again where they were closed: else a file of the run would get the number, and what
    anything prints."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
