"""The master of a channel: one virtual dataset over the files of all receivers, in global frame order.

Of sparse frames it is a copy.

What is saved is read from the files themselves, never believed: once for the mapping, file by file, and once for the
rows, window by window. Memory does not grow with the number of frames, as long as few of them are absent irregularly.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts import mapping
from lima2cli.artefacts.appending import CHUNK_CACHE_BYTES, VERSIONS, disk_errors
from lima2cli.artefacts.channel import Channel
from lima2cli.artefacts.mapping import Piece
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.rows import READ, InOrder, rows_of, windows
from lima2cli.artefacts.sparse_files import whole_rows
from lima2cli.artefacts.sparse_master import copy_rows
from lima2cli.artefacts.tree import detector_path, fill_value, group, plant, plant_params, write_plain

SAVED, LOST, DROPPED, INCOMPLETE = 0, 1, 2, 3
"""Values of ``frame_status``."""


class Statuses(Protocol):
    """``frame_status`` of rows, uint8: an array, or what gives one for a slice of rows."""

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]:
        """Of the rows of a slice."""
        ...


def master_file(name: str, node: str) -> str:
    """Name of the master of a channel."""
    return f"{name}_{node}_master.h5"


def frame_file_names(name: str, node: str) -> re.Pattern[str]:
    """What names of frame files look like, with groups for receiver and number."""
    return re.compile(re.escape(f"{name}_{node}_") + r"(\d+)_(\d{5,})\.h5")


def frame_files(directory: str, name: str, node: str) -> list[str]:
    """Names of the frame files of a channel, by receiver, then by number."""
    pattern = frame_file_names(name, node)
    found = [
        (int(match[1]), int(match[2]), file) for file in os.listdir(directory) if (match := pattern.fullmatch(file))
    ]
    return [file for _, _, file in sorted(found)]


def write_master(
    channel: Channel,
    directory: str,
    *,
    rows: int | None = None,
    statuses: Statuses | None = None,
    totals: Mapping[str, Any] | None = None,
) -> str:
    """Write ``{name}_{node}_master.h5`` from the frame files of ``directory``; returns its path.

    rows      selected frames, saved or not; default: up to the last saved one
    statuses  uint8 (rows,): why a row that is in no file is not (1 lost, 2 dropped, 3 incomplete); saved but in no file
              counts as lost. Default: 3
    totals    the flow's account (plain data), stored in ``<detector>/flow``; ``expected`` is read by the accounting

    Written under another name, then renamed. Frame files that can't be read, or whose frames are not in order, are
    left out, and then told of by an OSError that comes after the master was written. OSError too where it can't be
    written, ValueError where a file holds a frame that the flow does not select.
    """
    import h5py

    path = os.path.join(directory, master_file(channel.name, channel.node))
    files, unreadable = _scan_all(channel, directory, rows)
    count = rows if rows is not None else 1 + max((file.last for file in files), default=-1)
    start_ns = next((file.start_ns for file in files), None)
    try:
        with disk_errors(path), h5py.File(f"{path}.part", "w", libver=VERSIONS) as master:
            detector = plant(master, channel, start_ns)
            plant_params(detector, channel)
            Record.of(channel, "master", start_ns=start_ns).write(master)
            write_plain(group(detector, "flow", "NXcollection"), {"name": channel.flow, **(totals or {})})
            _write_rows(detector, channel, directory, files, count, statuses)
            if channel.sparse:
                held = {file.name: file.rows for file in files}
                names = by_receiver(held)
                copy_rows(detector, channel, directory, [[(n, held[n]) for n in own] for own in names], count)
            else:
                _virtual(detector, channel, files, count)
    except OSError:
        with suppress(OSError):
            os.remove(f"{path}.part")
        raise
    os.replace(f"{path}.part", path)
    if unreadable:
        raise OSError(f"{os.path.basename(path)} was written without {'; '.join(unreadable)}")
    return path


def by_receiver(names: Iterable[str]) -> list[list[str]]:
    """Names of frame files in their order, those of each receiver together."""
    return [list(own) for _, own in groupby(names, lambda name: name.rpartition("_")[0])]


@dataclass(frozen=True)
class _Source:
    """A frame file: its rows, the last of them in the master (-1: none), how they map, and the run's start."""

    name: str
    rows: int
    last: int
    pieces: list[Piece]
    start_ns: int | None

    @property
    def receiver(self) -> str:
        """Name without the number of the file."""
        return self.name.rpartition("_")[0]


def _scan_all(channel: Channel, directory: str, limit: int | None) -> tuple[list[_Source], list[str]]:
    """The frame files that can be read, and what is wrong with the others."""
    files: list[_Source] = []
    unreadable = []
    for name in frame_files(directory, channel.name, channel.node):
        before = files[-1].last if files and name.startswith(f"{files[-1].receiver}_") else -1
        try:
            files.append(_scan(channel, directory, name, before, limit))
        except OSError as error:
            unreadable.append(f"{name}: {error}")
    return files, unreadable


