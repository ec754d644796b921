"""Rates of flows, from what has been received now and a little before."""

from collections import deque
from collections.abc import Mapping
from typing import Any

WINDOW_S = 3.0
"""Seconds over which rates are taken, so that they are those of now, and steady."""


class Rates:
    """Frames per second of each flow of one run."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, float, dict[str, int]]] = deque()

    def of(self, acquisition: int, now: float, flows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Take note of the figures of flows at a time, in seconds; return the rates of the last seconds, at first 0."""
        received = {name: int(figures["received"]) for name, figures in flows.items()}
        if self._kept and self._kept[-1][0] != acquisition:
            self._kept.clear()
        self._kept.append((acquisition, now, received))
        while len(self._kept) > 2 and self._kept[1][1] <= now - WINDOW_S:
            self._kept.popleft()
        _, before, earlier = self._kept[0]
        seconds = now - before
        return {
            name: (count - earlier.get(name, 0)) / seconds if seconds > 0 else 0.0 for name, count in received.items()
        }
