"""What nodes of a graph name and no wiring tells: columns of other nodes, and files."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lima2cli.config.definitions import relative_to
from lima2cli.declare import files
from lima2cli.diagnostics import Path
from lima2cli.document import AS_WRITTEN, Document
from lima2cli.nodes.kinds import GRAPH, NODES, WIRING, NodeEntry, with_inputs

_BEFORE_COLUMN = re.compile(r"(?<![\w.])[A-Za-z][\w-]*(?=\.[A-Za-z$])", re.ASCII)


def renamed(entry: Mapping[str, Any], names: Mapping[str, str]) -> Mapping[str, Any]:
    """A node with the final names of nodes in that parameter of its kind which tells of columns, `node.column`."""

    def rename(found: re.Match[str]) -> str:
        return names.get(found[0], found[0])

    changed = dict(entry)
    for kind, made in NODES.named([key for key in entry if key not in WIRING]).items():
        key, parameters = getattr(made.table, "names_in", None), entry.get(kind)
        if key is not None and isinstance(parameters, dict) and isinstance(parameters.get(key), str):
            changed[kind] = {**parameters, key: _BEFORE_COLUMN.sub(rename, parameters[key])}
    return changed


def tables_of(entries: Iterable[Any]) -> Mapping[str, type | None]:
    """The tables of the kinds of some nodes."""
    asked = {kind for entry in entries if isinstance(entry, dict) for kind in entry} - {*WIRING, GRAPH}
    return {kind: found.table for kind, found in NODES.named(sorted(asked)).items()}


def with_named_inputs(document: Document) -> Document:
    """The same, with nodes written long, see `with_inputs`."""
    nodes = document.data.get("nodes") if isinstance(document.data, dict) else None
    if not isinstance(nodes, dict):
        return document
    tables = tables_of(nodes.values())
    long = {name: with_inputs(entry, tables) for name, entry in nodes.items()}
    changed = {name for name in nodes if long[name] is not nodes[name]}
    if not changed:
        return document
    copied = dict(document.copied)
    for name in changed:
        at: Path = ("nodes", name)
        copied |= dict.fromkeys(input_places(at, long[name]), _written(document, (*at, "input")))
    original = document.original or document
    return replace(document, data={**document.data, "nodes": long}, copied=copied, original=original)


def input_places(at: Path, entry: Mapping[str, Any]) -> list[Path]:
    """The places below a node of its ``inputs``, and of each of them."""
    return [(*at, "inputs"), *((*at, "inputs", name) for name in entry["inputs"])]


def _written(document: Document, at: Path) -> Path:
    """A path in the document as it was written, which others are taken from."""
    return at if document.original is None else (AS_WRITTEN, *at)


def with_files(document: Document) -> Document:
    """The same, with the names of files that were written in other documents relative to this one."""
    nodes = dict(document.data["nodes"]) if isinstance(document.data.get("nodes"), dict) else {}
    mine = {str(path[1]) for path in document.copied if len(path) > 1}
    tables = tables_of(nodes[name] for name in mine)
    entry = NodeEntry(lambda: tables)
    for name in mine:
        for at in files(entry, nodes[name]):
            where, _ = document.written(("nodes", name, *at))
            for file, other in document.others.items():
                if other is where:
                    nodes[name] = _changed(nodes[name], at, (file,))
    return replace(document, data={**document.data, "nodes": nodes})


def _changed(value: Any, at: Path, root: Path) -> Any:
    """A copy of a value, with the reference at a path relative to the pipeline's file."""
    if not at:
        return relative_to(root, value)
    step, rest = at[0], at[1:]
    if isinstance(value, dict):
        return {**value, step: _changed(value[step], rest, root)}
    return [_changed(item, rest, root) if i == step else item for i, item in enumerate(value)]
