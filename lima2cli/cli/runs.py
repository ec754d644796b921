"""``lima2 runs``, ``lima2 stop`` and ``lima2 trigger``: live and finished runs, and requests to those that go on."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lima2cli.cli.border import Debug, ExitCode, border, seconds_option
from lima2cli.units import frames_text, seconds_text, which_text

if TYPE_CHECKING:
    from lima2cli.runs.directory import Run


RunName = Annotated[str, typer.Argument(metavar="[RUN]", help="A run directory, or its name in `runs`.")]


Now = Annotated[bool, typer.Option("--now", help="At once, as the second Ctrl-C: frames in flight are lost.")]


def stop(run: RunName = "latest", now: Now = False, debug: Debug = False) -> None:
    """End a run cleanly, as the first Ctrl-C does; no further acquisition of a repeated run begins.

    Returns at once; the run then ends its files. Exit code 0: it will stop, 1: no run is active there, 2: no run
    directory, 10: the run was aborted, or does not answer.
    """
    with border(as_json=False, debug=debug):
        directory, _ = asked(run, {"do": "abort" if now else "stop"})
        print(f"{directory} is being {'aborted' if now else 'stopped'}")


def start(
    run: RunName = "latest",
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="Fewer than the pipeline has.")] = None,
    period: Annotated[str | None, typer.Option("--period", help="Longer than the pipeline's, such as `10ms`.")] = None,
    title: Annotated[str | None, typer.Option("--title", help="Its title, in its files.")] = None,
    sample: Annotated[str | None, typer.Option("--sample", help="Name of the sample, in its files.")] = None,
    directory: Annotated[str | None, typer.Option("--directory", help="Where its files go: a new directory.")] = None,
    debug: Debug = False,
) -> None:
    """Start the acquisition that a run has made ready (`lima2 run --armed`, or `acquisition.start: request`).

    With --directory its files are there, and a link to it stays where it was made ready. Exit code 0: it starts, 1:
    nothing is ready, or it can't be had like this, 2: no run directory, 10: the run was aborted, or does not answer.
    """
    with border(as_json=False, debug=debug):
        said = {key: value for key, value in (("title", title), ("sample", sample)) if value is not None}
        request: dict[str, Any] = {"do": "start"} | ({} if frames is None else {"frames": frames})
        request |= {"metadata": said} if said else {}
        request |= {} if directory is None else {"directory": os.path.abspath(directory)}
        there, answer = asked(run, request | ({} if period is None else {"period": seconds_option("--period", period)}))
        print(f"{answer.get('directory', there)}: started")


def set_parameter(
    node: Annotated[str, typer.Argument(help="The node.")],
    parameter: Annotated[str, typer.Argument(help="Its parameter.")],
    value: Annotated[str, typer.Argument(help="The new value, as pipelines have it.")],
    run: Annotated[str, typer.Option("--run", help="A run directory, or its name in `runs`.")] = "latest",
    debug: Debug = False,
) -> None:
    """Change a parameter of a node while the run goes on, such as a level, a region or a calibration.

    It applies to all frames from the one that is printed on, on all receivers; the files say so. What leaves the node
    stays the same: names and number of counters, dtype, shape, masked pixels. Exit code 0: changed, 1: refused, 2: no
    run directory, 10: the run was aborted, or does not answer.
    """
    with border(as_json=False, debug=debug):
        from lima2cli.drive.pipelines import plain_value

        request = {"do": "set", "node": node, "parameter": parameter, "value": plain_value(value)}
        directory, answer = asked(run, request)
        print(f"{directory}: {node}: {parameter} is changed from frame {answer['frame']} on")


def trigger(
    run: RunName = "latest",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of triggers.")] = 1,
    debug: Debug = False,
) -> None:
    """Fire software triggers of a run with `acquisition.trigger: software`; each gives `frames_per_trigger` frames.

    Triggers that arrive while frames of an earlier one are acquired follow them. Exit code 0: fired, 1: refused, such
    as too many or before the start, 2: no run directory, 10: the run was aborted, or does not answer.
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
        raise typer.Exit(ExitCode.PROBLEMS)
    return str(directory), answer


runs = typer.Typer(help="Live and finished runs.", rich_markup_mode=None, invoke_without_command=True)

Folder = Annotated[str, typer.Option("--directory", help="The folder that contains the run directories.")]


@runs.callback()
def default(context: typer.Context) -> None:
    """Live and finished runs; alone: list them."""
    if context.invoked_subcommand is None:
        list_runs()


@runs.command("list")
def list_runs(directory: Folder = "runs", debug: Debug = False) -> None:
    """List the runs in a folder: starting, live, complete, stopped, failed, or aborted (see `lima2 recover`).

    Exit code 0; 2: no such folder.
    """
    with border(as_json=False, debug=debug):
        from pathlib import Path

        from lima2cli.runs.directory import runs_in

        rows = [_row(run) for run in runs_in(Path(directory))]
        if not rows:
            print(f"no runs in {directory}")
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)).rstrip())


@runs.command("show")
def show(run: RunName = "latest", debug: Debug = False) -> None:
    """Show the accounting of every frame of a run, or the progress of a live one. Exit code 0; 2: no run directory."""
    with border(as_json=False, debug=debug):
        from lima2cli.cli.totals import show_summary
        from lima2cli.runs.directory import find_run, read_run

        shown = read_run(find_run(run))
        if shown.state == "live":
            print("  ".join(_row(shown)).rstrip())
            for name, (received, lost) in shown.answer["flows"].items():
                print(f"  {name}: {received} received, {lost} lost")
        elif shown.summary is not None:
            print(show_summary(shown.directory, shown.summary), end="")
        elif shown.state == "starting":
            print(f"{shown.directory} is starting")
        else:
            print(f"{shown.directory}: aborted; lima2 recover {shown.directory}")


runs.command("stop")(stop)


def _row(run: "Run") -> tuple[str, str, str, str]:
    """Return name, state, frames, and what else is known."""
    answer, summary = run.answer, run.summary
    if summary is None:
        frames, seconds, number, of = (answer.get(key) for key in ("frames", "seconds", "acquisition", "of"))
        phase = answer.get("state") or answer.get("phase") or answer.get("reason") or ""
    else:
        frames, seconds, phase, own = summary.frames, summary.seconds, summary.reason or "", summary.acquisition
        number, of = (None, None) if own is None else (own.number, own.of)
    acquisition = "" if number is None or of == 1 else f"acquisition {which_text(number, of or 0)}"
    more = "  ".join(part for part in (acquisition, phase) if part)
    took = seconds_text(seconds) if seconds else ""
    if run.directory.is_symlink():
        more += f"{'  ' if more else ''}in {run.directory.resolve()}"
    return run.directory.name, run.state, "" if frames is None else frames_text(frames), f"{took}  {more}"
