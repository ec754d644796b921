"""Saved plans on the command line: a run of exactly that plan, or none."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lima2cli.cli.border import PROBLEMS, tell
from lima2cli.errors import UnreadableInput

if TYPE_CHECKING:
    from lima2cli.check import Checked
    from lima2cli.runtime.origin import Origin

SHOWN = 20
"""Differences that are listed."""


def check_saved(file: str, overrides: Sequence[str], *, fuse: bool, as_event: bool) -> "tuple[Checked, Origin]":
    """The pipeline of a saved plan, compiled again as it was: with its values of ``--set``, variables and cores.

    Where that gives another plan the differences are shown, and the command ends.
    """
    from lima2cli.check import check_text
    from lima2cli.cli.reading import read
    from lima2cli.runtime.saved_plan import compare, plan_contents, read_plan

    origin, contents = read_plan(file)
    if overrides:
        raise UnreadableInput(f"{file} is a saved plan, which --set cannot change: make another from {origin.file}")
    if origin.file == "-":
        raise UnreadableInput(f"{file} was made from standard input: there is no file to compile again")
    pipeline = str(origin.base / Path(origin.file).name)
    text = read(pipeline)
    checked = check_text(
        text, pipeline, origin.base, cores=origin.cores,
        environment=origin.variables(needed=True), overrides=origin.overrides, fuse=fuse,
    )  # fmt: skip
    found = () if checked.plan is None else compare(contents, plan_contents(checked.plan))
    if found:
        listed = [f"  {difference}" for difference in found[:SHOWN]]
        more = [f"  and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        message = "\n".join([f"{file} is stale: {pipeline} compiles to another plan today", *listed, *more])
        tell(
            "stale-plan",
            message,
            as_json=False,
            help=f"look at `lima2 plan {pipeline}`, and save it with `--format json -o FILE`",
            as_event=as_event,
        )
        raise typer.Exit(PROBLEMS)
    if checked.plan is not None:
        checked = replace(checked, plan=replace(checked.plan, inputs=(*checked.plan.inputs, str(Path(file).resolve()))))
    return checked, replace(origin, text=text, file=pipeline, texts=checked.texts)
