"""Files of a run compared with their checksums, and the claims of masters with the rows that they show."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.files.checksums import READ_BYTES, RowSpan, SummedDataset
from lima2cli.files.inspection import Inspection, Unreadable, detector_of
from lima2cli.files.master_rows import TOLD
from lima2cli.files.nexus import ChannelRecord
from lima2cli.files.rows import (
    INCOMPLETE,
    LOST,
    SAVED,
    InOrder,
    RowIndices,
    Status,
    range_words,
    ranges,
    rows_of,
    windows,
)
from lima2cli.files.sparse_writer import BACKGROUND, PARTS, is_sparse, whole_rows

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
        columns |= {column: data[column] for column in ("frame_ptr", *BACKGROUND) if column in data}
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


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows ``start + i*stride + j``, i < count, j < block, in this order."""

    start: int
    stride: int
    count: int
    block: int

    def __len__(self) -> int:
        return self.count * self.block

    def at(self, order: RowIndices) -> RowIndices:
        """Return the rows at places ``order`` of the selection."""
        group, inside = np.divmod(order, max(1, self.block))
        return self.start + group * self.stride + inside

    def below(self, row: int) -> int:
        """Return how many selected rows come before a row."""
        if row <= self.start:
            return 0
        group = min((row - self.start) // max(1, self.stride), self.count - 1)
        return group * self.block + min(row - self.start - group * self.stride, self.block)

    @property
    def last(self) -> int:
        """Last row; before the first where there is none."""
        return self.start + (self.count - 1) * self.stride + self.block - 1 if len(self) else self.start - 1


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Rows of several runs, in this order: the first row of each, (n,), and how many rows end with it, (n,)."""

    starts: RowIndices
    ends: RowIndices

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def start(self) -> int:
        """First row."""
        return int(self.starts[0])

    @property
    def last(self) -> int:
        """Last row."""
        return int(self.starts[-1] + np.diff(self.ends, prepend=0)[-1]) - 1

    def at(self, order: RowIndices) -> RowIndices:
        """Return the rows at places ``order`` of the selection."""
        run = np.searchsorted(self.ends, order, "right")
        rows: RowIndices = self.starts[run] + order - np.concatenate(([0], self.ends))[run]
        return rows

    def below(self, row: int) -> int:
        """Return how many selected rows come before a row."""
        runs = int(np.searchsorted(self.starts, row))
        if not runs:
            return 0
        before = int(self.ends[runs - 2]) if runs > 1 else 0
        return min(before + row - int(self.starts[runs - 1]), int(self.ends[runs - 1]))


def _selection(space: Any) -> Selection | Runs:
    """Return the rows that a selection of an HDF5 dataspace takes: the same columns and lines of each."""
    if space.get_select_type() == 3:  # H5S_SEL_ALL
        return Selection(0, space.shape[0], 1, space.shape[0])
    if space.is_regular_hyperslab():
        return Selection(*(int(axis[0]) for axis in space.get_regular_hyperslab()))
    blocks = space.get_select_hyper_blocklist().astype(np.int64)
    first, last = np.sort(blocks[:, 0, 0]), np.sort(blocks[:, 1, 0])
    return Runs(first, np.cumsum(last - first + 1))


Area = tuple[int, int, int, int]
"""First line and column, and their numbers."""


def _area(space: Any) -> Area:
    """Return the lines and columns of a selection of frames."""
    (_, top, left), (_, bottom, right) = space.get_select_bounds()
    return int(top), int(left), int(bottom - top + 1), int(right - left + 1)


@dataclass(frozen=True, slots=True)
class ShownRows:
    """Rows of a file, the rows of the virtual dataset that show them, and which lines and columns.

    part, place   y, x, height and width in the file, and in the virtual dataset
    """

    name: str
    origin: Selection | Runs
    target: Selection | Runs
    part: Area
    place: Area


def _source(name: str, origin: Any, target: Any) -> ShownRows:
    """Return one mapping, from the selections of the file's dataset and of the virtual one."""
    rows, place = _selection(target), _area(target)
    if not origin.shape:  # all of a dataset, whatever it has: as much as is shown
        return ShownRows(name, Selection(0, len(rows), 1, len(rows)), rows, (0, 0, *place[2:]), place)
    return ShownRows(name, _selection(origin), rows, _area(origin), place)


class Sources:
    """Sources of a virtual dataset; of another one none."""

    def __init__(self, dataset: Any) -> None:
        self.all = [
            _source(source.file_name.replace("%%", "%"), source.src_space, source.vspace)
            for source in (dataset.virtual_sources() if dataset.is_virtual else ())
        ]
        self._targets = _extents([source.target for source in self.all])
        self._by_name: dict[str, list[ShownRows]] = {}
        for source in self.all:
            self._by_name.setdefault(source.name, []).append(source)
        self._origins = {name: _extents([source.origin for source in own]) for name, own in self._by_name.items()}

    def shown(self, first: int, last: int) -> RowIndices:
        """Return how many files each row of ``first`` to ``last - 1`` of the virtual dataset shows a part of."""
        shown = np.zeros(last - first, np.int64)
        for i in _overlapping(self._targets, first, last):
            target = self.all[i].target
            shown[target.at(np.arange(target.below(first), target.below(last))) - first] += 1
        return shown

    def expected(self, name: str, first: int, last: int) -> Iterator[tuple[RowIndices, RowIndices]]:
        """Yield the rows of file ``name`` that ``first`` to ``last - 1`` should show, and the rows that show them."""
        if name in self._origins:
            for i in _overlapping(self._origins[name], first, last):
                source = self._by_name[name][i]
                order = np.arange(source.origin.below(first), source.origin.below(last))
                yield source.origin.at(order), source.target.at(order)


def _extents(selections: list[Selection | Runs]) -> RowIndices:
    """Return first and last row (2, n) of each."""
    return np.array([(selection.start, selection.last) for selection in selections], np.int64).reshape(-1, 2).T


def _overlapping(extents: RowIndices, first: int, last: int) -> list[int]:
    overlapping: list[int] = np.flatnonzero((extents[0] < last) & (extents[1] >= first)).tolist()
    return overlapping


class Claims:
    """Claims of a master about its rows, asked for in consecutive windows of selected frames.

    rows       of the master
    expected   frames of the channel
    told       whether it has the reasons why frames are not saved
    vetoed     number of frames that a filter left out; None where it is not known
    sources    of its virtual dataset; None where it holds the frames itself
    """

    def __init__(self, inspection: Inspection, record: ChannelRecord, name: str) -> None:
        self._inspection, self._record, self._name = inspection, record, name
        with inspection.open(name) as file:
            detector = detector_of(file)
            count = len(detector["frame_status"])
            flow = detector.get("flow", {})
            self.told = bool(flow.attrs.get("told", False)) if flow else False
            self._by_flow = "frame_status" in flow
            selected = len(flow["frame_status"]) if self._by_flow else count
            self.expected = max(int(flow["expected"][()]) if "expected" in flow else 0, selected)
            self.vetoed = int(flow["vetoed"][()]) if "vetoed" in flow else None
            self.sparse = is_sparse(detector["data"])
            copied = self.sparse or record.layout == "common"
            self.sources = None if copied else Sources(detector["data"])
            self._shape = () if self.sparse else detector["data"].shape[1:]
            if self.sparse and (len(detector["data/frame_ptr"]) != count + 1 or whole_rows(detector["data"]) != count):
                inspection.tell(f"{name}: it lacks pixels of some of its {count} frames")
            self._check_lengths(detector, count)
        self.rows, self._selected = count, selected
        self.release()

    def release(self) -> None:
        """Close the file."""
        self._marked = InOrder(iter(()))
        self._flow: Iterator[Status] | None = None

    def rewind(self) -> None:
        """Begin anew with the first window."""
        self._marked = InOrder(self._read(self.rows))
        self._flow = self._read_flow(self._selected) if self._by_flow else None

    def window(self, first: int, last: int) -> tuple[Status, Status]:
        """Return two statuses of frames ``first`` to ``last - 1`` (by index).

        The first is what they are if they are in no file, the second what their rows have.
        """
        claimed = np.full(last - first, INCOMPLETE, np.uint8)
        for rows, status in self._marked.take(last):
            claimed[rows - first] = status
        if self._flow is None:
            absent = claimed
        else:
            known = next(self._flow, np.empty(0, np.uint8))
            absent = np.full(last - first, INCOMPLETE, np.uint8)
            absent[: len(known)] = known
        # what a filter left out has been received all the same
        return (absent if self._record.filtered else np.where(absent == SAVED, np.uint8(LOST), absent)), claimed

    def saved(self) -> Iterator[tuple[RowIndices]]:
        """Yield the frames (by index) that are marked as saved."""
        for rows, status in self._read(self.rows):
            yield (rows[status == SAVED],)

    def places(self, rows: RowIndices) -> RowIndices:
        """Return the row of the master of each selected frame (by index, increasing); -1 where it has none."""
        if not self._record.filtered or not len(rows):
            return np.where(rows < self.rows, rows, -1)
        start, step = self._record.start, self._record.step
        with self._inspection.open(self._name) as file:
            numbers = detector_of(file)["frame_number"]
            low = bisect_left(numbers, int(rows.min()) * step + start)
            known = rows_of(numbers[low : bisect_right(numbers, int(rows.max()) * step + start)], start, step)
        place = np.searchsorted(known, rows)
        present = np.isin(rows, known)
        return np.where(present, low + place, -1)

    def check_files(self, name: str, first: int, last: int, rows: RowIndices, times: NDArray[Any]) -> None:
        """Check that rows ``first`` to ``last - 1`` of a file, with the frames ``rows``, are what the master shows."""
        place = self.places(rows)
        hidden, moved = place < 0, False
        if self.sources is not None:
            shown = np.zeros(last - first, bool)
            for origin, target in self.sources.expected(name, first, last):
                shown[origin - first] = True
                moved = moved or bool((place[origin - first] != target).any())
            hidden |= ~shown
        if moved:
            self._inspection.tell(f"{name}: its frame numbers are not those that {self._name} shows")
            return
        self._check_times(name, times, place)
        if hidden.any():
            number = int(rows[hidden][0]) * self._record.step + self._record.start
            self._inspection.tell(f"{name}: {self._name} does not show all of its frames, the first of them {number}")

    def shows_whole(self, source: ShownRows, receiver: int) -> bool:
        """Return whether the frames of a file of a receiver are shown whole, and in their place of the whole frame."""
        x, y, width, height = self._record.place(receiver) or (0, 0, *reversed(self._shape))
        return source.part == (0, 0, height, width) and source.place == (y, x, height, width)

    def _check_times(self, name: str, times: NDArray[Any], place: RowIndices) -> None:
        """Check that frames of a file have the times that the rows ``place`` of the master have."""
        inside = place >= 0
        if self._record.parts > 1 or not inside.any():
            return
        low, high = int(place[inside].min()), int(place[inside].max())
        with self._inspection.open(self._name) as file:
            shown = detector_of(file)["frame_time"][low : high + 1]
        if not np.array_equal(shown[place[inside] - low], times[inside], equal_nan=True):
            self._inspection.tell(f"{name}: its frames have other times in {self._name}")

    def _check_lengths(self, detector: Any, count: int) -> None:
        """Check that every row has all that belongs to it."""
        names = ("frame_number", "frame_time", *(("frame_pixels",) if self.sparse else ("data",)))
        for name in names:
            if len(detector[name]) != count:
                lengths = f"{len(detector[name])} rows of {name}, {count} of frame_status"
                self._inspection.tell(f"{self._name}: it has {lengths}")

    def _read(self, count: int) -> Iterator[tuple[RowIndices, Status]]:
        """Yield the index of the frame of each row and its status; check numbers, and what is shown, on the way."""
        start, step = self._record.start, self._record.step
        try:
            with self._inspection.open(self._name) as file:
                detector = detector_of(file)
                for first, last in windows(count):
                    numbers, status = detector["frame_number"][first:last], detector["frame_status"][first:last]
                    self._check_shown(first, status)
                    if self._record.filtered:
                        yield rows_of(numbers, start, step), status
                        continue
                    if (numbers != np.arange(first, last) * step + start).any():
                        self._inspection.tell(f"{self._name}: frame_number is not {start}, {start + step}, ...")
                    yield np.arange(first, last), status
        except Unreadable as error:
            self._inspection.tell(f"{self._name}: {error}")

    def _check_shown(self, first: int, status: NDArray[Any]) -> None:
        if self.sources is None:
            return
        parts = self.sources.shown(first, first + len(status))
        if ((parts >= self._record.parts) != (status == SAVED)).any():
            self._inspection.tell(f"{self._name}: the frames it shows are not those it marks as saved")

    def _read_flow(self, count: int) -> Iterator[Status]:
        """Yield the status of the selected frames in the flow, window by window."""
        try:
            with self._inspection.open(self._name) as file:
                statuses = detector_of(file)["flow/frame_status"]
                for first, last in windows(count):
                    yield statuses[first:last]
        except Unreadable as error:
            self._inspection.tell(f"{self._name}: {error}")
