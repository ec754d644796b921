"""The one file that a user opens: it links every channel and table of a run."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lima2cli.artefacts.appending import VERSIONS, disk_errors
from lima2cli.artefacts.flow_record import FlowRecord, write_flows
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.tree import ENTRY, group, plant_root

CHANNEL = ("data", "frame_number", "frame_time", "frame_status", "frame_pixels")
"""What is linked of a channel, where there is such."""


def write_links(
    name: str, directory: str, channels: Sequence[str], tables: Sequence[str] = (), flows: Sequence[FlowRecord] = ()
) -> str:
    """Write ``{name}.h5``; returns its path.

    ``/entry_0000/<node>`` has, of a channel, ``data`` and its row by row datasets, ``plot`` (NXdata), and the whole
    ``detector`` group of its master; of a table, its columns and ``plot``. ``/entry_0000/measurement/<node>`` is the
    channel's data or the group of the table's columns, ``measurement/data`` the first channel's data. The default plot
    is the first channel's image, without channels the first table's curve.

    channels, tables   paths of masters and merged tables; links are relative to ``directory``
    flows              accounts of all flows of the run, as far as they are known

    OSError where a file can't be read or written.
    """
    import h5py

    path = os.path.join(directory, f"{name}.h5")
    with disk_errors(path), h5py.File(f"{path}.part", "w", libver=VERSIONS) as file:
        entry = plant_root(file, name, None)
        write_flows(entry, flows)
        measurement = group(entry, "measurement", "NXcollection")
        for target in (*channels, *tables):
            facts, link = _Facts.read(target), os.path.relpath(target, directory)
            node = group(entry, facts.node if facts.node not in entry else f"{facts.node}_node", "NXcollection")
            for column in facts.datasets:
                node[column] = h5py.ExternalLink(link, f"{facts.group}/{column}")
            if facts.image:
                node["detector"] = h5py.ExternalLink(link, facts.group)
                for alias in ("data", facts.node):
                    if alias not in measurement:
                        measurement[alias] = h5py.ExternalLink(link, f"{facts.group}/data")
            elif facts.node not in measurement:
                measurement[facts.node] = h5py.ExternalLink(link, facts.group)
            if facts.plot:
                plot = group(node, "plot", "NXdata")
                for column, value in facts.plot.items():
                    plot.attrs[column] = value
                for column in {facts.plot["signal"], *facts.plot.get("axes", ())} - {"."}:
                    plot[column] = h5py.ExternalLink(link, f"{facts.group}/{column}")
                if "default" not in entry.attrs:  # by two names at least: fabio takes the last but one
                    entry.attrs["default"] = f"{node.name.rpartition('/')[2]}/plot"
                node.attrs["default"] = "plot"
    os.replace(f"{path}.part", path)
    return path


@dataclass(frozen=True)
class _Facts:
    """What is linked of a master or table: the group of its datasets, their names, and signal and axes of its plot."""

    node: str
    group: str
    datasets: tuple[str, ...]
    image: bool
    plot: dict[str, Any]

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
            return cls(record.node, where.name, names, image, plot)
