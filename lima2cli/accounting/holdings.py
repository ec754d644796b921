"""Holdings of one node, window by window: what its files hold, and whether it is as it was written."""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.accounting.verify import Claims, verify_common, verify_frames, verify_table
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
    InOrder,
    Progressions,
    RowIndices,
    Status,
    Statuses,
    last_row,
    range_list,
    range_words,
    rows_of,
    told,
    windows,
)
from lima2cli.files.run_file import FlowRecord, cut_short, expected_rows, kept_unmatched, whole_windows
from lima2cli.files.sparse_writer import whole_rows
from lima2cli.files.tables import part_files


class Holding:
    """Rows of a node.

    ``expected`` is their number; they are read in consecutive windows, between `rewind` and `release`.

    files       that could be read
    listed      number of rows up to the last that is in files
    told        statuses of the rows' frames in the flow, where no master has them; None: they are not known
    saved, dropped   rows so far;  vetoed   all of them, None unknown
    whole       rows that can be saved: those after them are a last incomplete window, which is dropped; None: all
    gone        whether some are marked saved and are in no file
    """

    dataset: str | None = None

    def __init__(self, inspection: Inspection, record: ChannelRecord) -> None:
        self.record, self.expected, self.saved, self.dropped = record, 0, 0, 0
        self.told: Statuses | None = None
        self.whole: int | None = None
        self.vetoed = None if record.filtered else 0
        self.unmatched: int | None = None
        self.files: list[str] = []
        self.listed = 0
        self.gone = False
        self._inspection = inspection
        self._streams: list[InOrder] = []

    @property
    def knows(self) -> bool:
        """Return whether it is known why rows are not saved, or may be taken for granted that they never came."""
        return self.record.complete or self.saved == (self.expected if self.whole is None else self.whole)

    def rewind(self) -> None:
        """Begin anew with the first window."""
        self.saved = self.dropped = 0
        self._streams = [InOrder(rows) for rows in self._reads()]

    def release(self) -> None:
        """Close the files."""
        self._streams = []

    def check_rows(self, flows: Mapping[str, FlowRecord]) -> None:
        """Check that the rows are those that the accounts of flows call for, as far as it is known."""

    def count(self) -> None:
        """Read all rows, and report which are gone."""
        self.rewind()
        gone = Progressions()
        for first, last in windows(self.expected):
            gone.add((np.flatnonzero(self.look(first, last)[1]) + first)[:, None])
        self.release()
        start, step = self.record.start, self.record.step
        lost = [[a * step + start, b * step + start, by * step] for a, b, by in range_list(gone)]
        if lost:
            self.gone = True
            self._inspection.tell(f"{self.record.node}: frames {range_words(lost)} are marked saved but are in no file")

    def look(self, first: int, last: int) -> tuple[Status, NDArray[np.bool_]]:
        """Return the statuses of the frames of rows ``first`` to ``last - 1``, and which are gone.

        Statuses are those of frames that are expected.

        Those that a filter left out are saved here: they were received.
        """
        last = min(last, self.expected)
        if first >= last:
            return np.empty(0, np.uint8), np.empty(0, bool)
        absent, claimed = self._claimed(first, last)
        complete = self._complete(first, last)
        if self.whole is not None:
            absent[max(0, self.whole - first) :] = DROPPED
        self.saved += int(np.count_nonzero(complete))
        status = np.where(complete, np.uint8(SAVED), absent)
        self.dropped += int(np.count_nonzero(status == DROPPED))
        return status, (claimed == SAVED) & ~complete

    def held_rows(self) -> Iterator[RowIndices]:
        """Yield, piece by piece, the rows that are in files, whole, as far as they can be read."""
        try:
            self.rewind()
            for first, last in windows(self.listed):
                yield np.flatnonzero(self._complete(first, last)) + first
        except Unreadable as error:
            self._inspection.tell(f"{self.record.node}: {error}")
        finally:
            self.release()

    def _complete(self, first: int, last: int) -> NDArray[np.bool_]:
        """Return which of the rows ``first`` to ``last - 1`` are in files, whole."""
        rows = np.concatenate(
            [np.empty(0, np.int64), *(rows for stream in self._streams for (rows,) in stream.take(last))]
        )
        if len(rows) and rows.min() < first:
            self._inspection.tell(f"{self.record.node}: some frames are not in order, and not counted")
            rows = rows[rows >= first]
        parts = np.bincount(rows - first, minlength=last - first)
        if parts.max() > self.record.parts:
            self._inspection.tell(f"{self.record.node}: some frames are in more than one place")
        return parts >= self.record.parts

    def _reads(self) -> list[Iterator[Sequence[RowIndices]]]:
        """Return the rows that are in files: of each sequence of files in order, piece by piece."""
        return [self._listed(name) for name in self.files]

    def _last_listed(self, names: Sequence[str]) -> int:
        """Return the last row of the frames that tables list, -1 where there is none."""
        last = -1
        for name in names:
            with self._inspection.open(name) as file:
                columns = file[MEASUREMENT]
                last = max(last, last_listed(columns["frame_number"], _shortest(columns), self.record))
        return last

    def _listed(self, name: str) -> Iterator[Sequence[RowIndices]]:
        with self._inspection.open(name) as file:
            columns = file[MEASUREMENT]
            for first, last in windows(_shortest(columns), READ):
                yield (rows_of(columns["frame_number"][first:last], self.record.start, self.record.step),)

    def _claimed(self, first: int, last: int) -> tuple[Status, Status]:
        """Return the statuses of rows if they are in no file, and as the master has them."""
        absent = told(self.told, first, last)
        return np.where(absent == SAVED, np.uint8(LOST), absent), np.full(last - first, INCOMPLETE, np.uint8)


