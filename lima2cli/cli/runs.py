"""``lima2 runs``, ``lima2 stop`` and ``lima2 trigger``: live and finished runs, and requests to those that go on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lima2cli.cli.border import PROBLEMS, Debug, border
from lima2cli.units import frames_text, seconds_text

if TYPE_CHECKING:
    from lima2cli.runs.directory import Run


RunName = Annotated[str, typer.Argument(metavar="[RUN]", help="A run directory, or its name below runs.")]


def stop(run: RunName = "latest", debug: Debug = False) -> None:
    """End a run cleanly, as the first Ctrl-C does where it was started; of repeated acquisitions no more begin.

    Returns at once; the run then ends its files. Exit code 0: it will stop, 1: no run goes on there, 2: no run
    directory, 10: the run was broken off, or does not answer.
    """
    with border(as_json=False, debug=debug):
        directory, _ = asked(run, {"do": "stop"})
        print(f"{directory} is being stopped")


def trigger(
    run: RunName = "latest",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many triggers.")] = 1,
    debug: Debug = False,
) -> None:
    """Fire software triggers of a run with `acquisition.trigger: software`; each gives `frames_per_trigger` frames.

    Triggers that come while frames of the last one are acquired follow them. Exit code 0: fired, 1: refused, such as
    too many or before the start, 2: no run directory, 10: the run was broken off, or does not answer.
    """
    with border(as_json=False, debug=debug):
        directory, answer = asked(run, {"do": "trigger", "count": count})
        fired = answer["triggers"]
        print(f"{directory}: {fired} {'trigger' if fired == 1 else 'triggers'} so far")


def asked(run: str, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the directory of a run and its answer; a refusal ends the command with code 1."""
    from lima2cli.runs.control_socket import ask
    from lima2cli.runs.directory import find_run

    directory = find_run(run)
    answer = ask(directory, request)
    if not answer.get("ok"):
        typer.echo(f"error[refused]: {answer.get('message')}", err=True)
        raise typer.Exit(PROBLEMS)
    return str(directory), answer


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

        from lima2cli.runs.directory import runs_in

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
        from lima2cli.runs.directory import find_run, look

        shown = look(find_run(run))
        if shown.state == "live":
            print("  ".join(_row(shown)).rstrip())
            for name, (received, lost) in shown.told["flows"].items():
                print(f"  {name}: {received} received, {lost} lost")
        elif shown.told:
            try:
                text = show_summary(shown.directory, shown.told)
            except UNSOUND:
                text = f"{shown.directory}: its summary is damaged; lima2 recover {shown.directory}\n"
            print(text, end="")
        elif shown.state == "starting":
            print(f"{shown.directory} is being started")
        else:
            print(f"{shown.directory}: broken off; lima2 recover {shown.directory}")


runs.command("stop")(stop)


UNSOUND = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError)
"""Exceptions that a summary with values of other types than a run writes causes; one of them hides no other run."""


def _row(run: "Run") -> tuple[str, str, str, str]:
    """Return name, state, frames, and what else is known."""
    report = run.told
    frames = report.get("frames")
    seconds = report.get("seconds")
    took = seconds_text(seconds) if seconds else ""
    return (
        run.directory.name,
        run.state,
        "" if frames is None else frames_text(frames),
        "  ".join((took, _more(report))),
    )


def _more(told: Mapping[str, Any]) -> str:
    number = told.get("acquisition")
    if isinstance(number, Mapping):
        number, of = number["number"], number["of"]
    else:
        of = told.get("of", 1)
    acquisition = f"acquisition {number} of {of}" if of > 1 else ""
    phase = told.get("phase") or told.get("reason") or ""
    return "  ".join(part for part in (acquisition, phase) if part)
