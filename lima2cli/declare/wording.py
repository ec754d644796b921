"""Describe mistakes in values: "expected <words>, got <got>"."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.declare.scalars import OutOfBounds, Quantity, Schema, Shape, Sort, sort
from lima2cli.diagnostics import NAME, TITLE, Diagnostic, KeyPath, nearest
from lima2cli.units import UNITS, in_units, plain_spelling

_SORTS: Mapping[str, Sort] = {
    "object": "mapping",
    "array": "list",
    "string": "string",
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
    TITLE: "a name in one line, without `:` and `/`",
}


def sorts(schema: Schema) -> frozenset[Sort]:
    """Return the kinds of YAML value that a schema takes; all where the schema names none."""
    if "anyOf" in schema:
        return frozenset().union(*(sorts(option) for option in schema["anyOf"]))
    if "enum" in schema:
        return frozenset(sort(value) for value in schema["enum"])
    types = schema.get("type", list(_SORTS))
    return frozenset(_SORTS[name] for name in ([types] if isinstance(types, str) else types))


def words(schema: Schema) -> str:
    """Return in words the value that the schema asks for."""
    if "x-words" in schema:
        return str(schema["x-words"])
    if "x-unit" in schema:
        unit = schema["x-unit"]
        return f"a number of {unit}{_limits(schema['anyOf'][0])}, or a string such as `{_EXAMPLES[unit]}`"
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
        return _words_of_list(schema.get("minItems", 0), schema.get("maxItems"))
    if name == "string":
        return _PATTERNS.get(schema.get("pattern", ""), "a string")
    plain = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
    return plain.get(name, "a value") + _limits(schema)


def _words_of_list(least: int, most: int | None) -> str:
    if not least:
        return "a list"
    if least == most:
        return f"a list of {least} items"
    return f"a list of at least {least} items" if least > 1 else "a list of at least one item"


def _words_of_map(schema: Schema) -> str:
    neighbours = schema.get("x-beside", [])
    keys = [key for key in schema.get("properties", {}) if key not in neighbours]
    if "x-kind" in schema:
        return f"a mapping with one kind of {schema['x-kind']} ({', '.join(keys)})"
    if not keys:
        return "a mapping with at least one name" if schema.get("minProperties") else "a mapping of names"
    return "a mapping with the keys " + ", ".join(keys)


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
    """Return the written value, shortened."""
    kind = sort(value)
    if kind == "string":
        return f"the string `{_short(str(value))}`" if value else "an empty string"
    if kind in ("mapping", "list"):
        return f"a {kind}" if value else f"an empty {kind}"
    if kind == "flag":
        return "true" if value else "false"
    return "nothing" if kind == "nothing" else _short(f"{value}")


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


KINDS: Mapping[str, str] = {
    "bytes": "a size", "bits": "an alignment", "seconds": "a time", "hertz": "a rate",
    "metres": "a length", "eV": "an energy",
}  # fmt: skip
"""Quantities in words."""

_WORDS: Mapping[str, tuple[str, float]] = {
    "sec": ("seconds", 1), "secs": ("seconds", 1), "second": ("seconds", 1), "seconds": ("seconds", 1),
    "msec": ("seconds", 1e-3), "usec": ("seconds", 1e-6), "nsec": ("seconds", 1e-9), "ps": ("seconds", 1e-12),
    "mins": ("seconds", 60), "minute": ("seconds", 60), "minutes": ("seconds", 60), "hr": ("seconds", 3600),
    "hour": ("seconds", 3600), "hours": ("seconds", 3600), "d": ("seconds", 86400), "day": ("seconds", 86400),
    "days": ("seconds", 86400), "fps": ("hertz", 1), "ghz": ("hertz", 1e9), "pm": ("metres", 1e-12),
    "micron": ("metres", 1e-6), "microns": ("metres", 1e-6), "km": ("metres", 1e3), "a": ("metres", 1e-10),
    "angstrom": ("metres", 1e-10), "angstroms": ("metres", 1e-10), "metre": ("metres", 1), "metres": ("metres", 1),
    "meter": ("metres", 1), "meters": ("metres", 1), "gev": ("eV", 1e9), "byte": ("bytes", 1), "bytes": ("bytes", 1),
    "bits": ("bits", 1), "k": ("bytes", 2**10), "m": ("bytes", 2**20), "g": ("bytes", 2**30), "t": ("bytes", 2**40),
    "pb": ("bytes", 10**15), "pib": ("bytes", 2**50), "mHz": ("hertz", 1e-3), "meV": ("eV", 1e-3),
}  # fmt: skip
"""Units that people write and the language does not have, in lower case: quantity and factor."""

_PLANCK = 1.2398419843320026e-6
"""Energy times wavelength of a photon, in eV m."""

_CONVERSIONS: Mapping[tuple[str, str], Callable[[float], float]] = {
    ("seconds", "hertz"): lambda time: 1 / time,
    ("hertz", "seconds"): lambda rate: 1 / rate,
    ("metres", "eV"): lambda wavelength: _PLANCK / wavelength,
    ("eV", "metres"): lambda energy: _PLANCK / energy,
    ("bytes", "bits"): lambda size: 8 * size,
    ("bits", "bytes"): lambda size: size / 8,
}

_TEXT = re.compile(
    r"([0-9][0-9.,_' \u00a0\u2009\u202f]*|[.,][0-9]+)"  # a number, with groups of digits
    r"((?:[eE][-+]?[0-9]+(?![0-9]))?)\s*([^\W\d_]*)\.?"
)
_TURNED = re.compile(r"([^\W\d_]+)\s*([0-9].*)")


def check_quantity(value: Any, quantity: Quantity, at: KeyPath) -> Diagnostic:
    """Return the diagnostic of a value that is known not to fit.

    Raises: AssertionError where it fits.
    """
    if sort(value) not in ("number", "string"):
        return Diagnostic("wrong-type", f"expected {words(quantity.described)}, got {got(value)}", at)
    try:
        quantity.parse(value)
    except OutOfBounds as problem:
        return Diagnostic("out-of-range", f"expected {problem}", at)
    except ValueError as problem:
        help = _help(value, quantity) if isinstance(value, str) else None
        return Diagnostic("bad-quantity", f"expected {problem}", at, help=help)
    raise AssertionError(f"{value!r} is a fit quantity")


def _help(text: str, quantity: Quantity) -> str | None:
    """Propose the value probably meant; strings that would be refused again are not proposed."""
    text = plain_spelling(text).strip()
    if (turned := _TURNED.fullmatch(text)) is not None:
        text = f"{turned[2]} {turned[1]}"
    parts = _TEXT.fullmatch(text)
    if parts is None:
        return None
    numbers = [number + parts[2] for number in _numbers(parts[1])]
    proposed = [text for number in numbers for text in _proposals(number, parts[3], quantity) if _fits(text, quantity)]
    proposal = f"did you mean {', or '.join(f'`{text}`' for text in dict.fromkeys(proposed))}?" if proposed else ""
    kind, _ = _known(parts[3], quantity.unit)
    if parts[3] and kind not in (None, quantity.unit):
        of_another = f"{parts[3]} is a unit of {KINDS[str(kind)]}, {KINDS[quantity.unit]} is needed"
        return f"{of_another}: {proposal}" if proposal else of_another
    return proposal or None


def _fits(text: str, quantity: Quantity) -> bool:
    try:
        quantity.parse(text)
    except ValueError:
        return False
    return True


def _numbers(text: str) -> list[str]:
    """Return readings of a number with commas and groups of digits: 12,4 is 12.4; 1,000 may be either."""
    plain = re.sub(r"[_'\s]", "", text)
    if "," not in plain:
        return [plain] if plain.count(".") < 2 else []
    if "." in plain:
        last = max(plain.rfind("."), plain.rfind(","))
        return [re.sub("[.,]", "", plain[:last]) + "." + plain[last + 1 :]]
    whole = plain.replace(",", "")
    if plain.count(",") > 1:
        return [whole]
    point = plain.replace(",", ".").removesuffix(".")
    return [whole, point] if re.fullmatch("[1-9][0-9]{0,2},[0-9]{3}", plain) else [point]


def _proposals(number: str, unit: str, quantity: Quantity) -> Iterator[str]:
    own = UNITS[quantity.unit]
    if not unit or unit in own:
        yield f"{number} {unit or next(name for name, factor in own.items() if factor == 1)}"
        return
    kind, factor = _known(unit, quantity.unit)
    value = float(number) * factor
    if kind == quantity.unit and factor in own.values():
        yield f"{number} {next(name for name, one in own.items() if one == factor)}"
    elif kind == quantity.unit:
        yield in_units(value, kind)
    elif kind is None and (proposal := nearest(unit, own)) is not None:
        yield f"{number} {proposal}"
    elif (convert := _CONVERSIONS.get((kind or "", quantity.unit))) is not None and value > 0:
        yield in_units(convert(value), quantity.unit)


def _known(unit: str, quantity: str) -> tuple[str | None, float]:
    """Return quantity and factor of a unit: as the language writes it, in letters of another case, in other words."""
    exact = [(kind, factor) for kind, units in UNITS.items() for name, factor in units.items() if name == unit]
    folded = [
        (kind, factor)
        for kind, units in UNITS.items()
        for name, factor in units.items()
        if name.casefold() == unit.casefold()
    ]
    words = [_WORDS[word] for word in (unit, unit.casefold()) if word in _WORDS]
    readings: list[tuple[str | None, float]] = [*exact, *words[: unit in _WORDS], *folded, *words]
    return next((reading for reading in readings if reading[0] == quantity), readings[0] if readings else (None, 0.0))


@dataclass(frozen=True)
class Fault:
    """A value that breaks a keyword of its shape's schema."""

    keyword: str
    value: Any
    shape: Shape
    at: KeyPath

    @property
    def schema(self) -> Schema:
        """Return the schema that is broken."""
        return self.shape.described


