"""Writers of the frames of one receiver into a sequence of HDF5 files: their base, and that of dense frames.

Dense frames are collected in whole chunks, compressed outside the library and written directly. What one call costs in
Python is paid per block and per chunk, never per row.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.files.appending import ROWS_KEPT, AppendingFile, Columns, Writing
from lima2cli.files.channel import Channel
from lima2cli.files.checksums import ChunkSums, GrowingSums, make_sums, summed
from lima2cli.files.compression import Stored, encoder, filter_options
from lima2cli.files.disk import disk_errors, library_is_broken
from lima2cli.files.nexus import ChannelRecord, fill_value, write_nexus, write_start
from lima2cli.files.tree import fixed
from lima2cli.frames import Array, Block
from lima2cli.packed import PackedBlock
from lima2cli.threads import team

CHUNK_BYTES = 1 << 20


def frames_per_chunk_auto(height: int, width: int, itemsize: int, period_s: float | None = None) -> int:
    """Return the number of frames of a chunk of about 1 MiB, at least 1.

    With a period (s), no more than arrive in half a second: a chunk is written again whenever it is flushed half full,
    and the space of its former copy is lost.
    """
    frames = max(1, round(CHUNK_BYTES / (height * width * itemsize)))
    return frames if period_s is None else max(1, min(frames, int(0.5 / period_s)))


def frame_file(channel: Channel, receiver: int, number: int) -> str:
    """Return the name of the ``number``-th file of a receiver."""
    return f"{channel.name}_{channel.node}_{receiver}_{number:05d}.h5"


def chunk_frames(channel: Channel) -> int:
    """Return the number of frames of a chunk: what was asked, where a file and the run have so many."""
    return min(n for n in (channel.frames_per_chunk, channel.frames_per_file, channel.selected) if n)


class _Based(Protocol):
    base: int


S = TypeVar("S", bound=_Based)
F = TypeVar("F", bound="GrowingFile")


class FrameSequence(Writing, ABC, Generic[F, S]):
    """Base of the writers of the frames of one receiver, in the order they arrive; see `Writer` in `nodes.base`.

    Blocks are staged and committed one at a time: a block that was staged and is not committed leaves no trace.
    The first file is made by the first commit; or at once, where ``start_ns`` is None: then `start` has to set it
    before the first block. After an OSError nothing more is written: commit raises again, and close leaves the files
    readable with what was written before.
    """

    def __init__(self, channel: Channel, directory: str, receiver: int, start_ns: int | None) -> None:
        super().__init__()
        self._channel, self._directory, self._receiver, self._start_ns = channel, directory, receiver, start_ns or 0
        self._dtype, self._per_file = np.dtype(channel.dtype), channel.frames_per_file
        self._rows = 0
        self._file: F | None = None
        self._ahead = self._make(0) if start_ns is None else None

    @abstractmethod
    def _make(self, number: int) -> F:
        """Return the ``number``-th file, not started."""

    @abstractmethod
    def _write(self, staged: S) -> None:
        """Write what `stage` prepared to the files that it belongs to, and count its rows.

        Raises:
            OSError: the disk refuses.
        """

    def start(self, start_ns: int) -> None:
        """Set the start of the acquisition, ``start_ns``, in ns since the epoch."""
        self._start_ns = start_ns

    def commit(self, staged: S) -> int:
        """Write what `stage` prepared last; return the number of frames.

        Raises:
            ValueError: another block was committed after it was staged.
        """
        with self._writing():
            before = self._rows
            if staged.base != before:
                raise ValueError("blocks are staged and committed one at a time")
            self._write(staged)
        return self._rows - before

    def flush(self) -> None:
        """Make what was committed readable."""
        if self._file is not None and self._broken is None:
            with self._writing():
                self._publish(self._file)

    def close(self) -> None:
        """End the files; a second call does nothing."""
        file, self._file = self._file, None
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.discard()
        if file is None:
            return
        if self._broken is not None:
            file.salvage()
            return
        try:
            with self._writing():
                self._publish(file)
                file.close()
        except OSError:
            file.salvage()
            raise

    def _publish(self, file: F) -> None:
        file.publish()

    def _span(self, row: int, most: int) -> tuple[F, int]:
        """Return the file of a row, begun where it is its first, and how many rows of ``most`` belong there."""
        number, inside = divmod(row, self._per_file) if self._per_file else (0, row)
        if self._file is None:
            ahead, self._ahead = self._ahead, None
            self._file = self._make(number) if ahead is None else ahead
            self._file.start(self._start_ns)
        return self._file, min(most, self._per_file - inside) if self._per_file else most


class GrowingFile(ABC):
    """One file of a sequence. Methods raise OSError where the disk refuses.

    columns   dtypes of the columns about rows
    """

    columns: ClassVar[dict[str, str]] = {"frame_number": "uint64", "frame_time": "float64"}

    def __init__(self, channel: Channel, directory: str, receiver: int, number: int) -> None:
        self._file = AppendingFile(os.path.join(directory, frame_file(channel, receiver, number)))
        self._start_ns = 0
        with self._file.making():
            detector = write_nexus(self._file.h5, channel, None)
            ChannelRecord.of(channel, "frames", receiver).write(self._file.h5)
            self._add_data(detector, channel)
            self._columns = Columns(
                detector, self.columns, {"frame_time": lambda times_ns: (times_ns - self._start_ns) * 1e-9}
            )
            detector["frame_time"].attrs["units"] = fixed("s")
            self._status = detector.create_dataset("frame_status", (0,), "uint8", maxshape=(None,), chunks=(ROWS_KEPT,))
            columns = {name: detector[name] for name in self.columns}
            self._row_sums = GrowingSums(make_sums(detector, columns) if channel.checksum else {}, columns)

    @abstractmethod
    def _add_data(self, detector: Any, channel: Channel) -> None:
        """Add what holds the pixels to the group of the detector."""

    @abstractmethod
    def publish(self) -> None:
        """Publish written rows: data first, then their numbers, so that a kill between leaves no gap."""

    @abstractmethod
    def _end_sums(self) -> None:
        """Write the checksums of all chunks, also of the last."""

    @property
    def pending(self) -> int:
        """Number of rows that are not published yet."""
        return self._columns.pending

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

    def close(self) -> None:
        """End the file; one that can't be ended stays as last flushed."""
        try:
            self._end_sums()
        except OSError:
            self._file.abandon()
            raise
        self._file.close()

    def salvage(self) -> None:
        """Close after an error, as last flushed, and never raise another error."""
        self._file.abandon()


