"""HDF5 files that grow, survive the death of their writer, and are made readable after it."""

import fcntl
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.errors import FileProblem, Lima2Error
from lima2cli.files.compression import load_filters
from lima2cli.files.disk import MARGIN, Room, begin, close_unwritten, disk_errors, give_back, watch
from lima2cli.files.rows import READ, windows
from lima2cli.paths import lock

if TYPE_CHECKING:
    from lima2cli.files.nexus import ChannelRecord


BLOCK = 1 << 16
"""Bytes that a file may take of a disk beyond its end because of how disks are divided."""

SIGNATURE = b"\x89HDF\r\n\x1a\n"


def reopenable(path: str) -> bool:
    """Clear the marks of an interrupted writer in place; return whether there were any.

    Superblock of version 2 or 3 (HDF5 File Format Specification 3.0, II.A): signature (8 bytes), version, size of
    offsets, size of lengths, file consistency flags (1 byte each), base address, superblock extension address,
    end-of-file address, root object header address (size of offsets each), checksum (4 bytes, lookup3 over all
    before it); little-endian. Files of older versions, as common files are, have no marks.

    Raises:
        FileProblem: it is no HDF5 file of that version, or is still being written.
        OSError: it can't be read or written.
    """
    with open(path, "r+b", buffering=0) as file:
        if not lock(file.fileno()):  # writers hold a shared lock for as long as they live
            raise FileProblem(f"{path} is open in another process")
        status = os.fstat(file.fileno())
        if status.st_blocks * 512 > status.st_size + BLOCK:  # what a writer had taken of the disk beyond the end
            file.truncate(status.st_size)
        return _clear_marks(file.fileno(), path)


def _clear_marks(descriptor: int, path: str) -> bool:
    size = os.fstat(descriptor).st_size
    block = bytearray(os.pread(descriptor, 48, 0))
    if block[:8] == SIGNATURE and block[8:9] and block[8] < 2:
        return False
    if len(block) < 48 or block[:8] != SIGNATURE or block[8] not in (2, 3) or block[9] != 8:
        raise FileProblem(f"{path} is not an HDF5 file that lima2 has written")
    (end,) = struct.unpack_from("<Q", block, 28)
    if not block[11] and end <= size:
        return False
    block[11] = 0
    struct.pack_into("<Q", block, 28, size)
    struct.pack_into("<I", block, 44, lookup3(bytes(block[:44])))
    os.pwrite(descriptor, block, 0)
    return True


SWMR_WRITER = 0b101
"""File consistency flags of a file that is being written (bit 0) and may be read meanwhile (bit 2)."""


def set_marks(path: str) -> None:
    """Give a whole file the marks of a writer, which `reopenable` clears: it can be opened for SWMR reading only.

    Raises:
        OSError: the disk refuses.
    """
    with open(path, "r+b", buffering=0) as file:
        block = bytearray(file.read(48))
        block[11] = SWMR_WRITER
        struct.pack_into("<I", block, 44, lookup3(bytes(block[:44])))
        file.seek(0)
        file.write(block)


def level(path: str) -> None:
    """Cut the datasets of a frame file or a part of a table to the rows that are complete in all of them.

    A kill between the writing of frames and that of their numbers leaves frames without a number; a full disk
    may leave rows whose chunk was never written, and read as zeros.

    Raises:
        OSError: the file can't be read or written; it is left unchanged.
    """
    from lima2cli.files.checksums import cut_sums
    from lima2cli.files.compression import load_filters
    from lima2cli.files.sparse_writer import BACKGROUND, PARTS, cut_rows

    cut = uneven(path)
    if cut is None:
        return
    where, rows, sparse = cut
    load_filters()  # the library writes the last chunk again
    with written(path, "r+", locking="best-effort") as file:
        if sparse:
            cut_rows(file[where]["data"], rows)
            for name in (*PARTS, "frame_ptr", *BACKGROUND):
                if name in file[where]["data"]:
                    cut_sums(file[where], name, len(file[where]["data"][name]))
        for name, item in file[where].items():
            if not _grows(item):
                continue
            cut_sums(file[where], name, rows)
            if len(item) > rows:
                item.resize(rows, axis=0)


