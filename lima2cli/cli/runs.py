"""``lima2 runs``, ``inspect``, ``recover``, ``tap`` and requests: live and finished runs, and what is in them."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lima2cli.cli.border import Debug, ExitCode, border, seconds_option
from lima2cli.cli.completion import node_names, run_names, runs_and_nodes
from lima2cli.errors import FileProblem, StateError, UnreadableInput
from lima2cli.units import frames_text, seconds_text, which_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lima2cli.drive import LiveFrame, Run
    from lima2cli.runs.directory import ListedRun

RunName = Annotated[
    str,
    typer.Argument(metavar="[RUN]", help="A run directory, or its name in `runs`.", autocompletion=run_names),
]


Now = Annotated[bool, typer.Option("--now", help="At once, as the second Ctrl-C: frames in flight are lost.")]


def stop(run: RunName = "latest", now: Now = False, debug: Debug = False) -> None:
    """End a run cleanly, as the first Ctrl-C does.

    No further acquisition of a repeated run begins.

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
    """Start the acquisition that a run has made ready.

    That is a run of `lima2 run --armed`, or with `acquisition.start: request`.

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
    node: Annotated[str, typer.Argument(help="The node.", autocompletion=node_names)],
    parameter: Annotated[str, typer.Argument(help="Its parameter.")],
    value: Annotated[str, typer.Argument(help="The new value, as pipelines have it.")],
    run: Annotated[str, typer.Option("--run", help="A run directory, or its name in `runs`.")] = "latest",
    debug: Debug = False,
) -> None:
    """Change a parameter of a node while the run goes on.

    Such as a level, a region or a calibration.

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
    """Fire software triggers of a run.

    It has `acquisition.trigger: software`; each trigger gives `frames_per_trigger` frames.

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
    """List the runs in a folder, and the state of each.

    Starting, live, complete, stopped, failed, or aborted (see `lima2 recover`).

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
    """Show what became of every frame of a run.

    Of a live one its progress. Exit code 0; 2: no run directory.
    """
    with border(as_json=False, debug=debug):
        from lima2cli.cli.display import show_summary
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


def _row(run: "ListedRun") -> tuple[str, str, str, str]:
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


LOOK_S = 0.1
"""Seconds from one look at the rows of a table to the next."""


class Form(StrEnum):
    """Lines of figures, or files, of frames."""

    STATS = "stats"
    JSON = "json"
    PNG = "png"
    NPY = "npy"
    H5 = "h5"


def tap(
    first: Annotated[
        str,
        typer.Argument(
            metavar="[RUN] NODE", help="A run, by default the latest; a flow or node.", autocompletion=runs_and_nodes
        ),
    ],
    second: Annotated[str | None, typer.Argument(hidden=True, autocompletion=node_names)] = None,
    form: Annotated[Form, typer.Option("--as", help="Lines of figures, or files of frames.")] = Form.STATS,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="Ends after so many, 0 = with the run.")] = 1,
    every: Annotated[str, typer.Option("--every", help="Time from one to the next at least, such as `1s`.")] = "0s",
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder of the files.")] = Path(),
    debug: Debug = False,
) -> None:
    """Look at frames or rows of a run that goes on.

    Frames of any flow or node, rows of any table; the run never waits for this.

    `stats` and `json` print a line for each: extremes, mean and sum of the pixels that hold a measurement. `png`, `npy`
    and `h5` write files `NODE_FRAME.png` …, none over another. Of a run that has ended the last frame that is saved is
    taken. Exit code 0; 1: refused, or there is nothing; 2: no run directory, or a wrong option; 10: the run was
    aborted, or does not answer; 12: a file can't be written.
    """
    with border(as_json=False, debug=debug):
        from lima2cli.drive import open_run

        name, node = ("latest", first) if second is None else (first, second)
        run, period_s = open_run(name), seconds_option("--every", every)
        try:
            if node in run.tables:
                if form not in (Form.STATS, Form.JSON):
                    raise UnreadableInput(f"{node} has rows, no frames: --as stats or --as json")
                for row in _rows(run, node, period_s, count):
                    print(json.dumps(row) if form == Form.JSON else _words(row), flush=True)
                return
            for frame in _frames(run, node, period_s, count):
                print(_made(frame, form, folder), flush=True)
        except (StateError, FileProblem) as error:
            typer.echo(f"error[refused]: {error}", err=True)
            raise typer.Exit(1) from None


