"""The pipeline as it is understood: long forms, all defaults, graphs expanded; each value with its origin."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.declare import Either, ListOf, MapOf, OneKind, Param, Shape, Short, Table, params
from lima2cli.declare.reading import Reading
from lima2cli.diagnostics import Findings, KeyPath
from lima2cli.document import Document, Place, YamlNode, plain
from lima2cli.language.pipeline import Pipeline
from lima2cli.language.schema import pipeline_shape
from lima2cli.nodes.registry import WIRING, NodeEntry

DEFAULT, RESOLVED = "default", "resolved"
"""Origins of values that nobody wrote: the default of the schema, and what follows from the rest of the pipeline."""

Origin = Place | str


@dataclass(frozen=True)
class Value:
    """A scalar, or a mapping or list of values, and where it comes from."""

    content: "Any | dict[str, Value] | list[Value]"
    origin: Origin

    @property
    def data(self) -> Any:
        """Return it as plain data."""
        if isinstance(self.content, dict):
            return {key: value.data for key, value in self.content.items()}
        return [value.data for value in self.content] if isinstance(self.content, list) else self.content

    def leaves(self, path: KeyPath = ()) -> Iterator[tuple[KeyPath, "Value"]]:
        """Yield the scalars, and the mappings and lists without members, with their paths."""
        held: Any = self.content
        items = held.items() if isinstance(held, dict) else enumerate(held) if isinstance(held, list) else ()
        if not held or not isinstance(held, dict | list):
            yield path, self
        for key, value in items:
            yield from value.leaves((*path, key))


def resolve_pipeline(document: Document, pipeline: Pipeline) -> Value:
    """Return a pipeline without mistakes as it is understood; it compiles to the same plan, from the same folder.

    ``document``: the one that ``pipeline`` was read from, its graphs expanded.
    """
    shape = pipeline_shape(document.data, Findings())
    whole = _completed(shape, document.root)
    assert isinstance(whole.content, dict)
    content = {key: value for key, value in whole.content.items() if key != "graphs"}
    derived = {
        "name": pipeline.name,
        "receivers": {name: as_written(table) for name, table in pipeline.receivers.items()},
        "flows": {name: _flow(pipeline, name) for name in pipeline.flows},
    }
    merged = {key: _with_derived(content.get(key), value) for key, value in derived.items()}
    order = params(shape.table)  # the order of the manual
    return Value({key: {**content, **merged}[key] for key in order if key in content or key in merged}, whole.origin)


def _flow(pipeline: Pipeline, name: str) -> dict[str, Any]:
    """Return what is resolved of a flow: all of it where flows are not written."""
    flow = pipeline.flows[name]
    names = list(pipeline.receivers)
    own: dict[str, Any] = as_written(flow)
    at = [f"{names[place.receiver]}.{place.memspace}" for place in flow.places]
    dataset = pipeline.detector.datasets[flow.index].name
    return {"dataset": dataset, **own, "buffers": {**own["buffers"], "at": at}, "overrun": flow.overrun}


def _with_derived(value: Value | None, derived: Any) -> Value:
    """Return a value with all that is absent of it taken from resolved data. Those replace a list or scalar default."""
    if value is None or (isinstance(derived, dict) and not isinstance(value.content, dict)):
        return _value(derived, RESOLVED if value is None else value.origin)
    if isinstance(value.content, dict) and isinstance(derived, dict):
        missing = {key: _value(item, RESOLVED) for key, item in derived.items() if key not in value.content}
        held = {
            key: _with_derived(item, derived[key]) if key in derived else item for key, item in value.content.items()
        }
        return Value(held | missing, value.origin)
    if isinstance(derived, list) and not isinstance(value.content, list):
        return _value(derived, value.origin)
    return value


def _value(data: Any, origin: Origin) -> Value:
    """Return plain data as a value, all of one origin."""
    if isinstance(data, dict):
        return Value({key: _value(item, origin) for key, item in data.items()}, origin)
    return Value([_value(item, origin) for item in data], origin) if isinstance(data, list) else Value(data, origin)


def _completed(shape: Shape, node: YamlNode) -> Value:
    """Return what is written, as the shape reads it, with defaults."""
    if isinstance(shape, Short):
        picked = shape.pick(plain(node))
        if picked is not None and picked is not shape.shapes[0]:
            return _spelled_out(shape, picked, node)
        return _completed(shape.shapes[0], node)
    if isinstance(shape, Either):
        picked = shape.pick(plain(node))
        return _written(node) if picked is None else _completed(picked, node)
    if isinstance(shape, Table):
        return _table(shape, node)
    if isinstance(shape, OneKind | NodeEntry) and isinstance(node.content, dict):
        return _kind(shape.kinds(), node)
    if isinstance(shape, MapOf) and isinstance(node.content, dict):
        return Value({key: _completed(shape.item, child) for key, child in node.content.items()}, node.at)
    if isinstance(shape, ListOf) and isinstance(node.content, list):
        return Value([_completed(shape.item, child) for child in node.content], node.at)
    return _written(node)


def _written(node: YamlNode) -> Value:
    content = node.content
    if isinstance(content, dict):
        return Value({key: _written(child) for key, child in content.items()}, node.at)
    return Value([_written(child) for child in content] if isinstance(content, list) else content, node.at)


def _spelled_out(shape: Short, picked: Shape, node: YamlNode) -> Value:
    """Return the long form of a short one; where that repeats the value as it is, as it was written."""
    value = picked.read(plain(node), (), Reading(Findings()))
    made = shape.make(value)
    if isinstance(picked, Table):
        return _value(as_written(made, shape.shapes[0]), node.at)
    kept = {name: _written(node) for name in params(type(made)) if getattr(made, name) is value}
    return Value({key: kept.get(key) or _value(item, node.at) for key, item in as_written(made).items()}, node.at)


def _kind(kinds: Mapping[str, Any], node: YamlNode) -> Value:
    """Return what is written as ``kind: {parameters}``, and what stands next to it."""
    made = {}
    assert isinstance(node.content, dict)
    for key, child in node.content.items():
        table = kinds.get(key)
        if key in WIRING or table is None:
            made[key] = _written(child)
        elif hasattr(table, "spelled_out"):
            long = Table(table).read(plain(child), (), Reading(Findings()))
            made[long.kind] = _value(as_written(long), child.at)
        else:
            made[key] = _table(Table(table), child)
    return Value(made, node.at)


def _table(shape: Table, node: YamlNode) -> Value:
    """Return a table with its defaults; what is null has all of them."""
    written = node.content if isinstance(node.content, dict) else {}
    made = {}
    for key, declared, default in _declared(shape.table):
        inner = shape.shapes.get(key, declared.shape)
        if key in written:
            made[key] = _completed(inner, written[key])
        elif default is not None:
            made[key] = _value(as_written(default, inner), DEFAULT)
    return Value(made, node.at)


def _declared(table: type) -> Iterator[tuple[str, Param, Any]]:
    """Yield key, declaration and default of each parameter; None where there is none."""
    for one in dataclasses.fields(table):
        if "param" in one.metadata:
            factory, default = one.default_factory, one.default
            made = factory() if factory is not MISSING else None if default is MISSING else default
            yield one.name, one.metadata["param"], made


def as_written(value: Any, shape: Shape | None = None) -> Any:
    """Return typed values as users write them, without those that are None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        made = {
            key: as_written(held, declared.shape)
            for key, declared in params(type(value)).items()
            if (held := getattr(value, key)) is not None
        }
        return {getattr(value, "kind", ""): made} if _by_kind(shape, value) else made
    if isinstance(value, Mapping):
        inner = shape.item if isinstance(shape, MapOf) else None
        return {key: as_written(item, inner) for key, item in value.items()}
    if isinstance(value, tuple | list):
        inner = shape.item if isinstance(shape, ListOf) else None
        return [as_written(item, inner) for item in value]
    return value


def _by_kind(shape: Shape | None, value: Any) -> bool:
    """Return True if a value of this shape is written with its kind."""
    if isinstance(shape, Either):
        return any(_by_kind(one, value) for one in shape.shapes)
    return isinstance(shape, OneKind) and hasattr(value, "kind")
