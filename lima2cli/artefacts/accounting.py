"""What became of every frame of a run, from its files alone, in memory that does not grow with the run.

What is saved is counted in the files. What became of the other frames only the run knew: the files that it made at its
end keep that. Where none of them is left, a frame that should be in a file and is not counts as missing; of flows whose
frames need not be in files, because nodes sum, join or choose them, it is then unknown: None.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from lima2cli.artefacts.common_holding import Common
from lima2cli.artefacts.file_names import master_file, table_file
from lima2cli.artefacts.flow_record import COUNTS, FlowRecord, expected_rows, kept_flows, whole_windows
from lima2cli.artefacts.frame_holding import Frames
from lima2cli.artefacts.holdings import Holding, Table
from lima2cli.artefacts.inspection import Inspection, Unreadable
from lima2cli.artefacts.progressions import Progressions, range_list
from lima2cli.artefacts.rows import windows
from lima2cli.artefacts.status import DROPPED, INCOMPLETE, LOST, SAVED, Status, told
from lima2cli.artefacts.tree import MEASUREMENT
from lima2cli.artefacts.verification import verify_structure

VERSION = 1

H = TypeVar("H", bound=Holding)


def inspect_run(directory: str, *, verify: bool = False) -> dict[str, Any]:
    """The accounting of a run directory, from its files: ``{"version", "flows", "channels", "tables", "problems",
    "warnings"}``.

    verify     read every frame, and hold it against its checksum, so that damage is found
    problems   plain sentences: missing, short or unreadable files, frames that are not where the master says
    warnings   plain sentences: what no file tells; its numbers are None

    OSError where the directory can't be listed.
    """
    inspection = Inspection(directory, verify)
    with inspection.reader:
        return _inspected(inspection)


def _inspected(inspection: Inspection) -> dict[str, Any]:
    directory = inspection.directory
    flows = kept_flows(inspection)
    if inspection.verify:
        for name in inspection.files:
            verify_structure(inspection, name)
    channels: list[Holding] = []
    tables: list[Table] = []
    for record in inspection.records(("master", "frames", "written")):
        with _told(inspection, master_file(record.name, record.node)):
            channels.append(_counted((Common if record.layout == "common" else Frames)(inspection, record), flows))
    for record in inspection.records(("table", "rows")):
        with _told(inspection, table_file(record.name, record.node)):
            tables.append(_counted(Table(inspection, record), flows))
    holdings = [*channels, *tables]
    if not holdings:
        inspection.tell(f"{directory} holds no file of a run")
    names = dict.fromkeys([*(flow for it in holdings for flow in it.record.flows), *flows])
    warnings: list[str] = []
    for node, count in inspection.unchecked.items():
        which = f"{count} frame{'s have' if count != 1 else ' has'} no checksum"
        warnings.append(f"{node}: {which}: nothing tells whether all is as it was written")
    return {
        "version": VERSION,
        "flows": {name: _flow(name, holdings, flows.get(name), inspection, warnings) for name in names},
        "channels": {it.record.node: _channel(it, directory, warnings) for it in channels},
        "tables": {it.record.node: {"rows": it.rows, **_unmatched(it), "file": it.file} for it in tables},
        "problems": inspection.problems,
        "warnings": warnings,
    }


@contextmanager
def _told(inspection: Inspection, name: str) -> Iterator[None]:
    """What can't be read of the files of one node is a problem, and hides no other."""
    try:
        yield
    except Unreadable as error:
        inspection.tell_of(name, f"it, or a file that belongs to it, can't be read: {error}")


def _counted(holding: H, flows: Mapping[str, FlowRecord]) -> H:
    """A node's rows, looked at."""
    _tell_flows(holding, flows)
    holding.check_rows(flows)
    holding.count()
    return holding


def _tell_flows(holding: Holding, flows: Mapping[str, FlowRecord]) -> None:
    """What the accounts of flows say about a node: its windows, and, where it has no master, its rows."""
    holding.whole = whole_windows(holding.record, flows)
    if holding.dataset is not None:
        return
    expected = expected_rows(holding.record, flows)
    if expected is not None:
        holding.expected = expected
    if holding.record.complete:
        holding.told = flows.get(holding.record.flow)


