"""Check plain data against the JSON Schema, and word every finding for users."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lima2cli.declare import LARGEST, Schema, closest
from lima2cli.declare.wording import SchemaFault, quantity_of, sort, sorts, word
from lima2cli.diagnostics import Diagnostic, Findings, KeyPath, Related, did_you_mean, nearest

if TYPE_CHECKING:
    from jsonschema import ValidationError


def check_keys(data: Mapping[Any, Any], schema: Schema, at: KeyPath) -> tuple[list[Diagnostic], set[KeyPath]]:
    """Return diagnostics, and the paths whose values must not be read.

    A key that was meant to be another one is reported once: the other is then neither missing nor default.
    """
    keys = _Keys(schema, data)
    diagnostics: list[Diagnostic] = []
    bad: set[KeyPath] = set()
    missing = dict.fromkeys(key for key in [*schema.get("required", ()), *keys.wanted] if key not in data)
    unknown = [key for key in data if key not in schema.get("properties", {})]
    for key in unknown:
        intended = nearest(str(key), missing) or (None if key in keys.later else nearest(str(key), keys.free))
        bad.add((*at, key))
        if intended is not None:
            missing.pop(intended, None)
            bad.add((*at, intended))
        diagnostics.append(_later(key, at) if key in keys.later else _unknown(key, intended, keys, at))
    for key in keys.unwanted:
        bad.add((*at, key))
        bad.update((*at, wanted) for wanted in keys.wanted)
        missing = {name: None for name in missing if name not in keys.wanted}
        diagnostics.append(_unwanted(key, keys, at))
    for key in missing:
        bad.add((*at, key))
        diagnostics.append(_missing(key, schema, at))
    kind_is_unknown = any(item.rule in ("unknown-kind", "not-available") for item in diagnostics)
    if len(keys.present) > 1:
        bad.update((*at, kind) for kind in keys.present)
        diagnostics.append(_several(keys, at))
    elif keys.kinds and not keys.present and not kind_is_unknown:
        diagnostics.append(_none(keys, at))
    return diagnostics, bad


class _Keys:
    """The keys of one mapping: kinds, those of them present, and allowed ones that are absent."""

    def __init__(self, schema: Schema, data: Mapping[Any, Any]) -> None:
        self.allowed: Mapping[str, Schema] = schema.get("properties", {})
        allowed = list(self.allowed)
        self.data = data
        self.what: str | None = schema.get("x-kind")
        self.later = schema.get("x-later", [])
        self.kinds = [key for key in allowed if key not in schema.get("x-beside", [])] if self.what else []
        self.present = [key for key in data if key in self.kinds]
        self.wanted, self.unwanted = self._neighbours(schema, data)
        absent = [key for key in allowed if key not in data]
        self.free = [key for key in absent if key not in self.kinds] if self.present else absent

    def _neighbours(self, schema: Schema, data: Mapping[Any, Any]) -> tuple[list[str], list[str]]:
        """Return the missing keys next to a kind, and those there that it does not take; one of any without kind."""
        neighbours = schema.get("x-beside", [])
        wanted = [key for kind in self.present for key in schema.get("dependentRequired", {}).get(kind, ())]
        joins = any(kind in schema.get("x-joins", ()) for kind in self.present)
        if not wanted and joins and all(key in data for key in neighbours):
            wanted = ["inputs"]
        if not wanted:
            return neighbours[: not any(key in data for key in neighbours)], []
        return wanted, [key for key in neighbours if key in data and key not in wanted]


def _unwanted(key: str, keys: _Keys, at: KeyPath) -> Diagnostic:
    kind, wanted = keys.present[0], keys.wanted[0]
    message = f"`{kind}` takes `{wanted}`, not `{key}`"
    return Diagnostic("wrong-input", message, (*at, key), on_key=True, help=_WIRED.get(wanted))


_WIRED = {"input": "it reads one flow or node", "inputs": "it reads flows or nodes by name: `inputs: {a: …, b: …}`"}


def _unknown(key: Any, intended: str | None, keys: _Keys, at: KeyPath) -> Diagnostic:
    slip = _slip(key, keys)
    if keys.what and not keys.present and (intended is None or intended in keys.kinds):
        message = f"there is no {keys.what} of kind `{key}`"
        help = slip or did_you_mean(str(key), [intended] if intended else keys.kinds)
        return Diagnostic("unknown-kind", message, (*at, key), on_key=True, help=help)
    help = slip or did_you_mean(str(key), [intended] if intended else keys.free)
    return Diagnostic("unknown-key", f"`{key}` is not a key of {_place(at)}", (*at, key), on_key=True, help=help)


def _slip(key: Any, keys: _Keys) -> str | None:
    """Return help for the typical mistakes behind an unknown key."""
    value, name, colon, rest = keys.data[key], *str(key).partition(":")
    if value is None and re.fullmatch(r"[0-9]+\s*(%|[^\W\d_]*)", str(key)):
        return "a comma ends the value before it: write decimals with a point"
    if value is None and colon and name in keys.allowed:
        return f"a space is missing: `{name}: {rest.strip()}`"
    if key == "type" and isinstance(value, str) and value in keys.kinds:
        return f"the kind is the key: `{value}: {{…}}`"
    inside = [kind for kind in keys.present if key in keys.allowed[kind].get("properties", {})]
    return f"it is a key of `{inside[0]}`: `{inside[0]}: {{{key}: …}}`" if inside else None


def _later(key: str, at: KeyPath) -> Diagnostic:
    message = f"`{key}` is part of the language, but not of this version"
    return Diagnostic("not-available", message, (*at, key), on_key=True)


def _missing(key: str, schema: Schema, at: KeyPath) -> Diagnostic:
    wanted = schema["properties"][key]
    help = f"add `{key}: {wanted['enum'][0]}`" if "enum" in wanted else f"{key}: {wanted['description']}"
    return Diagnostic("missing-key", f"{_place(at)} lacks the key `{key}`", at, on_key=True, help=help)


def _several(keys: _Keys, at: KeyPath) -> Diagnostic:
    first, *others = keys.present
    named = " and ".join(f"`{kind}`" for kind in keys.present)
    message = f"{_place(at)} has {len(keys.present)} kinds, {named}; exactly one is needed"
    related = (Related((*at, first), "the first"),)
    return Diagnostic("one-kind", message, (*at, others[0]), on_key=True, related=related)


def _none(keys: _Keys, at: KeyPath) -> Diagnostic:
    help = f"one of: {', '.join(keys.kinds)}"
    return Diagnostic("one-kind", f"{_place(at)} has no kind of {keys.what}", at, on_key=True, help=help)


def _place(at: KeyPath) -> str:
    """Return the mapping in words: `track` in /nodes/track."""
    return f"`{at[-1]}`" if at else "the pipeline"


def everything(data: Any) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every value of plain data with its path, mappings and lists before their members."""
    stack: list[tuple[KeyPath, Any]] = [((), data)]
    while stack:
        path, value = stack.pop()
        yield path, value
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        stack.extend(((*path, key), item) for key, item in reversed(list(items)))


