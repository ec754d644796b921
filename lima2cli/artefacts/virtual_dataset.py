"""The virtual dataset of a master: rows of frame files, each in its row and its rectangle.

The HDF5 library keeps some 25 KiB in memory of each mapping. Where rows are irregular, because frames were lost or
receivers' frames interleave behind a filter, one mapping therefore takes many of their runs, as a selection of several
blocks. Not all of them: to build such a selection, or to read it from a file, takes the square of their number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lima2cli.artefacts.channel import Channel
from lima2cli.artefacts.mapping import Piece
from lima2cli.artefacts.tree import fill_value
from lima2cli.geometry import Rect

RUNS = 64
"""Blocks of rows that one mapping takes together."""


@dataclass(frozen=True)
class MappedFile:
    """A frame file: its receiver, its rows, the last selected frame (by index; -1: none), how its rows map, and the
    run's start."""

    name: str
    receiver: int
    rows: int
    last: int
    pieces: list[Piece]
    start_ns: int | None


def write_virtual(detector: Any, channel: Channel, files: Sequence[MappedFile], count: int) -> None:
    """The dataset ``data`` (count, height, width), by names relative to the master."""
    import h5py

    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    target = h5py.h5s.create_simple((count, channel.height, channel.width))
    source = f"{detector.name}/data".replace("%", "%%").encode()
    for file in files:
        place = channel.place(file.receiver)
        own = Rect(0, 0, place.width, place.height)
        available = h5py.h5s.create_simple((file.rows, own.height, own.width))
        name = file.name.replace("%", "%%").encode()  # printf-style names would be patterns
        for together in _together(file.pieces):
            target.select_none()
            available.select_none()
            for piece in together:
                _add(target, piece.target, piece.target_stride, piece, place)
                _add(available, piece.source, piece.source_stride, piece, own)
            layout.set_virtual(target, name, source, available)
    dtype = np.dtype(channel.dtype)
    layout.set_fill_value(np.array(fill_value(channel), dtype))
    target.select_all()
    made = h5py.h5d.create(detector.id, b"data", h5py.h5t.py_create(dtype), target, layout)
    h5py.Dataset(made).attrs["interpretation"] = "image"


def _together(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Pieces of a file that one mapping takes: their rows are in the same order in the file and in the dataset."""
    held: list[Piece] = []
    for piece in pieces:
        if held and sum(it.count for it in held) + piece.count > RUNS:
            yield held
            held = []
        held.append(piece)
    if held:
        yield held


def _add(space: Any, first: int, stride: int, piece: Piece, place: Rect) -> None:
    import h5py

    ones = (1, 1)
    space.select_hyperslab(
        (first, place.y, place.x),
        (piece.count, *ones),
        (max(stride, piece.block), *ones),
        (piece.block, place.height, place.width),
        op=h5py.h5s.SELECT_OR,
    )
