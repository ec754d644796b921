"""The command line. Thin: each command is a file, and imports what it needs when it is called."""

import gc
import os
from typing import Annotated

import typer

from lima2cli.cli.calibrate import calibrate
from lima2cli.cli.check import doctor, plan, schema, validate
from lima2cli.cli.config import config
from lima2cli.cli.kinds import detectors, nodes
from lima2cli.cli.learn import explain, graph, new
from lima2cli.cli.run import run
from lima2cli.cli.runs import densify, inspect, recover, runs, set_parameter, start, stop, tap, trigger
from lima2cli.cli.serve import serve, view
from lima2cli.cli.show import show
from lima2cli.cli.simulate import simulate
from lima2cli.cli.suites import run_tests
from lima2cli.cli.top import top
from lima2cli.errors import ExitCode
from lima2cli.foreign import leave

app = typer.Typer(
    name="lima2",
    help="Declarative pipelines for 2D X-ray detectors that are faster than one computer.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        from lima2cli import __version__

        typer.echo(f"lima2 {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Declarative pipelines for 2D X-ray detectors that are faster than one computer."""


for command in (
    validate, plan, config, graph, doctor, run, simulate, run_tests, inspect, top, tap, show, start, stop, trigger,
    serve, view, recover, densify, calibrate, new, explain, schema,
):  # fmt: skip
    app.command("test" if command is run_tests else None)(command)
app.command("set")(set_parameter)
app.add_typer(runs, name="runs")
app.add_typer(nodes, name="nodes")
app.add_typer(detectors, name="detectors")


def main() -> None:
    """Entry point of the program ``lima2``."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # where one of the standard streams is closed, a file of a run would get its number, and what C prints
    os.close(descriptor)
    gc.disable()  # most commands only import and compile: a sixth of their time; `run` enables it again
    try:
        app(prog_name="lima2")
    except SystemExit as end:
        leave(end.code if isinstance(end.code, int) else ExitCode.FINE if end.code is None else ExitCode.FAILED)
        raise
