"""A run as a notebook shows it: its state, the last frame as a picture, flows and nodes; all names are escaped."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.accounting.summary import Summary
from lima2cli.dataclass import dataclass
from lima2cli.files.picture import picture, png
from lima2cli.units import ABSENT, count_text

LONGEST_SIDE = 512
"""Pixels of the longer side of a picture at most; of larger frames every so many pixels are shown."""

Row = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Picture:
    """A frame to be shown: ``pixels`` (height, width), bool ``mask`` of that shape, True = masked, or None."""

    node: str
    number: int
    pixels: NDArray[Any]
    mask: NDArray[np.bool_] | None = None


def run_html(
    name: str, state: str, shown: Picture | None, flows: Sequence[Row], nodes: Sequence[Row], note: str | None = None
) -> str:
    """Return a run as HTML without scripts or links to elsewhere.

    flows, nodes  rows of tables, the first with the names of the columns
    note          a sentence below the state
    """
    parts = [f"<b>{escape(name)}</b>: {escape(state)}"]
    parts += [escape(note)] if note else []
    parts += [_picture(shown)] if shown is not None else []
    parts += [_table(rows) for rows in (flows, nodes) if len(rows) > 1]
    return "<div>" + "".join(f"<div>{part}</div>" for part in parts) + "</div>"


def live_rows(status: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
    """Return the rows of flows and of nodes, as a run that goes on answers a request for its status."""
    flows: list[Row] = [("flow", "received", "lost")]
    flows += [(name, *map(count_text, counts)) for name, counts in status["flows"].items()]
    nodes: list[Row] = [("node", "saved", "final rows")]
    names, keys = status["saved"] | status["rows"], ("saved", "rows")
    nodes += [(name, *(count_text(status[key].get(name)) for key in keys)) for name in names]
    return flows, nodes


def ended_rows(summary: Summary) -> tuple[list[Row], list[Row]]:
    """Return the rows of flows and of nodes of a run that has ended."""
    flows: list[Row] = [("flow", "expected", "received", "lost", "dropped", "missing")]
    for name, flow in summary.flows.items():
        counts = (flow.expected, flow.received, flow.lost, flow.dropped, flow.missing)
        flows.append((name, *map(count_text, counts)))
    nodes: list[Row] = [("node", "saved", "lost", "file")]
    for name, channel in summary.channels.items():
        saved = (count_text(channel.saved), count_text(channel.lost))
        nodes.append((name, *saved, (channel.dataset or ABSENT).partition("::")[0]))
    for name, table in summary.tables.items():
        nodes.append((name, count_text(table.rows), ABSENT, table.file or ABSENT))
    return flows, nodes


def _picture(shown: Picture) -> str:
    height, width = shown.pixels.shape
    step = max(1, -(-max(height, width) // LONGEST_SIDE))
    some = np.s_[::step, ::step]
    image = png(picture(shown.pixels[some], None if shown.mask is None else shown.mask[some]))
    words = f"{shown.node}, frame {shown.number}, {width} x {height}"
    words += f", one pixel of {step} x {step}" if step > 1 else ""
    source = f"data:image/png;base64,{b64encode(image).decode()}"
    return f'<img alt="{escape(words)}" src="{source}" style="image-rendering: pixelated"><br>{escape(words)}'


def _table(rows: Sequence[Row]) -> str:
    head, *body = rows
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in body]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in (cells, *lines)) + "</table>"
