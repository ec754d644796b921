"""Writer of the sparse frames of one receiver into a sequence of HDF5 files, as compressed sparse rows (CSR).

The group ``data`` has ``index`` (m,) uint32 and ``intensity`` (m,) of the pixels of all frames, one frame after
another, and ``frame_ptr`` (n+1,) uint64: frame i has the pixels from ``frame_ptr[i]`` to ``frame_ptr[i+1] - 1``. Pixels
are collected until they fill a chunk. They reach the file before the rows that point to them, so that a kill at any
moment leaves whole frames.
"""

import os
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.files.appending import ROWS_KEPT, AppendingFile, Columns, disk_errors, written_rows
from lima2cli.files.channel import Channel
from lima2cli.files.checksums import GrowingSums, make_sums
from lima2cli.files.compression import filter_options
from lima2cli.files.disk import MARGIN
from lima2cli.files.frame_writer import frame_file
from lima2cli.files.nexus import ChannelRecord, fixed, group, write_nexus, write_start
from lima2cli.frames import Array, Block, SparseBlock

CHUNK = 16384
"""Pixels of a chunk, which the chunk cache takes."""

PARTS = ("index", "intensity")
"""Columns of the group ``data`` about each pixel."""


class GrowingRows:
    """The group ``data`` that grows: pixels first, then the rows that they belong to."""

    def __init__(self, detector: Any, channel: Channel) -> None:
        made = group(detector, "data", "NXcollection")
        made.attrs["encoding"] = "CSR"
        made.attrs["shape"] = [channel.detector.height, channel.detector.width]
        made.attrs["dtype"] = channel.dtype
        self.pixels = 0
        self._index, self._intensity = (
            made.create_dataset(
                name, (0,), dtype, maxshape=(None,), chunks=(CHUNK,), **filter_options(channel.compression, dtype)
            )
            for name, dtype in (("index", "uint32"), ("intensity", channel.dtype))
        )
        self._ptr = made.create_dataset("frame_ptr", (1,), "uint64", maxshape=(None,), chunks=(ROWS_KEPT,))
        self._ptr[0] = 0
        covered = {name: made[name] for name in (*PARTS, "frame_ptr")}
        self._sums = GrowingSums(make_sums(detector, covered) if channel.checksum else {}, covered)

    def add_pixels(self, index: Array, intensity: Array) -> None:
        """Append pixels (m,) to those that are there."""
        for dataset, values in ((self._index, index), (self._intensity, intensity)):
            dataset.resize((self.pixels + len(values),))
            dataset[self.pixels :] = values
        self.pixels += len(index)

    def add_rows(self, ends: NDArray[np.uint64]) -> None:
        """Append rows (n,), given as the ends of their pixels, to those that are there; flush their pixels first."""
        self._index.flush()
        self._intensity.flush()
        first = len(self._ptr)
        self._ptr.resize((first + len(ends),))
        self._ptr[first:] = ends

    def add_sums(self, *, last: bool = False) -> None:
        """Write the checksums of the chunks that are full, of a file that was flushed.

        last  of the last chunk too, at the end
        """
        self._sums.write(last=last)


def is_sparse(data: Any) -> bool:
    """Return whether ``data`` of a file is a group of sparse frames."""
    return hasattr(data, "keys")


def whole_rows(data: Any) -> int:
    """Return the number of rows of a group ``data`` whose pixels are all there; of a dataset ``data`` its rows."""
    if not is_sparse(data):
        return len(data)
    pixels = min(written_rows(data["index"]), written_rows(data["intensity"]))
    return max(0, bisect_right(data["frame_ptr"], pixels, 0, written_rows(data["frame_ptr"])) - 1)


def cut_rows(data: Any, count: int) -> None:
    """Leave the first rows of a group ``data``, at most `whole_rows`, and their pixels."""
    data["frame_ptr"].resize((count + 1,))
    for name in ("index", "intensity"):
        data[name].resize((int(data["frame_ptr"][count]),))


@dataclass(slots=True)
class _Staged:
    """Frames ready to be written; ``base`` rows were committed when they were staged."""

    base: int
    block: SparseBlock


