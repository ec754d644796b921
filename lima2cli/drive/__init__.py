"""Runs as objects that Python programs watch and drive.

    import lima2cli as l2

    with l2.run("maze.yaml", armed=True) as run:
        run.start()
        for progress in run.progress:
            print(progress["rows"])
    print(run.summary.state, run.counters["roi"]["sum"])

A run is a process of its own, `lima2 run`, which goes on whatever becomes of the program that has started it. Its
events come from that process, and requests go to its socket.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

from lima2cli.drive.contents import Counters, LiveFrame
from lima2cli.drive.driven import Progress, Run
from lima2cli.drive.event_log import GivenUp
from lima2cli.drive.pipelines import Pipeline, PipelineInvalid, compile_pipeline, text_of, validate
from lima2cli.runs.directory import find_run

__all__ = [
    "Counters",
    "LiveFrame",
    "Pipeline",
    "PipelineInvalid",
    "Progress",
    "Run",
    "compile_pipeline",
    "open_run",
    "run",
    "validate",
]


def run(
    pipeline: Pipeline,
    *,
    armed: bool = False,
    transport: str = "auto",
    overrides: Sequence[str] = (),
    profiles: Sequence[str | os.PathLike[str]] = (),
    apart: bool = False,
) -> Run:
    """Start a run; return when it has started, or, ``armed``, when it is ready to start.

    transport  auto (MPI where it is installed), mpi or inline;  overrides  those of ``--set``;  profiles  files
    apart      Ctrl-C at the terminal of this program does not stop it

    Raises:
        UnreadableInput: its file can't be read.
        PipelineInvalid: it has mistakes; nothing was started.
        EnvironmentUnfit: this machine cannot run it.
        RunFailed: it failed before it was ready.
    """
    text, file = text_of(pipeline)
    command = [sys.executable, "-P", "-m", "lima2cli", "run", file, "--progress", "json", "--transport", transport]
    command += [word for profile in profiles for word in ("--profile", os.fspath(profile))]
    command += [word for override in overrides for word in ("--set", override)] + (["--armed"] if armed else [])
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        start_new_session=apart,
    )  # fmt: skip
    started = Run(process=process, text=text if file == "-" else "")
    try:
        started._wait_until_ready()
    except GivenUp:
        process.terminate()  # which stops it in order
        raise
    return started


def open_run(directory: str | os.PathLike[str], *, watched: bool = True) -> Run:
    """Open a run by its directory, or by its name below ``runs``; one that goes on can be driven.

    watched  False: as its files are, whether it goes on or not

    Raises:
        UnreadableInput: there is none.
    """
    return Run(directory=find_run(os.fspath(directory)), watched=watched)
