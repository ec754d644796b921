"""Holdings of one node, window by window: what its files hold, and whether it is as it was written."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.accounting.claims import Claims
from lima2cli.files.checksums import READ_BYTES, RowSpan, SummedDataset
from lima2cli.files.inspection import Inspection, Unreadable
from lima2cli.files.master_rows import TOLD
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
    ranges,
    rows_of,
    told,
    windows,
)
from lima2cli.files.run_file import FlowRecord, cut_short, expected_rows, kept_unmatched, whole_windows
from lima2cli.files.sparse_writer import PARTS, is_sparse
from lima2cli.files.tables import part_files

SMALL_BYTES = 1 << 16
"""Bytes of a dataset that is read to check that it can be."""

FrameNumbers = Callable[[int, int], NDArray[Any]]
"""A function that returns the frames of rows ``first`` to ``last - 1``, by number."""


def verify_structure(inspection: Inspection, name: str) -> None:
    """Open every object of a file, and read what is small: HDF5 has checksums of its own metadata."""
    import h5py

    def look(_: str, item: Any) -> None:
        dict(item.attrs)
        if not isinstance(item, h5py.Dataset) or item.shape is None or item.is_virtual or item.chunks is not None:
            return
        if item.dtype.itemsize * prod(item.shape) <= SMALL_BYTES:
            item[()]

    try:
        with inspection.open(name) as file:
            dict(file.attrs)
            file.visititems(look)
    except Unreadable as error:
        inspection.tell_of(name, f"a part of it can't be read: {error}")


def verify_rows(inspection: Inspection, name: str, detector: Any) -> None:
    """Compare the columns about rows of a file with their checksums, and report the frames whose values are damaged."""
    numbers, data = detector["frame_number"], detector["data"]
    columns = {column: detector[column] for column in TOLD if column in detector}
    if is_sparse(data):
        columns["frame_ptr"] = data["frame_ptr"]
    for column, values in columns.items():
        checked = SummedDataset.of(values, detector, column)
        if checked is None:
            continue
        why = f"the bytes of {column} are not those that were written"
        before = int(column == "frame_ptr")  # its row k is where frame k - 1 ends
        bad = [(max(0, first - before), min(last, len(numbers))) for first, last in checked.damaged(0, checked.covered)]
        if column == "frame_number":
            rows = _frames(bad, np.arange)
            _tell(inspection, name, rows, f"{'is' if len(rows) == 1 else 'are'} damaged: {why}", "row")
        else:
            damaged = _frames(bad, lambda first, last: numbers[first:last])
            _tell(inspection, name, damaged, f"{'has' if len(damaged) == 1 else 'have'} damaged values: {why}")


def verify_frames(inspection: Inspection, node: str, name: str, detector: Any) -> None:
    """Compare the dense or sparse frames of a file with their checksums, and report which are damaged."""
    data, numbers = detector["data"], detector["frame_number"]
    verify_rows(inspection, name, detector)
    if not is_sparse(data):
        if data.chunks is None:  # of a master, which shows rows of others, or none where nothing was saved
            return
        _verify(inspection, node, name, data, SummedDataset.of(data, detector), lambda a, b: numbers[a:b])
        return
    ends = data["frame_ptr"][1:]

    def frames(first: int, last: int) -> NDArray[Any]:
        begin, end = np.searchsorted(ends, (first, max(first, last - 1)), "right").tolist()
        absent: NDArray[Any] = numbers[begin : end + 1]
        return absent

    for part in PARTS:
        _verify(inspection, node, name, data[part], SummedDataset.of(data[part], detector, part), frames)


def verify_common(inspection: Inspection, node: str, name: str, detector: Any) -> None:
    """Compare the saved frames of a common file with their checksums, and report which are damaged."""
    data, numbers, status = detector["data"], detector["frame_number"], detector["frame_status"]
    verify_rows(inspection, name, detector)

    def saved(first: int, last: int) -> NDArray[Any]:
        listed = numbers[first:last]  # fewer where the master is damaged, which is reported elsewhere
        frames: NDArray[Any] = listed[status[first : first + len(listed)] == 0]
        return frames

    _verify(inspection, node, name, data, SummedDataset.of(data, detector), saved)


def verify_table(inspection: Inspection, node: str, name: str, columns: Any) -> None:
    """Compare the columns of a table with their checksums, and report the frames whose values are damaged."""
    numbers = columns["frame_number"]
    for column, data in columns.items():
        checked = SummedDataset.of(data, columns.parent, column)
        if column == "frame_number":
            _verify(inspection, node, name, data, checked, np.arange, "row")
        else:
            _verify(inspection, node, name, data, checked, lambda a, b: numbers[a:b])


def _verify(
    inspection: Inspection,
    node: str,
    name: str,
    dataset: Any,
    checked: SummedDataset | None,
    frames: FrameNumbers,
    word: str = "frame",
) -> None:
    part = dataset.name.rpartition("/")[2]
    covered = 0 if checked is None else checked.covered
    if checked is not None:
        damaged = _frames(checked.damaged(0, covered), frames)
        why = f"the bytes of {part} are not those that were written"
        _tell(inspection, name, damaged, f"{'is' if len(damaged) == 1 else 'are'} damaged: {why}", word)
    rest = len(dataset) - covered
    if not rest:
        return
    inspection.unchecked[node] = inspection.unchecked.get(node, 0) + len(np.unique(frames(covered, len(dataset))))
    step = dataset.chunks[0] if dataset.chunks else _rows_together(dataset)
    bad: dict[str, list[RowSpan]] = {}
    for row, why in inspection.reader.unreadable(dataset.file.filename, dataset.name, covered, len(dataset), step):
        bad.setdefault(why, []).append((row, min(len(dataset), row + step)))
    for why, rows in bad.items():
        _tell(inspection, name, _frames(rows, frames), f"of {part} {why}" if part != "data" else why, word)


def _rows_together(dataset: Any) -> int:
    row_bytes: int = dataset.dtype.itemsize * prod(dataset.shape[1:])
    return max(1, READ_BYTES // max(1, row_bytes))


def _frames(rows: Iterable[RowSpan], frames: FrameNumbers) -> NDArray[Any]:
    numbers = [frames(first, last) for first, last in rows]
    return np.unique(np.concatenate(numbers)) if numbers else np.empty(0, np.uint64)


def _tell(inspection: Inspection, name: str, frames: NDArray[Any], problem: str, word: str = "frame") -> None:
    if len(frames):
        inspection.tell(f"{name}: {word}{'s' * (len(frames) != 1)} {range_words(ranges(frames))} {problem}")


class Holding:
    """Rows of a node.

    ``expected`` is their number; they are read in consecutive windows, between `rewind` and `release`.

    files       that could be read
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
        rows = np.concatenate(
            [np.empty(0, np.int64), *(rows for stream in self._streams for (rows,) in stream.take(last))]
        )
        if len(rows) and rows.min() < first:
            self._inspection.tell(f"{self.record.node}: some frames are not in order, and not counted")
            rows = rows[rows >= first]
        parts = np.bincount(rows - first, minlength=last - first)
        if parts.max() > self.record.parts:
            self._inspection.tell(f"{self.record.node}: some frames are in more than one place")
        complete = parts >= self.record.parts
        if self.whole is not None:
            absent[max(0, self.whole - first) :] = DROPPED
        self.saved += int(np.count_nonzero(complete))
        status = np.where(complete, np.uint8(SAVED), absent)
        self.dropped += int(np.count_nonzero(status == DROPPED))
        return status, (claimed == SAVED) & ~complete

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
        self.expected = max(record.planned, 1 + self._last_listed(self.files))

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


def _shortest(columns: Any) -> int:
    """Return the number of rows of a table that is perhaps being written."""
    return min(len(column) for column in columns.values())


def last_listed(numbers: Any, count: int, record: ChannelRecord) -> int:
    """Return the last row of the first ``count``, which are in order but perhaps locally; -1 where there is none."""
    tail = rows_of(numbers[max(0, count - READ) : count], record.start, record.step)
    return int(tail.max(initial=-1))
