"""``lima2 run``."""

import gc
from contextlib import nullcontext
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lima2cli.cli.border import FINE, PROBLEMS, Debug, NoFuse, Overrides, Strict, border
from lima2cli.cli.display import ProgressStyle

if TYPE_CHECKING:
    from lima2cli.plan.ir import Plan
    from lima2cli.runs.saved_plan import Origin


class Transport(StrEnum):
    """Transports of frames."""

    AUTO = "auto"
    MPI = "mpi"
    INLINE = "inline"


def run(
    file: Annotated[str, typer.Argument(metavar="FILE | PLAN | -", help="A pipeline or a saved plan; - for stdin.")],
    progress: Annotated[ProgressStyle, typer.Option("--progress", help="How to tell of the run.")] = ProgressStyle.AUTO,
    transport: Annotated[
        Transport, typer.Option("--transport", help="MPI ranks (default, where MPI is), or all in this process.")
    ] = Transport.AUTO,
    overrides: Overrides = None,
    receiver: Annotated[
        str | None,
        typer.Option("--receiver", metavar="FILE.py:NAME", help="Your own processing: a function for each receiver."),
    ] = None,
    strict: Strict = False,
    no_fuse: NoFuse = False,
    debug: Debug = False,
) -> None:
    """Run a pipeline. Starts the MPI ranks that it needs by itself, or joins those of mpiexec or srun.

    Ctrl-C ends the run cleanly, a second one at once. Exit code 0: complete, 1: the file has problems, 10: the run
    failed, 11: data were lost although the pipeline forbids it, 12: this machine cannot run it (nothing was started),
    130 and 143: stopped by a signal.
    """
    with border(as_json=False, as_event=progress is ProgressStyle.JSON, debug=debug):
        from lima2cli.cli.display import Display
        from lima2cli.cli.totals import show_summary
        from lima2cli.job.mpi_join import Leader, follow, job_rank
        from lima2cli.job.run import note, run_plan

        rank = None if transport is Transport.INLINE else job_rank()
        if rank:
            gc.enable()
            follow()
            raise typer.Exit(FINE)
        with nullcontext() if rank is None else Leader() as leader:
            own = None if receiver is None else _own_processing(receiver)
            plan, origin = _plan_of(file, overrides or [], strict, progress, fuse=not no_fuse, own=own)
            gc.enable()
            display = Display(progress)
            try:
                if leader is not None:
                    directory, summary, code = leader.run(plan, origin, display)
                else:
                    directory, summary, code = run_plan(plan, origin, display, transport=transport.value)
                if progress not in (ProgressStyle.JSON, ProgressStyle.NONE):
                    display.print(show_summary(directory, summary))
            finally:
                unseen = display.close()
        if unseen is not None:
            note(directory, unseen)
        raise typer.Exit(code)


def _own_processing(reference: str) -> str:
    """Return the function that ``--receiver`` names, its file by its whole path.

    Raises:
        UnreadableInput: there is none.
    """
    from lima2cli.errors import FileProblem, NodeMisuse, UnreadableInput
    from lima2cli.inputs.stacks import FileStore
    from lima2cli.nodes.user_function import look

    where, colon, name = reference.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise UnreadableInput(f"--receiver {reference}: `file.py:name` or `module:name` is a function")
    try:
        with FileStore(Path()) as files:
            look(reference, files)
    except (NodeMisuse, FileProblem) as error:
        raise UnreadableInput(f"--receiver {reference}: {error}") from error
    return f"{Path(where).resolve()}:{name}" if where.endswith(".py") else reference


def _plan_of(
    file: str, overrides: list[str], strict: bool, progress: ProgressStyle, *, fuse: bool, own: str | None
) -> "tuple[Plan, Origin]":
    """Return the plan of a file, and its origin; problems are shown, and end the command."""
    from lima2cli.cli.border import Format
    from lima2cli.cli.reading import check_pipeline, check_saved, show_all, show_as_events
    from lima2cli.runs.saved_plan import Origin, looks_saved

    if looks_saved(file):
        checked, origin = check_saved(file, overrides, fuse=fuse, as_event=progress is ProgressStyle.JSON)
    else:
        checked = check_pipeline(file, overrides, fuse=fuse)
        origin = Origin.here(checked.source.text, file, overrides, checked.texts, checked.variables)
    if own is not None:  # which reads what no node does
        checked.findings.items[:] = [item for item in checked.findings if item.rule != "unused-flow"]
    if checked.plan is None or (strict and any(True for _ in checked.findings)):
        as_json = progress is ProgressStyle.JSON
        shown = show_as_events(checked) if as_json else show_all([checked], Format.TEXT)
        typer.echo(shown, nl=False, err=not as_json)
        raise typer.Exit(PROBLEMS)
    if progress is ProgressStyle.JSON:
        print(show_as_events(checked), end="", flush=True)
    else:
        typer.echo(show_all([checked], Format.CONCISE), nl=False, err=True)
    if own is not None and checked.plan.repeat > 1:
        raise typer.BadParameter("your own processing takes the blocks of one acquisition: not with acquisition.repeat")
    return replace(checked.plan, processing=own), origin
