"""``lima2 recover``."""

from typing import Annotated

import typer

from lima2cli.cli.border import FAILED, FINE, PROBLEMS, border
from lima2cli.cli.options import Debug


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
        from lima2cli.cli.options import Format
        from lima2cli.cli.showing import show_all
        from lima2cli.cli.totals import show_summary
        from lima2cli.runtime.announcement import forget
        from lima2cli.runtime.recover import origin_of, recover_run, refuse_live, whole

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
