"""``lima2 inspect`` and ``lima2 recover``."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from lima2cli.cli.border import FAILED, FINE, PROBLEMS, Debug, border


class InspectFormat(StrEnum):
    """Formats of the accounting."""

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
    """Show what the files of a run hold, recomputed from the files themselves.

    Exit code 0: every frame is accounted for, 2: no run directory, 10: with --verify, something is wrong.
    """
    with border(as_json=format is InspectFormat.JSON, debug=debug):
        from pathlib import Path

        from lima2cli.accounting.inspect_run import inspect_run
        from lima2cli.cli.totals import show_summary
        from lima2cli.errors import UnreadableInput
        from lima2cli.runs.ownership import marked

        if not Path(directory).is_dir():
            raise UnreadableInput(f"no such directory: {directory}")
        accounting = inspect_run(directory, verify=verify)
        if not accounting["flows"] and not any(Path(directory).glob("*.h5")) and not marked(Path(directory)):
            raise UnreadableInput(f"{directory} is no run directory: there is no file of a run in it")
        if format is InspectFormat.JSON:
            print(json.dumps(accounting, indent=2), flush=True)
        else:
            print(show_summary(Path(directory), accounting | {"state": "verified" if verify else "inspected"}), end="")
        raise typer.Exit(FAILED if verify and accounting["problems"] else FINE)


def recover(
    directory: Annotated[str, typer.Argument(metavar="PATH", help="A run directory, e.g. runs/latest.")],
    debug: Debug = False,
) -> None:
    """Make the files of a broken run readable, and rebuild its masters, tables and summary.

    A run that ended in order is left as it is. Exit code 0: readable now, 1: its pipeline cannot be compiled any more,
    2: no run directory, 10: the run goes on, or some files stay unreadable.
    """
    with border(as_json=False, debug=debug):
        from pathlib import Path

        from lima2cli.check import check_text
        from lima2cli.cli.border import Format
        from lima2cli.cli.reading import show_all
        from lima2cli.cli.totals import show_summary
        from lima2cli.job.recovery import origin_of, recover_run, refuse_live, whole
        from lima2cli.runs.control_socket import forget

        path = Path(directory)
        origin, figures = origin_of(path)
        refuse_live(path)
        forget(path)
        summary = whole(path)
        if summary is not None:
            print(f"{directory} ended in order ({summary['state']}): nothing to recover")
            raise typer.Exit(FINE)
        checked = check_text(
            origin.text,
            origin.file,
            origin.base,
            cores=origin.cores,
            environment=origin.variables(needed=False),
            overrides=origin.overrides,
            texts=origin.texts,
            here=None,
        )
        if checked.plan is None:
            typer.echo(show_all([checked], Format.TEXT), nl=False, err=True)
            raise typer.Exit(PROBLEMS)
        summary = recover_run(checked.plan, figures, path)
        print(show_summary(path, summary), end="", flush=True)
        raise typer.Exit(FAILED if summary["problems"] else FINE)
