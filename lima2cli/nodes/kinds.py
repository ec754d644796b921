"""The kinds of node that exist, and how one is written: ``input`` (or ``inputs``) and exactly one kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from lima2cli.declare import Bad, MapOf, Schema, Shape, Table, Text, or_null
from lima2cli.diagnostics import Path
from lima2cli.nodes.base import Node
from lima2cli.poison import POISON

BUILT_IN: tuple[type[Node], ...] = ()


@cache
def node_kinds() -> Mapping[str, type[Node]]:
    """Tables of all nodes by kind."""
    return {node.kind: node for node in BUILT_IN}


@dataclass(frozen=True)
class NodeUse:
    """A node of the graph: the flow or node that it reads, and what it is.

    ``inputs`` maps the node's own names to sources, for nodes that join several.
    """

    input: str | None
    inputs: Mapping[str, str] | None
    node: Node


class NodeEntry(Shape):
    """A node as users write it, read as a `NodeUse`."""

    words = "a node: `input` and one kind"

    def schema(self) -> Schema:
        """`input` or `inputs`, and exactly one kind."""
        kinds = {kind: or_null(Table(table).schema()) for kind, table in node_kinds().items()}
        wiring: Schema = {
            "input": {"type": "string", "description": "The flow or node that it reads."},
            "inputs": MapOf(Text()).schema() | {"description": "Several flows or nodes, by the names used here."},
        }
        return {
            "type": "object",
            "properties": wiring | kinds,
            "additionalProperties": False,
            "allOf": [
                {"oneOf": [{"required": ["input"]}, {"required": ["inputs"]}]},
                {"oneOf": [{"required": [kind]} for kind in kinds]},
            ],
            "x-kind": "node",
        }

    def _read(self, data: Any, at: Path, bad: Bad) -> NodeUse:
        node = POISON
        for kind, table in node_kinds().items():
            if kind in data:
                node = Table(table).read(data[kind] or {}, (*at, kind), bad)
        wired = [POISON if (*at, key) in bad else data.get(key) for key in ("input", "inputs")]
        if wired == [None, None]:
            wired = [POISON, POISON]  # its absence has been reported
        return NodeUse(wired[0], wired[1], node)
