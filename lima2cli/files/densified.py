"""Sparse frames as dense ones again, in a file of their own."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from lima2cli.errors import EnvironmentUnfit, UnreadableInput
from lima2cli.files.appending import VERSIONS, written
from lima2cli.files.compression import filter_options, load_filters
from lima2cli.files.disk import disk_errors
from lima2cli.files.inspection import Unreadable, detector_of
from lima2cli.files.nexus import ENTRY, MEASUREMENT, ChannelRecord, write_root
from lima2cli.files.rows import SAVED
from lima2cli.files.sparse_writer import DenseRows, is_sparse
from lima2cli.files.tree import group

ROWS = ("frame_number", "frame_time", "frame_status")
"""Columns that are taken over."""


def sparse_file(path: Path, node: str | None = None) -> Path:
    """Return the file of sparse frames that a path names: itself, or the master of a run directory.

    node  the node that has saved them, where the run has several masters of sparse frames

    Raises:
        UnreadableInput: there is none, or there are several.
    """
    if not path.is_dir():
        return path
    masters = {}
    for file in sorted(path.glob("*_master.h5")):
        name = _saved_by(file)
        if name is not None:
            masters[name] = file
    found = [file for name, file in masters.items() if node in (None, name)]
    if len(found) == 1:
        return found[0]
    if not masters:
        raise UnreadableInput(f"{path} has no master of sparse frames")
    names = ", ".join(masters)
    raise UnreadableInput(f"{path} has sparse frames of {names}: say which by --node")


def _saved_by(file: Path) -> str | None:
    """Return the node whose sparse frames a master shows; None where it shows dense ones, or can't be read."""
    import h5py

    try:
        with h5py.File(file, locking="best-effort") as opened:
            record = ChannelRecord.read(opened)
            return record.node if record is not None and is_sparse(detector_of(opened)["data"]) else None
    except Unreadable:
        return None


def densify(source: Path, out: Path) -> int:
    """Restore the frames of a file, of a receiver or a master, as whole detector images, see `DenseRows`.

    ``out`` is made as a whole: ``/entry_0000/measurement`` has ``data`` (n, height, width), a chunk for each frame,
    compressed by bitshuffle-LZ4, with the numbers, times and statuses of the frames. Those that were not saved are
    filled. Returns n; memory holds one frame.

    Raises:
        UnreadableInput: the file has no sparse frames, or can't be read.
        EnvironmentUnfit: ``out`` exists.
        OSError: the disk refuses.
    """
    import h5py

    load_filters()
    if out.exists():
        raise EnvironmentUnfit(f"{out} exists, and is not overwritten")
    try:
        file = h5py.File(source, locking="best-effort")
    except OSError as error:
        raise UnreadableInput(f"{source} cannot be read: {error}") from error
    with file:
        try:
            detector = detector_of(file)
            sparse = is_sparse(detector["data"])
        except Unreadable as error:
            raise UnreadableInput(f"{source} is not a file of a run: {error}") from error
        if not sparse:
            raise UnreadableInput(f"{source} has no sparse frames")
        part = f"{out}.part"
        with disk_errors(str(out)), written(part, libver=VERSIONS) as made:
            count = _write(made, file, detector)
        os.replace(part, out)
    return count


def _write(made: Any, file: Any, detector: Any) -> int:
    """Write all frames; return how many."""
    import h5py

    rows, dtype = DenseRows(detector["data"]), detector["data"].attrs["dtype"]
    count = len(detector["data/frame_ptr"]) - 1
    title = file[ENTRY]["title"].asstr()[()] if "title" in file[ENTRY] else None
    entry = write_root(made, title, None)
    for name in ("start_time", "end_time"):
        if name in file[ENTRY]:
            entry[name] = file[ENTRY][name][()]
    measurement = group(entry, "measurement", "NXcollection")
    for name in ROWS:
        detector.copy(name, measurement)
    data = measurement.create_dataset(
        "data", (count, rows.height, rows.width), dtype, chunks=(1, rows.height, rows.width), fillvalue=rows.dummy,
        **filter_options("bslz4", dtype),
    )  # fmt: skip
    data.attrs["interpretation"] = "image"
    for row in np.flatnonzero(detector["frame_status"][:count] == SAVED).tolist():
        data[row] = rows[row]
    plot = group(entry, "plot", "NXdata")
    plot.attrs["signal"] = "data"
    plot["data"] = h5py.SoftLink(f"/{MEASUREMENT}/data")
    entry.attrs["default"] = "plot"
    return count
