"""Accounting of every frame of a run from its files alone, in memory that does not grow with their number."""

import os
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from lima2cli.accounting.holdings import Holding, TableHolding, holdings_of, reported
from lima2cli.accounting.summary import Accounting, ChannelSummary, FlowSummary, Range, TableSummary
from lima2cli.accounting.verify import verify_structure
from lima2cli.files.inspection import Inspection, Unreadable
from lima2cli.files.nexus import MEASUREMENT
from lima2cli.files.rows import DROPPED, INCOMPLETE, LOST, SAVED, Progressions, Status, range_list, told, windows
from lima2cli.files.run_file import FlowRecord, expected_rows, kept_flows, linked_files, whole_windows


def inspect_run(directory: str, *, verify: bool = False) -> Accounting:
    """Return the accounting of a run directory, from its files.

    verify     read every frame, and compare it with its checksum, so that damage is found
    problems   plain sentences: missing, short or unreadable files, frames that are not where the master has them
    warnings   plain sentences: what no file has; its numbers are None

    Raises:
        OSError: the directory can't be listed.
    """
    inspection = Inspection(directory, verify)
    with inspection.reader:
        return _inspected(inspection)


def _inspected(inspection: Inspection) -> Accounting:
    directory = inspection.directory
    flows = kept_flows(inspection)
    if inspection.verify:
        for name in inspection.files:
            verify_structure(inspection, name)
    holdings: list[Holding] = []
    for holding in holdings_of(inspection):
        with reported(inspection, holding.record):
            _count(holding, flows)
            holdings.append(holding)
    tables = [holding for holding in holdings if isinstance(holding, TableHolding)]
    channels = [holding for holding in holdings if not isinstance(holding, TableHolding)]
    linked = linked_files(inspection)
    for name, others in linked.items():
        for other in others:
            if not os.path.exists(os.path.join(directory, other)):
                inspection.tell(f"{name} links to {other}, which is not there")
    if not holdings and (not linked or any(linked.values())):  # a run may save nothing
        inspection.tell(f"{directory} holds no file of a run")
    names = dict.fromkeys([*(flow for holding in holdings for flow in holding.record.flows), *flows])
    warnings: list[str] = []
    for node, count in inspection.unchecked.items():
        amount = f"{count} frame{'s have' if count != 1 else ' has'} no checksum"
        warnings.append(f"{node}: {amount}: nothing tells whether all is as it was written")
    shown = {name: _flow(name, holdings, flows.get(name), inspection, warnings) for name in names}
    return Accounting(
        flows=shown,
        channels={holding.record.node: _channel(holding, directory, warnings) for holding in channels},
        tables={
            holding.record.node: TableSummary(holding.rows, unmatched=holding.unmatched, file=holding.file)
            for holding in tables
        },
        problems=tuple(inspection.problems),
        warnings=tuple(warnings),
    )


def _count(holding: Holding, flows: Mapping[str, FlowRecord]) -> None:
    """Count the rows of a node."""
    _tell_flows(holding, flows)
    holding.check_rows(flows)
    holding.count()


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
) -> FlowSummary:
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
    ranges = tuple(cast(Range, tuple(each)) for each in range_list(absent))
    if record is not None and not looked:
        return FlowSummary(**record.totals, missing_frames=ranges, reported=None)
    return FlowSummary(expected, counts[SAVED], counts[LOST], counts[DROPPED], counts[INCOMPLETE], ranges)


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


def _proven(name: str, own: Sequence[Holding], warnings: list[str]) -> FlowSummary:
    """Return a flow without a record: known only where saved rows are made of all its frames."""
    _, _, expected = own[0].record.source(name)
    if 0 <= expected <= max(holding.saved * max(1, holding.record.window) for holding in own):
        return FlowSummary(expected, expected, 0, 0, 0, ())
    warnings.append(f"{name}: no file tells what became of its frames")
    return FlowSummary(None if expected < 0 else expected, None, None, None, None, None)


def _channel(holding: Holding, directory: str, warnings: list[str]) -> ChannelSummary:
    """Return a channel that was counted: what is not saved and was neither vetoed nor dropped counts as lost."""
    vetoed = 0 if holding.saved == holding.expected else holding.vetoed
    dropped = holding.dropped if holding.knows else None
    lost = None if vetoed is None or dropped is None else holding.expected - holding.saved - vetoed - dropped
    if vetoed is None:
        warnings.append(f"{holding.record.node}: no file tells how many frames were vetoed")
    elif dropped is None:
        warnings.append(f"{holding.record.node}: no file tells why frames are not saved")
    return ChannelSummary(
        expected=holding.expected,
        saved=holding.saved,
        vetoed=vetoed,
        dropped=dropped,
        lost=lost,
        unmatched=holding.unmatched,
        dataset=None if holding.dataset is None else f"{holding.dataset}::/{MEASUREMENT}/data",
        files=tuple(holding.files),
        bytes=sum(os.path.getsize(os.path.join(directory, name)) for name in holding.files),
    )
