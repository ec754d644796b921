"""Looks at this machine, and at what a pipeline needs of it; nothing is left running or lying about."""

from pathlib import Path

from lima2cli.human import rate_text
from lima2cli.plan.records import Plan
from lima2cli.runtime.disk import output_folder
from lima2cli.runtime.doctor import Check, Diagnosis, Measured
from lima2cli.runtime.doctor_machine import machine_checks, mpi_check
from lima2cli.runtime.doctor_measure import measure_disk
from lima2cli.runtime.doctor_pipeline import pipeline_checks

DIRECTORY = "runs/{name}"
"""Where runs are saved if no pipeline says it."""


def examine(plan: Plan | None = None, base: Path = Path()) -> Diagnosis:
    """All checks of the machine, then those of a plan, whose file names ``base`` resolves; takes a few seconds."""
    mpi, put = mpi_check()
    folder = output_folder(DIRECTORY if plan is None else plan.output_directory)
    disk, rate = _disk(folder)
    measured = Measured(put, rate)
    checks = [mpi, *machine_checks(), disk]
    if plan is not None:
        checks += pipeline_checks(plan, base, measured, shared=mpi.status != "problem" and put is not None)
    return Diagnosis(tuple(checks), measured)


def _disk(folder: Path) -> tuple[Check, float | None]:
    try:
        rate = measure_disk(folder)
    except OSError as error:
        where = folder.resolve()
        message = f"no file can be written in {where}: {error.strerror}"
        return Check("machine", "disk", "problem", message, "choose another output.directory"), None
    return Check("machine", "disk", "ok", f"{rate_text(rate)} written in {folder.resolve()}"), rate
