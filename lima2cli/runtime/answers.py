"""What users ask of a run that goes on (``stop``, ``trigger``, ``status``), and what they are answered."""

from collections.abc import Callable, Mapping
from typing import Any

from lima2cli.plan.records import Plan
from lima2cli.runtime.acquisition import Acquisition
from lima2cli.runtime.requests import Requests
from lima2cli.runtime.status import no_trigger, status


class Answers:
    """``stop_asked``: somebody wants the run to stop; ``trigger`` gets how many software triggers to fire."""

    def __init__(self, plan: Plan, trigger: Callable[[int], None]) -> None:
        self._plan, self._trigger = plan, trigger
        self._requests: Requests | None = None
        self.stop_asked = False

    def listen(self, directory: str) -> None:
        """From now on requests are taken, and ``directory`` says where. OSError where that can't be."""
        self._requests = Requests()
        self._requests.announce(directory)

    def announce(self, directory: str) -> None:
        """Another directory says so, too, if requests are taken. OSError."""
        if self._requests is not None:
            self._requests.announce(directory)

    def poll(self, acquisition: Acquisition, phase: str) -> None:
        """Answer what has come, as things stand."""
        if self._requests is not None:
            self._requests.poll(lambda request: self._answer(request, acquisition, phase))

    def _answer(self, request: Mapping[str, Any], acquisition: Acquisition, phase: str) -> dict[str, Any]:
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
        """No more requests are taken."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
