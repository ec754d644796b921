"""What a run knew of its flows, kept in its files: ``/entry_0000/flows``.

Masters and tables have it of the flows that feed them, the linking file of all. A group for each flow, by its name:

    start, step   first frame and step of the selected ones
    expected, received, lost, dropped, missing   frames; expected is the sum of the others
    frame_status  (expected,) uint8, what became of each of them (0 = received); only where some are absent

The attribute ``unmatched`` of ``flows`` is the number of frames that were not in all inputs of the joins before the
node of the file; only where there are such.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lima2cli.artefacts.inspection import Inspection, Unreadable
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.rows import WINDOW, windows
from lima2cli.artefacts.status import Status, Statuses
from lima2cli.artefacts.tree import ENTRY, group

FLOWS = f"{ENTRY}/flows"

COUNTS = ("expected", "received", "lost", "dropped", "missing")


@dataclass(frozen=True, eq=False)
class FlowRecord:
    """The account of one flow, in frames. Of its slices `Statuses`: what became of its frames.

    statuses   None where all were received
    """

    name: str
    start: int
    step: int
    expected: int
    received: int
    lost: int
    dropped: int
    missing: int
    statuses: Statuses | None = None

    @property
    def totals(self) -> dict[str, int]:
        """The counts by their names."""
        return {name: getattr(self, name) for name in COUNTS}

    def __getitem__(self, rows: slice, /) -> Status:
        """Of the frames of a slice."""
        if self.statuses is not None:
            return self.statuses[rows]
        first, last, _ = rows.indices(self.expected)
        return np.zeros(max(0, last - first), np.uint8)

    def write(self, flows: Any) -> None:
        """Into the group of all flows of a file."""
        own = group(flows, self.name, "NXcollection")
        for name, value in {"start": self.start, "step": self.step, **self.totals}.items():
            own[name] = value
        if self.received < self.expected:
            chunks = (min(WINDOW, self.expected),)
            made = own.create_dataset("frame_status", (self.expected,), "uint8", chunks=chunks, compression="gzip")
            for first, last in windows(self.expected):
                made[first:last] = self[first:last]


@dataclass(frozen=True)
class _Kept:
    """Statuses that are in a file; what the HDF5 library raises comes out of slices."""

    directory: str
    file: str
    flow: str

    def __getitem__(self, rows: slice, /) -> Status:
        with Inspection(self.directory, False).open(self.file) as file:
            status: Status = file[f"{FLOWS}/{self.flow}/frame_status"][rows]
            return status


def write_flows(entry: Any, flows: Iterable[FlowRecord], unmatched: int | None = None) -> None:
    """The accounts of ``flows`` into the entry of a new file; of no flow nothing."""
    kept = list(flows)
    if not kept:
        return
    made = group(entry, "flows", "NXcollection")
    if unmatched is not None:
        made.attrs["unmatched"] = unmatched
    for flow in kept:
        flow.write(made)


def kept_flows(inspection: Inspection) -> dict[str, FlowRecord]:
    """The accounts of flows that the files of a directory hold, by name. That two of them differ is told."""
    found: dict[str, tuple[str, FlowRecord]] = {}
    for name in inspection.ends:
        try:
            with inspection.open(name) as file:
                for flow, own in file.get(FLOWS, {}).items():
                    start, step, *counts = (int(own[key][()]) for key in ("start", "step", *COUNTS))
                    expected, received, lost, dropped, missing = counts
                    record = FlowRecord(flow, start, step, expected, received, lost, dropped, missing)
                    if record.received < record.expected:
                        record = replace(record, statuses=_Kept(inspection.directory, name, flow))
                    other, same = found.setdefault(flow, (name, record))
                    if same.totals != record.totals:
                        inspection.tell(f"{name}: its account of {flow} is not that of {other}")
        except Unreadable as error:
            inspection.tell_of(name, error)
    return {flow: record for flow, (_, record) in found.items()}


def kept_unmatched(inspection: Inspection, name: str) -> int | None:
    """Frames that joins before the node of a file left out; None where it tells of none."""
    try:
        with inspection.open(name) as file:
            value = file[FLOWS].attrs.get("unmatched") if FLOWS in file else None
            return None if value is None else int(value)
    except Unreadable:
        return None  # what is wrong with the file is told by those who read its rows


def cut_short(record: Record, expected: Mapping[str, int]) -> bool:
    """Whether fewer frames were expected of a flow that feeds a node, by name, than it selects: the run was stopped."""
    selected = {name: record.source(name)[2] for name in record.flows}
    return any(count < 0 or expected[name] < count for name, count in selected.items())


def expected_rows(record: Record, flows: Mapping[str, FlowRecord]) -> int | None:
    """How many rows a node should have after what its flows expected; None where one of them is not known."""
    frames = _frames(record, flows)
    if frames is None or record.window != 1:
        return None if frames is None else record.rows(frames)
    return frames if record.selected < 0 else min(frames, record.selected)


def whole_windows(record: Record, flows: Mapping[str, FlowRecord]) -> int | None:
    """How many of these rows a node can have: all but a last incomplete window. None where it is not known."""
    frames = _frames(record, flows) if record.window > 1 else None
    return None if frames is None else frames // record.window


def _frames(record: Record, flows: Mapping[str, FlowRecord]) -> int | None:
    """Frames that make the rows of a node; None where one of its flows is not known."""
    own = [flows[name] for name in record.flows if name in flows]
    if len(own) < len(record.flows):
        return None
    return record.frames((flow.start, flow.step, flow.expected) for flow in own)