def _frames(run: "Run", node: str, period_s: float, count: int) -> "Iterator[LiveFrame]":
    """Yield frames of a run; of one that has ended the last that is saved."""
    if run.live:
        yield from run.tap(node, every=period_s, count=count or None)
    else:
        yield run.last(node)


def _rows(run: "Run", node: str, period_s: float, count: int) -> Iterator[dict[str, Any]]:
    """Yield the latest row of a table each time that there is another."""
    told = 0
    before = -1
    while True:
        live = run.live
        columns = _columns(run, node, patient=live)
        if columns and len(columns["frame_number"]) and int(columns["frame_number"][-1]) != before:
            before = int(columns["frame_number"][-1])
            yield {"frame_number": before} | {key: values[-1].tolist() for key, values in columns.items()}
            told += 1
        if told == count > 0 or not live:
            return
        time.sleep(max(period_s, LOOK_S))


def _columns(run: "Run", node: str, *, patient: bool) -> "dict[str, NDArray[Any]]":
    """Return the columns of a table; none where it has no file yet."""
    try:
        return run.counters[node]
    except FileProblem:
        if not patient:
            raise
        return {}


def _made(frame: "LiveFrame", form: Form, folder: Path) -> str:
    """Return the line about a frame, whose file is written."""
    if form == Form.STATS:
        return _words(_figures(frame))
    if form == Form.JSON:
        return json.dumps(_figures(frame))
    path = folder / f"{frame.node}_{frame.number:06d}.{form}"
    _write(frame, form, path)
    return str(path)


def _figures(frame: "LiveFrame") -> dict[str, Any]:
    """Return the figures of a frame, as plain data; extremes and mean are None where no pixel holds a measurement."""
    from lima2cli.files.picture import measured_pixels

    measured = measured_pixels(frame.pixels, frame.mask)
    values = frame.pixels[measured]
    some = values.size > 0
    return {
        "frame_number": frame.number, "node": frame.node, "acquisition": frame.acquisition,
        "receiver": frame.receiver, "time_ns": frame.time_ns, "dtype": str(frame.pixels.dtype),
        "shape": list(frame.pixels.shape), "min": values.min().item() if some else None,
        "max": values.max().item() if some else None, "mean": float(values.mean(dtype="f8")) if some else None,
        "sum": values.sum(dtype="f8" if values.dtype.kind == "f" else None).item(), "masked": int((~measured).sum()),
    }  # fmt: skip


SHOWN = ("frame_number", "min", "max", "mean", "sum", "masked")
"""Figures of a frame that are shown as words."""


def _words(figures: dict[str, Any]) -> str:
    frame = "min" in figures and "shape" in figures
    names = SHOWN if frame else tuple(name for name, value in figures.items() if not isinstance(value, list))
    return "  ".join(f"{name} {_short(figures[name])}" for name in names)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _write(frame: "LiveFrame", form: Form, path: Path) -> None:
    """Write a frame to a new file.

    Raises:
        EnvironmentUnfit: there is one already, or it can't be written.
    """
    import io

    import numpy as np

    from lima2cli.errors import EnvironmentUnfit
    from lima2cli.files.picture import nexus, picture, png

    if form == Form.PNG:
        data = png(picture(frame.pixels, frame.mask))
    elif form == Form.NPY:
        memory = io.BytesIO()
        np.save(memory, frame.pixels)
        data = memory.getvalue()
    else:
        data = nexus(frame.number, frame.time_ns, frame.pixels, frame.mask)
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError as error:
        raise EnvironmentUnfit(f"{path} exists, and is not overwritten") from error
    except OSError as error:
        raise EnvironmentUnfit(f"cannot write {path}: {error.strerror or error}") from error


