"""The master of a channel: one virtual dataset over the files of all receivers, in global frame order.

What is saved is read from the files themselves, never believed.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.appending import VERSIONS, disk_errors
from lima2cli.artefacts.channel import Channel
from lima2cli.artefacts.mapping import Piece, pieces
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.tree import detector_path, fill_value, group, plant, plant_params, write_plain
from lima2cli.geometry import Rule

SAVED, LOST, DROPPED, INCOMPLETE = 0, 1, 2, 3
"""Values of ``frame_status``."""


def master_file(name: str, node: str) -> str:
    """Name of the master of a channel."""
    return f"{name}_{node}_master.h5"


def frame_files(directory: str, name: str, node: str) -> list[str]:
    """Names of the frame files of a channel, by receiver, then by number."""
    pattern = re.compile(re.escape(f"{name}_{node}_") + r"(\d+)_(\d{5,})\.h5")
    found = [
        (int(match[1]), int(match[2]), file) for file in os.listdir(directory) if (match := pattern.fullmatch(file))
    ]
    return [file for _, _, file in sorted(found)]


def rows_of(numbers: NDArray[np.uint64], start: int, step: int) -> NDArray[np.int64]:
    """Row k of each frame number; ValueError where one is not among the selected frames."""
    row, rest = np.divmod(numbers.astype(np.int64) - start, step)
    if len(row) and (rest.any() or row.min() < 0):
        bad = numbers[(rest != 0) | (row < 0)][0]
        raise ValueError(f"frame {bad} is not one of {start}, {start + step}, ...")
    return row


def write_master(
    channel: Channel,
    directory: str,
    *,
    rows: int | None = None,
    statuses: NDArray[np.uint8] | None = None,
    totals: Mapping[str, Any] | None = None,
) -> str:
    """Write ``{name}_{node}_master.h5`` from the frame files of ``directory``; returns its path.

    rows      selected frames, saved or not; default: up to the last saved one
    statuses  uint8 (rows,): why a row that is in no file is not (1 lost, 2 dropped, 3 incomplete); saved but in no file
              counts as lost. Default: 3
    totals    the flow's account (plain data), stored in ``<detector>/flow``; ``expected`` is read by the accounting

    Written under another name, then renamed. Frame files that can't be read are left out, and then told of by an
    OSError that comes after the master was written. OSError too where it can't be written, ValueError where a file
    holds a frame that the flow does not select.
    """
    import h5py

    path = os.path.join(directory, master_file(channel.name, channel.node))
    files: dict[str, _Rank] = {}
    unreadable = []
    for name in frame_files(directory, channel.name, channel.node):
        try:
            files[name] = _read_rank(os.path.join(directory, name), channel)
        except OSError as error:
            unreadable.append(f"{name}: {error}")
    saved = [rank.rows for rank in files.values()]
    count = rows if rows is not None else 1 + max((int(row.max()) for row in saved if len(row)), default=-1)
    start_ns = next((rank.start_ns for rank in files.values()), None)
    with disk_errors(path), h5py.File(f"{path}.part", "w", libver=VERSIONS) as file:
        detector = plant(file, channel, start_ns)
        plant_params(detector, channel)
        Record.of(channel, "master", start_ns=start_ns).write(file)
        write_plain(group(detector, "flow", "NXcollection"), {"name": channel.flow, **(totals or {})})
        status = np.full(count, INCOMPLETE, np.uint8)
        if statuses is not None:
            status[:] = np.where(statuses[:count] == SAVED, LOST, statuses[:count])
        times = np.full(count, np.nan)
        for rank in files.values():
            inside = rank.rows < count
            status[rank.rows[inside]] = SAVED
            times[rank.rows[inside]] = rank.times[inside]
        rule = channel.rule
        detector["frame_number"] = np.arange(count, dtype=np.uint64) * np.uint64(rule.step) + np.uint64(rule.start)
        detector["frame_time"] = times
        detector["frame_time"].attrs["units"] = "s"
        detector["frame_status"] = status
        _virtual(detector, channel, {name: rank.rows for name, rank in files.items()}, count)
    os.replace(f"{path}.part", path)
    if unreadable:
        raise OSError(f"{os.path.basename(path)} was written without {'; '.join(unreadable)}")
    return path


@dataclass(frozen=True, eq=False)
class _Rank:
    """A frame file: row in the master and time of each frame, and the run's start."""

    rows: NDArray[np.int64]
    times: NDArray[np.float64]
    start_ns: int | None


def _read_rank(path: str, channel: Channel) -> _Rank:
    """Rows beyond the shortest of a file's datasets don't count: a kill may leave some longer."""
    import h5py

    with disk_errors(path), h5py.File(path) as file:
        record = Record.read(file)
        detector = file[detector_path(channel)]
        rows = min(len(detector[name]) for name in ("data", "frame_number", "frame_time"))
        numbers, times = detector["frame_number"][:rows], detector["frame_time"][:rows]
    start_ns = record.start_ns if record is not None and record.start_ns >= 0 else None
    return _Rank(rows_of(numbers, channel.rule.start, channel.rule.step), times, start_ns)


def _virtual(detector: Any, channel: Channel, files: Mapping[str, NDArray[np.int64]], count: int) -> None:
    """The dataset ``data`` (count, height, width), by names relative to the master."""
    import h5py

    frame = (channel.height, channel.width)
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    target, source = h5py.h5s.create_simple((count, *frame)), detector.name
    for name, rows in files.items():
        available = h5py.h5s.create_simple((len(rows), *frame))
        rows = rows[: int(np.argmax(rows >= count))] if len(rows) and rows.max() >= count else rows
        for piece in pieces(rows, buffers_of(channel.rule, rows)):
            _select(target, piece.target, piece.target_stride, piece, frame)
            _select(available, piece.source, piece.source_stride, piece, frame)
            escaped = name.replace("%", "%%")  # printf-style names would be patterns
            layout.set_virtual(target, escaped.encode(), f"{source}/data".replace("%", "%%").encode(), available)
    dtype = np.dtype(channel.dtype)
    layout.set_fill_value(np.array(fill_value(channel), dtype))
    target.select_all()
    made = h5py.h5d.create(detector.id, b"data", h5py.h5t.py_create(dtype), target, layout)
    h5py.Dataset(made).attrs["interpretation"] = "image"


def buffers_of(rule: Rule, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Local buffer of each selected frame."""
    return rows // rule.blocks % rule.buffers


def _select(space: Any, first: int, stride: int, piece: Piece, frame: tuple[int, int]) -> None:
    ones = (1, 1)
    space.select_hyperslab(
        (first, 0, 0), (piece.count, *ones), (max(stride, piece.block), *ones), (piece.block, *frame)
    )
