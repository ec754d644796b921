"""Names in the files that are written: the NeXus tree in which silx, fabio and nexusformat find the images."""

import re
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

import lima2cli
from lima2cli.dataclass import dataclass
from lima2cli.files.channel import Channel, TableChannel
from lima2cli.files.fields import write_beam, write_detector
from lima2cli.files.tree import fixed, group, link_name, soft, write_plain

SUMMARY = "summary.json"
"""The file of a run that is written last."""

ENTRY = "entry_0000"
MEASUREMENT = f"{ENTRY}/measurement"

CREATOR = f"LIMA2-{lima2cli.__version__}"
"""fabio recognises files by a root ``@creator`` that begins with LIMA."""


OF_ENTRY = ("title", "start_time", "end_time", "measurement", "sample", "source", "extra", "channel", "flows")
"""Members of the entry next to the instrument or the nodes, which users name."""

INSTRUMENT = "instrument"
"""Name of the NXinstrument group where the instrument has no name."""

OF_INSTRUMENT = ("name", "beam")
"""Members of the instrument next to the detector, which users name."""


def instrument_name(channel: Channel) -> str:
    """Return the name of the NXinstrument group."""
    return link_name(str(channel.metadata.get("instrument") or INSTRUMENT))


def detector_path(channel: Channel) -> str:
    """Return the path of the NXdetector group, which holds ``data``."""
    return f"/{ENTRY}/{instrument_name(channel)}/{link_name(channel.detector.name)}"


def write_root(file: Any, title: str | None, start_ns: int | None) -> Any:
    """Write the attributes of the root, and the entry: ``/entry_0000`` with title and start_time (ISO 8601, UTC)."""
    file.attrs["NX_class"] = fixed("NXroot")
    file.attrs["creator"] = CREATOR
    file.attrs["default"] = ENTRY
    file.attrs["file_name"] = file.filename.rpartition("/")[2].removesuffix(".part").removesuffix(".new")
    file.attrs["file_time"] = datetime.now(UTC).isoformat()
    entry = group(file, ENTRY, "NXentry")
    if title:
        entry["title"] = title
    if start_ns is not None:
        write_start(file, start_ns)
    return entry


def write_start(file: Any, start_ns: int) -> None:
    """Write the start, ns since the epoch, to a file that was made before it was known."""
    file[ENTRY]["start_time"] = utc(start_ns)


