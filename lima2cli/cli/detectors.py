"""``lima2 detectors``."""

from typing import Annotated

import typer

from lima2cli.cli.border import PROBLEMS, border
from lima2cli.cli.capabilities import compared, configured_text, record_text
from lima2cli.cli.kinds import Format, KindFormat, list_kinds, show_kind
from lima2cli.cli.options import Debug

detectors = typer.Typer(
    help="The kinds of detector: those built in, and those of installed packages.", no_args_is_help=True
)


@detectors.command("list")
def list_detectors(format: Format = KindFormat.TEXT, debug: Debug = False) -> None:
    """List the kinds of detector: kind, role, who brings it, what it is; then what each can do."""
    with border(as_json=format is KindFormat.JSON, debug=debug):
        from lima2cli.detectors.kinds import DETECTORS

        kinds = DETECTORS.all()
        list_kinds(kinds, "detectors", format)
        known = {name: can for name, kind in kinds.items() if (can := getattr(kind.table, "capabilities", None))}
        if format is KindFormat.TEXT:
            print("\n" + "\n".join(compared(known)), flush=True)


@detectors.command("show")
def show_detector(
    kind: Annotated[
        str, typer.Argument(metavar="KIND | FILE", help="Such as remu; or a pipeline, whose detector is shown.")
    ],
    format: Format = KindFormat.TEXT,
    debug: Debug = False,
) -> None:
    """Show a kind of detector: parameters, and what it can do whatever they are.

    Of a pipeline (a name with a dot or a slash in it): its detector as it is configured; as JSON its capability record.

    Exit code 0: fine, 1: the package that brings it is broken, or the pipeline has problems, 2: there is no such kind.
    """
    with border(as_json=format is KindFormat.JSON, debug=debug):
        from lima2cli.detectors.kinds import DETECTORS

        if "." in kind or "/" in kind:
            _show_configured(kind, as_json=format is KindFormat.JSON)
            return
        show_kind("detector", kind, DETECTORS.named([kind]), format)


def _show_configured(file: str, *, as_json: bool) -> None:
    """The detector of a pipeline; what is wrong with the pipeline is told instead."""
    import sys

    from lima2cli.cli.options import Format as Diagnostics
    from lima2cli.cli.reading import check_file
    from lima2cli.cli.showing import show_all

    checked = check_file(file)
    if checked.findings.failed or checked.pipeline is None:
        print(show_all([checked], Diagnostics.TEXT), end="", file=sys.stderr, flush=True)
        raise typer.Exit(PROBLEMS)
    config, info = checked.pipeline.config, checked.pipeline.detector.sensor
    print(record_text(config, info) if as_json else configured_text(config, info), flush=True)
