"""What may be written, and what was, in words: "expected <words>, got <got>"."""

from collections.abc import Mapping
from typing import Any, Literal

from lima2cli.declare import Schema
from lima2cli.names import NAME

Sort = Literal["map", "list", "text", "number", "flag", "nothing"]

_SORTS: Mapping[str, Sort] = {
    "object": "map",
    "array": "list",
    "string": "text",
    "integer": "number",
    "number": "number",
    "boolean": "flag",
    "null": "nothing",
}

_EXAMPLES = {
    "bytes": "16 MiB",
    "bits": "256 bit",
    "seconds": "1 ms",
    "hertz": "1 kHz",
    "metres": "75 um",
    "eV": "12.4 keV",
}

_PATTERNS = {
    NAME: "a name: a letter, then letters, digits, - and _",
}


def sort(value: Any) -> Sort:
    """The kind of YAML value."""
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, dict):
        return "map"
    if isinstance(value, list):
        return "list"
    return "nothing" if value is None else "text"


def sorts(schema: Schema) -> frozenset[Sort]:
    """The kinds of YAML value that a schema takes; all where it does not say."""
    if "anyOf" in schema:
        return frozenset().union(*(sorts(option) for option in schema["anyOf"]))
    if "enum" in schema:
        return frozenset(sort(value) for value in schema["enum"])
    types = schema.get("type", list(_SORTS))
    return frozenset(_SORTS[name] for name in ([types] if isinstance(types, str) else types))


def words(schema: Schema) -> str:
    """What the schema asks for."""
    if "x-words" in schema:
        return str(schema["x-words"])
    if "x-unit" in schema:
        unit = schema["x-unit"]
        return f"a number of {unit}{_limits(schema['anyOf'][0])}, or a text such as `{_EXAMPLES[unit]}`"
    if "anyOf" in schema:
        return ", or ".join(words(option) for option in schema["anyOf"])
    if "enum" in schema:
        values = [str(value) for value in schema["enum"]]
        return f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    types = schema.get("type", "any")
    return _words_of_type(types if isinstance(types, str) else types[0], schema)


def _words_of_type(name: str, schema: Schema) -> str:
    if name == "object":
        return _words_of_map(schema)
    if name == "array":
        return "a list of at least one item" if schema.get("minItems") else "a list"
    if name == "string":
        return _PATTERNS.get(schema.get("pattern", ""), "a text")
    plain = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
    return plain.get(name, "a value") + _limits(schema)


def _words_of_map(schema: Schema) -> str:
    beside = schema.get("x-beside", [])
    keys = [key for key in schema.get("properties", {}) if key not in beside]
    if "x-kind" in schema:
        return f"a map with one kind of {schema['x-kind']} ({', '.join(keys)})"
    if not keys:
        return "a map of at least one named thing" if schema.get("minProperties") else "a map of named things"
    return "a map with the keys " + ", ".join(keys)


def _limits(schema: Schema) -> str:
    low, high, above = (schema.get(key) for key in ("minimum", "maximum", "exclusiveMinimum"))
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    if low is not None:
        return f" of at least {low:g}"
    if high is not None:
        return f" of at most {high:g}"
    return f" above {above:g}" if above is not None else ""


def got(value: Any) -> str:
    """What was written, shortened."""
    kind = sort(value)
    if kind == "text":
        return f"text `{_short(str(value))}`" if value else "an empty text"
    if kind in ("map", "list"):
        return f"a {kind}" if value else f"an empty {kind}"
    if kind == "flag":
        return "true" if value else "false"
    return "nothing" if kind == "nothing" else _short(f"{value}")


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
