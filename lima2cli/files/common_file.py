"""One plain HDF5 file of all receivers: laid out before the run, completed after it."""

import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lima2cli.files.appending import NOT_STARTED, WHOLE_MARGIN, AppendingFile, Columns, written
from lima2cli.files.channel import Channel
from lima2cli.files.checksums import GROUP, make_sums
from lima2cli.files.disk import allocate, disk_errors, library_is_broken
from lima2cli.files.master_rows import cover_rows, write_flow, write_rows
from lima2cli.files.nexus import (
    ENTRY,
    MEASUREMENT,
    ChannelRecord,
    detector_path,
    fill_value,
    master_file,
    write_nexus,
    write_params,
    write_root,
)
from lima2cli.files.nxmx import write_late
from lima2cli.files.rows import READ, SAVED, InOrder, Statuses, rows_of, windows
from lima2cli.files.run_file import FlowRecord, write_flows
from lima2cli.files.tree import group

ALIGNMENT = 4096
"""The first byte lies at a multiple of it: what pages and stripes of file systems are multiples of."""

VERSIONS = ("earliest", "v108")
"""Format versions (low, high): object headers of version 1, which carry no checksum."""

KEPT = ".kept"
"""Suffix of the file that holds what the completion of a file may change."""

_PLACES = struct.Struct("<QQ")
"""Offset of the dataset's bytes; offset behind them."""


def make_contiguous(group: Any, name: str, shape: tuple[int, ...], dtype: str, fill: Any) -> Any:
    """Make a contiguous dataset whose place in the file is decided and whose data are not written."""
    import h5py

    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_fill_value(np.array(fill, dtype))
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(dtype))
    return h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, layout))


def keep(path: str, dataset: str) -> None:
    """Save all bytes of a closed file but those of a dataset in a file next to it, until `restore`.

    A process that is killed while it changes a file leaves what no library opens.

    Raises:
        OSError: a file can't be read or written.
    """
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
    """Undo the changes since `keep`, where its copy is still there, and remove the copy.

    Raises:
        OSError: a file can't be read or written.
    """
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

    Raises:
        OSError: the file can't be read or written.
        ValueError: it is not a file that `lay_out` made.
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
            raise ValueError(f"{dataset} of {path} is not a contiguous dataset as lima2 makes them")
        for at in (8, 8 + 8 * len(shape)) if space[1][2] & 1 else (8,):
            raw.seek(space[0] + at)
            raw.write(struct.pack("<Q", rows))
        if not rows:  # no bytes must have no address, which is written as all ones
            raw.seek(layout[0] + 2)
            raw.write(b"\xff" * 8)
        raw.seek(layout[0] + 10)
        raw.write(struct.pack("<Q", rows * item * int(np.prod(shape[1:], dtype=np.int64))))


def _messages(raw: BinaryIO, address: int) -> dict[int, tuple[int, bytes]]:
    """Return, by message type, the place of the data of a message and the data, in the first block of a header."""
    raw.seek(address)
    version, _, _, size = struct.unpack("<BxHII", raw.read(12))
    messages: dict[int, tuple[int, bytes]] = {}
    if version != 1:
        return messages
    at = address + 16
    while at < address + 16 + size:
        raw.seek(at)
        kind, length = struct.unpack("<HH4x", raw.read(8))
        messages[kind] = (at + 8, raw.read(length))
        at += 8 + length
    return messages


FILL_BYTES = 8 << 20
"""Bytes of rows that are filled together."""


ROW_BYTES = 8 + 8 + 1 + 1
"""Bytes of a row's number, time, statuses."""

TREE_BYTES = WHOLE_MARGIN + (256 << 10)
"""Bytes of all else that completes a file."""


def unfinished(channel: Channel, directory: str) -> str:
    """Return the path of the file while receivers write to it."""
    return os.path.join(directory, f"{master_file(channel.name, channel.node)}.part")


def lay_out(channel: Channel, directory: str, start_ns: int) -> int:
    """Make the file with its tree and the dataset of all selected frames; return the offset of its first byte.

    The disk space for what `complete_common` adds is allocated behind the end of the file.

    Raises:
        OSError: the disk refuses.
    """
    path = unfinished(channel, directory) + NOT_STARTED  # half a file has never its name
    assert channel.selected is not None
    options: dict[str, Any] = {"alignment_threshold": ALIGNMENT, "alignment_interval": ALIGNMENT}
    with written(path, libver=VERSIONS, **options) as file:
        detector = write_nexus(file, channel, start_ns)
        write_params(detector, channel)
        ChannelRecord.of(channel, "master", start_ns=start_ns).write(file)
        shape = (channel.selected, channel.height, channel.width)
        data = make_contiguous(detector, "data", shape, channel.dtype, fill_value(channel))
        data.attrs["interpretation"] = "image"
        offset = int(data.id.get_offset())
    try:
        with disk_errors(path):
            _allocate_rows(path, channel.selected, channel)
    except OSError:
        os.remove(path)
        raise
    os.replace(path, path.removesuffix(NOT_STARTED))
    return offset


