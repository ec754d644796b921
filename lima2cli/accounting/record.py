"""The record of a run that its directory keeps: all that its end and its accounting need of the plan."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lima2cli import __version__
from lima2cli.dataclass import dataclass
from lima2cli.declare.plain import Misshapen, from_plain, to_plain
from lima2cli.files.channel import Channel, TableChannel
from lima2cli.geometry import Rule
from lima2cli.plan.ir import Plan

VERSION = 1


@dataclass(frozen=True)
class GdtRecord:
    """A data flow, or the part of one place where it is dispatched by modules.

    name, flow  its own, unique, and that of the data flow
    selected    number of frames it takes, None without end
    receivers   index of the receiver of each local buffer, in rotation order
    """

    name: str
    flow: str
    rule: Rule
    selected: int | None
    receivers: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class RunRecord:
    """Facts of a plan that the end of a run and its accounting need.

    frames     of each acquisition, None = until stopped
    channels, tables   what is saved, by node
    filters    by channel, the selections that its frames have been through
    divided    nodes whose receivers each have a part of every frame
    """

    name: str
    frames: int | None
    gdts: tuple[GdtRecord, ...]
    channels: Mapping[str, Channel]
    tables: Mapping[str, TableChannel]
    filters: Mapping[str, tuple[str, ...]]
    divided: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan) -> "RunRecord":
        """Return the record of a plan."""
        numberings = {step.name: step.numbering for step in plan.steps}
        return cls(
            plan.name,
            plan.frames,
            tuple(
                GdtRecord(gdt.name, gdt.flow, gdt.rule, gdt.selected, tuple(buffer.receiver for buffer in gdt.buffers))
                for gdt in plan.gdts
            ),
            plan.channels,
            plan.tables,
            {name: numberings[channel.node].filters for name, channel in plan.channels.items()},
            tuple(name for name, numbering in numberings.items() if numbering.parts),
        )

    @property
    def nodes(self) -> Mapping[str, Channel | TableChannel]:
        """Nodes that save, by name."""
        return {**self.channels, **self.tables}

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Return the pipeline's metadata."""
        return next((node.metadata for node in self.nodes.values() if node.metadata is not None), {})

    @property
    def flows(self) -> tuple[str, ...]:
        """Names of the data flows."""
        return tuple(dict.fromkeys(gdt.flow for gdt in self.gdts))

    def gdts_of(self, flow: str) -> tuple[GdtRecord, ...]:
        """Return the GDT of a data flow; for one that is dispatched by modules those of its places."""
        return tuple(gdt for gdt in self.gdts if gdt.flow == flow)


def seal(record: RunRecord) -> dict[str, Any]:
    """Return a record as plain data, with its version and a digest by which damage is found."""
    content = to_plain(record)
    return {"version": VERSION, "lima2": __version__, "sha256": _digest(content), "record": content}


def unseal(sealed: Mapping[str, Any]) -> RunRecord:
    """Return the record that `seal` wrote.

    Raises:
        ValueError: it is of another version, or damaged.
    """
    try:
        if sealed["version"] != VERSION:
            raise ValueError(f"it is of version {sealed['version']}, made by lima2 {sealed['lima2']}, not {VERSION}")
        if sealed["sha256"] != _digest(sealed["record"]):
            raise ValueError("it is damaged: its digest is not that of its content")
        return from_plain(RunRecord, sealed["record"])
    except (KeyError, TypeError, Misshapen) as error:
        raise ValueError(f"it is damaged: {error!r}") from error


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
