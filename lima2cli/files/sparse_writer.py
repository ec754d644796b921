"""Writer of the sparse frames of one receiver into a sequence of HDF5 files, as compressed sparse rows (CSR).

The group ``data`` has ``index`` (m,) uint32 and ``intensity`` (m,) of the pixels of all frames, one frame after
another, and ``frame_ptr`` (n+1,) uint64: frame i has the pixels from ``frame_ptr[i]`` to ``frame_ptr[i+1] - 1``.

Frames that come with the background of rings about the beam have it there too, by the names of pyFAI and fabio:
``background_avg`` and ``background_std`` (n, rings) float32, ``radius`` (rings,) of the middle of each ring, ``mask``
(height, width) float32 with the radius of each pixel's ring, NaN where there is none, and ``dummy``, what is there
then.

Pixels are collected until they fill a chunk. They reach the file before the rows that point to them, and so do
backgrounds, so that a kill at any moment leaves whole frames.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.files.appending import ROWS_KEPT, written_rows
from lima2cli.files.channel import Channel
from lima2cli.files.checksums import GrowingSums, make_sums
from lima2cli.files.compression import filter_options
from lima2cli.files.disk import MARGIN, disk_errors
from lima2cli.files.fields import PACKED
from lima2cli.files.frame_writer import FrameSequence, GrowingFile
from lima2cli.files.nexus import ENTRY
from lima2cli.files.tree import group
from lima2cli.frames import Array, Block, SparseBlock, dense_image
from lima2cli.kernels.radial import rings

CHUNK = 16384
"""Pixels of a chunk, which the chunk cache takes."""

PARTS = ("index", "intensity")
"""Columns of the group ``data`` about each pixel."""

BACKGROUND = ("background_avg", "background_std")
"""Columns about each frame that has a background."""

RINGS_KEPT = 16
"""Rows of a chunk of these."""


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
        self._background = _add_rings(made, channel) if channel.rings is not None else []
        covered = {name: made[name] for name in (*PARTS, "frame_ptr", *(BACKGROUND if self._background else ()))}
        self._sums = GrowingSums(make_sums(detector, covered) if channel.checksum else {}, covered)

    def add_pixels(self, index: Array, intensity: Array) -> None:
        """Append pixels (m,) to those that are there."""
        for dataset, values in ((self._index, index), (self._intensity, intensity)):
            dataset.resize((self.pixels + len(values),))
            dataset[self.pixels :] = values
        self.pixels += len(index)

    def add_background(self, given: Iterable[tuple[Any, Array]], count: int) -> None:
        """Append the background of ``count`` rows, before the rows themselves: NaN but for those that are ``given``.

        given  their index among these rows, and their backgrounds as of `SparseBlock`
        """
        first, rings_there = self._background[0].shape
        values = np.full((count, len(BACKGROUND), rings_there), np.nan, np.float32)
        for place, some in given:
            values[place] = some
        for i, dataset in enumerate(self._background):
            dataset.resize(first + count, axis=0)
            dataset[first:] = values[:, i]
            dataset.flush()

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


def _add_rings(made: Any, channel: Channel) -> list[Any]:
    """Make the datasets of the background in the group ``data``; return those with a row for each frame."""
    assert channel.rings is not None
    shown = rings(channel.detector.base.then(channel.view), channel.rings)
    count, area = int(shown.max()) + 1, channel.view.area
    radius = np.full((channel.detector.height, channel.detector.width), np.nan, np.float32)
    own = np.where(False if channel.mask is None else channel.mask, np.nan, shown + np.float32(0.5))
    radius[area.within(channel.detector.image)] = channel.view.turn_back(own)
    made.create_dataset("mask", data=radius, **PACKED)
    made["radius"] = np.arange(count, dtype=np.float32) + np.float32(0.5)
    hole = channel.detector.gap_value if channel.hole is None else channel.hole
    made["dummy"] = np.asarray(hole).astype(channel.dtype)
    for name in ("mask", "radius"):
        made[name].attrs["units"] = "pixel"
    made.file[ENTRY].attrs["pyFAI_sparse_frames"] = made.name
    return [
        made.create_dataset(
            name, (0, count), "float32", maxshape=(None, count), chunks=(RINGS_KEPT, count),
            **filter_options(channel.compression, "float32"),
        )
        for name in BACKGROUND
    ]  # fmt: skip


def is_sparse(data: Any) -> bool:
    """Return whether ``data`` of a file is a group of sparse frames."""
    return hasattr(data, "keys")


class DenseRows:
    """Rows of a group ``data`` as the whole detector images (height, width) that they stand for.

    Other pixels than those that were chosen are 0; where the rows have a background, its mean in their ring, in
    integers rounded half away from zero, and ``dummy`` where they are in no ring or no pixel counted.
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        self.height, self.width = (int(size) for size in data.attrs["shape"])
        self._ring: NDArray[np.int64] | None = None
        self.dummy: Any = 0
        if BACKGROUND[0] in data:
            radius = data["mask"][()]
            self._ring = np.where(np.isfinite(radius), np.floor(np.nan_to_num(radius)), -1).astype(np.int64)
            self.dummy = data["dummy"][()]

    def __getitem__(self, row: int) -> Array:
        """Return the image of a row. Raises OSError where its pixels are not all there (yet)."""
        data = self._data
        pointers = data["frame_ptr"][row : row + 2].tolist()
        index, intensity = (data[name][slice(*pointers)] for name in PARTS)
        if len(pointers) < 2 or not len(index) == len(intensity) == pointers[1] - pointers[0]:
            raise OSError(f"the pixels of row {row} are not there")
        if self._ring is None:
            return dense_image((self.height, self.width), index, intensity)
        mean = data[BACKGROUND[0]][row]
        if intensity.dtype.kind in "iu":
            mean = np.trunc(mean + np.copysign(np.float32(0.5), mean))
        known = np.where(np.isnan(mean), self.dummy, np.nan_to_num(mean)).astype(intensity.dtype)
        image: Array = np.append(known, self.dummy)[self._ring]  # -1 is the last
        image.reshape(-1)[index] = intensity
        return image