def _allocate_rows(path: str, rows: int, channel: Channel) -> None:
    """Allocate the disk space behind the end of a file for the columns about its rows.

    Raises:
        OSError: the disk has no room.
    """
    each = ROW_BYTES + 8 * len(channel.metadata.get("axes") or {})
    with open(path, "r+b") as file:
        end = os.fstat(file.fileno()).st_size
        allocate(file.fileno(), end, end + rows * each + TREE_BYTES)


def written_rows_files(directory: str, name: str, node: str) -> list[str]:
    """Return the names of the files in which receivers noted what they wrote, by receiver."""
    pattern = re.compile(re.escape(f"{name}_{node}_") + r"(\d+)_rows\.h5")
    numbered = [(int(match[1]), file) for file in os.listdir(directory) if (match := pattern.fullmatch(file))]
    return [file for _, file in sorted(numbered)]


class WrittenRows:
    """Frames that one receiver wrote: number and time of each, and the row up to which all is as it should be."""

    def __init__(self, channel: Channel, directory: str, receiver: int, start_ns: int) -> None:
        self._file = AppendingFile(os.path.join(directory, f"{channel.name}_{channel.node}_{receiver}_rows.h5"))
        with self._file.making():
            entry = write_root(self._file.h5, channel.name, start_ns)
            ChannelRecord.of(channel, "written", receiver, start_ns).write(self._file.h5)
            measurement = group(entry, "measurement", "NXcollection")
            self._sound = entry["channel"].create_dataset("sound_rows", (1,), "uint64")
            self._columns = Columns(
                measurement,
                {"frame_number": "uint64", "frame_time": "float64", "checksum": "uint64"},
                {"frame_time": lambda times_ns: (times_ns - start_ns) * 1e-9},
            )
        self._file.start()

    def append(self, numbers: NDArray[Any], times: NDArray[Any], sums: NDArray[Any], sound: int) -> None:
        """Append frames (n,) that are in the file, with their times (ns since the epoch) and checksums.

        ``sound`` is the row up to which all is as it should be (0: as before).

        Raises:
            OSError: the disk refuses.
        """
        with disk_errors(self._file.path):
            self._columns.append((numbers, times, sums))
            if sound:
                self._sound[0] = sound
            if self._columns.full:
                self._columns.write()

    def flush(self) -> None:
        """Pass what was appended to the operating system.

        Raises:
            OSError: the disk refuses.
        """
        with disk_errors(self._file.path):
            self._columns.write()
        self._file.flush()

    def close(self) -> None:
        """End the file.

        Raises:
            OSError: the disk refuses; the file has what was flushed before.
        """
        if library_is_broken():  # which was raised already
            self._file.abandon()
            return
        try:
            self.flush()
        except OSError:
            self._file.abandon()
            raise
        self._file.close()


def complete_common(
    channel: Channel,
    directory: str,
    *,
    rows: int | None = None,
    statuses: Statuses | None = None,
    totals: Mapping[str, Any] | None = None,
    flows: Sequence[FlowRecord] = (),
    unmatched: int | None = None,
    start_ns: int | None = None,
    renew: bool = False,
) -> str:
    """Add the numbers, times and statuses of its rows to the file, cut it, and give it its name; return its path.

    Parameters as of `write_master`; the file itself knows the start. Rows that no receiver saved hold the fill value.
    A file that has its name already is left as it is.

    renew  write the tree again: more is known than at the start

    Raises:
        OSError: a file can't be read or written; the file does not have its name then, and can be completed later.
    """
    import h5py

    part, path = unfinished(channel, directory), os.path.join(directory, master_file(channel.name, channel.node))
    restore(part)
    if os.path.exists(path) and not os.path.exists(part):
        return path
    notes = [os.path.join(directory, name) for name in written_rows_files(directory, channel.name, channel.node)]
    if not os.path.exists(part) and not notes:  # the disk had no room for it: no frame was taken, which was reported
        lay_out(replace(channel, selected=max(1, rows or 0)), directory, start_ns or 0)
    with ExitStack() as opened, disk_errors(part):
        columns = [opened.enter_context(h5py.File(name))[MEASUREMENT] for name in notes]
        sound = max((int(table.parent["channel/sound_rows"][0]) for table in columns), default=0)
        count = max(rows or 0, 1 + max((_last(channel, table) for table in columns), default=-1))
        with suppress(OSError):  # on a full disk what completes the file has its room, this has none
            keep(part, f"{detector_path(channel)}/data")
        _allocate_rows(part, count, channel)
        file = opened.enter_context(written(part, "r+", libver=VERSIONS))
        detector = _renewed(file, channel) if renew else file[detector_path(channel)]
        for name in ("frame_number", "frame_time", "frame_status", "flow", GROUP):
            if name in detector:  # a former call was aborted here
                del detector[name]
        if "flows" in file[ENTRY]:
            del file[f"{ENTRY}/flows"]
        write_flow(detector, channel, count, statuses, totals)
        write_flows(file[ENTRY], flows, unmatched)
        write_rows(
            detector,
            channel,
            [InOrder(_frames(channel, table)) for table in columns],
            count,
            statuses,
        )
        if channel.checksum and all("checksum" in table for table in columns):
            _write_sums(
                make_sums(detector, {"data": detector["data"]}, count, rows=1)["data"],
                [_sums(channel, table) for table in columns],
            )
        if channel.checksum:
            cover_rows(detector)
        record = ChannelRecord.read(file)
        write_late(file, channel, None if record is None else record.start_ns)
        offset = int(detector["data"].id.get_offset() or 0)
        absent = _absent(detector["frame_status"], sound, count)
    with disk_errors(part):
        _fill(part, channel, offset, absent)
        cut_rows(part, f"{detector_path(channel)}/data", count)
    os.replace(part, path)
    restore(part)
    for name in notes:
        os.remove(name)
    return path


