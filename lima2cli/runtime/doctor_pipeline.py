"""Whether a machine is fit for one pipeline: its memory, its rates, its disk, its detector."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lima2cli.artefacts.channel import Channel
from lima2cli.errors import EnvironmentUnfit
from lima2cli.human import rate_text, size_text
from lima2cli.plan.figures import link_figures
from lima2cli.plan.records import Plan
from lima2cli.runtime.doctor import Check, Measured, Status
from lima2cli.runtime.doctor_machine import receive_buffer
from lima2cli.runtime.environment import (
    SHARED_MEMORY,
    available_memory,
    check_files,
    check_memory,
    check_placement,
    cores,
)
from lima2cli.runtime.placement import all_here, elsewhere


def _check(name: str, status: Status, message: str, help: str | None = None) -> Check:
    return Check("pipeline", name, status, message, help)


def pipeline_checks(plan: Plan, base: Path, measured: Measured, *, shared: bool) -> Iterator[Check]:
    """All checks of a plan. ``base`` resolves its file names, ``shared``: memspaces are in /dev/shm."""
    placed = plan if shared else all_here(plan)
    yield _ranks(plan)
    yield _unless("memory", lambda: check_memory(placed, shared=shared), _memory_text(placed, shared))
    if any(region.path is not None for region in plan.regions):
        yield _unless("mapped memspaces", lambda: check_files(placed, base), "there is room for them")
    if any(it.said for it in plan.placements):
        yield _placement(plan, shared)
    yield _detector(plan)
    if (packets := plan.record.get("detector", {}).get("jungfrau")) is not None:
        yield receive_buffer(int(packets.get("buffer", 4 << 20)))
    yield _transfer_rate(plan, measured.put)
    if plan.channels:
        yield _disk_rate(plan, measured.disk)
        yield disk_room(plan, output_folder(plan.output_directory))


def output_folder(template: str) -> Path:
    """The folder in which run directories are made, as far as it exists."""
    folder = Path(template.partition("{")[0] + "x").parent
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _unless(name: str, check: Callable[[], None], fine: str) -> Check:
    """What a check of the run itself says."""
    try:
        check()
    except EnvironmentUnfit as error:
        return _check(name, "problem", str(error))
    return _check(name, "ok", fine)


def _detector(plan: Plan) -> Check:
    found = _unless(f"detector {plan.info.name}", plan.detector.check_machine, "has what it needs")
    if found.status == "ok" and plan.detector.writes_itself:
        message = "can be set up, but this version of lima2 receives no frame from such a detector"
        return _check(found.name, "problem", message, "put the detector `remu` in its place to try the pipeline")
    return found


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
    found = _unless(name, lambda: check_placement(plan), "the CPUs and NUMA nodes of receivers are there")
    if found.status == "ok" and away:
        return _check(name, "warning", f"on other machines, where nothing was checked: {', '.join(away)}")
    return found


def _memory_text(plan: Plan, shared: bool) -> str:
    away = elsewhere(plan)
    windows = sum(region.size for region in plan.regions if region.path is None and region.receiver not in away)
    text = f"memspaces need {size_text(windows)}"
    if shared and SHARED_MEMORY.is_dir():
        text += f", /dev/shm has {size_text(shutil.disk_usage(SHARED_MEMORY).free)} free"
    available = available_memory()
    return text if available is None else f"{text}; {size_text(available)} of memory are available"


def _transfer_rate(plan: Plan, measured: float | None) -> Check:
    """All modules together: on one machine they share the memory."""
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
    """A problem where data would be lost, a warning where the source waits."""
    if all(gdt.waits for gdt in plan.gdts):
        return _check(name, "warning", f"{message}: the run will be slower than asked", help)
    return _check(name, "problem", f"{message}: data would be lost", help)


def _disk_rate(plan: Plan, measured: float | None) -> Check:
    name = "saving rate"
    if plan.period_s is None:
        return _check(name, "ok", "no rate is asked for: as fast as the slowest part allows")
    needed = sum(_frame_bytes(it) / (plan.period_s * it.rule.step) for it in plan.channels.values())
    if measured is None:
        return _check(name, "warning", f"{rate_text(needed)} are to be saved; what the disk can was not measured")
    message = f"{rate_text(needed)} are to be saved{_compressed(plan)}, {rate_text(measured)} were measured"
    if needed <= measured:
        return _check(name, "ok", message)
    if _compressed(plan):
        return _check(name, "warning", message, "whether it is enough depends on how well frames can be compressed")
    return _too_slow(plan, name, message, "another disk, compression, or fewer frames")


def disk_room(plan: Plan, folder: Path) -> Check:
    """What is to be saved against what is free where ``folder`` is; compression may make it less."""
    name, folder, free = "disk", folder.resolve(), shutil.disk_usage(folder).free
    counts = {name: it.selected for name, it in plan.channels.items()}
    if None in counts.values():
        each = sum(_frame_bytes(it) for it in plan.channels.values())
        return _check(
            name, "ok", f"{folder} has {size_text(free)} free; the run has no end, a frame has {size_text(each)}"
        )
    needed = sum(_frame_bytes(it) * (counts[name] or 0) for name, it in plan.channels.items())
    message = f"{size_text(needed)} are to be saved{_compressed(plan)}, {folder} has {size_text(free)} free"
    if needed <= free:
        return _check(name, "ok", message)
    return _check(name, "warning" if _compressed(plan) else "problem", message, "another output.directory")


def _frame_bytes(channel: Channel) -> int:
    """Bytes of a frame, uncompressed."""
    return channel.height * channel.width * np.dtype(channel.dtype).itemsize


def _compressed(plan: Plan) -> str:
    """What is said of sizes that compression and sparse frames make smaller; empty where nothing does."""
    smaller = [it for it in plan.channels.values() if it.sparse or it.compression != "none"]
    return " (before compression)" if smaller else ""
