"""Tables: rows of values, one per frame. Each receiver appends to a part; the parts become one file at the end."""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.appending import ROWS_KEPT, VERSIONS, AppendingFile, Columns, disk_errors
from lima2cli.artefacts.channel import TableChannel
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.tree import ENTRY, group, plant_root

MEASUREMENT = f"{ENTRY}/measurement"


def part_file(channel: TableChannel, receiver: int) -> str:
    """Name of the part of a receiver."""
    return f"{channel.name}_{channel.node}_{receiver}_rows.h5"


class TableWriter:
    """Appends the rows of one receiver, in memory at first; the file is made by the first rows.

    OSError where the disk refuses; then append raises again, and close leaves what was written before readable.
    """

    def __init__(self, channel: TableChannel, directory: str, receiver: int) -> None:
        self._channel, self._receiver = channel, receiver
        self._path = os.path.join(directory, part_file(channel, receiver))
        self._file: AppendingFile | None = None
        self._columns: Columns | None = None
        self._broken: OSError | None = None

    def append(self, numbers: NDArray[np.uint64], columns: Mapping[str, NDArray[Any]]) -> None:
        """Rows of frames ``numbers`` (n,); ``columns`` (n,) each. KeyError where one of the channel's is missing."""
        if self._broken is not None:
            raise OSError(self._broken.errno, f"nothing is written after an error: {self._broken}")
        try:
            if self._columns is None:
                self._columns = self._open()
            self._columns.append([numbers, *(columns[name] for name in self._channel.columns)])
            if self._columns.pending >= ROWS_KEPT:
                self.flush()
        except OSError as error:
            self._broken = error
            raise

    def flush(self) -> None:
        """Make the rows so far readable by others, also after a kill."""
        if self._file is None or self._columns is None or self._broken is not None or not self._columns.pending:
            return
        try:
            with disk_errors(self._path):
                self._columns.write()
            self._file.flush()
        except OSError as error:
            self._broken = error
            raise

    def close(self) -> None:
        """End the file; a second call does nothing."""
        file = self._file
        if file is None:
            return
        if self._broken is not None:
            self._file = None
            file.abandon()
            return
        try:
            self.flush()
            file.close()
        except OSError:
            file.abandon()
            raise
        finally:
            self._file = None

    def _open(self) -> Columns:
        self._file = file = AppendingFile(self._path)
        with disk_errors(self._path):
            entry = plant_root(file.h5, self._channel.name, None)
            Record.of(self._channel, "rows", self._receiver).write(file.h5)
            measurement = group(entry, "measurement", "NXcollection")
            columns = Columns(measurement, {"frame_number": "uint64", **self._channel.columns})
        file.start()
        return columns


def merge_tables(channel: TableChannel, directory: str) -> str:
    """The parts of all receivers as ``{name}_{node}.h5``, in frame order; the parts are removed. Returns its path.

    Columns are 1-D in ``/entry_0000/measurement``; ``/entry_0000/plot`` (NXdata) shows the default column over the
    frame number. Memory: one column. OSError where a file can't be read or written; then the parts stay.
    """
    import h5py

    path = os.path.join(directory, f"{channel.name}_{channel.node}.h5")
    names = re.compile(re.escape(f"{channel.name}_{channel.node}_") + r"\d+_rows\.h5")
    parts = [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if names.fullmatch(name)]
    with disk_errors(path), h5py.File(f"{path}.part", "w", libver=VERSIONS) as file:
        entry = plant_root(file, channel.name, None)
        Record.of(channel, "table").write(file)
        measurement = group(entry, "measurement", "NXcollection")
        numbers = _joined(parts, "frame_number", "uint64")
        order = np.argsort(numbers, kind="stable")
        measurement["frame_number"] = numbers[order]
        for name, dtype in channel.columns.items():
            measurement[name] = _joined(parts, name, dtype)[order]
        for name, unit in channel.units.items():
            measurement[name].attrs["units"] = unit
        _plot(entry, channel)
    os.replace(f"{path}.part", path)
    for part in parts:
        os.remove(part)
    return path


def _joined(parts: list[str], column: str, dtype: str) -> NDArray[Any]:
    """A column of all parts; of each as many rows as all its columns have (a kill may leave some longer)."""
    import h5py

    pieces = [np.empty(0, dtype)]
    for part in parts:
        with h5py.File(part) as file:
            columns = file[MEASUREMENT]
            rows = min(len(item) for item in columns.values())
            pieces.append(columns[column][:rows])
    return np.concatenate(pieces).astype(dtype, copy=False)


def _plot(entry: Any, channel: TableChannel) -> None:
    import h5py

    default = channel.default or next(iter(channel.columns), None)
    if default is None:
        return
    plot = group(entry, "plot", "NXdata")
    for name in (default, "frame_number"):
        plot[name] = h5py.SoftLink(f"/{MEASUREMENT}/{name}")
    plot.attrs["signal"] = default
    plot.attrs["axes"] = ["frame_number"]
    entry.attrs["default"] = "plot"
