"""``lima2 explain``, ``graph`` and ``new``: what rules and keys mean, where frames go, and how a pipeline begins."""

import json
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lima2cli.cli.border import Debug, ExitCode, Format, NoFuse, Overrides, Profiles, border, show_error, write_output
from lima2cli.cli.completion import rules_and_keys, scaffolds
from lima2cli.cli.kinds import KindFormat, KindFormatOption, said

if TYPE_CHECKING:
    from pathlib import Path

    from lima2cli.cli.explanations import Entry, Rule
    from lima2cli.declare import Table
    from lima2cli.plugins import Kind, Kinds

WIDTH = 80
"""Columns that texts fit in."""


def explain(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RULE | KEY.PATH",
            help="A rule such as buffer-too-small, or a key such as nodes.roi_counters.statistics; names of your own "
            "may be left out of it.",
            autocompletion=rules_and_keys,
        ),
    ],
    format: KindFormatOption = KindFormat.TEXT,
    debug: Debug = False,
) -> None:
    """Explain a rule of the diagnostics, or a key of the language.

    A rule is shown with an example, a key with the keys below it.

    Exit code 0: fine, 2: there is no such rule or key.
    """
    as_json = format is KindFormat.JSON
    with border(as_json=as_json, debug=debug):
        from lima2cli.cli.explanations import UnknownKey, explain_rule, find, rules

        sections = rules()
        if name in sections:
            rule = explain_rule(name, sections[name])
            print(_json_of(asdict(rule)) if as_json else _rule_text(rule), flush=True)
            return

        from lima2cli.language.schema import complete_shape

        root, _ = complete_shape()
        try:
            entry = find(root, name)
        except UnknownKey as problem:
            _show_unknown(name, problem, list(sections), root, as_json=as_json)
            raise typer.Exit(ExitCode.USAGE) from None
        if as_json:
            below = [{"key": key, **one.plain()} for key, one in entry.shown().items()]
            print(_json_of({**entry.plain(), "keys": below}), flush=True)
        else:
            print(_entry_text(entry), flush=True)


def _show_unknown(name: str, problem: Exception, sections: list[str], root: "Table", *, as_json: bool) -> None:
    """Say that there is no such rule or key, and which one was probably meant."""
    from lima2cli.cli.explanations import UnknownKey, elsewhere
    from lima2cli.diagnostics import did_you_mean, nearest

    assert isinstance(problem, UnknownKey)
    if "." not in name:
        near = nearest(name, [*problem.known, *sections])
        paths = elsewhere(root, name) or ([] if near is None else [near])
        help = f"did you mean {', or '.join(f'`{path}`' for path in paths)}?" if paths else None
        known = f"keys of a pipeline: {', '.join(problem.known)}"
        show_error("unknown-key", f"there is no rule and no key `{name}`", as_json, help or known)
        return
    at = f" below `{problem.path}`" if problem.path else ""
    help = did_you_mean(problem.word, problem.known) if problem.known else "it has no keys"
    show_error("unknown-key", f"there is no `{problem.word}`{at}", as_json, help)


def _json_of(contents: dict[str, object]) -> str:
    return json.dumps({"version": 1, **contents}, indent=2, ensure_ascii=False)


def _rule_text(rule: "Rule") -> str:
    parts = [f"{rule.severity}[{rule.rule}]", rule.text]
    for example in rule.examples:
        parts.append(textwrap.indent(example.text.rstrip(), "    "))
        if example.printed:
            parts += ["prints", textwrap.indent(example.printed.rstrip(), "    ")]
    return "\n\n".join(parts)


def _entry_text(entry: "Entry") -> str:
    facts = [("value", entry.value)]
    if entry.units:
        facts.append(("units", f"{', '.join(entry.units)}; a plain number is in {entry.unit}"))
    if entry.required:
        facts.append(("default", "none, it is required"))
    elif entry.default not in (None, {}):
        facts.append(("default", said(entry.default)))
    parts = [entry.path, *(["\n".join(_filled(entry.doc))] if entry.doc else [])]
    parts.append("\n".join(line for name, text in facts for line in _filled(f"{name:9}{text}", " " * 9)))
    below = [line for key, one in entry.shown().items() for line in _key_lines(key, one)]
    parts += ["\n".join(["Below it", *below])] if below else []
    return "\n\n".join(parts)


