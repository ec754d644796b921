"""The words and tables of a page, as HTML, its colours and style sheets; all that comes from runs is escaped."""

import datetime
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lima2cli.accounting.summary import Summary
from lima2cli.drive import LiveFrame
from lima2cli.units import count_text, seconds_text, volume_text
from lima2cli.web.page.facts import Facts

TEXT = "#3b4252"

NOT_MEASURED = "#a02828"
"""Colour of pixels that are masked, or are no number."""

COLOURS = ("#d6336c", "#1c7ed6", "#f08c00", "#2f9e44", "#7048e8", "#0c8599", "#e8590c", "#868e96")
"""Colours of regions, and of lines in plots."""

PAGE = """
:root { --font: system-ui, "DejaVu Sans", sans-serif; }
html, body { margin: 0; height: 100%; background: #fff; color: #3b4252; font: 14px var(--font); }
body { padding: 12px 16px; box-sizing: border-box; }
"""

TEMPLATE = """
{% block preamble %}<link rel="icon" href="data:,">{% endblock %}
"""
"""The frame of the page, of Bokeh, with an empty icon."""

WIDGETS = """
:host { font: 13px system-ui, "DejaVu Sans", sans-serif; color: #3b4252; }
label { color: #7a8294; font-size: 12px; }
.bk-btn { border-radius: 4px; }
"""

TEXTS = """
:host { font: 13px system-ui, "DejaVu Sans", sans-serif; color: #3b4252; }
h1 { font-size: 18px; font-weight: 600; margin: 0; }
p { margin: 2px 0; }
b { font-weight: 600; }
:host > div { width: 100%; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 400; color: #7a8294; font-size: 12px; padding: 2px 6px; }
td { text-align: right; padding: 3px 6px; border-top: 1px solid #e8eaef; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.state { color: #7a8294; margin-left: 10px; font-size: 14px; font-weight: 400; }
.bar { background: #e8eaef; border-radius: 2px; height: 6px; width: 60px; display: inline-block; }
.bar > span { background: #1c7ed6; border-radius: 2px; height: 6px; display: block; }
.bad { color: #c92a2a; font-weight: 600; }
.note { color: #7a8294; }
table + table { margin-top: 8px; }
.warning { background: #fff4e0; border-left: 3px solid #f08c00; padding: 4px 8px; margin: 3px 0; }
"""


MOST_WARNINGS = 5
"""Warnings that are shown."""


def head(facts: Facts) -> str:
    """Return name and state of a run."""
    if facts.layout is None:
        return f"<h1>lima2<span class='state'>{escape(facts.problem) or 'no run yet'}</span></h1>"
    seconds = facts.status.get("seconds") if facts.live else facts.summary and facts.summary.seconds
    parts = [facts.state, *([seconds_text(round(float(seconds), 1))] if seconds else [])]
    if facts.status.get("of", 1) != 1:
        parts.append(f"acquisition {facts.status['acquisition']}")
    return f"<h1>{escape(facts.layout.name)}<span class='state'>{escape(', '.join(parts))}</span></h1>"


def flows(facts: Facts, rates: Mapping[str, float]) -> str:
    """Return the table of flows, and that of what is saved."""
    if facts.live:
        rows = [_flow(name, figures, rates.get(name, 0.0)) for name, figures in facts.status["detail"]["flows"].items()]
        saved = [(node, count, 0) for node, count in facts.status["saved"].items()]
        titles: Sequence[str] = ("flow", "received", "of", "frames/s", "lost", "buffers")
    elif facts.summary is not None:
        rows, saved = _ended(facts.summary)
        titles = ("flow", "received", "of", "lost", "dropped", "missing")
    else:
        return ""
    shown = [_table(titles, rows)]
    if saved:
        shown.append(
            _table(("node", "saved", "lost"), [(escape(n), count_text(c), _lost(lost)) for n, c, lost in saved])
        )
    return "".join(shown)


def _flow(name: str, figures: Mapping[str, Any], rate: float) -> Sequence[str]:
    total, fill = figures["total"], min(1.0, max(0.0, float(figures["fill"])))
    bar = f"<span class='bar'><span style='width: {100 * fill:.0f}%'></span></span> {100 * fill:.0f} %"
    return (
        escape(name), count_text(figures["received"]), "" if total is None else count_text(total),
        count_text(round(rate)), _lost(figures["lost"]), bar,
    )  # fmt: skip


def _ended(summary: Summary) -> tuple[list[Sequence[str]], list[tuple[str, int, int]]]:
    rows: list[Sequence[str]] = [
        (escape(name), *(_count(value) for value in (flow.received, flow.expected)),
         *(_lost(value or 0) for value in (flow.lost, flow.dropped, flow.missing)))
        for name, flow in summary.flows.items()
    ]  # fmt: skip
    saved = [(node, channel.saved, channel.lost or 0) for node, channel in summary.channels.items()]
    return rows, saved + [(node, table.rows or 0, 0) for node, table in summary.tables.items()]


def _count(value: int | None) -> str:
    return "?" if value is None else count_text(value)


def _lost(count: int) -> str:
    return f"<span class='bad'>{count_text(count)}</span>" if count else "0"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; its cells are HTML."""
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def warnings(messages: Sequence[str]) -> str:
    """Return warnings, the last first."""
    shown = [f"<div class='warning'>{escape(text.removeprefix('warning: '))}</div>" for text in messages[::-1]]
    more = [f"<p class='note'>and {len(shown) - MOST_WARNINGS} more</p>"] if len(shown) > MOST_WARNINGS else []
    return "".join(shown[:MOST_WARNINGS] + more)


def changed(node: str, parameter: str, result: Any) -> str:
    """Return what became of a change: the frame that it is applied from, or why it is not."""
    if isinstance(result, Exception):
        return f"<div class='warning'>{escape(str(result))}</div>"
    return f"<p>{escape(f'{node}: {parameter}')} is changed from frame <b>{count_text(result)}</b> on</p>"


def files(facts: Facts) -> str:
    """Return the files of a run that has ended."""
    if facts.live or not facts.files or facts.layout is None:
        return ""
    rows = [(escape(name), volume_text(size)) for name, size in facts.files]
    return f"<p class='note'>{escape(str(facts.layout.run.directory))}</p>" + _table(("file", "size"), rows)


def about(frame: LiveFrame | None, problem: str) -> str:
    """Return what is known of the frame that is shown, or why there is none."""
    if problem:
        return f"<p class='bad'>{escape(problem)}</p>"
    if frame is None:
        return "<p class='note'>no frame yet</p>"
    height, width = frame.pixels.shape
    parts = [f"frame <b>{frame.number}</b>"]
    if frame.time_ns is not None:
        parts.append(f"time <b>{_clock(frame.time_ns)}</b>")
    if frame.receiver is not None:
        parts.append(escape(frame.receiver))
    parts.append(f"<span class='note'>{frame.pixels.dtype} {width} x {height}</span>")
    return "<p>" + " &ensp; ".join(parts) + "</p>"


def _clock(time_ns: int) -> str:
    """Return the time of day, in the zone of this machine."""
    return f"{datetime.datetime.fromtimestamp(time_ns * 1e-9):%H:%M:%S.%f}"[:-3]
