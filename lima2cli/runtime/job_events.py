"""What the control rank tells the launcher of a job, as plain data: each is a line of its progress."""

from typing import Any

from lima2cli.plan.records import Plan
from lima2cli.runtime.acquisition import Acquisition
from lima2cli.runtime.messages import Failure

Event = dict[str, Any]


def started(plan: Plan, acquisition: Acquisition) -> Event:
    """An acquisition begins."""
    number, directory = acquisition.outcome.number + 1, acquisition.directory
    return {"type": "start", "name": plan.name, "frames": plan.frames, "directory": directory,
            "acquisition": number, "of": plan.repeat}  # fmt: skip


def completed(plan: Plan, acquisition: Acquisition) -> Event:
    """One of several acquisitions has ended, and its files are written."""
    it = acquisition.outcome
    return {"type": "acquisition", "number": it.number + 1, "of": plan.repeat, "state": it.verdict[0],
            "directory": acquisition.directory, "frames": it.frames, "dead_time_s": it.dead_s}  # fmt: skip


def failed(failure: Failure) -> Event:
    """Something went wrong on a rank."""
    return {"type": "error", "message": failure.message, "rank": failure.rank, "node": failure.node,
            "frame": failure.frame, "detail": failure.detail}  # fmt: skip


def said(event: str, message: str) -> Event:
    """Something that people should read."""
    return {"type": "event", "event": event, "message": message}
