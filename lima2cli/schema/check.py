"""Plain data against the JSON Schema; every finding in words of ours.

jsonschema walks; the ``x-`` annotations of our schemas are keywords of the validator made here, so that
alternatives are resolved to the one that is meant, kinds are looked at as kinds, and quantities are parsed.
"""

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lima2cli.declare import LARGEST, Schema, closest
from lima2cli.diagnostics import Diagnostic, Findings, Path
from lima2cli.schema.keys import check_keys, everything
from lima2cli.schema.quantities import quantity_of
from lima2cli.schema.wording import Fault, word
from lima2cli.schema.words import sort, sorts

if TYPE_CHECKING:
    from jsonschema import ValidationError

Errors = Iterator["ValidationError"]


def check(data: Any, schema: Schema, findings: Findings, reported: frozenset[Path] = frozenset()) -> frozenset[Path]:
    """Report all that does not fit the schema; the paths whose values must not be read.

    data      maps with keys of text, lists and scalars
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
    maps: set[Path] = set()
    for fault in faults:
        if fault.at in nan:
            continue
        if fault.keyword in _OF_KEYS and fault.at not in maps:
            maps.add(fault.at)
            found, unread = check_keys(fault.value, fault.schema, fault.at)
            bad |= unread
        elif fault.keyword in _OF_KEYS or fault.at in bad:
            continue
        else:
            found = [word(fault)]
            bad.add(found[0].at)
        for one in found:
            findings.add(one)
    return frozenset(bad)


_OF_KEYS = ("required", "dependentRequired", "additionalProperties", "x-kind")


def _faults(data: Any, schema: Schema) -> Iterator[Fault]:
    for error in _validator(schema).iter_errors(data):
        at: Path = tuple(error.absolute_path)
        if "propertyNames" in error.schema_path:
            yield Fault("propertyNames", error.instance, error.schema, (*at, error.instance))
        else:
            yield Fault(str(error.validator), error.instance, error.schema, at)


def _anywhere(data: Any) -> Iterator[Diagnostic]:
    """What is wrong wherever it stands: placeholders, characters that no file holds, and numbers that are none."""
    for at, value in everything(data):
        if at and isinstance(at[-1], str) and (found := unprintable(at[-1], _IN_KEYS)):
            message = f"the key {at[-1]!a} has {found}"
            yield Diagnostic("control-character", message, at, on_key=True, help="leave it out")
        if isinstance(value, str):
            if "REPLACEME" in value:
                yield Diagnostic("replaceme", "a placeholder was left in", at, help="put the real value here")
            elif found := unprintable(value, _IN_TEXTS):
                yield Diagnostic("control-character", f"the text has {found}", at, help="leave it out")
        elif isinstance(value, float) and not math.isfinite(value):
            yield Diagnostic("not-finite", f"expected a finite number, got {value}", at)
        elif isinstance(value, (int, float)) and abs(value) >= LARGEST:
            yield Diagnostic("out-of-range", "the number is too large", at)


_IN_TEXTS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters but for tabs and ends of lines, and halves of characters, which UTF-8 has not."""

_IN_KEYS = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")


def unprintable(text: str, which: "re.Pattern[str]") -> str | None:
    """The first character of a text that files and terminals cannot take, in words."""
    found = which.search(text)
    if found is None:
        return None
    what = "half a character" if found[0] >= "\ud800" else "the control character"
    return f"{what} U+{ord(found[0]):04X} at place {found.start() + 1}"


def _validator(schema: Schema) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    ours = {
        "anyOf": _meant,
        "x-nan": _nan,
        "x-kind": _kind,
        "pattern": _pattern,
        "x-unit": _unit,
        "minProperties": _not_empty,
        "maxProperties": _said,
    }
    return extend(Draft202012Validator, ours)(schema)  # type: ignore[no-untyped-call]


def _meant(validator: Any, options: list[Schema], instance: Any, schema: Schema) -> Errors:
    """Of several alternatives check the one that is meant, by the kind of YAML value."""
    from jsonschema import ValidationError

    if "x-unit" in schema:
        return
    if "x-parameter" in schema:  # where one stands has been reported, or it has been replaced
        yield from validator.descend(instance, options[0])
        return
    able = [option for option in options if sort(instance) in sorts(option)]
    if any(validator.evolve(schema=option).is_valid(instance) for option in able):
        return
    meant = able[closest(able, instance)] if able else {}
    if not meant or "enum" in meant:
        yield ValidationError("none of them")
    else:
        yield from validator.descend(instance, meant)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Schema) -> Errors:
    """Its end is the end of the text, as JSON Schema has it; Python's ``$`` would pass over a last newline."""
    from jsonschema import ValidationError

    if isinstance(instance, str) and re.search(re.sub(r"\$$", r"\\Z", pattern), instance) is None:
        yield ValidationError("pattern")


def _kind(validator: Any, what: str, instance: Any, schema: Schema) -> Errors:
    from jsonschema import ValidationError

    if not isinstance(instance, dict):
        return
    found, _ = check_keys(instance, schema, ())
    if found:
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
    """No mistake, but where a NaN stands that is allowed."""
    from jsonschema import ValidationError

    if isinstance(instance, float) and math.isnan(instance):
        yield ValidationError("nan")


def _not_empty(validator: Any, least: int, instance: Any, schema: Schema) -> Errors:
    from jsonschema import ValidationError

    if isinstance(instance, dict) and len(instance) < least and "x-kind" not in schema:
        yield ValidationError("empty")


def _said(validator: Any, most: int, instance: Any, schema: Schema) -> Errors:
    """Of one kind, or one use, other checks say it."""
    from jsonschema import ValidationError

    if isinstance(instance, dict) and len(instance) > most > 1 and "propertyNames" in schema:
        yield ValidationError("many")
