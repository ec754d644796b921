"""Resources of a run: hosts, CPUs, memory and disk; where ranks go, and whether all fits, with the arithmetic."""

import ctypes
import mmap
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.errors import EnvironmentUnfit
from lima2cli.plan.figures import volumes
from lima2cli.plan.ir import Placement, Plan
from lima2cli.plan.lowering import device_bytes
from lima2cli.runs.channel import message_event
from lima2cli.transport.mapped import allocated, objection
from lima2cli.units import size_text, volume_text

NUMA_NODES = Path("/sys/devices/system/node")
THREADS = Path("/proc/self/task")


def is_here(host: str | None) -> bool:
    """Return whether that is this machine, which is also the one of ranks without a host."""
    own = socket.gethostname()
    return host in (None, "localhost", own, own.partition(".")[0])


def elsewhere(plan: Plan) -> set[int]:
    """Return the receivers that run on other machines."""
    return {index for index, placement in enumerate(plan.placements) if not is_here(placement.host)}


def without_placement(plan: Plan) -> Plan:
    """Return a plan as it is run where nothing can be placed: without any placement."""
    return replace(plan, placements=tuple(Placement() for _ in plan.receivers))


def host_options(plan: Plan) -> list[str]:
    """Return options of MPICH's mpiexec (hydra): the hosts of all ranks; none where no receiver has one.

    A host is listed once and ranks are mapped to it: ranks share memory only where they are on the same entry of the
    list. (Hydra takes `-host` with a single program for the list of all.)
    """
    if all(placement.host is None for placement in plan.placements):
        return []
    names, hosts = _host_of_each_rank(plan), hosts_of(plan)
    return ["-hosts", ",".join(hosts), "-rankmap", ",".join(str(hosts.index(name)) for name in names)]


def hosts_of(plan: Plan) -> list[str]:
    """Return the hosts of a plan, each once."""
    return list(dict.fromkeys(_host_of_each_rank(plan)))


def _host_of_each_rank(plan: Plan) -> list[str]:
    here = socket.gethostname()
    places = [placement.host for placement in map(plan.placement_of, plan.ranks)]
    return [here if name is None or is_here(name) else name for name in places]


def cpus_of(placement: Placement) -> frozenset[int] | None:
    """Return the CPUs of this machine that a receiver may use, None = as it was started.

    Raises:
        EnvironmentUnfit: there are no such CPUs.
    """
    if placement.cpus is None and placement.numa is None:
        return None
    if not hasattr(os, "sched_setaffinity"):
        raise EnvironmentUnfit("this system cannot bind a process to CPUs")
    usable = frozenset(os.sched_getaffinity(0))
    wanted = usable if placement.cpus is None else frozenset(placement.cpus)
    if absent := wanted - usable:
        raise EnvironmentUnfit(f"{_listed(absent)} cannot be used here, only {_listed(usable)}")
    if placement.numa is None:
        return wanted
    node = numa_cpus(placement.numa)
    if not wanted & node:
        raise EnvironmentUnfit(f"NUMA node {placement.numa} has {_listed(node)}, not {_listed(wanted)}")
    return wanted & node


def numa_cpus(node: int) -> frozenset[int]:
    """Return the CPUs of a NUMA node, from its cpulist (``0-3,8``; sysfs).

    Raises:
        EnvironmentUnfit: there is no such node.
    """
    try:
        cpulist = (NUMA_NODES / f"node{node}" / "cpulist").read_text().strip()
    except OSError as error:
        raise EnvironmentUnfit(f"there is no NUMA node {node} here") from error
    spans = [span.partition("-") for span in cpulist.split(",") if span]
    return frozenset(cpu for first, _, last in spans for cpu in range(int(first), int(last or first) + 1))


def settle(placement: Placement) -> None:
    """Hold this process to its CPUs: all threads that it has, and those that they will make.

    Raises:
        EnvironmentUnfit: the CPUs can't be used.
    """
    cpus = cpus_of(placement)
    if cpus is None:
        return
    try:
        for thread in THREADS.iterdir():
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), cpus)
    except OSError as error:
        raise EnvironmentUnfit(f"cannot be bound to {_listed(cpus)}: {error}") from error


SLACK = 29
"""PR_SET_TIMERSLACK, prctl(2)."""


def sleep_exactly() -> None:
    """Let sleeps of this thread, and of those that it makes, end within a microsecond, where Linux adds 50."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SLACK, 1000, 0, 0, 0)  # a refusal leaves sleeps as they are


def touch(memory: NDArray[np.uint8]) -> None:
    """Write to each page of unused memory, bytes (n,) uint8.

    It is then given by the NUMA node of the CPU that this runs on (first touch, set_mempolicy(2)).
    """
    memory[:: mmap.PAGESIZE] = 0


def _listed(cpus: frozenset[int]) -> str:
    return f"CPU{'s' * (len(cpus) != 1)} {_compact(sorted(cpus)) or '(none)'}"


def _compact(cpus: Sequence[int]) -> str:
    """Return CPUs as ranges: 0-3, 8."""
    spans: list[list[int]] = []
    for cpu in cpus:
        if spans and cpu == spans[-1][-1] + 1:
            spans[-1][1:] = [cpu]
        else:
            spans.append([cpu])
    return ", ".join("-".join(map(str, span)) for span in spans)


RANK_BYTES = 80 << 20
"""Bytes of a rank's own memory: the interpreter, numpy, MPI, HDF5, and blocks in work."""

