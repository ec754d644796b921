"""What a run tells of itself when it is asked, and which software triggers it takes."""

import time
from typing import Any

from lima2cli.plan.records import Plan
from lima2cli.runtime.acquisition import Acquisition


def status(plan: Plan, acquisition: Acquisition, phase: str) -> dict[str, Any]:
    """How far a run is, as plain data; ``flows`` are frames received and lost."""
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


def no_trigger(plan: Plan, acquisition: Acquisition, phase: str, count: object) -> str | None:
    """Why so many triggers are refused; None where they are not."""
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
