"""The one file that a user opens, and the record of the flows of a run in it: ``/entry_0000/flows``."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import Any

import numpy as np

from lima2cli.dataclass import dataclass
from lima2cli.files.appending import VERSIONS, written
from lima2cli.files.fields import write_beam
from lima2cli.files.inspection import Inspection, Unreadable
from lima2cli.files.nexus import ENTRY, INSTRUMENT, MEASUREMENT, OF_ENTRY, ChannelRecord, utc, write_root
from lima2cli.files.rows import WINDOW, Status, Statuses, ranges_of, windows
from lima2cli.files.tree import KEY, group, link_names

FLOWS = f"{ENTRY}/flows"

COUNTS = ("expected", "received", "lost", "dropped", "missing")


@dataclass(frozen=True, eq=False)
class FlowRecord:
    """The account of one flow, in frames.

    Slices of it are `Statuses` of its frames.

    statuses   None where all were received
    """

    name: str
    start: int
    step: int
    expected: int
    received: int
    lost: int
    dropped: int
    missing: int
    statuses: Statuses | None = None

    @property
    def totals(self) -> dict[str, int]:
        """Return the counts by their names."""
        return {name: getattr(self, name) for name in COUNTS}

    def __getitem__(self, rows: slice, /) -> Status:
        """Return the statuses of the frames of a slice."""
        if self.statuses is not None:
            return self.statuses[rows]
        first, last, _ = rows.indices(self.expected)
        return np.zeros(max(0, last - first), np.uint8)

    def absent(self) -> list[list[int]]:
        """Return the numbers of all frames that were not received, in order, as ``[first, last, step]``."""
        if self.received == self.expected:
            return []
        rows = (np.flatnonzero(self[first:last]) + first for first, last in windows(self.expected))
        return ranges_of(each * self.step + self.start for each in rows)

    def write(self, flows: Any) -> None:
        """Write the account into the group of all flows of a file."""
        own = group(flows, self.name, "NXcollection")
        for name, value in {"start": self.start, "step": self.step, **self.totals}.items():
            own[name] = value
        if self.received < self.expected:
            chunks = (min(WINDOW, self.expected),)
            made = own.create_dataset("frame_status", (self.expected,), "uint8", chunks=chunks, compression="gzip")
            for first, last in windows(self.expected):
                made[first:last] = self[first:last]


@dataclass(frozen=True)
class _Kept:
    """Statuses that are in a file; slices raise what the HDF5 library raises."""

    directory: str
    file: str
    flow: str

    def __getitem__(self, rows: slice, /) -> Status:
        with Inspection(self.directory, False).open(self.file) as file:
            status: Status = file[f"{FLOWS}/{self.flow}/frame_status"][rows]
            return status


def write_flows(entry: Any, flows: Iterable[FlowRecord], unmatched: int | None = None) -> None:
    """Write the accounts of ``flows`` into the entry of a new file; of no flow nothing."""
    kept = list(flows)
    if not kept:
        return
    made = group(entry, "flows", "NXcollection")
    if unmatched is not None:
        made.attrs["unmatched"] = unmatched
    for flow in kept:
        flow.write(made)


def kept_flows(inspection: Inspection) -> dict[str, FlowRecord]:
    """Return the accounts of flows that the files of a directory hold, by name; report where two of them differ."""
    accounts: dict[str, tuple[str, FlowRecord]] = {}
    for name in inspection.ends:
        try:
            with inspection.open(name) as file:
                for flow, own in file.get(FLOWS, {}).items():
                    start, step, *counts = (int(own[key][()]) for key in ("start", "step", *COUNTS))
                    expected, received, lost, dropped, missing = counts
                    record = FlowRecord(flow, start, step, expected, received, lost, dropped, missing)
                    if record.received < record.expected:
                        record = replace(record, statuses=_Kept(inspection.directory, name, flow))
                    other, same = accounts.setdefault(flow, (name, record))
                    if same.totals != record.totals:
                        inspection.tell(f"{name}: its account of {flow} is not that of {other}")
        except Unreadable as error:
            inspection.tell_of(name, error)
    return {flow: record for flow, (_, record) in accounts.items()}


def linked_files(inspection: Inspection) -> dict[str, list[str]]:
    """Return the files of nodes that the linking files of a directory link to, by the names of linking files."""
    import h5py

    found: dict[str, list[str]] = {}
    for name in inspection.ends:
        try:
            with inspection.open(name) as file:
                if FLOWS in file and MEASUREMENT in file:
                    links = [file[MEASUREMENT].get(key, getlink=True) for key in file[MEASUREMENT]]
                    if all(isinstance(link, h5py.ExternalLink) for link in links):
                        found[name] = sorted({link.filename for link in links})
        except Unreadable:
            continue  # reported with the flows
    return found


def kept_unmatched(inspection: Inspection, name: str) -> int | None:
    """Return the number of frames that joins before the node of a file left out; None where the file has none."""
    try:
        with inspection.open(name) as file:
            value = file[FLOWS].attrs.get("unmatched") if FLOWS in file else None
            return None if value is None else int(value)
    except Unreadable:
        return None  # those who read its rows report what is wrong with the file


def cut_short(record: ChannelRecord, expected: Mapping[str, int]) -> bool:
    """Return whether a flow that feeds a node expected fewer frames than it selects: the run was stopped.

    By name of the node.
    """
    selected = {name: record.source(name)[2] for name in record.flows}
    return any(count < 0 or expected[name] < count for name, count in selected.items())


def expected_rows(record: ChannelRecord, flows: Mapping[str, FlowRecord]) -> int | None:
    """Return how many rows a node should have after what its flows expected; None where one of them is not known."""
    frames = _frames(record, flows)
    if frames is None or record.window != 1:
        return None if frames is None else record.rows(frames)
    return frames if record.selected < 0 else min(frames, record.selected)


def whole_windows(record: ChannelRecord, flows: Mapping[str, FlowRecord]) -> int | None:
    """Return how many of these rows a node can have: all but a last incomplete window. None where it is not known."""
    frames = _frames(record, flows) if record.window > 1 else None
    return None if frames is None else frames // record.window


def _frames(record: ChannelRecord, flows: Mapping[str, FlowRecord]) -> int | None:
    """Return the number of frames that make the rows of a node; None where one of its flows is not known."""
    own = [flows[name] for name in record.flows if name in flows]
    if len(own) < len(record.flows):
        return None
    return record.frames((flow.start, flow.step, flow.expected) for flow in own)


TIMES = ("start_time", "end_time")

CHANNEL = ("data", "frame_number", "frame_time", "frame_status", "frame_pixels")
"""Members of a channel that are linked, where there are such."""


def write_links(
    name: str,
    directory: str,
    channels: Sequence[str],
    tables: Sequence[str] = (),
    flows: Sequence[FlowRecord] = (),
    metadata: Mapping[str, Any] | None = None,
    times_ns: tuple[int | None, int | None] = (None, None),
) -> str:
    """Write ``{name}.h5``; return its path.

    ``/entry_0000/<node>`` has, of a channel, ``data`` and its row by row datasets, ``plot`` (NXdata), and ``detector``,
    all that its master has of it; of a table, its columns and ``plot``. ``/entry_0000/measurement/<node>`` is the
    channel's data or the group of the table's columns, ``measurement/data`` the first channel's data. The default plot
    is the first channel's image, without channels the first table's curve. Nodes of such names as the file has itself
    get a number: see `link_names`.

    channels, tables   paths of masters and merged tables; links are relative to ``directory``
    flows              accounts of all flows of the run, as far as they are known
    metadata           of the acquisition: title, names of instrument and sample, and the beam are written
    times_ns           of its start and its last frame, ns since the epoch; None: those that masters have, if any

    Raises:
        OSError: a file can't be read or written.
    """
    import h5py

    path = os.path.join(directory, f"{name}.h5")
    with written(f"{path}.part", libver=VERSIONS) as file:
        linked = [(_Facts.read(target), os.path.relpath(target, directory)) for target in (*channels, *tables)]
        known = metadata or {}
        entry = write_root(file, known.get("title") or name, None)
        _write_times(entry, [facts for facts, _ in linked], times_ns)
        if known:
            instrument = group(entry, INSTRUMENT, "NXinstrument")
            if known.get("instrument", INSTRUMENT) != INSTRUMENT:
                instrument["name"] = str(known["instrument"])
            write_beam(instrument, known)
        if known.get("sample"):
            group(entry, "sample", "NXsample")["name"] = str(known["sample"])
        write_flows(entry, flows)
        measurement = group(entry, "measurement", "NXcollection")
        nodes = link_names((facts.node for facts, _ in linked), (*OF_ENTRY, INSTRUMENT))
        first = next((facts.node for facts, _ in linked if facts.image), None)
        aliases = link_names((facts.node for facts, _ in linked), () if first in (None, "data") else ("data",))
        for facts, link in linked:
            node = group(entry, nodes[facts.node], "NXcollection")
            if nodes[facts.node] != facts.node:
                node.attrs[KEY] = facts.node
            for column in facts.datasets:
                node[column] = h5py.ExternalLink(link, f"{facts.group}/{column}")
            measurement[aliases[facts.node]] = h5py.ExternalLink(link, facts.shown)
            if facts.node == first and "data" not in measurement:
                measurement["data"] = h5py.ExternalLink(link, facts.shown)
            if facts.plot:
                _plot(node, facts, link)
                if "default" not in entry.attrs:  # by two names at least: fabio takes the last but one
                    entry.attrs["default"] = f"{nodes[facts.node]}/plot"
            if facts.image:
                _detector(node, facts, link)
    os.replace(f"{path}.part", path)
    return path


def _write_times(entry: Any, linked: Sequence["_Facts"], times_ns: tuple[int | None, int | None]) -> None:
    """Write start and end, of several ends that masters have the last."""
    of_masters = [[getattr(facts, name) for facts in linked if getattr(facts, name)] for name in TIMES]
    for name, known_ns, texts, which in zip(TIMES, times_ns, of_masters, (min, max), strict=True):
        if known_ns is not None:
            entry[name] = utc(known_ns)
        elif texts:
            entry[name] = which(texts)


def _plot(parent: Any, facts: "_Facts", link: str) -> None:
    """Make the NXdata group of a master or table, by links to what it shows."""
    import h5py

    plot = group(parent, "plot", "NXdata")
    for name, value in facts.plot.items():
        plot.attrs[name] = value
    for name, path in facts.plotted.items():
        plot[name] = h5py.ExternalLink(link, path)
    parent.attrs["default"] = "plot"


def _detector(node: Any, facts: "_Facts", link: str) -> None:
    """Link all that a master has of its detector, one by one.

    nexusformat can't read links and groups within a group that is itself behind an external link.
    """
    import h5py

    detector = group(node, "detector", "NXdetector")
    for name, attributes in facts.members.items():
        if attributes is None:
            detector[name] = h5py.ExternalLink(link, f"{facts.group}/{name}")
        else:
            made = group(detector, name, attributes["NX_class"].decode())
            made.attrs.update({key: value for key, value in attributes.items() if key != "NX_class"})
    _plot(detector, facts, link)


def _targets(shown: Any) -> dict[str, str]:
    """Return the paths of the datasets that a plot shows, by their names in it."""
    import h5py

    links = {name: shown.get(name, getlink=True) for name in shown or ()}
    return {n: it.path if isinstance(it, h5py.SoftLink) else f"{shown.name}/{n}" for n, it in links.items()}


def _members(parent: Any, before: str = "") -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield what is in a group, by its path: of groups that hold others their attributes, then what is in them."""
    import h5py

    for name in parent:
        inner = parent[name] if parent.get(name, getclass=True) is h5py.Group else None
        if inner is not None and any(inner.get(one, getclass=True) is h5py.Group for one in inner):
            yield f"{before}{name}", dict(inner.attrs)
            yield from _members(inner, f"{before}{name}/")
        else:
            yield f"{before}{name}", None