def _renewed(file: Any, channel: Channel) -> Any:
    """Write the tree of a file again, around the same data, without rows; return the NXdetector group."""
    record = ChannelRecord.read(file)
    assert record is not None
    file.move(f"{detector_path(channel)}/data", "data")
    del file[ENTRY]
    detector = write_nexus(file, channel, record.start_ns)
    write_params(detector, channel)
    ChannelRecord.of(channel, "master", start_ns=record.start_ns).write(file)
    file.move("data", f"{detector.name}/data")
    return detector


def _frames(channel: Channel, columns: Any) -> Iterator[Sequence[NDArray[Any]]]:
    """Yield the index among the selected frames, and the time, of the frames that a receiver wrote."""
    held = min(len(column) for column in columns.values())
    for first, last in windows(held, READ):
        rows = rows_of(columns["frame_number"][first:last], channel.rule.start, channel.rule.step)
        yield rows, columns["frame_time"][first:last]


def _sums(channel: Channel, columns: Any) -> Iterator[Sequence[NDArray[Any]]]:
    """Yield the index among the selected frames, and the checksum, of the frames that a receiver wrote."""
    held = min(len(column) for column in columns.values())
    for first, last in windows(held, READ):
        rows = rows_of(columns["frame_number"][first:last], channel.rule.start, channel.rule.step)
        yield rows, columns["checksum"][first:last]


def _write_sums(values: Any, receivers: Sequence[Iterator[Sequence[NDArray[Any]]]]) -> None:
    """Write the checksum of each frame that was saved to its row; 0 where there is none."""
    streams = [InOrder(receiver) for receiver in receivers]
    for first, last in windows(len(values)):
        held = np.zeros(last - first, np.uint64)
        for stream in streams:
            for rows, sums in stream.take(last):
                held[rows - first] = sums
        values[first:last] = held


def _last(channel: Channel, columns: Any) -> int:
    numbers = columns["frame_number"]
    return int(rows_of(numbers[-1:], channel.rule.start, channel.rule.step).max(initial=-1))


def _absent(status: Any, first_row: int, count: int) -> list[tuple[int, int]]:
    """Return runs (first, last + 1) of rows from ``first_row`` on that were not saved.

    Receivers have filled the rows before.
    """
    absent_runs: list[tuple[int, int]] = []
    for first, last in windows(max(0, count - first_row)):
        absent = np.flatnonzero(status[first + first_row : last + first_row] != SAVED) + first + first_row
        runs = np.split(absent, np.flatnonzero(np.diff(absent) != 1) + 1)
        absent_runs.extend((int(run[0]), int(run[-1]) + 1) for run in runs if len(run))
    return absent_runs


def _fill(path: str, channel: Channel, offset: int, runs: Sequence[tuple[int, int]]) -> None:
    """Write the fill value to runs of rows of the dataset that begins at ``offset``.

    Raises:
        OSError: the disk refuses.
    """
    row = np.full(channel.height * channel.width, fill_value(channel), channel.dtype).view(np.uint8)
    most = max(1, FILL_BYTES // len(row))
    piece = np.tile(row, max((min(most, last - first) for first, last in runs), default=0))
    with open(path, "r+b") as file:
        for first, last in runs:
            for begin, end in windows(last - first, most):
                file.seek(offset + (first + begin) * len(row))
                file.write(piece[: (end - begin) * len(row)].data)
