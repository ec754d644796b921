"""What a master says of its rows, held against what it shows."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.inspection import Inspection, Unreadable, detector_of
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.rows import InOrder, Rows, rows_of, windows
from lima2cli.artefacts.sources import Source, Sources
from lima2cli.artefacts.sparse_files import is_sparse, whole_rows
from lima2cli.artefacts.status import INCOMPLETE, LOST, SAVED, Status


class Claims:
    """Rows of a master, asked for in consecutive windows of selected frames. `Unreadable` where it can't be read.

    rows       of the master
    expected   frames of the channel
    told       whether it says why frames are not saved
    vetoed     frames that a filter left out; None where nothing tells
    sources    of its virtual dataset; None where it holds the frames itself
    """

    def __init__(self, inspection: Inspection, record: Record, name: str) -> None:
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
        """Status of frames ``first`` to ``last - 1`` (by index) if they are in no file, and as their rows say."""
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

    def saved(self) -> Iterator[tuple[Rows]]:
        """The frames (by index) that are marked as saved."""
        for rows, status in self._read(self.rows):
            yield (rows[status == SAVED],)

    def places(self, rows: Rows) -> Rows:
        """The row of the master of each selected frame (by index, increasing); -1 where it has none."""
        if not self._record.filtered or not len(rows):
            return np.where(rows < self.rows, rows, -1)
        start, step = self._record.start, self._record.step
        with self._inspection.open(self._name) as file:
            numbers = detector_of(file)["frame_number"]
            low = bisect_left(numbers, int(rows.min()) * step + start)
            known = rows_of(numbers[low : bisect_right(numbers, int(rows.max()) * step + start)], start, step)
        place = np.searchsorted(known, rows)
        there = np.isin(rows, known)
        return np.where(there, low + place, -1)

    def check_files(self, name: str, first: int, last: int, rows: Rows, times: NDArray[Any]) -> None:
        """Rows ``first`` to ``last - 1`` of a file, which hold the frames ``rows``, are what the master shows."""
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

    def shows_whole(self, source: Source, receiver: int) -> bool:
        """Whether the frames of a file of a receiver are shown whole, and in their place of the whole frame."""
        x, y, width, height = self._record.place(receiver) or (0, 0, *reversed(self._shape))
        return source.part == (0, 0, height, width) and source.place == (y, x, height, width)

    def _check_times(self, name: str, times: NDArray[Any], place: Rows) -> None:
        """Frames of a file have the times that the rows ``place`` of the master have."""
        inside = place >= 0
        if self._record.parts > 1 or not inside.any():
            return
        low, high = int(place[inside].min()), int(place[inside].max())
        with self._inspection.open(self._name) as file:
            shown = detector_of(file)["frame_time"][low : high + 1]
        if not np.array_equal(shown[place[inside] - low], times[inside], equal_nan=True):
            self._inspection.tell(f"{name}: its frames have other times in {self._name}")

    def _check_lengths(self, detector: Any, count: int) -> None:
        """Every row has all that belongs to it."""
        names = ("frame_number", "frame_time", *(("frame_pixels",) if self.sparse else ("data",)))
        for name in names:
            if len(detector[name]) != count:
                said = f"{len(detector[name])} rows of {name}, {count} of frame_status"
                self._inspection.tell(f"{self._name}: it has {said}")

    def _read(self, count: int) -> Iterator[tuple[Rows, Status]]:
        """Index of the frame of each row and its status; numbers, and what is shown, are checked on the way."""
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
        """What became of the selected frames in the flow, window by window."""
        try:
            with self._inspection.open(self._name) as file:
                told = detector_of(file)["flow/frame_status"]
                for first, last in windows(count):
                    yield told[first:last]
        except Unreadable as error:
            self._inspection.tell(f"{self._name}: {error}")
