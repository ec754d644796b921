"""``lima2 calibrate``."""

import gc
import os
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lima2cli.cli.border import Debug, Overrides, Profiles, Strict, border
from lima2cli.cli.display import ProgressStyle
from lima2cli.cli.run import Transport, TransportOption
from lima2cli.dataclass import dataclass
from lima2cli.errors import EnvironmentUnfit, UnreadableInput

if TYPE_CHECKING:
    from lima2cli.calibrate import Saved
    from lima2cli.cli.reading import Changes

ENDLESS = 100
"""Number of frames of a pipeline that has no end."""


class CalibrationKind(StrEnum):
    """Kinds of calibration files."""

    DARK = "dark"
    FLAT = "flat"
    PEDESTAL = "pedestal"
    MASK = "mask"


TAKEN_BY = {
    "dark": "background_sub: {image",
    "flat": "flatfield: {image",
    "pedestal": "gain: {pedestal",
    "mask": "mask: {image",
}
"""The parameters of nodes that take such a file."""


def calibrate(
    kind: Annotated[CalibrationKind, typer.Argument(metavar="dark|flat|pedestal|mask", help="The file to make.")],
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="A pipeline; for a pedestal perhaps one for each gain stage.")
    ],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE.h5", help="The new file.")],
    frames: Annotated[
        int | None,
        typer.Option("--frames", min=2, help=f"Number of frames; default: the pipeline's, {ENDLESS} if endless."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Dataset of the detector, where it has several.")
    ] = None,
    dark: Annotated[
        str | None, typer.Option("--dark", metavar="FILE", help="Subtracted from the frames of a flat, or of a mask.")
    ] = None,
    sigma: Annotated[
        float, typer.Option("--sigma", min=1, help="Pixels of a mask are bad beyond so many standard deviations.")
    ] = 6,
    progress: Annotated[ProgressStyle, typer.Option("--progress", help="How to show progress.")] = ProgressStyle.AUTO,
    transport: TransportOption = Transport.AUTO,
    overrides: Overrides = None,
    profiles: Profiles = None,
    strict: Strict = False,
    debug: Debug = False,
) -> None:
    """Make a calibration file: dark, flat, pedestal or mask.

    The frames are those of a pipeline's detector.

    Detector, acquisition and metadata are those of the pipeline; its nodes, flows and receivers are not used. Exit code
    0: the file is written, 1: the pipeline has problems, 10: the run failed, or its frames can't be what they should
    be, 11: frames were lost, 12: this machine cannot run it, or the file exists. Unless it is 0 nothing is written.
    """
    with border(as_json=False, debug=debug):
        from lima2cli.calibrate import images_of
        from lima2cli.cli.reading import Changes
        from lima2cli.files.calibration_file import write_calibration

        path, changes = Path(output), Changes.of(overrides, profiles)
        _check(kind.value, files, path, dark)
        gc.enable()
        with TemporaryDirectory(prefix=".lima2-calibrate-", dir=path.parent) as folder:
            runs, about = list[tuple["Saved", int]](), list[dict[str, Any]]()
            master = Path()
            whole = None if dark is None else os.path.abspath(dark)  # as the pipeline may lie elsewhere
            asked = _Asked(kind.value, frames, dataset, whole, progress, transport)
            for number, file in enumerate(files):
                asked = _Asked(
                    kind.value, frames, dataset, None if dark is None else os.path.abspath(dark), progress, transport
                )
                directory = Path(folder) / f"run{number}"
                saved, record, master = _run(file, asked, directory, changes, strict)
                runs.append((saved, record["frames"]))
                about.append(record)
            made = images_of(kind.value, runs, sigma=sigma)
            process = _process(kind.value, about, sigma if kind.value == "mask" else None, dark)
            write_calibration(path, kind.value, made.data, made.more, made.counts, process, master)
        for note in made.notes:
            typer.echo(f"note: {note}", err=True)
        typer.echo(
            f"{path}: {kind.value} of {sum(count for _, count in runs)} frames; `{TAKEN_BY[kind.value]}: {path}}}`"
        )


