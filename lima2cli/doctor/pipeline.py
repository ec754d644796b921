"""Checks of a machine for one pipeline: its memory, its rates, its disk, its detector."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from lima2cli.doctor import Bandwidths, Check, CheckStatus, Diagnosis
from lima2cli.doctor.machine import machine_checks, measure_disk, mpi_check, receive_buffer
from lima2cli.errors import EnvironmentUnfit
from lima2cli.job.resources import (
    SHARED_MEMORY,
    all_here,
    available_memory,
    check_disk,
    check_files,
    check_memory,
    check_placement,
    cores,
    elsewhere,
    output_folder,
)
from lima2cli.plan.figures import link_figures, volumes
from lima2cli.plan.ir import Plan
from lima2cli.units import rate_text, size_text


def _check(name: str, status: CheckStatus, message: str, help: str | None = None) -> Check:
    return Check("pipeline", name, status, message, help)


def pipeline_checks(plan: Plan, base: Path, measured: Bandwidths, *, shared: bool) -> Iterator[Check]:
    """Yield all checks of a plan. ``base`` resolves its file names, ``shared``: memspaces are in /dev/shm."""
    placed = plan if shared else all_here(plan)
    yield _ranks(plan)
    yield _unless("memory", lambda: check_memory(placed, shared=shared), _memory_text(placed, shared))
    if any(region.path is not None for region in plan.regions):
        yield _mapped(placed, base)
    if any(placement.said for placement in plan.placements):
        yield _placement(plan, shared)
    yield _detector(plan)
    if (packets := plan.record.get("detector", {}).get("jungfrau")) is not None:
        yield receive_buffer(int(packets.get("buffer", 4 << 20)))
    yield _transfer_rate(plan, measured.put)
    if plan.channels:
        yield _disk_rate(plan, measured.disk)
        yield disk_room(plan)


def _mapped(plan: Plan, base: Path) -> Check:
    def check() -> None:
        check_files(plan, base)
        check_disk(replace(plan, channels={}), base)

    return _unless("mapped memspaces", check, "there is room for them")


def _unless(name: str, check: Callable[[], None], fine: str) -> Check:
    """Return the finding of a check of the run itself."""
    try:
        check()
    except EnvironmentUnfit as error:
        return _check(name, "problem", str(error))
    return _check(name, "ok", fine)


def _detector(plan: Plan) -> Check:
    finding = _unless(f"detector {plan.info.name}", plan.detector.check_machine, "has what it needs")
    if finding.status == "ok" and plan.detector.writes_itself:
        message = "can be set up, but this version of lima2 receives no frame from such a detector"
        return _check(finding.name, "problem", message, "put the detector `remu` in its place to try the pipeline")
    return finding


def _ranks(plan: Plan) -> Check:
    ranks, available = len(plan.ranks), cores()
    working = sum(role.role != "control" for role in plan.ranks)
    message = f"{ranks} ranks, of which {working} move or process frames, on {available} CPUs"
    if working > available:
        return _check("CPUs", "warning", f"{message}: they take turns, so that rates are lower than with a CPU each")
    return _check("CPUs", "ok", message)


def _placement(plan: Plan, by_mpi: bool) -> Check:
    name = "placement"
    if not by_mpi:
        return _check(name, "warning", "all ranks run in one process: `host`, `cpus` and `numa` mean nothing")
    away = [plan.receivers[index] for index in sorted(elsewhere(plan))]
    finding = _unless(name, lambda: check_placement(plan), "the CPUs and NUMA nodes of receivers are there")
    if finding.status == "ok" and away:
        return _check(name, "warning", f"on other machines, where nothing was checked: {', '.join(away)}")
    return finding


def _memory_text(plan: Plan, shared: bool) -> str:
    away = elsewhere(plan)
    windows = sum(region.size for region in plan.regions if region.path is None and region.receiver not in away)
    message = f"memspaces need {size_text(windows)}"
    if shared and SHARED_MEMORY.is_dir():
        message += f", /dev/shm has {size_text(shutil.disk_usage(SHARED_MEMORY).free)} free"
    available = available_memory()
    return message if available is None else f"{message}; {size_text(available)} of memory are available"


def _transfer_rate(plan: Plan, measured: float | None) -> Check:
    """Return the transfer rate of all modules together: on one machine they share the memory."""
    name = "transfers"
    if plan.period_s is None:
        return _check(name, "ok", "no rate is asked for: as fast as the slowest part allows")
    needed = sum(rate for rate in link_figures(plan)["modules"].values())
    if measured is None:
        return _check(name, "warning", f"{rate_text(needed)} are needed; what there is was not measured")
    message = f"{rate_text(needed)} are needed, {rate_text(measured)} were measured"
    if needed <= measured:
        return _check(name, "ok", message)
    return _too_slow(plan, name, message, "a longer period, a smaller source, or fewer frames (slices)")


def _too_slow(plan: Plan, name: str, message: str, help: str) -> Check:
    """Return a problem where data would be lost, a warning where the source waits."""
    if all(gdt.waits for gdt in plan.gdts):
        return _check(name, "warning", f"{message}: the run will be slower than asked", help)
    return _check(name, "problem", f"{message}: data would be lost", help)


def _disk_rate(plan: Plan, measured: float | None) -> Check:
    name = "saving rate"
    if plan.period_s is None:
        return _check(name, "ok", "no rate is asked for: as fast as the slowest part allows")
    sizes = {channel.node: channel.frame_bytes for channel in volumes(plan)}
    needed = sum(sizes[name] / (plan.period_s * channel.rule.step) for name, channel in plan.channels.items())
    if measured is None:
        return _check(name, "warning", f"{rate_text(needed)} are to be saved; what the disk can was not measured")
    message = f"{rate_text(needed)} are to be saved{_compressed(plan)}, {rate_text(measured)} were measured"
    if needed <= measured:
        return _check(name, "ok", message)
    if _compressed(plan):
        return _check(name, "warning", message, "whether it is enough depends on how well frames can be compressed")
    return _too_slow(plan, name, message, "another disk, compression, or fewer frames")


def disk_room(plan: Plan) -> Check:
    """Return the check of the size of the data against the free disk space; compression may make it less."""
    folder, saved = output_folder(plan.output_directory).resolve(), volumes(plan)
    name, free = "disk", shutil.disk_usage(folder).free
    listed = ", ".join(map(str, saved))
    if any(volume.bytes is None for volume in saved):
        return _check(name, "ok", f"{folder} has {size_text(free)} free; the run has no end: {listed}")
    needed, sure = (sum(volume.bytes or 0 for volume in saved if not (volume.less and less)) for less in (False, True))
    message = f"{size_text(needed)} are to be saved{_compressed(plan)}, {folder} has {size_text(free)} free: {listed}"
    if needed <= free:
        return _check(name, "ok", message)
    return _check(name, "problem" if sure > free else "warning", message, "another output.directory")


def _compressed(plan: Plan) -> str:
    """Return a remark about sizes that compression and sparse frames make smaller; empty where nothing does."""
    smaller = [channel for channel in plan.channels.values() if channel.sparse or channel.compression != "none"]
    return " (before compression)" if smaller else ""


DIRECTORY = "runs/{name}"
"""Folder of runs if no pipeline has one."""


def examine(plan: Plan | None = None, base: Path = Path()) -> Diagnosis:
    """Return all checks of the machine, then those of a plan, in a few seconds.

    base  resolves file names of the plan
    """
    mpi, put = mpi_check()
    folder = output_folder(DIRECTORY if plan is None else plan.output_directory)
    disk, rate = _disk(folder)
    measured = Bandwidths(put, rate)
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