def image_of(data: Any, row: int) -> Array:
    """Return a row of a group ``data`` as `DenseRows` gives it. Raises OSError as there."""
    return DenseRows(data)[row]


def whole_rows(data: Any) -> int:
    """Return the number of rows of a group ``data`` whose pixels are all there; of a dataset ``data`` its rows."""
    if not is_sparse(data):
        return len(data)
    pixels = min(written_rows(data["index"]), written_rows(data["intensity"]))
    rows = max(0, bisect_right(data["frame_ptr"], pixels, 0, written_rows(data["frame_ptr"])) - 1)
    return min([rows, *(written_rows(data[name]) for name in BACKGROUND if name in data)])


def cut_rows(data: Any, count: int) -> None:
    """Leave the first rows of a group ``data``, at most `whole_rows`, and their pixels."""
    data["frame_ptr"].resize((count + 1,))
    for name in PARTS:
        data[name].resize((int(data["frame_ptr"][count]),))
    for name in BACKGROUND:
        if name in data:
            data[name].resize(count, axis=0)


@dataclass(slots=True)
class _Staged:
    """Frames ready to be written; ``base`` rows were committed when they were staged."""

    base: int
    block: SparseBlock


class SparseWriter(FrameSequence["_SparseFile", _Staged]):
    """Writer of sparse frames; see `FrameSequence`. After an OSError files stay as last flushed."""

    def stage(self, block: Block) -> _Staged:
        """Check a block, which must be a `SparseBlock`.

        Raises:
            TypeError, ValueError: it is of another kind.
        """
        if not isinstance(block, SparseBlock):
            raise TypeError("dense frames for a channel of sparse ones")
        if (block.background is None) != (self._channel.rings is None):
            raise ValueError("frames with a background for a channel without, or without for one with")
        if block.frames.dtype != self._dtype:
            raise ValueError(f"pixels of {block.frames.dtype} for a channel of {self._dtype}")
        return _Staged(self._rows, block)

    def _make(self, number: int) -> "_SparseFile":
        return _SparseFile(self._channel, self._directory, self._receiver, number)

    def _write(self, staged: _Staged) -> None:
        done, count = 0, len(staged.block.numbers)
        while done < count:
            file, rows = self._span(self._rows, count - done)
            file.append(staged.block, done, done + rows)
            self._rows += rows
            done += rows
            if self._per_file and self._rows % self._per_file == 0:
                self._file = None
                file.close()


class _SparseFile(GrowingFile):
    """One file of sparse frames."""

    columns: ClassVar[dict[str, str]] = GrowingFile.columns | {"frame_pixels": "uint32"}

    def __init__(self, channel: Channel, directory: str, receiver: int, number: int) -> None:
        self._index: list[Array] = []
        self._intensity: list[Array] = []
        self._held = 0
        self._ends: list[NDArray[np.uint64]] = []
        self._background: list[Array] = []
        self._margin = MARGIN + CHUNK * (4 + np.dtype(channel.dtype).itemsize) + 8 * ROWS_KEPT  # the library's chunks
        super().__init__(channel, directory, receiver, number)

    def _add_data(self, detector: Any, channel: Channel) -> None:
        self._rows = GrowingRows(detector, channel)

    def append(self, block: SparseBlock, first: int, last: int) -> None:
        """Append rows ``first`` to ``last - 1`` of a block; in memory until there are enough of them."""
        begin, end = int(block.frame_ptr[first]), int(block.frame_ptr[last])
        offset = np.uint64(self._rows.pixels + self._held)
        self._ends.append(block.frame_ptr[first + 1 : last + 1] - np.uint64(begin) + offset)
        self._columns.append(
            (block.numbers[first:last], block.times[first:last], np.diff(block.frame_ptr[first : last + 1]))
        )
        if block.background is not None:
            self._background.append(block.background[first:last].copy())
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
            if self._background:
                background = np.concatenate(self._background)
                self._rows.add_background([(slice(None), background)], len(background))
            self._rows.add_rows(np.concatenate(self._ends))
            self._columns.write()
            self._status.resize((self._columns.written,))
        self._ends, self._background = [], []
        self._file.flush()
        with disk_errors(self._file.path):
            self._rows.add_sums()
            self._row_sums.write()

    def _end_sums(self) -> None:
        self.publish()
        with disk_errors(self._file.path):
            self._rows.add_sums(last=True)
            self._row_sums.write(last=True)

    def _write_pixels(self) -> None:
        if self._held:
            with disk_errors(self._file.path):
                self._rows.add_pixels(np.concatenate(self._index), np.concatenate(self._intensity))
        self._index, self._intensity, self._held = [], [], 0
