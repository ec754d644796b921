"""``lima2 nodes`` and ``lima2 detectors``: kinds listed, and one shown with its parameters and capabilities."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lima2cli.cli.border import Debug, ExitCode, border, show_error
from lima2cli.cli.completion import detector_kinds, node_kinds
from lima2cli.units import in_units

if TYPE_CHECKING:
    from lima2cli.cli.descriptions import Description, Parameter
    from lima2cli.detectors.base import Capabilities, DetectorConfig
    from lima2cli.frames import DetectorInfo, Files
    from lima2cli.plugins import Kind


def facts(can: "Capabilities") -> list[tuple[str, str]]:
    """Return the capabilities of a detector, a line each: what, and how far."""
    many, (x, y) = "any number", can.granularity
    parts = "no" if not can.extraction else "any" if (x, y) == (1, 1) else f"in units of {x} x {y} pixels"
    return [
        ("image", "any size" if can.largest is None else f"up to {can.largest[0]} x {can.largest[1]} pixels"),
        ("dtypes", _named(can.dtypes, "not stated")),
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
"""Properties in a list of kinds."""


def compared(kinds: Mapping[str, "Capabilities"]) -> list[str]:
    """Return a table of kinds, with what matters most of each."""
    rows: list[tuple[str, ...]] = [("", *SHORT)]
    for kind, can in kinds.items():
        known = dict(facts(can))
        rows.append((kind, *(known[name] for name in SHORT)))
    return columns(rows)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, columns as wide as their contents."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def record_text(config: "DetectorConfig", info: "DetectorInfo") -> str:
    """Return the capability record of a configured detector, JSON."""
    from lima2cli.detectors.capability_record import write_record

    return json.dumps(write_record(info, config.retrieve(info)), indent=2, ensure_ascii=False)


def configured_text(config: "DetectorConfig", info: "DetectorInfo") -> str:
    """Return a configured detector for users: what it is, its modules and datasets, and what it can do."""
    count = len(info.modules)
    head = f"{info.name}: {config.kind}, {info.width} x {info.height} pixels, {count} module{'s' * (count != 1)}"
    versions = [f"{what} {version}" for what, version in info.versions.items()]
    pitches = [in_units(pitch, "metres") for pitch in info.pixel_size or ()]
    size = ["pixels of " + " x ".join(pitches)] if pitches else []
    facts_of_size = ["; ".join([*size, *versions])] if size or versions else []
    datasets = [
        ("dataset", "dtype", "bits", "threshold"),
        *((dataset.name, dataset.dtype, str(dataset.bits), _energy(dataset.threshold_ev)) for dataset in info.datasets),
    ]
    modules = [("module", "place"), *((str(number), str(rect)) for number, rect in enumerate(info.modules))]
    tables = (columns(datasets), columns(modules), columns([("capability", ""), *facts(config.retrieve(info))]))
    return "\n".join([head, *facts_of_size, *("\n" + "\n".join(table) for table in tables)])


def _energy(threshold_ev: float | None) -> str:
    return "" if threshold_ev is None else in_units(threshold_ev, "eV")


def default_record(table: type, files: "Files") -> dict[str, Any] | None:
    """Return the record of a kind with all defaults; None where these alone make no detector."""
    from lima2cli.declare import params
    from lima2cli.detectors.capability_record import write_record
    from lima2cli.errors import NodeMisuse

    if any(declared.required for declared in params(table).values()):
        return None
    config: DetectorConfig = table()
    try:
        info = config.described(files)
    except NodeMisuse:
        return None
    return write_record(info, config.retrieve(info))


class KindFormat(StrEnum):
    """Formats of kinds."""

    TEXT = "text"
    JSON = "json"


KindFormatOption = Annotated[KindFormat, typer.Option("--format", help="Format of the output.")]


def list_kinds(kinds: Mapping[str, "Kind[Any]"], key: str, format: KindFormat) -> None:
    """Print a line for each kind; those that cannot be used are warned of."""
    from lima2cli.cli.descriptions import describe_kind

    descriptions = [describe_kind(name, kind) for name, kind in kinds.items() if kind.table is not None]
    problems = [kind.problem for kind in kinds.values() if kind.problem is not None]
    if format is KindFormat.JSON:
        listed = [
            {"kind": description.kind, "role": description.role, "origin": description.origin, "doc": description.line}
            for description in descriptions
        ]
        warnings = [{"rule": problem.rule, "message": str(problem), "help": problem.help} for problem in problems]
        print(json.dumps({"version": 1, key: listed, "warnings": warnings}, indent=2, ensure_ascii=False), flush=True)
        return
    rows = [(description.kind, description.role, description.origin, description.line) for description in descriptions]
    print("\n".join(columns(rows)))
    sys.stdout.flush()
    for problem in problems:
        print(f"warning[{problem.rule}]: {problem}\n = help: {problem.help}", file=sys.stderr)


def show_kind(
    what: str, name: str, kinds: Mapping[str, "Kind[Any]"], format: KindFormat, later: Sequence[str] = ()
) -> None:
    """Show everything that is known of one kind. Exit code 1: it cannot be used, 2: there is none."""
    from lima2cli.cli.descriptions import describe_kind
    from lima2cli.diagnostics import did_you_mean

    as_json, kind = format is KindFormat.JSON, kinds.get(name)
    if kind is None:
        if name in later:
            show_error("not-available", f"`{name}` is part of the language, but not available in this version", as_json)
        else:
            show_error("unknown-kind", f"there is no {what} of kind `{name}`", as_json, did_you_mean(name, kinds))
        raise typer.Exit(ExitCode.USAGE)
    if kind.problem is not None or kind.table is None:
        assert kind.problem is not None
        show_error(kind.problem.rule, str(kind.problem), as_json, kind.problem.help)
        raise typer.Exit(ExitCode.PROBLEMS)
    description = describe_kind(name, kind)
    print(_as_json(description, kind.table) if as_json else _as_text(description), flush=True)


def _as_json(found: "Description", table: type) -> str:
    from lima2cli.declare import Table
    from lima2cli.inputs.stacks import FileStore

    fields = asdict(found)
    if found.capabilities is None:
        del fields["capabilities"]
    elif (record := default_record(table, FileStore(Path(".")))) is not None:
        fields["record"] = record
    return json.dumps({"version": 1, **fields, "schema": Table(table).schema()}, indent=2, ensure_ascii=False)


def _as_text(found: "Description") -> str:
    parts = [f"{found.kind}: {found.role}, {found.origin}", found.text.replace("``", "`")]
    parts.append("\n".join(["Parameters", *map(_parameter_text, found.parameters)]))
    if found.capabilities is not None:
        parts.append("\n".join(["Capabilities", *("  " + line for line in columns(facts(found.capabilities)))]))
    return "\n\n".join(parts)


def _parameter_text(parameter: "Parameter") -> str:
    if parameter.required:
        default = "; required"
    else:
        default = "" if parameter.default is None else f"; default {said(parameter.default)}"
    return f"  {parameter.key}: {parameter.value}{default}\n      {parameter.doc}"


def said(value: Any) -> str:
    """Return a default as it is written."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