def utc(time_ns: int) -> str:
    """Return a time, ns since the epoch, as ISO 8601 has it, in UTC."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat()


def write_nexus(file: Any, channel: Channel, start_ns: int | None) -> Any:
    """Write the tree of a channel, all but the data; return the NXdetector group that wants ``data``.

    Sparse frames also want a dataset ``frame_pixels``, which is what is plotted of them.

    start_ns   start of the run, ns since the epoch, None where unknown
    """
    meta = channel.metadata
    entry = write_root(file, meta.get("title") or channel.name, start_ns)
    instrument = group(entry, instrument_name(channel), "NXinstrument")
    if meta.get("instrument", INSTRUMENT) != INSTRUMENT:
        instrument["name"] = str(meta["instrument"])
    detector = group(instrument, link_name(channel.detector.name), "NXdetector")
    path = detector.name
    plot = group(detector, "plot", "NXdata")
    shown = "frame_pixels" if channel.sparse else "data"
    plot.attrs["signal"] = shown
    plot[shown] = soft(f"{path}/{shown}")
    if channel.sparse:
        plot.attrs["axes"] = ["frame_number"]
        plot["frame_number"] = soft(f"{path}/frame_number")
    group(entry, "measurement", "NXcollection")["data"] = soft(f"{path}/data")
    entry.attrs["default"] = f"{path.removeprefix(entry.name + '/')}/plot"
    instrument.attrs["default"] = f"{path.rpartition('/')[2]}/plot"
    detector.attrs["default"] = "plot"
    write_beam(instrument, meta)
    if meta.get("sample"):
        group(entry, "sample", "NXsample")["name"] = str(meta["sample"])
    if meta.get("source"):
        group(entry, "source", "NXsource")["name"] = str(meta["source"])
    if meta.get("extra"):
        write_plain(group(entry, "extra", "NXcollection"), meta["extra"])
    write_detector(detector, channel)
    return detector


def write_params(detector: Any, channel: Channel) -> None:
    """Write what a master has in addition: parameters and static information, for the record."""
    params = group(detector, "params", "NXcollection")
    write_plain(group(params, "acquisition", "NXcollection"), channel.acquisition)
    write_plain(group(params, "processing", "NXcollection"), channel.processing)
    info = channel.detector
    facts = {
        "kind": info.kind,
        "name": info.name,
        "width": info.width,
        "height": info.height,
        "modules": [[m.x, m.y, m.width, m.height] for m in info.modules],
        "datasets": {d.name: {"dtype": d.dtype, "bits": d.bits, "threshold": d.threshold_ev} for d in info.datasets},
        "channels_per_module": info.channels,
        "gap_value": info.gap_value,
        "saturation": info.saturation,
        "versions": dict(info.versions),
    }
    write_plain(group(detector, "detector_information", "NXcollection"), facts)
    if channel.facts is not None:
        write_plain(group(detector, "reported", "NXcollection"), channel.facts.values())


def fill_value(channel: Channel) -> Any:
    """Return the value of pixels that were not written: that of gaps, 0 where the frames' dtype can't hold it."""
    dtype, gap = np.dtype(channel.dtype), channel.detector.gap_value if channel.hole is None else channel.hole
    if dtype.kind == "f":
        return dtype.type(gap)
    limits = np.iinfo(dtype)
    return dtype.type(int(gap)) if np.isfinite(gap) and limits.min <= gap <= limits.max else dtype.type(0)


def master_file(name: str, node: str) -> str:
    """Return the name of the master of a channel."""
    return f"{name}_{node}_master.h5"


def frame_file_names(name: str, node: str) -> re.Pattern[str]:
    """Return a pattern of names of frame files, with groups for receiver and number."""
    return re.compile(re.escape(f"{name}_{node}_") + r"(\d+)_(\d{5,})\.h5")


def part_names(name: str, node: str) -> re.Pattern[str]:
    """Return a pattern of names of parts of a table."""
    return re.compile(re.escape(f"{name}_{node}_") + r"\d+_rows\.h5")


def table_file(name: str, node: str) -> str:
    """Return the name of a whole table."""
    return f"{name}_{node}.h5"


def ledger_file(name: str, receiver: int) -> str:
    """Return the name of the ledger of a receiver."""
    return f"{name}_{receiver}.ledger"


SEQUENCES = ("receivers", "places", "sources")
"""Attributes of several numbers."""


@dataclass(frozen=True)
class ChannelRecord:
    """Attributes of the group ``channel`` of a file.

    role       ``frames`` (of one receiver), ``master``, ``live`` (a master while its run goes on), ``written`` (common
               file that is not whole), ``rows`` (of one receiver), ``table``
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
        """Number of receivers whose frames make a whole frame."""
        return len(self.places) // 4 or 1

    def source(self, flow: str) -> tuple[int, int, int]:
        """Return first frame, step and number of the frames that a flow selects; -1 = endless."""
        at = 3 * self.flows.index(flow)
        start, step, selected = self.sources[at : at + 3]
        return start, step, selected

    def place(self, receiver: int) -> tuple[int, int, int, int] | None:
        """Return x, y, width and height of the part that a receiver has of each frame; None of whole frames."""
        if not self.places:
            return None
        at = 4 * self.receivers.index(receiver)
        x, y, width, height = self.places[at : at + 4]
        return x, y, width, height

    def frames(self, sources: Iterable[tuple[int, int, int]]) -> int:
        """Return how many frames of its flows make its rows.

        sources  first frame, step and number of the selected frames of each flow
        """
        last = min(start + (count - 1) * step if count else -1 for start, step, count in sources)
        return max(0, (last - self.start) // (self.step // max(1, self.window)) + 1)

    def rows(self, frames: int) -> int:
        """Return how many rows so many frames make, a last incomplete window among them."""
        return -(-frames // self.window) if self.window else min(1, frames)

    @property
    def planned(self) -> int:
        """Number of rows by the plan; -1 = endless."""
        if self.window < 2 or self.selected < 0:
            return self.selected
        return self.rows(self.frames(self.source(flow) for flow in self.flows))

    @classmethod
    def of(
        cls, channel: Channel | TableChannel, role: str, receiver: int = -1, start_ns: int | None = None
    ) -> "ChannelRecord":
        """Return the record of a file of a channel."""
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
        """Write the record into a file that has its entry."""
        group(file[ENTRY], "channel", "NXcollection").attrs.update(asdict(self))

    @staticmethod
    def write_start(file: Any, start_ns: int) -> None:
        """Write the start of the run into a file that has its record."""
        file[f"{ENTRY}/channel"].attrs["start_ns"] = start_ns

    @classmethod
    def read(cls, file: Any) -> "ChannelRecord | None":
        """Return the record of an open file; None where it is none of ours."""
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
