"""The acquisition system that clients see, and the pipeline that is its base; one command at a time."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lima2cli.diagnostics import Findings
from lima2cli.document import load, plain
from lima2cli.drive import PipelineInvalid, Run, compile_pipeline, run
from lima2cli.errors import Lima2Error, UnreadableInput
from lima2cli.plan.ir import Plan
from lima2cli.web.conductor.acquisition import AcquisitionRun
from lima2cli.web.conductor.mapping import LONGEST_US, MOST_PER_TRIGGER, NODES, Base, Defaults, mapped
from lima2cli.web.conductor.refusals import Refused

EXPOSURE_US = 10_000
"""Microseconds of an exposure where the base says nothing."""

PLUGINS = {"remu": "Simulator", "dectris": "Dectris", "smartpix": "Smartpix"}
"""Names of Lima2's plugins for kinds of detectors; that of others is the kind."""

VERSION = "core-1.2.0"
"""Version of plugin and processing that is stated: clients accept those that they know."""


class BaseFile:
    """A pipeline file as base. ``file``: its path; ``base``: what parameters need to know of it."""

    def __init__(self, file: str) -> None:
        """Check and compile it.

        Raises:
            UnreadableInput: it can't be read, has mistakes, or cannot be a base.
        """
        self.file = file
        try:
            self.plan = plan = compile_pipeline(file)
        except PipelineInvalid as error:
            raise UnreadableInput(f"{file} has mistakes: {error}; `lima2 validate {file}` shows them") from error
        if plan.repeat != 1:
            raise UnreadableInput(f"{file}: `repeat` is for clients to do")
        self.can = plan.detector.retrieve(plan.info)
        written = _written(file)
        self.base = Base(_flow(plan, file), plan.info.kind, "rate" in _table(written, "acquisition"), _defaults(plan))
        if taken := sorted(set(NODES) & _table(written, "nodes").keys()):
            raise UnreadableInput(f"{file}: nodes of clients have these names: {', '.join(taken)}")

    @property
    def info(self) -> dict[str, Any]:
        """The detector, as Lima2 tells of it. Lengths are in metres; a pixel size of 0 is not known."""
        info = self.plan.info
        x, y = info.pixel_size or (0.0, 0.0)
        return {
            "plugin": PLUGINS.get(info.kind, info.kind), "model": info.name, "sn": "", "pixel_size": {"x": x, "y": y},
            "dimensions": {"x": info.width, "y": info.height},
        }  # fmt: skip

    @property
    def capabilities(self) -> dict[str, Any]:
        """The capabilities of the detector: limits of parameters, not those of hardware; times in nanoseconds."""
        most = min(self.can.frames_per_trigger or MOST_PER_TRIGGER, MOST_PER_TRIGGER)
        return {
            "trigger_modes": list(self.can.triggers),
            "expo_time_range": [1000, LONGEST_US * 1000],
            "latency_time_range": [0, LONGEST_US * 1000],
            "nb_frames_per_trigger_range": [1, most],
        }


def _written(file: str) -> Mapping[str, Any]:
    """Return what a pipeline file, which has been checked, says."""
    document = load(Path(file).read_text(encoding="utf-8"), file, Findings(), environment=os.environ)
    assert document is not None
    found = plain(document.root)
    return found if isinstance(found, dict) else {}


