"""What the files of one node hold, window by window: frame files with their master, or a table."""

import os
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.claims import Claims
from lima2cli.artefacts.file_names import master_file, table_file
from lima2cli.artefacts.flow_record import kept_unmatched
from lima2cli.artefacts.inspection import Inspection, Unreadable, detector_of
from lima2cli.artefacts.master import by_receiver, frame_files
from lima2cli.artefacts.progressions import Progressions, range_list
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.rows import READ, InOrder, Rows, rows_of, windows
from lima2cli.artefacts.sparse_files import is_sparse, whole_rows
from lima2cli.artefacts.status import DROPPED, INCOMPLETE, LOST, SAVED, Status, Statuses, told
from lima2cli.artefacts.tables import part_files
from lima2cli.artefacts.tree import MEASUREMENT

PLAIN_BYTES = 8 << 20
"""Of a dataset without chunks that are read together."""


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
            words = [f"{a}" if a == b else f"{a}-{b}" + (f" step {s}" if s > 1 else "") for a, b, s in found[:3]]
            more = ", ..." if len(found) > 3 else ""
            self._inspection.tell(
                f"{self.record.node}: frames {', '.join(words)}{more} are marked saved but are in no file"
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
                last = max(last, _last_row(columns["frame_number"], _shortest(columns), self.record))
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
        self.expected = max(record.planned, 1 + self._last_listed(self.files))


class Frames(Holding):
    """A channel: its frame files, and its master held against them."""

    def __init__(self, inspection: Inspection, record: Record) -> None:
        super().__init__(inspection, record)
        self._counts: dict[str, int] = {}
        self._last = -1
        for name in frame_files(inspection.directory, record.name, record.node):
            try:
                self._open(name)
            except Unreadable as error:
                inspection.tell_of(name, error)
        self.files = list(self._counts)
        self._master = master_file(record.name, record.node)
        self._claims: Claims | None = None
        if record.role == "master":
            self._open_master()
        if self._claims is not None:
            self.dataset, self.expected = self._master, self._claims.expected
            self.vetoed = self._claims.vetoed if record.filtered else 0
            self.unmatched = kept_unmatched(inspection, self._master)
        else:
            inspection.tell(f"{self._master} is missing or unreadable: `lima2 recover` rebuilds it")
            self.expected = max(record.planned, 1 + self._last)

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

    def _reads(self) -> list[Iterator[Sequence[Rows]]]:
        return [self._read(names) for names in by_receiver(self.files)]

    def _open(self, name: str) -> None:
        """How many frames a file has."""
        with self._inspection.open(name) as file:
            detector = detector_of(file)
            frames, numbers = whole_rows(detector["data"]), len(detector["frame_number"])
            if frames != numbers:
                self._inspection.tell(f"{name}: {frames} frames but {numbers} frame numbers")
            count = min(frames, numbers)
            self._last = max(self._last, _last_row(detector["frame_number"], count, self.record))
            self._counts[name] = count
            if self._inspection.verify:
                for data in _datasets(detector["data"]):
                    read_all(self._inspection, name, data)

    def _open_master(self) -> None:
        """What the master claims; its sources must exist and be long enough."""
        inspection = self._inspection
        try:
            self._claims = claims = Claims(inspection, self.record, self._master)
            if claims.sparse and inspection.verify:
                with inspection.open(self._master) as file:
                    for data in _datasets(detector_of(file)["data"]):
                        read_all(inspection, self._master, data)
        except Unreadable as error:
            inspection.tell(f"{self._master}: {error}")
            return
        for source in () if claims.sources is None else claims.sources.all:
            held = self._counts.get(source.name)
            if held is not None and source.origin.last >= held:
                inspection.tell(f"{source.name} is short: it has {held} frames, {self._master} needs more")
            elif held is None and not os.path.exists(os.path.join(inspection.directory, source.name)):
                inspection.tell(f"{source.name} is missing")

    def _read(self, names: Sequence[str]) -> Iterator[Sequence[Rows]]:
        """Rows of the files of one receiver; they must be those that the master shows."""
        for name in names:
            try:
                with self._inspection.open(name) as file:
                    numbers = detector_of(file)["frame_number"]
                    for first, last in windows(self._counts[name], READ):
                        rows = rows_of(numbers[first:last], self.record.start, self.record.step)
                        if self._claims is not None:
                            self._claims.check_files(name, first, last, rows)
                            if self._claims.sparse:
                                self._check_pixels(name, first, last, self._claims.places(rows))
                        yield (rows,)
            except Unreadable as error:
                self._inspection.tell_of(name, error)

    def _check_pixels(self, name: str, first: int, last: int, rows: Rows) -> None:
        """A file has as many pixels of each frame as the master's copy, where they are rows ``rows``."""
        with self._inspection.open(name) as file, self._inspection.open(self._master) as master:
            held, shown = detector_of(file)["frame_pixels"][first:last], detector_of(master)["frame_pixels"]
            inside = rows < len(shown)
            copied = shown[int(rows.min(initial=0)) : int(rows.max(initial=0)) + 1]
            there = copied[rows[inside] - int(rows.min(initial=0))]
            if (there != held[inside] if self.record.parts == 1 else there < held[inside]).any():
                self._inspection.tell(f"{name}: {self._master} has other numbers of pixels of its frames")

    def _claimed(self, first: int, last: int) -> tuple[Status, Status]:
        return super()._claimed(first, last) if self._claims is None else self._claims.window(first, last)


def _shortest(columns: Any) -> int:
    """Rows of a table that is perhaps being written."""
    return min(len(column) for column in columns.values())


def _last_row(numbers: Any, count: int, record: Record) -> int:
    """The last row of the first ``count``, which are in order but perhaps locally; -1 where there is none."""
    tail = rows_of(numbers[max(0, count - READ) : count], record.start, record.step)
    return int(tail.max(initial=-1))


def _datasets(data: Any) -> list[Any]:
    """The dataset itself, or index and intensity of sparse frames."""
    return [data["index"], data["intensity"]] if is_sparse(data) else [data]


def read_all(inspection: Inspection, name: str, data: Any) -> None:
    """Read every chunk once."""
    import hdf5plugin  # noqa: F401 - registers the filters

    step = data.chunks[0] if data.chunks else max(1, PLAIN_BYTES // max(1, data.dtype.itemsize * prod(data.shape[1:])))
    bad = []
    for row in range(0, len(data), step):
        try:
            data[row : row + step]
        except OSError:
            bad.append(row)
    if bad:
        inspection.tell(f"{name}: chunks at rows {', '.join(map(str, bad[:5]))}{'...' * (len(bad) > 5)} can't be read")
