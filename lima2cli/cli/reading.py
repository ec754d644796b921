"""Files of the command line, read and checked, and their findings as one output."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import typer

from lima2cli.check import Checked, check_text
from lima2cli.cli.border import ExitCode, Format, show_error
from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import Diagnostic, Findings
from lima2cli.document import Profile, Source
from lima2cli.document.render import show_concise, show_events, show_github, show_json, show_sarif, show_text
from lima2cli.errors import UnreadableInput
from lima2cli.secret import hide

if TYPE_CHECKING:
    from lima2cli.plan.prediction import Limits
    from lima2cli.runs.saved_plan import Origin


@dataclass(frozen=True)
class Changes:
    """Changes of a pipeline by the command line: profiles are laid on it, then values are set, each in order."""

    overrides: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()

    @classmethod
    def of(cls, overrides: Sequence[str] | None, profiles: Sequence[str] | None, frames: int | None = None) -> Self:
        """Return the changes by ``--set``, ``--profile`` and ``--frames``; files of profiles are read.

        Raises:
            UnreadableInput: one can't be read.
        """
        last = () if frames is None else (f"acquisition.frames={frames}",)
        return cls((*(overrides or ()), *last), tuple(read_profile(file) for file in profiles or ()))

    def and_set(self, overrides: Sequence[str]) -> Self:
        """Return the changes with more values set after these."""
        return replace(self, overrides=(*self.overrides, *overrides))


NONE = Changes()


def read_profile(file: str) -> Profile:
    """Return the profile in a file.

    Raises:
        UnreadableInput: it can't be read.
    """
    if file == "-":
        raise UnreadableInput("--profile -: a profile is a file")
    return Profile(file, read(file))


def check_file(file: str, changes: Changes = NONE, *, fuse: bool = True) -> Checked:
    """Check a file, or standard input for ``-``, and return its findings.

    Data files of standard input are relative to the working directory.

    Raises:
        UnreadableInput: it can't be read.
    """
    base = Path(".") if file == "-" else Path(file).parent
    cores = len(os.sched_getaffinity(0))
    return check_text(
        read(file), file, base, cores=cores, environment=os.environ, overrides=changes.overrides,
        profiles=changes.profiles, fuse=fuse,
    )  # fmt: skip


def check_pipeline(file: str, changes: Changes = NONE, *, fuse: bool = True) -> Checked:
    """Check a file that must be a pipeline, and return its findings.

    Raises:
        UnreadableInput: as `check_file`, or it has only graphs.
    """
    checked = check_file(file, changes, fuse=fuse)
    if checked.plan is None and not checked.findings.failed:
        raise UnreadableInput(f"{file} is not a pipeline: it defines graphs for pipelines to use")
    return checked


def origin_of(checked: Checked, file: str, changes: Changes) -> "Origin":
    """Return the origin of a checked file of the command line."""
    from lima2cli.runs.saved_plan import Origin

    profiles = [(profile.file, profile.text) for profile in checked.profiles]
    return Origin.here(checked.source.text, file, changes.overrides, checked.texts, checked.variables, profiles)


def compiled(file: str, changes: Changes, strict: bool, *, as_json: bool = False) -> "tuple[Checked, Origin]":
    """Return the pipeline of a file and its origin; problems are shown, and end the command, warnings are shown."""
    checked = check_pipeline(file, changes)
    if checked.plan is None or (strict and any(True for _ in checked.findings)):
        show_problems(checked, as_json=as_json)
        raise typer.Exit(ExitCode.PROBLEMS)
    if not as_json:
        typer.echo(show_all([checked], Format.CONCISE), nl=False, err=True)
    return checked, origin_of(checked, file, changes)


def show_problems(checked: Checked, *, as_json: bool) -> None:
    """Show what keeps a file from being compiled."""
    typer.echo(show_all([checked], Format.JSON if as_json else Format.TEXT), nl=False, err=not as_json)


def unreadable(file: str, error: UnreadableInput) -> Checked:
    """Return the finding about a file that cannot be read."""
    return Checked(Source(file, ""), Findings([Diagnostic("unreadable-input", str(error))]))


def read(file: str) -> str:
    """Return the contents of a file, UTF-8.

    Raises:
        UnreadableInput: it can't be read.
    """
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: bytes that are not UTF-8, a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UnreadableInput(f"cannot read {file}: {reason}") from error


def read_limits(file: str) -> "Limits":
    """Return the limits of a machine, as ``doctor --bench -o`` has written them.

    Raises:
        UnreadableInput: they can't be read.
    """
    from lima2cli.paths import read_json_object
    from lima2cli.plan.prediction import Limits

    try:
        return Limits.of(read_json_object(Path(file)))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UnreadableInput(f"{file} has no limits (lima2 doctor --bench -o {file}): {reason}") from error


def show_all(checked: Sequence[Checked], format: Format) -> str:
    """Show all findings, secrets hidden; as text a line for each file without any, as JSON and SARIF one object."""
    return hide(_show_all(checked, format))


def _show_all(checked: Sequence[Checked], format: Format) -> str:
    if format is Format.JSON:
        return _joined([show_json(one.source, one.findings) for one in checked], "diagnostics")
    if format is Format.SARIF:
        return _joined([show_sarif(one.source, one.findings) for one in checked], "runs")
    if format is Format.TEXT:
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        outputs = [show_text(one.source, one.findings, color) or f"{one.source.file}: fine\n" for one in checked]
        return "\n".join(outputs)
    show = show_concise if format is Format.CONCISE else show_github
    return "".join(show(one.source, one.findings) for one in checked)


def _joined(texts: Sequence[str], key: str) -> str:
    """Return JSON objects that differ in the list at one key, as one object with all their items."""
    parts = [json.loads(text) for text in texts]
    return json.dumps(parts[0] | {key: [item for part in parts for item in part[key]]}, indent=2) + "\n"


def show_as_events(checked: Checked) -> str:
    """Show all findings as events of a run, an object a line, secrets hidden."""
    return hide(show_events(checked.source, checked.findings))


SHOWN = 20
"""Maximal number of differences that are listed."""


def check_saved(file: str, changes: Changes, *, fuse: bool, as_event: bool) -> "tuple[Checked, Origin]":
    """Return the pipeline of a saved plan, compiled again as it was: with its changes, variables and cores.

    Where that gives another plan the differences are shown, and the command ends.
    """
    from lima2cli.check import check_text
    from lima2cli.runs.saved_plan import compare, plan_contents, read_plan

    origin, contents = read_plan(file)
    if changes != NONE:
        raise UnreadableInput(
            f"{file} is a saved plan, which --set cannot change, nor --profile or --frames: make another from "
            f"{origin.file}"
        )
    if origin.file == "-":
        raise UnreadableInput(f"{file} was made from standard input: there is no file to compile again")
    pipeline = str(origin.base / Path(origin.file).name)
    text = read(pipeline)
    profiles = [read_profile(profile) for profile, _ in origin.profiles]
    checked = check_text(
        text, pipeline, origin.base, cores=origin.cores,
        environment=origin.variables(), overrides=origin.overrides, profiles=profiles, fuse=fuse,
    )  # fmt: skip
    differences = () if checked.plan is None else compare(contents, plan_contents(checked.plan))
    if differences:
        listed = [f"  {difference}" for difference in differences[:SHOWN]]
        more = [f"  and {len(differences) - SHOWN} more"] if len(differences) > SHOWN else []
        message = "\n".join([f"{file} is stale: {pipeline} now compiles to a different plan", *listed, *more])
        show_error(
            "stale-plan",
            message,
            as_json=False,
            help=f"look at `lima2 plan {pipeline}`, and save it with `--format json -o FILE`",
            as_event=as_event,
        )
        raise typer.Exit(ExitCode.PROBLEMS)
    if checked.plan is not None:
        checked = replace(checked, plan=replace(checked.plan, inputs=(*checked.plan.inputs, str(Path(file).resolve()))))
    laid = tuple((profile.file, profile.text) for profile in profiles)
    return checked, replace(origin, text=text, file=pipeline, texts=checked.texts, profiles=laid)
