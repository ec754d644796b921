"""What the files of one node hold, window by window: frame files with their master, or a table."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.claims import Claims
from lima2cli.artefacts.file_names import master_file, table_file
from lima2cli.artefacts.flow_record import FlowRecord, cut_short, expected_rows, kept_unmatched, whole_windows
from lima2cli.artefacts.inspection import Inspection, Unreadable
from lima2cli.artefacts.progressions import Progressions, range_list, range_words
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.rows import READ, InOrder, Rows, rows_of, windows
from lima2cli.artefacts.status import DROPPED, INCOMPLETE, LOST, SAVED, Status, Statuses, last_row, told
from lima2cli.artefacts.tables import part_files
from lima2cli.artefacts.tree import MEASUREMENT
from lima2cli.artefacts.verification import verify_table


class Holding:
    """A node's rows. ``expected`` is their number; they are looked at in consecutive windows, between `rewind` and
    `release`.

    files       that could be read
    told        what became of the rows' frames in the flow, where no master says it; None: nobody does
    saved, dropped   rows so far;  vetoed   all of them, None unknown
    whole       rows that can be saved: those after them are a last incomplete window, which is dropped; None: all
    gone        whether some are marked saved and are in no file
    """

    dataset: str | None = None

    def __init__(self, inspection: Inspection, record: Record) -> None:
        self.record, self.expected, self.saved, self.dropped = record, 0, 0, 0
        self.told: Statuses | None = None
        self.whole: int | None = None
        self.vetoed = None if record.filtered else 0
        self.unmatched: int | None = None
        self.files: list[str] = []
        self.gone = False
        self._inspection = inspection
        self._streams: list[InOrder] = []

    @property
    def knows(self) -> bool:
        """Whether it is known why rows are not saved, or may be taken for granted that they never came."""
        return self.record.complete or self.saved == (self.expected if self.whole is None else self.whole)

    def rewind(self) -> None:
        """Begin anew with the first window."""
        self.saved = self.dropped = 0
        self._streams = [InOrder(rows) for rows in self._reads()]

    def release(self) -> None:
        """Close the files."""
        self._streams = []

    def check_rows(self, flows: Mapping[str, FlowRecord]) -> None:
        """The rows are those that the accounts of flows call for, as far as it is known."""

    def count(self) -> None:
        """Look at all rows, and tell which are gone."""
        self.rewind()
        gone = Progressions()
        for first, last in windows(self.expected):
            gone.add((np.flatnonzero(self.look(first, last)[1]) + first)[:, None])
        self.release()
        start, step = self.record.start, self.record.step
        found = [[a * step + start, b * step + start, by * step] for a, b, by in range_list(gone)]
        if found:
            self.gone = True
            self._inspection.tell(
                f"{self.record.node}: frames {range_words(found)} are marked saved but are in no file"
            )

    def look(self, first: int, last: int) -> tuple[Status, NDArray[np.bool_]]:
        """What became of the frames of rows ``first`` to ``last - 1``, as far as they are expected, and which are gone.

        Those that a filter left out are saved here: they were received.
        """
        last = min(last, self.expected)
        if first >= last:
            return np.empty(0, np.uint8), np.empty(0, bool)
        absent, claimed = self._claimed(first, last)
        rows = np.concatenate(
            [np.empty(0, np.int64), *(rows for stream in self._streams for (rows,) in stream.take(last))]
        )
        if len(rows) and rows.min() < first:
            self._inspection.tell(f"{self.record.node}: some frames are not in order, and not counted")
            rows = rows[rows >= first]
        parts = np.bincount(rows - first, minlength=last - first)
        if parts.max() > self.record.parts:
            self._inspection.tell(f"{self.record.node}: some frames are in more than one place")
        found = parts >= self.record.parts
        if self.whole is not None:
            absent[max(0, self.whole - first) :] = DROPPED
        self.saved += int(np.count_nonzero(found))
        status = np.where(found, np.uint8(SAVED), absent)
        self.dropped += int(np.count_nonzero(status == DROPPED))
        return status, (claimed == SAVED) & ~found

    def _reads(self) -> list[Iterator[Sequence[Rows]]]:
        """The rows that are in files: of each sequence of files in order, piece by piece."""
        return [self._listed(name) for name in self.files]

    def _last_listed(self, names: Sequence[str]) -> int:
        """The last row of the frames that tables list, -1 where there is none."""
        last = -1
        for name in names:
            with self._inspection.open(name) as file:
                columns = file[MEASUREMENT]
                last = max(last, last_listed(columns["frame_number"], _shortest(columns), self.record))
        return last

    def _listed(self, name: str) -> Iterator[Sequence[Rows]]:
        with self._inspection.open(name) as file:
            columns = file[MEASUREMENT]
            for first, last in windows(_shortest(columns), READ):
                yield (rows_of(columns["frame_number"][first:last], self.record.start, self.record.step),)

    def _claimed(self, first: int, last: int) -> tuple[Status, Status]:
        """Status of rows if they are in no file, and as the master says."""
        absent = told(self.told, first, last)
        return np.where(absent == SAVED, np.uint8(LOST), absent), np.full(last - first, INCOMPLETE, np.uint8)


class Claimed(Holding):
    """A channel, whose master says what became of its frames, where it is there and can be read."""

    def __init__(self, inspection: Inspection, record: Record) -> None:
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
        """The master has a row for every frame that was expected of a run that was not cut short, else for all that
        came."""
        record = self.record
        expected = None if self._claims is None or record.filtered else expected_rows(record, flows)
        if self._claims is None or expected is None:
            return
        rows = came = self._claims.rows
        if not cut_short(record, {flow: flows[flow].expected for flow in record.flows}):
            came = expected if (whole := whole_windows(record, flows)) is None else whole
        elif record.complete and record.parts == 1:  # else it is not known what came of which frames
            came = last_row(flows[record.flow], expected)
        if rows < came:
            self._inspection.tell(f"{self._master} is short: it has {rows} rows, and {came} frames were to be shown")
        if rows > expected:
            self._inspection.tell(f"{self._master}: it has {rows} rows, and {expected} frames were expected")

    def _claimed(self, first: int, last: int) -> tuple[Status, Status]:
        return super()._claimed(first, last) if self._claims is None else self._claims.window(first, last)


class Table(Holding):
    """A table: the merged file, or what there is of its parts. ``rows`` are those that it has."""

    def __init__(self, inspection: Inspection, record: Record) -> None:
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
        self.expected = max(record.planned, 1 + self._last_listed(self.files))

    def check_rows(self, flows: Mapping[str, FlowRecord]) -> None:
        """Parts that are still there have no rows that the table lacks."""
        parts = part_files(self._inspection.directory, self.record.name, self.record.node)
        for name in parts if self.file is not None else ():
            try:
                if not all(self._has(rows) for (rows,) in self._listed(name)):
                    self._inspection.tell(f"{name}: {self.file} does not have all of its rows")
            except Unreadable as error:
                self._inspection.tell_of(name, error)

    def _has(self, rows: Rows) -> bool:
        """Whether the table has rows of frames (by index, increasing)."""
        numbers = (rows * self.record.step + self.record.start).astype(np.uint64)
        with self._inspection.open(self.files[0]) as file:
            known = file[f"{MEASUREMENT}/frame_number"]
            among = known[bisect_left(known, numbers[0]) : bisect_right(known, numbers[-1])]
        return bool(np.isin(numbers, among).all())


def _shortest(columns: Any) -> int:
    """Rows of a table that is perhaps being written."""
    return min(len(column) for column in columns.values())


def last_listed(numbers: Any, count: int, record: Record) -> int:
    """The last row of the first ``count``, which are in order but perhaps locally; -1 where there is none."""
    tail = rows_of(numbers[max(0, count - READ) : count], record.start, record.step)
    return int(tail.max(initial=-1))
