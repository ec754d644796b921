"""Whether datasets are as they were written: by their checksums, and where there are none by reading them."""

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.checksums import READ_BYTES, Checked, Span
from lima2cli.artefacts.inspection import Inspection, Unreadable
from lima2cli.artefacts.master_rows import TOLD
from lima2cli.artefacts.progressions import range_words, ranges
from lima2cli.artefacts.sparse_files import PARTS, is_sparse

SMALL_BYTES = 1 << 16
"""Of a dataset that is read to see that it can be."""

FrameNumbers = Callable[[int, int], NDArray[Any]]
"""The frames of rows ``first`` to ``last - 1``, by number."""


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
    """Hold what a file tells of its rows against its checksums, and tell of which frames that is damaged."""
    numbers, data = detector["frame_number"], detector["data"]
    told = {column: detector[column] for column in TOLD if column in detector}
    if is_sparse(data):
        told["frame_ptr"] = data["frame_ptr"]
    for column, values in told.items():
        checked = Checked.of(values, detector, column)
        if checked is None:
            continue
        why = f"the bytes of {column} are not those that were written"
        before = int(column == "frame_ptr")  # its row k is where frame k - 1 ends
        bad = [(max(0, first - before), min(last, len(numbers))) for first, last in checked.damaged(0, checked.covered)]
        if column == "frame_number":
            rows = _frames(bad, np.arange)
            _tell(inspection, name, rows, f"{'is' if len(rows) == 1 else 'are'} damaged: {why}", "row")
        else:
            found = _frames(bad, lambda first, last: numbers[first:last])
            _tell(inspection, name, found, f"{'has' if len(found) == 1 else 'have'} damaged values: {why}")


def verify_frames(inspection: Inspection, node: str, name: str, detector: Any) -> None:
    """Hold the dense or sparse frames of a file against their checksums, and tell which are damaged."""
    data, numbers = detector["data"], detector["frame_number"]
    verify_rows(inspection, name, detector)
    if not is_sparse(data) and data.is_virtual:
        return
    if not is_sparse(data):
        _verify(inspection, node, name, data, Checked.of(data, detector), lambda a, b: numbers[a:b])
        return
    ends = data["frame_ptr"][1:]

    def frames(first: int, last: int) -> NDArray[Any]:
        begin, end = np.searchsorted(ends, (first, max(first, last - 1)), "right").tolist()
        found: NDArray[Any] = numbers[begin : end + 1]
        return found

    for part in PARTS:
        _verify(inspection, node, name, data[part], Checked.of(data[part], detector, part), frames)


def verify_common(inspection: Inspection, node: str, name: str, detector: Any) -> None:
    """Hold the frames of a common file that were saved against their checksums, and tell which are damaged."""
    data, numbers, status = detector["data"], detector["frame_number"], detector["frame_status"]
    verify_rows(inspection, name, detector)

    def saved(first: int, last: int) -> NDArray[Any]:
        told = numbers[first:last]  # fewer where the master is damaged, which is reported elsewhere
        found: NDArray[Any] = told[status[first : first + len(told)] == 0]
        return found

    _verify(inspection, node, name, data, Checked.of(data, detector), saved)


def verify_table(inspection: Inspection, node: str, name: str, columns: Any) -> None:
    """Hold the columns of a table against their checksums, and tell of which frames values are damaged."""
    numbers = columns["frame_number"]
    for column, data in columns.items():
        checked = Checked.of(data, columns.parent, column)
        if column == "frame_number":
            _verify(inspection, node, name, data, checked, np.arange, "row")
        else:
            _verify(inspection, node, name, data, checked, lambda a, b: numbers[a:b])


def _verify(
    inspection: Inspection,
    node: str,
    name: str,
    dataset: Any,
    checked: Checked | None,
    frames: FrameNumbers,
    word: str = "frame",
) -> None:
    part = dataset.name.rpartition("/")[2]
    covered = 0 if checked is None else checked.covered
    if checked is not None:
        found = _frames(checked.damaged(0, covered), frames)
        why = f"the bytes of {part} are not those that were written"
        _tell(inspection, name, found, f"{'is' if len(found) == 1 else 'are'} damaged: {why}", word)
    rest = len(dataset) - covered
    if not rest:
        return
    inspection.unchecked[node] = inspection.unchecked.get(node, 0) + len(np.unique(frames(covered, len(dataset))))
    step = dataset.chunks[0] if dataset.chunks else _rows_together(dataset)
    bad: dict[str, list[Span]] = {}
    for row, why in inspection.reader.unreadable(dataset.file.filename, dataset.name, covered, len(dataset), step):
        bad.setdefault(why, []).append((row, min(len(dataset), row + step)))
    for why, rows in bad.items():
        _tell(inspection, name, _frames(rows, frames), f"of {part} {why}" if part != "data" else why, word)


def _rows_together(dataset: Any) -> int:
    row_bytes: int = dataset.dtype.itemsize * prod(dataset.shape[1:])
    return max(1, READ_BYTES // max(1, row_bytes))


def _frames(rows: Iterable[Span], frames: FrameNumbers) -> NDArray[Any]:
    found = [frames(first, last) for first, last in rows]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64)


def _tell(inspection: Inspection, name: str, frames: NDArray[Any], problem: str, word: str = "frame") -> None:
    if len(frames):
        inspection.tell(f"{name}: {word}{'s' * (len(frames) != 1)} {range_words(ranges(frames))} {problem}")
