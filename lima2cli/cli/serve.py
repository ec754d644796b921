"""``lima2 serve`` and ``lima2 view``: runs watched and driven by REST, by clients of Lima2, and in a browser."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from lima2cli.cli.border import Debug, border
from lima2cli.errors import EnvironmentUnfit, UnreadableInput

if TYPE_CHECKING:
    from lima2cli.drive import Run
    from lima2cli.web.library import Library

Files = Annotated[
    list[str] | None, typer.Argument(metavar="[PIPELINE...]", help="Pipelines that may be started by their names.")
]
Folder = Annotated[str, typer.Option("--directory", help="The folder that contains the run directories.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0: any that is free.")]
Token = Annotated[
    str | None,
    typer.Option("--token", envvar="LIMA2_TOKEN", metavar="TOKEN", help="A secret of yours instead of a random one."),
]

Pva = Annotated[
    str | None,
    typer.Option("--pva", metavar="PREFIX", help="Show the newest run as process variables of EPICS, too."),
]

SHORTEST_TOKEN = 16
"""Fewest characters of a token."""


CONDUCTOR_PORT = 58712
"""Port at which clients of the conductor look for it."""


class Transport(StrEnum):
    """Transports of frames."""

    AUTO = "auto"
    MPI = "mpi"
    INLINE = "inline"


def serve(
    pipelines: Files = None,
    directory: Folder = "runs",
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=0, max=65535, help="Port on 127.0.0.1; default: any that is free, with --conductor 58712."
        ),
    ] = None,
    token: Token = None,
    conductor: Annotated[
        bool,
        typer.Option(
            "--conductor", help="Be a conductor of Lima2 for lima2-client, without a token; PIPELINE is what it drives."
        ),
    ] = False,
    transport: Annotated[
        Transport | None,
        typer.Option("--transport", help="With --conductor: MPI ranks (where MPI is installed), or one process."),
    ] = None,
    pva: Pva = None,
    debug: Debug = False,
) -> None:
    """Serve runs over HTTP: REST, events and metrics.

    To programs of this machine that have the token.

    Prints the address with the token. Ctrl-C ends the server; the runs that
    it has started go on. With --conductor every program of this machine may drive the pipeline, as it drives Lima2.
    Exit code 0; 2: no such pipeline, or options that do not go together, 12: no such port, or a package is missing.
    """
    with border(as_json=False, debug=debug):
        if conductor:
            if len(pipelines or []) != 1 or token is not None or directory != "runs" or pva is not None:
                raise UnreadableInput(
                    "--conductor takes one pipeline, no token (--token, LIMA2_TOKEN), no --directory and no --pva"
                )
            _conduct((pipelines or [])[0], CONDUCTOR_PORT if port is None else port, transport or Transport.AUTO)
        elif transport is not None:
            raise UnreadableInput("--transport goes with --conductor")
        else:
            _serve(pipelines or [], directory, port or 0, token, page=False, browser=False, pva=pva)


def _conduct(file: str, port: int, transport: Transport) -> None:
    try:
        from lima2cli.web.conductor.server import ConductorServer
        from lima2cli.web.conductor.system import BaseFile, System
        from lima2cli.web.server import serve_until_stopped
    except ModuleNotFoundError as error:
        raise EnvironmentUnfit(f"there is no package {error.name} here: pip install 'lima2cli[serve]'") from error
    import asyncio

    server = ConductorServer(System(BaseFile(file), transport.value), port=port)
    asyncio.run(serve_until_stopped(server, lambda: print(server.url, flush=True)))
    _leave()


def _serve(
    pipelines: list[str],
    directory: str,
    port: int,
    token: str | None,
    *,
    page: bool,
    browser: bool,
    run: str = "",
    pva: str | None = None,
) -> None:
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise UnreadableInput(f"a token has at least {SHORTEST_TOKEN} characters")
    try:
        from lima2cli.web.library import Library
        from lima2cli.web.server import Server, serve_until_stopped
    except ModuleNotFoundError as error:
        extra = "view" if page else "serve"
        raise EnvironmentUnfit(f"there is no package {error.name} here: pip install 'lima2cli[{extra}]'") from error
    import asyncio
    from urllib.parse import quote

    library = Library(pipelines, directory)
    server = Server(library, port=port, token=token, page=page)
    if pva is not None:
        _publish(library, pva)
    url = server.url + (f"&run={quote(run)}" if run else "")

    def ready() -> None:
        print(url, flush=True)
        if browser:
            _open(url)

    asyncio.run(serve_until_stopped(server, ready))
    _leave()


def _publish(library: "Library", prefix: str) -> None:
    """Show the newest run of a library as process variables, in threads, as long as this process goes on."""
    import re
    import threading

    from lima2cli.language.records import PREFIX

    if re.fullmatch(PREFIX, prefix) is None:
        raise UnreadableInput(f"--pva {prefix}: a prefix has letters, digits and `_ : . -`, at most 60")
    try:
        from lima2cli.pva import Publisher, show_newest
    except ModuleNotFoundError as error:
        raise EnvironmentUnfit(f"there is no package {error.name} here: pip install 'lima2cli[pva]'") from error

    def newest() -> "Run | None":
        name = library.latest()
        return None if name is None else library.open(name)

    threading.Thread(target=show_newest, args=(Publisher(prefix), newest, threading.Event()), daemon=True).start()


def _leave() -> None:
    """End this process at once: threads may be in calls of HDF5 or of sockets, in which the interpreter's end hangs."""
    import os
    import sys

    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def _open(url: str) -> None:
    """Open an address in the browser of the user, where there is one."""
    import webbrowser

    if not webbrowser.open(url):
        typer.echo("there is no browser here: open the address in one of this machine", err=True)


def view(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="A run of the folder; by default the latest.")] = "",
    pipeline: Annotated[
        list[str] | None,
        typer.Option("--pipeline", "-p", metavar="FILE", help="A pipeline that the page may start; may be repeated."),
    ] = None,
    directory: Folder = "runs",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    port: Port = 0,
    token: Token = None,
    pva: Pva = None,
    debug: Debug = False,
) -> None:
    """Show runs in a browser on this machine.

    Images as they come, regions, counters, rates; buttons to drive them.

    Has all that `lima2 serve` has. Prints the address of the page with its token; Ctrl-C ends the server, and the runs
    go on. Exit code 0; 2: no such pipeline, 12: no such port, or a package is missing.
    """
    with border(as_json=False, debug=debug):
        _serve(pipeline or [], directory, port, token, page=True, browser=browser, run=run, pva=pva)
