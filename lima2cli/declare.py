"""One declaration of each parameter: typed object, parser, JSON Schema and manual page come from it.

A table of the language is a frozen keyword-only dataclass whose fields are made by `param`. Each field has a
*shape*, which knows the JSON Schema of what may be written and turns a value that fits the schema into a
Python value. What does not fit has been reported by then, and is read as `POISON`.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any

from lima2cli.diagnostics import Path
from lima2cli.names import NAME
from lima2cli.poison import POISON

Schema = dict[str, Any]

UNITS: Mapping[str, Mapping[str, float]] = {
    "bytes": {
        "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
        "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
    },
    "bits": {"bit": 1},
    "seconds": {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600},
    "hertz": {"Hz": 1, "kHz": 1e3, "MHz": 1e6},
    "metres": {"nm": 1e-9, "um": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1},
    "eV": {"eV": 1, "keV": 1e3, "MeV": 1e6},
}  # fmt: skip
"""Units by quantity, case-sensitive; plain numbers are in the unit of factor 1."""

LARGEST = 2**63
"""No number of the language is as large, so that sums and products of a few stay finite."""


class OutOfBounds(ValueError):
    """A quantity that is too small or too large."""


class Bad:
    """Paths at which the structure is wrong."""

    def __init__(self, paths: frozenset[Path] = frozenset()) -> None:
        self._paths = paths

    def __contains__(self, path: Path) -> bool:
        return path in self._paths


class Shape:
    """What may be written for a value."""

    def schema(self) -> Schema:
        """JSON Schema (draft 2020-12) of the value."""
        raise NotImplementedError

    def read(self, data: Any, at: Path, bad: Bad) -> Any:
        """The Python value; `POISON` where the path is bad."""
        return POISON if at in bad else self._read(data, at, bad)

    def files(self, data: Any, at: Path) -> Iterator[Path]:
        """Where texts stand that begin with a file's name; what does not fit the schema is passed over."""
        return iter(())

    def _read(self, data: Any, at: Path, bad: Bad) -> Any:
        return data


def _bounds(minimum: float | None, maximum: float | None, above: float | None = None) -> Schema:
    limits = {"minimum": minimum, "maximum": maximum, "exclusiveMinimum": above}
    return {key: value for key, value in limits.items() if value is not None}


@dataclass(frozen=True)
class Integer(Shape):
    """A whole number."""

    minimum: int | None = None
    maximum: int | None = None

    def schema(self) -> Schema:
        return {"type": "integer", **_bounds(self.minimum, self.maximum)}

    def _read(self, data: Any, at: Path, bad: Bad) -> int:
        return int(data)


@dataclass(frozen=True)
class Number(Shape):
    """A finite number."""

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None

    def schema(self) -> Schema:
        return {"type": "number", **_bounds(self.minimum, self.maximum, self.above)}


