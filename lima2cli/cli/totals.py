"""Accounting of every frame, as a run ends or an inspection shows it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lima2cli.units import count_text, seconds_text, volume_text

if TYPE_CHECKING:
    from lima2cli.accounting.summary import Accounting, FlowSummary, Summary


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
