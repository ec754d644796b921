"""Values that are possible and probably not meant: a photon energy of 20 eV, a beam that passes far from the detector.

What is plausible is declared with each quantity (`Plausible`); the warning proposes the unit with which the number that
was written would be plausible.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from lima2cli.config.records import Metadata
from lima2cli.declare import Bad, Leaf, Plausible, Quantity, Shape
from lima2cli.diagnostics import Findings, Path
from lima2cli.spec import DetectorInfo
from lima2cli.units import NUMBER, UNITS, in_units, plain_spelling


def warn_of_implausible(shape: Shape, data: Any, bad: Bad, findings: Findings) -> None:
    """Report quantities that are not what they probably should be; ``data`` fit the shape but for ``bad``."""
    for leaf in shape.leaves(data, ()):
        quantity = leaf.shape
        if isinstance(quantity, Quantity) and quantity.plausible is not None and not _within(leaf.at, bad):
            _check(leaf, quantity, quantity.plausible, findings)


def _within(at: Path, bad: Bad) -> bool:
    return any(at[:end] in bad for end in range(len(at) + 1))


def _check(leaf: Leaf, quantity: Quantity, plausible: Plausible, findings: Findings) -> None:
    value = quantity.parse(leaf.value)
    if not value or plausible.least <= value <= plausible.most or (plausible.bare and isinstance(leaf.value, str)):
        return
    number, unit = _written(leaf.value, quantity.unit)
    meant = list(_meant(number, unit, quantity.unit, plausible))
    findings.warning(
        "implausible",
        f"`{leaf.at[-1]}` is {in_units(value, quantity.unit)}",
        leaf.at,
        notes=[
            f"plausible are {in_units(plausible.least, quantity.unit)} to {in_units(plausible.most, quantity.unit)}"
        ],
        help=f"did you mean {', or '.join(f'`{text}`' for text in meant)}?" if meant else None,
    )


def _written(value: int | float | str, quantity: str) -> tuple[str, str]:
    """The number and the unit of a value, the base unit where there is none."""
    if not isinstance(value, str):
        return f"{value:.15g}", next(unit for unit, factor in UNITS[quantity].items() if factor == 1)
    found = re.fullmatch(rf"\s*({NUMBER})\s*(\S+)\s*", plain_spelling(value))
    assert found is not None, "the value has been parsed"
    return found[1], found[2]


def _meant(number: str, unit: str, quantity: str, plausible: Plausible) -> Iterator[str]:
    """The number with units that make it plausible, the nearest first; those with a factor of 1000 before others."""
    units, written = UNITS[quantity], UNITS[quantity][unit]
    fits = [one for one, factor in units.items() if plausible.least <= float(number) * factor <= plausible.most]
    steps = {one: abs(math.log10(units[one] / written)) / 3 for one in fits}
    thousands = [one for one in fits if abs(steps[one] - round(steps[one])) < 1e-6]
    for one in sorted(thousands or fits, key=lambda one: steps[one])[:2]:
        yield f"{number} {one}"


def warn_of_beam_center(metadata: Metadata, info: DetectorInfo, findings: Findings) -> None:
    """Report a beam centre that lies further from the image than the image is long."""
    center, sensor = metadata.beam_center, info.sensor
    if center is None:
        return
    pitches = sensor.pixel_size or (math.nan, math.nan)
    axes = zip(("x", "y"), (center.x, center.y), (sensor.width, sensor.height), pitches, strict=True)
    for key, value, length, pitch in axes:
        if -length <= value <= 2 * length:
            continue
        findings.warning(
            "implausible",
            f"the beam centre is far outside of the image: {key} is {value:g}, the image has {length} pixels",
            ("metadata", "beam_center", key),
            notes=["the centre is in pixels, from the first one of the detector on"],
            help=_in_pixels(value, length, pitch),
        )


def _in_pixels(value: float, length: int, pitch: float) -> str | None:
    """The place in pixels, where it was probably written in um."""
    pixels = value * UNITS["metres"]["um"] / pitch
    return f"{value:g} um would be `{pixels:.6g}`" if 1 <= pixels < length else None