def diagnose(fault: Fault) -> Diagnostic:
    """Return the fault as a diagnostic in words."""
    return _WORDING[fault.keyword](fault)


def _expected(fault: Fault) -> str:
    return f"expected {words(fault.schema)}, got {got(fault.value)}"


def _wrong_type(fault: Fault) -> Diagnostic:
    return Diagnostic("wrong-type", _expected(fault), fault.at, help=_slip(fault.value, fault.schema))


def _slip(value: Any, schema: Schema) -> str | None:
    """Return help for the typical mistakes behind a value of another sort."""
    actual, wanted = sort(value), sorts(schema)
    if actual == "mapping" and "string" in wanted and len(value) == 1 and next(iter(value.values())) is None:
        return f'quote it: "{{{next(iter(value))}}}"'
    if actual == "string" and "x-kind" in schema and value in schema["properties"]:
        return f"write it as a mapping: {{{value}: {{}}}}"
    if actual == "string" and "flag" in wanted and value.lower() in ("yes", "no", "on", "off"):
        return f"did you mean `{'true' if value.lower() in ('yes', 'on') else 'false'}`?"
    if actual in ("number", "flag") and wanted == {"string"} and "enum" not in schema:
        return f'quote it: "{str(value).lower()}"'
    if actual == "string" and "number" in wanted and re.fullmatch(r"[+-]?\d[\d_]*(\.\d*)?(e[+-]?\d+)?", value.lower()):
        plain = value.replace("_", "")
        return f"write `{plain}`" + (", without quotes" if plain == value else ": YAML has no numbers with `_`")
    return "write a list: [ … ]" if wanted == {"list"} else None


