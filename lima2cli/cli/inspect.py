"""``lima2 inspect``."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from lima2cli.cli.border import FAILED, FINE, border
from lima2cli.cli.options import Debug


class InspectFormat(StrEnum):
    """How the accounting is shown."""

    TEXT = "text"
    JSON = "json"


def inspect(
    directory: Annotated[str, typer.Argument(metavar="DIRECTORY", help="A run directory, e.g. runs/latest.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every frame, and fail if one is not accounted for.")
    ] = False,
    format: Annotated[InspectFormat, typer.Option("--format", help="For people or for programs.")] = InspectFormat.TEXT,
    debug: Debug = False,
) -> None:
    """What is in the files of a run, recomputed from the files themselves.

    Exit code 0: every frame is accounted for, 2: no run directory, 10: with --verify, something is wrong.
    """
    with border(as_json=format is InspectFormat.JSON, debug=debug):
        from pathlib import Path

        from lima2cli.artefacts.accounting import inspect_run
        from lima2cli.cli.totals import show_summary
        from lima2cli.errors import UnreadableInput
        from lima2cli.runtime.ownership import marked

        if not Path(directory).is_dir():
            raise UnreadableInput(f"no such directory: {directory}")
        found = inspect_run(directory, verify=verify)
        if not found["flows"] and not any(Path(directory).glob("*.h5")) and not marked(Path(directory)):
            raise UnreadableInput(f"{directory} is no run directory: there is no file of a run in it")
        if format is InspectFormat.JSON:
            print(json.dumps(found, indent=2), flush=True)
        else:
            print(show_summary(Path(directory), found | {"state": "verified" if verify else "inspected"}), end="")
        raise typer.Exit(FAILED if verify and found["problems"] else FINE)
