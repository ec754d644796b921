"""What the files of one node hold, window by window: frame files with their master, or a table."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.inspection import Inspection, Unreadable, detector_of
from lima2cli.artefacts.master import by_receiver, frame_files, master_file
from lima2cli.artefacts.progressions import Progressions, range_list
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.rows import READ, InOrder, Rows, rows_of, windows
from lima2cli.artefacts.sources import Sources
from lima2cli.artefacts.sparse_files import is_sparse, whole_rows
from lima2cli.artefacts.status import DROPPED, INCOMPLETE, LOST, SAVED, Status
from lima2cli.artefacts.tables import part_files, table_file
from lima2cli.artefacts.tree import ENTRY


class Holding:
    """A node's rows. ``expected`` is their number; ``status`` is to be asked for consecutive windows, then `end`.

    files       that could be read
    saved, dropped   rows so far
    """

    is_table = False
    dataset: str | None = None

    def __init__(self, inspection: Inspection, record: Record) -> None:
        self.record, self.expected, self.saved, self.dropped = record, 0, 0, 0
        self.files: list[str] = []
        self._inspection = inspection
        self._streams: list[InOrder] = []

    def status(self, first: int, last: int) -> Status:
        """``frame_status`` of the rows from ``first`` to ``last - 1``, as far as they are expected."""
        last = min(last, self.expected)
        if first >= last:
            return np.empty(0, np.uint8)
        status, claimed = self._claimed(first, last)
        rows = np.concatenate(
            [np.empty(0, np.int64), *(rows for stream in self._streams for (rows,) in stream.take(last))]
        )
        if len(rows) and rows.min() < first:
            self._inspection.tell(f"{self.record.node}: some frames are not in order, and not counted")
            rows = rows[rows >= first]
        if len(rows) and np.bincount(rows - first).max() > 1:
            self._inspection.tell(f"{self.record.node}: some frames are in more than one place")
        status[rows - first] = SAVED
        self._compare(first, status, claimed)
        self.saved += int(np.count_nonzero(status == SAVED))
        self.dropped += int(np.count_nonzero(status == DROPPED))
        return status

    def end(self) -> None:
        """All windows were asked for: tell what is known only now."""

    def _claimed(self, first: int, last: int) -> tuple[Status, Status]:
        """Status of rows if they are in no file, and as the master says."""
        return np.full(last - first, INCOMPLETE, np.uint8), np.empty(0, np.uint8)

    def _compare(self, first: int, status: Status, claimed: Status) -> None:
        """Hold what was found against what is claimed."""


class Table(Holding):
    """A table: the merged file, or what there is of its parts."""

    is_table = True

    def __init__(self, inspection: Inspection, record: Record) -> None:
        super().__init__(inspection, record)
        table = table_file(record.name, record.node)
        if record.role == "table":
            self.files = [table]
        else:
            inspection.tell(f"{table} is missing: `lima2 recover` joins its parts")
            self.files = part_files(inspection.directory, record.name, record.node)
        last = -1
        for name in self.files:
            with inspection.open(name) as file:
                columns = file[f"{ENTRY}/measurement"]
                count = min(len(item) for item in columns.values())
                last = max(last, _last_row(columns["frame_number"], count, record))
            self._streams.append(InOrder(self._read(name, count)))
        self.expected = max(record.selected, 1 + last)

    def _read(self, name: str, count: int) -> Iterator[Sequence[Rows]]:
        with self._inspection.open(name) as file:
            numbers = file[f"{ENTRY}/measurement/frame_number"]
            for first, last in windows(count, READ):
                yield (rows_of(numbers[first:last], self.record.start, self.record.step),)


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
        self._sources: Sources | None = None
        self._sparse = False
        self._claims: Iterator[Status] = iter(())
        self._gone = Progressions()
        if record.role == "master" and (claimed := self._open_master()) is not None:
            self.dataset = self._master
            self.expected = claimed
        else:
            inspection.tell(f"{self._master} is missing or unreadable: `lima2 recover` rebuilds it")
            self.expected = max(record.selected, 1 + self._last)
        self._streams = [InOrder(self._read(names)) for names in by_receiver(self.files)]

    def end(self) -> None:
        if gone := range_list(self._gone):
            words = [f"{a}" if a == b else f"{a}-{b}" + (f" step {s}" if s > 1 else "") for a, b, s in gone[:3]]
            more = ", ..." if len(gone) > 3 else ""
            self._inspection.tell(
                f"{self.record.node}: frames {', '.join(words)}{more} are marked saved but are in no file"
            )

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
                    _read_all(self._inspection, name, data)

    def _open_master(self) -> int | None:
        """Rows that the master expects; None where it can't be read. Its sources must exist and be long enough."""
        inspection = self._inspection
        try:
            with inspection.open(self._master) as file:
                detector = detector_of(file)
                count = len(detector["frame_status"])
                expected = int(detector["flow/expected"][()]) if "flow/expected" in detector else count
                self._sparse = is_sparse(detector["data"])
                if self._sparse:
                    self._check_copy(detector["data"], count)
                else:
                    self._sources = Sources(detector["data"])
        except Unreadable as error:
            inspection.tell(f"{self._master}: {error}")
            return None
        for source in () if self._sources is None else self._sources.all:
            held = self._counts.get(source.name)
            if held is not None and source.origin.last >= held:
                inspection.tell(f"{source.name} is short: it has {held} frames, {self._master} needs more")
            elif held is None and not os.path.exists(os.path.join(inspection.directory, source.name)):
                inspection.tell(f"{source.name} is missing")
        self._claims = self._read_master(count)
        return max(expected, count)

    def _read_master(self, count: int) -> Iterator[Status]:
        """``frame_status`` of consecutive windows; its frame numbers are checked on the way."""
        start, step = self.record.start, self.record.step
        try:
            with self._inspection.open(self._master) as file:
                detector = detector_of(file)
                for first, last in windows(count):
                    if (detector["frame_number"][first:last] != np.arange(first, last) * step + start).any():
                        self._inspection.tell(f"{self._master}: frame_number is not {start}, {start + step}, ...")
                    yield detector["frame_status"][first:last]
        except Unreadable as error:
            self._inspection.tell(f"{self._master}: {error}")

    def _read(self, names: Sequence[str]) -> Iterator[Sequence[Rows]]:
        """Rows of the files of one receiver; they must be those that the master shows."""
        for name in names:
            try:
                with self._inspection.open(name) as file:
                    numbers = detector_of(file)["frame_number"]
                    for first, last in windows(self._counts[name], READ):
                        rows = rows_of(numbers[first:last], self.record.start, self.record.step)
                        self._check_shown(name, first, last, rows)
                        if self._sparse:
                            self._check_pixels(name, first, last, rows)
                        yield (rows,)
            except Unreadable as error:
                self._inspection.tell_of(name, error)

    def _check_shown(self, name: str, first: int, last: int, rows: Rows) -> None:
        for origin, target in () if self._sources is None else self._sources.expected(name, first, last):
            if (rows[origin - first] != target).any():
                self._inspection.tell(f"{name}: its frame numbers are not those that {self._master} shows")

    def _check_copy(self, data: Any, count: int) -> None:
        """A master of sparse frames has a row for each frame, and all their pixels."""
        if len(data["frame_ptr"]) != count + 1 or whole_rows(data) != count:
            self._inspection.tell(f"{self._master}: it lacks pixels of some of its {count} frames")
        for dataset in _datasets(data) if self._inspection.verify else ():
            _read_all(self._inspection, self._master, dataset)

    def _check_pixels(self, name: str, first: int, last: int, rows: Rows) -> None:
        """A file has as many pixels of each frame as the master's copy."""
        with self._inspection.open(name) as file, self._inspection.open(self._master) as master:
            held, shown = detector_of(file)["frame_pixels"][first:last], detector_of(master)["frame_pixels"]
            inside = rows < len(shown)
            copied = shown[int(rows.min(initial=0)) : int(rows.max(initial=0)) + 1]
            if (copied[rows[inside] - int(rows.min(initial=0))] != held[inside]).any():
                self._inspection.tell(f"{name}: {self._master} has other numbers of pixels of its frames")

    def _claimed(self, first: int, last: int) -> tuple[Status, Status]:
        claimed = next(self._claims, np.empty(0, np.uint8))
        status = np.full(last - first, INCOMPLETE, np.uint8)
        status[: len(claimed)] = np.where(claimed == SAVED, LOST, claimed)
        return status, claimed

    def _compare(self, first: int, status: Status, claimed: Status) -> None:
        if self._sources is not None and (self._sources.shown(first, first + len(claimed)) != (claimed == SAVED)).any():
            self._inspection.tell(f"{self._master}: the frames it shows are not those it marks as saved")
        gone = np.flatnonzero((claimed == SAVED) & (status[: len(claimed)] != SAVED)) + first
        self._gone.add((gone * self.record.step + self.record.start)[:, None])


def _last_row(numbers: Any, count: int, record: Record) -> int:
    """The last row of the first ``count``, which are in order but perhaps locally; -1 where there is none."""
    tail = rows_of(numbers[max(0, count - READ) : count], record.start, record.step)
    return int(tail.max(initial=-1))


def _datasets(data: Any) -> list[Any]:
    """The dataset itself, or index and intensity of sparse frames."""
    return [data["index"], data["intensity"]] if is_sparse(data) else [data]


def _read_all(inspection: Inspection, name: str, data: Any) -> None:
    """Read every chunk once."""
    import hdf5plugin  # noqa: F401 - registers the filters

    step = data.chunks[0]
    bad = []
    for row in range(0, len(data), step):
        try:
            data[row : row + step]
        except OSError:
            bad.append(row)
    if bad:
        inspection.tell(f"{name}: chunks at rows {', '.join(map(str, bad[:5]))}{'...' * (len(bad) > 5)} can't be read")
