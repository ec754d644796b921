"""Answers of a run to requests of users."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lima2cli.accounting.acquisitions import LiveAcquisition
from lima2cli.errors import StateError
from lima2cli.frames import SparseSpec
from lima2cli.messages import Tapped
from lima2cli.plan.ir import Plan
from lima2cli.ranks.progress import status
from lima2cli.ranks.requested import Requested, Tapping
from lima2cli.runs.description import wrong_description
from lima2cli.runs.requests import Requests, Tap
from lima2cli.units import seconds_text

LONGEST_PERIOD_S = 86400
"""Maximal seconds from one frame that a user looks at to the next."""


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
    """

    def __init__(self, plan: Plan, requested: Requested) -> None:
        self._plan, self._requested = plan, requested
        self._later = 0
        self._tapping = Tapping(plan, requested.tap)
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
            detail = request.get("detail") is True
            return status(acquisition, phase, detail=detail) | (self._requested.figures if detail else {})
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

        why = self._requested.change(request, reply)
        return {"later": number} if why is None else {"ok": False, "message": why}

    def _tap(self, request: Mapping[str, Any]) -> dict[str, Any]:
        period, node = request.get("period", 0.0), request.get("node")
        if isinstance(period, bool) or not isinstance(period, int | float) or not 0 <= period <= LONGEST_PERIOD_S:
            return {"ok": False, "message": f"a period is a number of seconds from 0 to {LONGEST_PERIOD_S}"}
        why = self._tapping.refusal(node)
        if why is not None:
            return {"ok": False, "message": why}
        tap = Tap(str(node), period)
        spec = self._plan.visible[tap.node]
        mask = spec.mask
        if mask is not None and isinstance(spec, SparseSpec) and mask.shape != spec.detector[::-1]:
            mask = None  # images are of the whole detector, and it is not
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
        if why is None and "directory" in request and phase != "armed":
            why = f"not yet: the run is {phase}, and its directory can be moved when it is armed"
        if why is not None:
            return {"ok": False, "message": why}
        moved = {}
        if "directory" in request:  # last: all else is as it should be
            try:
                moved = {"directory": self._requested.move(request["directory"])}
            except StateError as error:
                return {"ok": False, "message": str(error)}
            if self._requests is not None:
                self._requests.moved(moved["directory"])
        self.asked, self.description = asked, request.get("metadata")
        self._requested.begin()
        return {"ok": True, **moved}

    def _fire(self, count: Any, acquisition: LiveAcquisition, phase: str) -> dict[str, Any]:
        why = no_trigger(acquisition, phase, count)
        if why is not None:
            return {"ok": False, "message": why}
        acquisition.triggers += count
        self._requested.trigger(count)
        return {"ok": True, "triggers": acquisition.triggers}

    def close(self) -> None:
        """Take no more requests."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
