"""``lima2 plan``."""

import json
import sys
from enum import StrEnum
from typing import Annotated

import typer

from lima2cli.cli.border import FINE, PROBLEMS, border
from lima2cli.cli.options import Debug, NoFuse, Overrides, Strict


class PlanFormat(StrEnum):
    """How the plan is shown."""

    TEXT = "text"
    JSON = "json"
    C = "c"


def plan(
    file: Annotated[str, typer.Argument(metavar="FILE | -", help="A pipeline; - for standard input.")],
    format: Annotated[
        PlanFormat, typer.Option("--format", help="For people, for programs, or as calls of librashpa.")
    ] = PlanFormat.TEXT,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Write to this file.")] = None,
    overrides: Overrides = None,
    strict: Strict = False,
    no_fuse: NoFuse = False,
    debug: Debug = False,
) -> None:
    """Show what a pipeline compiles to: data flows, ranks, memory, rates, nodes. Nothing is run.

    Exit code 0: fine, 1: there are problems, 2: the file cannot be read.
    """
    with border(as_json=format is PlanFormat.JSON, debug=debug):
        from lima2cli.cli.options import Format
        from lima2cli.cli.reading import check_file
        from lima2cli.cli.showing import show_all
        from lima2cli.plan.figures import plan_figures
        from lima2cli.plan.listing import c_listing
        from lima2cli.plan.show import show_plan

        checked = check_file(file, overrides or (), fuse=not no_fuse)
        warnings = [item for item in checked.findings if item.severity == "warning"]
        if checked.plan is None or (strict and warnings):
            as_json = format is PlanFormat.JSON
            print(
                show_all([checked], Format.JSON if as_json else Format.TEXT),
                end="",
                file=None if as_json else sys.stderr,
            )
            raise typer.Exit(PROBLEMS)
        if format is PlanFormat.JSON:
            text = json.dumps(plan_figures(checked.plan, warnings), indent=2) + "\n"
        else:
            if warnings:
                print(show_all([checked], Format.TEXT), file=sys.stderr)
            text = show_plan(checked.plan) if format is PlanFormat.TEXT else c_listing(checked.plan)
        if output is None:
            print(text, end="", flush=True)
        else:
            from pathlib import Path

            Path(output).write_text(text)
        raise typer.Exit(FINE)