@dataclass(frozen=True)
class _Facts:
    """Facts of a master or table that is linked to.

    The group of its datasets, the names of these, all that a master has of its detector next to the plot (see
    `_members`), attributes of this plot and the paths of what it shows, by its names there, and the times in the file.
    """

    node: str
    group: str
    datasets: tuple[str, ...]
    members: dict[str, dict[str, Any] | None]
    image: bool
    plot: dict[str, Any]
    plotted: Mapping[str, str] = field(default_factory=dict)
    start_time: str | None = None
    end_time: str | None = None

    @property
    def shown(self) -> str:
        """Return the path of what is the node's in ``measurement``."""
        return f"{self.group}/data" if self.image else self.group

    @classmethod
    def read(cls, path: str) -> "_Facts":
        import h5py

        with h5py.File(path) as file:
            record = ChannelRecord.read(file)
            if record is None:
                raise OSError(f"{path} is not a master or table of a run")
            entry, image = file[ENTRY], record.role == "master"
            default = entry.attrs.get("default")
            shown = None if default is None else entry[default]
            plot = {} if shown is None else {k: v for k, v in shown.attrs.items() if k != "NX_class"}
            times = [entry[name].asstr()[()] if name in entry else None for name in TIMES]
            where = entry[default].parent if image else entry["measurement"]
            names = CHANNEL if image else tuple(where)
            names = tuple(name for name in names if name in where)
            members = {name: member for name, member in _members(where) if name != "plot"} if image else {}
            return cls(record.node, where.name, names, members, image, plot, _targets(shown), *times)