Errors = Iterator["ValidationError"]


def check(
    data: Any, schema: Schema, findings: Findings, reported: frozenset[KeyPath] = frozenset()
) -> frozenset[KeyPath]:
    """Report all values that do not fit the schema; return the paths whose values must not be read.

    data      mappings with keys of strings, lists and scalars
    schema    of a `declare.Shape`
    reported  paths of which a mistake is known already; they are among the paths returned
    """
    bad = set(reported)
    faults = list(_faults(data, schema))
    nan = {fault.at for fault in faults if fault.keyword == "x-nan"}
    for diagnostic in _anywhere(data):
        if diagnostic.at not in nan:
            findings.add(diagnostic)
            bad.add(diagnostic.at)
    maps: set[KeyPath] = set()
    for fault in faults:
        if fault.at in nan:
            continue
        if fault.keyword in _OF_KEYS and fault.at not in maps:
            maps.add(fault.at)
            diagnostics, unread = check_keys(fault.value, fault.schema, fault.at)
            bad |= unread
        elif fault.keyword in _OF_KEYS or fault.at in bad:
            continue
        else:
            diagnostics = [word(fault)]
            bad.add(diagnostics[0].at)
        for one in diagnostics:
            findings.add(one)
    return frozenset(bad)


_OF_KEYS = ("required", "dependentRequired", "additionalProperties", "x-kind")


def _faults(data: Any, schema: Schema) -> Iterator[SchemaFault]:
    for error in _validator(schema).iter_errors(data):
        at: KeyPath = tuple(error.absolute_path)
        if "propertyNames" in error.schema_path:
            yield SchemaFault("propertyNames", error.instance, error.schema, (*at, error.instance))
        else:
            yield SchemaFault(str(error.validator), error.instance, error.schema, at)


