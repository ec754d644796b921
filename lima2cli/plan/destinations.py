"""Check the files that a run will write: valid names, each written once, none read by the pipeline."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from string import Formatter
from typing import Any

from lima2cli.declare.reading import everything
from lima2cli.diagnostics import POISON, Findings, KeyPath, Related, attempt
from lima2cli.diagnostics import KeyPath as Place
from lima2cli.document import Document
from lima2cli.files.appending import NOT_STARTED
from lima2cli.files.nexus import OF_ENTRY, OF_INSTRUMENT, frame_file_names, master_file, part_names, table_file
from lima2cli.files.tree import LONGEST_LINK
from lima2cli.language.checks import LONGEST_NAME
from lima2cli.language.pipeline import Pipeline
from lima2cli.language.records import FileMemspace
from lima2cli.nodes.base import Exchange, Reduce, Sink
from lima2cli.paths import held_in, real, same
from lima2cli.plan.ir import Step
from lima2cli.transport.mapped import objection

FREE = "for example `runs/{name}_{run:04d}`, which is new in every run"

Inputs = Mapping[str, frozenset[Path]]
"""Files behind each reference, links followed."""


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
    """Return the users' programs, with their arguments, that nodes start."""
    nodes = [] if pipeline.nodes is POISON else [each.node for each in pipeline.nodes.values()]
    workers = [attempt(lambda node=node: node.workers) for node in nodes if isinstance(node, Exchange)]  # type: ignore[misc]
    started = [each.command for each in workers if each is not POISON and each is not None]
    held = [words for words in started if words is not POISON and words is not None]
    return [tuple(word for word in words if word is not POISON) for words in held]


def _places(document: Document, inputs: Inputs) -> dict[str, Place]:
    """Return the place where each reference is written, if it is; functions have a name behind the file's."""
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
    """Check the directory where it is known before the run: fields except the name are filled at the start."""
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
            message = f"the output directory {shown} contains {reference}{behind}, which the pipeline reads"
            findings.error("output-in-use", message, at, help=FREE, related=_read_here(reference, places))
            return
    if held_in(directory, [here]):
        findings.error("output-in-use", f"the output directory {shown} contains the working directory", at, help=FREE)


def _is(file: Path, reference: str) -> bool:
    return file.name == PurePath(reference.partition("::")[0]).name


def _check_memspaces(
    pipeline: Pipeline, inputs: Inputs, places: Mapping[str, Place], base: Path, here: Path, findings: Findings
) -> None:
    checked: list[tuple[Path, Place, str, str | None]] = []
    within = attempt(lambda: _directories(str(pipeline.output.directory), str(pipeline.name), here))
    for at, label, path, host in _mapped(pipeline):
        file = real(base / path)
        other = next((one for one in checked if one[3] == host and same(one[0], file)), None)
        checked.append((file, at, label, host))
        reference = next((name for name, files in inputs.items() if any(same(one, file) for one in files)), None)
        related: list[Related] = []
        help = "give it a file of its own; it is created if it does not exist"
        if path.startswith("~"):
            message = f"the path of {label} begins with `~`, which shells expand, but pipelines do not"
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
            findings.error("memspace-taken", message, at, help="run directories contain only files that runs write")
        elif host is None and (reason := objection(base / path)) is not None:
            findings.error("memspace-taken", f"{label} cannot be {path}: it {reason}", at, help=help)


def _mapped(pipeline: Pipeline) -> Iterator[tuple[Place, str, str, str | None]]:
    """Yield memspaces in files: the place of the path, the memspace in words, its path, the machine."""
    for receiver, table in pipeline.receivers.items():
        memspaces: Mapping[str, Any] = table.memspaces
        for name, memspace in memspaces.items():
            if isinstance(memspace, FileMemspace) and memspace.path is not POISON:
                at: Place = ("receivers", receiver, "memspaces", name, "file", "path")
                yield at, f"memspace {name} of {receiver}", memspace.path, table.host


def _directories(template: str, name: str, here: Path) -> re.Pattern[str]:
    """Return the pattern of paths in a run directory, whatever values its fields get."""
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


def check_file_names(name: str, steps: Sequence[Step], findings: Findings) -> None:
    """Report node names that lead to the same file, or to none: too long, or differing by case alone."""
    saving = [step for step in steps if isinstance(step.node, Reduce | Sink)]
    _check_clashes(name, saving, findings)
    _check_lengths(name, [step.name for step in saving], findings)
    _warn_of_case([step.name for step in saving], findings)


