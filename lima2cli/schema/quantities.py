"""What is wrong with a quantity, its unit, its number, its bounds, and what was probably meant."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lima2cli.declare import OutOfBounds, Quantity, Schema
from lima2cli.diagnostics import Diagnostic, Path
from lima2cli.names import nearest
from lima2cli.schema.words import got, sort, words
from lima2cli.units import UNITS, in_units, plain_spelling

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
"""Units that people write and the language has not, in small letters: quantity and factor."""

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


def quantity_of(schema: Schema) -> Quantity:
    """The declaration that a schema came from."""
    number = schema["anyOf"][0]
    return Quantity(schema["x-unit"], number.get("minimum"), number.get("exclusiveMinimum"))


def check_quantity(value: Any, schema: Any, at: Path) -> Diagnostic:
    """The diagnostic of a value that is known not to fit."""
    if sort(value) not in ("number", "text"):
        return Diagnostic("wrong-type", f"expected {words(schema)}, got {got(value)}", at)
    quantity = quantity_of(schema)
    try:
        quantity.parse(value)
    except OutOfBounds as problem:
        return Diagnostic("out-of-range", f"expected {problem}", at)
    except ValueError as problem:
        help = _help(value, quantity) if isinstance(value, str) else None
        return Diagnostic("bad-quantity", f"expected {problem}", at, help=help)
    raise AssertionError(f"{value!r} is a fit quantity")


def _help(text: str, quantity: Quantity) -> str | None:
    """What was probably meant; texts that would be refused again are not proposed."""
    text = plain_spelling(text).strip()
    if (turned := _TURNED.fullmatch(text)) is not None:
        text = f"{turned[2]} {turned[1]}"
    parts = _TEXT.fullmatch(text)
    if parts is None:
        return None
    numbers = [number + parts[2] for number in _numbers(parts[1])]
    proposed = [text for number in numbers for text in _proposals(number, parts[3], quantity) if _fits(text, quantity)]
    meant = f"did you mean {', or '.join(f'`{text}`' for text in dict.fromkeys(proposed))}?" if proposed else ""
    kind, _ = _known(parts[3], quantity.unit)
    if parts[3] and kind not in (None, quantity.unit):
        of_another = f"{parts[3]} is a unit of {KINDS[str(kind)]}, {KINDS[quantity.unit]} is needed"
        return f"{of_another}: {meant}" if meant else of_another
    return meant or None


def _fits(text: str, quantity: Quantity) -> bool:
    try:
        quantity.parse(text)
    except ValueError:
        return False
    return True


def _numbers(text: str) -> list[str]:
    """Readings of a number with commas and groups of digits: 12,4 is 12.4; 1,000 may be either."""
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
    elif kind is None and (meant := nearest(unit, own)) is not None:
        yield f"{number} {meant}"
    elif (convert := _CONVERSIONS.get((kind or "", quantity.unit))) is not None and value > 0:
        yield in_units(convert(value), quantity.unit)


def _known(unit: str, quantity: str) -> tuple[str | None, float]:
    """Quantity and factor of a unit: as the language writes it, in letters of another case, in other words."""
    exact = [(kind, factor) for kind, units in UNITS.items() for name, factor in units.items() if name == unit]
    folded = [
        (kind, factor)
        for kind, units in UNITS.items()
        for name, factor in units.items()
        if name.casefold() == unit.casefold()
    ]
    words = [_WORDS[word] for word in (unit, unit.casefold()) if word in _WORDS]
    found: list[tuple[str | None, float]] = [*exact, *words[: unit in _WORDS], *folded, *words]
    return next((it for it in found if it[0] == quantity), found[0] if found else (None, 0.0))
