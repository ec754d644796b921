"""Turn a document into a pipeline: fill defaults, resolve names, report every mistake of both.

The pipeline is the input of the plan. Values reported as wrong are `POISON` in it, so that later checks skip them and
nothing else.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePath
from string import Formatter
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.declare.reading import Reading, everything
from lima2cli.detectors.base import Capabilities, DetectorConfig
from lima2cli.diagnostics import POISON, Findings, KeyPath, Poisoned, Related, attempt, nearest
from lima2cli.document import Document, plain
from lima2cli.errors import FileProblem, NodeMisuse
from lima2cli.frames import DetectorInfo, Files
from lima2cli.language.checks import (
    check_axes,
    check_description,
    check_directory_name,
    check_flows,
    check_placement,
    check_synchronisation,
    operated_detector,
    warn_of_beam_center,
    warn_of_implausible,
)
from lima2cli.language.definitions import with_named_inputs
from lima2cli.language.flows import resolve_flows, warn_of_idle_receivers
from lima2cli.language.records import Acquisition, Flow, GraphNode, HostMemspace, Metadata, Output, ReceiverTable
from lima2cli.language.schema import pipeline_shape
from lima2cli.language.wiring import resolve_nodes
from lima2cli.units import seconds_text


@dataclass(frozen=True)
class Pipeline:
    """The whole pipeline. Receivers are numbered in the order of ``receivers``.

    config    the detector as the user wrote it;  detector  as it describes itself
    nodes     in topological order: a node comes after the nodes that it reads; else as written
    """

    name: str
    description: str | None
    metadata: Metadata
    config: DetectorConfig
    detector: DetectorInfo
    acquisition: Acquisition
    receivers: Mapping[str, ReceiverTable]
    flows: Mapping[str, Flow]
    nodes: Mapping[str, GraphNode]
    output: Output


def parse(document: Document, findings: Findings, files: Files) -> Pipeline:
    """Return the pipeline that a document describes; `POISON` stands for values that are wrong and have been reported.

    ``files`` are asked for the shapes of recorded frames where the detector is described by a file.
    """
    document = with_named_inputs(document)
    shape = pipeline_shape(document.data, findings)
    reading = Reading(findings, set(document.bad))
    table = shape.read(document.data, (), reading)
    _report_secrets(reading.secrets, findings)
    if table is POISON:
        return Pipeline(*[POISON] * 10)
    warn_of_implausible(reading, findings)
    known = attempt(lambda: _retrieve(table.detector, document, files, findings))
    sensor, can = attempt(lambda: known[0]), attempt(lambda: known[1])
    receivers = _receivers(table.receivers)
    attempt(lambda: check_placement(receivers, findings))
    attempt(lambda: _check_acquisition(table.acquisition, findings))
    attempt(lambda: warn_of_beam_center(table.metadata, sensor, findings))
    attempt(lambda: check_axes(table.metadata, findings))
    attempt(lambda: check_synchronisation(table.acquisition, can, sensor, findings))
    info = attempt(lambda: operated_detector(table.acquisition, can, sensor, findings))
    output = attempt(lambda: _output(table.output, findings))
    name = attempt(lambda: table.name or name_of_file(document.file))
    attempt(lambda: check_directory_name(name, output, findings))
    attempt(lambda: _check_repeat(table.acquisition, output, info, findings))
    attempt(lambda: _check_recorded(table.acquisition, info, findings))
    flows = attempt(lambda: resolve_flows(table.flows, info, receivers, findings))
    attempt(lambda: check_flows(flows, can, info, findings))
    nodes = attempt(lambda: resolve_nodes(table.nodes, flows, info, findings))
    attempt(lambda: warn_of_idle_receivers(receivers, flows, findings))
    return Pipeline(
        name=name,
        description=table.description,
        metadata=table.metadata,
        config=table.detector,
        detector=info,
        acquisition=table.acquisition,
        receivers=receivers,
        flows=flows,
        nodes=nodes,
        output=output,
    )


def _report_secrets(places: Iterable[KeyPath], findings: Findings) -> None:
    """Report secrets where a value decides or names something, and could be inferred from what is written."""
    for at in places:
        message = "a secret is not allowed here: files that lima2 writes would show it"
        help = "secrets may be strings that are passed on: `params`, words of a `command`, metadata"
        findings.error("secret-misplaced", message, at, help=help)


def _retrieve(
    config: DetectorConfig, document: Document, files: Files, findings: Findings
) -> tuple[DetectorInfo, Capabilities]:
    """Return the description of the detector, and its capabilities."""
    info = _describe(config, document, files, findings)
    check_description(config, info, findings)
    return info, config.retrieve(info)


def _describe(config: DetectorConfig, document: Document, files: Files, findings: Findings) -> DetectorInfo:
    """Return the detector as it describes itself; a configuration that it refuses is reported at its parameter.

    Raises: Poisoned, after reporting it, where the detector is refused.
    """
    at: KeyPath = ("detector", config.kind)
    try:
        info = config.described(files)
        for doubt in info.doubts:
            findings.warning("input-doubt", doubt, at)
        return info
    except NodeMisuse as misfit:
        findings.error(misfit.rule, misfit.message, (*at, *misfit.key), help=misfit.help)
    except FileProblem as problem:
        place, help = _place_of_file(document, at, problem), problem.help
        if help is None and problem.rule == "file-incomplete" and place[-1] == "file":
            help = "`incomplete: skip` counts such frames as missing"
        findings.error(problem.rule, str(problem), place, help=help)
    raise Poisoned


def _place_of_file(document: Document, at: KeyPath, problem: FileProblem) -> KeyPath:
    """Return the path of the parameter whose file the message names, else of the detector."""
    for path, value in everything(plain(document.node(at))):
        if isinstance(value, str) and value and value.partition("::")[0] in str(problem):
            return (*at, *path)
    return at


def name_of_file(file: str) -> str:
    """Return the default name of a pipeline: the file's stem, as far as names allow; ``pipeline`` for stdin."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePath(file).stem if file != "-" else "pipeline")
    return stem if stem[:1].isalpha() else f"pipeline_{stem}"