def _table(written: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = written.get(key)
    return found if isinstance(found, dict) else {}


def _flow(plan: Plan, file: str) -> str:
    """Return the data flow that clients get."""
    flows = dict.fromkeys(gdt.flow for gdt in plan.gdts)
    whole = [flow for flow in flows if flow in plan.visible]
    if len(flows) != 1 or not whole:
        raise UnreadableInput(f"{file}: one data flow of whole frames is needed, it has {', '.join(flows) or 'none'}")
    return whole[0]


def _defaults(plan: Plan) -> Defaults:
    period_s, exposure_s = plan.period_s, plan.acquisition.exposure_s
    exposure_us = EXPOSURE_US if exposure_s is None else round(exposure_s * 1e6)
    if exposure_s is None and period_s is not None:
        exposure_us = round(period_s * 1e6)
    latency_us = 0 if period_s is None else max(0, round(period_s * 1e6) - exposure_us)
    can = plan.detector.retrieve(plan.info)
    return Defaults(
        frames=plan.frames or 1,
        expo_us=max(1, exposure_us),
        latency_us=latency_us,
        triggers=can.triggers,
        trigger=plan.acquisition.trigger,
        frames_per_trigger=plan.acquisition.frames_per_trigger,
        instrument=str(_table(plan.record, "metadata").get("instrument", "instrument")),
        detector=plan.info.name,
    )


STATES = {"armed": "PREPARED", "running": "RUNNING", "ended": "IDLE", "failed": "FAULT"}
"""State of the devices, by that of the acquisition."""

CONDUCTOR = {"armed": "READY", "running": "RUNNING", "ended": "IDLE", "failed": "IDLE"}

RUN_STATES = {"armed": ("IDLE", 1), "running": ("RUNNING", 2), "ended": ("IDLE", 1), "failed": ("FAULT", 48)}
"""State of the acquisition: the name and the flag."""


MOST_KEPT = 16
"""Acquisitions, the current one among them, that clients can ask for."""


class System:
    """A detector and its receivers, driven by clients. ``base``: its pipeline. Methods wait: call them in threads."""

    def __init__(self, base: BaseFile, transport: str = "auto") -> None:
        self.base, self._transport = base, transport
        self._command = threading.Lock()
        self._acquisitions: dict[str, AcquisitionRun] = {}
        self._current: AcquisitionRun | None = None
        self._request: Mapping[str, Any] = {}

    @contextmanager
    def _one_command(self) -> Iterator[None]:
        if not self._command.acquire(blocking=False):
            raise Refused(20, "another command is in progress")
        try:
            yield
        finally:
            self._command.release()

    @property
    def acquisition_state(self) -> str:
        """State of the acquisition; ``ended`` where there is none."""
        return "ended" if self._current is None else self._current.state

    @property
    def state(self) -> dict[str, Any]:
        """The state of all, as clients see it."""
        state = self.acquisition_state
        devices = ["control", *self.base.plan.receivers]
        return {
            "state": STATES[state], "conductor": CONDUCTOR[state], "devices": dict.fromkeys(devices, STATES[state])
        }  # fmt: skip

    def prepare(self, request: Mapping[str, Any]) -> str:
        """Arm a run, and return its name. The same request again gives the same run, while it is armed.

        Raises:
            Refused: a parameter is wrong, or an acquisition is running.
            Lima2Error: as `lima2cli.drive.run`.
        """
        with self._one_command():
            if self.acquisition_state == "running":
                raise Refused(30, "an acquisition is running")
            current = self._current
            if current is not None and current.state == "armed" and request == self._request:
                return current.uuid
            asked = mapped(self.base.base, request)
            self._discard()
            started = self._launch(asked.overrides)
            try:
                made = AcquisitionRun(started, asked, self.base.base.flow)
            except Lima2Error:  # it has ended just now
                started.stop()
                raise
            self._current = made
            self._acquisitions[made.uuid], self._request = made, request
            for name in list(self._acquisitions)[:-MOST_KEPT]:
                self._acquisitions.pop(name).close()
            return made.uuid

    def _launch(self, overrides: tuple[str, ...]) -> Run:
        return run(self.base.file, armed=True, transport=self._transport, overrides=overrides, apart=True)

    def _discard(self) -> None:
        """End the acquisition that is armed, if there is one."""
        if self._current is not None and self._current.state == "armed":
            self._current.discard()
            del self._acquisitions[self._current.uuid]
            self._current = None

    def start(self) -> None:
        """Start the acquisition that is prepared. Raises `Refused`."""
        with self._one_command():
            if self._current is None or self._current.state != "armed":
                running = self.acquisition_state == "running"
                raise Refused(30, "an acquisition is running already" if running else "no acquisition is prepared")
            self._current.start()

    def trigger(self) -> None:
        """Fire a software trigger; without an acquisition that is running nothing happens. Raises `StateError`."""
        if self._current is not None and self._current.state == "running":
            self._current.run.trigger()

    def stop(self) -> None:
        """Stop the acquisition, and wait for its files; one that was stopped before stays so. Raises `Refused`."""
        with self._one_command():
            if self._current is None or (self._current.state != "running" and not self._current.stopped):
                raise Refused(30, "no acquisition is running")
            self._current.stop()

    def reset(self) -> None:
        """Forget the acquisition. Raises `Refused` where it is running."""
        with self._one_command():
            if self.acquisition_state == "running":
                raise Refused(30, "an acquisition is running: stop it first")
            self._discard()
            self._current = None

    def close(self) -> None:
        """End what was never started; a run goes on. To be called once, at the end."""
        with self._command:
            self._discard()
            for one in self._acquisitions.values():
                one.close()

    @property
    def names(self) -> list[str]:
        """Names of all acquisitions that are known."""
        return list(self._acquisitions)

    def acquisition(self, name: str = "current") -> AcquisitionRun:
        """Return an acquisition by its name. Raises `Refused`."""
        found = self._current if name == "current" else self._acquisitions.get(name)
        if found is None:
            raise Refused(50, "nothing is prepared" if name == "current" else f"there is no acquisition {name}")
        return found

    def of_current(self, read: Callable[[AcquisitionRun], Any], default: Any) -> Any:
        """Return what is read of the current acquisition; a default where there is none."""
        return default if self._current is None else read(self._current)

    def clear(self) -> list[str]:
        """Forget all acquisitions but the current one, and return their names; their files stay."""
        old = [name for name, one in self._acquisitions.items() if one is not self._current]
        for name in old:
            self._acquisitions.pop(name).close()
        return old

    @property
    def result(self) -> dict[str, Any]:
        """The result of the current acquisition."""
        current = self._current
        if current is None or current.state in ("armed", "running"):
            return {"type": "unknown"}
        if current.state == "failed":
            errors = {"acquisition": current.errors(), "processing": []}
            return {"type": "failure", "errors": errors, "warnings": current.warnings()}
        return {"type": "success", "warnings": current.warnings()}
