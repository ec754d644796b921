"""The tree between YAML events and plain data: nodes that know where they are written."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lima2cli.diagnostics import Path
from lima2cli.document.places import Document, Source, Span
from lima2cli.document.scalars import Scalar, kind


@dataclass(slots=True)
class Node:
    """A value with its place. Aliases make a node appear several times; it is never changed once complete.

    keys      place of each key, in a map
    size      number of nodes, this one and all below, aliases expanded
    height    number of collections on the longest way down, this one included
    bad       a mistake in it has been reported
    override  text of the ``--set`` that made it
    """

    content: "Scalar | dict[str, Node] | list[Node]"
    span: Span
    keys: dict[str, Span] = field(default_factory=dict)
    size: int = 1
    height: int = 0
    bad: bool = False
    override: str | None = None


def to_document(source: Source, root: Node, failed: Mapping[Path, str]) -> Document:
    """The tree as plain data and places, aliases expanded. ``failed``: overrides that came to nothing."""
    keys: dict[Path, Span] = {}
    values: dict[Path, Span] = {}
    overridden: dict[Path, str] = dict(failed)
    bad: set[Path] = set()
    data: list[Any] = [None]
    todo: list[tuple[Path, Node, Any, str | int, str | None]] = [((), root, data, 0, None)]
    while todo:
        path, node, parent, step, inherited = todo.pop()
        values[path] = node.span
        override = node.override or inherited
        if override is not None:
            overridden[path] = override
        if node.bad:
            bad.add(path)
        content = node.content
        if isinstance(content, dict):
            parent[step] = mapping = dict.fromkeys(content)
            keys |= {(*path, key): span for key, span in node.keys.items()}
            todo.extend(((*path, key), child, mapping, key, override) for key, child in content.items())
        elif isinstance(content, list):
            parent[step] = items = [None] * len(content)
            todo.extend(((*path, i), child, items, i, override) for i, child in enumerate(content))
        else:
            parent[step] = content
    return Document(source.file, source.text, data[0], keys, values, overridden, frozenset(bad))


def put(root: Node, steps: tuple[str, ...], node: Node, key_span: Span) -> Node:
    """A copy of the tree with ``node`` at the place that ``steps`` lead to; maps that miss on the way are made.

    A step into a list is an index. Raises ValueError, in words for the user, where a step leads nowhere.
    """
    if not steps:
        return node
    step, rest = steps[0], steps[1:]
    content = root.content
    if isinstance(content, list):
        if not step.isdecimal() or int(step) >= len(content):
            raise ValueError(f"`{step}` is no item of a list of {len(content)}, whose items are numbered from 0")
        index = int(step)
        items = [*content[:index], put(content[index], rest, node, key_span), *content[index + 1 :]]
        return replace(root, content=items)
    if isinstance(content, dict) or content is None:
        old = content or {}
        child = old.get(step) or Node(None, node.span, override=node.override)
        made = put(child, rest, node, key_span)
        keys = root.keys if rest and step in old else root.keys | {step: key_span}
        return replace(root, content={**old, step: made}, keys=keys, bad=False)
    raise ValueError(f"`{step}` leads into {kind(content)}, which has no keys")
