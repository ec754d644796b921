"""What the ranks have measured, as figures of the summary: cost of nodes, latencies, rates."""

from collections.abc import Mapping
from typing import Any

from lima2cli.plan.records import Gdt, Plan
from lima2cli.plan.skew import held_frames
from lima2cli.runtime.acquisition import Outcome
from lima2cli.runtime.latency import merged
from lima2cli.runtime.messages import ReceiverReport
from lima2cli.runtime.timing import Spent


def measured_figures(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """Plain data for ``resources`` of the summary."""
    return {
        "receivers": {
            plan.receivers[number]: {
                "rank": plan.rank_of_receiver(number),
                "busy_s": report.measured.busy_s,
                "cpu_s": report.measured.cpu_s,
                "frames": _frames_of_detector(plan, report),
                "kernels": _kernels(plan, report.measured.spent),
            }
            for number, report in sorted(outcome.receivers.items())
        },
        "latency": _latencies(plan, outcome),
        "paces": {gdt.name: _paces(plan, gdt, outcome) for gdt in plan.gdts},
        "hold_s": {gdt.name: None if plan.period_s is None else plan.period_s * held_frames(gdt) for gdt in plan.gdts},
        "detectors": {
            str(rank): {
                "put_s": source.put_s,
                "flush_s": source.flush_s,
                "cpu_s": source.cpu_s,
                "behind_s": None if plan.period_s is None else source.behind * plan.period_s,
            }
            for rank, source in sorted(outcome.sources.items())
        },
    }


def first_lost(plan: Plan, flow: str, outcome: Outcome) -> dict[str, Any] | None:
    """The first frame of a flow that was overwritten before it was used, and the receiver that was too slow."""
    found = [
        (int(gdt.rule.numbers(buffer, visit, 1)[0]), number)
        for gdt in plan.gdts_of(flow)
        for number, report in outcome.receivers.items()
        for buffer, visit, _ in (report.flows[gdt.name].lost if gdt.name in report.flows else ())
    ]
    if not found:
        return None
    frame, number = min(found)
    return {"frame": frame, "receiver": plan.receivers[number]}


def _scale(gdt: Gdt, receiver: int) -> float:
    """Frames of the detector for each frame of the flow that comes to a receiver, on average."""
    own = sum(buffer.receiver == receiver for buffer in gdt.buffers)
    return gdt.rule.step * len(gdt.buffers) / own


def _frames_of_detector(plan: Plan, report: ReceiverReport) -> float:
    """Frames of the detector for which the receiver did its part: those of the flow that has come farthest."""
    paces = report.measured.paces
    own = [gdt for gdt in plan.gdts if gdt.name in paces and report.receiver in gdt.receivers]
    return max((paces[gdt.name].frames * _scale(gdt, report.receiver) for gdt in own), default=0.0)


def _paces(plan: Plan, gdt: Gdt, outcome: Outcome) -> dict[str, Any]:
    """Results of a flow by receiver: frames, ``hz`` (see `Pace`), and for how long."""
    figures = {}
    for number, report in sorted(outcome.receivers.items()):
        pace = report.measured.paces.get(gdt.name)
        if pace is not None and number in gdt.receivers:
            lost = sum(visits for _, _, visits in report.flows[gdt.name].lost) * gdt.rule.blocks
            figures[plan.receivers[number]] = {
                "frames": pace.frames,
                "hz": pace.hz(lost * _scale(gdt, number)),
                "seconds": (pace.last_ns - pace.first_ns) * 1e-9,
            }
    return figures


def _latencies(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """Of all receivers together, by flow and by node that waits for others."""
    found = [report.measured.paces for report in outcome.receivers.values()]
    names = [*(gdt.name for gdt in plan.gdts), *(step.name for step in plan.steps)]
    own = {name: [paces[name].latency for paces in found if name in paces] for name in names}
    whole = {name: merged(histograms) for name, histograms in own.items() if histograms}
    return {
        name: {"p50_s": one.quantile(0.5), "p99_s": one.quantile(0.99), "max_s": one.largest * 1e-9}
        for name, one in whole.items()
    }


def _kernels(plan: Plan, spent: Mapping[str, Spent]) -> list[dict[str, Any]]:
    """By kernel, in the order of the data; what a table or file behind a kernel costs to write is the kernel's."""
    left = dict(spent)
    figures = []
    for kernel in plan.kernels:
        own = [left.pop(name) for name in kernel.nodes if name in left]
        if own:
            figures.append(_kernel(list(kernel.nodes), own))
    return figures + [_kernel([name], [one]) for name, one in left.items()]


def _kernel(nodes: list[str], own: list[Spent]) -> dict[str, Any]:
    return {
        "nodes": nodes,
        "frames": max(one.frames for one in own),
        "stage_s": sum(one.stage_ns for one in own) * 1e-9,
        "commit_s": sum(one.commit_ns for one in own) * 1e-9,
    }
