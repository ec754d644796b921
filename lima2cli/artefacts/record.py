"""What a file says of itself, so that the accounting needs nothing but the files: ``/entry_0000/channel``."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from lima2cli.artefacts.channel import Channel, TableChannel
from lima2cli.artefacts.tree import ENTRY, group

SEQUENCES = ("receivers", "places", "sources")
"""Attributes of several numbers."""


@dataclass(frozen=True)
class Record:
    """Attributes of the group ``channel`` of a file.

    role       ``frames`` (of one receiver), ``master``, ``rows`` (of one receiver), ``table``
    receiver   index, -1 in masters and tables
    start, step, selected   numbers of the selected frames; ``selected`` -1 = endless
    blocks     frames of a group;  receivers   index of the receiver of each local buffer, in rotation order
    start_ns   start of the run, ns since the epoch, -1 unknown
    layout     of a channel: files, common, virtual; else empty
    places     of partial frames x, y, width and height of the part of each of ``receivers``, one after another
    filtered   which of the selected frames reach the channel is not known before
    flows      all flows that feed the node, ``flow`` the first of them
    sources    of each of these first frame, step and number of the selected frames, one after another; -1 = endless
    window     frames of the flow that make one row, 0 = all of them
    complete   each frame that the flow receives should be a row
    """

    role: str
    name: str
    node: str
    flow: str
    receiver: int
    start: int
    step: int
    selected: int
    blocks: int
    receivers: tuple[int, ...]
    start_ns: int
    layout: str = ""
    places: tuple[int, ...] = ()
    filtered: bool = False
    flows: tuple[str, ...] = ()
    sources: tuple[int, ...] = ()
    window: int = 1
    complete: bool = True

    @property
    def parts(self) -> int:
        """Of how many receivers' frames a whole frame is made."""
        return len(self.places) // 4 or 1

    def source(self, flow: str) -> tuple[int, int, int]:
        """First frame, step and number of the frames that a flow selects; -1 = endless."""
        at = 3 * self.flows.index(flow)
        start, step, selected = self.sources[at : at + 3]
        return start, step, selected

    def place(self, receiver: int) -> tuple[int, int, int, int] | None:
        """x, y, width and height of the part that a receiver has of each frame; None of whole frames."""
        if not self.places:
            return None
        at = 4 * self.receivers.index(receiver)
        x, y, width, height = self.places[at : at + 4]
        return x, y, width, height

    def frames(self, sources: Iterable[tuple[int, int, int]]) -> int:
        """How many frames of its flows make its rows, where these have ``sources``: first frame, step and number."""
        last = min(start + (count - 1) * step if count else -1 for start, step, count in sources)
        return max(0, (last - self.start) // (self.step // max(1, self.window)) + 1)

    def rows(self, frames: int) -> int:
        """How many rows so many frames make, a last incomplete window among them."""
        return -(-frames // self.window) if self.window else min(1, frames)

    @property
    def planned(self) -> int:
        """Rows by the plan; -1 = endless."""
        if self.window < 2 or self.selected < 0:
            return self.selected
        return self.rows(self.frames(self.source(flow) for flow in self.flows))

    @classmethod
    def of(
        cls, channel: Channel | TableChannel, role: str, receiver: int = -1, start_ns: int | None = None
    ) -> "Record":
        """The record of a file of a channel."""
        rule = channel.rule
        frames = channel if isinstance(channel, Channel) else None
        sources = channel.sources or ((rule.start, rule.step, channel.selected),)
        return cls(
            role=role,
            name=channel.name,
            node=channel.node,
            flow=channel.flow,
            receiver=receiver,
            start=rule.start,
            step=rule.step,
            selected=-1 if channel.selected is None else channel.selected,
            blocks=rule.blocks,
            receivers=channel.receivers,
            start_ns=-1 if start_ns is None else start_ns,
            layout=frames.layout if frames else "",
            places=tuple(n for p in frames.places for n in (p.x, p.y, p.width, p.height)) if frames else (),
            filtered=bool(frames and frames.filtered),
            flows=channel.flows or (channel.flow,),
            sources=tuple(-1 if n is None else n for source in sources for n in source),
            window=channel.window,
            complete=channel.complete,
        )

    def write(self, file: Any) -> None:
        """Into a file that has its entry."""
        group(file[ENTRY], "channel", "NXcollection").attrs.update(asdict(self))

    @staticmethod
    def write_start(file: Any, start_ns: int) -> None:
        """The start of the run, into a file that has its record."""
        file[f"{ENTRY}/channel"].attrs["start_ns"] = start_ns

    @classmethod
    def read(cls, file: Any) -> "Record | None":
        """Of an open file; None where it is none of ours."""
        if f"{ENTRY}/channel" not in file:
            return None
        attrs = file[f"{ENTRY}/channel"].attrs
        values: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            if name not in attrs:
                return None
            value = attrs[name]
            if name in SEQUENCES:
                values[name] = tuple(map(int, value))
            elif name == "flows":
                values[name] = tuple(map(str, value))
            else:
                values[name] = getattr(value, "item", lambda v=value: v)()
        return cls(**values)
