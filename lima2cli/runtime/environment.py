"""Whether this machine can hold what the plan needs, told with the arithmetic before anything starts."""

import os
import shutil
from pathlib import Path

import numpy as np

from lima2cli.errors import EnvironmentUnfit
from lima2cli.human import size_text, volume_text
from lima2cli.plan.records import Plan
from lima2cli.runtime.placement import cpus_of, elsewhere, is_here
from lima2cli.transport.mapped import objection

RANK_BYTES = 80 << 20
"""A rank's own memory: the interpreter, numpy, MPI, HDF5, and blocks in work."""

SHARED_MEMORY = Path("/dev/shm")

MPI_RANK_BYTES = 5_632 << 10
"""What MPI itself puts in /dev/shm for a rank, with a margin: 5.15 MiB with MPICH 5.0 over UCX, 3 to 8 ranks."""

CGROUPS = Path("/sys/fs/cgroup")


def check_memory(plan: Plan, *, shared: bool) -> None:
    """Raise `EnvironmentUnfit` where memory, /dev/shm (``shared``: MPI puts windows there) or disk is too small.

    Receivers on other machines don't count.

    Windows larger than /dev/shm can be made, and kill the rank that touches them (SIGBUS); so look first.
    """
    away = elsewhere(plan)
    hosts = [region for region in plan.regions if region.path is None and region.receiver not in away]
    ranks = sum(role.receiver not in away for role in plan.ranks)
    windows = sum(region.size for region in hosts)
    terms = " + ".join(f"{plan.receivers[r.receiver]}.{r.name} {size_text(r.size)}" for r in hosts) or "none"
    if shared and SHARED_MEMORY.is_dir():
        free, own = shutil.disk_usage(SHARED_MEMORY).free, MPI_RANK_BYTES * ranks
        if windows + own > free:
            raise EnvironmentUnfit(
                f"the run needs {volume_text(windows + own)} of /dev/shm (memspaces: {terms}; MPI itself: "
                f"{ranks} ranks x {volume_text(MPI_RANK_BYTES)}), {volume_text(free)} are free; "
                "make buffers smaller, or /dev/shm larger (mount -o remount,size=… /dev/shm)"
            )
    chunks, available = chunk_bytes(plan), available_memory()
    needed = windows + chunks + RANK_BYTES * ranks
    if available is not None and needed > available:
        raise EnvironmentUnfit(
            f"the run needs {volume_text(needed)} of memory (memspaces: {terms}; chunks of frames "
            f"{volume_text(chunks)}; {ranks} ranks x {size_text(RANK_BYTES)}), {volume_text(available)} are available"
        )


def chunk_bytes(plan: Plan) -> int:
    """What receivers on this machine hold of chunks that they write: two that are filled in turn, one compressed."""
    away, total = elsewhere(plan), 0
    for channel in plan.channels.values():
        if channel.layout == "common" or channel.sparse:
            continue
        limits = (channel.frames_per_chunk, channel.frames_per_file, channel.selected)
        frames = min(limit for limit in limits if limit)
        here = len(set(channel.receivers) - set(away))
        total += 3 * here * frames * channel.height * channel.width * np.dtype(channel.dtype).itemsize
    return total


def check_programs(plan: Plan, base: Path, *, by_mpi: bool) -> None:
    """Raise `EnvironmentUnfit` where the program of a node is not there, or there is no MPI to start it."""
    for role in plan.ranks:
        program = plan.command_of(role)
        if program is None:
            continue
        if not by_mpi:
            raise EnvironmentUnfit(f"{role.worker} starts a program of its own, which only MPI can: --transport mpi")
        name = program[0]
        if name != "python" and shutil.which(str(base / name) if "/" in name else name) is None:
            raise EnvironmentUnfit(f"there is no program `{name}` for {role.worker}")


def check_placement(plan: Plan) -> None:
    """Raise `EnvironmentUnfit` where this machine lacks the CPUs or the NUMA node of a receiver that is to run here."""
    for name, placement in zip(plan.receivers, plan.placements, strict=True):
        if is_here(placement.host):
            try:
                cpus_of(placement)
            except EnvironmentUnfit as error:
                raise EnvironmentUnfit(f"receiver {name}: {error}") from error


def check_files(plan: Plan, base: Path) -> None:
    """Raise `EnvironmentUnfit` where a memspace cannot be the file that it names: another's file, a file that the run
    reads, one in use, or one file twice."""
    away, seen = elsewhere(plan), dict[str, str]()
    for region in plan.regions:
        if region.path is None or region.receiver in away:
            continue
        path, name = base / region.path, f"memspace {region.name} of {plan.receivers[region.receiver]}"
        real = os.path.realpath(path)
        reason = objection(path, in_use=True)
        if reason is None and real in plan.inputs:
            reason = "is read by the pipeline"
        if reason is None and real in seen:
            reason = f"is {seen[real]} already"
        if reason is not None:
            raise EnvironmentUnfit(f"{name} cannot be {region.path}: it {reason}")
        seen[real] = name


def available_memory() -> int | None:
    """Bytes of memory that may still be taken: the least of MemAvailable (proc(5)) and of what the control groups of
    this process leave; None where the system doesn't say."""
    return min((it for it in (_available_here(), _available_in_groups()) if it is not None), default=None)


def _available_here() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _available_in_groups() -> int | None:
    """By cgroups(7), v2 (memory.max) and v1 (memory.limit_in_bytes): the group of this process and all above it. Cached
    files count as free, as they do in MemAvailable."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    left: list[int] = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, names = (CGROUPS, ("memory.max", "memory.current", "inactive_file"))
        if controllers:
            root, names = (
                CGROUPS / "memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        folder = root / group.strip("/")
        while folder.is_relative_to(root):
            limit, used = _number(folder / names[0]), _number(folder / names[1])
            if limit is not None and used is not None:
                left.append(max(0, limit - used + _field(folder / "memory.stat", names[2])))
            folder = folder.parent
    return min(left, default=None)


def _number(path: Path) -> int | None:
    """What a file of a control group says; None where there is no such file, or no limit (``max``)."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _field(path: Path, name: str) -> int:
    """A value of ``memory.stat``; 0 where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(value) for key, _, value in (line.partition(" ") for line in lines) if key == name), 0)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