@dataclass(slots=True)
class Staged:
    """Frames ready to be written. ``chunks`` are (row, count, stored bytes) of those that they complete.

    base    rows committed when they were staged;  fill   frames in the incomplete chunk after them
    """

    base: int
    numbers: NDArray[np.uint64]
    times: NDArray[np.uint64]
    fill: int
    chunks: list[tuple[int, int, Stored]] = field(default_factory=list)


class FrameWriter(FrameSequence["_FrameFile", Staged]):
    """Writer of dense frames; see `FrameSequence`. ``threads`` compress the chunks of a block."""

    threads = 1

    def __init__(self, channel: Channel, directory: str, receiver: int, start_ns: int | None) -> None:
        super().__init__(channel, directory, receiver, start_ns)
        self._frame = (channel.height, channel.width)
        self._per_chunk = chunk_frames(channel)
        shape = (self._per_chunk, *self._frame)
        self._free: list[NDArray[np.uint8]] = []
        self._lent: list[NDArray[np.uint8]] = []
        encode = encoder(channel.compression, channel.dtype, shape, self._room_for)
        self._encode = summed(encode) if channel.checksum else encode
        self._keep: Callable[[Any], Stored] = summed(Stored) if channel.checksum else Stored
        self._direct = channel.compression == "none"  # the chunk itself is what is written
        self._fill_value = fill_value(channel)
        self._carry, self._spare = np.empty(shape, self._dtype), np.empty(shape, self._dtype)
        self._fill = 0

    def stage(self, block: Block) -> Staged:
        """Compress the chunks that the block completes. Frames are (n, height, width) of the channel's dtype.

        Raises:
            ValueError: they have another dtype or shape.
        """
        self._free += self._lent  # the last block is written, or was discarded
        self._lent.clear()
        if self._channel.packed and isinstance(block, PackedBlock):
            return self._stage_packed(block)
        frames, base = block.frames, self._rows
        if frames.dtype != self._dtype or frames.shape[1:] != self._frame:
            raise ValueError(
                f"frames of {frames.dtype} {frames.shape[1:]} for a channel of {self._dtype} {self._frame}"
            )
        staged = Staged(base, block.numbers, block.times, self._fill)
        done, count = 0, len(frames)
        encode: list[Callable[[], Stored]] = []
        rows: list[tuple[int, int]] = []
        while done < count:
            room = self._room(base + done)
            part = frames[done : done + room]
            if len(part) < room:
                buffer = self._spare if encode else self._carry
                buffer[staged.fill : staged.fill + len(part)] = part
                staged.fill += len(part)
            else:
                encode.append(partial(self._encoded, part, staged.fill, block.stable))
                rows.append((base + done - staged.fill, staged.fill + room))
                staged.fill = 0
            done += len(part)
        stored = team(self.threads).each(encode)
        staged.chunks = [(row, count, chunk) for (row, count), chunk in zip(rows, stored, strict=True)]
        return staged

    def _room_for(self, size: int) -> NDArray[np.uint8]:
        """Return memory for a compressed chunk, which is its own until another block is staged."""
        try:
            room = self._free.pop()
        except IndexError:
            room = np.empty(size, np.uint8)
        self._lent.append(room)
        return room

    def _stage_packed(self, block: PackedBlock) -> Staged:
        """Take frames as the detector has sent them, each of which is a chunk; others are compressed."""
        staged = Staged(self._rows, block.numbers, block.times, 0)
        for index, (data, frame) in enumerate(block.sent(self._channel.compression)):
            stored = self._keep(data) if frame is None else self._encode(frame)
            staged.chunks.append((staged.base + index, 1, stored))
        return staged

    def _room(self, row: int) -> int:
        """Return the number of frames that the chunk of a row still takes, from that row on."""
        if not self._per_file:
            return self._per_chunk - row % self._per_chunk
        inside = row % self._per_file
        return min(self._per_chunk - inside % self._per_chunk, self._per_file - inside)

    def _encoded(self, part: Array, fill: int, stable: bool) -> Stored:
        """Return what the file holds of a chunk; see `_chunk`."""
        return self._encode(self._chunk(part, fill, stable))

    def _chunk(self, part: Array, fill: int, stable: bool) -> Array:
        """Return a whole chunk that ends with ``part``, padded where its file ends before it does."""
        if not fill and len(part) == self._per_chunk:
            if self._direct and not stable:
                return part.copy()
            return np.ascontiguousarray(part)
        chunk = self._carry if fill else np.empty_like(self._carry)
        chunk[fill : fill + len(part)] = part
        chunk[fill + len(part) :] = self._fill_value
        return chunk

    def _publish(self, file: "_FrameFile") -> None:
        if self._fill and file.pending:
            self._carry[self._fill :] = self._fill_value
            file.write(self._fill, self._encode(self._carry))
        file.publish()

    def _make(self, number: int) -> "_FrameFile":
        return _FrameFile(self._channel, self._directory, self._receiver, number)

    def _write(self, staged: Staged) -> None:
        self._append(staged)
        if staged.chunks:
            self._carry, self._spare = self._spare, self._carry
        self._fill = staged.fill
        self._rows += len(staged.numbers)
        if self._file is not None and self._file.pending >= ROWS_KEPT:
            self._publish(self._file)

    def _append(self, staged: Staged) -> None:
        """Write rows and complete chunks to the files that they belong to."""
        done, count, chunks = 0, len(staged.numbers), iter(staged.chunks)
        chunk = next(chunks, None)
        while done < count:
            file, rows = self._span(staged.base + done, count - done)
            last = done + rows
            file.log(staged.numbers[done:last], staged.times[done:last])
            while chunk is not None and chunk[0] < staged.base + last:
                file.write(chunk[1], chunk[2])
                file.complete += chunk[1]
                chunk = next(chunks, None)
            if self._per_file and file.complete == self._per_file:
                file.publish()
                self._file = None
                file.close()
            done = last


