"""``lima2 doctor``."""

import json
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from lima2cli.cli.border import FINE, PROBLEMS, UNFIT, Debug, Overrides, border

if TYPE_CHECKING:
    from lima2cli.doctor import Check, Diagnosis


class DoctorFormat(StrEnum):
    """Formats of the findings."""

    TEXT = "text"
    JSON = "json"


def doctor(
    file: Annotated[str | None, typer.Argument(metavar="[FILE | -]", help="A pipeline to be run here.")] = None,
    format: Annotated[DoctorFormat, typer.Option("--format", help="For people or for programs.")] = DoctorFormat.TEXT,
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Check this machine: packages, MPI, memory, disk, filters, limits; with FILE, whether it is fit for that pipeline.

    Two MPI ranks are started for a moment, and a file is written and removed, to measure bandwidths. Exit code 0: fit,
    1: the file has problems, 2: it cannot be read, 12: this machine cannot run it.
    """
    as_json = format is DoctorFormat.JSON
    with border(as_json=as_json, debug=debug):
        from pathlib import Path

        from lima2cli.doctor import as_plain
        from lima2cli.doctor.pipeline import examine

        if file is None:
            diagnosis = examine()
        else:
            from lima2cli.cli.border import Format
            from lima2cli.cli.reading import check_pipeline, show_all

            checked = check_pipeline(file, overrides or ())
            if checked.plan is None:
                text = show_all([checked], Format.JSON if as_json else Format.TEXT)
                print(text, end="", file=None if as_json else sys.stderr)
                raise typer.Exit(PROBLEMS)
            diagnosis = examine(checked.plan, Path(".") if file == "-" else Path(file).parent)
        text = json.dumps(as_plain(diagnosis), indent=2) + "\n" if as_json else _as_text(diagnosis, file)
        print(text, end="", flush=True)
        raise typer.Exit(FINE if diagnosis.fit else UNFIT)


def _as_text(found: "Diagnosis", file: str | None) -> str:
    parts = ["this machine", *_lines(found, "machine")]
    if file is not None:
        parts += ["", file, *_lines(found, "pipeline")]
    problems, warnings = found.count("problem"), found.count("warning")
    counts = ", ".join(
        f"{count} {word}{'s' * (count != 1)}" for count, word in ((problems, "problem"), (warnings, "warning")) if count
    )
    verdict = ("fit" if found.fit else "not fit") + (f" for {file}" if file is not None else "")
    return "\n".join([*parts, "", f"{verdict}: {counts}" if counts else verdict]) + "\n"


def _lines(found: "Diagnosis", part: str) -> list[str]:
    checks = [check for check in found.checks if check.part == part]
    width = max((len(check.name) for check in checks), default=0)
    return [line for check in checks for line in _line(check, width)]


def _line(check: "Check", width: int) -> list[str]:
    line = f"  {check.status:<7}  {check.name:<{width}}  {check.message}"
    return [line] if check.help is None else [line, f"{'':<{width + 13}}help: {check.help}"]
