"""The kinds of node that exist, and how one is written: ``input`` and exactly one kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lima2cli.declare import Bad, Schema, Shape, kind_schemas, read_kind
from lima2cli.diagnostics import Path
from lima2cli.nodes.accumulate import Accumulate
from lima2cli.nodes.background_sub import BackgroundSub
from lima2cli.nodes.base import Map, Node, Reduce, Sink, Transform
from lima2cli.nodes.checkpoint import Checkpoint
from lima2cli.nodes.flatfield import Flatfield
from lima2cli.nodes.gain import Gain
from lima2cli.nodes.io_hdf5 import IoHdf5
from lima2cli.nodes.mask import Mask
from lima2cli.nodes.python import Python
from lima2cli.nodes.roi_counters import RoiCounters
from lima2cli.nodes.roi_flip_rot import RoiFlipRot
from lima2cli.nodes.roi_profiles import RoiProfiles
from lima2cli.plugins import Kinds
from lima2cli.poison import POISON

BUILT_IN: tuple[type[Node], ...] = (
    Checkpoint, IoHdf5, RoiFlipRot, RoiCounters, RoiProfiles, BackgroundSub, Flatfield, Mask, Gain, Python, Accumulate,
)  # fmt: skip

NODES: Kinds[Node] = Kinds(
    "node", "lima2cli.nodes", Node, BUILT_IN, (Map, Transform, Reduce, Sink), ("input", "inputs")
)
"""All kinds of node, those of installed packages among them."""


def node_kinds() -> Mapping[str, type[Node]]:
    """Tables of the built-in nodes by kind."""
    return NODES.built_in


LANGUAGE = (
    "checkpoint", "io_hdf5", "roi_flip_rot", "reconstruction", "roi_counters", "roi_profiles", "background_sub",
    "flatfield", "mask", "gain", "python", "mpi", "expression", "accumulate", "sparsify", "filter",
)  # fmt: skip
"""All kinds of the language; those not built in are said to be "not of this version" rather than unknown."""


@dataclass(frozen=True)
class NodeUse:
    """A node of the graph: the flow or node that it reads, and what it is."""

    input: str
    node: Node


@dataclass(frozen=True)
class NodeEntry(Shape):
    """A node as users write it, read as a `NodeUse`; ``kinds`` as in `OneKind`."""

    kinds: Callable[[], Mapping[str, Any]] = node_kinds

    def schema(self) -> Schema:
        """`input`, and exactly one kind."""
        kinds = kind_schemas(self.kinds())
        return {
            "type": "object",
            "properties": {"input": {"type": "string", "description": "The flow or node that it reads."}} | kinds,
            "additionalProperties": False,
            "required": ["input"],
            "minProperties": 2,
            "maxProperties": 2,
            "x-kind": "node",
            "x-beside": ["input"],
            "x-later": ["inputs", *(kind for kind in LANGUAGE if kind not in kinds)],
        }

    def _read(self, data: Any, at: Path, bad: Bad) -> NodeUse:
        node = read_kind(self.kinds(), data, at, bad)
        missing = (*at, "input") in bad or "input" not in data  # and has been reported
        return NodeUse(POISON if missing else data["input"], node)
