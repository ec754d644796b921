"""What a run will write: that it is nothing that the pipeline reads, and is written by one alone."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from string import Formatter
from typing import Any

from lima2cli.config.pipeline import Pipeline
from lima2cli.config.records import FileMemspace
from lima2cli.diagnostics import Findings, Related
from lima2cli.diagnostics import Path as Place
from lima2cli.document import Document
from lima2cli.nodes.base import Delegate
from lima2cli.paths import held_in, real, same
from lima2cli.poison import POISON, attempt
from lima2cli.schema.keys import everything
from lima2cli.transport.mapped import objection

FREE = "for example `runs/{name}_{run:04d}`, which is new in every run"

Inputs = Mapping[str, frozenset[Path]]
"""Files that stand behind each reference, links followed."""


def check_destinations(
    pipeline: Pipeline, document: Document, inputs: Inputs, base: Path, here: Path, findings: Findings
) -> None:
    """Report an output directory that holds what is read, and memspaces that are other files, or one file twice.

    base  resolves the pipeline's files;  here  the working directory, to which the output is relative
    """
    places = _places(document, inputs)
    attempt(lambda: _check_output(pipeline, inputs, places, here, findings))
    attempt(lambda: _check_memspaces(pipeline, inputs, places, base, here, findings))


def commands(pipeline: Pipeline) -> list[tuple[str, ...]]:
    """Programs of the user's, with their arguments, that nodes start."""
    nodes = [] if pipeline.nodes is POISON else [it.node for it in pipeline.nodes.values()]
    found = (attempt(lambda node=node: node.command) for node in nodes if isinstance(node, Delegate))  # type: ignore[misc]
    held = [words for words in found if words is not POISON and words is not None]
    return [tuple(word for word in words if word is not POISON) for words in held]


def _places(document: Document, inputs: Inputs) -> dict[str, Place]:
    """Where each reference is written, as far as it is: functions have a name behind the file's."""
    places: dict[str, Place] = {}
    for at, value in everything(document.data):
        if isinstance(value, str):
            for reference in (value, value.rpartition(":")[0]):
                if reference in inputs:
                    places.setdefault(reference, at)
    return places


def _read_here(reference: str, places: Mapping[str, Place]) -> list[Related]:
    return [Related(places[reference], "is read")] if reference in places else []


def _check_output(
    pipeline: Pipeline, inputs: Inputs, places: Mapping[str, Place], here: Path, findings: Findings
) -> None:
    """Where the directory is known before the run: fields other than the name are filled when it starts."""
    at: Place = ("output", "directory")
    template, name = str(pipeline.output.directory), str(pipeline.name)
    fields = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    if fields - {"name"}:
        return
    shown = template.format(name=name)
    directory = here / shown
    for reference, files in inputs.items():
        held = sorted(held_in(directory, files))
        if held:
            behind = "" if any(_is(file, reference) for file in held) else f" (from {held[0].name})"
            message = f"the output directory {shown} holds {reference}{behind}, which the pipeline reads"
            findings.error("output-in-use", message, at, help=FREE, related=_read_here(reference, places))
            return
    if held_in(directory, [here]):
        findings.error("output-in-use", f"the output directory {shown} holds the working directory", at, help=FREE)


def _is(file: Path, reference: str) -> bool:
    return file.name == PurePath(reference.partition("::")[0]).name


def _check_memspaces(
    pipeline: Pipeline, inputs: Inputs, places: Mapping[str, Place], base: Path, here: Path, findings: Findings
) -> None:
    seen: list[tuple[Path, Place, str, str | None]] = []
    within = attempt(lambda: _directories(str(pipeline.output.directory), str(pipeline.name), here))
    for at, label, path, host in _mapped(pipeline):
        file = real(base / path)
        other = next((it for it in seen if it[3] == host and same(it[0], file)), None)
        seen.append((file, at, label, host))
        reference = next((it for it, files in inputs.items() if any(same(one, file) for one in files)), None)
        related: list[Related] = []
        help = "give it a file of its own; it is made where it is not there"
        if path.startswith("~"):
            message = f"the path of {label} begins with `~`, which shells expand, and pipelines don't"
            findings.error("home-directory", message, at, help="`${HOME}/…` is in the home directory")
        elif other is not None:
            message, related = f"{label} and {other[2]} are one file, {path}", [Related(other[1], "the same file")]
            findings.error("memspace-shared", message, at, related=related, help="give each a file of its own")
        elif reference is not None:
            related = _read_here(reference, places)
            message = f"{label} is {path}, which the pipeline reads"
            findings.error("memspace-taken", message, at, related=related, help=help)
        elif within is not POISON and within.match(str(file)):
            message = f"{label} lies in the output directory: {path}"
            findings.error("memspace-taken", message, at, help="run directories hold what runs write, and nothing else")
        elif host is None and (reason := objection(base / path)) is not None:
            findings.error("memspace-taken", f"{label} cannot be {path}: it {reason}", at, help=help)


def _mapped(pipeline: Pipeline) -> Iterator[tuple[Place, str, str, str | None]]:
    """Memspaces in files: the place of the path, the memspace in words, its path, the machine."""
    for receiver, table in pipeline.receivers.items():
        memspaces: Mapping[str, Any] = table.memspaces
        for name, memspace in memspaces.items():
            if isinstance(memspace, FileMemspace) and memspace.path is not POISON:
                at: Place = ("receivers", receiver, "memspaces", name, "file", "path")
                yield at, f"memspace {name} of {receiver}", memspace.path, table.host


def _directories(template: str, name: str, here: Path) -> re.Pattern[str]:
    """What paths in a run directory look like, whatever its fields come to."""
    parts = PurePath(template).parts
    fixed = next((i for i, part in enumerate(parts) if "{" in part), len(parts))
    root = str(real(here.joinpath(*parts[:fixed])))
    pattern = "".join(f"/{_filled(part, name)}" for part in parts[fixed:])
    return re.compile(re.escape(root.rstrip("/")) + pattern + "(/|$)")


def _filled(part: str, name: str) -> str:
    return "".join(
        re.escape(literal) + ("" if field is None else re.escape(name) if field == "name" else "[^/]+")
        for literal, field, _, _ in Formatter().parse(part)
    )


__all__ = ["Inputs", "check_destinations", "commands"]