def _scan(channel: Channel, directory: str, name: str, before: int, limit: int | None) -> _Source:
    """A file whose rows come after row ``before``; those from ``limit`` on are not mapped."""
    found, last, source = mapping.Mapping(), before, 0
    several = len(set(channel.receivers)) < len(channel.receivers)
    path = os.path.join(directory, name)
    for (rows,) in _read(path, channel, ("frame_number",)):
        if (np.diff(rows, prepend=last) <= 0).any():
            raise OSError("its frames are not in order")
        last = int(rows[-1])
        mapped = rows if limit is None else rows[: np.searchsorted(rows, limit)]
        buffer = mapped // channel.rule.blocks % channel.rule.buffers if several else None
        found.add(mapped, np.arange(source, source + len(mapped)), buffer)
        source += len(rows)
    return _Source(name, source, last, found.finish(), _start_ns(path))


def _start_ns(path: str) -> int | None:
    import h5py

    with disk_errors(path), h5py.File(path) as file:
        record = Record.read(file)
    return record.start_ns if record is not None and record.start_ns >= 0 else None


def _read(path: str, channel: Channel, columns: Iterable[str]) -> Iterator[list[NDArray[Any]]]:
    """Columns of a frame file, piece by piece; instead of frame numbers their rows in the master.

    Rows beyond the shortest of the file's datasets don't count: a kill may leave some longer.
    """
    import h5py

    with disk_errors(path):
        file = h5py.File(path, rdcc_nbytes=CHUNK_CACHE_BYTES)
    with file:
        with disk_errors(path):
            detector = file[detector_path(channel)]
            held = min(whole_rows(detector["data"]), *(len(detector[name]) for name in ("frame_number", "frame_time")))
        for first, last in windows(held, READ):
            with disk_errors(path):
                piece = [detector[name][first:last] for name in columns]
            yield [rows_of(piece[0], channel.rule.start, channel.rule.step), *piece[1:]]


def _write_rows(
    detector: Any, channel: Channel, directory: str, files: list[_Source], count: int, statuses: Statuses | None
) -> None:
    """Number, time and status of every row, saved or not."""
    number = detector.create_dataset("frame_number", (count,), "uint64")
    time = detector.create_dataset("frame_time", (count,), "float64")
    time.attrs["units"] = "s"
    state = detector.create_dataset("frame_status", (count,), "uint8")

    def read(names: list[str]) -> Iterator[list[NDArray[Any]]]:
        for name in names:
            yield from _read(os.path.join(directory, name), channel, ("frame_number", "frame_time"))

    receivers = [InOrder(read(names)) for names in by_receiver(file.name for file in files)]
    rule = channel.rule
    for first, last in windows(count):
        status, times = np.full(last - first, INCOMPLETE, np.uint8), np.full(last - first, np.nan)
        if statuses is not None:
            told = statuses[first:last]
            status[: len(told)] = np.where(told == SAVED, LOST, told)
        for receiver in receivers:
            for rows, taken in receiver.take(last):
                status[rows - first] = SAVED
                times[rows - first] = taken
        number[first:last] = np.arange(first, last, dtype=np.uint64) * np.uint64(rule.step) + np.uint64(rule.start)
        time[first:last] = times
        state[first:last] = status


def _virtual(detector: Any, channel: Channel, files: list[_Source], count: int) -> None:
    """The dataset ``data`` (count, height, width), by names relative to the master."""
    import h5py

    frame = (channel.height, channel.width)
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    target, source = h5py.h5s.create_simple((count, *frame)), f"{detector.name}/data".replace("%", "%%").encode()
    for file in files:
        available = h5py.h5s.create_simple((file.rows, *frame))
        name = file.name.replace("%", "%%").encode()  # printf-style names would be patterns
        for piece in file.pieces:
            _select(target, piece.target, piece.target_stride, piece, frame)
            _select(available, piece.source, piece.source_stride, piece, frame)
            layout.set_virtual(target, name, source, available)
    dtype = np.dtype(channel.dtype)
    layout.set_fill_value(np.array(fill_value(channel), dtype))
    target.select_all()
    made = h5py.h5d.create(detector.id, b"data", h5py.h5t.py_create(dtype), target, layout)
    h5py.Dataset(made).attrs["interpretation"] = "image"


def _select(space: Any, first: int, stride: int, piece: Piece, frame: tuple[int, int]) -> None:
    ones = (1, 1)
    space.select_hyperslab(
        (first, 0, 0), (piece.count, *ones), (max(stride, piece.block), *ones), (piece.block, *frame)
    )
