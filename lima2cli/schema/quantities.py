"""What is wrong with a quantity: its unit, its number, its bounds."""

import re
from collections.abc import Mapping
from typing import Any

from lima2cli.declare import UNITS, OutOfBounds, Quantity, Schema
from lima2cli.diagnostics import Diagnostic, Path
from lima2cli.names import nearest
from lima2cli.schema.words import got, sort, words


def quantity_of(schema: Schema) -> Quantity:
    """The declaration that a schema came from."""
    number = schema["anyOf"][0]
    return Quantity(schema["x-unit"], number.get("minimum"), number.get("exclusiveMinimum"))


def check_quantity(value: Any, schema: Any, at: Path) -> Diagnostic:
    """The diagnostic of a value that is known not to fit."""
    units = UNITS[schema["x-unit"]]
    if sort(value) not in ("number", "text"):
        return Diagnostic("wrong-type", f"expected {words(schema)}, got {got(value)}", at)
    try:
        quantity_of(schema).parse(value)
    except OutOfBounds as problem:
        return Diagnostic("out-of-range", f"expected {problem}", at)
    except ValueError as problem:
        return Diagnostic("bad-quantity", f"expected {problem}", at, help=_unit_help(value, units))
    raise AssertionError(f"{value!r} is a fit quantity")


def _unit_help(value: Any, units: Mapping[str, float]) -> str | None:
    """The quantity with the unit that was probably meant; the base unit where none was given."""
    if not isinstance(value, str):
        return None
    parts = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)\s*([^\s0-9]\S*)?\s*", value)
    if parts is None or parts[2] in units:
        return None
    meant = nearest(parts[2], units) if parts[2] else next(unit for unit, factor in units.items() if factor == 1)
    return f"did you mean `{parts[1]} {meant}`?" if meant else None