def uneven(path: str) -> tuple[str, int, bool] | None:
    """Find a file whose datasets have more rows than are complete in all of them.

    Returns the group of the datasets, the number of complete rows, and whether frames are sparse; None where there is
    nothing to cut.

    Raises:
        OSError: the file can't be read.
    """
    import h5py

    from lima2cli.files.nexus import ENTRY, ChannelRecord
    from lima2cli.files.sparse_writer import BACKGROUND, is_sparse, whole_rows

    with h5py.File(path, locking="best-effort") as file:
        record = ChannelRecord.read(file)
        if record is None or record.role not in ("frames", "rows", "written"):
            return None
        entry = file[ENTRY]
        where = entry[entry.attrs["default"]].parent.name if record.role == "frames" else entry["measurement"].name
        growing = [item for item in file[where].values() if _grows(item)]
        rows = min(map(written_rows, growing), default=0)
        sparse = "data" in file[where] and is_sparse(file[where]["data"])
        if sparse:
            rows = min(rows, whole_rows(file[where]["data"]))
        rows = _in_order(file[where]["frame_number"], rows) if _own(record, file[where]["frame_number"], rows) else 0
        shown = {len(item) for item in growing} | ({len(file[where]["data/frame_ptr"]) - 1} if sparse else set())
        if sparse:
            shown |= {len(file[where]["data"][name]) for name in BACKGROUND if name in file[where]["data"]}
            pixels = int(file[where]["data/frame_ptr"][rows]) if rows else 0
            shown |= {rows} if all(len(file[where][f"data/{n}"]) == pixels for n in ("index", "intensity")) else {-1}
        return None if shown <= {rows} else (where, rows, sparse)


