"""Progress of a run: reports, the detection of silence, and the answers to requests of users."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lima2cli.accounting.acquisitions import LiveAcquisition, entries_of
from lima2cli.accounting.detail import details, flow_figures
from lima2cli.errors import RunFailed
from lima2cli.messages import Tapped
from lima2cli.plan.figures import visible_figures
from lima2cli.plan.ir import Plan
from lima2cli.ranks.changing import Reply
from lima2cli.ranks.tapping import Tapping
from lima2cli.runs.description import wrong_description
from lima2cli.runs.requests import Requests, Tap
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
    raise RunFailed(f"{f'{reason}; then ' if reason else ''}{who} has sent nothing for {seconds_text(patience)}")


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


PERIOD_S = 0.1
"""Seconds from one report of progress to the next, while something happens."""

LONGEST_PERIOD_S = 86400
"""Maximal seconds from one frame that a user looks at to the next."""

SLOW_PERIOD_S = 0.5
"""The same while nothing does."""


class Progress:
    """Progress of the acquisition that runs."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._told_at = self._moved_at = time.monotonic()
        self._seen = -1
        self._news = False

    def begin(self, plan: Plan) -> None:
        """Begin an acquisition, as it was asked for: nothing of it has been seen."""
        self._plan, self._moved_at, self._seen = plan, time.monotonic(), -1

    def report(self) -> None:
        """Note that a receiver has reported."""
        self._news = True

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
        if now - self._told_at < (PERIOD_S if self._news else SLOW_PERIOD_S) and not (
            self._news and triggers_done(acquisition)
        ):
            return None
        self._told_at, self._news = now, False
        seen = sum(received + lost for received, lost in acquisition.totals(acquisition.plan).values())
        if seen != self._seen:
            self._seen, self._moved_at = seen, now
        return self.now(acquisition)

    def now(self, acquisition: LiveAcquisition) -> dict[str, Any]:
        """Return the event of how far an acquisition is."""
        plan = acquisition.plan
        return {
            "type": "progress",
            "acquisition": acquisition.outcome.number + 1,
            "seconds": (time.time_ns() - acquisition.outcome.start_ns) * 1e-9,
            "flows": flow_figures(plan, acquisition),
            "saved": acquisition.saved_totals(plan),
            "rows": acquisition.rows(plan),
        }


def triggers_done(acquisition: LiveAcquisition) -> bool:
    """Return whether all frames of the software triggers so far have arrived or are lost; False without any."""
    plan = acquisition.plan
    frames = acquisition.triggers * plan.acquisition.frames_per_trigger
    if not frames or plan.acquisition.trigger != "software":
        return False
    totals = acquisition.totals(plan)
    due = {gdt.flow: gdt.rule.selected(frames) or 0 for gdt in plan.gdts}
    if any(sum(totals[flow]) < count for flow, count in due.items()):
        return False
    rows = acquisition.rows(plan)
    entries = entries_of(plan)
    return all(
        count >= (entries[name].rule.selected(frames) or 0)
        if entries[name].complete
        else entries[name].window != 1 or acquisition.undecided(plan, name) >= frames
        for name, count in rows.items()
    )


