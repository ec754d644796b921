"""The virtual dataset of a master: rows of frame files, each in its row and its rectangle."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lima2cli.artefacts.channel import Channel
from lima2cli.artefacts.mapping import Piece
from lima2cli.artefacts.tree import fill_value
from lima2cli.geometry import Rect


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
        for piece in file.pieces:
            _select(target, piece.target, piece.target_stride, piece, place)
            _select(available, piece.source, piece.source_stride, piece, own)
            layout.set_virtual(target, name, source, available)
    dtype = np.dtype(channel.dtype)
    layout.set_fill_value(np.array(fill_value(channel), dtype))
    target.select_all()
    made = h5py.h5d.create(detector.id, b"data", h5py.h5t.py_create(dtype), target, layout)
    h5py.Dataset(made).attrs["interpretation"] = "image"


def _select(space: Any, first: int, stride: int, piece: Piece, place: Rect) -> None:
    ones = (1, 1)
    space.select_hyperslab(
        (first, place.y, place.x),
        (piece.count, *ones),
        (max(stride, piece.block), *ones),
        (piece.block, place.height, place.width),
    )
