"""One declaration of each parameter: typed object, parser, JSON Schema and manual page come from it.

A table of the language is a frozen keyword-only dataclass whose fields are made by `param`. Each field has a
*shape*, which knows the JSON Schema of what may be written and turns a value that fits the schema into a
Python value. What does not fit has been reported by then, and is read as `POISON`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any

from lima2cli import units
from lima2cli.diagnostics import NAME, POISON, KeyPath, nearest

Schema = dict[str, Any]

LARGEST = 2**63
"""Bound of all numbers of the language, so that sums and products of a few stay finite."""


MOST = 1024
"""Most entries of a list or a mapping: each entry costs time to check."""


class OutOfBounds(ValueError):
    """A quantity that is too small or too large."""


class Bad:
    """Paths at which the structure is wrong."""

    def __init__(self, paths: frozenset[KeyPath] = frozenset()) -> None:
        self._paths = paths

    def __contains__(self, path: KeyPath) -> bool:
        return path in self._paths


class Shape:
    """The values that may be written for a key."""

    def schema(self) -> Schema:
        """Return the JSON Schema (draft 2020-12) of the value."""
        raise NotImplementedError

    def read(self, data: Any, at: KeyPath, bad: Bad) -> Any:
        """Return the Python value; `POISON` where the path is bad."""
        return POISON if at in bad else self._read(data, at, bad)

    def leaves(self, data: Any, at: KeyPath) -> Iterator["Leaf"]:
        """Yield all values without parts, each with its shape; values that do not fit the schema may be passed over."""
        yield Leaf(at, self, data)

    def names_file(self, data: Any) -> bool:
        """Return True if a value without parts is a string that begins with a file's name."""
        return False

    def hides(self, data: Any) -> bool:
        """Return True if a value without parts may be a secret."""
        return False

    def _read(self, data: Any, at: KeyPath, bad: Bad) -> Any:
        return data


@dataclass(frozen=True)
class Leaf:
    """A value without parts as written, its shape, and its place."""

    at: KeyPath
    shape: Shape
    value: Any