def _receivers(written: int | Mapping[str, ReceiverTable]) -> Mapping[str, ReceiverTable]:
    """Return the receivers by name, in order; a number stands for as many with a host memspace each."""
    if isinstance(written, int):
        return {f"receiver{i}": ReceiverTable(memspaces={"host": HostMemspace()}) for i in range(written)}
    return written


def _check_acquisition(config: Acquisition, findings: Findings) -> None:
    at: KeyPath = ("acquisition",)
    if config.period is not None and config.rate is not None:
        related = [Related((*at, "period"), "the period")]
        findings.error("period-or-rate", "`period` and `rate` exclude each other", (*at, "rate"), related=related)
    elif config.exposure is not None and config.period_s is not None and config.exposure > config.period_s:
        exposure, period = seconds_text(config.exposure), seconds_text(config.period_s)
        message = f"an exposure of {exposure} does not fit into a period of {period}"
        findings.error("exposure-too-long", message, (*at, "exposure"))


def _check_recorded(acquisition: Acquisition, info: DetectorInfo, findings: Findings) -> None:
    """Report frames that are asked for and do not exist."""
    recorded = min((dataset.frames for dataset in info.datasets if dataset.frames is not None), default=None)
    if recorded is not None and acquisition.frames > recorded:
        message = f"{acquisition.frames} frames are requested, but only {recorded} are recorded"
        findings.warning("frames-beyond", message, ("acquisition", "frames"))


def _check_repeat(acquisition: Acquisition, output: Output, info: DetectorInfo, findings: Findings) -> None:
    at: KeyPath = ("acquisition", "repeat")
    if acquisition.repeat == 1:
        return
    endless = not acquisition.frames and all(dataset.frames is None for dataset in info.datasets)
    if endless and not (acquisition.repeat == 0 and acquisition.start == "request"):
        help = "give `frames`, or with `repeat: 0` and `start: request` ask for them at each start"
        findings.error("repeat-endless", "an acquisition without an end can't be repeated", at, help=help)
    fields = {field for _, field, _, _ in Formatter().parse(str(output.directory))}
    if not fields & {"run", "uuid"}:
        count = acquisition.repeat or "repeated"
        message = f"{count} acquisitions need a directory each, but `{output.directory}` names only one"
        findings.error("repeat-directory", message, ("output", "directory"), help="add `{run}`, the next free number")


_FIELDS: Mapping[str, Any] = {"name": "maze", "run": 1, "date": "2025-01-31", "time": "12-00-00", "uuid": "0"}
"""Fields of the output directory, each with an example of its type."""


_RUN_DIGITS = re.compile(r"(0?[1-9][0-9]?)?d?")
"""Formats of the run number that can be read back from the name of a directory."""


def _output(output: Output, findings: Findings) -> Output:
    """Return the output, its directory `POISON` where no run directory can be named after it."""
    before = len(findings.items)
    _check_directory(output, findings)
    return output if len(findings.items) == before else replace(output, directory=POISON)


def _check_directory(output: Output, findings: Findings) -> None:
    at: KeyPath = ("output", "directory")
    directory = str(output.directory)
    if directory.startswith("~"):
        message = (
            f"the directory begins with `{directory.partition('/')[0]}`, which shells expand, but pipelines do not"
        )
        findings.error("home-directory", message, at, help=f"`${{HOME}}{directory[1:]}` is in the home directory")
        return
    try:
        parsed = list(Formatter().parse(directory))
        fields = [field for _, field, _, _ in parsed if field is not None]
        unknown = [field for field in fields if field not in _FIELDS]
        if not unknown:
            _check_formats(parsed)
            _check_end(directory, directory.format(**_FIELDS))
    except ValueError as error:
        message = f"the directory is not a valid format: {error}"
        findings.error("bad-format", message, at, help="for example `runs/{name}_{run:04d}`; `{{` is a literal brace")
        return
    for field in unknown:
        field_name = nearest(field, _FIELDS)
        help = f"did you mean `{{{field_name}}}`?" if field_name else f"known: {', '.join(_FIELDS)}"
        findings.error("unknown-field", f"there is no field `{{{field}}}`", at, help=help)


def _check_formats(parsed: Iterable[tuple[str, str | None, str | None, str | None]]) -> None:
    """Check the formats of fields.

    Raises: ValueError for a field whose format gives anything but its text, or the digits of a number.
    """
    for _, field, form, conversion in parsed:
        plain = not conversion and (not form or (field == "run" and _RUN_DIGITS.fullmatch(form)))
        if field is not None and not plain:
            raise ValueError(f"`{form or f'!{conversion}'}` of `{{{field}}}` is not allowed in the name of a directory")


def _check_end(directory: str, filled: str) -> None:
    """Check that a directory's name keeps its fields.

    Raises: ValueError where a field is undone by `..`, and where nothing is named.
    """
    parts = PurePath(filled).parts
    if not directory or parts[-1:] == ("..",):
        raise ValueError(f"`{directory}` cannot name a new directory")
    after = directory[directory.index("{") :] if "{" in directory.replace("{{", "") else ""
    if ".." in PurePath(after).parts:
        raise ValueError("`..` after a field leads out of the directory that it names")