class _FrameFile(GrowingFile):
    """One file of dense frames, of which ``complete`` rows lie in complete chunks."""

    def __init__(self, channel: Channel, directory: str, receiver: int, number: int) -> None:
        self._frame, self._per_chunk = (channel.height, channel.width), chunk_frames(channel)
        self.complete = self._shown = 0
        super().__init__(channel, directory, receiver, number)

    def _add_data(self, detector: Any, channel: Channel) -> None:
        self._data = detector.create_dataset(
            "data",
            (0, *self._frame),
            channel.dtype,
            maxshape=(None, *self._frame),
            chunks=(self._per_chunk, *self._frame),
            fillvalue=fill_value(channel),
            fill_time="never",
            **filter_options(channel.compression, channel.dtype),
        )
        self._data.attrs["interpretation"] = "image"
        sums = make_sums(detector, {"data": self._data}) if channel.checksum else {}
        self._sums = ChunkSums(sums["data"]) if sums else None

    def log(self, numbers: NDArray[np.uint64], times: NDArray[np.uint64]) -> None:
        """Note number and time (s since the start) of rows to come; in memory until published."""
        self._columns.append((numbers, times))

    def write(self, rows: int, stored: Stored) -> None:
        """Write the chunk after the complete ones, of which ``rows`` rows count."""
        row = self.complete
        self._file.secure(memoryview(stored.data).nbytes)  # else the library gives room out that is not there
        with disk_errors(self._file.path):
            self._data.id.set_extent((row + rows, *self._frame))
            self._data.id.write_direct_chunk((row, 0, 0), stored.data, stored.mask)
        self._shown = row + rows
        if self._sums is not None:
            self._sums.put(row // self._per_chunk, stored.checksum)

    def publish(self) -> None:
        """Publish written rows: data first, then their numbers, so that a kill between leaves no gap."""
        if not self.pending:
            return
        self._file.secure()
        with disk_errors(self._file.path):
            self._data.flush()
            self._columns.write(self._shown)
            self._status.resize((self._columns.written,))
        self._file.flush()
        if self._sums is not None:  # behind the rows, so that none is there for a chunk that a kill may cut
            self._file.secure()
            with disk_errors(self._file.path):
                self._sums.write(self.complete // self._per_chunk)
                self._row_sums.write()

    def salvage(self) -> None:
        """Close after an error, with as much as the disk still takes, and never raise another error."""
        if library_is_broken():
            self._file.abandon()
            return
        try:
            with disk_errors(self._file.path):
                self._data.id.set_extent((self._shown, *self._frame))
            self.publish()
            self._end_sums()
            self._file.close()
        except OSError:  # reported already by the call that failed first
            self._file.abandon()

    def _end_sums(self) -> None:
        """Write the checksums of all chunks, also of the last."""
        if self._sums is not None:
            self._file.secure()
            with disk_errors(self._file.path):
                self._sums.write()
                self._row_sums.write(last=True)
