"""How many bytes a run will save, before compression."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lima2cli.artefacts.channel import Channel
from lima2cli.human import volume_text
from lima2cli.plan.records import Plan

ROW_BYTES = 8 + 8 + 1 + 1 + 8
"""Of a row in a master: number, time, statuses, and what maps it to a frame file or its checksum."""

FILE_BYTES = 512
"""Of a frame file in a master."""

END_BYTES = 192 << 10
"""Of a master, or a table, besides."""

MARGIN_BYTES = 640 << 10
"""That the HDF5 library has to have while one of them is written."""

MOST_BYTES = 64 << 20
"""Kept for the end of a run: what needs more `lima2 recover` makes."""


@dataclass(frozen=True)
class Volume:
    """What one channel saves of a run, all its acquisitions together.

    frames       at most, None where the run has no end;  frame_bytes  of one, pixels alone
    less         it may be less: frames are compressed, sparse, or chosen during the run
    """

    node: str
    frames: int | None
    frame_bytes: int
    less: bool

    @property
    def bytes(self) -> int | None:
        """All frames; None without an end."""
        return None if self.frames is None else self.frames * self.frame_bytes

    def __str__(self) -> str:
        each = volume_text(self.frame_bytes)
        if self.bytes is None:
            return f"{self.node} {each} a frame"
        return f"{self.node} {self.frames} x {each} = {volume_text(self.bytes)}"


def volumes(plan: Plan) -> tuple[Volume, ...]:
    """Of all channels."""
    return tuple(_volume(plan, name, channel) for name, channel in plan.channels.items())


def end_bytes(plan: Plan) -> int:
    """Bytes that masters and tables of one acquisition take, about: to be kept for the end of a run. What is copied
    into masters of sparse frames, and what comes of an endless run, is not known before."""
    size = MARGIN_BYTES + END_BYTES
    for channel in plan.channels.values():
        rows = channel.selected or 0
        files = rows // channel.frames_per_file if channel.frames_per_file else 0
        mask = 0 if channel.mask is None else 4 * channel.mask.size
        size += END_BYTES + mask + rows * ROW_BYTES + (files + len(channel.receivers)) * FILE_BYTES
    for table in plan.tables.values():
        lengths = {"frame_number": 1, **dict.fromkeys(table.columns, 1), **table.lengths}
        row = sum(n * np.dtype(table.columns.get(name, "uint64")).itemsize for name, n in lengths.items())
        size += END_BYTES + (table.selected or 0) * row
    return min(size, MOST_BYTES)


def _volume(plan: Plan, name: str, channel: Channel) -> Volume:
    frames = None if channel.selected is None else channel.selected * plan.repeat
    pixels = sum(part.area for part in channel.places) or channel.height * channel.width
    size = pixels * np.dtype(channel.dtype).itemsize
    return Volume(name, frames, size, channel.sparse or channel.filtered or channel.compression != "none")


def volume_figures(plan: Plan) -> dict[str, Any]:
    """As plain data: ``bytes`` is null where the run has no end, ``less`` whether it may be fewer."""
    return {
        it.node: {"frames": it.frames, "frame_bytes": it.frame_bytes, "bytes": it.bytes, "less": it.less}
        for it in volumes(plan)
    }
