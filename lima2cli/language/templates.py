"""Describe named graphs as users write them, with parameters ``$(name)`` in their nodes."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.declare import Anything, Choice, FileReference, ListOf, MapOf, Schema, Shape, Table, Text, param
from lima2cli.declare.reading import Reading, everything
from lima2cli.diagnostics import NAME, KeyPath
from lima2cli.nodes.registry import GRAPH, INPUT_NAME, WIRING, NodeEntry

REFERENCE = r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)"

_PARAMETER: Schema = {"type": "string", "pattern": f"^{REFERENCE}$"}


@dataclass(frozen=True)
class Template(Shape):
    """A node of a graph, kept as plain data: it is read where the graph is used."""

    sorts = ("mapping",)
    entry: Shape

    def schema(self) -> Schema:
        """Return the schema of a node, whose parameters may be parameters of the graph."""
        node = self.entry.schema()
        kept = (*WIRING, GRAPH)
        return node | {
            "properties": {key: value if key in kept else _inside(value) for key, value in node["properties"].items()}
        }

    def _read(self, data: Any, at: KeyPath, reading: Reading) -> Any:
        self.entry.read(data, at, Reading(reading.findings, reading.bad, has_parameter))
        return data


def _or_parameter(schema: Schema) -> Schema:
    """Return a schema that also takes a parameter. ``x-parameter`` says so."""
    shown = {key: schema[key] for key in ("description", "default") if key in schema}
    inner = _inside({key: value for key, value in schema.items() if key not in shown})
    plain_text = inner.get("type") == "string" and "pattern" not in inner
    if plain_text or not inner:
        return schema
    return shown | {"anyOf": [inner, _PARAMETER], "x-parameter": True}


def _inside(schema: Schema) -> Schema:
    """Return the schema with each of its items and members open to a parameter."""
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
        "A file with `graphs` to take it from, relative to this one; only `name` may be given with it.",
        FileReference(),
        None,
    )
    name: str | None = param("Its name in that file; default: the same.", Text(NAME), None)
    parameters: Mapping[str, Any] = param(
        "Parameters with their defaults, null where one must be given; `$(name)` in the nodes is replaced by the "
        "value.",
        MapOf(Anything(), INPUT_NAME),
        {},
    )
    inputs: tuple[str, ...] = param(
        "Names that its nodes read, connected where it is used.", ListOf(Text(INPUT_NAME), 1), ("frames",)
    )
    output: str | None = param("The node whose output is the output of the graph.", Text(), None)
    nodes: Mapping[str, Any] | None = param("Its nodes.", MapOf(Template(NodeEntry()), minimum=1), None)


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """A file with nothing but graphs for pipelines to take."""

    lima2: int = param("Version of the language.", Choice((1,)))
    description: str | None = param("Description, for readers.", Text(), None)
    graphs: Mapping[str, Graph] = param("Named processing graphs.", MapOf(Table(Graph), minimum=1))


PARAMETER = re.compile(REFERENCE)


def has_parameter(value: Any) -> bool:
    """Return True for strings in which parameters stand."""
    return isinstance(value, str) and "$(" in value and PARAMETER.search(value) is not None


def references(value: Any) -> Iterator[tuple[KeyPath, str]]:
    """Yield the parameters named in the strings of a value, with the paths of these strings below it."""
    for at, text in everything(value):
        if isinstance(text, str) and "$(" in text:
            yield from ((at, name) for name in PARAMETER.findall(text))
