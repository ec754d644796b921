"""How long the control rank waits for others."""

import math
import time
from collections.abc import Mapping

from lima2cli.errors import RunFailed
from lima2cli.human import seconds_text
from lima2cli.plan.records import Plan

SHORTEST_SILENCE_S = 30.0
"""Receivers, which tell twice a second how far they are, may be silent at least for so long."""

LATER = 1.2
"""Times the acquisition's timeout, in which a call of users' code is found that hangs."""

PREPARATION_S = 300.0
"""A rank may take at least so long until it is ready: it reads calibrations, and imports users' code."""


def longest_wait_s(plan: Plan) -> float:
    """Seconds without a frame after which a run fails. What receivers report comes in groups, and as seldom as events
    say; a software trigger may come at any time."""
    periods = [
        (plan.period_s or 0) * gdt.rule.step * gdt.rule.blocks * gdt.rule.buffers * gdt.group_event
        for gdt in plan.gdts
        if gdt.group_event
    ]
    if not periods or plan.acquisition.trigger == "software":
        return math.inf
    return plan.timeout_s + min(periods)


def check_silence(plan: Plan, heard: Mapping[int, float], reason: str | None) -> None:
    """Raise `RunFailed` where a receiver has been silent for too long.

    heard   when each receiver, by rank, was last heard of (`time.monotonic`);  reason  for which the run is ending
    """
    patience = max(LATER * plan.timeout_s, SHORTEST_SILENCE_S)
    silent = sorted(rank for rank, at in heard.items() if time.monotonic() - at > patience)
    if not silent:
        return
    names = {role.rank: plan.receivers[role.receiver] for role in plan.ranks if role.receiver is not None}
    who = ", ".join(f"{names[rank]} (rank {rank})" for rank in silent)
    raise RunFailed(f"{f'{reason}; then ' if reason else ''}{who} has said nothing for {seconds_text(patience)}")


def check_ready(plan: Plan, heard: Mapping[int, float]) -> None:
    """Raise `RunFailed` where a rank that should get ready has been silent for too long.

    heard   when each rank that is waited for was last heard of, or was asked (`time.monotonic`)
    """
    patience = max(plan.timeout_s, PREPARATION_S)
    silent = sorted(rank for rank, at in heard.items() if time.monotonic() - at > patience)
    if silent:
        who = ", ".join(f"{rank_name(plan, rank)} (rank {rank})" for rank in silent)
        raise RunFailed(f"{who} was not ready after {seconds_text(patience)}")


def rank_name(plan: Plan, rank: int) -> str:
    """A rank for people."""
    role = plan.ranks[rank]
    if role.receiver is not None:
        return plan.receivers[role.receiver]
    return role.role if role.worker is None else f"worker of {role.worker}"
