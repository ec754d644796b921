"""The pipeline that is the base: what clients do not say is as it says, and what it can do is what they are told."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lima2cli.diagnostics import Findings
from lima2cli.document import load, plain
from lima2cli.drive import PipelineInvalid, compile_pipeline
from lima2cli.errors import UnreadableInput
from lima2cli.plan.ir import Plan
from lima2cli.web.conductor.mapping import NODES, Base
from lima2cli.web.conductor.parameters import LONGEST_US, MOST_PER_TRIGGER, Defaults

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
