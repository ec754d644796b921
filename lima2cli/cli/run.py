"""``lima2 run``."""

import gc
from contextlib import nullcontext
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lima2cli.cli.border import Debug, ExitCode, NoFuse, Overrides, Profiles, Strict, border
from lima2cli.cli.display import ProgressStyle

if TYPE_CHECKING:
    from lima2cli.cli.reading import Changes
    from lima2cli.document import Source
    from lima2cli.plan.ir import Plan
    from lima2cli.runs.saved_plan import Origin


class Transport(StrEnum):
    """Transports of frames."""

    AUTO = "auto"
    MPI = "mpi"
    INLINE = "inline"


Frames = Annotated[
    int | None,
    typer.Option("--frames", min=0, metavar="N", help="Short for `--set acquisition.frames=N`; 0: until stopped."),
]

TransportOption = Annotated[
    Transport,
    typer.Option("--transport", help="MPI ranks (default where MPI is installed), or all ranks in this process."),
]


def run(
    file: Annotated[str, typer.Argument(metavar="FILE | PLAN | -", help="A pipeline or a saved plan; - for stdin.")],
    progress: Annotated[ProgressStyle, typer.Option("--progress", help="How to show progress.")] = ProgressStyle.AUTO,
    transport: TransportOption = Transport.AUTO,
    armed: Annotated[
        bool, typer.Option("--armed", help="Get ready, then wait for `lima2 start` (`acquisition.start: request`).")
    ] = False,
    overrides: Overrides = None,
    profiles: Profiles = None,
    frames: Frames = None,
    receiver: Annotated[
        str | None,
        typer.Option(
            "--receiver", metavar="FILE.py:NAME", help="Your own processing: a function that each receiver runs."
        ),
    ] = None,
    strict: Strict = False,
    no_fuse: NoFuse = False,
    debug: Debug = False,
) -> None:
    """Run a pipeline. Starts the MPI ranks that it needs, or joins those of mpiexec or srun.

    Ctrl-C ends the run cleanly, a second one at once. Exit code 0: complete, 1: the file has problems, 10: the run
    failed, 11: data were lost although the pipeline forbids it, 12: this machine cannot run it (nothing was started),
    130 and 143: stopped by a signal.
    """
    with border(as_json=False, as_event=progress is ProgressStyle.JSON, debug=debug):
        from lima2cli.cli.display import Display, show_summary
        from lima2cli.cli.reading import Changes
        from lima2cli.cli.top import NodeTable
        from lima2cli.job.launch import job_rank
        from lima2cli.job.run import Leader, Publication, follow, note, run_plan
        from lima2cli.runs.saved_plan import looks_saved

        rank = None if transport is Transport.INLINE else job_rank()
        if rank:
            gc.enable()
            follow()
            raise typer.Exit(ExitCode.FINE)
        with nullcontext() if rank is None else Leader() as leader:
            own = None if receiver is None else _own_processing(receiver)
            changes = Changes.of(overrides, profiles, frames)
            plan, origin, source = _plan_of(file, changes, strict, progress, fuse=not no_fuse, own=own)
            if leader is not None and not looks_saved(file):
                plan, origin = leader.fitted(plan, origin)
            plan = replace(plan, on_request=plan.on_request or armed)
            gc.enable()
            publication = Publication(plan.pva)
            display, failures = Display(progress, NodeTable()), list[dict[str, Any]]()

            def emit(event: dict[str, Any]) -> None:
                publication.look(event)
                if event["type"] == "error":
                    failures.append(event)
                display(event)

            try:
                if leader is not None:
                    directory, summary, code = leader.run(plan, origin, emit)
                else:
                    directory, summary, code = run_plan(plan, origin, emit, transport=transport.value)
                if progress not in (ProgressStyle.JSON, ProgressStyle.NONE):
                    display.print(show_summary(directory, summary))
                    if summary.state == "failed":
                        display.print(_where_failed(failures, plan, source, directory, launched=leader is None))
            finally:
                unseen = display.close()
                publication.close()
        if unseen is not None:
            note(directory, unseen)
        raise typer.Exit(code)


