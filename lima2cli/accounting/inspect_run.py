"""Accounting of every frame of a run from its files alone, in memory that does not grow with their number."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from lima2cli.accounting.claims import Claims
from lima2cli.accounting.holdings import (
    Claimed,
    Holding,
    TableHolding,
    last_listed,
    verify_common,
    verify_frames,
    verify_structure,
)
from lima2cli.files.common_file import written_rows_files
from lima2cli.files.inspection import Inspection, Unreadable, detector_of
from lima2cli.files.master import by_receiver, frame_files, receiver_of
from lima2cli.files.nexus import MEASUREMENT, ChannelRecord, master_file, table_file
from lima2cli.files.rows import (
    DROPPED,
    INCOMPLETE,
    LOST,
    READ,
    SAVED,
    Progressions,
    RowIndices,
    Status,
    range_list,
    rows_of,
    told,
    windows,
)
from lima2cli.files.run_file import COUNTS, FlowRecord, expected_rows, kept_flows, kept_unmatched, whole_windows
from lima2cli.files.sparse_writer import whole_rows


class CommonHolding(Claimed):
    """A channel whose receivers write one file: that file, or, where it is not complete, their notes about it."""

    def __init__(self, inspection: Inspection, record: ChannelRecord) -> None:
        super().__init__(inspection, record)
        self._written: list[str] = []
        if record.role == "master":
            self._open()
        if self._claims is not None:
            self.dataset, self.files, self.expected = self._master, [self._master], self._claims.expected
            self.unmatched = kept_unmatched(inspection, self._master)
        else:
            inspection.tell(f"{self._master} is missing or unreadable: `lima2 recover` rebuilds it")
            self._written = written_rows_files(inspection.directory, record.name, record.node)
            self.expected = max(record.planned, 1 + self._last_listed(self._written))

    def _reads(self) -> list[Iterator[Sequence[RowIndices]]]:
        if self._claims is not None:
            return [self._claims.saved()]
        return [self._listed(name) for name in self._written]

    def _open(self) -> None:
        try:
            if self._inspection.verify:
                with self._inspection.open(self._master) as file:
                    verify_common(self._inspection, self.record.node, self._master, detector_of(file))
            self._claims = Claims(self._inspection, self.record, self._master)
        except Unreadable as error:
            self._inspection.tell(f"{self._master}: {error}")


class FrameHolding(Claimed):
    """A channel: its frame files, and its master compared with them."""

    def __init__(self, inspection: Inspection, record: ChannelRecord) -> None:
        super().__init__(inspection, record)
        self._counts: dict[str, int] = {}
        self._last = -1
        for name in frame_files(inspection.directory, record.name, record.node):
            try:
                self._open(name)
            except Unreadable as error:
                inspection.tell_of(name, error)
        self.files = list(self._counts)
        if record.role == "master":
            self._open_master()
        if self._claims is not None:
            self.dataset, self.expected = self._master, self._claims.expected
            self.vetoed = self._claims.vetoed if record.filtered else 0
            self.unmatched = kept_unmatched(inspection, self._master)
        else:
            inspection.tell(f"{self._master} is missing or unreadable: `lima2 recover` rebuilds it")
            self.expected = max(record.planned, 1 + self._last)

    def _reads(self) -> list[Iterator[Sequence[RowIndices]]]:
        return [self._read(names) for names in by_receiver(self.files)]

    def _open(self, name: str) -> None:
        """Note how many frames a file has."""
        with self._inspection.open(name) as file:
            detector = detector_of(file)
            frames, numbers = whole_rows(detector["data"]), len(detector["frame_number"])
            if frames != numbers:
                self._inspection.tell(f"{name}: {frames} frames but {numbers} frame numbers")
            count = min(frames, numbers)
            self._last = max(self._last, last_listed(detector["frame_number"], count, self.record))
            self._counts[name] = count
            if self._inspection.verify:
                verify_frames(self._inspection, self.record.node, name, detector)

    def _open_master(self) -> None:
        """Open the claims of the master; its sources must exist and be long enough."""
        inspection = self._inspection
        try:
            self._claims = claims = Claims(inspection, self.record, self._master)
            if inspection.verify:
                with inspection.open(self._master) as file:
                    verify_frames(inspection, self.record.node, self._master, detector_of(file))
        except Unreadable as error:
            inspection.tell(f"{self._master}: {error}")
            return
        for source in () if claims.sources is None else claims.sources.all:
            held = self._counts.get(source.name)
            if held is not None and not claims.shows_whole(source, receiver_of(source.name)):
                inspection.tell(f"{source.name}: {self._master} does not show its frames where they belong")
            if held is not None and source.origin.last >= held:
                inspection.tell(f"{source.name} is short: it has {held} frames, {self._master} needs more")
            elif held is None and not os.path.exists(os.path.join(inspection.directory, source.name)):
                inspection.tell(f"{source.name} is missing")

    def _read(self, names: Sequence[str]) -> Iterator[Sequence[RowIndices]]:
        """Yield the rows of the files of one receiver; they must be those that the master shows."""
        for name in names:
            try:
                with self._inspection.open(name) as file:
                    detector = detector_of(file)
                    for first, last in windows(self._counts[name], READ):
                        rows = rows_of(detector["frame_number"][first:last], self.record.start, self.record.step)
                        if self._claims is not None:
                            self._claims.check_files(name, first, last, rows, detector["frame_time"][first:last])
                            if self._claims.sparse:
                                self._check_pixels(name, first, last, self._claims.places(rows))
                        yield (rows,)
            except Unreadable as error:
                self._inspection.tell_of(name, error)

    def _check_pixels(self, name: str, first: int, last: int, rows: RowIndices) -> None:
        """Check that a file has as many pixels of each frame as the master's copy, where they are rows ``rows``."""
        with self._inspection.open(name) as file, self._inspection.open(self._master) as master:
            held, shown = detector_of(file)["frame_pixels"][first:last], detector_of(master)["frame_pixels"]
            inside = (rows >= 0) & (rows < len(shown))
            if not inside.any():
                return
            low = int(rows[inside].min())
            there = shown[low : int(rows[inside].max()) + 1][rows[inside] - low]
            if (there != held[inside] if self.record.parts == 1 else there < held[inside]).any():
                self._inspection.tell(f"{name}: {self._master} has other numbers of pixels of its frames")


