"""Places of keys and values: spans, and a document that knows the place of everything in it."""

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

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
"""First step of paths into the original of a document whose data have since been replaced."""


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

    def named(self, file: str) -> "Source":
        """Return the source for a file name that a `Place` has."""
        return self


class Place(NamedTuple):
    """The place that a diagnostic points at. ``override``: the ``--set`` that wrote the value, else None."""

    file: str
    span: Span
    override: str | None


@dataclass(frozen=True)
class Document(Source):
    """A YAML document as plain data, with places.

    data        dict, list, str, int, float, bool, None
    keys        place of each key, by the path of its value
    values      place of each value; that of an alias is the alias, of what is below it where that is written
    overridden  text of the ``--set`` that made the value, by path; the places of these are within that text
    bad         values of which a mistake has been reported here, so that no second one need be
    copied      what was copied to a path was written at another one; the longest leading part of a path counts
    original    the document as it was written, where its data are another's by now
    others      documents that parts were taken from; the first step of a path into one is its key, as that of a path
                into the original is `AS_WRITTEN`
    marks       second places that explain all that is at a path or below
    """

    data: Any
    keys: Mapping[KeyPath, Span]
    values: Mapping[KeyPath, Span]
    overridden: Mapping[KeyPath, str] = field(default_factory=dict)
    bad: frozenset[KeyPath] = frozenset()
    copied: Mapping[KeyPath, KeyPath] = field(default_factory=dict)
    original: "Document | None" = None
    others: Mapping[str, "Document"] = field(default_factory=dict)
    marks: Mapping[KeyPath, tuple[Related, ...]] = field(default_factory=dict)

    def named(self, file: str) -> Source:
        """Return the source for a file name, see `Source.named`."""
        return next((other for other in self.others.values() if other.file == file), self)

    def written(self, path: KeyPath, on_key: bool = False) -> tuple["Document", KeyPath]:
        """Return the document that a value, or its key, was written in, and its path there."""
        source = (on_key and self._copied_from(path[:-1])) or self._copied_from(path)
        if source:
            path = (*self.copied[source], *path[len(source) :])
        if path[:1] == (AS_WRITTEN,):
            path = path[1:]
        elif path and path[0] in self.others:
            return self.others[str(path[0])], path[1:]
        return self.original or self, path

    def is_copy(self, path: KeyPath) -> bool:
        """Return True if the value at a path was copied there."""
        return bool(self._copied_from(path))

    def related(self, diagnostic: Diagnostic) -> tuple[Related, ...]:
        """Return the second places of a diagnostic, and those of all that was copied to or from its place."""
        at = diagnostic.at
        marked = next((at[:end] for end in range(len(at), 0, -1) if at[:end] in self.marks), ())
        marks = self.marks.get(marked, ())
        shown, where = self.written(at, diagnostic.on_key)
        uses = [self.written(mark.at) for mark in marks]
        if marked in self.copied and any(shown is used and where[: len(use)] == use for used, use in uses):
            marks = (Related((*self.copied[marked], *at[len(marked) :]), "it stands here"),)
        return (*diagnostic.related, *marks)

    def _copied_from(self, path: KeyPath) -> KeyPath:
        """Return the longest leading part of a path that is known to be a copy."""
        return next((path[:end] for end in range(len(path), 0, -1) if path[:end] in self.copied), ())

    def place(self, path: KeyPath, on_key: bool = False) -> Span:
        """Return the span to show for a path: that of the value, or of the key.

        A mapping or list that spans lines is shown by its key. For a path that is absent, the key of the nearest
        ancestor is shown; the start of the document where there is none.
        """
        nearest_path = self.nearest(path)
        if not nearest_path:
            root = self.values.get((), START)
            return Span(root.line, root.column, root.line, root.column)
        value, key = self.values[nearest_path], self.keys.get(nearest_path)
        if key is None:
            return value
        return key if on_key or nearest_path != path or self._by_key(nearest_path) else value

    def nearest(self, path: KeyPath) -> KeyPath:
        """Return the longest leading part of the path that exists."""
        while path and path not in self.values:
            path = path[:-1]
        return path

    def locate(self, diagnostic: Diagnostic) -> Place:
        """Return the place that a diagnostic points at."""
        document, at = self.written(diagnostic.at, diagnostic.on_key)
        return document._locate(replace(diagnostic, at=at))

    def _locate(self, diagnostic: Diagnostic) -> Place:
        at = diagnostic.at
        if diagnostic.span is not None:  # in the text of the file, or of an override that was not applied
            override = self.overridden[at] if at in self.overridden and at not in self.values else None
            span = Span(*diagnostic.span)
        else:
            override = self.overridden.get(self.nearest(at))
            span = self.place(at, diagnostic.on_key)
        return Place(self.file if override is None else "--set", span, override)

    def value(self, path: KeyPath) -> Any:
        """Return the value at a path that exists."""
        value = self.data
        for step in path:
            value = value[step]
        return value

    def _by_key(self, path: KeyPath) -> bool:
        span = self.values[path]
        several = span.line != span.end_line or span.line != self.keys[path].line
        return several and isinstance(self.value(path), (dict, list))


def once(document: Document, findings: Findings) -> Findings:
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
