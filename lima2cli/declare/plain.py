"""Frozen dataclasses as plain data for JSON: written, read back with each value checked, described by a JSON Schema.

The types of the fields are the only declaration: numbers, strings, `Literal`, tuples, mappings with string keys, other
dataclasses, masks (NDArray of bool, as compressed bits), ``Any`` (plain data, unchecked), and unions of these. JSON has
no NaN and no infinity: a float is ``"nan"``, ``"inf"`` or ``"-inf"`` then, which fields declared by `key` do not take.
"""

import base64
import dataclasses
import inspect
import math
import operator
import types
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING
from functools import cache, reduce
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from lima2cli.dataclass import dataclass

Schema = dict[str, Any]
T = TypeVar("T")

NoneIs = Literal["null", "absent", "empty", "spread"]
"""Ways of JSON to show that a field is None: ``null``, no such key, an object without keys. ``spread``: the field
is a dataclass whose keys stand among those of the dataclass that holds it, all of them or none.
"""

NOT_FINITE = ("nan", "inf", "-inf")

LARGEST = 1 << 63
"""Bound of whole numbers, and of numbers that have to be finite: messages can show them."""


class Misshapen(ValueError):
    """Plain data that are not what the types ask for."""


def key(doc: str, default: Any = MISSING, *, none: NoneIs = "null") -> Any:
    """Declare a field by what it means, in a sentence; ``none`` is how JSON shows that it is None."""
    metadata = {"doc": doc, "none": none}
    if default is MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def to_plain(value: Any) -> Any:
    """Return a dataclass, and all that it holds, as plain data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dict(_written(value))
    if isinstance(value, Mapping):
        return {str(name): to_plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        bits = zlib.compress(np.packbits(value).tobytes())
        return {"shape": list(value.shape), "bits": base64.b64encode(bits).decode()}
    if isinstance(value, np.generic):
        return to_plain(value.item())
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def from_plain(kind: type[T], data: Any) -> T:
    """Return the dataclass ``kind`` that `to_plain` wrote; keys that it does not know are passed over.

    Raises:
        Misshapen: a value is missing or of another type; the message names its place.
    """
    return cast(T, _codec(cast(Any, kind)).read(data, ""))


def schema_of(kind: type[Any]) -> Schema:
    """Return the JSON Schema (draft 2020-12) of what `to_plain` writes, with the dataclasses in ``$defs``, by name."""
    definitions: dict[str, Schema] = {}
    own = _codec(cast(Any, kind)).schema(definitions)
    return definitions.pop(kind.__name__) | {"$defs": dict(sorted(definitions.items()))} if definitions else own


def _written(value: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(value):
        item, none = getattr(value, field.name), field.metadata.get("none")
        if item is None and none in ("absent", "spread"):
            continue
        if none == "spread":
            yield from _written(item)
        else:
            yield field.name, {} if item is None and none == "empty" else to_plain(item)


@dataclass(frozen=True)
class _Codec:
    """``read(data, place)`` checks and returns a value; ``schema(definitions)`` describes it."""

    read: Callable[[Any, str], Any]
    schema: Callable[[dict[str, Schema]], Schema]


def _expected(words: str, data: Any, place: str) -> Misshapen:
    return Misshapen(f"{place or '/'}: expected {words}, got {type(data).__name__}")


def _plain_codec(words: str, kind: type, name: str) -> _Codec:
    def read(data: Any, place: str) -> Any:
        if isinstance(data, kind):
            return data
        raise _expected(words, data, place)

    return _Codec(read, lambda definitions: {"type": name})


def _read_whole(data: Any, place: str) -> Any:
    if isinstance(data, int) and not isinstance(data, bool) and abs(data) < LARGEST:
        return data
    raise _expected("a whole number", data, place)


def _read_finite(data: Any, place: str) -> Any:
    if isinstance(data, int | float) and not isinstance(data, bool) and abs(data) < LARGEST:  # NaN is not
        return data
    raise _expected("a number", data, place)


def _read_number(data: Any, place: str) -> Any:
    if isinstance(data, str) and data in NOT_FINITE:
        return float(data)
    if isinstance(data, float) and math.isfinite(data):
        return data
    return _read_finite(data, place)


_SIMPLE = {
    Any: _Codec(lambda data, place: data, lambda definitions: {}),
    int: _Codec(_read_whole, lambda definitions: {"type": "integer"}),
    float: _Codec(_read_number, lambda definitions: {"anyOf": [{"type": "number"}, {"enum": list(NOT_FINITE)}]}),
    bool: _plain_codec("true or false", bool, "boolean"),
    str: _plain_codec("a string", str, "string"),
    types.NoneType: _plain_codec("null", types.NoneType, "null"),
}


_FINITE = _Codec(_read_finite, lambda definitions: {"type": "number"})


@cache
def _codec(kind: Any, finite: bool = False) -> _Codec:
    if kind in _SIMPLE:
        return _FINITE if finite and kind is float else _SIMPLE[kind]
    if dataclasses.is_dataclass(kind):
        return _table(cast(type, kind))
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _union([_codec(one, finite) for one in arguments])
    if origin is Literal:
        return _literal(arguments)
    if origin is tuple:
        return _sequence(arguments, finite)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(_codec(arguments[1], finite))
    if origin is np.ndarray:
        return _Codec(_read_mask, lambda definitions: {"type": "object"})
    raise TypeError(f"no plain data for {kind}")


def _union(each: list[_Codec]) -> _Codec:
    def read(data: Any, place: str) -> Any:
        problem = None
        for codec in each:
            try:
                return codec.read(data, place)
            except Misshapen as error:
                problem = problem or error
        raise problem or _expected("nothing", data, place)

    def schema(definitions: dict[str, Schema]) -> Schema:
        parts = [codec.schema(definitions) for codec in each]
        kinds = [part.get("type") for part in parts]
        if all(len(part) == 1 for part in parts) and all(isinstance(one, str) for one in kinds):
            return {"type": kinds}
        return {"anyOf": [one for part in parts for one in (part["anyOf"] if list(part) == ["anyOf"] else [part])]}

    return _Codec(read, schema)


def _literal(values: tuple[Any, ...]) -> _Codec:
    def read(data: Any, place: str) -> Any:
        if not isinstance(data, list | dict) and data in values:
            return data
        raise _expected(f"one of {', '.join(map(str, values))}", data, place)

    return _Codec(read, lambda definitions: {"enum": list(values)})


def _sequence(arguments: tuple[Any, ...], finite: bool) -> _Codec:
    if arguments[1:] == (...,):
        one = _codec(arguments[0], finite)

        def read_all(data: Any, place: str) -> Any:
            if not isinstance(data, list):
                raise _expected("a list", data, place)
            return tuple([one.read(item, f"{place}/{index}") for index, item in enumerate(data)])

        return _Codec(read_all, lambda definitions: {"type": "array", "items": one.schema(definitions)})
    each = [_codec(argument, finite) for argument in arguments]

    def read(data: Any, place: str) -> Any:
        if not isinstance(data, list) or len(data) != len(each):
            raise _expected(f"a list of {len(each)}", data, place)
        return tuple([codec.read(data[index], f"{place}/{index}") for index, codec in enumerate(each)])

    def schema(definitions: dict[str, Schema]) -> Schema:
        parts = [codec.schema(definitions) for codec in each]
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}

    return _Codec(read, schema)


def _mapping(values: _Codec) -> _Codec:
    def read(data: Any, place: str) -> Any:
        if not isinstance(data, dict):
            raise _expected("an object", data, place)
        return {name: values.read(item, f"{place}/{name}") for name, item in data.items()}

    return _Codec(read, lambda definitions: {"type": "object", "additionalProperties": values.schema(definitions)})


def _read_mask(data: Any, place: str) -> Any:
    """Return bool (height, width)."""
    try:
        height, width = data["shape"]
        bits = np.frombuffer(zlib.decompress(base64.b64decode(data["bits"])), np.uint8)
        return np.unpackbits(bits, count=height * width).astype(bool).reshape(height, width)
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise Misshapen(f"{place}: not a mask: {error}") from error


def _bare(kind: Any) -> Any:
    """Return the type without None."""
    return reduce(operator.or_, [one for one in get_args(kind) if one is not types.NoneType])


def _table(kind: type) -> _Codec:
    hints = get_type_hints(kind)
    fields = [(field, field.metadata.get("none", "null")) for field in dataclasses.fields(kind)]
    shown = {f.name: hints[f.name] if none == "null" else _bare(hints[f.name]) for f, none in fields}

    def codec(field: dataclasses.Field[Any]) -> _Codec:
        return _codec(shown[field.name], "doc" in field.metadata)

    def read(data: Any, place: str) -> Any:
        if not isinstance(data, dict):
            raise _expected("an object", data, place)
        values = {}
        for field, none in fields:
            name = field.name
            if none == "spread":
                spread = any(part.name in data for part in dataclasses.fields(shown[name]))
                values[name] = codec(field).read(data, place) if spread else None
            elif name not in data and none != "absent":
                raise Misshapen(f"{place or '/'}: there is no {name}")
            elif name not in data or (none == "empty" and data[name] == {}):
                values[name] = None
            else:
                values[name] = codec(field).read(data[name], f"{place}/{name}")
        return kind(**values)

    def properties(definitions: dict[str, Schema]) -> tuple[Schema, list[str]]:
        described: Schema = {}
        required: list[str] = []
        for field, none in fields:
            own = codec(field).schema(definitions)
            if none == "spread":
                described |= definitions.pop(own["$ref"].rpartition("/")[2])["properties"]
                continue
            if none == "empty":
                own = {"anyOf": [own, {"type": "object", "maxProperties": 0}]}
            described[field.name] = ({"description": field.metadata["doc"]} if "doc" in field.metadata else {}) | own
            required += [] if none == "absent" else [field.name]
        return described, required

    def schema(definitions: dict[str, Schema]) -> Schema:
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # a dataclass may hold others of its own kind
            described, required = properties(definitions)
            doc = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
            definitions[kind.__name__] = {
                "description": doc, "type": "object", "properties": described, "required": required
            }  # fmt: skip
        return {"$ref": f"#/$defs/{kind.__name__}"}

    return _Codec(read, schema)
