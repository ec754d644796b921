"""``lima2 runs``: live and finished runs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lima2cli.cli.border import border
from lima2cli.cli.control import RunName, stop
from lima2cli.cli.options import Debug
from lima2cli.human import frames_text, seconds_text

if TYPE_CHECKING:
    from lima2cli.runtime.runs import Run

runs = typer.Typer(help="Live and finished runs.", rich_markup_mode=None, invoke_without_command=True)

Folder = Annotated[str, typer.Option("--directory", help="The folder of the run directories.")]


@runs.callback()
def default(context: typer.Context) -> None:
    """Live and finished runs; alone: list them."""
    if context.invoked_subcommand is None:
        list_runs()


@runs.command("list")
def list_runs(directory: Folder = "runs", debug: Debug = False) -> None:
    """List the runs below a folder: starting, live, complete, stopped, failed, or broken off (see `lima2 recover`).

    Exit code 0; 2: no such folder.
    """
    with border(as_json=False, debug=debug):
        from pathlib import Path

        from lima2cli.runtime.runs import runs_in

        rows = []
        for run in runs_in(Path(directory)):
            try:
                rows.append(_row(run))
            except UNSOUND:
                rows.append((run.directory.name, "damaged", "", ""))
        if not rows:
            print(f"no runs in {directory}")
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)).rstrip())


@runs.command("show")
def show(run: RunName = "latest", debug: Debug = False) -> None:
    """Show what became of every frame of a run, or how far a live one is. Exit code 0; 2: no run directory."""
    with border(as_json=False, debug=debug):
        from lima2cli.cli.totals import show_summary
        from lima2cli.runtime.runs import find_run, look

        found = look(find_run(run))
        if found.state == "live":
            print("  ".join(_row(found)).rstrip())
            for name, (received, lost) in found.told["flows"].items():
                print(f"  {name}: {received} received, {lost} lost")
        elif found.told:
            try:
                text = show_summary(found.directory, found.told)
            except UNSOUND:
                text = f"{found.directory}: its summary is damaged; lima2 recover {found.directory}\n"
            print(text, end="")
        elif found.state == "starting":
            print(f"{found.directory} is being started")
        else:
            print(f"{found.directory}: broken off; lima2 recover {found.directory}")


runs.command("stop")(stop)


UNSOUND = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError)
"""What comes of a summary with values of other types than a run writes; one of them hides no other run."""


def _row(run: "Run") -> tuple[str, str, str, str]:
    """Name, state, frames, and what else is known."""
    told = run.told
    frames = told.get("frames")
    seconds = told.get("seconds")
    took = seconds_text(seconds) if seconds else ""
    return run.directory.name, run.state, "" if frames is None else frames_text(frames), "  ".join((took, _more(told)))


def _more(told: Mapping[str, Any]) -> str:
    number = told.get("acquisition")
    if isinstance(number, Mapping):
        number, of = number["number"], number["of"]
    else:
        of = told.get("of", 1)
    which = f"acquisition {number} of {of}" if of > 1 else ""
    phase = told.get("phase") or told.get("reason") or ""
    return "  ".join(part for part in (which, phase) if part)
