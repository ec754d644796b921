"""One declaration of each parameter: typed object, parser, JSON Schema and manual page come from it.

A table of the language is a frozen keyword-only dataclass whose fields are made by `param`. Each field has a
*shape*, which knows the JSON Schema of what may be written, and checks and reads data in one walk: it returns the
Python value, and `POISON` for what does not fit, which the `declare.reading.Reading` has then reported.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from lima2cli.dataclass import dataclass
from lima2cli.declare.scalars import (
    LARGEST,
    PHOTON_ENERGY,
    THRESHOLD,
    Anything,
    Choice,
    FileReference,
    Flag,
    FunctionReference,
    Integer,
    Number,
    NumberOrNan,
    OutOfBounds,
    Plausible,
    Quantity,
    Scalar,
    Schema,
    Shape,
    Sort,
    Text,
    matches,
    sort,
)
from lima2cli.diagnostics import NAME, POISON, KeyPath, nearest
from lima2cli.secret import Secret

if TYPE_CHECKING:
    from lima2cli.declare.reading import Reading

__all__ = [
    "LARGEST", "MOST", "PHOTON_ENERGY", "THRESHOLD", "Anything", "Choice", "Either", "FileReference", "Flag",
    "FunctionReference", "Integer", "ListOf", "MapOf", "Number", "NumberOrNan", "OneKind", "OutOfBounds", "Param",
    "Plausible", "Quantity", "Scalar", "Schema", "Shape", "Short", "Sort", "Table", "Text", "kind_schemas",
    "matches", "or_null", "pair", "param", "params", "read_kind", "sort",
]  # fmt: skip

MOST = 1024
"""Most entries of a list or a mapping: each entry costs time to check."""


@dataclass(frozen=True)
class ListOf(Shape):
    """A list, read as a tuple."""

    sorts = ("list",)
    item: Shape
    minimum: int = 0
    maximum: int = MOST

    def schema(self) -> Schema:
        """See `Shape.schema`."""
        least = {"minItems": self.minimum} if self.minimum else {}
        return {"type": "array", "items": self.item.schema(), "maxItems": self.maximum} | least

    def _read(self, data: Any, at: KeyPath, reading: "Reading") -> Any:
        if not isinstance(data, list):
            return reading.refuse("type", data, self, at)
        items = tuple([self.item.read(value, (*at, i), reading) for i, value in enumerate(data)])
        if len(data) > self.maximum:
            return reading.fault("maxItems", data, self, at)
        return reading.fault("minItems", data, self, at) if len(data) < self.minimum else items


@dataclass(frozen=True)
class MapOf(Shape):
    """Named things, in the order written."""

    sorts = ("mapping",)
    item: Shape
    pattern: str = NAME
    minimum: int = 0
    maximum: int = MOST

    def schema(self) -> Schema:
        """See `Shape.schema`."""
        return {
            "type": "object",
            "propertyNames": {"pattern": self.pattern},
            "additionalProperties": self.item.schema(),
            "maxProperties": self.maximum,
        } | ({"minProperties": self.minimum} if self.minimum else {})

    def _read(self, data: Any, at: KeyPath, reading: "Reading") -> Any:
        if not isinstance(data, dict):
            return reading.refuse("type", data, self, at)
        items = {}
        for name, value in data.items():
            below = reading.key(name, at)
            if not matches(self.pattern, name):
                reading.fault_of_name(name, self.pattern, below)
            items[name] = self.item.read(value, below, reading)
        if len(data) > self.maximum > 1:
            return reading.fault("maxProperties", data, self, at)
        return reading.fault("minProperties", data, self, at) if len(data) < self.minimum else items


@dataclass(frozen=True)
class Either(Shape):
    """One of several shapes; they must differ in the kind of YAML value, or in their keys."""

    shapes: tuple[Shape, ...]

    @property
    def sorts(self) -> Collection[str]:  # type: ignore[override]
        """Return the kinds that any of the shapes takes."""
        return {sort for shape in self.shapes for sort in shape.sorts}

    def schema(self) -> Schema:
        """See `Shape.schema`."""
        return {"anyOf": [shape.schema() for shape in self.shapes]}

    def takes(self, data: Any) -> bool:
        """See `Shape.takes`."""
        return any(shape.takes(data) for shape in self.shapes)

    def known_keys(self) -> Collection[str]:
        """See `Shape.known_keys`."""
        return {key for shape in self.shapes for key in shape.known_keys()}

    def pick(self, data: Any) -> Shape | None:
        """Return the shape meant: the first that takes data of this kind; None where none does.

        Among several that take mappings, the one that knows most of the keys, or of keys like them.
        """
        able = [shape for shape in self.shapes if sort(data) in shape.sorts]
        if len(able) < 2 or not isinstance(data, dict):
            return next((shape for shape in able if shape.takes(data)), able[-1] if able else None)

        def known(shape: Shape) -> tuple[int, int]:
            keys = shape.known_keys()
            exact = sum(key in keys for key in data)
            return exact, exact or sum(nearest(str(key), keys) is not None for key in data)

        return max(able, key=known)

    def _read(self, data: Any, at: KeyPath, reading: "Reading") -> Any:
        shape = self.pick(data)
        if shape is None or (isinstance(shape, Choice) and not shape.takes(data)):
            reading.refuse("anyOf", data, self, at)
            if isinstance(data, Secret):
                reading.misplaced(at)
            return POISON
        return self._made(shape, shape.read(data, at, reading))

    def _made(self, shape: Shape, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class Short(Either):
    """A value that can be written short: ``shapes`` are the long form, then its short forms.

    ``make`` turns a short value into the value of the long form; ``words`` explain the short form in the manual.
    """

    make: Callable[[Any], Any]
    words: str

    def _made(self, shape: Shape, value: Any) -> Any:
        return value if shape is self.shapes[0] or value is POISON else self.make(value)


def pair(table: type, each: Shape) -> Short:
    """Return the shape of ``{x: …, y: …}``, or one value for both."""
    return Short((Table(table), each), lambda value: table(x=value, y=value), "one value for both")


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


def params(table: type) -> Mapping[str, Param]:
    """Return the declared parameters of a table, by key."""
    return {f.name: f.metadata["param"] for f in dataclasses.fields(table) if "param" in f.metadata}


@dataclass(frozen=True)
class Table(Shape):
    """A mapping with declared keys, read as an instance of the dataclass.

    ``shapes``, by key, replace those declared, for kinds that depend on the installed packages. A dataclass that is a
    short form of another has a method ``spelled_out``, which returns that one.
    """

    sorts = ("mapping",)
    table: type
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def schema(self) -> Schema:
        """See `Shape.schema`."""
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

    def known_keys(self) -> Collection[str]:
        """See `Shape.known_keys`."""
        return self.declared

    @cached_property
    def declared(self) -> Mapping[str, Param]:
        """Return the parameters, by key."""
        return params(self.table)

    def _read(self, data: Any, at: KeyPath, reading: "Reading") -> Any:
        if not isinstance(data, dict):
            return reading.refuse("type", data, self, at)
        declared, values = self.declared, dict[str, Any]()
        for key, one in declared.items():
            if key in data:
                values[key] = self.shapes.get(key, one.shape).read(data[key], reading.key(key, at), reading)
            elif one.required:
                values[key] = POISON
        if reading.look_at_others(data, declared, at) or len(values) > len(data):
            reading.check_keys(data, self, at)
        if reading.bad:
            values |= {key: POISON for key in declared if (*at, key) in reading.bad}
        made = self.table(**values)
        return made.spelled_out() if hasattr(made, "spelled_out") else made


@cache
def table_of(kind: type) -> Table:
    """Return the shape of the parameters of a kind, the same one each time."""
    return Table(kind)


@dataclass(frozen=True)
class OneKind(Shape):
    """A single-key mapping ``kind: {parameters}``, read as an instance of the kind's table.

    ``what`` names the thing for messages ("memspace"), ``kinds`` gives the tables by kind; None instead of a table
    stands for a kind that exists but is not checked; it is read as `POISON`. ``null`` parameters are read as an empty
    mapping.
    """

    sorts = ("mapping",)
    what: str
    kinds: Callable[[], Mapping[str, Any]]

    def schema(self) -> Schema:
        """See `Shape.schema`."""
        return {
            "type": "object",
            "properties": kind_schemas(self.kinds()),
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
            "x-kind": self.what,
        }

    def known_keys(self) -> Collection[str]:
        """See `Shape.known_keys`."""
        return self.kinds()

    def _read(self, data: Any, at: KeyPath, reading: "Reading") -> Any:
        if not isinstance(data, dict):
            return reading.refuse("type", data, self, at)
        kinds = self.kinds()
        value = read_kind(kinds, data, at, reading)
        if reading.look_at_others(data, kinds, at) or len(data) != 1:
            reading.check_keys(data, self, at)
        return POISON if any((*at, kind) in reading.bad for kind in data if kind in kinds) else value


def kind_schemas(kinds: Mapping[str, Any]) -> dict[str, Schema]:
    """Return the schema of the parameters of each kind; one that takes anything where its table is None."""
    return {kind: {} if table is None else or_null(Table(table).schema()) for kind, table in kinds.items()}


def read_kind(kinds: Mapping[str, Any], data: Mapping[str, Any], at: KeyPath, reading: "Reading") -> Any:
    """Return an instance of the table of the one kind in ``data``; `POISON` where there is none, or no table."""
    value = POISON
    for kind in [key for key in data if key in kinds]:
        parameters, below = data[kind], reading.key(kind, at)
        if kinds[kind] is None:
            reading.look(parameters, below)
        else:
            value = table_of(kinds[kind]).read({} if parameters is None else parameters, below, reading)
    return value


def or_null(schema: Schema) -> Schema:
    """Return a schema that also takes ``null``, for "all defaults"."""
    return schema | {"type": [schema["type"], "null"]}