def _where_failed(
    failures: list[dict[str, Any]], plan: "Plan", source: "Source", directory: Path, *, launched: bool
) -> str:
    """Return the place of the first failure (rank, host, node, frame, line of the pipeline) and the log, in lines.

    launched  by lima2, which then knows the hosts; a job that was joined has put ranks where it liked
    """
    import socket

    from lima2cli.document import Document
    from lima2cli.runs.ownership import LOG

    lines = []
    for event in failures[:1]:
        role = plan.ranks[event["rank"]]
        host = f" on {plan.placement_of(role).host or socket.gethostname()}" if launched else ""
        who = role.role if role.receiver is None else plan.receivers[role.receiver]
        frame = "" if event.get("frame") is None else f", frame {event['frame']}"
        key = ("detector",) if role.role == "detector" else ("nodes", event["node"]) if event.get("node") else ()
        if key and isinstance(source, Document):
            place = source.place(key, on_key=True)
            lines.append(f"  --> {place.file}:{place.span.line}:{place.span.column}  at /{'/'.join(key)}")
        lines.append(f"   = rank {role.rank} ({who}){host}{frame}")
    lines += [f"   = log: {directory / LOG}"] if (directory / LOG).exists() else []  # all in one process need none
    return "".join(f"{line}\n" for line in lines)


def _own_processing(reference: str) -> str:
    """Return the function that ``--receiver`` names, its file by its whole path.

    Raises:
        UnreadableInput: there is none.
    """
    from lima2cli.errors import FileProblem, NodeMisuse, UnreadableInput
    from lima2cli.inputs.stacks import FileStore
    from lima2cli.nodes.user_function import check_function

    where, colon, name = reference.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise UnreadableInput(f"--receiver {reference}: `file.py:name` or `module:name` is a function")
    try:
        with FileStore(Path()) as files:
            check_function(reference, files)
    except (NodeMisuse, FileProblem) as error:
        raise UnreadableInput(f"--receiver {reference}: {error}") from error
    return f"{Path(where).resolve()}:{name}" if where.endswith(".py") else reference


def _plan_of(
    file: str, changes: "Changes", strict: bool, progress: ProgressStyle, *, fuse: bool, own: str | None
) -> "tuple[Plan, Origin, Source]":
    """Return the plan of a file, its origin, and its text with places; problems are shown, and end the command."""
    from lima2cli.cli.border import Format
    from lima2cli.cli.reading import check_pipeline, check_saved, origin_of, show_all, show_as_events
    from lima2cli.runs.saved_plan import looks_saved

    if looks_saved(file):
        checked, origin = check_saved(file, changes, fuse=fuse, as_event=progress is ProgressStyle.JSON)
    else:
        checked = check_pipeline(file, changes, fuse=fuse)
        origin = origin_of(checked, file, changes)
    if own is not None:  # which reads what no node does
        checked.findings.items[:] = [item for item in checked.findings if item.rule != "unused-flow"]
    if checked.plan is None or (strict and any(True for _ in checked.findings)):
        as_json = progress is ProgressStyle.JSON
        shown = show_as_events(checked) if as_json else show_all([checked], Format.TEXT)
        typer.echo(shown, nl=False, err=not as_json)
        raise typer.Exit(ExitCode.PROBLEMS)
    if progress is ProgressStyle.JSON:
        print(show_as_events(checked), end="", flush=True)
    else:
        typer.echo(show_all([checked], Format.CONCISE), nl=False, err=True)
    if own is not None and checked.plan.repeat != 1:
        raise typer.BadParameter(
            "--receiver takes the blocks of one acquisition: it cannot be combined with acquisition.repeat"
        )
    return replace(checked.plan, processing=own), origin, checked.source