class Claimed(Holding):
    """A channel with a master that has the statuses of its frames, where it is there and can be read."""

    def __init__(self, inspection: Inspection, record: ChannelRecord) -> None:
        super().__init__(inspection, record)
        self._master = master_file(record.name, record.node)
        self._claims: Claims | None = None

    @property
    def knows(self) -> bool:
        """See `Holding`."""
        return super().knows or (self._claims is not None and self._claims.told)

    def rewind(self) -> None:
        """See `Holding`."""
        super().rewind()
        if self._claims is not None:
            self._claims.rewind()

    def release(self) -> None:
        """See `Holding`."""
        super().release()
        if self._claims is not None:
            self._claims.release()

    def check_rows(self, flows: Mapping[str, FlowRecord]) -> None:
        """Check that the master has a row for every frame that was expected.

        Of a run that was cut short: for all that arrived.
        """
        record = self.record
        expected = None if self._claims is None or record.filtered else expected_rows(record, flows)
        if self._claims is None or expected is None:
            return
        rows = arrived = self._claims.rows
        if not cut_short(record, {flow: flows[flow].expected for flow in record.flows}):
            arrived = expected if (whole := whole_windows(record, flows)) is None else whole
        elif record.complete and record.parts == 1:  # else it is not known what came of which frames
            arrived = last_row(flows[record.flow], expected)
        if rows < arrived:
            self._inspection.tell(f"{self._master} is short: it has {rows} rows, and {arrived} frames were to be shown")
        if rows > expected:
            self._inspection.tell(f"{self._master}: it has {rows} rows, and {expected} frames were expected")

    def _claimed(self, first: int, last: int) -> tuple[Status, Status]:
        return super()._claimed(first, last) if self._claims is None else self._claims.window(first, last)