def _check_lengths(name: str, nodes: Sequence[str], findings: Findings) -> None:
    """Report names too long for a node's longest file: a frame file not yet begun, of a long run on many receivers."""
    for node in nodes:
        length = len(f"{name}_{node}_1023_0000000.h5{NOT_STARTED}")
        if length > LONGEST_NAME:
            at: KeyPath = ("name",) if len(name) > len(node) else ("nodes", node)
            message = (
                f"files of node {_short(node)} would have names of {length} bytes, file systems allow {LONGEST_NAME}"
            )
            longest = LONGEST_NAME - length + len(name) + len(node)
            help = f"`name` and the node's name together of at most {longest} characters"
            findings.error("name-too-long", message, at, on_key=at[0] == "nodes", help=help)
            if at == ("name",):
                return


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:39]}…"


def _warn_of_case(nodes: Sequence[str], findings: Findings) -> None:
    first: dict[str, str] = {}
    for node in nodes:
        other = first.setdefault(node.casefold(), node)
        if other != node:
            findings.warning(
                "names-differ-in-case",
                f"files of nodes {other} and {node} differ in case only",
                ("nodes", node),
                on_key=True,
                notes=["where case does not count (disks of Windows and macOS) one replaces the other"],
                help=f"give {node} another name",
                related=[Related(("nodes", other), "the other")],
            )


def _check_clashes(name: str, steps: Sequence[Step], findings: Findings) -> None:
    """Report a table ``{name}_{node}.h5`` that is a numbered file, master or part of another node."""
    for table in steps:
        if not isinstance(table.node, Reduce):
            continue
        file = table_file(name, table.name)
        for other in steps:
            if _writes(name, other, file):
                findings.error(
                    "file-name-clash",
                    f"nodes {table.name} and {other.name} would both write {file}",
                    ("nodes", table.name),
                    on_key=True,
                    help=f"give {table.name} another name",
                    related=[Related(("nodes", other.name), "writes it too")],
                )


def _writes(name: str, step: Step, file: str) -> bool:
    """Return True if ``file`` is the master, a frame file, or a receiver's part of the table of a node."""
    if isinstance(step.node, Sink) and file == master_file(name, step.name):
        return True
    patterns = (frame_file_names(name, step.name), part_names(name, step.name))
    return any(pattern.fullmatch(file) for pattern in patterns[isinstance(step.node, Reduce) :])


def check_stored(pipeline: Pipeline, record: Mapping[str, Any], findings: Findings) -> None:
    """Report names of the instrument and the detector that can't be those of groups, and keys of ``record`` (the stored
    parts of the pipeline, as plain data) that are too long for names.
    """
    for part in ("metadata", "nodes"):
        for at in _keys(record[part], (part,)):
            if len(str(at[-1]).encode()) > LONGEST_LINK:
                _too_long(f"the key `{_shown(str(at[-1]))}`", at, findings, on_key=True)
    _check_group("instrument", pipeline.metadata.instrument, ("metadata", "instrument"), OF_ENTRY, findings)
    detector = pipeline.config
    if detector.name is not None:
        _check_group("detector", detector.name, ("detector", detector.kind, "name"), OF_INSTRUMENT, findings)


def _check_group(what: str, name: str, at: KeyPath, taken: Collection[str], findings: Findings) -> None:
    """Report a name that is among those ``taken`` in the group of files where it would stand."""
    if name in taken:
        findings.error(
            "reserved-name",
            f"the {what} can't be named `{name}`: files use that name for something else",
            at,
            notes=[f"reserved names: {', '.join(taken)}"],
            help=f"another name, such as `{name}-1`",
        )
    elif not name.strip("."):
        message = f"the {what} can't be named `{name}`: it names a group in files, and this is not a valid name"
        findings.error("reserved-name", message, at, help="leave it out, or give a name with a letter or a digit")
    elif len(name.encode(errors="replace")) > LONGEST_LINK:
        _too_long(f"the {what}'s name", at, findings)


def _too_long(what: str, at: KeyPath, findings: Findings, *, on_key: bool = False) -> None:
    message = f"{what} is too long for a name in a file"
    findings.error("name-too-long", message, at, on_key=on_key, help=f"at most {LONGEST_LINK} bytes")


def _keys(value: Any, at: KeyPath) -> Iterator[KeyPath]:
    """Yield the places of all keys in plain data."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield (*at, key)
            yield from _keys(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _keys(item, (*at, index))


def _shown(text: str, most: int = 40) -> str:
    """Return a string for people: without unprintable characters, and not too long."""
    printed = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return printed if len(printed) <= most else f"{printed[:most]}…"


__all__ = ["Inputs", "check_destinations", "commands"]
