"""``lima2 run``."""

import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from lima2cli.cli.border import PROBLEMS, border
from lima2cli.cli.options import Debug, Overrides, Strict
from lima2cli.cli.progress import Progress, ProgressPrinter


class Transport(StrEnum):
    """What moves frames."""

    AUTO = "auto"
    MPI = "mpi"
    INLINE = "inline"


def run(
    file: Annotated[str, typer.Argument(metavar="FILE | -", help="A pipeline; - for standard input.")],
    progress: Annotated[Progress, typer.Option("--progress", help="How to tell of the run.")] = Progress.AUTO,
    transport: Annotated[
        Transport, typer.Option("--transport", help="MPI ranks (default, where MPI is), or all in this process.")
    ] = Transport.AUTO,
    overrides: Overrides = None,
    strict: Strict = False,
    debug: Debug = False,
) -> None:
    """Run a pipeline. Starts the MPI ranks that it needs by itself, or joins those of mpiexec or srun.

    Ctrl-C ends the run cleanly, a second one at once. Exit code 0: complete, 1: the file has problems, 10: the run
    failed, 11: data were lost although the pipeline forbids it, 12: this machine cannot run it (nothing was started),
    130 and 143: stopped by a signal.
    """
    with border(as_json=progress is Progress.JSON, debug=debug):
        from pathlib import Path

        from lima2cli.cli.options import Format
        from lima2cli.cli.reading import check_file
        from lima2cli.cli.showing import show_all
        from lima2cli.cli.totals import show_summary
        from lima2cli.runtime.launch import under_mpi
        from lima2cli.runtime.run import run_joined, run_plan

        joined = under_mpi() and transport is not Transport.INLINE
        checked = check_file(file, overrides or ())
        plan = checked.plan
        if plan is None or (strict and any(True for _ in checked.findings)):
            as_json = progress is Progress.JSON
            print(
                show_all([checked], Format.JSON if as_json else Format.TEXT),
                end="",
                file=None if as_json else sys.stderr,
            )
            raise typer.Exit(PROBLEMS)
        base = Path(".") if file == "-" else Path(file).parent
        printer = ProgressPrinter(progress)
        if progress not in (Progress.JSON, Progress.NONE) and not joined:
            _warn(show_all([checked], Format.CONCISE))
        directory: Path | None
        summary: dict[str, Any] | None
        if joined:
            directory, summary, code = run_joined(plan, checked.source.text, base, printer)
        else:
            directory, summary, code = run_plan(plan, checked.source.text, base, printer, transport=transport.value)
        if directory is not None and summary is not None and progress not in (Progress.JSON, Progress.NONE):
            print(show_summary(directory, summary), end="", flush=True)
        raise typer.Exit(code)


def _warn(text: str) -> None:
    if text:
        print(text, end="", file=sys.stderr)
