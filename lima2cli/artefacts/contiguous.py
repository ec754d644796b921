"""A dataset whose bytes are written by others than the HDF5 library: laid out first, cut afterwards."""

import os
import struct
from typing import Any, BinaryIO

import numpy as np

ALIGNMENT = 4096
"""The first byte lies at a multiple of it: what pages and stripes of file systems are multiples of."""

VERSIONS = ("earliest", "v108")
"""Format versions (low, high): object headers of version 1, which carry no checksum."""

KEPT = ".kept"
"""Added to the name of a file: what its completion may change."""

_PLACES = struct.Struct("<QQ")
"""Offset of the dataset's bytes; offset behind them."""


def make_contiguous(group: Any, name: str, shape: tuple[int, ...], dtype: str, fill: Any) -> Any:
    """A dataset whose place in the file is decided, and of which nothing is written."""
    import h5py

    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_fill_value(np.array(fill, dtype))
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(dtype))
    return h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, layout))


def keep(path: str, dataset: str) -> None:
    """Keep all bytes of a closed file but those of a dataset, in a file beside it, until `restore`. A process that is
    killed while it changes a file leaves what no library opens. OSError."""
    import h5py

    with h5py.File(path, "r") as file:
        data = file[dataset].id
        begin, end = int(data.get_offset() or 0), int(data.get_offset() or 0) + int(data.get_storage_size())
    with open(path, "rb") as source, open(f"{path}{KEPT}.new", "wb") as kept:
        kept.write(_PLACES.pack(begin, end) + source.read(begin))
        source.seek(end)
        kept.write(source.read())
    os.replace(f"{path}{KEPT}.new", f"{path}{KEPT}")


def restore(path: str) -> None:
    """Undo what was changed since `keep`, where a file is still there, and forget what was kept. OSError."""
    kept = f"{path}{KEPT}"
    if os.path.exists(kept) and os.path.exists(path):
        with open(kept, "rb") as source, open(path, "r+b") as file:
            begin, end = _PLACES.unpack(source.read(_PLACES.size))
            file.write(source.read(begin))
            file.seek(end)
            file.write(source.read())
            file.truncate()
    for name in (kept, f"{kept}.new"):
        if os.path.exists(name):
            os.remove(name)


def cut_rows(path: str, dataset: str, rows: int) -> None:
    """Make a contiguous dataset of a closed file shorter, in place; the bytes of the other rows stay unused.

    The library can't. Its object header (HDF5 File Format Specification 3.0, IV.A.1.a, version 1): version, reserved
    (1 byte each), number of messages (2), references (4), size (4), 4 bytes of padding; then messages: type, size (2
    each), flags (1), 3 reserved, data. The dataspace message is of type 1: version 1, dimensions, flags (1 each), 5
    reserved, then the sizes, and the maximal ones where bit 0 of the flags says so, 8 bytes each. The layout message
    is of type 8: version 3, class 1 (contiguous), address and size, 8 bytes each.

    OSError where the file can't be read or written, ValueError where it is another one.
    """
    import h5py

    with h5py.File(path) as file:
        shape, item = file[dataset].shape, file[dataset].dtype.itemsize
        address = h5py.h5o.get_info(file[dataset].id).addr
        base = file.id.get_create_plist().get_userblock()
    if rows > shape[0]:
        raise ValueError(f"{dataset} of {path} has {shape[0]} rows, not {rows}")
    with open(path, "r+b") as raw:
        messages = _messages(raw, base + address)
        space, layout = messages.get(1), messages.get(8)
        if space is None or layout is None or space[1][:2] != bytes((1, len(shape))) or layout[1][:2] != b"\3\1":
            raise ValueError(f"{dataset} of {path} is no contiguous dataset of the kind that lima2 lays out")
        for at in (8, 8 + 8 * len(shape)) if space[1][2] & 1 else (8,):
            raw.seek(space[0] + at)
            raw.write(struct.pack("<Q", rows))
        if not rows:  # no bytes must have no address, which is written as all ones
            raw.seek(layout[0] + 2)
            raw.write(b"\xff" * 8)
        raw.seek(layout[0] + 10)
        raw.write(struct.pack("<Q", rows * item * int(np.prod(shape[1:], dtype=np.int64))))


def _messages(raw: BinaryIO, address: int) -> dict[int, tuple[int, bytes]]:
    """Of each type the place of the data of a message, and the data, in the first block of a header."""
    raw.seek(address)
    version, _, _, size = struct.unpack("<BxHII", raw.read(12))
    found: dict[int, tuple[int, bytes]] = {}
    if version != 1:
        return found
    at = address + 16
    while at < address + 16 + size:
        raw.seek(at)
        kind, length = struct.unpack("<HH4x", raw.read(8))
        found[kind] = (at + 8, raw.read(length))
        at += 8 + length
    return found
