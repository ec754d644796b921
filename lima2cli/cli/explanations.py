"""Rules and keys explained: rules from their page of the manual, which is packed with lima2, keys from declarations."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from typing import Any

from lima2cli.cli.descriptions import plain_default
from lima2cli.dataclass import dataclass
from lima2cli.declare import Either, ListOf, MapOf, OneKind, Quantity, Schema, Shape, Short, Table, params
from lima2cli.declare.wording import words
from lima2cli.diagnostics import nearest
from lima2cli.language.templates import Template
from lima2cli.nodes.registry import WIRING, NodeEntry
from lima2cli.units import UNITS

HEADING = re.compile(r"^### `([a-z-]+)`\n", re.MULTILINE)
_FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```\n*", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")

NAME, ITEM = "<name>", "<n>"
"""Stand in paths for any name of the user's, and for a place in a list."""

SHORT = 4
"""Most keys of a mapping that are listed where its value is described."""


@dataclass(frozen=True)
class Example:
    """A text that breaks a rule, and what is printed then; empty where the manual does not show it."""

    text: str
    printed: str


@dataclass(frozen=True)
class Rule:
    """A rule of diagnostics; ``text`` is its meaning, Markdown without links."""

    rule: str
    severity: str
    text: str
    examples: tuple[Example, ...]


def rules() -> dict[str, str]:
    """Return the sections of the manual about rules, by rule."""
    page = (files("lima2cli.cli") / "diagnostics.md").read_text(encoding="utf-8")
    parts = HEADING.split(page)
    sections = zip(parts[1::2], parts[2::2], strict=True)
    return {name: re.split(r"^## ", text, flags=re.MULTILINE)[0] for name, text in sections}


def explain_rule(name: str, section: str) -> Rule:
    """Return a rule, read from its section of the manual."""
    texts: list[list[str]] = []
    for match in _FENCE.finditer(section):
        if match[2].strip() == "printed" and texts:
            texts[-1][1] = match[3]
        else:
            texts.append([match[3], ""])
    text = re.sub(r"\n{3,}", "\n\n", _LINK.sub(r"\1", _FENCE.sub("\n", section))).strip()
    severity = "warning" if text.startswith("Warning.") else "error"
    return Rule(name, severity, text.removeprefix("Warning. "), tuple(Example(*each) for each in texts))


class UnknownKey(Exception):
    """No such key: ``word`` is the part of the path that is wrong, below ``path``, where ``known`` are."""

    def __init__(self, path: str, word: str, known: Iterable[str]) -> None:
        super().__init__(word)
        self.path, self.word, self.known = path, word, list(known)


@dataclass(frozen=True)
class Entry:
    """A key of the language, a kind, or what stands below a name of the user's.

    shape     what may be written there;  doc   one sentence or more
    required, default   of a key; a default is plain data, None where there is none
    """

    path: str
    doc: str
    shape: Shape
    required: bool = False
    default: Any = None

    @property
    def value(self) -> str:
        """Return in words what may be written."""
        return value_words(self.shape)

    @property
    def unit(self) -> str | None:
        """Return the quantity that a plain number is in; None where it has none."""
        unit = self.shape.schema().get("x-unit")
        return None if unit is None else str(unit)

    @property
    def units(self) -> tuple[str, ...]:
        """Return the units that may be written behind a number."""
        return tuple(UNITS[self.unit]) if self.unit is not None else ()

    @property
    def bounds(self) -> dict[str, float]:
        """Return the bounds of a number, by their names in the JSON Schema."""
        schema = self.shape.schema()
        schema = schema["anyOf"][0] if isinstance(self.shape, Quantity) else schema
        names = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minItems", "maxItems")
        return {name: schema[name] for name in names if name in schema}

    def below(self) -> "dict[str, Entry]":
        """Return the entries below, by key."""
        return dict(_below(self.path, self.shape))

    def shown(self, before: str = "") -> "dict[str, Entry]":
        """Return the entries below that are worth a look: of names and of places in lists what is below these."""
        below = self.below()
        if (hole := next((key for key in (NAME, ITEM) if key in below), None)) is not None:
            return below[hole].shown(f"{before}{hole}.")
        return {before + key: entry for key, entry in below.items()}

    def plain(self) -> dict[str, Any]:
        """Return the entry as plain data, without what is below."""
        return {
            "path": self.path,
            "doc": self.doc,
            "value": self.value,
            "unit": self.unit,
            "units": list(self.units),
            "bounds": self.bounds,
            "required": self.required,
            "default": self.default,
        }