@dataclass(frozen=True)
class Flag(Shape):
    """true or false."""

    def schema(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Text(Shape):
    """A string, matched by ``pattern`` where given; ``words`` say in a message what that means ("a name")."""

    pattern: str | None = None
    words: str | None = None

    def schema(self) -> Schema:
        pattern = {"pattern": self.pattern} if self.pattern else {}
        return {"type": "string"} | pattern | ({"x-words": self.words} if self.words else {})


@dataclass(frozen=True)
class Choice(Shape):
    """One of a few values."""

    values: tuple[Any, ...]

    def schema(self) -> Schema:
        return {"enum": list(self.values)}

    def _read(self, data: Any, at: Path, bad: Bad) -> Any:
        return next(value for value in self.values if value == data)  # 90 where 90.0 is written


@dataclass(frozen=True)
class Quantity(Shape):
    """A number in base units, or a string with a unit (``16 MiB``). Whole for bytes and bits."""

    unit: str
    minimum: float | None = None
    above: float | None = None

    @property
    def whole(self) -> bool:
        """Whether only whole numbers make sense."""
        return self.unit in ("bytes", "bits")

    def schema(self) -> Schema:
        number: Schema = {"type": "integer" if self.whole else "number"}
        units = "|".join(UNITS[self.unit])
        sign = "" if (self.minimum is not None and self.minimum >= 0) or self.above is not None else "[-+]?"
        return {
            "anyOf": [
                number | _bounds(self.minimum, None, self.above),
                {
                    "type": "string",
                    "pattern": rf"^\s*{sign}[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?\s*({units})\s*$",
                },
            ],
            "x-unit": self.unit,
        }

    def parse(self, data: int | float | str) -> float:
        """In base units; ValueError where a string is no quantity, out of bounds, or bytes don't come out whole."""
        value: float = data if not isinstance(data, str) else self._in_base_units(data)
        if not abs(value) < LARGEST:
            raise OutOfBounds(f"a smaller number, got {data}")
        if self.minimum is not None and value < self.minimum:
            raise OutOfBounds(f"at least {self.minimum:g} {self.unit}, got {data}")
        if self.above is not None and value <= self.above:
            raise OutOfBounds(f"more than {self.above:g} {self.unit}, got {data}")
        if self.whole and value != int(value):
            comes_out = f"and {data} is {value:g} {self.unit}" if isinstance(data, str) else f"got {data}"
            raise ValueError(f"a whole number of {self.unit}, {comes_out}")
        return int(value) if self.whole else value

    def _in_base_units(self, text: str) -> float:
        match = re.fullmatch(r"\s*([-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]+)\s*", text)
        if match is None or match[2] not in UNITS[self.unit]:
            raise ValueError(f"a number with a unit ({', '.join(UNITS[self.unit])}), got `{text}`")
        factor = UNITS[self.unit][match[2]]
        value = float(match[1]) * factor
        if self.whole and abs(value) < LARGEST and match[1].lstrip("+-").isdigit():
            return int(match[1]) * int(factor)  # exact beyond 2**53
        return value

    def _read(self, data: Any, at: Path, bad: Bad) -> float:
        return self.parse(data)


@dataclass(frozen=True)
class FileReference(Shape):
    """``path.h5::/path/in/file``, ``path.edf``, ``path.cbf``, ``path.tif``, ``path.npy``."""

    def schema(self) -> Schema:
        return {"type": "string", "minLength": 1, "x-words": "a file, such as `dark.h5::/entry/data`"}

    def files(self, data: Any, at: Path) -> Iterator[Path]:
        if isinstance(data, str):
            yield at


@dataclass(frozen=True)
class FunctionReference(Shape):
    """``module:name``, or ``file.py:name``."""

    def schema(self) -> Schema:
        return {"type": "string", "pattern": r"^[^:]+:[A-Za-z_][A-Za-z0-9_]*$"}

    def files(self, data: Any, at: Path) -> Iterator[Path]:
        if isinstance(data, str) and ".py:" in data:
            yield at


@dataclass(frozen=True)
class Anything(Shape):
    """Any YAML value, taken as it is."""

    def schema(self) -> Schema:
        return {}


@dataclass(frozen=True)
class ListOf(Shape):
    """A list, read as a tuple."""

    item: Shape
    minimum: int = 0

    def schema(self) -> Schema:
        return {"type": "array", "items": self.item.schema()} | ({"minItems": self.minimum} if self.minimum else {})

    def _read(self, data: Any, at: Path, bad: Bad) -> Any:
        return tuple(self.item.read(value, (*at, i), bad) for i, value in enumerate(data))

    def files(self, data: Any, at: Path) -> Iterator[Path]:
        for i, value in enumerate(data if isinstance(data, list) else ()):
            yield from self.item.files(value, (*at, i))


@dataclass(frozen=True)
class MapOf(Shape):
    """Named things, in the order written."""

    item: Shape
    pattern: str = NAME
    minimum: int = 0

    def schema(self) -> Schema:
        return {
            "type": "object",
            "propertyNames": {"pattern": self.pattern},
            "additionalProperties": self.item.schema(),
        } | ({"minProperties": self.minimum} if self.minimum else {})

    def _read(self, data: Any, at: Path, bad: Bad) -> Any:
        return {name: self.item.read(value, (*at, name), bad) for name, value in data.items()}

    def files(self, data: Any, at: Path) -> Iterator[Path]:
        for name, value in data.items() if isinstance(data, dict) else ():
            yield from self.item.files(value, (*at, name))


@dataclass(frozen=True)
class Either(Shape):
    """The first of several shapes that fits; they must differ in the kind of YAML value."""

    shapes: tuple[Shape, ...]

    def schema(self) -> Schema:
        return {"anyOf": [shape.schema() for shape in self.shapes]}

    def pick(self, data: Any) -> Shape:
        """The shape meant by the kind of value: map, list, text, number or flag."""
        for shape in self.shapes:
            if _fits(shape.schema(), data):
                return shape
        return self.shapes[-1]

    def _read(self, data: Any, at: Path, bad: Bad) -> Any:
        return self.pick(data).read(data, at, bad)

    def files(self, data: Any, at: Path) -> Iterator[Path]:
        return self.pick(data).files(data, at)


def _fits(schema: Schema, data: Any) -> bool:
    if "anyOf" in schema:
        return any(_fits(option, data) for option in schema["anyOf"])
    if "enum" in schema:
        return any(data == value and isinstance(data, bool) == isinstance(value, bool) for value in schema["enum"])
    kind = schema.get("type")
    return kind is None or _KINDS[kind](data)


def _is_number(data: Any) -> bool:
    return isinstance(data, (int, float)) and not isinstance(data, bool)


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda data: isinstance(data, dict),
    "array": lambda data: isinstance(data, list),
    "string": lambda data: isinstance(data, str),
    "boolean": lambda data: isinstance(data, bool),
    "integer": lambda data: _is_number(data) and data % 1 == 0,
    "number": _is_number,
}


