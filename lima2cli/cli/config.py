"""``lima2 config``: a pipeline as it is understood."""

import json
import sys
from collections.abc import Collection, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lima2cli.cli.border import Debug, ExitCode, Overrides, Profiles, Strict, border

if TYPE_CHECKING:
    from lima2cli.language.resolved import Value


class ConfigFormat(StrEnum):
    """Formats of a resolved pipeline."""

    YAML = "yaml"
    JSON = "json"


def config(
    file: Annotated[str, typer.Argument(metavar="FILE | -", help="A pipeline; - for standard input.")],
    origin: Annotated[bool, typer.Option("--origin", help="Show where each value comes from.")] = False,
    format: Annotated[ConfigFormat, typer.Option("--format", help="Format of the output.")] = ConfigFormat.YAML,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Write the output to this file.")] = None,
    overrides: Overrides = None,
    profiles: Profiles = None,
    strict: Strict = False,
    debug: Debug = False,
) -> None:
    """Show a pipeline as it is understood, with all defaults.

    Variables and graphs are replaced, profiles and --set applied, short forms long.

    The YAML is a pipeline that compiles to the same plan, in the folder of FILE. Secrets stay references. With --origin
    each value has its file, line and column, the --set, `default` (of the schema), or `resolved` (from the rest of the
    pipeline). Exit code 0: fine, 1: there are problems, 2: the file cannot be read.
    """
    with border(as_json=format is ConfigFormat.JSON, debug=debug):
        from lima2cli.cli.border import Format, write_output
        from lima2cli.cli.reading import Changes, check_pipeline, show_all
        from lima2cli.document import Document
        from lima2cli.language.resolved import resolve_pipeline
        from lima2cli.secret import hide

        as_json = format is ConfigFormat.JSON
        checked = check_pipeline(file, Changes.of(overrides, profiles))
        if checked.plan is None or (strict and any(True for _ in checked.findings)):
            shown = show_all([checked], Format.JSON if as_json else Format.TEXT)
            print(shown, end="", file=None if as_json else sys.stderr)
            raise typer.Exit(ExitCode.PROBLEMS)
        assert isinstance(checked.source, Document)
        assert checked.pipeline is not None
        whole = resolve_pipeline(checked.source, checked.pipeline)
        laid = {profile.file for profile in checked.profiles}
        text = hide(_as_json(whole, laid, origin=origin) if as_json else as_yaml(whole, origin=origin))
        if not as_json:
            print(show_all([checked], Format.CONCISE), end="", file=sys.stderr)
        if output is None:
            print(text, end="", flush=True)
        else:
            write_output(output, text, checked.plan.inputs)


def _as_json(whole: "Value", profiles: Collection[str], *, origin: bool) -> str:
    from lima2cli.secret import hidden

    made: dict[str, Any] = {"version": 1, "pipeline": hidden(whole.data)}
    if origin:
        made["origins"] = {
            "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path): _entry(value, profiles)
            for path, value in whole.leaves()
        }
    return json.dumps(made, indent=2) + "\n"


def _entry(value: "Value", profiles: Collection[str]) -> dict[str, Any]:
    """Return the origin of a value for programs; ``from`` is file, profile, set, default or resolved."""
    place = value.origin
    if isinstance(place, str):
        return {"from": place}
    if place.override is not None:
        return {"from": "set", "set": place.override}
    kind = "profile" if place.file in profiles else "file"
    return {"from": kind, "file": place.file, "line": place.span.line, "column": place.span.column}


WIDEST = 44
"""Column at which origins stand, unless a line is longer."""


def as_yaml(whole: "Value", *, origin: bool) -> str:
    """Return a resolved pipeline as YAML; with ``origin`` each value is followed by a comment that says its own."""
    lines = list(_lines(whole, ""))
    if not origin:
        return "".join(f"{text}\n" for text, _ in lines)
    column = min(WIDEST, max(len(text) for text, _ in lines))
    return "".join(
        text + ("" if of is None else f"{'':{max(0, column - len(text))}}  # {_named(of)}") + "\n" for text, of in lines
    )


def _named(value: "Value") -> str:
    from lima2cli.document.render import named

    return value.origin if isinstance(value.origin, str) else named(value.origin)


def _lines(value: "Value", indent: str) -> "Iterator[tuple[str, Value | None]]":
    """Yield the lines of a mapping or list, each with the value that is written in it."""
    from lima2cli.document.writing import flow_text

    held: Any = value.content
    if isinstance(held, list):
        for item in held:
            first, *rest = _lines(item, f"{indent}  ") if _in_lines(item) else [(f"{indent}  {_text(item)}", item)]
            yield f"{indent}- {first[0][len(indent) + 2 :]}", first[1]
            yield from rest
        return
    for key, item in held.items():
        name = f"{indent}{flow_text(key)}:"
        if _in_lines(item):
            yield name, None
            yield from _lines(item, f"{indent}  ")
        else:
            yield f"{name} {_text(item)}", item


def _in_lines(value: "Value") -> bool:
    """Return True for a mapping or list that is written in several lines: not for a list of scalars."""
    if isinstance(value.content, list):
        return any((isinstance(item.content, dict) and item.content) or _in_lines(item) for item in value.content)
    return isinstance(value.content, dict) and bool(value.content)


def _text(value: "Value") -> str:
    from lima2cli.document.writing import escaped, flow_text

    def written(data: Any) -> Any:
        if isinstance(data, list):
            return [written(item) for item in data]
        return escaped(data) if isinstance(data, str) else data

    return flow_text(written(value.data))
