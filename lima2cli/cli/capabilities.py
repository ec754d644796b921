"""Capabilities of detectors as tables, and of one that is configured as its record."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lima2cli.units import in_units

if TYPE_CHECKING:
    from lima2cli.detectors.base import Capabilities, DetectorConfig
    from lima2cli.spec import DetectorInfo, Files


def facts(can: "Capabilities") -> list[tuple[str, str]]:
    """What a detector can do, a line each: what, and how far."""
    many, (x, y) = "any number", can.granularity
    parts = "no" if not can.extraction else "any" if (x, y) == (1, 1) else f"in units of {x} x {y} pixels"
    return [
        ("image", "any size" if can.largest is None else f"up to {can.largest[0]} x {can.largest[1]} pixels"),
        ("dtypes", _named(can.dtypes, "not told")),
        ("bit depths", _named(can.bit_depths, "any")),
        ("datasets", str(can.datasets or many)),
        ("modules", str(can.modules or many)),
        ("data channels of a module", str(can.channels or many)),
        ("triggers", _named(can.triggers, "none")),
        ("frames per trigger", f"up to {can.frames_per_trigger}" if can.frames_per_trigger else many),
        ("operations on frames", _named(can.operations, "none")),
        ("binnings", _named([f"{one} x {other}" for one, other in can.binnings], "any") if _bins(can) else "none"),
        ("exposures summed", _exposures(can)),
        ("shutter", _yes(can.shutter)),
        ("parts of the image", parts),
        ("places modules in the frame", _yes(can.reconstruction)),
        ("alignment", "any" if can.alignment is None else f"up to {can.alignment} bits"),
        ("waits for receivers", _yes(can.can_wait)),
        ("frames lie in memory of", _named(can.buffers, "none")),
        ("memory is allocated by", f"the {can.owner}"),
    ]


def _bins(can: "Capabilities") -> bool:
    return "binning" in can.operations


def _exposures(can: "Capabilities") -> str:
    if "accumulation" not in can.operations:
        return "1"
    return "any number" if can.accumulation is None else f"up to {can.accumulation}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _named(values: Sequence[Any], none: str) -> str:
    return ", ".join(map(str, values)) or none


SHORT = (
    "triggers",
    "operations on frames",
    "datasets",
    "bit depths",
    "data channels of a module",
    "waits for receivers",
)
"""What a list of kinds tells."""


def compared(kinds: Mapping[str, "Capabilities"]) -> list[str]:
    """A table of kinds, with what matters most of each."""
    rows: list[tuple[str, ...]] = [("", *SHORT)]
    for kind, can in kinds.items():
        known = dict(facts(can))
        rows.append((kind, *(known[name] for name in SHORT)))
    return columns(rows)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, as wide as what stands in it."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def record_text(config: "DetectorConfig", info: "DetectorInfo") -> str:
    """The capability record of a configured detector, JSON."""
    from lima2cli.detectors.capabilities import write_record

    return json.dumps(write_record(info, config.retrieve(info)), indent=2, ensure_ascii=False)


def configured_text(config: "DetectorConfig", info: "DetectorInfo") -> str:
    """A configured detector for people: what it is, its modules and datasets, and what it can do."""
    count = len(info.modules)
    head = f"{info.name}: {config.kind}, {info.width} x {info.height} pixels, {count} module{'s' * (count != 1)}"
    versions = [f"{what} {version}" for what, version in info.versions.items()]
    pitches = [in_units(pitch, "metres") for pitch in info.pixel_size or ()]
    size = ["pixels of " + " x ".join(pitches)] if pitches else []
    said = ["; ".join([*size, *versions])] if size or versions else []
    datasets = [
        ("dataset", "dtype", "bits", "threshold"),
        *((it.name, it.dtype, str(it.bits), _energy(it.threshold_ev)) for it in info.datasets),
    ]
    modules = [("module", "place"), *((str(number), str(rect)) for number, rect in enumerate(info.modules))]
    tables = (columns(datasets), columns(modules), columns([("capability", ""), *facts(config.retrieve(info))]))
    return "\n".join([head, *said, *("\n" + "\n".join(table) for table in tables)])


def _energy(threshold_ev: float | None) -> str:
    return "" if threshold_ev is None else in_units(threshold_ev, "eV")


def default_record(table: type, files: "Files") -> dict[str, Any] | None:
    """The record of a kind with all defaults; None where these alone make no detector."""
    from lima2cli.declare import params
    from lima2cli.detectors.capabilities import write_record
    from lima2cli.errors import Misfit

    if any(declared.required for declared in params(table).values()):
        return None
    config: DetectorConfig = table()
    try:
        info = config.described(files)
    except Misfit:
        return None
    return write_record(info, config.retrieve(info))
