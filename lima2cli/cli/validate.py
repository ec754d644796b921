"""``lima2 validate`` and ``lima2 schema``."""

import sys
from typing import Annotated

import typer

from lima2cli.cli.border import FINE, PROBLEMS, USAGE, Debug, Format, Overrides, Strict, border
from lima2cli.errors import UnreadableInput


def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE... | -", help="Pipelines; - for standard input.")],
    format: Annotated[Format, typer.Option("--format", help="How to show what is found.")] = Format.TEXT,
    overrides: Overrides = None,
    strict: Strict = False,
    debug: Debug = False,
) -> None:
    """Check pipelines: syntax, structure, names, and all that can be known before a run.

    Exit code 0: fine, 1: there are problems, 2: a file cannot be read.
    """
    with border(as_json=format is Format.JSON, debug=debug):
        from lima2cli.cli.reading import check_file, show_all, unreadable

        checked, code = [], FINE
        for file in files:
            try:
                one = check_file(file, overrides or ())
            except UnreadableInput as error:
                one, code = unreadable(file, error), USAGE
            checked.append(one)
        print(show_all(checked, format), end="", flush=True)
        severities = {item.severity for one in checked for item in one.findings}
        failed = "error" in severities or (strict and "warning" in severities)
        raise typer.Exit(code or (PROBLEMS if failed else FINE))


def schema(debug: Debug = False) -> None:
    """Print the JSON Schema of pipelines, with all kinds that are installed."""
    with border(as_json=False, debug=debug):
        from lima2cli.language.schema import complete_shape, schema_text

        shape, problems = complete_shape()
        for problem in problems:
            print(f"warning[{problem.rule}]: {problem}", file=sys.stderr)
        print(schema_text(shape), end="", flush=True)
