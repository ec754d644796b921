"""Requests of users, carried out: triggers, frames to be looked at, changes of parameters, other directories."""

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from lima2cli import messages
from lima2cli.accounting.acquisitions import LiveAcquisition
from lima2cli.errors import StateError
from lima2cli.messages import Change, Tapped
from lima2cli.nodes.change import with_value
from lima2cli.plan.figures import outline_figures
from lima2cli.plan.ir import Plan
from lima2cli.ranks.outputs import LiveMasters, Places
from lima2cli.runs.channel import message_event
from lima2cli.runs.description import keep_change, keep_description

ANOTHER_S = 0.1
"""Seconds until another receiver is asked as well, where one has no frame."""


class Tapping:
    """The flows and nodes of a plan that can be looked at, and the receivers that are asked for their frames.

    A receiver is asked for one frame at a time, and only when the last one has been taken: users who are slow, or who
    have gone, never hold it up. Where several have frames of a flow or node they are asked in turn, and one that has
    none yet does not keep the others from being asked.

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
    """The change of a parameter that is under way, if one is: agreed upon by all receivers.

    First each receiver makes ready what the change needs, while it works on. When all can, they stop taking frames and
    say how far they are; the change is due at the highest of these frames, which no receiver has gone beyond, and they
    go on.

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


SLEEP_S, QUICK_SLEEP_S = 5e-3, 5e-4
"""Seconds of rest while there is nothing to do, and for `QUICK_S` after somebody has asked for frames."""

QUICK_S = 0.1


class Job(Protocol):
    """The control rank, as far as requests need it: the acquisition that was announced last, and how far it is."""

    phase: str

    @property
    def now(self) -> LiveAcquisition:
        """The acquisition."""
        ...

    def look_at_requests(self) -> None:
        """Start, or end, an acquisition that is armed."""
        ...

    def send(self, ranks: set[int], kind: str, what: Any) -> None:
        """Send a message to ranks."""
        ...

    def emit(self, event: dict[str, Any]) -> None:
        """Report an event."""
        ...

    def warn(self, text: str) -> None:
        """Report a warning, once."""
        ...


class Requested:
    """The requests that are carried out in a job. ``changing``: the change that is under way."""

    def __init__(self, plan: Plan, job: Job, places: Places, masters: LiveMasters) -> None:
        self._plan, self._job, self._places, self._masters = plan, job, places, masters
        self._detectors = {role.rank for role in plan.ranks if role.role == "detector"}
        receivers = {role.rank for role in plan.ranks if role.role == "receiver"}
        self.changing = Changing(plan, lambda kind, what: job.send(receivers, kind, what), self._changed)
        self._quick_until = 0.0

    def hurry(self) -> None:
        """Rest shortly for a while: somebody waits for the first frames."""
        self._quick_until = time.monotonic() + QUICK_S

    @property
    def rest_s(self) -> float:
        """Seconds of rest where there is nothing to do."""
        return QUICK_SLEEP_S if time.monotonic() < self._quick_until else SLEEP_S

    def begin(self) -> None:
        """Start what was asked for, so that a trigger may follow at once."""
        self._job.look_at_requests()

    def trigger(self, count: int) -> None:
        """Fire software triggers."""
        self.hurry()
        self._job.send(self._detectors, messages.TRIGGER, count)

    def tap(self, rank: int, node: str) -> None:
        """Ask the receiver of a rank for the next frame of a flow or node."""
        self._job.send({rank}, messages.TAP, node)

    @property
    def figures(self) -> dict[str, Any]:
        """The part of a detailed status that is about changes."""
        return {"changeable": self.changing.values, "regions": self.changing.regions}

    def change(self, request: Mapping[str, Any], reply: Reply) -> str | None:
        """Begin a change of a parameter, whose answer comes later; return why it is refused."""
        if self._job.phase not in ("armed", "running"):
            return f"nothing can be changed now: the run is {self._job.phase}"
        self.hurry()
        return self.changing.ask(request, reply)

    def _changed(self, change: Change, frame: int) -> None:
        """Note a change that is applied from a frame on, in the files of the acquisition, and report it."""
        now = self._job.now
        words = {"node": change.node, "parameter": change.parameter, "value": change.value, "frame": frame}
        try:
            keep_change(Path(now.directory), words)
        except OSError as error:
            self._job.warn(f"the change of {change.node} can't be noted in the files: {error}")
        message = f"{change.node}: {change.parameter} is changed from frame {frame} on"
        self._job.emit(message_event("changed", message) | words | {"acquisition": now.outcome.number + 1})

    def move(self, target: Any) -> str:
        """Give the files of the acquisition that is armed another directory, and return it.

        Receivers hear of it with the order to start.

        Raises:
            StateError: they can't be there.
        """
        if self._plan.processing is not None:
            raise StateError("the directory can't be moved: the program of `--receiver` knows it already")
        now = self._job.now
        before = now.directory
        directory, linked = self._places.move(target)
        if directory == before:
            return directory
        now.directory = directory
        self._masters.move(directory)
        moved = message_event("moved", f"its files go to {directory}")
        self._job.emit(moved | {"acquisition": now.outcome.number + 1, "directory": directory})
        if not linked:
            self._job.warn(f"there can't be a link {before}: the run is found as {directory} only")
        return directory

    def describe(self, said: Mapping[str, Any] | None) -> None:
        """Keep what users say of the acquisition that starts, if they say anything."""
        if said is not None:
            try:
                keep_description(Path(self._job.now.directory), said)
            except OSError as error:
                self._job.warn(f"its metadata can't be kept: {error}")
