"""The data of a master of sparse frames: the rows of all receivers' files, copied in global frame order.

Rows that are in no file have no pixels; a filtered channel has no such rows. Memory: some ten thousand rows, and about
a million pixels.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.appending import CHUNK_CACHE_BYTES, disk_errors
from lima2cli.artefacts.channel import Channel
from lima2cli.artefacts.hdf5_filters import load_filters
from lima2cli.artefacts.rows import READ, InOrder, rows_of, windows
from lima2cli.artefacts.sparse_files import Rows
from lima2cli.artefacts.tree import detector_path

PIXELS = 1 << 20
"""Pixels that are held together, unless a single frame has more."""

Indices = NDArray[np.int64]


def copy_rows(
    detector: Any, channel: Channel, directory: str, receivers: Sequence[Sequence[tuple[str, int]]], limit: int
) -> None:
    """Make ``data`` and ``frame_pixels`` of a master, a row for each row of its ``frame_number``.

    receivers  of each its files in order: name, and how many rows of it count
    limit      selected frames that are looked at; of a filtered channel those that are in files have a row

    OSError where a file can't be read.
    """
    data = Rows(detector, channel)
    pixels = detector.create_dataset("frame_pixels", detector["frame_number"].shape, "uint32")
    numbered = [name for files in receivers for name, _ in files]
    streams = [InOrder(_pointers(channel, directory, files, numbered)) for files in receivers]
    done = 0
    for first, last in windows(limit):
        taken = [piece for stream in streams for piece in stream.take(last)]
        rows, begin, end, file = (
            np.concatenate([np.empty(0, np.int64), *column])
            for column in (zip(*taken, strict=True) if taken else [()] * 4)
        )
        order = np.argsort(rows, kind="stable")
        found, place = np.unique(rows[order], return_inverse=True)
        count = len(found)
        if not channel.filtered:
            place, count = rows[order] - first, last - first
        lengths, each = np.zeros(count, np.int64), (end - begin)[order]
        np.add.at(lengths, place, each)
        ends = data.pixels + np.cumsum(lengths)
        for some in _spans(each):
            _copy(data, channel, directory, numbered, begin[order[some]], end[order[some]], file[order[some]])
        data.add_rows(ends.astype(np.uint64))
        pixels[done : done + len(lengths)] = lengths
        done += len(lengths)
    detector.file.flush()
    data.add_sums(last=True)


def _pointers(
    channel: Channel, directory: str, files: Sequence[tuple[str, int]], numbered: Sequence[str]
) -> Iterator[Sequence[Indices]]:
    """Of the files of one receiver, piece by piece: rows, where their pixels begin and end, and in which file."""
    for name, held in files:
        for first, last in windows(held, READ):
            with _opened(directory, name) as file:
                detector = file[detector_path(channel)]
                numbers, ptr = detector["frame_number"][first:last], detector["data/frame_ptr"][first : last + 1]
            ptr = ptr.astype(np.int64)
            where = np.full(last - first, numbered.index(name))
            yield rows_of(numbers, channel.rule.start, channel.rule.step), ptr[:-1], ptr[1:], where


def _spans(lengths: Indices) -> Iterator[slice]:
    """Consecutive rows that have few enough pixels together, or are one."""
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + PIXELS, "right")))
        yield slice(first, last)
        first = last


def _copy(
    data: Rows, channel: Channel, directory: str, names: Sequence[str], begin: Indices, end: Indices, file: Indices
) -> None:
    """The pixels from ``begin`` to ``end`` of several rows, each of a file, one row after another."""
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


@contextmanager
def _opened(directory: str, name: str) -> Iterator[Any]:
    import h5py

    load_filters()
    path = os.path.join(directory, name)
    with disk_errors(path), h5py.File(path, rdcc_nbytes=CHUNK_CACHE_BYTES) as file:
        yield file
