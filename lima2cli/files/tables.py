"""Tables: rows of values, one per frame. Each receiver appends to a part; the parts become one file at the end."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.files.appending import CHUNK_CACHE_BYTES, VERSIONS, AppendingFile, Columns, Writing, written
from lima2cli.files.channel import TableChannel
from lima2cli.files.checksums import cover
from lima2cli.files.disk import disk_errors
from lima2cli.files.fields import axes_of, write_axis
from lima2cli.files.nexus import ENTRY, MEASUREMENT, ChannelRecord, part_names, table_file, write_root
from lima2cli.files.rows import READ
from lima2cli.files.run_file import FlowRecord, write_flows
from lima2cli.files.tree import group, link_names
from lima2cli.frames import TableAxis


def part_file(channel: TableChannel, receiver: int) -> str:
    """Return the name of the part of a receiver."""
    return f"{channel.name}_{channel.node}_{receiver}_rows.h5"


def part_files(directory: str, name: str, node: str) -> list[str]:
    """Return the names of the parts of a table."""
    return sorted(filter(part_names(name, node).fullmatch, os.listdir(directory)))


class TableWriter(Writing):
    """Writer of the rows of one receiver, in memory at first; the file is made by the first rows.

    OSError where the disk refuses; then append raises again, and close leaves what was written before readable.
    """

    def __init__(self, channel: TableChannel, directory: str, receiver: int) -> None:
        super().__init__()
        self._channel, self._receiver = channel, receiver
        self._path = os.path.join(directory, part_file(channel, receiver))
        self._file: AppendingFile | None = None
        self._columns: Columns | None = None
        self._started = False

    def ready(self) -> None:
        """Make the file ahead; one without rows is left out in the end."""
        self._columns = self._open()

    def append(self, numbers: NDArray[np.uint64], columns: Mapping[str, NDArray[Any]]) -> None:
        """Append rows of frames ``numbers`` (n,); ``columns`` (n,) or (n, length) each.

        Raises:
            KeyError: a column is missing.
            OSError: the disk refuses.
        """
        with self._writing():
            if self._columns is None:
                self._columns = self._open()
            if not self._started and self._file is not None:
                self._file.start()
                self._started = True
            self._columns.append([numbers, *(columns[name] for name in self._channel.columns)])
            if self._columns.full:
                self._flush()

    def flush(self) -> None:
        """Make the rows so far readable by others, also after a kill."""
        if self._broken is None:
            with self._writing():
                self._flush()

    def close(self) -> None:
        """End the file; a second call does nothing."""
        file = self._file
        if file is None:
            return
        if not self._started:
            self._file = None
            file.discard()
            return
        if self._broken is not None:
            self._file = None
            file.abandon()
            return
        try:
            self._flush()
            file.close()
        except OSError:
            file.abandon()
            raise
        finally:
            self._file = None

    def _flush(self) -> None:
        if self._file is not None and self._columns is not None and self._columns.pending:
            with disk_errors(self._path):
                self._columns.write()
            self._file.flush()

    def _open(self) -> Columns:
        self._file = file = AppendingFile(self._path)
        with file.making():
            entry = write_root(file.h5, self._channel.name, None)
            ChannelRecord.of(self._channel, "rows", self._receiver).write(file.h5)
            measurement = group(entry, "measurement", "NXcollection")
            return Columns(
                measurement, {"frame_number": "uint64", **self._channel.columns}, lengths=self._channel.lengths
            )


def merge_tables(
    channel: TableChannel, directory: str, *, flows: Sequence[FlowRecord] = (), unmatched: int | None = None
) -> str:
    """Merge the parts of all receivers to ``{name}_{node}.h5``, in frame order, and remove them; return its path.

    Columns are 1-D, or of vectors 2-D, of images 3-D, in ``/entry_0000/measurement``, with the positions of the
    axes of the metadata; the axes of vectors are in ``/entry_0000/axes``. ``/entry_0000/plot`` (NXdata) shows the
    default column over the one axis that moves, else over the frame number. Each part is in frame order, as receivers
    write them. ``flows`` and ``unmatched`` as of `write_master`. Memory: some thousand values of each column of each
    part.

    Raises:
        OSError: a file can't be read or written, or a part is not in order; the parts stay then.
    """
    import h5py

    path = os.path.join(directory, table_file(channel.name, channel.node))
    paths = [os.path.join(directory, name) for name in part_files(directory, channel.name, channel.node)]
    if os.path.exists(path) and _rows(path) >= sum(map(_rows, paths)):  # merged before; the rest was aborted
        for part in paths:
            os.remove(part)
        return path
    with ExitStack() as opened, disk_errors(path):
        file = opened.enter_context(written(f"{path}.part", libver=VERSIONS))
        entry = write_root(file, channel.name, None)
        ChannelRecord.of(channel, "table").write(file)
        write_flows(entry, flows, unmatched)
        measurement = group(entry, "measurement", "NXcollection")
        parts = [opened.enter_context(h5py.File(part, rdcc_nbytes=CHUNK_CACHE_BYTES))[MEASUREMENT] for part in paths]
        sizes = [min(len(column) for column in part.values()) for part in parts]  # a kill may leave some longer
        for name, dtype in {"frame_number": "uint64", **channel.columns}.items():
            measurement.create_dataset(name, (sum(sizes), *_shape(channel, name)), dtype)
        row, read = 0, max(1, READ // max(channel.lengths.values(), default=1))
        for taken, order in _interleaved([part["frame_number"] for part in parts], sizes, read):
            for name, column in measurement.items():
                piece = np.concatenate(
                    [part[name][first:last] for part, (first, last) in zip(parts, taken, strict=True)]
                )
                column[row : row + len(order)] = piece[order].reshape(len(order), *column.shape[1:])
            row += len(order)
        for name, unit in channel.units.items():
            measurement[name].attrs["units"] = unit
        for name, label in {"frame_number": "frame number", **(channel.labels or {})}.items():
            measurement[name].attrs["long_name"] = label
        _write_axes(entry, channel.axes or ())
        for name, facts in channel.facts.items():
            measurement[name].attrs.update(facts)
        axes = axes_of(channel.metadata or {})
        vectors = [axis.name for axis in channel.axes or ()]
        names = link_names((axis.name for axis in axes), (*measurement, *vectors))
        for axis in axes:
            write_axis(measurement, names[axis.name], axis, measurement["frame_number"])
        cover(entry, dict(measurement.items()))
        moving = [names[axis.name] for axis in axes if axis.step]
        _plot(entry, channel, moving[0] if len(moving) == 1 else "frame_number")
    os.replace(f"{path}.part", path)
    for part in paths:
        os.remove(part)
    return path


def _shape(channel: TableChannel, column: str) -> tuple[int, ...]:
    """Return the shape of the values of a column in each row."""
    if column not in channel.lengths:
        return ()
    return tuple(len(axis.values) for axis in channel.axes or ()) or (channel.lengths[column],)


def table_rows(table: str) -> int:
    """Return the number of rows of a table.

    Raises:
        OSError: it can't be read.
    """
    import h5py

    with h5py.File(table) as file:
        return len(file[f"{MEASUREMENT}/frame_number"])


def _rows(path: str) -> int:
    """Return the number of whole rows of a table or of a part.

    Raises:
        OSError: it can't be read.
    """
    import h5py

    with disk_errors(path), h5py.File(path) as file:
        return min(len(column) for column in file[MEASUREMENT].values())


def _interleaved(
    columns: Sequence[Any], sizes: Sequence[int], read: int
) -> Iterator[tuple[list[tuple[int, int]], NDArray[np.intp]]]:
    """Yield the rows of each part that come next, (first, last + 1), and the order of the frames in them.

    columns   of sorted frame numbers, of which the first ``sizes`` rows count;  read   rows of each at once
    """
    done = [0] * len(columns)
    while any(first < size for first, size in zip(done, sizes, strict=True)):
        held = [
            column[first : min(size, first + read)] for column, first, size in zip(columns, done, sizes, strict=True)
        ]
        if any((numbers[1:] < numbers[:-1]).any() for numbers in held):
            raise OSError("the rows of a part are not in frame order")
        # up to where every part has been read
        bound = min(
            (numbers[-1] for numbers, first, size in zip(held, done, sizes, strict=True) if first + read < size),
            default=np.uint64(2**64 - 1),
        )
        counts = [int(np.searchsorted(numbers, bound, "right")) for numbers in held]
        taken = [numbers[:count] for numbers, count in zip(held, counts, strict=True)]
        yield (
            [(first, first + count) for first, count in zip(done, counts, strict=True)],
            np.argsort(np.concatenate(taken), kind="stable"),
        )
        done = [first + count for first, count in zip(done, counts, strict=True)]


AXES = "axes"
"""Group of the entry with the axes of vectors: they have no value for each row, as columns do."""


def _write_axes(entry: Any, axes: Sequence[TableAxis]) -> None:
    if not axes:
        return
    held = group(entry, AXES, "NXcollection")
    for axis in axes:
        made = held.create_dataset(axis.name, data=np.array(axis.values))
        made.attrs["long_name"] = axis.label or axis.name
        if axis.unit:
            made.attrs["units"] = axis.unit
        if axis.edges:
            held[f"{axis.name}_edges"] = np.array(axis.edges)


def _plot(entry: Any, channel: TableChannel, along: str) -> None:
    import h5py

    default = channel.default or next(iter(channel.columns), None)
    if default is None:
        return
    plot = group(entry, "plot", "NXdata")
    others = [name for name in channel.others or () if name != default]
    vector_axes = [axis.name for axis in channel.axes or ()] if default in channel.lengths else []
    for name in dict.fromkeys((default, *others, along, "frame_number")):
        plot[name] = h5py.SoftLink(f"/{MEASUREMENT}/{name}")
    for name in entry[AXES] if vector_axes else ():
        plot[name] = h5py.SoftLink(f"/{ENTRY}/{AXES}/{name}")
    if channel.errors is not None:
        plot[f"{default}_errors"] = h5py.SoftLink(f"/{MEASUREMENT}/{channel.errors}")
    plot.attrs["signal"] = default
    if others:
        plot.attrs["auxiliary_signals"] = others
    plot.attrs["axes"] = [along, *(vector_axes or ["."] * (default in channel.lengths))]
    plot.attrs["frame_number_indices"] = 0
    for place, name in enumerate(vector_axes):
        plot.attrs[f"{name}_indices"] = 1 + place
    if vector_axes:
        entry[f"measurement/{default}"].attrs["interpretation"] = "spectrum" if len(vector_axes) == 1 else "image"
    entry.attrs["default"] = "plot"
