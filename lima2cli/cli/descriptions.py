"""Kinds of node and detector without a pipeline: the text, the parameters, and the distribution that brings each."""

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.declare import Either, ListOf, MapOf, OneKind, Param, Shape, Short, Table, params
from lima2cli.declare.wording import words
from lima2cli.detectors.base import Capabilities
from lima2cli.plugins import Kind


@dataclass(frozen=True)
class Parameter:
    """A key below a kind; ``key`` is its path, such as ``rois.<name>.rect.x``.

    value    what may be written, in words;  unit   of a plain number, None where it has none
    default  plain data, None where there is none
    """

    key: str
    value: str
    required: bool
    default: Any
    unit: str | None
    doc: str


@dataclass(frozen=True)
class Description:
    """A kind in words. ``line`` is one sentence, ``text`` everything, with formulae."""

    kind: str
    role: str
    origin: str
    line: str
    text: str
    parameters: tuple[Parameter, ...]
    capabilities: Capabilities | None


def describe_kind(name: str, kind: Kind[Any]) -> Description:
    """Return the description of a kind that has a table."""
    table = kind.table
    assert table is not None
    class_text = inspect.cleandoc(table.__doc__ or "")
    return Description(
        kind=name,
        role=getattr(table, "role", "source"),  # a detector has none
        origin=str(kind.origin),
        line=" ".join(class_text.split("\n\n")[0].split()),
        text=_module_text(name, table) or class_text,
        parameters=tuple(_parameters("", Table(table))),
        capabilities=getattr(table, "capabilities", None),
    )


def _module_text(name: str, table: type) -> str:
    """Return the docstring of a module that is about this kind alone; else nothing."""
    text = inspect.cleandoc(sys.modules[table.__module__].__doc__ or "")
    head, _, rest = text.partition(f" `{name}`: ")
    return rest[:1].upper() + rest[1:] if head in ("Node", "Detector") else ""


def _parameters(path: str, shape: Shape) -> Iterator[Parameter]:
    """Yield all keys that a value of this shape may have, outer ones first."""
    if isinstance(shape, Table):
        fields = {field.name: field for field in dataclasses.fields(shape.table)}
        for key, declared in params(shape.table).items():
            yield _parameter(path + key, declared, fields[key])
            yield from _parameters(f"{path}{key}.", declared.shape)
    elif isinstance(shape, OneKind):
        for kind, table in shape.kinds().items():
            yield from _parameters(f"{path}{kind}.", Table(table))
    elif isinstance(shape, MapOf):
        yield from _parameters(f"{path}<name>.", shape.item)
    elif isinstance(shape, ListOf):
        yield from _parameters(f"{path}<n>.", shape.item)
    elif isinstance(shape, Either):
        for option in shape.shapes[:1] if isinstance(shape, Short) else shape.shapes:
            yield from _parameters(path, option)


def _parameter(key: str, declared: Param, field: "dataclasses.Field[Any]") -> Parameter:
    schema = declared.shape.schema()
    default = None if declared.required else plain_default(field)
    return Parameter(key, words(schema), declared.required, default, schema.get("x-unit"), declared.doc)


def plain_default(field: "dataclasses.Field[Any]") -> Any:
    """Return the default of a key as plain data; None where it has none."""
    return _plain(field.default if field.default_factory is dataclasses.MISSING else field.default_factory())


def _plain(value: Any) -> Any:
    """Return a default as it would be written."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {value.kind: {}} if hasattr(value, "kind") else {}
    if isinstance(value, dict):
        return {name: _item(item) for name, item in value.items()}
    return [_item(item) for item in value] if isinstance(value, tuple) else value


def _item(value: Any) -> Any:
    """Return one item of a list or mapping, with all its keys that have a value."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    values = {key: getattr(value, key) for key in params(type(value))}
    values = {key: item for key, item in values.items() if item is not None}
    return {value.kind: values} if hasattr(value, "kind") else values
