"""Master of a channel: one virtual dataset over the files of all receivers, in global frame order."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.files import master_rows as mapping
from lima2cli.files.appending import CHUNK_CACHE_BYTES, VERSIONS, written
from lima2cli.files.channel import Channel
from lima2cli.files.compression import load_filters
from lima2cli.files.disk import disk_errors
from lima2cli.files.inspection import detector_of
from lima2cli.files.master_rows import SourceFile, cover_rows, write_flow, write_kept_rows, write_rows, write_virtual
from lima2cli.files.nexus import (
    ENTRY,
    ChannelRecord,
    detector_path,
    frame_file_names,
    master_file,
    write_nexus,
    write_params,
)
from lima2cli.files.nxmx import write_late
from lima2cli.files.rows import READ, SAVED, InOrder, Statuses, rows_of, windows
from lima2cli.files.run_file import FlowRecord, write_flows
from lima2cli.files.sparse_writer import BACKGROUND, GrowingRows, whole_rows

BACKGROUNDS = 1024
"""Rows whose backgrounds are held together."""

PIXELS = 1 << 20
"""Pixels that are held together, unless a single frame has more."""

Indices = NDArray[np.int64]


def copy_rows(
    detector: Any, channel: Channel, directory: str, receivers: Sequence[Sequence[tuple[str, int]]], limit: int
) -> None:
    """Make ``data`` and ``frame_pixels`` of a master, a row for each row of its ``frame_number``.

    receivers  of each its files in order: name, and how many rows of it count
    limit      selected frames that are looked at; of a filtered channel those that are in files have a row

    Raises:
        OSError: a file can't be read.
    """
    data = GrowingRows(detector, channel)
    pixels = detector.create_dataset("frame_pixels", detector["frame_number"].shape, "uint32")
    numbered = [name for files in receivers for name, _ in files]
    streams = [InOrder(_pointers(channel, directory, files, numbered)) for files in receivers]
    done = 0
    for first, last in windows(limit):
        taken = [piece for stream in streams for piece in stream.take(last)]
        rows, begin, end, file, line = (
            np.concatenate([np.empty(0, np.int64), *column])
            for column in (zip(*taken, strict=True) if taken else [()] * 5)
        )
        order = np.argsort(rows, kind="stable")
        distinct, place = np.unique(rows[order], return_inverse=True)
        count = len(distinct)
        if not channel.filtered:
            place, count = rows[order] - first, last - first
        lengths, each = np.zeros(count, np.int64), (end - begin)[order]
        np.add.at(lengths, place, each)
        ends = data.pixels + np.cumsum(lengths)
        for some in _spans(each):
            _copy(data, channel, directory, numbered, begin[order[some]], end[order[some]], file[order[some]])
        if channel.rings is not None:
            for begun, ended in windows(count, BACKGROUNDS):
                some = slice(*np.searchsorted(place, (begun, ended)).tolist())
                rows_there = place[some] - begun, line[order[some]], file[order[some]]
                data.add_background(_backgrounds(channel, directory, numbered, *rows_there), ended - begun)
        data.add_rows(ends.astype(np.uint64))
        pixels[done : done + len(lengths)] = lengths
        done += len(lengths)
    detector.file.flush()
    data.add_sums(last=True)


def _pointers(
    channel: Channel, directory: str, files: Sequence[tuple[str, int]], numbered: Sequence[str]
) -> Iterator[Sequence[Indices]]:
    """Yield, piece by piece, rows of the files of one receiver, where their pixels begin and end, and in which file and
    row of it they are.
    """
    for name, held in files:
        for first, last in windows(held, READ):
            with _opened(directory, name) as file:
                detector = file[detector_path(channel)]
                numbers, ptr = detector["frame_number"][first:last], detector["data/frame_ptr"][first : last + 1]
            ptr = ptr.astype(np.int64)
            where = np.full(last - first, numbered.index(name))
            lines = np.arange(first, last, dtype=np.int64)
            yield rows_of(numbers, channel.rule.start, channel.rule.step), ptr[:-1], ptr[1:], where, lines


def _spans(lengths: Indices) -> Iterator[slice]:
    """Yield runs of consecutive rows that have few enough pixels together, or are one."""
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + PIXELS, "right")))
        yield slice(first, last)
        first = last


def _copy(
    data: GrowingRows,
    channel: Channel,
    directory: str,
    names: Sequence[str],
    begin: Indices,
    end: Indices,
    file: Indices,
) -> None:
    """Copy the pixels from ``begin`` to ``end`` of several rows, each of a file, one row after another."""
    index: list[NDArray[Any]] = []
    intensity: list[NDArray[Any]] = []
    start, held = np.empty_like(begin), 0
    for one in np.unique(file).tolist():
        mine = file == one
        low, high = int(begin[mine].min()), int(end[mine].max())  # all of them, as a file is in frame order
        with _opened(directory, names[one]) as opened:
            group = opened[f"{detector_path(channel)}/data"]
            index.append(group["index"][low:high])
            intensity.append(group["intensity"][low:high])
        start[mine] = begin[mine] - low + held
        held += high - low
    lengths = end - begin
    target = np.cumsum(lengths) - lengths
    order = np.repeat(start - target, lengths) + np.arange(lengths.sum())
    data.add_pixels(np.concatenate(index)[order], np.concatenate(intensity)[order])


def _backgrounds(
    channel: Channel, directory: str, names: Sequence[str], place: Indices, line: Indices, file: Indices
) -> Iterator[tuple[Indices, NDArray[np.float32]]]:
    """Yield places among some rows, and the backgrounds (n, 2, rings) of these, file by file.

    place  of frames that are saved;  line, file  the row of each, and in which file
    """
    for one in np.unique(file).tolist():
        mine = file == one
        low, high = int(line[mine].min()), int(line[mine].max()) + 1
        with _opened(directory, names[one]) as opened:
            data = opened[f"{detector_path(channel)}/data"]
            yield place[mine], np.stack([data[name][low:high] for name in BACKGROUND], axis=1)[line[mine] - low]


@contextmanager
def _opened(directory: str, name: str) -> Iterator[Any]:
    import h5py

    load_filters()
    path = os.path.join(directory, name)
    with disk_errors(path), h5py.File(path, rdcc_nbytes=CHUNK_CACHE_BYTES) as file:
        yield file


def frame_files(directory: str, name: str, node: str) -> list[str]:
    """Return the names of the frame files of a channel, by receiver, then by number."""
    pattern = frame_file_names(name, node)
    matches = [
        (int(match[1]), int(match[2]), file) for file in os.listdir(directory) if (match := pattern.fullmatch(file))
    ]
    return [file for _, _, file in sorted(matches)]


def write_master(
    channel: Channel,
    directory: str,
    *,
    rows: int | None = None,
    statuses: Statuses | None = None,
    totals: Mapping[str, Any] | None = None,
    flows: Sequence[FlowRecord] = (),
    unmatched: int | None = None,
    start_ns: int | None = None,
) -> str:
    """Write ``{name}_{node}_master.h5`` from the frame files of ``directory``; return its path.

    rows      selected frames, saved or not; at least those up to the last of which files hold something
    statuses  uint8 (rows,): why a row that is in no file is not (1 lost, 2 dropped, 3 incomplete); saved but in no file
              counts as lost. Default: 3
    totals    the flow's account (plain data), stored in ``<detector>/flow``; ``expected`` and ``vetoed``, of the
              channel, are read by the accounting
    flows     accounts of all flows that feed the channel, as far as they are known
    unmatched frames that were not in all inputs of the joins before it
    start_ns  start of the run, ns since the epoch, where no frame file has it

    Row k is the k-th selected frame, of a filtered channel the k-th that is in files. Of partial frames what there is
    is shown; a row of which some but not all parts are in files has the status 3.

    Written under another name, then renamed. Frame files that can't be read, or whose frames are not in order, are
    left out.

    Raises:
        OSError: the master can't be written; or, after it was written, frame files were left out.
        ValueError: a file holds a frame that the flow does not select.
    """
    path = os.path.join(directory, master_file(channel.name, channel.node))
    files, unreadable = _scan_all(channel, directory)
    count = max(rows or 0, 1 + max((file.last for file in files), default=-1))
    start_ns = next((file.start_ns for file in files), start_ns)
    with written(f"{path}.part", libver=VERSIONS) as master:
        detector = write_nexus(master, channel, start_ns)
        write_params(detector, channel)
        ChannelRecord.of(channel, "master", start_ns=start_ns).write(master)
        write_flow(detector, channel, count, statuses, totals)
        write_flows(master[ENTRY], flows, unmatched)
        receivers = _receivers(channel, directory, files)
        shown = count
        if channel.filtered:
            shown, maps = write_kept_rows(detector, channel, receivers, len(files), count)
            files = [replace(file, pieces=one.finish()) for file, one in zip(files, maps, strict=True)]
        else:
            write_rows(detector, channel, receivers, count, statuses)
        if channel.sparse:
            held = {file.name: file.rows for file in files}
            names = by_receiver(held)
            copy_rows(detector, channel, directory, [[(n, held[n]) for n in own] for own in names], count)
        else:
            write_virtual(detector, channel, files, shown)
        if channel.checksum:
            cover_rows(detector)
        write_late(master, channel, start_ns)
    os.replace(f"{path}.part", path)
    if unreadable:
        raise OSError(f"{os.path.basename(path)} was written without {'; '.join(unreadable)}")
    return path


def tells(master: str) -> bool:
    """Return whether a master is there that can be read and has the reasons why frames are not saved."""
    import h5py

    try:
        with h5py.File(master) as file:
            return bool(detector_of(file)["flow"].attrs["told"])
    except (OSError, RuntimeError, KeyError):
        return False


def saved_frames(master: str) -> int:
    """Return the number of frames that a master shows.

    Raises:
        OSError: it can't be read.
    """
    import h5py

    with h5py.File(master) as file:
        status = detector_of(file)["frame_status"]
        return sum(int(np.count_nonzero(status[first:last] == SAVED)) for first, last in windows(len(status)))


def by_receiver(names: Iterable[str]) -> list[list[str]]:
    """Return the names of frame files in their order, those of each receiver together."""
    return [list(own) for _, own in groupby(names, _prefix)]


def receiver_of(name: str) -> int:
    """Return the index of the receiver that writes the frame file of a name."""
    return int(_prefix(name).rpartition("_")[2])


def _prefix(name: str) -> str:
    """Return the name of a frame file without its number."""
    return name.rpartition("_")[0]


def _scan_all(channel: Channel, directory: str) -> tuple[list[SourceFile], list[str]]:
    """Return the frame files that can be read, and what is wrong with the others."""
    files: list[SourceFile] = []
    unreadable = []
    for name in frame_files(directory, channel.name, channel.node):
        before = files[-1].last if files and _prefix(name) == _prefix(files[-1].name) else -1
        try:
            files.append(_scan(channel, directory, name, before))
        except OSError as error:
            unreadable.append(f"{name}: {error}")
    return files, unreadable


def _scan(channel: Channel, directory: str, name: str, before: int) -> SourceFile:
    """Read the facts of a file whose rows come after row ``before``."""
    mapped, last, source = mapping.RowMapping(), before, 0
    several, rule = len(set(channel.receivers)) < len(channel.receivers), channel.rule
    path = os.path.join(directory, name)
    for (rows,) in _read(path, channel, ("frame_number",)):
        if (np.diff(rows, prepend=last) <= 0).any():
            raise OSError("its frames are not in order")
        last = int(rows[-1])
        if not channel.filtered:  # else it maps to rows that are known only when those of all receivers are
            buffer = rule.turn(rule.group(rows))[0] if several else None
            mapped.add(rows, np.arange(source, source + len(rows)), buffer)
        source += len(rows)
    return SourceFile(name, receiver_of(name), source, last, mapped.finish(), _start_ns(path))


def _start_ns(path: str) -> int | None:
    import h5py

    with disk_errors(path), h5py.File(path) as file:
        record = ChannelRecord.read(file)
    return record.start_ns if record is not None and record.start_ns >= 0 else None


def _read(path: str, channel: Channel, columns: Iterable[str]) -> Iterator[list[NDArray[Any]]]:
    """Yield columns of a frame file, piece by piece; instead of frame numbers their rows in the master.

    Rows beyond the shortest of the file's datasets don't count: a kill may leave some longer.
    """
    import h5py

    with disk_errors(path):
        file = h5py.File(path, rdcc_nbytes=CHUNK_CACHE_BYTES)
    with file:
        with disk_errors(path):
            detector = file[detector_path(channel)]
            held = min(whole_rows(detector["data"]), *(len(detector[name]) for name in ("frame_number", "frame_time")))
        for first, last in windows(held, READ):
            with disk_errors(path):
                piece = [detector[name][first:last] for name in columns]
            yield [rows_of(piece[0], channel.rule.start, channel.rule.step), *piece[1:]]


def _receivers(channel: Channel, directory: str, files: Sequence[SourceFile]) -> list[InOrder]:
    """Return the frames in the files of each receiver: index, time, row in the file, and which of ``files`` that is."""

    def read(names: Sequence[str]) -> Iterator[list[NDArray[Any]]]:
        for name in names:
            source = 0
            for rows, times in _read(os.path.join(directory, name), channel, ("frame_number", "frame_time")):
                yield [rows, times, np.arange(source, source + len(rows)), np.full(len(rows), order[name])]
                source += len(rows)

    order = {file.name: index for index, file in enumerate(files)}
    return [InOrder(read(names)) for names in by_receiver(order)]
