"""Comparison of the files of a run with their checksums, and report of what is damaged."""

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.files.checksums import READ_BYTES, RowSpan, SummedDataset
from lima2cli.files.inspection import Inspection, Unreadable
from lima2cli.files.master_rows import TOLD
from lima2cli.files.rows import range_words, ranges
from lima2cli.files.sparse_writer import PARTS, is_sparse

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