def _out_of_range(fault: Fault) -> Diagnostic:
    return Diagnostic("out-of-range", _expected(fault), fault.at)


def _too_few(fault: Fault) -> Diagnostic:
    if not fault.value:
        return _out_of_range(fault)
    return Diagnostic("out-of-range", f"expected {words(fault.schema)}, got {len(fault.value)}", fault.at)


def _bad_quantity(fault: Fault) -> Diagnostic:
    assert isinstance(fault.shape, Quantity)
    return check_quantity(fault.value, fault.shape, fault.at)


def _too_many(fault: Fault) -> Diagnostic:
    most = fault.schema["maxItems" if fault.keyword == "maxItems" else "maxProperties"]
    message = f"{len(fault.value)} are too many, at most {most} are allowed here"
    return Diagnostic("too-many", message, fault.at, on_key=True)


_MEANT = {
    "mean": "avg", "average": "avg", "stddev": "std", "sigma": "std", "rms": "std", "minimum": "min", "maximum": "max",
    "total": "sum", "count": "valid", "off": "none", "no": "none", "false": "none", "raw": "none",
    "bitshuffle": "bslz4", "bitshuffle-lz4": "bslz4", "deflate": "gzip", "zstandard": "zstd",
    "x": "horizontal", "y": "vertical",
}  # fmt: skip
"""Words of other programs for values of the language."""


def _unknown_value(fault: Fault) -> Diagnostic:
    known = [str(value) for option in fault.schema.get("anyOf", [fault.schema]) for value in option.get("enum", ())]
    if not known or sort(fault.value) not in sorts(fault.schema):
        return _wrong_type(fault)
    meant = _MEANT.get(str(fault.value).lower())
    near = meant if meant in known else nearest(str(fault.value), known)
    return Diagnostic("unknown-value", _expected(fault), fault.at, help=f"did you mean `{near}`?" if near else None)


def _bad_text(fault: Fault) -> Diagnostic:
    rule = "bad-name" if words(fault.schema).startswith("a name") else "bad-text"
    return Diagnostic(rule, _expected(fault), fault.at)


def bad_name(name: str, pattern: str, at: KeyPath) -> Diagnostic:
    """Return the diagnostic of a name that breaks the pattern of names."""
    dashed = re.sub("[^A-Za-z0-9]+", "-", name).strip("-")
    help = f"for example `{dashed}`" if re.search(pattern, dashed) else None
    message = f"`{name}` is not {words({'type': 'string', 'pattern': pattern})}"
    return Diagnostic("bad-name", message, at, on_key=True, help=help)


_WORDING: Mapping[str, Callable[[Fault], Diagnostic]] = {
    "type": _wrong_type,
    "enum": _unknown_value,
    "anyOf": _unknown_value,
    "x-unit": _bad_quantity,
    "pattern": _bad_text,
    "minLength": _bad_text,
    "minimum": _out_of_range,
    "maximum": _out_of_range,
    "exclusiveMinimum": _out_of_range,
    "minItems": _too_few,
    "maxItems": _too_many,
    "maxProperties": _too_many,
    "minProperties": _out_of_range,
}