@dataclass(frozen=True)
class _Asked:
    """Request of the options, for each run. ``dark`` is a reference with an absolute path."""

    kind: str
    frames: int | None
    dataset: str | None
    dark: str | None
    progress: ProgressStyle
    transport: Transport


def _check(kind: str, files: list[str], path: Path, dark: str | None) -> None:
    """Raise `UnreadableInput` where options do not go together, `EnvironmentUnfit` where no file can be made."""
    from lima2cli.job.launch import job_rank

    if job_rank() is not None:
        raise EnvironmentUnfit("calibrate starts its own ranks: call it without mpiexec or srun")
    if len(files) > 1 and kind != "pedestal":
        raise UnreadableInput(f"a {kind} is made of one pipeline, not of {len(files)}")
    if dark is not None and kind not in ("flat", "mask"):
        raise UnreadableInput(f"--dark is for flat and mask, not for {kind}")
    if path.suffix not in (".h5", ".hdf5", ".nxs"):
        raise UnreadableInput(f"--output {path}: expected a name that ends in .h5")
    if os.path.lexists(path):
        raise EnvironmentUnfit(f"{path} exists, and is not overwritten")
    if not path.parent.is_dir():
        raise EnvironmentUnfit(f"there is no directory {path.parent}")


def _run(
    file: str, asked: _Asked, directory: Path, changes: "Changes", strict: bool
) -> "tuple[Saved, dict[str, Any], Path]":
    """Take the frames of a pipeline's detector; return what was saved, an account of it, and a master.

    Problems of the pipeline are shown, and end the command, as does a run that is not complete.
    """
    from lima2cli.calibrate import overrides_of, saved_by
    from lima2cli.cli.display import Display
    from lima2cli.cli.reading import compiled
    from lima2cli.drive import open_run
    from lima2cli.files.nexus import master_file
    from lima2cli.job.run import run_plan

    def replaced(frames: int | None) -> "Changes":
        own = overrides_of(asked.kind, str(directory), dark=asked.dark, dataset=asked.dataset, frames=frames)
        return changes.and_set(own)

    checked, origin = compiled(file, replaced(asked.frames), strict)
    if checked.plan is not None and checked.plan.frames is None:
        checked, origin = compiled(file, replaced(ENDLESS), strict)
    plan = checked.plan
    assert plan is not None
    display = Display(asked.progress)

    def emit(event: dict[str, Any]) -> None:
        if event.get("event") != "disk":  # what is saved is gone at the end
            display(event)

    try:
        _, summary, code = run_plan(plan, origin, emit, transport=asked.transport.value, latest=False)
    finally:
        display.close()
    if code:
        typer.echo(
            f"error[run-{summary.state}]: {summary.reason or '; '.join(summary.losses)}; nothing is written", err=True
        )
        raise typer.Exit(code)
    run = open_run(directory, watched=False)
    saved = {name: run.saved(name, 0).pixels for name in saved_by(asked.kind)}
    frames = summary.flows["data"].received or 0
    record = {
        "pipeline": origin.text,
        "overrides": list(changes.overrides),
        "frames": frames,
        "detector": plan.info.name,
    }
    if changes.profiles:
        record["profiles"] = {profile.file: profile.text for profile in changes.profiles}
    return saved, record, directory / master_file(plan.name, saved_by(asked.kind)[0])


def _process(kind: str, runs: list[dict[str, Any]], sigma: float | None, dark: str | None) -> dict[str, Any]:
    """Return what was done, as NeXus has it of an NXprocess."""
    from lima2cli import __version__

    return {
        "program": "lima2 calibrate",
        "version": __version__,
        "date": datetime.now(UTC).isoformat(),
        "kind": kind,
        "sigma": sigma,
        "dark": dark,
        "runs": {str(number): run for number, run in enumerate(runs)},
    }
