"""The kinds of node that exist, and how one is written: ``input`` or ``inputs``, and exactly one kind."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lima2cli.declare import Bad, Leaf, MapOf, OneKind, Schema, Shape, Text, kind_schemas, read_kind
from lima2cli.diagnostics import POISON, KeyPath
from lima2cli.nodes.base import Delegate, Gather, Join, Map, Node, Pick, Reduce, Select, Sink, Transform
from lima2cli.plugins import Kinds

BUILT_IN: Mapping[str, str] = {
    "checkpoint": "lima2cli.nodes.checkpoint:Checkpoint",
    "io_hdf5": "lima2cli.nodes.io_hdf5:IoHdf5",
    "roi_flip_rot": "lima2cli.nodes.roi_flip_rot:RoiFlipRot",
    "reconstruction": "lima2cli.nodes.reconstruction:Reconstruction",
    "roi_counters": "lima2cli.nodes.roi_counters:RoiCounters",
    "roi_profiles": "lima2cli.nodes.roi_profiles:RoiProfiles",
    "background_sub": "lima2cli.nodes.background_sub:BackgroundSub",
    "flatfield": "lima2cli.nodes.flatfield:Flatfield",
    "mask": "lima2cli.nodes.mask:Mask",
    "gain": "lima2cli.nodes.gain:Gain",
    "python": "lima2cli.nodes.python:Python",
    "mpi": "lima2cli.nodes.mpi:Mpi",
    "expression": "lima2cli.nodes.expression:Expression",
    "accumulate": "lima2cli.nodes.accumulate:Accumulate",
    "sparsify": "lima2cli.nodes.sparsify:Sparsify",
    "filter": "lima2cli.nodes.filter:Filter",
}
"""The places of the tables of the built-in nodes, by kind; one is imported where it is asked for."""

WIRING = ("input", "inputs")
"""Keys of a node that are no kinds: what it reads, one or several."""

GRAPH = "graph"
"""Stands in place of a kind where a node is a use of a named graph; gone once graphs are expanded."""

ROLES: tuple[type[Node], ...] = (Map, Transform, Pick, Select, Reduce, Gather, Delegate, Sink, Join)

NODES: Kinds[Node] = Kinds("node", "lima2cli.nodes", Node, BUILT_IN, ROLES, (*WIRING, GRAPH))
"""All kinds of node, those of installed packages among them."""


def node_kinds() -> Mapping[str, type[Node]]:
    """Tables of the built-in nodes by kind; all are imported."""
    return NODES.tables()


LANGUAGE = (
    "checkpoint", "io_hdf5", "roi_flip_rot", "reconstruction", "roi_counters", "roi_profiles", "background_sub",
    "flatfield", "mask", "gain", "python", "mpi", "expression", "accumulate", "sparsify", "filter",
)  # fmt: skip
"""All kinds of the language; those not built in are said to be "not of this version" rather than unknown."""


INPUT_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
"""Names of inputs are those of variables."""


def with_inputs(entry: Any, kinds: Mapping[str, Any]) -> Any:
    """Return a node in its long form: a join reads ``inputs``, in which one ``input`` has its own name.

    A name that no variable can have becomes ``input``.
    """
    joins = isinstance(entry, dict) and isinstance(entry.get("input"), str) and "inputs" not in entry
    if not joins or not any(getattr(kinds.get(key), "wiring", "") == "inputs" for key in entry):
        return entry
    source = entry["input"]
    name = source if re.fullmatch(INPUT_NAME, source) else "input"
    return {"inputs" if key == "input" else key: {name: source} if key == "input" else entry[key] for key in entry}


_USE: Schema = {
    "type": "object",
    "description": "One of `graphs`, by its name, with its parameters.",
    "additionalProperties": {"type": ["object", "null"]},
    "minProperties": 1,
    "maxProperties": 1,
    "x-words": "a graph with its parameters, such as `{corrected: {}}`",
}


@dataclass(frozen=True)
class NodeUse:
    """A node of the graph, and the flows and nodes that it reads.

    Each of these is named by its place below the node, ``("input",)`` or ``("inputs", name)``.
    """

    reads: Mapping[KeyPath, str]
    node: Node


@dataclass(frozen=True)
class NodeEntry(Shape):
    """A node as users write it, read as a `NodeUse`; ``kinds`` as in `OneKind`."""

    kinds: Callable[[], Mapping[str, Any]] = node_kinds

    def schema(self) -> Schema:
        """Return the schema: what it reads, and exactly one kind."""
        tables = self.kinds()
        kinds = kind_schemas(tables)
        one = {"type": "string", "description": "The flow or node that it reads."}
        several = MapOf(Text(), INPUT_NAME, 1).schema() | {"description": "Flows or nodes that it reads, by name."}
        return {
            "type": "object",
            "x-kind": "node",  # before what is said of the values
            "x-beside": list(WIRING),
            "properties": {"input": one, "inputs": several} | kinds | {GRAPH: _USE},
            "additionalProperties": False,
            "dependentRequired": {
                kind: ["input"] for kind, table in tables.items() if table is not None and table.wiring == "input"
            },
            "minProperties": 2,
            "maxProperties": 2,
            "x-joins": [kind for kind, table in tables.items() if table is not None and table.wiring == "inputs"],
            "x-later": [kind for kind in LANGUAGE if kind not in kinds],
        }

    def leaves(self, data: Any, at: KeyPath) -> Iterator[Leaf]:
        return OneKind("node", self.kinds).leaves(data, at)

    def _read(self, data: Any, at: KeyPath, bad: Bad) -> NodeUse:
        node = read_kind(self.kinds(), data, at, bad)
        if "inputs" in data and (*at, "inputs") not in bad:
            found = MapOf(Text(), INPUT_NAME).read(data["inputs"], (*at, "inputs"), bad)
            return NodeUse({("inputs", name): source for name, source in found.items()}, node)
        if "input" in data and (*at, "input") not in bad:
            return NodeUse({("input",): data["input"]}, node)
        return NodeUse(POISON, node)  # its absence has been reported
