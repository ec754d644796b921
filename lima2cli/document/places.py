"""Where things are written: spans, and a document that knows the place of every key and value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from lima2cli.diagnostics import Diagnostic, Path
from lima2cli.document.lines import split_lines


class Span(NamedTuple):
    """Part of a text, from (line, column) up to, not including, (end_line, end_column); all from 1.

    Columns count characters.
    """

    line: int
    column: int
    end_line: int
    end_column: int


START = Span(1, 1, 1, 1)


@dataclass(frozen=True)
class Source:
    """A text, and the name under which it is shown."""

    file: str
    text: str

    @cached_property
    def lines(self) -> list[str]:
        """The lines as YAML counts them, without their ends."""
        return split_lines(self.text)


class Place(NamedTuple):
    """Where a diagnostic points. ``override`` is the text of the ``--set`` that wrote the value, else None."""

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
    """

    data: Any
    keys: Mapping[Path, Span]
    values: Mapping[Path, Span]
    overridden: Mapping[Path, str] = field(default_factory=dict)
    bad: frozenset[Path] = frozenset()

    def place(self, path: Path, on_key: bool = False) -> Span:
        """The span to show for a path: that of the value, or of the key.

        A map or list that spans lines is shown by its key. Of a path that is absent, the key of the nearest
        ancestor is shown; the start of the document where there is none.
        """
        found = self.nearest(path)
        if not found:
            root = self.values.get((), START)
            return Span(root.line, root.column, root.line, root.column)
        value, key = self.values[found], self.keys.get(found)
        if key is None:
            return value
        return key if on_key or found != path or self._by_key(found) else value

    def nearest(self, path: Path) -> Path:
        """The longest leading part of the path that exists."""
        while path and path not in self.values:
            path = path[:-1]
        return path

    def locate(self, diagnostic: Diagnostic) -> Place:
        """Where a diagnostic points."""
        at = diagnostic.at
        if diagnostic.span is not None:  # of the text of the file, or of an override that came to nothing
            override = self.overridden[at] if at in self.overridden and at not in self.values else None
            span = Span(*diagnostic.span)
        else:
            override = self.overridden.get(self.nearest(at))
            span = self.place(at, diagnostic.on_key)
        return Place(self.file if override is None else "--set", span, override)

    def value(self, path: Path) -> Any:
        """The value at a path that exists."""
        found = self.data
        for step in path:
            found = found[step]
        return found

    def _by_key(self, path: Path) -> bool:
        span = self.values[path]
        several = span.line != span.end_line or span.line != self.keys[path].line
        return several and isinstance(self.value(path), (dict, list))
