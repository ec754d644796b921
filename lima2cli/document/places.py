"""The tree of a document, in which every value knows its place, and a document that shows findings at these."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import field
from functools import cached_property
from typing import Any, NamedTuple

from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import Diagnostic, Findings, KeyPath, Related

_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


def split_lines(text: str) -> list[str]:
    """Return the lines of a string, without their ends."""
    return _BREAK.split(text)


def line_starts(text: str) -> list[int]:
    """Return the index of the first character of each line."""
    return [0, *(match.end() for match in _BREAK.finditer(text))]


class Span(NamedTuple):
    """A part of a string, from (line, column) up to, not including, (end_line, end_column); all from 1.

    Columns count characters.
    """

    line: int
    column: int
    end_line: int
    end_column: int


START = Span(1, 1, 1, 1)

AS_WRITTEN = "as written"
"""First step of paths into the tree of a document before its graphs were expanded."""


@dataclass(frozen=True)
class Source:
    """A string, and the name under which it is shown."""

    file: str
    text: str

    @cached_property
    def lines(self) -> list[str]:
        """Return the lines as YAML counts them, without their ends."""
        return split_lines(self.text)

    @cached_property
    def _starts(self) -> list[int]:
        return line_starts(self.text)

    def index(self, line: int, column: int) -> int:
        """Return the index in the string of a line and column, both from 1; its length for places beyond its end."""
        start = self._starts[min(line, len(self._starts)) - 1]
        return min(start + column - 1, len(self.text))

    def position(self, index: int) -> tuple[int, int]:
        """Return line and column of an index in the string, both from 1."""
        line = bisect_right(self._starts, index)
        return line, index - self._starts[line - 1] + 1


@dataclass(frozen=True)
class Override(Source):
    """The text of a ``--set``."""


class Place(NamedTuple):
    """A part of a file, or of an override."""

    source: Source
    span: Span

    @property
    def file(self) -> str:
        """Return the name of the file, ``--set`` for an override."""
        return self.source.file

    @property
    def override(self) -> str | None:
        """Return the text of the override, None for a file."""
        return self.source.text if isinstance(self.source, Override) else None


Scalar = str | int | float | bool | None


@dataclass(slots=True)
class YamlNode:
    """A value with its place. Aliases make a node appear several times; it is never changed once complete.

    at       its place; that of an alias is the alias
    key      the place of its key, in a mapping
    size     number of nodes, this one and all below, aliases expanded
    height   number of collections on the longest way down, this one included
    bad      a mistake in it has been reported
    origin   of a copy: the path where it was written, as that of a diagnostic
    instead  of a copy: the node in whose place it stands, such as a parameter
    marks    second places that explain all that is in it
    """

    content: "Scalar | dict[str, YamlNode] | list[YamlNode]"
    at: Place
    key: Place | None = None
    size: int = 1
    height: int = 0
    bad: bool = False
    origin: KeyPath | None = None
    instead: "YamlNode | None" = None
    marks: tuple[Related, ...] = ()

    def child(self, step: str | int) -> "YamlNode | None":
        """Return the value at a key or an index; None without one."""
        if isinstance(self.content, dict):
            return self.content.get(step) if isinstance(step, str) else None
        if isinstance(self.content, list) and isinstance(step, int) and 0 <= step < len(self.content):
            return self.content[step]
        return None

    @classmethod
    def of(cls, data: "Any | YamlNode", at: Place) -> "YamlNode":
        """Return plain data, in which other nodes may be, as a value whose parts all have one place."""
        if isinstance(data, cls):
            return data
        content: Any = data
        if isinstance(data, dict):
            content = {key: cls.of(item, at) for key, item in data.items()}
        elif isinstance(data, list | tuple):
            content = [cls.of(item, at) for item in data]
        held = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
        height = 1 + max((node.height for node in held), default=0) if isinstance(content, dict | list) else 0
        return cls(content, at, at, size=1 + sum(node.size for node in held), height=height)

    @property
    def is_collection(self) -> bool:
        """Return True for a mapping and a list."""
        return isinstance(self.content, dict | list)

    @property
    def shown_by_key(self) -> bool:
        """Return True for a mapping or list that spans lines, which its key stands for."""
        span, key = self.at.span, self.key
        several = key is not None and (span.line != span.end_line or span.line != key.span.line)
        return several and self.is_collection


class _Spot(NamedTuple):
    """The end of a way down the tree.

    node     the value, or its nearest ancestor that exists (``found`` False);  depth  steps to it
    home     name of the other document that it was written in, empty for this one;  written  whole path there
    copied   it is a copy, or within one;  within  the same of the mapping or list that it is in
    marks    of the nearest node that has some;  stands  the path in the definition that this is a copy of
    """

    node: YamlNode
    depth: int
    found: bool
    home: str
    written: KeyPath
    copied: bool
    within: bool
    marks: tuple[Related, ...]
    stands: KeyPath | None


@dataclass(frozen=True)
class Document(Source):
    """A YAML document.

    root      the tree, in which graphs may have been expanded;  original  the tree before that
    failed    overrides that were not applied, by the path of their diagnostics
    others    documents that parts were taken from, profiles among them; the first step of a path into one is its key
    named     for each of these, the path that names it
    spoiled   paths of which a mistake has been reported, in addition to those of bad nodes
    """

    root: YamlNode
    failed: Mapping[KeyPath, Override] = field(default_factory=dict)
    original: YamlNode | None = None
    others: Mapping[str, "Document"] = field(default_factory=dict)
    named: Mapping[str, KeyPath] = field(default_factory=dict)
    spoiled: frozenset[KeyPath] = frozenset()

    @property
    def data(self) -> Any:
        """Return the values: dict, list, str, int, float, bool, None; aliases expanded."""
        return self._values[0]

    @property
    def bad(self) -> frozenset[KeyPath]:
        """Return the paths of values of which a mistake has been reported, so that no second one need be."""
        return self._values[1]

    @cached_property
    def _values(self) -> tuple[Any, frozenset[KeyPath]]:
        bad: set[KeyPath] = set()
        data = plain(self.root, bad)
        return data, self.spoiled | bad

    def node(self, path: KeyPath) -> YamlNode:
        """Return the value at a path that exists."""
        spot = self._spot(path)
        assert spot.found, path
        return spot.node

    def place(self, path: KeyPath, on_key: bool = False) -> Place:
        """Return the place to show for a path: that of the value, or of the key.

        A mapping or list that spans lines is shown by its key. For a path that is absent, the key of the nearest
        ancestor is shown; the start of the document where there is none.
        """
        spot = self._spot(path)
        node = spot.node
        if not spot.depth:
            return Place(node.at.source, Span(*node.at.span[:2], *node.at.span[:2]))
        key = node.instead.key if on_key and spot.found and spot.within and node.instead else node.key
        by_key = on_key or not spot.found or node.shown_by_key
        return key if key is not None and by_key else node.at

    def second_place(self, path: KeyPath) -> Place:
        """Return a second place; for a mapping or list, its key with the colon, so that it stays short."""
        spot = self._spot(path)
        key = spot.node.key
        if key is None or not spot.found or not spot.node.is_collection:
            return self.place(path)
        line, column, end_line, end = key.span
        if key.override is None and key.source.lines[end_line - 1][end - 1 : end] == ":":
            end += 1
        return Place(key.source, Span(line, column, end_line, end))

    def locate(self, diagnostic: Diagnostic) -> Place:
        """Return the place that a diagnostic points at."""
        at = diagnostic.at
        if diagnostic.span is None:
            return self.place(at, diagnostic.on_key)
        text = self.others.get(self._home(at)[0], self)  # of a file, or of an override that was not applied
        return Place(self.failed.get(at) or text.root.at.source, Span(*diagnostic.span))

    def written(self, path: KeyPath, on_key: bool = False) -> KeyPath:
        """Return the path at which a value, or its key, was written, in the document where it was."""
        return () if path in self.failed else self._spot(path, on_key).written

    def is_copy(self, path: KeyPath) -> bool:
        """Return True if the value at a path was copied there."""
        return self._spot(path).copied

    def related(self, diagnostic: Diagnostic) -> tuple[Related, ...]:
        """Return the second places of a diagnostic, and those of all that was copied to or from its place."""
        spot = self._spot(diagnostic.at, diagnostic.on_key)
        marks = spot.marks
        for use in [self._spot(mark.at) for mark in marks]:
            at_use = (spot.home, spot.written[: len(use.written)]) == (use.home, use.written)
            if at_use and spot.stands is not None:
                marks = (Related(spot.stands, "it is written here"),)
        return (*diagnostic.related, *marks)

    def _home(self, path: KeyPath) -> tuple[str, KeyPath]:
        """Return the other document that a path leads into, empty for this one, and the path in it."""
        if path[:1] == (AS_WRITTEN,):
            return "", path[1:]
        return (str(path[0]), path[1:]) if path and path[0] in self.others else ("", path)

    def _spot(self, path: KeyPath, on_key: bool = False) -> _Spot:
        """Walk down to a value, or to its key, which was written where the mapping was that has it."""
        home, steps = self._home(path)
        node = self.others[home].root if home else (path != steps and self.original) or self.root
        marks: tuple[Related, ...] = (Related(self.named[home], "named here"),) if home in self.named else ()
        written, copied, within, depth, stands, above = KeyPath(), False, False, 0, None, (home, KeyPath())
        for depth, step in enumerate(steps, 1):
            child = node.child(step)
            if child is None and self.original is not None and path == steps and not copied:
                return self._spot((AS_WRITTEN, *path), on_key)  # of a use that has been expanded
            if child is None:
                depth -= 1
                break
            node, within, above, written = child, copied, (home, (*written, step)), (*written, step)
            stands = None if stands is None else (*stands, step)
            if node.origin is not None:
                copied, (home, written) = True, self._home(node.origin)
            if node.marks:
                marks, stands = node.marks, node.origin
        rest = steps[depth:]
        if on_key and within and not rest:
            home, written = above
        stands = None if stands is None else (*stands, *rest)
        return _Spot(node, depth, not rest, home, (*written, *rest), copied, within, marks, stands)

    def scalars(self) -> list[Span]:
        """Return the places in the document's text of keys and values without parts, in order; they do not overlap."""
        root = self.original or self.root
        places = {place for node in _nodes(root) for place in _simple(node)}
        return sorted(place.span for place in places if place.source is root.at.source)


