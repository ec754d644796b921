"""Rows of a master: their mapping to rows of frame files, their number, time and status."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.files.appending import Columns
from lima2cli.files.channel import Channel
from lima2cli.files.checksums import cover
from lima2cli.files.nexus import fill_value
from lima2cli.files.rows import INCOMPLETE, LOST, SAVED, WINDOW, InOrder, Progressions, Statuses, told, windows
from lima2cli.files.tree import fixed, group, write_plain
from lima2cli.geometry import Rect

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """A regular part of a mapping, for i < count, j < block.

    Rows ``target + i*target_stride + j`` come from ``source + i*source_stride + j``.
    """

    target: int
    source: int
    count: int
    block: int
    target_stride: int
    source_stride: int


class RowMapping:
    """Pieces of a file whose rows come in order, a few at a time; a regular file of any length is a few pieces.

    Rows of one local buffer are regular where those of a receiver, which may own several, need not be: both are
    tried, and the shorter list wins.
    """

    def __init__(self) -> None:
        self._whole = _Runs()
        self._split: dict[int, _Runs] = {}

    def add(self, target: Indices, source: Indices, buffer: Indices | None = None) -> None:
        """Map source rows ``source[i]`` to rows ``target[i]``, both (n,) and ascending, through local buffer (n,)."""
        self._whole.add(target, source)
        if buffer is not None:
            for one in np.unique(buffer).tolist():
                mine = buffer == one
                self._split.setdefault(one, _Runs()).add(target[mine], source[mine])

    def finish(self) -> list[Piece]:
        """Return the pieces."""
        whole = self._whole.finish()
        if len(whole) <= 2 or not self._split:
            return whole
        split = [piece for _, runs in sorted(self._split.items()) for piece in runs.finish()]
        return min(whole, split, key=len)


def pieces(target: Indices, buffer: Indices | None = None) -> list[Piece]:
    """Return the pieces that map source row i to row ``target[i]``; target (n,) without duplicates, in any order."""
    order = np.argsort(target, kind="stable")
    mapping = RowMapping()
    mapping.add(target[order], order, None if buffer is None else buffer[order])
    return mapping.finish()


def rows(first: int, stride: int, count: int, block: int) -> Indices:
    """Return the row indices of a regular selection, in order."""
    starts = first + stride * np.arange(count, dtype=np.int64)
    return np.add.outer(starts, np.arange(block, dtype=np.int64)).ravel()


class _Runs:
    """Two run-length encodings: rows into blocks of neighbours, equal blocks at equal distances into pieces."""

    def __init__(self) -> None:
        self._open = np.empty((0, 3), np.int64)  # the last block: first target row, first source row, length
        self._blocks = Progressions(3, _joins)

    def add(self, target: Indices, source: Indices) -> None:
        if not len(target):
            return
        cuts = np.flatnonzero((np.diff(target) != 1) | (np.diff(source) != 1)) + 1
        begin = np.concatenate(([0], cuts))
        length = np.diff(np.concatenate((begin, [len(target)])))
        blocks = np.stack((target[begin], source[begin], length), axis=1)
        if len(self._open):
            at, of, size = self._open[0]
            if blocks[0, 0] == at + size and blocks[0, 1] == of + size:
                blocks[0] = at, of, size + blocks[0, 2]
            else:
                blocks = np.concatenate((self._open, blocks))
        self._blocks.add(blocks[:-1])
        self._open = blocks[-1:]

    def finish(self) -> list[Piece]:
        self._blocks.add(self._open)
        self._open = self._open[:0]
        return [
            Piece(at, of, count, block, at_step or block, of_step or block)
            for at, of, block, at_step, of_step, _, count in self._blocks.finish().tolist()
        ]


def _joins(blocks: Indices, steps: Indices) -> NDArray[np.bool_]:
    """Return whether blocks (n, 3) and the ones that follow them by ``steps`` can be one piece."""
    joins: NDArray[np.bool_] = (steps[:, 2] == 0) & (steps[:, 0] >= blocks[:, 2]) & (steps[:, 1] >= blocks[:, 2])
    return joins


RUNS = 64
"""Blocks of rows that one mapping takes together."""


@dataclass(frozen=True)
class SourceFile:
    """A frame file: its receiver, its rows, and the mapping of these.

    It also has the index of the last selected frame (-1: none) and the start of the run.
    """

    name: str
    receiver: int
    rows: int
    last: int
    pieces: list[Piece]
    start_ns: int | None


def write_virtual(detector: Any, channel: Channel, files: Sequence[SourceFile], count: int) -> None:
    """Write the dataset ``data`` (count, height, width), by names relative to the master."""
    places = {file.receiver: channel.place(file.receiver) for file in files}
    made = _virtual(
        detector, "data", channel.dtype, fill_value(channel), (channel.height, channel.width), count, files, places
    )
    made.attrs["interpretation"] = "image"


COLUMNS = ("frame_number", "frame_time", "frame_status")
"""Datasets of frame files with a value for each row."""


def write_columns(detector: Any, files: Sequence[SourceFile], count: int) -> None:
    """Write number, time and status of ``count`` rows that are all in files, as virtual datasets, too."""
    for name, dtype in zip(COLUMNS, ("uint64", "float64", "uint8"), strict=True):
        made = _virtual(detector, name, dtype, 0, (), count, files, {})
        if name == "frame_time":
            made.attrs["units"] = fixed("s")


def _virtual(
    detector: Any,
    dataset: str,
    dtype: str,
    fill: Any,
    shape: tuple[int, ...],
    count: int,
    files: Sequence[SourceFile],
    places: Mapping[int, Rect],
) -> Any:
    """Make and return a virtual dataset (count, *shape) over those of that name in frame files.

    places  of each receiver the rectangle that its frames show; of values there is none
    """
    import h5py

    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    target = h5py.h5s.create_simple((count, *shape))
    source = f"{detector.name}/{dataset}".replace("%", "%%").encode()
    for file in files:
        place = places.get(file.receiver)
        own = None if place is None else Rect(0, 0, place.width, place.height)
        available = h5py.h5s.create_simple((file.rows, *(() if own is None else (own.height, own.width))))
        name = file.name.replace("%", "%%").encode()  # printf-style names would be patterns
        for together in _together(file.pieces):
            target.select_none()
            available.select_none()
            for piece in together:
                _add(target, piece.target, piece.target_stride, piece, place)
                _add(available, piece.source, piece.source_stride, piece, own)
            layout.set_virtual(target, name, source, available)
    layout.set_fill_value(np.array(fill, np.dtype(dtype)))
    target.select_all()
    made = h5py.h5d.create(detector.id, dataset.encode(), h5py.h5t.py_create(np.dtype(dtype)), target, layout)
    return h5py.Dataset(made)


def _together(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Yield lists of pieces that one mapping takes: their rows are in the same order in the file and in the dataset."""
    held: list[Piece] = []
    for piece in pieces:
        if held and sum(held_piece.count for held_piece in held) + piece.count > RUNS:
            yield held
            held = []
        held.append(piece)
    if held:
        yield held