def written_rows(data: Any) -> int:
    """Return how many rows of a growing dataset come before the first whose chunk is not in the file.

    Statuses are exempt: a missing chunk reads as 0, their default.
    """
    count = len(data)
    if not count or data.name.endswith("/frame_status"):
        return count
    size = data.chunks[0]
    held = np.zeros(-(-count // size), bool)
    end = os.path.getsize(data.file.filename)

    def found(chunk: Any) -> None:
        held[chunk.chunk_offset[0] // size] = chunk.byte_offset + chunk.size <= end

    data.id.chunk_iter(found)
    return count if held.all() else int(held.argmin()) * size


def _grows(item: Any) -> bool:
    return hasattr(item, "maxshape") and item.maxshape[:1] == (None,)


def _own(record: "ChannelRecord", numbers: Any, rows: int) -> bool:
    """Return whether the first frame can belong to this receiver: zeros that were never written do not."""
    if not rows or record.places or record.window != 1 or not record.receivers:
        return True
    row, rest = divmod(int(numbers[0]) - record.start, record.step)
    return not rest and row >= 0 and record.receivers[row // record.blocks % len(record.receivers)] == record.receiver


def _in_order(numbers: Any, rows: int) -> int:
    """Return how many of the first rows come before one whose frame number falls: no writer writes such a row."""
    last = -1
    for first, end in windows(rows, READ):
        piece = numbers[first:end].astype(np.int64)
        falls = np.diff(piece, prepend=last) < 0
        falls[1 if first == 0 else 0 :] |= piece[1 if first == 0 else 0 :] == 0
        if falls.any():
            return first + int(falls.argmax())
        last = int(piece[-1])
    return rows


def lookup3(data: bytes) -> int:
    """Compute Bob Jenkins' ``hashlittle`` (lookup3.c, public domain), initial value 0, as HDF5 does for metadata."""
    mask = 0xFFFFFFFF

    def rotate(x: int, k: int) -> int:
        return ((x << k) | (x >> (32 - k))) & mask

    x: int
    y: int
    z: int
    a = b = c = (0xDEADBEEF + len(data)) & mask
    whole = max(0, (len(data) - 1) // 12) * 12
    for at in range(0, whole, 12):
        x, y, z = struct.unpack_from("<III", data, at)
        a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
        for k in (4, 6, 8, 16, 19, 4):
            a = (a - c) & mask ^ rotate(c, k)
            c = (c + b) & mask
            a, b, c = b, c, a
    if len(data) == whole:
        return c
    x, y, z = struct.unpack("<III", data[whole:].ljust(12, b"\0"))
    a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
    for k in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - rotate(b, k)) & mask
        a, b, c = b, c, a  # after the last round the result is b
    return b


ROWS_KEPT = 4096
"""Rows that are kept in memory at most before they are written."""

CHUNK_CACHE_BYTES = 2**17
"""Bytes of the chunk cache of each dataset.

Chunks are written once and never read: the library's default would keep 8 MiB of each column.
"""

VERSIONS = ("v110", "v110")
"""Format versions (low, high): the oldest that has this mode and virtual datasets, so that old readers cope."""


def load_libraries() -> None:
    """Import the libraries that writing needs, a few tenths of a second, before the first frame rather than with it."""
    load_filters()


NOT_STARTED = ".new"
"""End of the names of files that have no rows yet."""


AHEAD = 8 << 20
"""Bytes of the disk that a growing file takes at once."""


class AppendingFile:
    """A new file, first filled with its tree (`h5`), then started, then appended to.

    It has its name from its start on; before, it ends in `NOT_STARTED`. Raises OSError where the file can't be made. An
    existing file of that name is replaced.
    """

    def __init__(self, path: str) -> None:
        import h5py

        self.path, self._part = path, path + NOT_STARTED
        with disk_errors(path):
            begin(self._part)
            self.h5 = h5py.File(self._part, "w", libver=VERSIONS, locking="best-effort", rdcc_nbytes=CHUNK_CACHE_BYTES)
            watch(path, self.h5)
        self._room = Room(self.h5)

    @contextmanager
    def making(self) -> Iterator[None]:
        """Guard the making of the tree: where that fails nothing is left of the file.

        Raises:
            OSError: the disk refuses.
        """
        try:
            with disk_errors(self.path):
                yield
        except BaseException:
            self.discard()
            raise

    def start(self) -> None:
        """End the making of the tree: from here on a kill leaves a readable file."""
        try:
            with disk_errors(self.path):
                self._room.secure()
                self.h5.swmr_mode = True
                self._room.cut()
                os.replace(self._part, self.path)
        except OSError:
            self.discard()
            raise
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self.h5.id.get_vfd_handle(), fcntl.LOCK_SH | fcntl.LOCK_NB)  # the sign of life for `reopenable`

    def discard(self) -> None:
        """Remove a file that was never started."""
        close_unwritten(self.path)
        with suppress(OSError):
            os.remove(self._part)

    def secure(self, more: int = 0) -> None:
        """Make sure that the disk takes what the next flush will write, and a chunk of ``more`` bytes before it.

        Raises:
            OSError: the disk has no room; nothing is changed.
        """
        with disk_errors(self.path):
            self._room.secure(MARGIN + more, AHEAD if more else 0)

    def flush(self) -> None:
        """Pass everything written so far to the operating system."""
        self.secure()
        with disk_errors(self.path):
            self.h5.flush()
            self._room.cut()

    def close(self) -> None:
        """Flush and close.

        Raises:
            OSError: that failed; the file is left as last flushed.
        """
        try:
            self.flush()
        except OSError:
            self.abandon()
            raise
        close_flushed(self.path, self.h5)

    def abandon(self) -> None:
        """Close without another byte to the disk: the file stays as last flushed, made readable."""
        close_unwritten(self.path)
        with suppress(OSError, Lima2Error):  # on a disk that refuses writes `recover` has to do it later
            give_back(self.path)
            reopenable(self.path)


def close_flushed(path: str, h5: Any) -> None:
    """Close an HDF5 file of which all is flushed, and write its end without the library, which a refusal would break.

    Left to write are the marks of a writer, which are in the first block.

    Raises:
        OSError: the disk refuses; the file is left as last flushed.
    """
    descriptor = os.dup(h5.id.get_vfd_handle())  # the path is of no use where the directory was renamed
    try:
        close_unwritten(path)
        with disk_errors(path):
            _clear_marks(descriptor, path)
            give_back(descriptor)
    finally:
        os.close(descriptor)


WHOLE_MARGIN = 4 * CHUNK_CACHE_BYTES
"""Bytes that a file may give out while it is closed: chunks of some datasets, compressed by the library."""


@contextmanager
def written(path: str, mode: str = "w", **options: Any) -> Iterator[Any]:
    """Open an HDF5 file to write it as a whole or (``r+``) to change it; close it where all went well.

    Raises:
        OSError: the disk refuses, in the system's words. A new file is removed; of a change nothing reaches the disk
            but chunks and what does not fit the library's caches.
    """
    import h5py

    with disk_errors(path):
        if mode == "w":
            begin(path)
        file = h5py.File(path, mode, rdcc_nbytes=CHUNK_CACHE_BYTES, **options)
        watch(path, file)
        try:
            with disk_errors(path):
                yield file
                Room(file).secure(WHOLE_MARGIN)
                file.flush()
        except BaseException:
            close_unwritten(path)
            if mode == "w":
                with suppress(OSError):
                    os.remove(path)
            raise
        close_flushed(path, file)


class Writing:
    """A writer that writes nothing more after the first error of the disk."""

    def __init__(self) -> None:
        self._broken: OSError | None = None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise OSError where the disk has refused before; note it where it refuses now."""
        if self._broken is not None:
            raise OSError(self._broken.errno, f"nothing is written after an error: {self._broken}")
        try:
            yield
        except OSError as error:
            self._broken = error
            raise


class Columns:
    """Datasets of one value or one vector per row, appended to in large pieces.

    Values reach the file before the length that shows them.

    group    where they are made;  dtypes   numpy dtype name of each
    convert  from what is appended (int64 then) to what is written, for columns where that differs: once per write
    lengths  of the vectors of columns that have them
    """

    def __init__(
        self,
        group: Any,
        dtypes: Mapping[str, str],
        convert: Mapping[str, Callable[[NDArray[np.int64]], Any]] | None = None,
        lengths: Mapping[str, int] | None = None,
    ) -> None:
        changed, long = convert or {}, lengths or {}
        self._sets = [
            group.create_dataset(
                name, (0, *more), dtype, maxshape=(None, *more), chunks=(_chunk_rows(dtype, *more), *more)
            )
            for name, dtype in dtypes.items()
            for more in [(long[name],) if name in long else ()]
        ]
        self._last = [np.zeros(data.chunks, data.dtype) for data in self._sets]
        self._convert = [changed.get(name) for name in dtypes]
        self.kept_rows = min(_chunk_rows(dtype, 1 + long.get(name, 0) // 8) for name, dtype in dtypes.items())
        self._kept = [
            np.empty((self.kept_rows, *data.shape[1:]), "int64" if name in changed else data.dtype)
            for name, data in zip(dtypes, self._sets, strict=True)
        ]
        self.pending = 0
        self.written = 0

    @property
    def rows(self) -> int:
        """Number of rows appended so far."""
        return self.written + self.pending

    @property
    def full(self) -> bool:
        """Return whether as many rows are pending as should be kept in memory."""
        return self.pending >= self.kept_rows

    def append(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Append rows (n,) or (n, length) of every column, in the order of the columns; they are copied."""
        first, last = self.pending, self.pending + len(arrays[0])
        if last > len(self._kept[0]):
            self._kept = [
                np.concatenate((kept, np.empty((last - len(kept), *kept.shape[1:]), kept.dtype))) for kept in self._kept
            ]
        for kept, array in zip(self._kept, arrays, strict=True):
            kept[first:last] = array  # uint64 nanoseconds fit in int64 until the year 2262
        self.pending = last

    def write(self, limit: int | None = None) -> None:
        """Write the pending rows, or those below row ``limit`` only."""
        last = self.rows if limit is None else min(limit, self.rows)
        count = last - self.written
        if count <= 0:
            return
        try:
            for target, chunk, kept, convert in zip(self._sets, self._last, self._kept, self._convert, strict=True):
                _extend(target.id, chunk, self.written, convert(kept[:count]) if convert else kept[:count])
        except BaseException:
            for target in self._sets:
                target.resize(self.written, axis=0)
            raise
        for kept in self._kept:
            kept[: self.pending - count] = kept[count : self.pending].copy()
        self.written, self.pending = last, self.pending - count


def _extend(target: Any, chunk: NDArray[Any], row: int, values: NDArray[Any]) -> None:
    """Append rows to a dataset from ``row`` on, directly to the file, where they are when its length is next flushed.

    target  its identifier, whose methods take a tenth of the time of h5py's `Dataset`
    chunk   the last one of the dataset, which goes to the same place again
    """
    size, done, tail = len(chunk), 0, chunk.shape[1:]
    origin = (0,) * len(tail)
    target.set_extent((row + len(values), *tail))
    while done < len(values):
        first, inside = divmod(row + done, size)
        part = values[done : done + size - inside]
        chunk[inside : inside + len(part)] = part
        target.write_direct_chunk((first * size, *origin), chunk)
        done += len(part)


def _chunk_rows(dtype: str, length: int = 1) -> int:
    """Return the number of rows of a chunk that the cache takes."""
    return max(1, min(ROWS_KEPT, CHUNK_CACHE_BYTES // (np.dtype(dtype).itemsize * length)))