def state_text(acquisition: LiveAcquisition, phase: str) -> str:
    """Return the state of a run in words: it may wait for a request to start, or for a trigger."""
    plan = acquisition.plan
    asked = plan.acquisition
    if phase == "armed":
        return "armed"
    fired = acquisition.triggers
    if phase == "running" and asked.trigger == "software" and (not fired or triggers_done(acquisition)):
        total = None if plan.frames is None else -(-plan.frames // asked.frames_per_trigger)
        if total is None or fired < total:
            return f"armed, waiting for trigger {fired + 1}" + ("" if total is None else f" of {total}")
    return phase


def status(acquisition: LiveAcquisition, phase: str, *, detail: bool = False) -> dict[str, Any]:
    """Return how far a run is, as plain data; ``flows`` are frames received and lost.

    detail  with all figures of flows and receivers (see `details`)
    """
    outcome, plan = acquisition.outcome, acquisition.plan
    more = {"detail": details(plan, acquisition), "visible": visible_figures(plan)} if detail else {}
    return {
        "ok": True,
        "phase": phase,
        "state": state_text(acquisition, phase),
        "acquisition": outcome.number + 1,
        "of": plan.repeat,
        "flows": {name: list(counts) for name, counts in acquisition.totals(plan).items()},
        "saved": acquisition.saved_totals(plan),
        "rows": acquisition.rows(plan),
        "triggers": acquisition.triggers,
        "seconds": (time.time_ns() - outcome.start_ns) * 1e-9 if outcome.start_ns else 0.0,
        "frames": plan.frames,
        **more,
    }


def no_trigger(acquisition: LiveAcquisition, phase: str, count: object) -> str | None:
    """Return why so many triggers are refused; None where they are not."""
    plan = acquisition.plan
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


Asked = tuple[int | None, float | None]
"""Frames (None = until stopped) and period in seconds (None = as fast as possible) of an acquisition."""


def not_to_be_had(plan: Plan, frames: Any, period_s: Any) -> str | None:
    """Return why an acquisition of so many frames, one a period, is refused; None where it is not.

    Memory, files and rates are planned before the start: there are no more frames than the pipeline has, and they are
    no faster.
    """
    if (frames, period_s) == (plan.frames, plan.period_s):
        return None
    if plan.detector.writes_itself:
        return "this detector is set up once: it has the frames and the period of the pipeline"
    if frames != plan.frames and (not isinstance(frames, int) or isinstance(frames, bool) or frames < 1):
        return "a number of frames is a whole number above 0"
    if plan.frames is not None and frames > plan.frames:
        return f"{frames} frames are too many: the pipeline is made for {plan.frames}"
    if period_s == plan.period_s:
        return None
    if isinstance(period_s, bool) or not isinstance(period_s, int | float) or not 0 < period_s <= LONGEST_PERIOD_S:
        return f"a period is a number of seconds above 0, {LONGEST_PERIOD_S} at most"
    if plan.period_s is not None and period_s < plan.period_s:
        made_for = seconds_text(plan.period_s)
        return f"a period of {seconds_text(period_s)} is too short: the pipeline is made for {made_for}"
    return None


class Answers:
    """Answers to requests of users.

    stop_asked, abort_asked  a user wants the run to stop, in order or at once
    asked       how many frames, and which period, of the acquisition that is to start; None where none is
    description  what is said of it; None where nothing is
    begin       is called when the last was asked for, so that a trigger may follow at once
    trigger     gets how many software triggers to fire
    tap         asks the receiver of a rank for the next frame of a flow or node
    change      begins a change of a parameter, whose answer comes later; returns why it is refused
    """

    def __init__(
        self,
        plan: Plan,
        begin: Callable[[], None],
        trigger: Callable[[int], None],
        tap: Callable[[int, str], None],
        change: Callable[[Mapping[str, Any], Reply], str | None],
    ) -> None:
        self._plan, self._begin, self._trigger, self._change = plan, begin, trigger, change
        self._later = 0
        self._tapping = Tapping(plan, tap)
        self._requests: Requests | None = None
        self.stop_asked = self.abort_asked = False
        self.asked: Asked | None = None
        self.description: Mapping[str, Any] | None = None

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

    def poll(self, look: Callable[[], tuple[LiveAcquisition, str]]) -> bool:
        """Answer the requests that have come; ``look`` returns the acquisition and the phase at each.

        Returns whether a frame is being sent to a user, which takes several turns.
        """
        if self._requests is None:
            return False
        sending = self._requests.poll(lambda request: self._answer(request, *look()))
        if self._requests.taps and look()[1] != "closing":
            self._tapping.look(self._requests.wanted())
        return sending

    def wait(self, seconds: float) -> None:
        """Wait for a request, so long at most."""
        if self._requests is None:
            time.sleep(seconds)
        else:
            self._requests.wait(seconds)

    def show(self, rank: int, tapped: Tapped) -> None:
        """Send a frame to the users that look at it."""
        head = self._tapping.came(rank, tapped)
        if self._requests is not None:
            self._requests.give(head, tapped.frame.reshape(-1).view(np.uint8).data)

    def push(self, event: Mapping[str, Any]) -> None:
        """Push an event to those that watch."""
        if self._requests is not None:
            self._requests.push(event)

    def _answer(self, request: Mapping[str, Any], acquisition: LiveAcquisition, phase: str) -> dict[str, Any]:
        do = request["do"]
        if do == "status":
            return status(acquisition, phase, detail=request.get("detail") is True)
        if do == "watch":
            return status(acquisition, phase) | {"watch": True}
        if do == "stop":
            self.stop_asked = True
            return {"ok": True}
        if do == "abort":
            self.abort_asked = True
            return {"ok": True}
        if do == "start":
            return self._start(request, phase)
        if do == "trigger":
            return self._fire(request.get("count", 1), acquisition, phase)
        if do == "tap":
            return self._tap(request)
        if do == "set":
            return self._set(request)
        return {"ok": False, "message": f"a run can't {do}: abort, set, start, status, stop, tap, trigger, watch"}

    def _set(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._later += 1
        number = self._later

        def reply(answer: dict[str, Any]) -> None:
            if self._requests is not None:
                self._requests.reply(number, answer)

        why = self._change(request, reply)
        return {"later": number} if why is None else {"ok": False, "message": why}

    def _tap(self, request: Mapping[str, Any]) -> dict[str, Any]:
        period, node = request.get("period", 0.0), request.get("node")
        if isinstance(period, bool) or not isinstance(period, int | float) or not 0 <= period <= LONGEST_PERIOD_S:
            return {"ok": False, "message": f"a period is a number of seconds from 0 to {LONGEST_PERIOD_S}"}
        why = self._tapping.refusal(node)
        if why is not None:
            return {"ok": False, "message": why}
        tap = Tap(str(node), period)
        mask = self._plan.visible[tap.node].mask
        if mask is not None and request.get("mask") is True:
            shape = list(mask.shape)
            head = {"type": "mask", "node": node, "dtype": "|b1", "shape": shape, "bytes": mask.size}
            tap.send(head, np.ascontiguousarray(mask).reshape(-1).view(np.uint8).data)
        return {"ok": True, "tap": tap}

    def _start(self, request: Mapping[str, Any], phase: str) -> dict[str, Any]:
        if not (phase == "armed" or (phase == "preparing" and self._plan.on_request)) or self.asked is not None:
            return {"ok": False, "message": f"nothing to start: the run is {phase}"}
        asked = request.get("frames", self._plan.frames), request.get("period", self._plan.period_s)
        why = not_to_be_had(self._plan, *asked)
        if why is None and "metadata" in request:
            why = wrong_description(request["metadata"])
        if why is not None:
            return {"ok": False, "message": why}
        self.asked, self.description = asked, request.get("metadata")
        self._begin()
        return {"ok": True}

    def _fire(self, count: Any, acquisition: LiveAcquisition, phase: str) -> dict[str, Any]:
        why = no_trigger(acquisition, phase, count)
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