def _anywhere(data: Any) -> Iterator[Diagnostic]:
    """Yield what is wrong anywhere: placeholders, characters that no file holds, and numbers that are none."""
    for at, value in everything(data):
        if at and isinstance(at[-1], str) and (words := unprintable(at[-1], _IN_KEYS)):
            message = f"the key {at[-1]!a} has {words}"
            yield Diagnostic("control-character", message, at, on_key=True, help="leave it out")
        if isinstance(value, str):
            if "REPLACEME" in value:
                yield Diagnostic("replaceme", "a placeholder was left in", at, help="put the real value here")
            elif words := unprintable(value, _IN_TEXTS):
                yield Diagnostic("control-character", f"the text has {words}", at, help="leave it out")
        elif isinstance(value, float) and not math.isfinite(value):
            yield Diagnostic("not-finite", f"expected a finite number, got {value}", at)
        elif isinstance(value, (int, float)) and abs(value) >= LARGEST:
            yield Diagnostic("out-of-range", "the number is too large", at)


_IN_TEXTS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters except tabs and line ends, and surrogate halves, which UTF-8 cannot encode."""

_IN_KEYS = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")


def unprintable(text: str, which: "re.Pattern[str]") -> str | None:
    """Return in words the first character of a string that files and terminals cannot take; None without one."""
    match = which.search(text)
    if match is None:
        return None
    what = "half a character" if match[0] >= "\ud800" else "the control character"
    return f"{what} U+{ord(match[0]):04X} at place {match.start() + 1}"


def _validator(schema: Schema) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    ours = {
        "anyOf": _alternative,
        "x-nan": _nan,
        "x-kind": _kind,
        "pattern": _pattern,
        "x-unit": _unit,
        "minProperties": _not_empty,
        "maxProperties": _elsewhere,
    }
    return extend(Draft202012Validator, ours)(schema)  # type: ignore[no-untyped-call]


def _alternative(validator: Any, options: list[Schema], instance: Any, schema: Schema) -> Errors:
    """Check the alternative that is meant, by the kind of YAML value."""
    from jsonschema import ValidationError

    if "x-unit" in schema:
        return
    if "x-parameter" in schema:  # where one stands has been reported, or it has been replaced
        yield from validator.descend(instance, options[0])
        return
    able = [option for option in options if sort(instance) in sorts(option)]
    if any(validator.evolve(schema=option).is_valid(instance) for option in able):
        return
    intended = able[closest(able, instance)] if able else {}
    if not intended or "enum" in intended:
        yield ValidationError("none of them")
    else:
        yield from validator.descend(instance, intended)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Schema) -> Errors:
    """Match to the end of the string, as JSON Schema does; Python's ``$`` would pass over a last newline."""
    from jsonschema import ValidationError

    if isinstance(instance, str) and re.search(re.sub(r"\$$", r"\\Z", pattern), instance) is None:
        yield ValidationError("pattern")


def _kind(validator: Any, what: str, instance: Any, schema: Schema) -> Errors:
    from jsonschema import ValidationError

    if not isinstance(instance, dict):
        return
    diagnostics, _ = check_keys(instance, schema, ())
    if diagnostics:
        yield ValidationError("keys")
    for kind, table in schema["properties"].items():
        if kind in instance and instance[kind] is None:
            yield from validator.descend({}, table, path=kind)  # null stands for "all defaults"


def _unit(validator: Any, unit: str, instance: Any, schema: Schema) -> Errors:
    from jsonschema import ValidationError

    try:
        if sort(instance) not in ("number", "text"):
            raise ValueError
        quantity_of(schema).parse(instance)
    except ValueError:
        yield ValidationError("quantity")


def _nan(validator: Any, may: bool, instance: Any, schema: Schema) -> Errors:
    """Report nothing, except a NaN that is not allowed."""
    from jsonschema import ValidationError

    if isinstance(instance, float) and math.isnan(instance):
        yield ValidationError("nan")


def _not_empty(validator: Any, least: int, instance: Any, schema: Schema) -> Errors:
    from jsonschema import ValidationError

    if isinstance(instance, dict) and len(instance) < least and "x-kind" not in schema:
        yield ValidationError("empty")


def _elsewhere(validator: Any, most: int, instance: Any, schema: Schema) -> Errors:
    """Report nothing for more than one kind, or one use; other checks report it."""
    from jsonschema import ValidationError

    if isinstance(instance, dict) and len(instance) > most > 1 and "propertyNames" in schema:
        yield ValidationError("many")