def _key_lines(key: str, entry: "Entry") -> list[str]:
    mark = " (required)" if entry.required else ""
    return [f"  {key}{mark}", *_filled(entry.doc or entry.value, " " * 6, " " * 6)]


def _filled(text: str, later: str = "", first: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=later, break_on_hyphens=False, break_long_words=False
    )


class GraphFormat(StrEnum):
    """Formats of drawings."""

    TEXT = "text"
    MERMAID = "mermaid"
    DOT = "dot"


def graph(
    file: Annotated[str, typer.Argument(metavar="FILE | -", help="A pipeline; - for standard input.")],
    format: Annotated[
        GraphFormat,
        typer.Option(
            "--format", help="Format of the output; for a picture: `lima2 graph FILE --format dot | dot -Tsvg`."
        ),
    ] = GraphFormat.TEXT,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Write the output to this file.")] = None,
    overrides: Overrides = None,
    profiles: Profiles = None,
    no_fuse: NoFuse = False,
    debug: Debug = False,
) -> None:
    """Show where frames go, from datasets to files.

    Through data flows and nodes, with what leaves each.

    Nodes that are computed together are marked as one kernel. Exit code 0: fine, 1: there are problems, 2: the file
    cannot be read.
    """
    with border(as_json=False, debug=debug):
        from lima2cli.cli.drawing import as_dot, as_mermaid, as_tree, draw
        from lima2cli.cli.reading import Changes, check_pipeline, show_all
        from lima2cli.secret import hide

        checked = check_pipeline(file, Changes.of(overrides, profiles), fuse=not no_fuse)
        if checked.plan is None:
            print(show_all([checked], Format.TEXT), end="", file=sys.stderr)
            raise typer.Exit(ExitCode.PROBLEMS)
        show = {GraphFormat.TEXT: as_tree, GraphFormat.MERMAID: as_mermaid, GraphFormat.DOT: as_dot}[format]
        text = hide(show(draw(checked.plan)))
        if output is None:
            print(text, end="", flush=True)
        else:
            write_output(output, text, checked.plan.inputs)


