"""What nodes of a graph name and no wiring tells: columns of other nodes, and files."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lima2cli.config.definitions import relative_to
from lima2cli.diagnostics import Path
from lima2cli.document import Document
from lima2cli.nodes.kinds import GRAPH, NODES, WIRING, NodeEntry

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


def with_files(document: Document) -> Document:
    """The same, with the names of files that were written in other documents relative to this one."""
    nodes = dict(document.data["nodes"]) if isinstance(document.data.get("nodes"), dict) else {}
    mine = {str(path[1]) for path in document.copied if len(path) > 1}
    asked = {kind for name in mine if isinstance(nodes[name], dict) for kind in nodes[name]} - {*WIRING, GRAPH}
    tables = {kind: found.table for kind, found in NODES.named(sorted(asked)).items()}
    entry = NodeEntry(lambda: tables)
    for name in mine:
        for at in entry.files(nodes[name], ()):
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