VERSION = 1

H = TypeVar("H", bound=Holding)


def inspect_run(directory: str, *, verify: bool = False) -> dict[str, Any]:
    """Return the accounting of a run directory, from its files.

    It is ``{"version", "flows", "channels", "tables", "problems", "warnings"}``.

    verify     read every frame, and compare it with its checksum, so that damage is found
    problems   plain sentences: missing, short or unreadable files, frames that are not where the master has them
    warnings   plain sentences: what no file has; its numbers are None

    Raises:
        OSError: the directory can't be listed.
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
    tables: list[TableHolding] = []
    for record in inspection.records(("master", "frames", "written")):
        with _told(inspection, master_file(record.name, record.node)):
            channels.append(
                _counted((CommonHolding if record.layout == "common" else FrameHolding)(inspection, record), flows)
            )
    for record in inspection.records(("table", "rows")):
        with _told(inspection, table_file(record.name, record.node)):
            tables.append(_counted(TableHolding(inspection, record), flows))
    holdings = [*channels, *tables]
    if not holdings:
        inspection.tell(f"{directory} holds no file of a run")
    names = dict.fromkeys([*(flow for holding in holdings for flow in holding.record.flows), *flows])
    warnings: list[str] = []
    for node, count in inspection.unchecked.items():
        amount = f"{count} frame{'s have' if count != 1 else ' has'} no checksum"
        warnings.append(f"{node}: {amount}: nothing tells whether all is as it was written")
    return {
        "version": VERSION,
        "flows": {name: _flow(name, holdings, flows.get(name), inspection, warnings) for name in names},
        "channels": {holding.record.node: _channel(holding, directory, warnings) for holding in channels},
        "tables": {
            holding.record.node: {"rows": holding.rows, **_unmatched(holding), "file": holding.file}
            for holding in tables
        },
        "problems": inspection.problems,
        "warnings": warnings,
    }


@contextmanager
def _told(inspection: Inspection, name: str) -> Iterator[None]:
    """Report what can't be read of the files of one node as a problem, which hides no other."""
    try:
        yield
    except Unreadable as error:
        inspection.tell_of(name, f"it, or a file that belongs to it, can't be read: {error}")


def _counted(holding: H, flows: Mapping[str, FlowRecord]) -> H:
    """Return a node's rows, counted."""
    _tell_flows(holding, flows)
    holding.check_rows(flows)
    holding.count()
    return holding


def _tell_flows(holding: Holding, flows: Mapping[str, FlowRecord]) -> None:
    """Apply the accounts of flows to a node: its windows, and, where it has no master, its rows."""
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
    """Return a flow as the run recorded it, without the frames that are in no file any more.

    Without a record, as its nodes have it.
    """
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
    """Return the statuses of frames as the run recorded them, but lost where they were saved and are gone.

    Without a record, as nodes have them.
    """
    status = told(record, first, last)
    seen = [holding.look(first, last) for holding in looked]
    if record is None:
        for value in (DROPPED, LOST, SAVED):
            for one, _ in seen:
                status[: len(one)][one[: len(status)] == value] = value
        return status
    gone, in_files = np.zeros(len(status), bool), np.zeros(len(status), bool)
    for one, missing in seen:
        in_files[: len(one)] |= one == SAVED
        gone[: len(missing)] |= missing
    status[gone & ~in_files & (status == SAVED)] = LOST
    return status


def _proven(name: str, own: Sequence[Holding], warnings: list[str]) -> dict[str, Any]:
    """Return a flow without a record: known only where saved rows are made of all its frames."""
    _, _, expected = own[0].record.source(name)
    if 0 <= expected <= max(holding.saved * max(1, holding.record.window) for holding in own):
        return {"expected": expected, "received": expected, "lost": 0, "dropped": 0, "missing": 0, "missing_frames": []}
    warnings.append(f"{name}: no file tells what became of its frames")
    return {**dict.fromkeys(COUNTS), "expected": None if expected < 0 else expected, "missing_frames": None}


def _channel(holding: Holding, directory: str, warnings: list[str]) -> dict[str, Any]:
    """Return a channel that was counted: what is not saved and was neither vetoed nor dropped counts as lost."""
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
    """Return the number of frames that were not in all inputs of joins, where the files have it."""
    return {} if holding.unmatched is None else {"unmatched": holding.unmatched}