def _flow(
    name: str, holdings: Sequence[Holding], record: FlowRecord | None, inspection: Inspection, warnings: list[str]
) -> dict[str, Any]:
    """A flow as the run told of it, without the frames that are in no file any more; else as its nodes have it."""
    own = [it for it in holdings if name in it.record.flows]
    complete = [it for it in own if it.record.complete]
    if record is not None:
        expected, start, step = record.expected, record.start, record.step
    elif complete:
        # a table has no rows for frames that came late in a stopped run: what a master expects is true
        expected = max(it.expected for it in [it for it in complete if it.dataset is not None] or complete)
        start, step, _ = complete[0].record.source(name)
    else:
        return _proven(name, own, warnings)
    looked = complete if record is None or any(it.gone for it in complete) else []
    counts, absent = dict.fromkeys((SAVED, LOST, DROPPED, INCOMPLETE), 0), Progressions()
    for holding in looked:
        holding.rewind()
    for first, last in windows(expected if record is None or looked or record.statuses is not None else 0):
        try:
            status = _status(record, looked, first, last)
        except Unreadable as error:
            inspection.tell(f"{name}: its account can't be read: {error}")
            break
        for value in counts:
            counts[value] += int(np.count_nonzero(status == value))
        absent.add(((np.flatnonzero(status != SAVED) + first) * step + start)[:, None])
    for holding in looked:
        holding.release()
    if record is not None and not looked:
        return {**record.totals, "missing_frames": range_list(absent)}
    numbers = (expected, counts[SAVED], counts[LOST], counts[DROPPED], counts[INCOMPLETE])
    return {**dict(zip(COUNTS, numbers, strict=True)), "missing_frames": range_list(absent)}


def _status(record: FlowRecord | None, looked: Sequence[Holding], first: int, last: int) -> Status:
    """What became of frames: as the run told, but lost where they were saved and are gone; else as nodes have them."""
    status = told(record, first, last)
    seen = [holding.look(first, last) for holding in looked]
    if record is None:
        for value in (DROPPED, LOST, SAVED):
            for one, _ in seen:
                status[: len(one)][one[: len(status)] == value] = value
        return status
    gone, found = np.zeros(len(status), bool), np.zeros(len(status), bool)
    for one, missing in seen:
        found[: len(one)] |= one == SAVED
        gone[: len(missing)] |= missing
    status[gone & ~found & (status == SAVED)] = LOST
    return status


def _proven(name: str, own: Sequence[Holding], warnings: list[str]) -> dict[str, Any]:
    """A flow of which nobody tells: known only where saved rows are made of all its frames."""
    _, _, expected = own[0].record.source(name)
    if 0 <= expected <= max(it.saved * max(1, it.record.window) for it in own):
        return {"expected": expected, "received": expected, "lost": 0, "dropped": 0, "missing": 0, "missing_frames": []}
    warnings.append(f"{name}: no file tells what became of its frames")
    return {**dict.fromkeys(COUNTS), "expected": None if expected < 0 else expected, "missing_frames": None}


def _channel(holding: Holding, directory: str, warnings: list[str]) -> dict[str, Any]:
    """A channel that was counted: what is not saved and was neither vetoed nor dropped counts as lost."""
    vetoed = 0 if holding.saved == holding.expected else holding.vetoed
    dropped = holding.dropped if holding.knows else None
    lost = None if vetoed is None or dropped is None else holding.expected - holding.saved - vetoed - dropped
    if vetoed is None:
        warnings.append(f"{holding.record.node}: no file tells how many frames were vetoed")
    elif dropped is None:
        warnings.append(f"{holding.record.node}: no file tells why frames are not saved")
    return {
        "expected": holding.expected,
        "saved": holding.saved,
        "vetoed": vetoed,
        "dropped": dropped,
        "lost": lost,
        **_unmatched(holding),
        "dataset": None if holding.dataset is None else f"{holding.dataset}::/{MEASUREMENT}/data",
        "files": holding.files,
        "bytes": sum(os.path.getsize(os.path.join(directory, name)) for name in holding.files),
    }


def _unmatched(holding: Holding) -> dict[str, int]:
    """Frames that were not in all inputs of joins, where the files tell of such."""
    return {} if holding.unmatched is None else {"unmatched": holding.unmatched}
