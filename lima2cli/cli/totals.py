"""Accounting of every frame, as a run ends or an inspection shows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lima2cli.units import count_text, seconds_text, volume_text


def show_summary(directory: Path, summary: Mapping[str, Any]) -> str:
    """Return flows, channels and where the files are, in lines."""
    lines = [f"{summary['state']}" + (f": {summary['reason']}" if summary.get("reason") else "")]
    rows: list[tuple[str, ...]] = [("flow", "expected", "received", "lost", "dropped", "missing", "waited")]
    for name, flow in summary["flows"].items():
        counts = [count_text(flow[key]) for key in ("expected", "received", "lost", "dropped", "missing")]
        rows.append((name, *counts, seconds_text(flow.get("waited_s", 0))))
    lines += ["", *table(rows)]
    lines += _receivers(summary["flows"])
    if summary["channels"]:
        rows = [("channel", "expected", "saved", "lost", "dropped", "vetoed", "size", "file")]
        for name, channel in summary["channels"].items():
            counts = [count_text(channel[key]) for key in ("expected", "saved", "lost", "dropped", "vetoed")]
            rows.append((name, *counts, volume_text(channel["bytes"]), str(channel["dataset"] or "-")))
        lines += ["", *table(rows)]
    for name, flow in summary["flows"].items():
        if flow["missing_frames"]:
            lines.append(f"{name}: not received: {ranges_text(flow['missing_frames'])}{_allowed(flow)}")
    for name, saved in [*summary["channels"].items(), *summary.get("tables", {}).items()]:
        if saved.get("unmatched"):
            lines.append(f"{name}: {count_text(saved['unmatched'])} unmatched: not in all inputs of a join")
    for problem in summary.get("problems", ()):
        lines.append(f"problem: {problem}")
    lines += [f"warning: {warning}" for warning in summary.get("warnings", ())]
    acquisition = summary.get("acquisition", {})
    if acquisition.get("of", 1) > 1:
        dead = (
            ""
            if acquisition["dead_time_s"] is None
            else f"; dead time before it {seconds_text(acquisition['dead_time_s'])}"
        )
        lines.append(f"acquisition {acquisition['number']} of {acquisition['of']}{dead}")
    seconds = summary.get("seconds")
    where = f"{directory}/{summary['file']}" if summary.get("file") else str(directory)
    lines += ["", (f"{seconds_text(seconds)}, " if seconds else "") + where]
    return "\n".join(lines) + "\n"


def _allowed(flow: Mapping[str, Any]) -> str:
    """Return how many may be; nothing for figures recomputed from files, which lack it."""
    if "allowed" not in flow:
        return ""
    return f"; {'any' if flow['allowed'] is None else flow['allowed'] or 'none'} may be lost"


def _receivers(flows: Mapping[str, Any]) -> list[str]:
    """Return how frames and events were shared out; nothing for figures recomputed from files, which lack it."""
    if not all({"receivers", "group_events", "end_events"} <= flow.keys() for flow in flows.values()):
        return []
    rows: list[tuple[str, ...]] = [("flow", "frames by receiver", "group events", "end events")]
    for name, flow in flows.items():
        shares = (flow["receivers"], flow["group_events"], flow["end_events"])
        frames, group, end = (" + ".join(map(count_text, counts.values())) for counts in shares)
        rows.append((name, f"{frames} ({', '.join(flow['receivers'])})", group, end))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["", *("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)]


def ranges_text(ranges: list[list[int]], most: int = 8) -> str:
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
