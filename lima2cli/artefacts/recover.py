"""Makes a file readable whose writer was killed.

A file that is being appended to carries two marks in its superblock, "open for write" and "open for
single-writer/multiple-reader", and readers refuse it while they are set. Our writers keep the file consistent
at every moment, so that after a kill nothing but these marks, and the recorded end of the file, is wrong.
"""

import os
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from lima2cli.artefacts.locks import lock
from lima2cli.artefacts.rows import READ, windows
from lima2cli.errors import FileProblem

if TYPE_CHECKING:
    from lima2cli.artefacts.record import Record

BLOCK = 1 << 16
"""Bytes that a file may take of a disk beyond its end because of how disks are divided."""

SIGNATURE = b"\x89HDF\r\n\x1a\n"


def reopenable(path: str) -> bool:
    """Clear the marks of an interrupted writer in place; whether there were any.

    Superblock of version 2 or 3 (HDF5 File Format Specification 3.0, II.A): signature (8 bytes), version, size of
    offsets, size of lengths, file consistency flags (1 byte each), base address, superblock extension address,
    end-of-file address, root object header address (size of offsets each), checksum (4 bytes, lookup3 over all
    before it); little-endian. Files of older versions, as common files are, have no marks.

    Raises `FileProblem` where it is no such file or is still being written, OSError where it can't be read or written.
    """
    with open(path, "r+b") as file:
        if not lock(file.fileno()):  # writers hold a shared lock for as long as they live
            raise FileProblem(f"{path} is open in another process")
        status = os.fstat(file.fileno())
        size = status.st_size
        if status.st_blocks * 512 > size + BLOCK:  # what a writer had taken of the disk beyond the end is given back
            file.truncate(size)
        block = bytearray(file.read(48))
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
        file.seek(0)
        file.write(block)
    return True


def level(path: str) -> None:
    """Cut the datasets of a frame file or a part of a table to the rows that are whole in all of them.

    A kill between the writing of frames and that of their numbers leaves frames that nothing is known of; a full disk
    may leave rows whose chunk was never written, and read as zeros. OSError where the file can't be read or written;
    it stays as it is then.
    """
    from lima2cli.artefacts.appending import written
    from lima2cli.artefacts.checksums import cut_sums
    from lima2cli.artefacts.hdf5_filters import load_filters
    from lima2cli.artefacts.sparse_files import PARTS, cut_rows

    found = uneven(path)
    if found is None:
        return
    where, rows, sparse = found
    load_filters()  # the library writes the last chunk again
    with written(path, "r+", locking="best-effort") as file:
        if sparse:
            cut_rows(file[where]["data"], rows)
            for name in (*PARTS, "frame_ptr"):
                cut_sums(file[where], name, len(file[where]["data"][name]))
        for name, item in file[where].items():
            if not _grows(item):
                continue
            cut_sums(file[where], name, rows)
            if len(item) > rows:
                item.resize(rows, axis=0)


def uneven(path: str) -> tuple[str, int, bool] | None:
    """Of a frame file or a part of a table that has datasets of more rows than are whole in all of them: their group,
    how many are, and whether frames are sparse. None where there is nothing to cut. OSError where it can't be read."""
    import h5py

    from lima2cli.artefacts.record import Record
    from lima2cli.artefacts.sparse_files import is_sparse, whole_rows
    from lima2cli.artefacts.tree import ENTRY

    with h5py.File(path, locking="best-effort") as file:
        record = Record.read(file)
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
            pixels = int(file[where]["data/frame_ptr"][rows]) if rows else 0
            shown |= {rows} if all(len(file[where][f"data/{n}"]) == pixels for n in ("index", "intensity")) else {-1}
        return None if shown <= {rows} else (where, rows, sparse)


def written_rows(data: Any) -> int:
    """Rows of a growing dataset before the first whose chunk is not in the file. Of statuses none needs to be: 0 is
    what they all are."""
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


def _own(record: "Record", numbers: Any, rows: int) -> bool:
    """Whether the first frame is one that this receiver can have: zeros that were never written are not."""
    if not rows or record.places or record.window != 1 or not record.receivers:
        return True
    row, rest = divmod(int(numbers[0]) - record.start, record.step)
    return not rest and row >= 0 and record.receivers[row // record.blocks % len(record.receivers)] == record.receiver


def _in_order(numbers: Any, rows: int) -> int:
    """How many of the first rows come before one whose frame number falls: no writer writes such a row."""
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
    """Bob Jenkins' ``hashlittle`` with initial value 0 (lookup3.c, public domain), the checksum of HDF5 metadata."""
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
