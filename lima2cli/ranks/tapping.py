"""Frames that users look at, and the receivers that are asked for them.

A receiver is asked for one frame at a time, and only when the last one has been taken: users who are slow, or who have
gone, never hold it up. Where several have frames of a flow or node they are asked in turn, and one that has none yet
does not keep the others from being asked.
"""

import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from lima2cli.messages import Tapped
from lima2cli.plan.ir import Plan

ANOTHER_S = 0.1
"""Seconds until another receiver is asked as well, where one has no frame."""


class Tapping:
    """The flows and nodes of a plan that can be looked at.

    ask   asks the receiver of a rank for the next frame of a flow or node
    """

    def __init__(self, plan: Plan, ask: Callable[[int, str], None]) -> None:
        self._plan, self._ask = plan, ask
        self._ranks: dict[str, deque[int]] = {}
        self._asked: dict[str, dict[int, float]] = {}

    def refusal(self, node: object) -> str | None:
        """Return why a flow or node can't be looked at; None where it can."""
        seen = self._plan.visible
        if not isinstance(node, str) or node not in seen:
            parts = [step.name for step in self._plan.steps if step.numbering.parts and step.name == node]
            if parts or any(gdt.flow == node and gdt.place is not None for gdt in self._plan.gdts):
                return f"no receiver has whole frames of {node}: look at the node that joins its parts"
            if any(step.name == node for step in self._plan.steps):
                return f"{node} has no frames that are computed; these have: {', '.join(seen)}"
            return f"there is no flow or node {node!r}; these have frames: {', '.join(seen)}"
        return None

    def look(self, wanted: Collection[str]) -> None:
        """Ask for what is wanted now, where that is not under way."""
        now = time.monotonic()
        for node in wanted:
            asked = self._asked.setdefault(node, {})
            if asked and now - max(asked.values()) < ANOTHER_S:
                continue
            ranks = self._ranks_of(node)
            for _ in range(len(ranks)):
                ranks.rotate(-1)
                if ranks[-1] not in asked:
                    asked[ranks[-1]] = now
                    self._ask(ranks[-1], node)
                    break

    def came(self, rank: int, tapped: Tapped) -> dict[str, Any]:
        """Note that a receiver has sent a frame; return what users are told of it."""
        self._asked.get(tapped.node, {}).pop(rank, None)
        receiver = self._plan.ranks[rank].receiver
        assert receiver is not None
        height, width = tapped.frame.shape
        return {
            "type": "frame", "node": tapped.node, "frame_number": tapped.number, "time_ns": tapped.time_ns,
            "acquisition": tapped.acquisition + 1, "receiver": self._plan.receivers[receiver],
            "dtype": tapped.frame.dtype.str, "shape": [height, width], "bytes": tapped.frame.nbytes,
        }  # fmt: skip

    def _ranks_of(self, node: str) -> deque[int]:
        if node not in self._ranks:
            flows = {receiver: None for gdt in self._plan.gdts_of(node) for receiver in gdt.receivers}
            steps = {r: None for step in self._plan.steps if step.name == node for r in step.numbering.receivers}
            self._ranks[node] = deque(self._plan.rank_of_receiver(receiver) for receiver in flows or steps)
        return self._ranks[node]