def find(root: Table, path: str) -> Entry:
    """Return the entry at a path. Names of the user's may be left out of it, and so may places in lists.

    Raises:
        UnknownKey: there is none.
    """
    return _find(Entry("", "", root), path.split("."))


def _find(entry: Entry, rest: list[str]) -> Entry:
    if not rest:
        return entry
    known, first = entry.below(), rest[0]
    if first in known:
        return _find(known[first], rest[1:])
    held = known.get(NAME, known.get(ITEM))
    if held is None:
        raise UnknownKey(entry.path, first, known)
    try:
        return _find(held, rest)
    except UnknownKey as problem:
        if problem.word != first or (NAME not in known and not first.isdigit()):
            raise
        if nearest(first, problem.known) is not None:
            raise
    return _find(held, rest[1:])


def everything(entry: Entry) -> Iterator[Entry]:
    """Yield all entries below one, outer ones first."""
    for one in entry.below().values():
        yield one
        yield from everything(one)


def elsewhere(root: Table, word: str, most: int = 3) -> list[str]:
    """Return the shortest paths of keys of a name, wherever they are, without names of the user's."""
    paths = {
        one.path.replace(f"{NAME}.", "").replace(f"{ITEM}.", "")
        for key, top in Entry("", "", root).below().items()
        if key != "graphs"  # whose nodes are those of `nodes`
        for one in everything(top)
        if one.path.endswith(f".{word}")
    }
    return sorted(paths, key=lambda path: (path.count("."), path))[:most]


def _below(path: str, shape: Shape) -> Iterator[tuple[str, Entry]]:
    at = f"{path}." if path else ""
    if isinstance(shape, Table):
        fields = {field.name: field for field in dataclasses.fields(shape.table)}
        for key, declared in params(shape.table).items():
            inner = shape.shapes.get(key, declared.shape)
            default = None if declared.required else plain_default(fields[key])
            yield key, Entry(at + key, declared.doc, inner, declared.required, default)
    elif isinstance(shape, NodeEntry):
        schemas: Mapping[str, Schema] = shape.schema()["properties"]
        for key in WIRING:
            yield key, Entry(at + key, schemas[key]["description"], _Told(schemas[key]))
        yield from _kinds(at, shape.kinds())
    elif isinstance(shape, OneKind):
        yield from _kinds(at, shape.kinds())
    elif isinstance(shape, MapOf):
        yield NAME, Entry(at + NAME, _doc_of(shape.item), shape.item)
    elif isinstance(shape, ListOf):
        yield ITEM, Entry(at + ITEM, _doc_of(shape.item), shape.item)
    elif isinstance(shape, Template):
        yield from _below(path, shape.entry)
    elif isinstance(shape, Either):
        for option in shape.shapes[:1] if isinstance(shape, Short) else shape.shapes:
            yield from _below(path, option)


@dataclass(frozen=True)
class _Told(Shape):
    """A value of which only the schema is known."""

    told: Schema

    def schema(self) -> Schema:
        return self.told


def _kinds(at: str, kinds: Mapping[str, type]) -> Iterator[tuple[str, Entry]]:
    for kind, table in kinds.items():
        yield kind, Entry(at + kind, summary(table), Table(table))


def _doc_of(shape: Shape) -> str:
    return summary(shape.table) if isinstance(shape, Table) else ""


def summary(table: type) -> str:
    """Return the first paragraph of what is said of a table, in one line."""
    return " ".join((table.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")


def value_words(shape: Shape) -> str:
    """Return in words what may be written, items of lists and mappings too."""
    if isinstance(shape, OneKind | NodeEntry | Template):
        return f"one kind of {shape.what if isinstance(shape, OneKind) else 'node'}"
    if isinstance(shape, MapOf):
        return f"names, each with {value_words(shape.item)}"
    if isinstance(shape, ListOf):
        return f"{words(shape.schema())}, each {value_words(shape.item)}"
    if isinstance(shape, Table):
        keys = list(params(shape.table))
        return "a mapping" if not 0 < len(keys) <= SHORT else f"a mapping with the keys {', '.join(keys)}"
    if isinstance(shape, Short):
        return f"{value_words(shape.shapes[0])}, or {shape.words}"
    if isinstance(shape, Either):
        return ", or ".join(map(value_words, shape.shapes))
    return words(shape.schema())
