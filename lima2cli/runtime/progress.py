"""How a run gets on, told to people about twice a second; and whether it does get on."""

import time
from typing import Any

from lima2cli.plan.records import Plan
from lima2cli.runtime.acquisition import Acquisition
from lima2cli.runtime.patience import longest_wait_s

PERIOD_S = 0.5


class Progress:
    """Of the acquisition that runs."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._told_at = self._moved_at = time.monotonic()
        self._seen = -1

    def begin(self) -> None:
        """An acquisition starts: nothing of it has been seen."""
        self._moved_at, self._seen = time.monotonic(), -1

    def moved(self) -> None:
        """It gets on, though no frame has come."""
        self._moved_at = time.monotonic()

    @property
    def stuck(self) -> bool:
        """Whether nothing has come for longer than may be."""
        return self._told_at - self._moved_at > longest_wait_s(self._plan)

    def event(self, acquisition: Acquisition) -> dict[str, Any] | None:
        """What to tell now; None where it is too early."""
        now = time.monotonic()
        if now - self._told_at < PERIOD_S:
            return None
        self._told_at = now
        flows = acquisition.totals(self._plan)
        seen = sum(received + lost for received, lost in flows.values())
        if seen != self._seen:
            self._seen, self._moved_at = seen, now
        return {
            "type": "progress",
            "seconds": (time.time_ns() - acquisition.outcome.start_ns) * 1e-9,
            "flows": {name: {"received": received, "lost": lost} for name, (received, lost) in flows.items()},
            "saved": acquisition.saved_totals(self._plan),
        }
