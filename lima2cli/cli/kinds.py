"""What ``lima2 nodes`` and ``lima2 detectors`` have in common: listing kinds, and showing one."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lima2cli.cli.border import PROBLEMS, USAGE, tell
from lima2cli.cli.capabilities import columns, default_record, facts

if TYPE_CHECKING:
    from lima2cli.config.descriptions import Description, Parameter
    from lima2cli.plugins import Kind


class KindFormat(StrEnum):
    """How kinds are shown."""

    TEXT = "text"
    JSON = "json"


Format = Annotated[KindFormat, typer.Option("--format", help="For people or for programs.")]


def list_kinds(kinds: Mapping[str, "Kind[Any]"], key: str, format: KindFormat) -> None:
    """A line for each kind; those that cannot be used are warned of."""
    from lima2cli.config.descriptions import describe_kind

    found = [describe_kind(name, kind) for name, kind in kinds.items() if kind.table is not None]
    problems = [kind.problem for kind in kinds.values() if kind.problem is not None]
    if format is KindFormat.JSON:
        listed = [{"kind": it.kind, "role": it.role, "origin": it.origin, "doc": it.line} for it in found]
        warnings = [{"rule": problem.rule, "message": str(problem), "help": problem.help} for problem in problems]
        print(json.dumps({"version": 1, key: listed, "warnings": warnings}, indent=2, ensure_ascii=False), flush=True)
        return
    rows = [(it.kind, it.role, it.origin, it.line) for it in found]
    print("\n".join(columns(rows)))
    sys.stdout.flush()
    for problem in problems:
        print(f"warning[{problem.rule}]: {problem}\n = help: {problem.help}", file=sys.stderr)


def show_kind(
    what: str, name: str, kinds: Mapping[str, "Kind[Any]"], format: KindFormat, later: Sequence[str] = ()
) -> None:
    """Everything that is known of one kind. Exit code 1: it cannot be used, 2: there is none."""
    from lima2cli.config.descriptions import describe_kind
    from lima2cli.names import did_you_mean

    as_json, kind = format is KindFormat.JSON, kinds.get(name)
    if kind is None:
        if name in later:
            tell("not-available", f"`{name}` is part of the language, but not of this version", as_json)
        else:
            tell("unknown-kind", f"there is no {what} of kind `{name}`", as_json, did_you_mean(name, kinds))
        raise typer.Exit(USAGE)
    if kind.problem is not None or kind.table is None:
        assert kind.problem is not None
        tell(kind.problem.rule, str(kind.problem), as_json, kind.problem.help)
        raise typer.Exit(PROBLEMS)
    found = describe_kind(name, kind)
    print(_as_json(found, kind.table) if as_json else _as_text(found), flush=True)


def _as_json(found: "Description", table: type) -> str:
    from lima2cli.artefacts.stacks import FileStore
    from lima2cli.declare import Table

    fields = asdict(found)
    if found.capabilities is None:
        del fields["capabilities"]
    elif (record := default_record(table, FileStore(Path(".")))) is not None:
        fields["record"] = record
    return json.dumps({"version": 1, **fields, "schema": Table(table).schema()}, indent=2, ensure_ascii=False)


def _as_text(found: "Description") -> str:
    parts = [f"{found.kind}: {found.role}, {found.origin}", found.text.replace("``", "`")]
    parts.append("\n".join(["Parameters", *map(_parameter, found.parameters)]))
    if found.capabilities is not None:
        parts.append("\n".join(["Capabilities", *("  " + line for line in columns(facts(found.capabilities)))]))
    return "\n\n".join(parts)


def _parameter(parameter: "Parameter") -> str:
    if parameter.required:
        default = "; required"
    else:
        default = "" if parameter.default is None else f"; default {_said(parameter.default)}"
    return f"  {parameter.key}: {parameter.value}{default}\n      {parameter.doc}"


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
