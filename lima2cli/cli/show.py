"""``lima2 show``: pictures and plots of a run, in the terminal or as a PNG file."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lima2cli.cli.border import Debug, ExitCode, border
from lima2cli.cli.completion import node_names
from lima2cli.cli.runs import RunName
from lima2cli.errors import EnvironmentUnfit, FileProblem, StateError, UnreadableInput
from lima2cli.units import counted_text, frames_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lima2cli.drive import LiveFrame, Run

    Columns = Mapping[str, NDArray[Any]]

NUMBER = "frame_number"
"""Column of a table with the numbers of its frames."""

RAMP = " .:-=+*#%@"
"""Characters from dark to bright, where there are no colours."""

BARS = "▁▂▃▄▅▆▇█"

CURVE = 24
"""Characters of a curve in the terminal."""

LARGEST_SCALE = 4
"""Most characters in a row that show one pixel of a small frame."""

PANELS = 12
"""Most columns of a table that a plot shows."""


def show(
    run: RunName = "latest",
    node: Annotated[
        str | None,
        typer.Option(
            "--node", metavar="NAME", help="The node whose frames or rows are shown.", autocompletion=node_names
        ),
    ] = None,
    frame: Annotated[
        int | None, typer.Option("--frame", min=0, metavar="N", help="Number of the frame; by default the last saved.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Write a picture, or for a table a plot, instead.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    debug: Debug = False,
) -> None:
    """Show what a run has saved: pictures, figures, curves.

    A picture of a frame, figures of all nodes with frames, curves of all tables.

    Pictures are grey between two percentiles of the pixels; those without a measurement are red (without colours: x).
    The plot of a table needs matplotlib (`pip install 'lima2cli[show]'`). Exit code 0; 1: there
    is no such frame or row; 2: no run directory, or no such node; 12: FILE exists, or can't be written.
    """
    with border(as_json=False, debug=debug):
        from lima2cli.drive import open_run

        found = open_run(run, watched=False)
        channels, tables = _nodes(found, node)
        try:
            if png is not None:
                _write(found, png, channels, tables, frame, force=force)
            else:
                for line in _lines(found, channels, tables, frame, alone=node is not None):
                    print(line)
        except (StateError, FileProblem) as error:
            typer.echo(f"error[refused]: {error}", err=True)
            raise typer.Exit(ExitCode.PROBLEMS) from None


def _nodes(run: "Run", node: str | None) -> tuple[list[str], list[str]]:
    """Return the nodes with frames and those with rows that are asked for.

    Raises:
        UnreadableInput: there is no such node.
    """
    from lima2cli.diagnostics import did_you_mean
    from lima2cli.runs.ending import record_of

    channels, tables = list(record_of(run.directory).channels), run.tables
    if node is None:
        return channels, tables
    if node not in (*channels, *tables):
        help = did_you_mean(node, [*channels, *tables])
        raise UnreadableInput(f"{run.directory} has saved nothing of a node {node}" + (f"; {help}" if help else ""))
    return [name for name in channels if name == node], [name for name in tables if name == node]


def _lines(run: "Run", channels: list[str], tables: list[str], number: int | None, *, alone: bool) -> Iterator[str]:
    """Yield a headline, figures of all channels with a picture of the first, and the columns of all tables."""
    from lima2cli.runs.directory import read_run

    summary = read_run(run.directory).summary
    if not alone:
        state = "not ended" if summary is None else summary.state
        yield f"{run.directory.resolve().name}  {state}"
        yield from (
            ()
            if summary is None
            else (f"  {flow}  {frames_text(one.received or 0)} received" for flow, one in summary.flows.items())
        )
    for name in channels:
        if not alone:
            yield ""
        try:
            taken = run.saved(name, -1 if number is None else number)
        except FileProblem as problem:
            if alone or number is not None:
                raise
            yield f"{name}  {problem}"
            continue
        saved = None if summary is None or name not in summary.channels else summary.channels[name].saved
        yield f"{name}  {_figures(taken)}" + ("" if saved is None else f", {frames_text(saved)} saved")
        if alone or name == channels[0]:
            yield from _picture(taken)
    for name in tables:
        if not alone or channels:
            yield ""
        try:
            columns = run.rows(name)
        except FileProblem as problem:
            yield f"{name}  {problem}"
            continue
        yield from _table(name, columns, number)


def _figures(frame: "LiveFrame") -> str:
    """Return size, dtype and statistics of a frame in words."""
    from lima2cli.files.picture import measured_pixels

    height, width = frame.pixels.shape
    values = frame.pixels[measured_pixels(frame.pixels, frame.mask)]
    masked = frame.pixels.size - values.size
    words = [f"{width} x {height} {frame.pixels.dtype}, frame {frame.number}"]
    if values.size:
        words += [f"min {_short(values.min())}  mean {_short(values.mean(dtype='f8'))}  max {_short(values.max())}"]
    return "  ".join([*words, *([f"{masked} masked"] if masked else [])])


def _short(value: Any) -> str:
    number = value.item() if hasattr(value, "item") else value
    return f"{number:.4g}" if isinstance(number, float) else str(number)


def _picture(frame: "LiveFrame") -> Iterator[str]:
    """Yield the lines of a picture that fits the terminal: half blocks in colours, or characters without."""
    import numpy as np

    from lima2cli.files.picture import NOT_MEASURED, levels, measured_pixels, shrunk

    measured = measured_pixels(frame.pixels, frame.mask)
    across, down = _room()
    height, width = frame.pixels.shape
    scale = min(across / width, down / height, LARGEST_SCALE)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    fewer = min(rows, height), min(columns, width)
    means, there = shrunk(frame.pixels, measured, *fewer)
    low, high = levels(means, there)
    grey = np.clip((means - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    take = np.arange(rows)[:, None] * fewer[0] // rows, np.arange(columns) * fewer[1] // columns
    grey, there = grey[take], there[take]
    if not _coloured():
        for row in range(0, rows, 2):
            pair = slice(row, row + 2)
            yield "".join(
                RAMP[int(grey[pair, column].mean()) * len(RAMP) // 256] if there[pair, column].any() else "x"
                for column in range(columns)
            ).rstrip()
        return

    def colour(row: int, column: int) -> str:
        red, green, blue = [int(grey[row, column])] * 3 if there[row, column] else NOT_MEASURED
        return f"{red};{green};{blue}"

    for row in range(0, rows, 2):
        below = row + 1 < rows
        cells = (
            f"\x1b[38;2;{colour(row, column)}m" + (f"\x1b[48;2;{colour(row + 1, column)}m" if below else "") + "▀"
            for column in range(columns)
        )
        yield "".join(cells) + "\x1b[0m"


def _room() -> tuple[int, int]:
    """Return columns and rows of pixels that a picture may have, two rows in a line of the terminal."""
    import shutil

    columns, lines = shutil.get_terminal_size((80, 24))
    return min(columns, 80), 2 * max(4, min(lines - 6, 24))


def _coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _table(name: str, columns: "Columns", number: int | None) -> Iterator[str]:
    """Yield the columns of a table: statistics and curve over all frames; of vectors those of one frame."""
    import numpy as np

    from lima2cli.cli.display import table

    numbers = columns[NUMBER]
    shown = _row_of(name, numbers, number)
    vectors = any(values.ndim > 1 for values in columns.values())
    about = f", vectors of frame {int(numbers[shown])}" if vectors and shown is not None else ""
    yield f"{name}  {counted_text(len(numbers), 'row')}{about}"
    rows: list[tuple[str, ...]] = [("column", "min", "mean", "max", "" if number is None else f"frame {number}", "")]
    for key, values in columns.items():
        if key == NUMBER or values.dtype.kind not in "biuf" or not len(numbers) or shown is None:
            continue
        curve = values[shown] if values.ndim > 1 else values
        finite = curve[np.isfinite(curve)] if curve.dtype.kind == "f" else curve
        figures = (finite.min(), finite.mean(dtype="f8"), finite.max()) if finite.size else ()
        own = "" if number is None or values.ndim > 1 else _short(values[shown])
        rows.append((f"  {key}", *([_short(one) for one in figures] or ["", "", ""]), own, _spark(curve)))
    yield from (line.rstrip() for line in table(rows) if len(rows) > 1)


def _row_of(name: str, numbers: "NDArray[Any]", number: int | None) -> int | None:
    """Return the row of a frame, by default the last; None where there is none.

    Raises:
        FileProblem: that frame has no row.
    """
    if number is None:
        return len(numbers) - 1 if len(numbers) else None
    for row, one in enumerate(numbers.tolist()):
        if one == number:
            return row
    raise FileProblem(f"{name} has no row of frame {number}")


def _spark(values: "NDArray[Any]") -> str:
    """Return a curve in a few characters: means of as many parts; a space where there is no number."""
    import numpy as np

    try:
        BARS.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return ""
    parts = [part[np.isfinite(part)] for part in np.array_split(values.astype(np.float64), min(CURVE, len(values)))]
    means = np.array([part.mean() if part.size else np.nan for part in parts])
    if not np.isfinite(means).any():
        return ""
    low, high = np.nanmin(means), np.nanmax(means)
    places = np.zeros(len(means)) if high == low else (means - low) / (high - low) * (len(BARS) - 1)
    return "".join(" " if np.isnan(place) else BARS[round(place)] for place in places)


def _write(run: "Run", path: Path, channels: list[str], tables: list[str], number: int | None, *, force: bool) -> None:
    """Write the picture of a frame, or the plot of a table."""
    if path.suffix.lower() != ".png":
        raise UnreadableInput(f"--png {path}: the name of a picture ends in .png")
    if path.exists() and not force:
        raise EnvironmentUnfit(f"{path} exists, and is not overwritten; --force does")
    if channels:
        from lima2cli.files.picture import picture, png

        taken = run.saved(channels[0], -1 if number is None else number)
        data, about = png(picture(taken.pixels, taken.mask)), f"{channels[0]}  {_figures(taken)}"
    elif tables:
        data, about = _plot(tables[0], run.rows(tables[0]), number), tables[0]
    else:
        raise FileProblem(f"{run.directory} has neither frames nor tables")
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise EnvironmentUnfit(f"cannot write {path}: {error.strerror or error}") from error
    print(f"{path}: {about}")


def _plot(name: str, columns: "Columns", number: int | None) -> bytes:
    """Return the plot of a table as a PNG file: curves over the frames, vectors as images or, of one frame, as curves.

    Raises:
        EnvironmentUnfit: matplotlib is missing.
    """
    import io

    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise EnvironmentUnfit(f"there is no package {error.name} here: pip install 'lima2cli[show]'") from error
    numbers = columns[NUMBER]
    row = _row_of(name, numbers, number)
    drawn = [key for key, values in columns.items() if key != NUMBER and values.dtype.kind in "biuf"][:PANELS]
    if row is None or not drawn:
        raise FileProblem(f"{name} has no rows")
    figure = Figure(figsize=(6.4, 1.2 + 1.8 * len(drawn)), layout="constrained")
    axes = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for one, key in zip(axes, drawn, strict=True):
        values = columns[key]
        if values.ndim == 1:
            one.plot(numbers, values, lw=1, marker="." if len(numbers) < PANELS else "")
            if number is not None:
                one.axvline(number, lw=0.8, color="0.6")
        elif number is None:
            one.imshow(values, aspect="auto", interpolation="nearest", extent=(0, values.shape[1], len(numbers), 0))
        else:
            one.plot(values[row], lw=1)
        one.set_ylabel(key if values.ndim == 1 or number is not None else f"{key}\nrow", fontsize=8)
        one.tick_params(labelsize=7)
    axes[-1].set_xlabel("bin" if columns[drawn[-1]].ndim > 1 else "frame", fontsize=8)
    figure.suptitle(name if number is None else f"{name}, frame {number}", fontsize=9)
    memory = io.BytesIO()
    figure.savefig(memory, format="png")  # of a figure without a window: the canvas is Agg's
    return memory.getvalue()
