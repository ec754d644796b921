"""How many bytes a run will save, before compression."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lima2cli.artefacts.channel import Channel
from lima2cli.human import volume_text
from lima2cli.plan.records import Plan


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
