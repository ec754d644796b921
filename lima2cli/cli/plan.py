"""``lima2 plan``: a plan for people to read, as JSON, or as a listing in C."""

import json
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from lima2cli.cli.border import FINE, PROBLEMS, Debug, NoFuse, Overrides, Strict, border


class PlanFormat(StrEnum):
    """Formats of a plan."""

    TEXT = "text"
    JSON = "json"
    C = "c"


def plan(
    file: Annotated[str, typer.Argument(metavar="FILE | -", help="A pipeline; - for standard input.")],
    format: Annotated[
        PlanFormat, typer.Option("--format", help="For people, for programs, or as calls of librashpa.")
    ] = PlanFormat.TEXT,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Write to this file.")] = None,
    diff: Annotated[
        str | None, typer.Option("--diff", metavar="OLD", help="Show what differs from a saved plan instead.")
    ] = None,
    overrides: Overrides = None,
    strict: Strict = False,
    no_fuse: NoFuse = False,
    debug: Debug = False,
) -> None:
    """Show what a pipeline compiles to: data flows, ranks, memory, rates, nodes. Nothing is run.

    Exit code 0: fine, 1: there are problems, 2: the file cannot be read.
    """
    with border(as_json=format is PlanFormat.JSON, debug=debug):
        from lima2cli.cli.border import Format
        from lima2cli.cli.plan_text import show_plan
        from lima2cli.cli.reading import check_pipeline, show_all
        from lima2cli.job.resources import free
        from lima2cli.plan.rashpa_calls import c_listing
        from lima2cli.runs.saved_plan import Origin, plan_contents
        from lima2cli.secret import hide

        checked = check_pipeline(file, overrides or (), fuse=not no_fuse)
        warnings = [item for item in checked.findings if item.severity == "warning"]
        if checked.plan is None or (strict and warnings):
            as_json = format is PlanFormat.JSON
            print(
                show_all([checked], Format.JSON if as_json else Format.TEXT),
                end="",
                file=None if as_json else sys.stderr,
            )
            raise typer.Exit(PROBLEMS)
        if diff is not None:
            text = _differences(diff, plan_contents(checked.plan), as_json=format is PlanFormat.JSON)
        elif format is PlanFormat.JSON:
            origin = Origin.here(checked.source.text, file, overrides or [], checked.texts, checked.variables)
            contents = plan_contents(checked.plan, warnings)
            text = json.dumps({**contents, "source": origin.source()}, indent=2) + "\n"
        else:
            if warnings:
                print(show_all([checked], Format.TEXT), file=sys.stderr)
            text = c_listing(checked.plan) if format is PlanFormat.C else show_plan(checked.plan) + free(checked.plan)
        text = hide(text)
        if output is None:
            print(text, end="", flush=True)
        else:
            from lima2cli.cli.border import write_output

            write_output(output, text, checked.plan.inputs)
        raise typer.Exit(FINE)


def _differences(old: str, contents: dict[str, Any], *, as_json: bool) -> str:
    """Return how a plan differs from a saved one."""
    from lima2cli.runs.saved_plan import compare, read_plan

    differences = compare(read_plan(old)[1], contents)
    if as_json:
        listed = [{"path": difference.path, "old": difference.old, "new": difference.new} for difference in differences]
        return json.dumps({"version": 1, "differences": listed}, indent=2) + "\n"
    return "".join(f"{difference}\n" for difference in differences) or f"the same plan as {old}\n"
