"""Describe named graphs as users write them, and replace parameters ``$(name)`` by values that keep their places."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lima2cli.declare import Anything, Bad, Choice, FileReference, ListOf, MapOf, Schema, Shape, Table, Text, param
from lima2cli.declare.checking import everything
from lima2cli.diagnostics import NAME, KeyPath
from lima2cli.nodes.registry import GRAPH, INPUT_NAME, WIRING, NodeEntry

REFERENCE = r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)"

_PARAMETER: Schema = {"type": "string", "pattern": f"^{REFERENCE}$"}


@dataclass(frozen=True)
class Template(Shape):
    """A node of a graph, kept as plain data: it is read where the graph is used."""

    entry: Shape

    def schema(self) -> Schema:
        """Return the schema of a node, whose parameters may be parameters of the graph."""
        node = self.entry.schema()
        kept = (*WIRING, GRAPH)
        return node | {
            "properties": {key: value if key in kept else _inside(value) for key, value in node["properties"].items()}
        }

    def _read(self, data: Any, at: KeyPath, bad: Bad) -> Any:
        return data


def _or_parameter(schema: Schema) -> Schema:
    """Return a schema that also takes a parameter. ``x-parameter`` is for our check, which knows stand-ins."""
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


_REFERENCE = re.compile(REFERENCE)


@dataclass(frozen=True)
class Copy:
    """A value that is put at another place.

    written  places where its parts were written, by their paths below it: full paths of documents; the longest leading
             part of a path counts, so that ``()`` is always there
    bad      paths below it at which a mistake has been reported
    """

    value: Any
    written: Mapping[KeyPath, KeyPath]
    bad: frozenset[KeyPath] = frozenset()


@dataclass
class UnfitValue:
    """Values that cannot stand within a string: the place of that string, and the name of the parameter."""

    found: list[tuple[KeyPath, str]] = field(default_factory=list)


def references(value: Any) -> Iterator[tuple[KeyPath, str]]:
    """Yield the parameters named in the strings of a value, with the paths of these strings below it."""
    for at, text in everything(value):
        if isinstance(text, str) and "$(" in text:
            yield from ((at, name) for name in _REFERENCE.findall(text))


def fill(
    value: Any, at: KeyPath, given: Mapping[str, Copy] | None, bad: Collection[KeyPath], unfit: UnfitValue
) -> Copy:
    """Return the value written at ``at``, with parameters replaced by the values given for them.

    Parameters absent from ``given`` have been reported; where it is None there are none. ``bad`` are full paths of
    which a mistake is known.
    """
    written: dict[KeyPath, KeyPath] = {(): at}
    reported = {path[len(at) :] for path in bad if path[: len(at)] == at}

    def filled(part: Any, path: KeyPath) -> Any:
        if isinstance(part, dict):
            return {key: filled(item, (*path, key)) for key, item in part.items()}
        if isinstance(part, list):
            return [filled(item, (*path, i)) for i, item in enumerate(part)]
        if not isinstance(part, str) or "$(" not in part or given is None:
            return part
        whole = _REFERENCE.fullmatch(part)
        if whole is not None and whole[1] in given:
            copy = given[whole[1]]
            written.update({(*path, *below): source for below, source in copy.written.items()})
            reported.update((*path, *below) for below in copy.bad)
            return copy.value
        return within(part, path)

    def within(text: str, path: KeyPath) -> str:
        assert given is not None
        pieces, end = [], 0
        for match in _REFERENCE.finditer(text):
            copy = given.get(match[1])
            pieces.append(text[end : match.start()])
            end = match.end()
            if copy is None or copy.bad:
                reported.add(path)
            elif copy.value is None or isinstance(copy.value, (dict, list)):
                unfit.found.append(((*at, *path), match[1]))
                reported.add(path)
            else:
                pieces.append(_text(copy.value))
        return "".join([*pieces, text[end:]])

    return Copy(filled(value, ()), written, frozenset(reported))


def _text(value: Any) -> str:
    """Return a scalar as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def size_of(value: Any, limit: int) -> int:
    """Return the number of values and characters in a value, counted up to ``limit``."""
    size = 0
    for _, part in everything(value):
        size += 1 + (len(part) if isinstance(part, str) else 0)
        if size > limit:
            break
    return size
