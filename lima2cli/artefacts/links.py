"""The one file that a user opens: it links every channel and table of a run."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lima2cli.artefacts.appending import VERSIONS, written
from lima2cli.artefacts.flow_record import FlowRecord, write_flows
from lima2cli.artefacts.link_names import link_names
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.tree import ENTRY, KEY, OF_ENTRY, group, plant_root

CHANNEL = ("data", "frame_number", "frame_time", "frame_status", "frame_pixels")
"""What is linked of a channel, where there is such."""


def write_links(
    name: str, directory: str, channels: Sequence[str], tables: Sequence[str] = (), flows: Sequence[FlowRecord] = ()
) -> str:
    """Write ``{name}.h5``; returns its path.

    ``/entry_0000/<node>`` has, of a channel, ``data`` and its row by row datasets, ``plot`` (NXdata), and ``detector``,
    all that its master has of it; of a table, its columns and ``plot``. ``/entry_0000/measurement/<node>`` is the
    channel's data or the group of the table's columns, ``measurement/data`` the first channel's data. The default plot
    is the first channel's image, without channels the first table's curve. Nodes of such names as the file has itself
    get a number: see `link_names`.

    channels, tables   paths of masters and merged tables; links are relative to ``directory``
    flows              accounts of all flows of the run, as far as they are known

    OSError where a file can't be read or written.
    """
    import h5py

    path = os.path.join(directory, f"{name}.h5")
    with written(f"{path}.part", libver=VERSIONS) as file:
        entry = plant_root(file, name, None)
        write_flows(entry, flows)
        measurement = group(entry, "measurement", "NXcollection")
        linked = [(_Facts.read(target), os.path.relpath(target, directory)) for target in (*channels, *tables)]
        nodes = link_names((facts.node for facts, _ in linked), OF_ENTRY)
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


def _plot(parent: Any, facts: "_Facts", link: str) -> None:
    """The NXdata group of a master or table, by links to what it shows."""
    import h5py

    plot = group(parent, "plot", "NXdata")
    for name, value in facts.plot.items():
        plot.attrs[name] = value
    for column in {facts.plot["signal"], *facts.plot.get("axes", ())} - {"."}:
        plot[column] = h5py.ExternalLink(link, f"{facts.group}/{column}")
    parent.attrs["default"] = "plot"


def _detector(node: Any, facts: "_Facts", link: str) -> None:
    """All that a master has of its detector, link by link: nexusformat can't read links and groups within a group that
    is itself behind an external link."""
    import h5py

    detector = group(node, "detector", "NXdetector")
    for name, attributes in facts.members.items():
        if attributes is None:
            detector[name] = h5py.ExternalLink(link, f"{facts.group}/{name}")
        else:
            made = group(detector, name, attributes["NX_class"].decode())
            made.attrs.update({key: value for key, value in attributes.items() if key != "NX_class"})
    _plot(detector, facts, link)


def _members(parent: Any, before: str = "") -> Iterator[tuple[str, dict[str, Any] | None]]:
    """What is in a group, by its path: of groups that hold others their attributes, then what is in them."""
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
    """What is linked of a master or table: the group of its datasets, the names of these, all that a master has of its
    detector beside the plot (see `_members`), and signal and axes of this plot."""

    node: str
    group: str
    datasets: tuple[str, ...]
    members: dict[str, dict[str, Any] | None]
    image: bool
    plot: dict[str, Any]

    @property
    def shown(self) -> str:
        """Path of what is the node's in ``measurement``."""
        return f"{self.group}/data" if self.image else self.group

    @classmethod
    def read(cls, path: str) -> "_Facts":
        import h5py

        with h5py.File(path) as file:
            record = Record.read(file)
            if record is None:
                raise OSError(f"{path} is no master or table of a run")
            entry, image = file[ENTRY], record.role == "master"
            default = entry.attrs.get("default")
            plot = {} if default is None else {k: v for k, v in entry[default].attrs.items() if k in ("signal", "axes")}
            where = entry[default].parent if image else entry["measurement"]
            names = CHANNEL if image else tuple(where)
            names = tuple(name for name in names if name in where)
            members = {name: it for name, it in _members(where) if name != "plot"} if image else {}
            return cls(record.node, where.name, names, members, image, plot)