def _directory_of(name: str) -> str:
    """Return a directory, or a run by its name below ``runs``.

    Raises:
        UnreadableInput: there is none.
    """
    from lima2cli.runs.directory import RUNS

    for directory in (name, f"{RUNS}/{name}"):
        if Path(directory).is_dir():
            return directory
    raise UnreadableInput(f"no such directory: {name}, nor {RUNS}/{name}")


class InspectFormat(StrEnum):
    """Formats of the accounting."""

    TEXT = "text"
    JSON = "json"


def inspect(
    directory: RunName = "latest",
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every frame, and fail if one is not accounted for.")
    ] = False,
    format: Annotated[InspectFormat, typer.Option("--format", help="Format of the output.")] = InspectFormat.TEXT,
    debug: Debug = False,
) -> None:
    """Show what a run's files hold, recomputed from them.

    Exit code 0: every frame is accounted for, 2: no run directory, 10: with --verify, something is wrong.
    """
    with border(as_json=format is InspectFormat.JSON, debug=debug):
        from lima2cli.accounting.inspect_run import inspect_run
        from lima2cli.cli.display import show_account
        from lima2cli.declare.plain import to_plain
        from lima2cli.runs.ownership import marked

        directory = _directory_of(directory)
        accounting = inspect_run(directory, verify=verify)
        if not accounting.flows and not any(Path(directory).glob("*.h5")) and not marked(Path(directory)):
            raise UnreadableInput(f"{directory} is not a run directory: it contains no file of a run")
        if format is InspectFormat.JSON:
            print(json.dumps(to_plain(accounting), indent=2), flush=True)
        else:
            print(show_account(Path(directory), accounting, "verified" if verify else "inspected"), end="")
        raise typer.Exit(ExitCode.FAILED if verify and accounting.problems else ExitCode.FINE)


def recover(
    directory: RunName = "latest",
    debug: Debug = False,
) -> None:
    """Make the files of an aborted run readable.

    Masters, tables and summary are rebuilt, from its directory alone.

    A run whose files are complete is not changed. Exit code 0: readable now, 2: no run directory, or one whose record
    of the run is damaged, 10: the run is still active, or some files stay unreadable.
    """
    with border(as_json=False, debug=debug):
        from lima2cli.cli.display import show_summary
        from lima2cli.runs.control_socket import forget
        from lima2cli.runs.ending import record_of, recover_run, refuse_live, whole

        with suppress(UnreadableInput):  # that of `record_of` says what a run directory has
            directory = _directory_of(directory)
        path = Path(directory)
        record = record_of(path)
        refuse_live(path)
        forget(path)
        summary = whole(path)
        if summary is not None:
            print(f"{directory} has ended ({summary.state}) and its files are complete: nothing to recover")
            raise typer.Exit(ExitCode.FINE)
        summary = recover_run(record, path)
        print(show_summary(path, summary), end="", flush=True)
        raise typer.Exit(ExitCode.FAILED if summary.problems else ExitCode.FINE)


def densify(
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The file that is made.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="[RUN | FILE]",
            help="A run, by default the latest, or a file of sparse frames.",
            autocompletion=run_names,
        ),
    ] = "latest",
    node: Annotated[
        str | None,
        typer.Option(
            "--node",
            metavar="NAME",
            help="The node that saved them, where there are several.",
            autocompletion=node_names,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Restore sparse frames as images.

    They have the background that was saved with them.

    Exit code 0: the file is made, 2: there are no sparse frames, 10: the disk refuses, 12: the file exists.
    """
    with border(as_json=False, debug=debug):
        from lima2cli.files.densified import densify as restore
        from lima2cli.files.densified import sparse_file

        path = Path(source) if Path(source).is_file() else Path(_directory_of(source))
        count = restore(sparse_file(path, node), Path(output))
        print(f"{output}: {frames_text(count)}", flush=True)
