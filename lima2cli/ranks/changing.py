"""A change of a parameter, agreed upon by all receivers: they make it ready, stand still, and go on from one frame.

First each receiver makes ready what the change needs, while it works on. When all can, they stop taking frames and say
how far they are; the change is due at the highest of these frames, which no receiver has gone beyond, and they go on.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lima2cli import messages
from lima2cli.messages import Change
from lima2cli.nodes.change import with_value
from lima2cli.plan.figures import outline_figures
from lima2cli.plan.ir import Plan

LONGEST_S = 8.0
"""Seconds that all receivers have to answer; then nothing is changed."""

Reply = Callable[[dict[str, Any]], None]


def changeable(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the parameters that can be changed while a run goes on, and their values at its start, by node."""
    asked = plan.record.get("nodes", {})
    return {
        step.name: {name: asked.get(step.name, {}).get(step.node.kind, {}).get(name) for name in step.node.changeable}
        for step in plan.steps
        if step.node.changeable and not step.collective and step.workers is None and len(step.sources) == 1
    }


class Changing:
    """The change that is under way, if one is.

    values   of parameters now, see `changeable`;  regions  of nodes of which a parameter was changed, as plans have
             them

    send   sends a message to the receivers
    done   is called with each change that was applied, and the frame that it is applied at
    """

    def __init__(self, plan: Plan, send: Callable[[str, Any], None], done: Callable[[Change, int], None]) -> None:
        self._plan, self._send, self._done = plan, send, done
        self._receivers = {role.rank for role in plan.ranks if role.role == "receiver"}
        self._change: Change | None = None
        self._reply: Reply = lambda answer: None
        self._waiting: set[int] = set()
        self._wrong: list[str] = []
        self._frame = 0
        self._held = False
        self._deadline = 0.0
        self._number = 0
        self.values = changeable(plan)
        self.regions: dict[str, Any] = {}
        self._steps = {step.name: step for step in plan.steps}

    def ask(self, request: Mapping[str, Any], reply: Reply) -> str | None:
        """Begin a change; return why it is refused, None where ``reply`` gets the answer later."""
        node, parameter = request.get("node"), request.get("parameter")
        if self._change is not None:
            return "another change is under way"
        if not isinstance(node, str) or not any(step.name == node for step in self._plan.steps):
            return f"there is no node {node!r}; there are: {', '.join(step.name for step in self._plan.steps)}"
        if not isinstance(parameter, str) or "value" not in request:
            return "a change names `parameter` and `value`"
        self._number += 1
        self._change = Change(self._number, node, parameter, request["value"])
        self._reply, self._wrong, self._frame, self._held = reply, [], 0, False
        self._waiting, self._deadline = set(self._receivers), time.monotonic() + LONGEST_S
        self._send(messages.CHANGE, self._change)
        return None

    def answered(self, rank: int, number: int, answer: str | int | None) -> None:
        """Note what a receiver answers: what is wrong, or how far it is."""
        if self._change is None or number != self._change.number:
            return
        self._waiting.discard(rank)
        if isinstance(answer, str):
            self._wrong.append(answer)
        elif isinstance(answer, int):
            self._frame = max(self._frame, answer)
        if self._waiting:
            return
        if self._wrong:
            self._end(None, {"ok": False, "message": self._wrong[0]})
        elif not self._held:
            self._held, self._waiting = True, set(self._receivers)
            self._send(messages.HOLD, number)
        else:
            change = self._change
            self._note(change)
            self._end(self._frame, {"ok": True, "frame": self._frame})
            self._done(change, self._frame)

    def _note(self, change: Change) -> None:
        """Note a change that was agreed upon."""
        step = self._steps[change.node]
        step = replace(step, node=with_value(step.node, change.parameter, change.value))
        self._steps[step.name] = step
        self.values.setdefault(step.name, {})[change.parameter] = change.value
        if outlines := outline_figures(step):
            self.regions[step.name] = outlines

    def look_at_clock(self) -> None:
        """Give a change up that a receiver does not answer to."""
        if self._change is not None and time.monotonic() > self._deadline:
            self._end(None, {"ok": False, "message": f"receivers did not answer within {LONGEST_S:g} s"})

    def _end(self, frame: int | None, answer: dict[str, Any]) -> None:
        assert self._change is not None
        self._send(messages.SETTLE, (self._change.number, frame))
        self._change = None
        self._reply(answer)