def new(
    kinds: Annotated[
        str | None,
        typer.Argument(
            metavar="[EXPR]",
            help="DETECTOR/NODE,NODE,… such as remu/background_sub,roi_counters,io_hdf5; with --from only the nodes "
            "(default: io_hdf5).",
            autocompletion=scaffolds,
        ),
    ] = None,
    recorded: Annotated[
        str | None, typer.Option("--from", metavar="FILE[::/PATH]", help="Replay these recorded frames.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the kinds of detector and node.")] = False,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Write to this file, which must not exist.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Begin a pipeline, with comments on all parameters.

    Those that must be given are REPLACEME, others comments with defaults and meaning.

    Exit code 0: fine, 1: the recorded frames cannot be replayed, 2: there is no such kind, 12: the file exists.
    """
    with border(as_json=False, debug=debug):
        from lima2cli.detectors.base import DETECTORS
        from lima2cli.errors import UnreadableInput
        from lima2cli.nodes.registry import NODES

        if listed:
            _list_all({"detectors": DETECTORS, "nodes": NODES})
            return
        if kinds is None and recorded is None:
            raise UnreadableInput(
                "what is to be in it? Such as `lima2 new remu/io_hdf5`; `lima2 new --list` lists kinds"
            )
        before, slash, after = (kinds or "io_hdf5").partition("/")
        if recorded is not None and slash:
            raise UnreadableInput("with --from the detector is `replay`: only nodes are named")
        if recorded is None and not slash and before.partition(",")[0] in NODES.built_in:
            raise UnreadableInput(f"the detector comes first, such as `lima2 new remu/{before}`")
        detector, nodes = ("replay", before) if recorded is not None else (before, after)
        asked = [name.strip() for name in nodes.split(",") if name.strip()]
        found = [(detector, _table_of("detector", detector, DETECTORS.named([detector])))]
        every = NODES.named(asked)
        found += [(name, _table_of("node", name, every)) for name in asked]
        text = _scaffold(found, recorded, output)
        if output is None:
            print(text, end="", flush=True)
        else:
            _write_new(output, text)


def _list_all(sorts: "dict[str, Kinds[Any]]") -> None:
    from lima2cli.cli.descriptions import describe_kind
    from lima2cli.cli.kinds import columns

    for title, kinds in sorts.items():
        rows = [(name, describe_kind(name, kind).line) for name, kind in kinds.all().items() if kind.table is not None]
        print("\n".join([title, *(f"  {line}" for line in columns(rows))]), flush=True)


def _table_of(what: str, name: str, kinds: "Mapping[str, Kind[Any]]") -> type:
    """Return the table of a kind; without one the command ends."""
    from lima2cli.diagnostics import did_you_mean

    kind = kinds.get(name)
    if kind is None:
        show_error(
            "unknown-kind", f"there is no {what} of kind `{name}`", as_json=False, help=did_you_mean(name, kinds)
        )
        raise typer.Exit(ExitCode.USAGE)
    if kind.problem is not None or kind.table is None:
        assert kind.problem is not None
        show_error(kind.problem.rule, str(kind.problem), as_json=False, help=kind.problem.help)
        raise typer.Exit(ExitCode.PROBLEMS)
    return kind.table


def _scaffold(kinds: list[tuple[str, type]], recorded: str | None, output: str | None) -> str:
    """Return the pipeline; recorded frames are looked at, and where that fails the command ends."""
    import shlex
    from pathlib import Path

    from lima2cli.check import check_text
    from lima2cli.cli.reading import show_all
    from lima2cli.cli.scaffold import scaffold
    from lima2cli.document.writing import flow_text

    (detector, table), *nodes = kinds
    names = ",".join(name for name, _ in nodes)
    if recorded is None:
        title = f"lima2 new {detector}" + f"/{names}" * bool(names)
        return scaffold(title, (detector, table), nodes, datasets=_datasets(table))
    probe = f"lima2: 1\ndetector: {{replay: {{file: {json.dumps(_dollars(recorded))}}}}}\n"
    checked = check_text(probe, "--from", Path("."), cores=1, environment={})
    if checked.plan is None:
        print(show_all([checked], Format.TEXT), end="", file=sys.stderr)
        raise typer.Exit(ExitCode.PROBLEMS)
    place = _dollars(_seen_from(Path(output or ".").parent, recorded))
    info, frames = checked.plan.info, checked.plan.frames
    said_of_it = f"{frames} frames of {info.width} x {info.height}, {info.datasets[0].dtype}"
    title = f"lima2 new --from {shlex.quote(recorded)} {names}"
    return scaffold(title, (detector, table), nodes, filled={"file": f"{flow_text(place)}  # {said_of_it}"})


def _dollars(text: str) -> str:
    """Return a text as a value in which no variable is replaced."""
    return text.replace("$", "$$")


def _seen_from(folder: "Path", recorded: str) -> str:
    """Return a file, with its path inside, as a pipeline in a folder names it; not through the link to the latest run,
    which the next run moves.
    """
    import os
    from pathlib import Path

    from lima2cli.runs.directory import LATEST

    file, colons, path = recorded.partition("::")
    parent, name = Path(file).parent, Path(file).name
    absolute = os.path.isabs(file)
    if LATEST not in parent.parts and (absolute or folder == Path(".")):
        return recorded
    if absolute:
        return os.path.join(os.path.realpath(parent), name) + colons + path
    return os.path.relpath(os.path.join(os.path.realpath(parent), name), os.path.realpath(folder)) + colons + path


def _datasets(table: type) -> list[str]:
    """Return the names of the datasets of a detector with all defaults; empty where these alone make none."""
    from pathlib import Path

    from lima2cli.cli.kinds import default_record
    from lima2cli.inputs.stacks import FileStore

    record = default_record(table, FileStore(Path(".")))
    return [] if record is None else list(record["datasets"])


def _write_new(path: str, text: str) -> None:
    from lima2cli.errors import EnvironmentUnfit

    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise EnvironmentUnfit(f"cannot write {path}: {error.strerror or error}") from error
