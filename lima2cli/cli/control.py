"""``lima2 stop`` and ``lima2 trigger``: what is asked of a run that goes on, from another terminal."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from lima2cli.cli.border import PROBLEMS, border
from lima2cli.cli.options import Debug

RunName = Annotated[str, typer.Argument(metavar="[RUN]", help="A run directory, or its name below runs.")]


def stop(run: RunName = "latest", debug: Debug = False) -> None:
    """End a run cleanly, as the first Ctrl-C does where it was started; of repeated acquisitions no more begin.

    Returns at once; the run then ends its files. Exit code 0: it will stop, 1: no run goes on there, 2: no run
    directory, 10: the run was broken off, or does not answer.
    """
    with border(as_json=False, debug=debug):
        directory, _ = asked(run, {"do": "stop"})
        print(f"{directory} is being stopped")


def trigger(
    run: RunName = "latest",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many triggers.")] = 1,
    debug: Debug = False,
) -> None:
    """Fire software triggers of a run with `acquisition.trigger: software`; each gives `frames_per_trigger` frames.

    Triggers that come while frames of the last one are acquired follow them. Exit code 0: fired, 1: refused, such as
    too many or before the start, 2: no run directory, 10: the run was broken off, or does not answer.
    """
    with border(as_json=False, debug=debug):
        directory, answer = asked(run, {"do": "trigger", "count": count})
        fired = answer["triggers"]
        print(f"{directory}: {fired} {'trigger' if fired == 1 else 'triggers'} so far")


def asked(run: str, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The directory of a run and what it answers; what it refuses ends the command with code 1."""
    from lima2cli.runtime.requests import ask
    from lima2cli.runtime.runs import find_run

    directory = find_run(run)
    answer = ask(directory, request)
    if not answer.get("ok"):
        typer.echo(f"error[refused]: {answer.get('message')}", err=True)
        raise typer.Exit(PROBLEMS)
    return str(directory), answer
