"""``lima2 inspect`` and ``lima2 recover``."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from lima2cli.cli.border import Debug, ExitCode, border


class InspectFormat(StrEnum):
    """Formats of the accounting."""

    TEXT = "text"
    JSON = "json"


def inspect(
    directory: Annotated[str, typer.Argument(metavar="DIRECTORY", help="A run directory, e.g. runs/latest.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every frame, and fail if one is not accounted for.")
    ] = False,
    format: Annotated[InspectFormat, typer.Option("--format", help="Format of the output.")] = InspectFormat.TEXT,
    debug: Debug = False,
) -> None:
    """Show the contents of a run's files, recomputed from the files themselves.

    Exit code 0: every frame is accounted for, 2: no run directory, 10: with --verify, something is wrong.
    """
    with border(as_json=format is InspectFormat.JSON, debug=debug):
        from pathlib import Path

        from lima2cli.accounting.inspect_run import inspect_run
        from lima2cli.cli.totals import show_account
        from lima2cli.declare.plain import to_plain
        from lima2cli.errors import UnreadableInput
        from lima2cli.runs.ownership import marked

        if not Path(directory).is_dir():
            raise UnreadableInput(f"no such directory: {directory}")
        accounting = inspect_run(directory, verify=verify)
        if not accounting.flows and not any(Path(directory).glob("*.h5")) and not marked(Path(directory)):
            raise UnreadableInput(f"{directory} is not a run directory: it contains no file of a run")
        if format is InspectFormat.JSON:
            print(json.dumps(to_plain(accounting), indent=2), flush=True)
        else:
            print(show_account(Path(directory), accounting, "verified" if verify else "inspected"), end="")
        raise typer.Exit(ExitCode.FAILED if verify and accounting.problems else ExitCode.FINE)


def recover(
    directory: Annotated[str, typer.Argument(metavar="PATH", help="A run directory, e.g. runs/latest.")],
    debug: Debug = False,
) -> None:
    """Make the files of an aborted run readable, and rebuild its masters, tables and summary, from its directory alone.

    A run whose files are complete is not changed. Exit code 0: readable now, 2: no run directory, or one whose record
    of the run is damaged, 10: the run is still active, or some files stay unreadable.
    """
    with border(as_json=False, debug=debug):
        from pathlib import Path

        from lima2cli.cli.totals import show_summary
        from lima2cli.runs.control_socket import forget
        from lima2cli.runs.ending import record_of, recover_run, refuse_live, whole

        path = Path(directory)
        record = record_of(path)
        refuse_live(path)
        forget(path)
        summary = whole(path)
        if summary is not None:
            print(f"{directory} has ended ({summary.state}) and its files are complete: nothing to recover")
            raise typer.Exit(ExitCode.FINE)
        summary = recover_run(record, path)
        print(show_summary(path, summary), end="", flush=True)
        raise typer.Exit(ExitCode.FAILED if summary.problems else ExitCode.FINE)