class SparseWriter:
    """Writer of the sparse frames of one receiver, in the order they arrive; see `Writer` in `lima2cli.nodes.base`.

    As for `FrameWriter`; after an OSError files stay as last flushed.
    """

    def __init__(self, channel: Channel, directory: str, receiver: int, start_ns: int | None) -> None:
        self._channel, self._directory, self._receiver, self._start_ns = channel, directory, receiver, start_ns or 0
        self._dtype = np.dtype(channel.dtype)
        self._rows = 0
        self._file: _SparseFile | None = None
        self._ahead = _SparseFile(channel, directory, receiver, 0) if start_ns is None else None
        self._broken: OSError | None = None

    def start(self, start_ns: int) -> None:
        """Set the start of the acquisition, ``start_ns``, in ns since the epoch."""
        self._start_ns = start_ns

    def stage(self, block: Block) -> _Staged:
        """Check a block, which must be a `SparseBlock`.

        Raises:
            TypeError, ValueError: it is of another kind.
        """
        if not isinstance(block, SparseBlock):
            raise TypeError("dense frames for a channel of sparse ones")
        if block.frames.dtype != self._dtype:
            raise ValueError(f"pixels of {block.frames.dtype} for a channel of {self._dtype}")
        return _Staged(self._rows, block)

    def commit(self, staged: _Staged) -> int:
        """Write what `stage` prepared last; return the number of frames."""
        if self._broken is not None:
            raise OSError(self._broken.errno, f"nothing is written after an error: {self._broken}")
        if staged.base != self._rows:
            raise ValueError("blocks are staged and committed one at a time")
        try:
            self._commit(staged.block)
        except OSError as error:
            self._broken = error
            raise
        return len(staged.block.numbers)

    def flush(self) -> None:
        """Make what was committed readable."""
        if self._file is None or self._broken is not None:
            return
        try:
            self._file.publish()
        except OSError as error:
            self._broken = error
            raise

    def close(self) -> None:
        """End the files; a second call does nothing."""
        file, self._file = self._file, None
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.discard()
        if file is None:
            return
        if self._broken is not None:
            file.abandon()
            return
        try:
            file.close()
        except OSError as error:
            self._broken = error
            file.abandon()
            raise

    def _next_file(self, number: int) -> "_SparseFile":
        file, self._ahead = self._ahead, None
        if file is None:
            file = _SparseFile(self._channel, self._directory, self._receiver, number)
        file.start(self._start_ns)
        return file

    def _commit(self, block: SparseBlock) -> None:
        """Write rows to the files that they belong to."""
        done, count, per_file = 0, len(block.numbers), self._channel.frames_per_file
        while done < count:
            number, inside = divmod(self._rows, per_file) if per_file else (0, self._rows)
            last = min(count, done + per_file - inside) if per_file else count
            if self._file is None:
                self._file = self._next_file(number)
            self._file.append(block, done, last)
            self._rows += last - done
            if per_file and self._rows == (number + 1) * per_file:
                self.close()
            done = last


class _SparseFile:
    """One file of sparse frames. Methods raise OSError where the disk refuses."""

    def __init__(self, channel: Channel, directory: str, receiver: int, number: int) -> None:
        self._file = AppendingFile(os.path.join(directory, frame_file(channel, receiver, number)))
        self._index: list[Array] = []
        self._intensity: list[Array] = []
        self._held = self._start_ns = 0
        self._ends: list[NDArray[np.uint64]] = []
        self._margin = MARGIN + CHUNK * (4 + np.dtype(channel.dtype).itemsize) + 8 * ROWS_KEPT  # the library's chunks
        with self._file.making():
            detector = write_nexus(self._file.h5, channel, None)
            ChannelRecord.of(channel, "frames", receiver).write(self._file.h5)
            self._rows = GrowingRows(detector, channel)
            self._columns = Columns(
                detector,
                {"frame_number": "uint64", "frame_time": "float64", "frame_pixels": "uint32"},
                {"frame_time": lambda times_ns: (times_ns - self._start_ns) * 1e-9},
            )
            columns = {name: detector[name] for name in ("frame_number", "frame_time", "frame_pixels")}
            self._row_sums = GrowingSums(make_sums(detector, columns) if channel.checksum else {}, columns)
            detector["frame_time"].attrs["units"] = fixed("s")
            self._status = detector.create_dataset("frame_status", (0,), "uint8", maxshape=(None,), chunks=(ROWS_KEPT,))

    def start(self, start_ns: int) -> None:
        """Start the file, for frames of an acquisition that began at ``start_ns``, ns since the epoch."""
        self._start_ns = start_ns
        with disk_errors(self._file.path):
            write_start(self._file.h5, start_ns)
            ChannelRecord.write_start(self._file.h5, start_ns)
        self._file.start()

    def discard(self) -> None:
        """Remove a file without frames."""
        self._file.discard()

    def append(self, block: SparseBlock, first: int, last: int) -> None:
        """Append rows ``first`` to ``last - 1`` of a block; in memory until there are enough of them."""
        begin, end = int(block.frame_ptr[first]), int(block.frame_ptr[last])
        offset = np.uint64(self._rows.pixels + self._held)
        self._ends.append(block.frame_ptr[first + 1 : last + 1] - np.uint64(begin) + offset)
        self._columns.append(
            (block.numbers[first:last], block.times[first:last], np.diff(block.frame_ptr[first : last + 1]))
        )
        for kept, values in ((self._index, block.index), (self._intensity, block.frames)):
            part = values[begin:end]
            kept.append(part if block.stable and end - begin == len(values) else part.copy())
        self._held += end - begin
        if self._columns.full:
            self.publish()
        elif self._held >= CHUNK:
            self._write_pixels()

    def publish(self) -> None:
        """Make all rows readable."""
        if not self._columns.pending:
            return
        self._write_pixels()
        self._file.secure(self._margin)
        with disk_errors(self._file.path):
            self._rows.add_rows(np.concatenate(self._ends))
            self._columns.write()
            self._status.resize((self._columns.written,))
        self._ends = []
        self._file.flush()
        with disk_errors(self._file.path):
            self._rows.add_sums()
            self._row_sums.write()

    def close(self) -> None:
        """End the file."""
        self.publish()
        with disk_errors(self._file.path):
            self._rows.add_sums(last=True)
            self._row_sums.write(last=True)
        self._file.close()

    def abandon(self) -> None:
        """Close after an error, as last flushed."""
        self._file.abandon()

    def _write_pixels(self) -> None:
        if self._held:
            with disk_errors(self._file.path):
                self._rows.add_pixels(np.concatenate(self._index), np.concatenate(self._intensity))
        self._index, self._intensity, self._held = [], [], 0
