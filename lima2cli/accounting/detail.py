"""Figures of an acquisition while it goes on, as plain data: of flows for all, of receivers for those who ask."""

import os
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from lima2cli.accounting.acquisitions import LiveAcquisition
from lima2cli.accounting.shortfalls import kernel_costs
from lima2cli.messages import Stats
from lima2cli.plan.ir import Plan


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
