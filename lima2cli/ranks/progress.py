"""Progress of a run: reports, their figures (of flows, for those who ask of receivers), detection of silence."""

import math
import os
import time
from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Any

from lima2cli.accounting.acquisitions import LiveAcquisition, entries_of
from lima2cli.accounting.shortfalls import kernel_costs
from lima2cli.errors import RunFailed
from lima2cli.messages import Stats
from lima2cli.plan.figures import visible_figures
from lima2cli.plan.ir import Plan
from lima2cli.units import seconds_text


def flow_figures(plan: Plan, acquisition: LiveAcquisition) -> dict[str, dict[str, Any]]:
    """Return the figures of each flow.

    Frames received and lost, of how many in all (None without end), the bytes of those received, and how full the
    fullest of its local buffers is, as a share of its depth.
    """
    figures: dict[str, dict[str, Any]] = {}
    for flow, (received, lost) in acquisition.totals(plan).items():
        gdts = plan.gdts_of(flow)
        frame_bytes = sum(gdt.source.width * gdt.source.height * gdt.pixel_bytes for gdt in gdts)
        names = {gdt.name for gdt in gdts}
        fills = [
            fill for stats in acquisition.stats.values() for name, (_, _, fill) in stats.flows.items() if name in names
        ]
        figures[flow] = {
            "received": received, "lost": lost, "total": gdts[0].selected, "bytes": received * frame_bytes,
            "fill": round(max(fills, default=0.0), 4),
        }  # fmt: skip
    return figures


def details(plan: Plan, acquisition: LiveAcquisition) -> dict[str, Any]:
    """Return all figures of an acquisition: of flows, with the latency of the slowest receiver, and of receivers."""
    flows = flow_figures(plan, acquisition)
    for flow, figures in flows.items():
        names = {gdt.name for gdt in plan.gdts_of(flow)}
        latencies = [
            both for stats in acquisition.stats.values() for name, both in stats.latency.items() if name in names
        ]
        figures["latency_s"] = max(latencies, key=itemgetter(1), default=None)
    return {
        "directory": os.path.abspath(acquisition.directory),
        "pid": os.getpid(),
        "flows": flows,
        "receivers": dict(_receivers(plan, acquisition)),
    }


def _receivers(plan: Plan, acquisition: LiveAcquisition) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and figures of each receiver that has reported, in the order of the ranks."""
    for rank, stats in sorted(acquisition.stats.items()):
        receiver = plan.ranks[rank].receiver
        assert receiver is not None
        yield (
            plan.receivers[receiver],
            {
                "seconds": stats.seconds, "busy_s": stats.busy_s, "cpu_s": stats.used.cpu_s,
                "rss_bytes": stats.used.rss_bytes, "pid": stats.pid, "kernels": list(_kernels(plan, stats)),
            },
        )  # fmt: skip


def _kernels(plan: Plan, stats: Stats) -> Iterator[dict[str, Any]]:
    """Yield the costs of each kernel. ``parts``: other receivers count the same frames, of which each has a part."""
    parts = {step.name for step in plan.steps if step.numbering.parts}
    for cost in kernel_costs(plan, stats.spent):
        yield {
            "nodes": list(cost.nodes), "frames": int(cost.frames), "seconds": cost.stage_s + cost.commit_s,
            "parts": not parts.isdisjoint(cost.nodes),
        }  # fmt: skip


SHORTEST_SILENCE_S = 30.0
"""Minimal silence, in seconds, of receivers that counts as a hang; they report twice a second how far they are."""

LATER = 1.2
"""Factor on the acquisition's timeout, in which a call of users' code is found that hangs."""

PREPARATION_S = 300.0
"""Minimal time, in seconds, that a rank has to get ready: it reads calibrations, and imports users' code."""


def longest_wait_s(plan: Plan) -> float:
    """Return the seconds without a frame after which a run fails.

    Reports of receivers come in groups, and as seldom as events are reported; a software trigger may come at any time.
    """
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
    raise RunFailed(f"{f'{reason}; then ' if reason else ''}{who} has sent nothing for {seconds_text(patience)}")


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
    """Return the name of a rank for messages."""
    role = plan.ranks[rank]
    if role.receiver is not None:
        return plan.receivers[role.receiver]
    return role.role if role.worker is None else f"worker of {role.worker}"


PERIOD_S = 0.1
"""Seconds from one report of progress to the next, while something happens."""

