"""``lima2 nodes``."""

from typing import Annotated

import typer

from lima2cli.cli.border import border
from lima2cli.cli.kinds import Format, KindFormat, list_kinds, show_kind
from lima2cli.cli.options import Debug

nodes = typer.Typer(help="The kinds of node: those built in, and those of installed packages.", no_args_is_help=True)


@nodes.command("list")
def list_nodes(format: Format = KindFormat.TEXT, debug: Debug = False) -> None:
    """List the kinds of node: kind, role, who brings it, what it does."""
    with border(as_json=format is KindFormat.JSON, debug=debug):
        from lima2cli.nodes.kinds import NODES

        list_kinds(NODES.all(), "nodes", format)


@nodes.command("show")
def show_node(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Such as roi_counters.")],
    format: Format = KindFormat.TEXT,
    debug: Debug = False,
) -> None:
    """Show what a node does, with its formulae and parameters.

    Exit code 0: fine, 1: the package that brings it is broken, 2: there is no such kind.
    """
    with border(as_json=format is KindFormat.JSON, debug=debug):
        from lima2cli.nodes.kinds import LANGUAGE, NODES

        show_kind("node", kind, NODES.named([kind]), format, LANGUAGE)
