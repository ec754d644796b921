"""``lima2 tap``: frames of any flow or node, and rows of any table, while a run goes on."""

import json
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lima2cli.cli.border import Debug, border, seconds_option
from lima2cli.errors import FileProblem, StateError, UnreadableInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lima2cli.drive import LiveFrame, Run

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
    first: Annotated[str, typer.Argument(metavar="[RUN] NODE", help="A run, by default the latest; a flow or node.")],
    second: Annotated[str | None, typer.Argument(hidden=True)] = None,
    form: Annotated[Form, typer.Option("--as", help="Lines of figures, or files of frames.")] = Form.STATS,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="Ends after so many, 0 = with the run.")] = 1,
    every: Annotated[str, typer.Option("--every", help="Time from one to the next at least, such as `1s`.")] = "0s",
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder of the files.")] = Path(),
    debug: Debug = False,
) -> None:
    """Look at frames of any flow or node of a run that goes on, or at rows of a table; the run never waits for this.

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
