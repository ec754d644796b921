"""Units of quantities, and how a text with one is read: ``16 MiB``, ``12.4 keV``, ``172 µm``."""

import re
from collections.abc import Mapping
from functools import cache

UNITS: Mapping[str, Mapping[str, float]] = {
    "bytes": {
        "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
        "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
    },
    "bits": {"bit": 1},
    "seconds": {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600},
    "hertz": {"Hz": 1, "kHz": 1e3, "MHz": 1e6},
    "metres": {"Å": 1e-10, "nm": 1e-9, "um": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1},
    "eV": {"eV": 1, "keV": 1e3, "MeV": 1e6},
}  # fmt: skip
"""Units by quantity, case-sensitive; plain numbers are in the unit of factor 1."""

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "u": ("\N{MICRO SIGN}", "\N{GREEK SMALL LETTER MU}"),
    "Å": ("\N{ANGSTROM SIGN}", "A\N{COMBINING RING ABOVE}"),
}
"""Characters that are read as another one."""

NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
"""A number without a sign, as texts with a unit have it."""

_SIGNED = re.compile(rf"\s*([-+]?{NUMBER})\s*([^\W\d_]+)\s*")


def plain_spelling(text: str) -> str:
    """The text with the characters of `SPELLINGS` replaced: ``µm`` as ``um``."""
    for plain, others in SPELLINGS.items():
        for other in others:
            text = text.replace(other, plain)
    return text


@cache
def pattern(quantity: str, *, signed: bool) -> str:
    """Regular expression of JSON Schema for texts of a quantity."""
    spelled = [unit for plain in UNITS[quantity] for unit in _spellings(plain)]
    return rf"^\s*{'[-+]?' if signed else ''}{NUMBER}\s*({'|'.join(spelled)})\s*$"


def _spellings(unit: str) -> list[str]:
    others = [unit.replace(plain, other) for plain, found in SPELLINGS.items() if plain in unit for other in found]
    return [unit, *others]


def parse(text: str, quantity: str) -> float:
    """The value of a text in base units; an int where a whole number of bytes or bits was written.

    Raises ValueError where the text is not a number with a unit of the quantity.
    """
    units = UNITS[quantity]
    match = _SIGNED.fullmatch(plain_spelling(text))
    if match is None or match[2] not in units:
        raise ValueError(f"a number with a unit ({', '.join(units)}), got `{text}`")
    number, factor = match[1], units[match[2]]
    if isinstance(factor, int) and number.lstrip("+-").isdigit():
        return int(number) * factor  # exact beyond 2**53
    return scaled(number, factor)


def scaled(number: str, factor: float) -> float:
    """A decimal number times a factor, rounded once where that is a power of ten: 172 um is 0.000172."""
    power = f"{factor:e}"
    if power.startswith("1.000000e"):
        mantissa, _, exponent = number.lower().partition("e")
        return float(f"{mantissa}e{int(exponent or 0) + int(power.partition('e')[2])}")
    return float(number) * factor


def in_units(value: float, quantity: str) -> str:
    """Return a value as it can be written: in the largest unit in which it is at least 1, in up to six digits."""
    by_factor = sorted(UNITS[quantity].items(), key=lambda item: -item[1])
    unit, factor = next((it for it in by_factor if value >= it[1] * (1 - 1e-9)), by_factor[-1])
    return f"{value / factor:.6g} {unit}"
