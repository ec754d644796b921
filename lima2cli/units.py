"""Units of quantities, as users write them and as people read them."""

import re
from collections.abc import Mapping, Sequence
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

HC = 12398.419843320026
"""Planck's constant times the speed of light, eV angstrom (CODATA 2018; both are exact)."""

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "u": ("\N{MICRO SIGN}", "\N{GREEK SMALL LETTER MU}"),
    "Å": ("\N{ANGSTROM SIGN}", "A\N{COMBINING RING ABOVE}"),
}
"""Characters that are read as another one."""

NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
"""Pattern of a number without a sign, as strings with a unit have it."""

_SIGNED = re.compile(rf"\s*([-+]?{NUMBER})\s*([^\W\d_]+)\s*")


def plain_spelling(text: str) -> str:
    """Return the string with the characters of `SPELLINGS` replaced: ``µm`` as ``um``."""
    for plain, others in SPELLINGS.items():
        for other in others:
            text = text.replace(other, plain)
    return text


@cache
def pattern(quantity: str, *, signed: bool) -> str:
    """Return the regular expression of JSON Schema for strings of a quantity."""
    spelled = [unit for plain in UNITS[quantity] for unit in _spellings(plain)]
    return rf"^\s*{'[-+]?' if signed else ''}{NUMBER}\s*({'|'.join(spelled)})\s*$"


def _spellings(unit: str) -> list[str]:
    others = [unit.replace(plain, other) for plain, found in SPELLINGS.items() if plain in unit for other in found]
    return [unit, *others]


def parse(text: str, quantity: str) -> float:
    """Return the value of a string in base units; an int where a whole number of bytes or bits was written.

    Raises: ValueError where the string is not a number with a unit of the quantity.
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
    """Return a decimal number times a factor, rounded once where that is a power of ten: 172 um is 0.000172."""
    power = f"{factor:e}"
    if power.startswith("1.000000e"):
        mantissa, _, exponent = number.lower().partition("e")
        return float(f"{mantissa}e{int(exponent or 0) + int(power.partition('e')[2])}")
    return float(number) * factor


def in_units(value: float, quantity: str) -> str:
    """Return a value as it can be written: in the largest unit in which it is at least 1, in up to six digits."""
    by_factor = sorted(UNITS[quantity].items(), key=lambda item: -item[1])
    unit, factor = next((candidate for candidate in by_factor if value >= candidate[1] * (1 - 1e-9)), by_factor[-1])
    return f"{value / factor:.6g} {unit}"


_BYTES = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_BYTE_RATES = (("TB/s", 1e12), ("GB/s", 1e9), ("MB/s", 1e6))
_HERTZ = (("GHz", 1e9), ("MHz", 1e6), ("kHz", 1e3), ("Hz", 1.0))
_SECONDS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))

ABSENT = "-"
"""Stand-in for a figure that is not known."""


def grouped(number: int) -> str:
    """Return digits in groups of three: 500 000."""
    return f"{number:,}".replace(",", " ")


def count_text(number: int | None) -> str:
    """Return a count, in groups of three digits from five digits on; ``?`` where it is not known."""
    if number is None:
        return "?"
    return grouped(number) if abs(number) >= 10_000 else str(number)


def frames_text(number: int) -> str:
    """Return a count of frames: 1 frame, 25 000 frames."""
    return counted_text(number, "frame")


def counted_text(number: int, noun: str) -> str:
    """Return a count of things whose plural ends in s: 1 packet, 25 000 packets."""
    return f"{count_text(number)} {noun}{'s' * (number != 1)}"


def exact_size(size: int) -> str:
    """Return a number of bytes as it can be written in a pipeline, in the largest binary unit that comes out whole."""
    for unit, factor in _BYTES:
        if size and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{grouped(size)} bytes"


def size_text(size: float | None) -> str:
    """Return a number of bytes: exact while that is short (48 MiB, 500 000 bytes), else four digits (10.97 TiB)."""
    if size is None:
        return "?"
    whole = int(size)
    for unit, factor in _BYTES:
        if whole and whole % factor == 0 and abs(whole) < 10_240 * factor:
            return f"{whole // factor} {unit}"
    if abs(whole) < 100 * 2**20:
        return f"{grouped(whole)} bytes"
    unit, factor = next((unit, factor) for unit, factor in _BYTES if abs(whole) >= 0.99995 * factor)
    return f"{_digits(whole / factor, 4)} {unit}"


def volume_text(size: float | None) -> str:
    """Return about how many bytes something has: 1.94 MiB, 13 bytes."""
    if size is None:
        return "?"
    return _in_units(size, (*_BYTES, ("bytes", 1)), 3)


def rate_text(bytes_per_s: float | None) -> str:
    """Return bytes per second, with a digit behind the point: 2.5 GB/s, 0.1 MB/s."""
    if bytes_per_s is None:
        return ABSENT
    unit, factor = next(rate for rate in _BYTE_RATES if abs(bytes_per_s) >= rate[1] or rate is _BYTE_RATES[-1])
    return f"{bytes_per_s / factor:.1f} {unit}"


def hertz_text(hertz: float | None, digits: int = 3) -> str:
    """Return a rate of frames or events: 1.5 kHz."""
    return _in_units(hertz, _HERTZ, digits)


def seconds_text(seconds: float | None, digits: int = 3) -> str:
    """Return a time: 2.59 s, 13 us; from two minutes on 2 min 5 s, 3 h 12 min, 2 d 3 h."""
    if seconds is None or abs(seconds) < 119.5:
        return _in_units(seconds, _SECONDS, digits)
    whole, sign = round(abs(seconds)), "-" if seconds < 0 else ""
    if whole < 2 * 3600:
        large, small, units = *divmod(whole, 60), ("min", "s")
    elif whole < 48 * 3600:
        large, small, units = *divmod(whole // 60, 60), ("h", "min")
    else:
        large, small, units = *divmod(whole // 3600, 24), ("d", "h")
    return f"{sign}{large} {units[0]}" + (f" {small} {units[1]}" if small else "")


def _in_units(value: float | None, units: Sequence[tuple[str, float]], digits: int) -> str:
    """Return the value in the largest of some units, largest first, in which it is at least 1 once it is rounded."""
    if value is None:
        return ABSENT
    if not value:
        return f"0 {next(unit for unit, factor in units if factor == 1)}"
    least = 1 - 0.5 * 10**-digits
    unit, factor = next((candidate for candidate in units if abs(value) >= least * candidate[1]), units[-1])
    return f"{_digits(value / factor, digits)} {unit}"


def _digits(value: float, digits: int) -> str:
    """Return so many significant digits, and no power of ten for large values."""
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e+" in text else text


def which_text(number: int, of: int) -> str:
    """Return which one of several it is: ``3 of 20``, or ``3`` where these have no end (``of`` 0)."""
    return f"{number} of {of}" if of else str(number)
