"""Progress of an acquisition in a line, from its figures (`--progress json`) now and a little before."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from lima2cli.units import count_text, counted_text, rate_text, seconds_text

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
