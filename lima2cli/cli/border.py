"""The border of the program: options that commands share, exceptions to exit codes, files of `--output`."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lima2cli.cli.completion import key_paths
from lima2cli.errors import EnvironmentUnfit, ExitCode, Lima2Error, RunFailed, UnreadableInput
from lima2cli.paths import same
from lima2cli.secret import hide

_CODES: tuple[tuple[type[Lima2Error], int], ...] = (
    (UnreadableInput, ExitCode.USAGE),
    (RunFailed, ExitCode.FAILED),
    (EnvironmentUnfit, ExitCode.UNFIT),
)


@contextmanager
def border(*, as_json: bool, debug: bool, as_event: bool = False) -> Iterator[None]:
    """Guard the body of a command: an exception becomes a message and an exit code, a traceback only with ``debug``.

    With ``as_json`` the message is a diagnostic on standard output, in the format of `validate`; with ``as_event`` it
    is one line there, as events of a run are.
    """
    try:
        yield
    except BrokenPipeError:  # the reader went away; nothing that is left can be shown
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(ExitCode.PROBLEMS) from None
    except Lima2Error as error:
        code = next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.BUG)
        show_error("internal-error" if code == ExitCode.BUG else _rule(error), str(error), as_json, as_event=as_event)
        raise typer.Exit(code) from None
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and (advice_text := _refused(error)):
            show_error("run-failed", str(error), as_json, advice_text, as_event=as_event)
            raise typer.Exit(ExitCode.FAILED) from None
        message = f"this is a bug in lima2, not in your file ({type(error).__name__}: {error})"
        help = "run again with --debug, and report its output"
        show_error("internal-error", message, as_json, help, as_event=as_event)
        raise typer.Exit(ExitCode.BUG) from None


def _refused(error: OSError) -> str | None:
    """Return what helps where a disk refused, wherever that was: it is not an error of lima2."""
    from lima2cli.files.disk import refusal

    meaning = refusal(str(error))
    return None if meaning is None else ": ".join(meaning)


def _rule(error: Lima2Error) -> str:
    return {UnreadableInput: "unreadable-input", RunFailed: "run-failed"}.get(type(error), "environment-unfit")


def show_error(rule: str, message: str, as_json: bool, help: str | None = None, *, as_event: bool = False) -> None:
    """Print an error that has no place in a file."""
    message = hide(message)
    if as_json or as_event:
        from lima2cli.diagnostics import Diagnostic
        from lima2cli.document.render import show_events, show_json

        diagnostics = [Diagnostic(rule, message, help=help)]
        typer.echo(show_events(None, diagnostics) if as_event else show_json(None, diagnostics) + "\n", nl=False)
    else:
        typer.echo(f"error[{rule}]: {message}" + (f"\n = help: {help}" if help else ""), err=True)


class Format(StrEnum):
    """Formats of diagnostics."""

    TEXT = "text"
    CONCISE = "concise"
    JSON = "json"
    GITHUB = "github"
    SARIF = "sarif"


Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY.PATH=VALUE",
        help="Replace a value of the file; may be repeated.",
        autocompletion=key_paths,
    ),
]
Profiles = Annotated[
    list[str] | None,
    typer.Option("--profile", "-p", metavar="FILE", help="Lay a file of changes on the pipeline; may be repeated."),
]
LimitsFile = Annotated[
    str | None,
    typer.Option("--limits", metavar="FILE", help="Predict the rate from what `doctor --bench -o FILE` has measured."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")]
NoFuse = Annotated[bool, typer.Option("--no-fuse", help="Do not fuse nodes into kernels.", hidden=True)]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", hidden=True)]


def seconds_option(option: str, text: str) -> float:
    """Return the seconds that an option says, a plain number or one with a unit such as `10ms`.

    Raises:
        UnreadableInput: they are neither.
    """
    from lima2cli.units import parse

    try:
        return float(text) if text.replace(".", "", 1).isdigit() else float(parse(text, "seconds"))
    except ValueError as error:
        raise UnreadableInput(f"{option}: {error}") from error


OTHERS = (
    ".yaml", ".yml", ".py", ".h5", ".hdf5", ".nxs", ".cxi", ".npy", ".npz", ".edf", ".cbf", ".tif", ".tiff", ".gz",
    ".bz2", ".zip", ".tar", ".poni",
)  # fmt: skip
"""Suffixes of pipelines, programs, data and archives: existing files of these are not replaced by a listing."""


def check_output(path: str, inputs: Iterable[str]) -> None:
    """Raise `EnvironmentUnfit` where a file exists that must not be replaced.

    ``inputs`` are absolute paths, links followed.
    """
    from lima2cli.runs.ownership import names_of

    file = Path(path)
    if not file.exists():
        return
    target = file.resolve()
    if any(same(file, Path(one)) for one in inputs):
        raise EnvironmentUnfit(f"{path} is an input of the pipeline and is not overwritten")
    if target.suffix.lower() in OTHERS:
        raise EnvironmentUnfit(f"{path} exists; existing {target.suffix} files are not overwritten")
    names = names_of(target.parent)
    if names is not None and names.owns(target.name):
        raise EnvironmentUnfit(f"{path} belongs to a run and is not overwritten")


def write_output(path: str, text: str, inputs: Iterable[str]) -> None:
    """Write a string to a file.

    Raises:
        EnvironmentUnfit: see `check_output`, or the system refuses.
    """
    check_output(path, inputs)
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise EnvironmentUnfit(f"cannot write {path}: {error.strerror or error}") from error


__all__ = ["ExitCode", "border", "show_error"]
