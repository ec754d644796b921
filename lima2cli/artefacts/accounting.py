"""What became of every frame of a run, recomputed from its files alone, in memory that does not grow with the run."""

import os
from typing import Any

import numpy as np

from lima2cli.artefacts.common_holding import Common
from lima2cli.artefacts.holdings import Frames, Holding, Table
from lima2cli.artefacts.inspection import Inspection
from lima2cli.artefacts.progressions import Progressions, range_list
from lima2cli.artefacts.rows import windows
from lima2cli.artefacts.status import DROPPED, INCOMPLETE, LOST, SAVED
from lima2cli.artefacts.tree import ENTRY

VERSION = 1


def inspect_run(directory: str, *, verify: bool = False) -> dict[str, Any]:
    """The accounting of a run directory, from its files: ``{"version", "flows", "channels", "problems"}``.

    verify     read every frame, so that unreadable chunks are found
    problems   plain sentences: missing, short or unreadable files, frames that are not where the master says

    OSError where the directory can't be listed.
    """
    inspection = Inspection(directory, verify)
    holdings: list[Holding] = [
        (Common if record.layout == "common" else Frames)(inspection, record)
        for record in inspection.records(("master", "frames", "written"))
    ]
    holdings += [Table(inspection, record) for record in inspection.records(("table", "rows"))]
    if not holdings:
        inspection.tell(f"{directory} holds no file of a run")
    flows: dict[str, list[Holding]] = {}
    for holding in holdings:
        flows.setdefault(holding.record.flow, []).append(holding)
    return {
        "version": VERSION,
        "flows": {name: _flow(own) for name, own in flows.items()},
        "channels": {it.record.node: _channel(it, directory) for it in holdings if not it.is_table},
        "problems": inspection.problems,
    }


def _flow(holdings: list[Holding]) -> dict[str, Any]:
    """A flow: a frame was received where any of its nodes has it; a master knows why one was not."""
    expected = max(it.expected for it in [it for it in holdings if not it.is_table] or holdings)
    record, absent = holdings[0].record, Progressions()
    counts = dict.fromkeys((SAVED, LOST, DROPPED, INCOMPLETE), 0)
    for first, last in windows(max(it.expected for it in holdings)):
        status = np.full(last - first, INCOMPLETE, np.uint8)
        told = [it.status(first, last) for it in holdings]
        for value in (DROPPED, LOST, SAVED):
            for one in told:
                status[: len(one)][one == value] = value
        status = status[: max(0, expected - first)]
        for value in counts:
            counts[value] += int(np.count_nonzero(status == value))
        rows = np.flatnonzero(status != SAVED) + first
        absent.add((rows * record.step + record.start)[:, None])
    for holding in holdings:
        holding.end()
    return {
        "expected": expected,
        "received": counts[SAVED],
        "lost": counts[LOST],
        "dropped": counts[DROPPED],
        "missing": counts[INCOMPLETE],
        "missing_frames": range_list(absent),
    }


def _channel(holding: Holding, directory: str) -> dict[str, Any]:
    """A channel whose flow was gone through: what is not saved and was not dropped counts as lost."""
    return {
        "expected": holding.expected,
        "saved": holding.saved,
        "vetoed": holding.vetoed,
        "dropped": holding.dropped,
        "lost": holding.expected - holding.saved - holding.vetoed - holding.dropped,
        "dataset": None if holding.dataset is None else f"{holding.dataset}::/{ENTRY}/measurement/data",
        "files": holding.files,
        "bytes": sum(os.path.getsize(os.path.join(directory, name)) for name in holding.files),
    }