def files(shape: Shape, data: Any, at: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the places of strings that begin with a file's name."""
    return (leaf.at for leaf in shape.leaves(data, at) if leaf.shape.names_file(leaf.value))


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

    def _read(self, data: Any, at: KeyPath, bad: Bad) -> int:
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
class NumberOrNan(Shape):
    """A finite number, or NaN, written ``.nan`` or ``nan``."""

    def schema(self) -> Schema:
        return {"anyOf": [{"type": "number"}, {"enum": ["nan"]}], "x-nan": True, "x-words": "a number, or nan"}

    def _read(self, data: Any, at: KeyPath, bad: Bad) -> float:
        return math.nan if data == "nan" or math.isnan(data) else data


@dataclass(frozen=True)
class Flag(Shape):
    """A boolean, true or false."""

    def schema(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Text(Shape):
    """A string, matched by ``pattern`` where given; ``words`` say in a message what that means ("a name").

    ``may_hide``: it is handed on, and names nothing, so that it may be a secret.
    """

    pattern: str | None = None
    words: str | None = None
    may_hide: bool = False

    def schema(self) -> Schema:
        pattern = {"pattern": self.pattern} if self.pattern else {}
        return {"type": "string"} | pattern | ({"x-words": self.words} if self.words else {})

    def hides(self, data: Any) -> bool:
        return self.may_hide


@dataclass(frozen=True)
class Choice(Shape):
    """One of a few values."""

    values: tuple[Any, ...]

    def schema(self) -> Schema:
        return {"enum": list(self.values)}

    def _read(self, data: Any, at: KeyPath, bad: Bad) -> Any:
        return next(value for value in self.values if value == data)  # 90 where 90.0 is written


@dataclass(frozen=True)
class Plausible:
    """The range of values of a quantity that are probably meant, in base units; 0 is plausible where it is allowed.

    bare  only plain numbers are doubted: who writes a unit means it
    """

    least: float
    most: float
    bare: bool = False


@dataclass(frozen=True)
class Quantity(Shape):
    """A number in base units, or a string with a unit (``16 MiB``). Whole for bytes and bits."""

    unit: str
    minimum: float | None = None
    above: float | None = None
    plausible: Plausible | None = None

    @property
    def whole(self) -> bool:
        """Return True if only whole numbers make sense."""
        return self.unit in ("bytes", "bits")

    def schema(self) -> Schema:
        number: Schema = {"type": "integer" if self.whole else "number"}
        signed = (self.minimum is None or self.minimum < 0) and self.above is None
        return {
            "anyOf": [
                number | _bounds(self.minimum, None, self.above),
                {"type": "string", "pattern": units.pattern(self.unit, signed=signed)},
            ],
            "x-unit": self.unit,
        }

    def parse(self, data: int | float | str) -> float:
        """Return the number in base units.

        Raises: ValueError where a string is no quantity, out of bounds, or bytes don't come out whole.
        """
        value: float = data if not isinstance(data, str) else units.parse(data, self.unit)
        if not abs(value) < LARGEST:
            raise OutOfBounds(f"a smaller number, got {data}")
        if self.minimum is not None and value < self.minimum:
            raise OutOfBounds(f"at least {self.minimum:g} {self.unit}, got {data}")
        if self.above is not None and value <= self.above:
            raise OutOfBounds(f"more than {self.above:g} {self.unit}, got {data}")
        if self.whole and value != int(value):
            comes_out = f"and {data} is {value:.15g} {self.unit}" if isinstance(data, str) else f"got {data}"
            raise ValueError(f"a whole number of {self.unit}, {comes_out}")
        return int(value) if self.whole else value

    def _read(self, data: Any, at: KeyPath, bad: Bad) -> float:
        return self.parse(data)


PHOTON_ENERGY = Quantity("eV", above=0, plausible=Plausible(100, 1e6))
THRESHOLD = Quantity("eV", minimum=0, plausible=Plausible(100, 1e6))
"""Energies of single photons, and of the thresholds above which they count."""


@dataclass(frozen=True)
class FileReference(Shape):
    """A reference to a file: ``path.h5::/path/in/file``, ``path.edf``, ``path.cbf``, ``path.tif``, ``path.npy``."""

    def schema(self) -> Schema:
        return {"type": "string", "minLength": 1, "x-words": "a file, such as `dark.h5::/entry/data`"}

    def names_file(self, data: Any) -> bool:
        return isinstance(data, str)


@dataclass(frozen=True)
class FunctionReference(Shape):
    """A reference to a function: ``module:name``, or ``file.py:name``."""

    def schema(self) -> Schema:
        return {"type": "string", "pattern": r"^[^:]+:[A-Za-z_][A-Za-z0-9_]*$"}

    def names_file(self, data: Any) -> bool:
        return isinstance(data, str) and ".py:" in data


@dataclass(frozen=True)
class Anything(Shape):
    """Any YAML value, taken as it is."""

    def schema(self) -> Schema:
        return {}

    def hides(self, data: Any) -> bool:
        return True

    def leaves(self, data: Any, at: KeyPath) -> Iterator[Leaf]:
        if isinstance(data, dict | list):
            for step, value in data.items() if isinstance(data, dict) else enumerate(data):
                yield from self.leaves(value, (*at, step))
        else:
            yield Leaf(at, self, data)


@dataclass(frozen=True)
class ListOf(Shape):
    """A list, read as a tuple."""

    item: Shape
    minimum: int = 0

    def schema(self) -> Schema:
        least = {"minItems": self.minimum} if self.minimum else {}
        return {"type": "array", "items": self.item.schema(), "maxItems": MOST} | least

    def _read(self, data: Any, at: KeyPath, bad: Bad) -> Any:
        return tuple(self.item.read(value, (*at, i), bad) for i, value in enumerate(data))

    def leaves(self, data: Any, at: KeyPath) -> Iterator[Leaf]:
        for i, value in enumerate(data if isinstance(data, list) else ()):
            yield from self.item.leaves(value, (*at, i))


@dataclass(frozen=True)
class MapOf(Shape):
    """Named things, in the order written."""

    item: Shape
    pattern: str = NAME
    minimum: int = 0
    maximum: int = MOST

    def schema(self) -> Schema:
        return {
            "type": "object",
            "propertyNames": {"pattern": self.pattern},
            "additionalProperties": self.item.schema(),
            "maxProperties": self.maximum,
        } | ({"minProperties": self.minimum} if self.minimum else {})

    def _read(self, data: Any, at: KeyPath, bad: Bad) -> Any:
        return {name: self.item.read(value, (*at, name), bad) for name, value in data.items()}

    def leaves(self, data: Any, at: KeyPath) -> Iterator[Leaf]:
        for name, value in data.items() if isinstance(data, dict) else ():
            yield from self.item.leaves(value, (*at, name))


@dataclass(frozen=True)
class Either(Shape):
    """One of several shapes; they must differ in the kind of YAML value, or in their keys."""

    shapes: tuple[Shape, ...]

    def schema(self) -> Schema:
        return {"anyOf": [shape.schema() for shape in self.shapes]}

    def pick(self, data: Any) -> Shape:
        """Return the shape meant, see `closest`."""
        return self.shapes[closest([shape.schema() for shape in self.shapes], data)]

    def _read(self, data: Any, at: KeyPath, bad: Bad) -> Any:
        return self.pick(data).read(data, at, bad)

    def leaves(self, data: Any, at: KeyPath) -> Iterator[Leaf]:
        return self.pick(data).leaves(data, at)


@dataclass(frozen=True)
class Short(Either):
    """A value that can be written short: ``shapes`` are the long form, then its short forms.

    ``make`` turns a short value into the value of the long form; ``words`` explain the short form in the manual.
    """

    make: Callable[[Any], Any]
    words: str

    def _read(self, data: Any, at: KeyPath, bad: Bad) -> Any:
        shape = self.pick(data)
        value = shape.read(data, at, bad)
        return value if shape is self.shapes[0] or value is POISON else self.make(value)


def pair(table: type, each: Shape) -> Short:
    """Return the shape of ``{x: …, y: …}``, or one value for both."""
    return Short((Table(table), each), lambda value: table(x=value, y=value), "one value for both")


def closest(options: Sequence[Schema], data: Any) -> int:
    """Return the index of the alternative meant: the first that takes the value's kind (map, list, text, number, flag).

    Among several that take mappings, the one that knows most of the keys, or of keys like them.
    """
    able = [i for i, option in enumerate(options) if _fits(option, data)]
    if len(able) < 2 or not isinstance(data, dict):
        return able[0] if able else len(options) - 1

    def known(i: int) -> tuple[int, int]:
        keys = _keys(options[i])
        exact = sum(key in keys for key in data)
        return exact, exact or sum(nearest(str(key), keys) is not None for key in data)

    return max(able, key=known)


def _keys(schema: Schema) -> set[str]:
    return set(schema.get("properties", ())).union(*(_keys(option) for option in schema.get("anyOf", ())))


def _fits(schema: Schema, data: Any) -> bool:
    if "anyOf" in schema:
        return any(_fits(option, data) for option in schema["anyOf"])
    if "enum" in schema:
        return any(data == value and isinstance(data, bool) == isinstance(value, bool) for value in schema["enum"])
    kind = schema.get("type")
    return kind is None or any(_KINDS[name](data) for name in ([kind] if isinstance(kind, str) else kind))


def _is_number(data: Any) -> bool:
    return isinstance(data, (int, float)) and not isinstance(data, bool)


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda data: isinstance(data, dict),
    "array": lambda data: isinstance(data, list),
    "string": lambda data: isinstance(data, str),
    "boolean": lambda data: isinstance(data, bool),
    "integer": lambda data: _is_number(data) and data % 1 == 0,
    "number": _is_number,
    "null": lambda data: data is None,
}


@dataclass(frozen=True)
class Param:
    """A parameter declared by `param`."""

    doc: str
    shape: Shape
    required: bool


def param(doc: str, shape: Shape, default: Any = MISSING) -> Any:
    """Declare a field of a table; without ``default`` the key must be written. ``doc`` is one sentence."""
    metadata = {"param": Param(doc, shape, default is MISSING)}
    if default is MISSING:
        return field(metadata=metadata)
    if isinstance(default, (dict, list)) or (dataclasses.is_dataclass(default) and not isinstance(default, type)):
        return field(metadata=metadata, default_factory=lambda: default)
    return field(metadata=metadata, default=default)


def params(table: type) -> dict[str, Param]:
    """Return the declared parameters of a table, by key."""
    return {f.name: f.metadata["param"] for f in dataclasses.fields(table) if "param" in f.metadata}


@dataclass(frozen=True)
class Table(Shape):
    """A mapping with declared keys, read as an instance of the dataclass.

    ``shapes``, by key, replace those declared, for kinds that depend on the installed packages. A dataclass that is a
    short form of another has a method ``spelled_out``, which returns that one.
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

    def _read(self, data: Any, at: KeyPath, bad: Bad) -> Any:
        values: dict[str, Any] = {}
        for key, declared in params(self.table).items():
            if (*at, key) in bad:
                values[key] = POISON
            elif key in data:
                values[key] = self.shapes.get(key, declared.shape).read(data[key], (*at, key), bad)
            elif declared.required:
                values[key] = POISON  # its absence has been reported
        made = self.table(**values)
        return made.spelled_out() if hasattr(made, "spelled_out") else made

    def leaves(self, data: Any, at: KeyPath) -> Iterator[Leaf]:
        for key, declared in params(self.table).items():
            if isinstance(data, dict) and key in data:
                yield from self.shapes.get(key, declared.shape).leaves(data[key], (*at, key))


@dataclass(frozen=True)
class OneKind(Shape):
    """A single-key mapping ``kind: {parameters}``, read as an instance of the kind's table.

    ``what`` names the thing for messages ("memspace"), ``kinds`` gives the tables by kind; None instead of a table
    stands for a kind that exists but is not checked; it is read as `POISON`. ``null`` parameters are read as an empty
    mapping.
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

    def _read(self, data: Any, at: KeyPath, bad: Bad) -> Any:
        return read_kind(self.kinds(), data, at, bad)

    def leaves(self, data: Any, at: KeyPath) -> Iterator[Leaf]:
        for kind, table in self.kinds().items():
            if isinstance(data, dict) and kind in data and table is not None:
                yield from Table(table).leaves(data[kind], (*at, kind))


def kind_schemas(kinds: Mapping[str, Any]) -> dict[str, Schema]:
    """Return the schema of the parameters of each kind; one that takes anything where its table is None."""
    return {kind: {} if table is None else or_null(Table(table).schema()) for kind, table in kinds.items()}


def read_kind(kinds: Mapping[str, Any], data: Any, at: KeyPath, bad: Bad) -> Any:
    """Return an instance of the table of the one kind in ``data``; `POISON` where there is none, or no table."""
    for kind, table in kinds.items():
        if kind in data and table is not None:
            return Table(table).read(data[kind] or {}, (*at, kind), bad)
    return POISON


def or_null(schema: Schema) -> Schema:
    """Return a schema that also takes ``null``, for "all defaults"."""
    return schema | {"type": [schema["type"], "null"]}
