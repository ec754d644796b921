"""Named graphs as users write them, here or in a file of graphs.

In their nodes, in place of any value below a kind a parameter of the graph may stand, ``$(name)``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lima2cli.declare import Anything, Bad, Choice, FileReference, ListOf, MapOf, Schema, Shape, Table, Text, param
from lima2cli.diagnostics import Path
from lima2cli.names import NAME
from lima2cli.nodes.kinds import GRAPH, INPUT_NAME, WIRING, NodeEntry

REFERENCE = r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)"

_PARAMETER: Schema = {"type": "string", "pattern": f"^{REFERENCE}$"}


@dataclass(frozen=True)
class Template(Shape):
    """A node of a graph, kept as plain data: it is read where the graph is used."""

    entry: Shape

    def schema(self) -> Schema:
        """That of a node, whose parameters may be parameters of the graph."""
        node = self.entry.schema()
        kept = (*WIRING, GRAPH)
        return node | {
            "properties": {key: value if key in kept else _inside(value) for key, value in node["properties"].items()}
        }

    def _read(self, data: Any, at: Path, bad: Bad) -> Any:
        return data


def _or_parameter(schema: Schema) -> Schema:
    """What fits the schema, or a parameter. ``x-parameter`` tells our check, which knows what stands for parameters."""
    shown = {key: schema[key] for key in ("description", "default") if key in schema}
    inner = _inside({key: value for key, value in schema.items() if key not in shown})
    plain_text = inner.get("type") == "string" and "pattern" not in inner
    if plain_text or not inner:
        return schema
    return shown | {"anyOf": [inner, _PARAMETER], "x-parameter": True}


def _inside(schema: Schema) -> Schema:
    """The same schema, of whose items and members each may be a parameter."""
    held = {key: schema[key] for key in ("items", "additionalProperties") if isinstance(schema.get(key), dict)}
    changed: Schema = {key: _or_parameter(value) for key, value in held.items()}
    if "properties" in schema:
        changed["properties"] = {key: _or_parameter(value) for key, value in schema["properties"].items()}
    if "anyOf" in schema and "x-unit" not in schema:
        changed["anyOf"] = [_inside(option) for option in schema["anyOf"]]
    return schema | changed


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A named processing graph, used by nodes as if it were a kind.

    It is defined here (`nodes` and what belongs to them), or taken from another file (`file`).
    """

    file: str | None = param(
        "A file with `graphs` to take it from, relative to this one; nothing but `name` stands beside it.",
        FileReference(),
        None,
    )
    name: str | None = param("Its name in that file; default: the same.", Text(NAME), None)
    parameters: Mapping[str, Any] = param(
        "Parameters with their defaults, null where one must be given; `$(name)` in the nodes stands for the value.",
        MapOf(Anything(), INPUT_NAME),
        {},
    )
    inputs: tuple[str, ...] = param(
        "Names that its nodes read, connected where it is used.", ListOf(Text(INPUT_NAME), 1), ("frames",)
    )
    output: str | None = param("The node that is read where the whole graph is.", Text(), None)
    nodes: Mapping[str, Any] | None = param("Its nodes.", MapOf(Template(NodeEntry()), minimum=1), None)


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """A file with nothing but graphs for pipelines to take."""

    lima2: int = param("Version of the language.", Choice((1,)))
    description: str | None = param("For people.", Text(), None)
    graphs: Mapping[str, Graph] = param("Named processing graphs.", MapOf(Table(Graph), minimum=1))
