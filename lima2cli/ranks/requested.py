"""Requests of users, carried out: triggers, frames to be looked at, changes of parameters, other directories."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from lima2cli import messages
from lima2cli.accounting.acquisitions import LiveAcquisition
from lima2cli.errors import StateError
from lima2cli.messages import Change
from lima2cli.plan.ir import Plan
from lima2cli.ranks.changing import Changing, Reply
from lima2cli.ranks.live_masters import LiveMasters
from lima2cli.ranks.places import Places
from lima2cli.runs.channel import message_event
from lima2cli.runs.description import keep_change, keep_description

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