def _add(space: Any, first: int, stride: int, piece: Piece, place: Rect | None) -> None:
    import h5py

    corner, size = ((), ()) if place is None else ((place.y, place.x), (place.height, place.width))
    ones = (1,) * len(size)
    space.select_hyperslab(
        (first, *corner),
        (piece.count, *ones),
        (max(stride, piece.block), *ones),
        (piece.block, *size),
        op=h5py.h5s.SELECT_OR,
    )


TOLD = ("frame_number", "frame_time", "frame_status", "frame_pixels")
"""Datasets with a value for each row."""


def write_rows(
    detector: Any, channel: Channel, receivers: Sequence[InOrder], count: int, statuses: Statuses | None
) -> None:
    """Write a row for each of ``count`` selected frames, saved or not.

    receivers   of each the frames in its files: index among the selected ones, time (seconds since the start)
    """
    number, time, state = _datasets(detector, count)
    rule = channel.rule
    for first, last in windows(count):
        status, times = told(statuses, first, last), np.full(last - first, np.nan)
        status[status == SAVED] = LOST  # unless it is found
        parts = np.zeros(last - first, np.intp)
        for receiver in receivers:
            for rows, taken, *_ in receiver.take(last):
                parts[rows - first] += 1
                times[rows - first] = taken
        status[parts > 0] = INCOMPLETE
        status[parts >= channel.parts] = SAVED
        number[first:last] = np.arange(first, last, dtype=np.uint64) * np.uint64(rule.step) + np.uint64(rule.start)
        time[first:last] = times
        state[first:last] = status


def write_kept_rows(
    detector: Any, channel: Channel, receivers: Sequence[InOrder], files: int, limit: int
) -> tuple[int, list[RowMapping]]:
    """Write a row for each frame below ``limit`` that is in files; return their number, and the mapping of each file.

    receivers   as of `write_rows`, and of each frame its row in its file, and the index of that file
    """
    columns = Columns(detector, {"frame_number": "uint64", "frame_time": "float64", "frame_status": "uint8"})
    detector["frame_time"].attrs["units"] = fixed("s")
    maps = [RowMapping() for _ in range(files)]
    rule = channel.rule
    for first, last in windows(limit):
        parts, times = np.zeros(last - first, np.intp), np.full(last - first, np.nan)
        taken = [piece for receiver in receivers for piece in receiver.take(last)]
        for rows, time, *_ in taken:
            parts[rows - first] += 1
            times[rows - first] = time
        place = columns.rows + np.cumsum(parts > 0) - 1
        for rows, _, source, file in taken:
            maps[int(file[0])].add(place[rows - first], source)
        kept = np.flatnonzero(parts)
        status = np.where(parts[kept] >= channel.parts, SAVED, INCOMPLETE)
        columns.append(((kept + first) * rule.step + rule.start, times[kept], status))
        columns.write()
    return columns.rows, maps


def cover_rows(detector: Any) -> None:
    """Write checksums of the row by row datasets of a master that is complete."""
    cover(detector, {name: detector[name] for name in TOLD if name in detector})


def write_flow(
    detector: Any, channel: Channel, count: int, statuses: Statuses | None, totals: Mapping[str, Any] | None
) -> None:
    """Write the account of the channel's flow; where the rows don't show it, also the status of each selected frame."""
    flow = group(detector, "flow", "NXcollection")
    flow.attrs["told"] = statuses is not None  # else rows that are in no file are so for unknown reasons
    write_plain(flow, {"name": channel.flow, **(totals or {})})
    if channel.filtered or channel.places:
        chunks = (min(WINDOW, count),) if count else None
        made = flow.create_dataset(
            "frame_status", (count,), "uint8", chunks=chunks, compression="gzip" if chunks else None
        )
        for first, last in windows(count):
            made[first:last] = told(statuses, first, last)


def _datasets(detector: Any, count: int) -> tuple[Any, Any, Any]:
    number = detector.create_dataset("frame_number", (count,), "uint64")
    time = detector.create_dataset("frame_time", (count,), "float64")
    time.attrs["units"] = fixed("s")
    return number, time, detector.create_dataset("frame_status", (count,), "uint8")
