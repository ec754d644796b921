"""Display of a run: its progress, by a thread so that it never waits for a terminal, and the accounting at its end."""

import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from io import UnsupportedOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lima2cli.secret import hidden, hide
from lima2cli.units import count_text, counted_text, frames_text, rate_text, seconds_text, volume_text, which_text

if TYPE_CHECKING:
    from lima2cli.accounting.summary import Accounting, FlowSummary, Summary

Flows = Mapping[str, Mapping[str, Any]]
"""Figures by flow: received, lost, total (None without end), bytes, fill."""

WINDOW_S = 3.0
"""Seconds over which rates are taken, so that they are those of now, and steady."""


class Window:
    """The figures of the last seconds of an acquisition, oldest first; ``seconds`` and ``acquisition`` are keys."""

    def __init__(self) -> None:
        self._kept: deque[Mapping[str, Any]] = deque()

    def before(self, now: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Keep the figures of now; return those of `WINDOW_S` before, or as long before as there are.

        None where there are none of the same acquisition.
        """
        kept = self._kept
        if kept and (kept[-1]["acquisition"] != now["acquisition"] or kept[-1]["seconds"] > now["seconds"]):
            kept.clear()
        kept.append(now)
        while len(kept) > 2 and kept[1]["seconds"] <= now["seconds"] - WINDOW_S:
            kept.popleft()
        return kept[0] if len(kept) > 1 else None


def rate(now: float, before: float, seconds: float) -> float:
    """Return by how much a count grows in a second."""
    return (now - before) / seconds if seconds > 0 else 0.0


def percent_done(flows: Flows) -> float | None:
    """Return how many percent of its frames the flow most behind has received or lost; None without an end."""
    shares = [100 * _seen(flow) / flow["total"] for flow in flows.values() if flow["total"]]
    return min(shares) if shares and all(flow["total"] is not None for flow in flows.values()) else None


def seconds_left(flows: Flows, before: Flows, seconds: float) -> float | None:
    """Return how long it takes until all flows have come, at the rates of the last seconds; None if that is open."""
    longest = 0.0
    for name, flow in flows.items():
        if flow["total"] is None:
            return None
        left = max(0, flow["total"] - _seen(flow))
        speed = rate(_seen(flow), _seen(before[name]) if name in before else 0, seconds)
        if left and speed <= 0:
            return None
        longest = max(longest, left / speed if left else 0.0)
    return longest or None


def _seen(flow: Mapping[str, Any]) -> int:
    return int(flow["received"] + flow["lost"])


def how_far(flows: Flows, before: Flows, seconds: float) -> list[str]:
    """Return percent and time left, as far as they are known."""
    percent, left = percent_done(flows), seconds_left(flows, before, seconds)
    return [
        *([] if percent is None else [f"{int(percent)} %"]),
        *([] if left is None else [f"{seconds_text(max(1, round(left)))} left"]),
    ]


def progress_line(now: Mapping[str, Any], before: Mapping[str, Any] | None = None, width: int | None = None) -> str:
    """Return the progress of an acquisition in one line.

    Time, percent, time left, flows with frames and rates, bytes per second, frames lost, fill of buffers; what is
    saved, of several nodes from the one most behind to the one farthest.

    now, before  figures of events of type progress; rates are from one to the other, or from the start
    width        maximal length in characters: flows that are too many are left out, and then the end
    """
    flows, earlier = now["flows"], {} if before is None else before["flows"]
    seconds = now["seconds"] - (0.0 if before is None else before["seconds"])
    head = [f"{seconds_text(round(max(0.0, now['seconds']), 1)):>8}", *how_far(flows, earlier, seconds)]
    tail = _tail(now, earlier, seconds)
    each = [_flow(name, flow, earlier.get(name), seconds) for name, flow in flows.items()]
    for shown in range(len(each), 0, -1):
        more = [f"+ {counted_text(len(each) - shown, 'flow')}"] if shown < len(each) else []
        line = "  ".join([*head, *each[:shown], *more, *tail])
        if width is None or len(line) <= width:
            return line
    while width is not None and tail and len(line) > width:
        line = line.removesuffix(f"  {tail.pop()}")
    return line[:width]


def _flow(name: str, flow: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> str:
    speed = rate(flow["received"], before["received"] if before else 0, seconds)
    return f"{name} {count_text(flow['received'])}, {count_text(round(speed))}/s"


def _tail(now: Mapping[str, Any], earlier: Flows, seconds: float) -> list[str]:
    flows = now["flows"].values()
    received, lost = sum(flow["bytes"] for flow in flows), sum(flow["lost"] for flow in flows)
    speed = rate(received, sum(flow["bytes"] for flow in earlier.values()), seconds)
    saved = _from_to(list(now["saved"].values()))
    fill = max((flow["fill"] for flow in flows), default=0.0)
    return [
        rate_text(speed),
        *([f"{count_text(lost)} lost"] if lost else []),
        f"buffers {round(100 * fill)} %",
        *([f"{saved} saved"] if saved else []),
    ]


def _from_to(counts: Sequence[int]) -> str:
    """Return the range of some counts in words, of one its value; of none an empty string."""
    if not counts:
        return ""
    few, many = min(counts), max(counts)
    return count_text(few) if few == many else f"{count_text(few)} to {count_text(many)}"


def show_summary(directory: Path, summary: "Summary") -> str:
    """Return how a run ended, its flows and channels, and where the files are, in lines."""
    lines = [f"{summary.state}" + (f": {summary.reason}" if summary.reason else ""), *_account(summary)]
    acquisition = summary.acquisition
    if acquisition is not None and acquisition.of > 1:
        before = acquisition.dead_time_s
        dead = "" if before is None else f"; dead time before it {seconds_text(before)}"
        lines.append(f"acquisition {acquisition.number} of {acquisition.of}{dead}")
    where = f"{directory}/{summary.file}" if summary.file else str(directory)
    return "\n".join([*lines, "", (f"{seconds_text(summary.seconds)}, " if summary.seconds else "") + where]) + "\n"


def show_account(directory: Path, accounting: "Accounting", word: str) -> str:
    """Return the flows and channels of a run, as its files have them, in lines; the first is ``word``."""
    return "\n".join([word, *_account(accounting), "", str(directory)]) + "\n"


def _account(accounting: "Accounting") -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("flow", "expected", "received", "lost", "dropped", "missing", "waited")]
    for name, flow in accounting.flows.items():
        counts = (flow.expected, flow.received, flow.lost, flow.dropped, flow.missing)
        rows.append((name, *map(count_text, counts), seconds_text(flow.waited_s or 0)))
    yield from ("", *table(rows), *_receivers(accounting.flows))
    if accounting.channels:
        rows = [("channel", "expected", "saved", "lost", "dropped", "vetoed", "size", "file")]
        for name, channel in accounting.channels.items():
            saved = (channel.expected, channel.saved, channel.lost, channel.dropped, channel.vetoed)
            rows.append((name, *map(count_text, saved), volume_text(channel.bytes), channel.dataset or "-"))
        yield from ("", *table(rows))
    for name, flow in accounting.flows.items():
        if flow.missing_frames:
            yield f"{name}: not received: {ranges_text(flow.missing_frames)}{_allowed(flow)}"
    for name, node in accounting.nodes.items():
        if node.unmatched:
            yield f"{name}: {count_text(node.unmatched)} unmatched: not in all inputs of a join"
    yield from (f"problem: {problem}" for problem in accounting.problems)
    yield from (f"warning: {warning}" for warning in accounting.warnings)


def _allowed(flow: "FlowSummary") -> str:
    """Return how many may be; nothing for figures recomputed from files, which lack it."""
    if flow.reported is None:
        return ""
    return f"; {'any' if flow.reported.allowed is None else flow.reported.allowed or 'none'} may be lost"


def _receivers(flows: Mapping[str, "FlowSummary"]) -> list[str]:
    """Return how frames and events were shared out; nothing for figures recomputed from files, which lack it."""
    rows: list[tuple[str, ...]] = [("flow", "frames by receiver", "group events", "end events")]
    for name, flow in flows.items():
        if flow.reported is None:
            return []
        shares = (flow.reported.receivers, flow.reported.group_events, flow.reported.end_events)
        frames, group, end = (" + ".join(map(count_text, counts.values())) for counts in shares)
        rows.append((name, f"{frames} ({', '.join(flow.reported.receivers)})", group, end))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["", *("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)]


def ranges_text(ranges: Sequence[tuple[int, int, int]], most: int = 8) -> str:
    """Return (first, last, step) ranges of frame numbers in words, at most ``most`` of them."""
    texts = [
        str(first) if first == last else f"{first}..{last}" + (f" step {step}" if step > 1 else "")
        for first, last, step in ranges[:most]
    ]
    more = f" and {len(ranges) - most} more ranges" if len(ranges) > most else ""
    return ", ".join(texts) + more


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Return lines with names to the left, counts to the right, the last column as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if column in (0, len(rows[0]) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


class ProgressStyle(StrEnum):
    """Styles of the progress of a run."""

    AUTO = "auto"
    TTY = "tty"
    PLAIN = "plain"
    JSON = "json"
    NONE = "none"


PLAIN_PERIOD_S = 10.0

Table = Callable[[Path], list[str]]
"""Function that returns lines about a run, by its directory."""

CLEAR = "\r\x1b[J"
"""Go to the begin of the line, and clear it and all that is below (ECMA-48)."""


class ProgressPrinter:
    """Printer of the events of a run: one line that is drawn again on a terminal, else a line per 10 s and per event.

    With `ProgressStyle.NONE` errors and warnings only.

    table  gives lines to be drawn below that line, by the run directory
    """

    def __init__(self, mode: ProgressStyle, out: TextIO, table: Table | None = None) -> None:
        if mode is ProgressStyle.AUTO:
            mode = ProgressStyle.TTY if out.isatty() else ProgressStyle.PLAIN
        self._mode, self._out, self._table = mode, out, table
        self._directory: Path | None = None
        self._printed_at, self._open = time.monotonic(), False
        self._printed: set[str] = set()
        self._window = Window()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        event = hidden(event)
        if self._mode is ProgressStyle.JSON:
            self._out.write(json.dumps(event) + "\n")
            self._out.flush()
        elif self._mode is not ProgressStyle.NONE:
            self._show(event)
        else:
            self._show_problems(event)

    def _show_problems(self, event: dict[str, Any]) -> None:
        """Show errors and warnings, while they arrive and as the run ends; each once."""
        kind = event["type"]
        if kind == "error" or (kind == "event" and event["event"] == "warning"):
            self._show(event)
            self._printed.add(event["message"].removeprefix("warning: "))
        elif kind == "done":
            problems = [f"problem: {text}" for text in event["problems"] if text not in self._printed]
            warnings = [f"warning: {text}" for text in event["warnings"] if text not in self._printed]
            ended = [] if event["state"] == "complete" else [f"{event['state']}: {event['reason']}"]
            for text in (*problems, *warnings, *ended):
                self._line(text)

    def _show(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "start":
            frames = "until stopped" if event["frames"] is None else frames_text(event["frames"])
            which = "" if event.get("of", 1) == 1 else f" {which_text(event['acquisition'], event['of'])}"
            self._line(f"{event['name']}{which}: started, {frames}")
            self._directory = Path(event["directory"])
        elif kind == "acquisition":
            dead = event["dead_time_s"]
            after = "" if dead is None else f", {seconds_text(dead)} after the previous one"
            which, frames = which_text(event["number"], event["of"]), frames_text(event["frames"])
            self._line(f"acquisition {which}: {event['state']}, {frames}{after}, {event['directory']}")
        elif kind == "progress":
            self._progress(event)
        elif kind == "event":
            self._line(event["message"])
        elif kind == "error":
            where = "".join(f", {key} {event[key]}" for key in ("node", "frame") if event.get(key) is not None)
            detail = f" ({event['detail']})" if event.get("detail") else ""
            self._line(f"error on rank {event['rank']}{where}: {event['message']}{detail}")
        elif kind == "done" and self._open:
            self._out.write("\n\x1b[J")

    def _progress(self, event: dict[str, Any]) -> None:
        before = self._window.before(event)
        if self._mode is ProgressStyle.TTY:
            columns, lines = _size(self._out)
            line = progress_line(event, before, columns - 1)
            below = [row[: columns - 1] for row in self._below()[: max(0, lines - 2)]]
            up = f"\x1b[{len(below)}A" if below else ""  # the cursor stays in the line
            self._out.write(CLEAR + "\n".join([line, *below]) + up)
            self._out.flush()
            self._open = True
        elif time.monotonic() - self._printed_at >= PLAIN_PERIOD_S:
            self._line(progress_line(event, before))

    def _below(self) -> list[str]:
        return [] if self._table is None or self._directory is None else self._table(self._directory)

    def _line(self, text: str) -> None:
        self._printed_at = time.monotonic()
        self._out.write((CLEAR if self._open else "") + text + "\n")
        self._out.flush()
        self._open = False


def _size(stream: TextIO) -> tuple[int, int]:
    """Return the columns and lines of a terminal in characters; some numbers where it is none, or tells none."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        size = os.terminal_size((0, 0))
    return size.columns or COLUMNS, size.lines or LINES


COLUMNS = 120
"""Width of a terminal that does not tell its own."""

LINES = 24
"""Height of such a terminal."""

KEPT = 1000
"""Number of events that are kept for a display that takes none; beyond, reports of progress are left out."""

LAST_WORDS_S = 5.0
"""Seconds that the display has to take the rest at the end of a run."""


class Display:
    """Display of the events of a run, and its end; ``mode`` and ``table`` as of `ProgressPrinter`.

    The reader may be slow, blocked, full or gone: nothing is raised, and `close` returns what could not be shown.
    """

    def __init__(self, mode: ProgressStyle, table: Table | None = None) -> None:
        self._out, self._err = _own(sys.stdout), _own(sys.stderr)
        self._show = ProgressPrinter(mode, self._out if mode is ProgressStyle.JSON else self._err, table)
        self._waiting: deque[dict[str, Any] | str] = deque()
        self._news = threading.Condition()
        self._closed, self._left_out, self._broken = False, 0, ""
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)
        self._thread.start()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event, later."""
        if len(self._waiting) > KEPT and event["type"] == "progress":
            self._left_out += 1
            return
        self._put(event)

    def print(self, text: str) -> None:
        """Write to standard output, after all events before; ``text`` ends with the end of a line."""
        self._put(hide(text))

    def close(self) -> str | None:
        """Wait a little for what is still to be shown; return why not everything was, None where it was."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join(LAST_WORDS_S)
        if self._thread.is_alive():
            return "standard output or standard error is blocked: the rest was not shown"
        if self._broken:
            return f"the progress could not be shown completely: {self._broken}"
        return (
            f"{self._left_out} progress reports were not shown: the output was not read fast enough"
            if self._left_out
            else None
        )

    def _put(self, item: dict[str, Any] | str) -> None:
        with self._news:
            self._waiting.append(item)
            self._news.notify()

    def _run(self) -> None:
        while (item := self._next()) is not None:
            try:
                self._one(item)
            except (OSError, ValueError) as error:
                self._broken = self._broken or str(error)
        for stream in {self._out, self._err} - {sys.stdout, sys.stderr}:
            with suppress(OSError):
                stream.close()

    def _one(self, item: dict[str, Any] | str) -> None:
        if isinstance(item, str):
            self._out.write(item)
            self._out.flush()
        else:
            self._show(item)

    def _next(self) -> dict[str, Any] | str | None:
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._closed)
            return self._waiting.popleft() if self._waiting else None


def _own(stream: TextIO | None) -> TextIO:
    """Return the same file as a stream of its own; where there is none, nothing is shown.

    Python's own would be flushed as the program ends, and waited for.
    """
    try:
        if stream is None:
            return open(os.devnull, "w", encoding="utf-8")
        return os.fdopen(os.dup(stream.fileno()), "w", buffering=1, encoding=stream.encoding, errors="replace")
    except UnsupportedOperation:  # no file of the system: what a program that calls this one has put there
        assert stream is not None
        return stream
