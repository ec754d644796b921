"""Where ranks run: hosts for mpiexec, CPUs and NUMA nodes for receivers."""

import mmap
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lima2cli.errors import EnvironmentUnfit
from lima2cli.plan.records import Placement, Plan

NUMA_NODES = Path("/sys/devices/system/node")
THREADS = Path("/proc/self/task")


def is_here(host: str | None) -> bool:
    """Whether that is this machine, which is also the one of ranks that say none."""
    own = socket.gethostname()
    return host in (None, "localhost", own, own.partition(".")[0])


def elsewhere(plan: Plan) -> set[int]:
    """Receivers that run on other machines."""
    return {index for index, it in enumerate(plan.placements) if not is_here(it.host)}


def all_here(plan: Plan) -> Plan:
    """A plan as it is run where nothing can be placed: nothing is said of it."""
    return replace(plan, placements=tuple(Placement() for _ in plan.receivers))


def host_options(plan: Plan) -> list[str]:
    """Of MPICH's mpiexec (hydra): the hosts of all ranks; none where no receiver says one.

    A host is listed once and ranks are mapped to it: ranks share memory only where they are on the same entry of the
    list. (Hydra takes `-host` beside a single program for the list of all.)
    """
    if all(it.host is None for it in plan.placements):
        return []
    here = socket.gethostname()
    places = [it.host for it in map(plan.placement_of, plan.ranks)]
    names = [here if name is None or is_here(name) else name for name in places]
    hosts = list(dict.fromkeys(names))
    return ["-hosts", ",".join(hosts), "-rankmap", ",".join(str(hosts.index(name)) for name in names)]


def cpus_of(placement: Placement) -> frozenset[int] | None:
    """CPUs of this machine that a receiver may use, None = as it was started. Raises `EnvironmentUnfit`."""
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
    """The CPUs of a NUMA node, from its cpulist (``0-3,8``; sysfs). Raises `EnvironmentUnfit` where it is not there."""
    try:
        text = (NUMA_NODES / f"node{node}" / "cpulist").read_text().strip()
    except OSError as error:
        raise EnvironmentUnfit(f"there is no NUMA node {node} here") from error
    spans = [span.partition("-") for span in text.split(",") if span]
    return frozenset(cpu for first, _, last in spans for cpu in range(int(first), int(last or first) + 1))


def settle(placement: Placement) -> None:
    """Hold this process to its CPUs: all threads that it has, and those that they will make. Raises
    `EnvironmentUnfit`."""
    cpus = cpus_of(placement)
    if cpus is None:
        return
    try:
        for thread in THREADS.iterdir():
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), cpus)
    except OSError as error:
        raise EnvironmentUnfit(f"cannot be held to {_listed(cpus)}: {error}") from error


def touch(memory: NDArray[np.uint8]) -> None:
    """Write to each page of memory that nobody has used, bytes (n,): it is then given by the NUMA node of the CPU that
    this runs on (first touch, set_mempolicy(2))."""
    memory[:: mmap.PAGESIZE] = 0


def _listed(cpus: frozenset[int]) -> str:
    return f"CPU{'s' * (len(cpus) != 1)} {_compact(sorted(cpus)) or '(none)'}"


def _compact(cpus: Sequence[int]) -> str:
    """0-3, 8"""
    spans: list[list[int]] = []
    for cpu in cpus:
        if spans and cpu == spans[-1][-1] + 1:
            spans[-1][1:] = [cpu]
        else:
            spans.append([cpu])
    return ", ".join("-".join(map(str, span)) for span in spans)