class CommonHolding(Claimed):
    """A channel whose receivers write one file: that file, or, where it is not complete, their notes about it."""

    def __init__(self, inspection: Inspection, record: ChannelRecord) -> None:
        super().__init__(inspection, record)
        self._written: list[str] = []
        if record.role == "master":
            self._open()
        if self._claims is not None:
            self.dataset, self.files, self.expected = self._master, [self._master], self._claims.expected
            self.listed = self._claims.rows
            self.unmatched = kept_unmatched(inspection, self._master)
        else:
            inspection.tell(f"{self._master} is missing or unreadable: `lima2 recover` rebuilds it")
            self._written = written_rows_files(inspection.directory, record.name, record.node)
            self.listed = 1 + self._last_listed(self._written)
            self.expected = max(record.planned, self.listed)

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
            self.expected = max(record.planned, self.listed)

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
            self.listed = max(self.listed, 1 + last_listed(detector["frame_number"], count, self.record))
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


class TableHolding(Holding):
    """A table: the merged file, or what there is of its parts. ``rows`` are those that it has."""

    def __init__(self, inspection: Inspection, record: ChannelRecord) -> None:
        super().__init__(inspection, record)
        table = table_file(record.name, record.node)
        self.file = table if record.role == "table" else None
        if self.file is not None:
            self.files = [table]
            self.unmatched = kept_unmatched(inspection, table)
        else:
            inspection.tell(f"{table} is missing: `lima2 recover` joins its parts")
            self.files = part_files(inspection.directory, record.name, record.node)
        self.rows = 0
        for name in self.files:
            with inspection.open(name) as file:
                self.rows += _shortest(file[MEASUREMENT])
                if inspection.verify and self.file is not None:
                    verify_table(inspection, record.node, name, file[MEASUREMENT])
        self.listed = 1 + self._last_listed(self.files)
        self.expected = max(record.planned, self.listed)

    def check_rows(self, flows: Mapping[str, FlowRecord]) -> None:
        """Check that parts that are still there have no rows that the table lacks."""
        parts = part_files(self._inspection.directory, self.record.name, self.record.node)
        for name in parts if self.file is not None else ():
            try:
                if not all(self._has(rows) for (rows,) in self._listed(name)):
                    self._inspection.tell(f"{name}: {self.file} does not have all of its rows")
            except Unreadable as error:
                self._inspection.tell_of(name, error)

    def _has(self, rows: RowIndices) -> bool:
        """Return whether the table has rows of frames (by index, increasing)."""
        numbers = (rows * self.record.step + self.record.start).astype(np.uint64)
        with self._inspection.open(self.files[0]) as file:
            known = file[f"{MEASUREMENT}/frame_number"]
            among = known[bisect_left(known, numbers[0]) : bisect_right(known, numbers[-1])]
        return bool(np.isin(numbers, among).all())


@contextmanager
def reported(inspection: Inspection, record: ChannelRecord) -> Iterator[None]:
    """Report what can't be read of the files of one node as a problem, which hides no other."""
    try:
        yield
    except Unreadable as error:
        name = (table_file if record.role in ("table", "rows") else master_file)(record.name, record.node)
        inspection.tell_of(name, f"it, or a file that belongs to it, can't be read: {error}")


def holdings_of(inspection: Inspection) -> list[Holding]:
    """Return the holdings of all nodes of which there are files, channels first."""
    made: list[Holding] = []
    for roles in (("master", "frames", "written"), ("table", "rows")):
        for record in inspection.records(roles):
            table, common = record.role in ("table", "rows"), record.layout == "common"
            with reported(inspection, record):
                kind = TableHolding if table else CommonHolding if common else FrameHolding
                made.append(kind(inspection, record))
    return made


def _shortest(columns: Any) -> int:
    """Return the number of rows of a table that is perhaps being written."""
    return min(len(column) for column in columns.values())


def last_listed(numbers: Any, count: int, record: ChannelRecord) -> int:
    """Return the last row of the first ``count``, which are in order but perhaps locally; -1 where there is none."""
    tail = rows_of(numbers[max(0, count - READ) : count], record.start, record.step)
    return int(tail.max(initial=-1))