SLOW_PERIOD_S = 0.5
"""The same while nothing does."""


class Progress:
    """Progress of the acquisition that runs."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._told_at = self._moved_at = time.monotonic()
        self._seen = -1
        self._news = False

    def begin(self, plan: Plan) -> None:
        """Begin an acquisition, as it was asked for: nothing of it has been seen."""
        self._plan, self._moved_at, self._seen = plan, time.monotonic(), -1

    def report(self) -> None:
        """Note that a receiver has reported."""
        self._news = True

    def moved(self) -> None:
        """Note that it goes on, though no frame has come."""
        self._moved_at = time.monotonic()

    @property
    def stuck(self) -> bool:
        """Return whether nothing has come for longer than is allowed."""
        return self._told_at - self._moved_at > longest_wait_s(self._plan)

    def event(self, acquisition: LiveAcquisition) -> dict[str, Any] | None:
        """Return the event to report now; None where it is too early."""
        now = time.monotonic()
        if now - self._told_at < (PERIOD_S if self._news else SLOW_PERIOD_S) and not (
            self._news and triggers_done(acquisition)
        ):
            return None
        self._told_at, self._news = now, False
        seen = sum(received + lost for received, lost in acquisition.totals(acquisition.plan).values())
        if seen != self._seen:
            self._seen, self._moved_at = seen, now
        return self.now(acquisition)

    def now(self, acquisition: LiveAcquisition) -> dict[str, Any]:
        """Return the event of how far an acquisition is."""
        plan = acquisition.plan
        return {
            "type": "progress",
            "acquisition": acquisition.outcome.number + 1,
            "seconds": (time.time_ns() - acquisition.outcome.start_ns) * 1e-9,
            "flows": flow_figures(plan, acquisition),
            "saved": acquisition.saved_totals(plan),
            "rows": acquisition.rows(plan),
        }


def triggers_done(acquisition: LiveAcquisition) -> bool:
    """Return whether all frames of the software triggers so far have arrived or are lost; False without any."""
    plan = acquisition.plan
    frames = acquisition.triggers * plan.acquisition.frames_per_trigger
    if not frames or plan.acquisition.trigger != "software":
        return False
    totals = acquisition.totals(plan)
    due = {gdt.flow: gdt.rule.selected(frames) or 0 for gdt in plan.gdts}
    if any(sum(totals[flow]) < count for flow, count in due.items()):
        return False
    common = {name for name, channel in plan.channels.items() if channel.layout == "common"}  # they come in rounds
    rows = {name: count for name, count in acquisition.rows(plan).items() if name not in common}
    entries = entries_of(plan)
    return all(
        count >= (entries[name].rule.selected(frames) or 0)
        if entries[name].complete
        else entries[name].window != 1 or acquisition.undecided(plan, name) >= frames
        for name, count in rows.items()
    )


def state_text(acquisition: LiveAcquisition, phase: str) -> str:
    """Return the state of a run in words: it may wait for a request to start, or for a trigger."""
    plan = acquisition.plan
    asked = plan.acquisition
    if phase == "armed":
        return "armed"
    fired = acquisition.triggers
    if phase == "running" and asked.trigger == "software" and (not fired or triggers_done(acquisition)):
        total = None if plan.frames is None else -(-plan.frames // asked.frames_per_trigger)
        if total is None or fired < total:
            return f"armed, waiting for trigger {fired + 1}" + ("" if total is None else f" of {total}")
    return phase


def status(acquisition: LiveAcquisition, phase: str, *, detail: bool = False) -> dict[str, Any]:
    """Return how far a run is, as plain data; ``flows`` are frames received and lost.

    detail  with all figures of flows and receivers (see `details`)
    """
    outcome, plan = acquisition.outcome, acquisition.plan
    more = {"detail": details(plan, acquisition), "visible": visible_figures(plan)} if detail else {}
    return {
        "ok": True,
        "phase": phase,
        "state": state_text(acquisition, phase),
        "acquisition": outcome.number + 1,
        "of": plan.repeat,
        "flows": {name: list(counts) for name, counts in acquisition.totals(plan).items()},
        "saved": acquisition.saved_totals(plan),
        "rows": acquisition.rows(plan),
        "triggers": acquisition.triggers,
        "seconds": (time.time_ns() - outcome.start_ns) * 1e-9 if outcome.start_ns else 0.0,
        "frames": plan.frames,
        **more,
    }