SHARED_MEMORY = Path("/dev/shm")

MPI_RANK_BYTES = 5_632 << 10
"""Bytes that MPI itself puts in /dev/shm for a rank, with a margin.

5.15 MiB with MPICH 5.0 over UCX, 3 to 8 ranks.
"""

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
    """Return the bytes that receivers on this machine hold of chunks that they write.

    Two are filled in turn, one is compressed.
    """
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


def check_devices(plan: Plan) -> None:
    """Raise `EnvironmentUnfit` where this machine lacks a device of OpenCL, or that lacks the memory it has to have.

    Those for which the host may stand in are not looked for.
    """
    away, needed = elsewhere(plan), dict[int | str, int]()
    for index, region in enumerate(plan.regions):
        if region.device is None or region.fallback or region.receiver in away:
            continue
        from lima2cli.gpu.devices import check_device  # the extra `gpu`

        needed[region.device] = needed.get(region.device, 0) + device_bytes(plan, index)  # memspaces may share it
        try:
            check_device(region.device, needed[region.device])
        except EnvironmentUnfit as error:
            raise EnvironmentUnfit(f"memspace {region.name} of {plan.receivers[region.receiver]}: {error}") from error


def check_files(plan: Plan, base: Path) -> None:
    """Raise `EnvironmentUnfit` where a memspace cannot be the file that it names.

    It is another's file, a file that the run reads, one in use, or one file twice.
    """
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
    """Return the bytes of memory that may still be taken; None where the system doesn't report it.

    The least of MemAvailable (proc(5)) and of what the control groups of this process leave.
    """
    return min((amount for amount in (_available_here(), _available_in_groups()) if amount is not None), default=None)


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
    """Return the bytes that the control groups of this process leave; None without a limit.

    By cgroups(7), v2 (memory.max) and v1 (memory.limit_in_bytes): its group and all above it. Cached files count as
    free, as they do in MemAvailable.
    """
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
    """Return the number in a file of a control group; None where there is no such file, or no limit (``max``)."""
    try:
        number = path.read_text().strip()
    except OSError:
        return None
    return int(number) if number.isdigit() else None


def _field(path: Path, name: str) -> int:
    """Return a value of ``memory.stat``; 0 where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(value) for key, _, value in (line.partition(" ") for line in lines) if key == name), 0)


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Need:
    """Bytes that will be written where ``folder`` is, in words; ``less``: or fewer."""

    words: str
    bytes: int
    less: bool
    folder: Path


def output_folder(template: str) -> Path:
    """Return the folder in which run directories are made, as far as it exists."""
    return existing(Path(template.partition("{")[0] + "x").parent)


def existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that is there."""
    while not folder.is_dir():
        folder = folder.parent
    return folder


def needs(plan: Plan, base: Path) -> Iterator[Need]:
    """Yield all needs that are known before: frames, and memspaces in files as far as these are not there yet.

    base  resolves names of files
    """
    folder, away = output_folder(plan.output_directory), elsewhere(plan)
    for volume in volumes(plan):
        if volume.bytes is not None:
            yield Need(str(volume), volume.bytes, volume.less, folder)
    for region in plan.regions:
        if region.path is not None and region.receiver not in away:
            path = base / region.path
            size = max(0, region.size - allocated(path))
            name = f"memspace {region.name} of {plan.receivers[region.receiver]}"
            yield Need(f"{name} {volume_text(size)}", size, False, existing(path.parent))


def check_disk(plan: Plan, base: Path) -> list[str]:
    """Raise `EnvironmentUnfit`, with the arithmetic, where a disk has no room for what will surely be written.

    Returns warnings where it may have none, if compression is poor.
    """
    warnings = []
    by_disk: dict[int, list[Need]] = {}
    for need in needs(plan, base):
        by_disk.setdefault(os.stat(need.folder).st_dev, []).append(need)
    for wanted in by_disk.values():
        folder, free = wanted[0].folder, shutil.disk_usage(wanted[0].folder).free
        sure, most = sum(it.bytes for it in wanted if not it.less), sum(it.bytes for it in wanted)
        has = f"{folder.resolve()} has {volume_text(free)} free"
        if sure > free:
            terms = " + ".join(it.words for it in wanted if not it.less)
            raise EnvironmentUnfit(
                f"the run writes {volume_text(sure)} ({terms}), {has}; another disk, or fewer frames"
            )
        if most > free:
            terms = " + ".join(it.words for it in wanted)
            warnings.append(f"the run writes up to {volume_text(most)} before compression ({terms}), {has}")
    return warnings


def free(plan: Plan) -> str:
    """Return a line about the free disk space where runs go, the last of a plan; empty where nothing is saved."""
    return f"  {_free(plan)}\n" if plan.channels else ""


def _free(plan: Plan) -> str:
    folder = output_folder(plan.output_directory)
    return f"{folder.resolve()} has {volume_text(shutil.disk_usage(folder).free)} free"


def report_disk(plan: Plan, warnings: Sequence[str], emit: Callable[[dict[str, Any]], None]) -> None:
    """Report at the start of a run what it saves, what is free, and what `check_disk` warns of."""
    if saved := volumes(plan):
        less = " before compression" if any(volume.less for volume in saved) else ""
        emit(message_event("disk", f"to be saved{less}: {', '.join(map(str, saved))}; {_free(plan)}"))
    for warning in warnings:
        emit(message_event("warning", f"warning: {warning}"))
