"""One diagnostic for each way in which a value does not fit its schema."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lima2cli.declare import Schema
from lima2cli.diagnostics import Diagnostic, Path
from lima2cli.names import nearest
from lima2cli.schema.quantities import check_quantity
from lima2cli.schema.words import got, sort, sorts, words


@dataclass(frozen=True)
class Fault:
    """A value that breaks a keyword of the schema at a path."""

    keyword: str
    value: Any
    schema: Schema
    at: Path


def word(fault: Fault) -> Diagnostic:
    """The fault in words."""
    return _WORDING[fault.keyword](fault)


def _expected(fault: Fault) -> str:
    return f"expected {words(fault.schema)}, got {got(fault.value)}"


def _wrong_type(fault: Fault) -> Diagnostic:
    return Diagnostic("wrong-type", _expected(fault), fault.at, help=_slip(fault.value, fault.schema))


def _slip(value: Any, schema: Schema) -> str | None:
    """The typical mistakes behind a value of another sort."""
    found, wanted = sort(value), sorts(schema)
    if found == "map" and "text" in wanted and len(value) == 1 and next(iter(value.values())) is None:
        return f'quote it: "{{{next(iter(value))}}}"'
    if found == "text" and "x-kind" in schema and value in schema["properties"]:
        return f"write it as a map: {{{value}: {{}}}}"
    if found == "text" and "flag" in wanted and value.lower() in ("yes", "no", "on", "off"):
        return f"did you mean `{'true' if value.lower() in ('yes', 'on') else 'false'}`?"
    if found in ("number", "flag") and wanted == {"text"} and "enum" not in schema:
        return f'quote it: "{str(value).lower()}"'
    return "write a list: [ … ]" if wanted == {"list"} else None


def _out_of_range(fault: Fault) -> Diagnostic:
    return Diagnostic("out-of-range", _expected(fault), fault.at)


def _too_many(fault: Fault) -> Diagnostic:
    most = fault.schema["maxItems" if fault.keyword == "maxItems" else "maxProperties"]
    message = f"{len(fault.value)} are too many, at most {most} can stand here"
    return Diagnostic("too-many", message, fault.at, on_key=True)


def _unknown_value(fault: Fault) -> Diagnostic:
    known = [str(value) for option in fault.schema.get("anyOf", [fault.schema]) for value in option.get("enum", ())]
    if not known or sort(fault.value) not in sorts(fault.schema):
        return _wrong_type(fault)
    meant = nearest(str(fault.value), known)
    return Diagnostic("unknown-value", _expected(fault), fault.at, help=f"did you mean `{meant}`?" if meant else None)


def _bad_text(fault: Fault) -> Diagnostic:
    rule = "bad-name" if words(fault.schema).startswith("a name") else "bad-text"
    return Diagnostic(rule, _expected(fault), fault.at)


def _bad_name(fault: Fault) -> Diagnostic:
    name = str(fault.value)
    dashed = re.sub("[^A-Za-z0-9]+", "-", name).strip("-")
    help = f"for example `{dashed}`" if re.search(fault.schema["pattern"], dashed) else None
    message = f"`{name}` is not {words(fault.schema | {'type': 'string'})}"
    return Diagnostic("bad-name", message, fault.at, on_key=True, help=help)


_WORDING: Mapping[str, Callable[[Fault], Diagnostic]] = {
    "type": _wrong_type,
    "enum": _unknown_value,
    "anyOf": _unknown_value,
    "x-unit": lambda fault: check_quantity(fault.value, fault.schema, fault.at),
    "propertyNames": _bad_name,
    "pattern": _bad_text,
    "minLength": _bad_text,
    "minimum": _out_of_range,
    "maximum": _out_of_range,
    "exclusiveMinimum": _out_of_range,
    "minItems": _out_of_range,
    "maxItems": _too_many,
    "maxProperties": _too_many,
    "minProperties": _out_of_range,
}
