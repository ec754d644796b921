"""``lima2 detectors``."""

from typing import Annotated

import typer

from lima2cli.cli.border import border
from lima2cli.cli.kinds import Format, KindFormat, list_kinds, show_kind
from lima2cli.cli.options import Debug

detectors = typer.Typer(
    help="The kinds of detector: those built in, and those of installed packages.", no_args_is_help=True
)


@detectors.command("list")
def list_detectors(format: Format = KindFormat.TEXT, debug: Debug = False) -> None:
    """List the kinds of detector: kind, role, who brings it, what it is."""
    with border(as_json=format is KindFormat.JSON, debug=debug):
        from lima2cli.detectors.kinds import DETECTORS

        list_kinds(DETECTORS.all(), "detectors", format)


@detectors.command("show")
def show_detector(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Such as remu.")],
    format: Format = KindFormat.TEXT,
    debug: Debug = False,
) -> None:
    """Show a kind of detector: parameters, and what it can do whatever they are.

    Exit code 0: fine, 1: the package that brings it is broken, 2: there is no such kind.
    """
    with border(as_json=format is KindFormat.JSON, debug=debug):
        from lima2cli.detectors.kinds import DETECTORS

        show_kind("detector", kind, DETECTORS.named([kind]), format)
