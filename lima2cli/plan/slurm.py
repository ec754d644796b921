"""A plan as a job script of SLURM: how many ranks, where, with how many CPUs and how much memory, and for how long."""

import math
import shlex
from collections import Counter

from lima2cli.plan.ir import Plan, RankRole
from lima2cli.units import size_text

RANK_BYTES = 512 << 20
"""Bytes of a rank beyond its memspaces: Python, libraries, kernels, frames in work."""

START_MIN = 10
"""Minutes of a job for its start, its end, and what holds a detector up."""

HERE = "$here"
"""The node of the ranks for which the pipeline names none."""


def job_script(plan: Plan, file: str) -> str:
    """Return a script for `sbatch` that runs the pipeline of a file, with the ranks of the plan.

    One step of `srun` starts all ranks. Where receivers name hosts each gets its own, and all other ranks are on one
    more node of the allocation; else SLURM deals them out.
    """
    hosts = list(dict.fromkeys(placement.host for placement in map(plan.placement_of, plan.ranks) if placement.host))
    places = [plan.placement_of(role).host or HERE for role in plan.ranks]
    threads = max([*plan.threads, 1])
    asked = {
        "job-name": plan.name,
        "ntasks": len(plan.ranks),
        "cpus-per-task": threads,
        "nodes": len(set(places)) if hosts else None,
        "nodelist": ",".join(hosts) or None,
        "mem": f"{math.ceil(max(_bytes(plan, places).values()) / (1 << 20))}M" if hosts else None,
        "mem-per-cpu": None if hosts else f"{_bytes_of_rank(plan) // threads >> 20}M",
        "time": _minutes(plan),
        "signal": "TERM@60",
        "output": "%x-%j.log",
    }
    count = Counter(role.role for role in plan.ranks)
    ranks = ", ".join(f"{number} {role}" for role, number in count.items())
    total = size_text(sum(region.size for region in plan.regions))
    placing = " --distribution=arbitrary" if hosts else ""
    lines = [
        "#!/bin/bash",
        f"# Ranks: {ranks}; memspaces: {total}. Written by `lima2 plan --format slurm`; sbatch runs it.",
        *(f"#SBATCH --{name}={value}" for name, value in asked.items() if value is not None),
        *([] if asked["time"] else ["# No end is known: add `#SBATCH --time=`, or stop it by `scancel -s TERM`."]),
        "",
        "set -euo pipefail",
        *(_placed(places, hosts) if hosts else []),
        "# MPICH: pmi2; Open MPI and Intel MPI: what the site says (pmix)",
        f"srun --mpi=pmi2 --cpu-bind=none{placing} lima2 run {shlex.quote(file)} --progress plain",
    ]
    return "\n".join(lines) + "\n"


def _placed(places: list[str], hosts: list[str]) -> list[str]:
    """Return the lines that put ranks on their nodes, in their order."""
    known = " ".join(f"-e {shlex.quote(host)}" for host in hosts)
    quoted = (f'"{HERE}"' if place == HERE else shlex.quote(place) for place in places)
    others = f'here=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -vxF {known} | head -n 1)'
    return [
        *([others] if HERE in places else []),
        "export SLURM_HOSTFILE=$(mktemp)",
        f"printf '%s\\n' {' '.join(quoted)} > \"$SLURM_HOSTFILE\"",
    ]


def _bytes(plan: Plan, places: list[str]) -> Counter[str]:
    """Return the memory of all ranks by node."""
    needed: Counter[str] = Counter()
    for role, place in zip(plan.ranks, places, strict=True):
        needed[place] += RANK_BYTES + _memspaces(plan, role)
    return needed


def _bytes_of_rank(plan: Plan) -> int:
    """Return the memory of the rank that needs most."""
    return RANK_BYTES + max(_memspaces(plan, role) for role in plan.ranks)


def _memspaces(plan: Plan, role: RankRole) -> int:
    return sum(region.size for region in plan.regions if region.receiver == role.receiver)


def _minutes(plan: Plan) -> int | None:
    """Return how long a run takes at most, None where that is not known."""
    if plan.frames is None or plan.period_s is None or not plan.repeat or plan.on_request:
        return None
    return START_MIN + math.ceil(plan.repeat * plan.frames * plan.period_s / 60)
