"""Progress of a run: reports, the detection of silence, and the answers to requests of users."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from lima2cli.accounting.acquisitions import LiveAcquisition
from lima2cli.errors import RunFailed
from lima2cli.plan.ir import Plan
from lima2cli.runs.control_socket import Requests
from lima2cli.units import seconds_text

SHORTEST_SILENCE_S = 30.0
"""Minimal silence, in seconds, of receivers that counts as a hang; they report twice a second how far they are."""

LATER = 1.2
"""Factor on the acquisition's timeout, in which a call of users' code is found that hangs."""

PREPARATION_S = 300.0
"""Minimal time, in seconds, that a rank has to get ready: it reads calibrations, and imports users' code."""


def longest_wait_s(plan: Plan) -> float:
    """Return the seconds without a frame after which a run fails.

    Reports of receivers come in groups, and as seldom as events are reported; a software trigger may come at any time.
    """
    periods = [
        (plan.period_s or 0) * gdt.rule.step * gdt.rule.blocks * gdt.rule.buffers * gdt.group_event
        for gdt in plan.gdts
        if gdt.group_event
    ]
    if not periods or plan.acquisition.trigger == "software":
        return math.inf
    return plan.timeout_s + min(periods)


def check_silence(plan: Plan, heard: Mapping[int, float], reason: str | None) -> None:
    """Raise `RunFailed` where a receiver has been silent for too long.

    heard   when each receiver, by rank, was last heard of (`time.monotonic`);  reason  for which the run is ending
    """
    patience = max(LATER * plan.timeout_s, SHORTEST_SILENCE_S)
    silent = sorted(rank for rank, at in heard.items() if time.monotonic() - at > patience)
    if not silent:
        return
    names = {role.rank: plan.receivers[role.receiver] for role in plan.ranks if role.receiver is not None}
    who = ", ".join(f"{names[rank]} (rank {rank})" for rank in silent)
    raise RunFailed(f"{f'{reason}; then ' if reason else ''}{who} has said nothing for {seconds_text(patience)}")


def check_ready(plan: Plan, heard: Mapping[int, float]) -> None:
    """Raise `RunFailed` where a rank that should get ready has been silent for too long.

    heard   when each rank that is waited for was last heard of, or was asked (`time.monotonic`)
    """
    patience = max(plan.timeout_s, PREPARATION_S)
    silent = sorted(rank for rank, at in heard.items() if time.monotonic() - at > patience)
    if silent:
        who = ", ".join(f"{rank_name(plan, rank)} (rank {rank})" for rank in silent)
        raise RunFailed(f"{who} was not ready after {seconds_text(patience)}")


def rank_name(plan: Plan, rank: int) -> str:
    """Return the name of a rank for messages."""
    role = plan.ranks[rank]
    if role.receiver is not None:
        return plan.receivers[role.receiver]
    return role.role if role.worker is None else f"worker of {role.worker}"


PERIOD_S = 0.5


class Progress:
    """Progress of the acquisition that runs."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._told_at = self._moved_at = time.monotonic()
        self._seen = -1

    def begin(self) -> None:
        """Begin an acquisition: nothing of it has been seen."""
        self._moved_at, self._seen = time.monotonic(), -1

    def moved(self) -> None:
        """Note that it goes on, though no frame has come."""
        self._moved_at = time.monotonic()

    @property
    def stuck(self) -> bool:
        """Return whether nothing has come for longer than is allowed."""
        return self._told_at - self._moved_at > longest_wait_s(self._plan)

    def event(self, acquisition: LiveAcquisition) -> dict[str, Any] | None:
        """Return the event to report now; None where it is too early."""
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


def status(plan: Plan, acquisition: LiveAcquisition, phase: str) -> dict[str, Any]:
    """Return how far a run is, as plain data; ``flows`` are frames received and lost."""
    outcome = acquisition.outcome
    return {
        "ok": True,
        "phase": phase,
        "acquisition": outcome.number + 1,
        "of": plan.repeat,
        "flows": {name: list(counts) for name, counts in acquisition.totals(plan).items()},
        "seconds": (time.time_ns() - outcome.start_ns) * 1e-9 if outcome.start_ns else 0.0,
        "frames": plan.frames,
    }


def no_trigger(plan: Plan, acquisition: LiveAcquisition, phase: str, count: object) -> str | None:
    """Return why so many triggers are refused; None where they are not."""
    asked = plan.acquisition
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        return "a number of triggers is a whole number above 0"
    if asked.trigger != "software":
        return f"this run has acquisition.trigger: {asked.trigger}; it takes no software triggers"
    if phase != "running":
        return f"no triggers now: the run is {phase}"
    if plan.frames is None:
        return None
    left = -(-plan.frames // asked.frames_per_trigger) - acquisition.triggers
    if count > left:
        return f"{count} triggers are too many: {left} are left of {acquisition.triggers + left}"
    return None


class Answers:
    """Answers to requests of users.

    stop_asked  a user wants the run to stop
    trigger     gets how many software triggers to fire
    """

    def __init__(self, plan: Plan, trigger: Callable[[int], None]) -> None:
        self._plan, self._trigger = plan, trigger
        self._requests: Requests | None = None
        self.stop_asked = False

    def listen(self, directory: str) -> None:
        """Take requests from now on; ``directory`` shows where.

        Raises:
            OSError: that can't be.
        """
        self._requests = Requests()
        self._requests.announce(directory)

    def announce(self, directory: str) -> None:
        """Show in another directory, too, where requests are taken, if they are.

        Raises:
            OSError: the directory can't be written.
        """
        if self._requests is not None:
            self._requests.announce(directory)

    def poll(self, acquisition: LiveAcquisition, phase: str) -> None:
        """Answer the requests that have come, as things stand."""
        if self._requests is not None:
            self._requests.poll(lambda request: self._answer(request, acquisition, phase))

    def _answer(self, request: Mapping[str, Any], acquisition: LiveAcquisition, phase: str) -> dict[str, Any]:
        if request["do"] == "stop":
            self.stop_asked = True
            return {"ok": True}
        if request["do"] == "status":
            return status(self._plan, acquisition, phase)
        if request["do"] != "trigger":
            return {"ok": False, "message": f"a run can't {request['do']}: stop, status, trigger"}
        count = request.get("count", 1)
        why = no_trigger(self._plan, acquisition, phase, count)
        if why is not None:
            return {"ok": False, "message": why}
        acquisition.triggers += count
        self._trigger(count)
        return {"ok": True, "triggers": acquisition.triggers}

    def close(self) -> None:
        """Take no more requests."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