nodes = typer.Typer(help="Kinds of node: built in, and of installed packages.", no_args_is_help=True)


@nodes.command("list")
def list_nodes(format: KindFormatOption = KindFormat.TEXT, debug: Debug = False) -> None:
    """List the kinds of node: kind, role, origin, purpose."""
    with border(as_json=format is KindFormat.JSON, debug=debug):
        from lima2cli.nodes.registry import NODES

        list_kinds(NODES.all(), "nodes", format)


@nodes.command("show")
def show_node(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="Kind of node, such as roi_counters.", autocompletion=node_kinds)
    ],
    format: KindFormatOption = KindFormat.TEXT,
    debug: Debug = False,
) -> None:
    """Show what a node does, with its formulae and parameters.

    Exit code 0: fine, 1: the package that provides it is broken, 2: there is no such kind.
    """
    with border(as_json=format is KindFormat.JSON, debug=debug):
        from lima2cli.nodes.registry import LANGUAGE, NODES

        show_kind("node", kind, NODES.named([kind]), format, LANGUAGE)


detectors = typer.Typer(help="Kinds of detector: built in, and of installed packages.", no_args_is_help=True)


@detectors.command("list")
def list_detectors(format: KindFormatOption = KindFormat.TEXT, debug: Debug = False) -> None:
    """List the kinds of detector, and their capabilities."""
    with border(as_json=format is KindFormat.JSON, debug=debug):
        from lima2cli.detectors.base import DETECTORS

        kinds = DETECTORS.all()
        list_kinds(kinds, "detectors", format)
        known = {name: can for name, kind in kinds.items() if (can := getattr(kind.table, "capabilities", None))}
        if format is KindFormat.TEXT:
            print("\n" + "\n".join(compared(known)), flush=True)


@detectors.command("show")
def show_detector(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND | FILE",
            help="Kind of detector, such as remu; or a pipeline, whose detector is shown.",
            autocompletion=detector_kinds,
        ),
    ],
    format: KindFormatOption = KindFormat.TEXT,
    debug: Debug = False,
) -> None:
    """Show a kind of detector: parameters and capabilities.

    For a pipeline (a name with a dot or a slash): its detector as configured; as JSON its capability record.

    Exit code 0: fine, 1: the package that provides it is broken, or the pipeline has problems, 2: there is no such
    kind.
    """
    with border(as_json=format is KindFormat.JSON, debug=debug):
        from lima2cli.detectors.base import DETECTORS

        if "." in kind or "/" in kind:
            _show_configured(kind, as_json=format is KindFormat.JSON)
            return
        show_kind("detector", kind, DETECTORS.named([kind]), format)


def _show_configured(file: str, *, as_json: bool) -> None:
    """Show the detector of a pipeline, or what is wrong with the pipeline."""
    import sys

    from lima2cli.cli.border import Format as Diagnostics
    from lima2cli.cli.reading import check_file, show_all

    checked = check_file(file)
    if checked.findings.failed or checked.pipeline is None:
        print(show_all([checked], Diagnostics.TEXT), end="", file=sys.stderr, flush=True)
        raise typer.Exit(ExitCode.PROBLEMS)
    config, info = checked.pipeline.config, checked.pipeline.detector.sensor
    print(record_text(config, info) if as_json else configured_text(config, info), flush=True)