@dataclass(frozen=True)
class Param:
    """What `param` declared."""

    doc: str
    shape: Shape
    required: bool


def param(doc: str, shape: Shape, default: Any = MISSING) -> Any:
    """A field of a table; without ``default`` the key must be written. ``doc`` is one sentence."""
    metadata = {"param": Param(doc, shape, default is MISSING)}
    if default is MISSING:
        return field(metadata=metadata)
    if isinstance(default, (dict, list)) or (dataclasses.is_dataclass(default) and not isinstance(default, type)):
        return field(metadata=metadata, default_factory=lambda: default)
    return field(metadata=metadata, default=default)


def params(table: type) -> dict[str, Param]:
    """The declared parameters of a table, by key."""
    return {f.name: f.metadata["param"] for f in dataclasses.fields(table) if "param" in f.metadata}


@dataclass(frozen=True)
class Table(Shape):
    """A map with declared keys, read as an instance of the dataclass.

    ``shapes``, by key, stand instead of those declared, for kinds that depend on what is installed.
    """

    table: type
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def schema(self) -> Schema:
        properties = {}
        for key, declared in params(self.table).items():
            entry = self.shapes.get(key, declared.shape).schema() | {"description": declared.doc}
            default = next(f.default for f in dataclasses.fields(self.table) if f.name == key)
            if isinstance(default, (bool, int, float, str)):
                entry["default"] = default
            properties[key] = entry
        required = [key for key, declared in params(self.table).items() if declared.required]
        return {
            "type": "object",
            "description": (self.table.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " "),
            "properties": properties,
            "additionalProperties": False,
            **({"required": required} if required else {}),
        }

    def _read(self, data: Any, at: Path, bad: Bad) -> Any:
        values: dict[str, Any] = {}
        for key, declared in params(self.table).items():
            if (*at, key) in bad:
                values[key] = POISON
            elif key in data:
                values[key] = self.shapes.get(key, declared.shape).read(data[key], (*at, key), bad)
            elif declared.required:
                values[key] = POISON  # its absence has been reported
        return self.table(**values)

    def files(self, data: Any, at: Path) -> Iterator[Path]:
        for key, declared in params(self.table).items():
            if isinstance(data, dict) and key in data:
                yield from self.shapes.get(key, declared.shape).files(data[key], (*at, key))


@dataclass(frozen=True)
class OneKind(Shape):
    """``kind: {parameters}``, exactly one; read as an instance of the kind's table.

    ``what`` names the thing for messages ("memspace"), ``kinds`` gives the tables by kind; None instead of a table
    stands for a kind that exists and is not looked into; it is read as `POISON`. ``null`` parameters are read as an
    empty map.
    """

    what: str
    kinds: Callable[[], Mapping[str, Any]]

    def schema(self) -> Schema:
        return {
            "type": "object",
            "properties": kind_schemas(self.kinds()),
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
            "x-kind": self.what,
        }

    def _read(self, data: Any, at: Path, bad: Bad) -> Any:
        return read_kind(self.kinds(), data, at, bad)

    def files(self, data: Any, at: Path) -> Iterator[Path]:
        for kind, table in self.kinds().items():
            if isinstance(data, dict) and kind in data and table is not None:
                yield from Table(table).files(data[kind], (*at, kind))


def kind_schemas(kinds: Mapping[str, Any]) -> dict[str, Schema]:
    """What may be written below each kind; anything where its table is None."""
    return {kind: {} if table is None else or_null(Table(table).schema()) for kind, table in kinds.items()}


def read_kind(kinds: Mapping[str, Any], data: Any, at: Path, bad: Bad) -> Any:
    """An instance of the table of the one kind in ``data``; `POISON` where there is none, or no table."""
    for kind, table in kinds.items():
        if kind in data and table is not None:
            return Table(table).read(data[kind] or {}, (*at, kind), bad)
    return POISON


def or_null(schema: Schema) -> Schema:
    """The same, and ``null`` for "all defaults"."""
    return schema | {"type": [schema["type"], "null"]}