def _simple(node: YamlNode) -> Iterator[Place]:
    if node.key is not None:
        yield node.key
    if not node.is_collection:
        yield node.at


def _nodes(root: YamlNode) -> Iterator[YamlNode]:
    """Yield all nodes of a tree, each once."""
    todo, seen = [root], {id(root)}
    while todo:
        node = todo.pop()
        yield node
        content = node.content
        for child in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
            if id(child) not in seen:
                seen.add(id(child))
                todo.append(child)


def plain(root: YamlNode, bad: set[KeyPath] | None = None) -> Any:
    """Return the values of a tree, aliases expanded; paths of bad nodes are added to ``bad``."""
    data: list[Any] = [None]
    todo: list[tuple[KeyPath, YamlNode, Any, str | int]] = [((), root, data, 0)]
    while todo:
        path, node, parent, step = todo.pop()
        if node.bad and bad is not None:
            bad.add(path)
        content = node.content
        if isinstance(content, dict):
            parent[step] = mapping = dict.fromkeys(content)
            todo.extend(((*path, key), child, mapping, key) for key, child in content.items())
        elif isinstance(content, list):
            parent[step] = items = [None] * len(content)
            todo.extend(((*path, i), child, items, i) for i, child in enumerate(content))
        else:
            parent[step] = content
    return data[0]


def without_repeats(document: Document, findings: Findings) -> Findings:
    """Return the findings, with only the first of those that show the same rule at the same place through copies.

    A finding at the place that copies were taken from counts as the first.
    """
    shown = {(item.rule, document.locate(item)) for item in findings if not document.is_copy(item.at)}
    left = Findings()
    for item in findings:
        here = (item.rule, document.locate(item))
        if document.is_copy(item.at):
            if here in shown:
                continue
            shown.add(here)
        left.add(item)
    return left
