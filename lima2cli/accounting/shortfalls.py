"""Figures that a run has measured, and its shortfalls: too many frames lost, rates below those asked for."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from lima2cli.accounting.acquisitions import Outcome
from lima2cli.accounting.summary import (
    DetectorFigures,
    FirstLost,
    FlowRate,
    FlowReport,
    KernelCost,
    Latency,
    PaceFigures,
    RankUsage,
    Rates,
    ReceiverFigures,
    Resources,
    WorkerSummary,
)
from lima2cli.files.rows import last_row
from lima2cli.files.run_file import FlowRecord
from lima2cli.messages import FlowCount, ReceiverReport, Spent, Usage, merged, usage
from lima2cli.plan.ir import EVENTS_HZ, GROUPS, Gdt, Plan
from lima2cli.plan.join_depth import held_frames
from lima2cli.units import grouped, seconds_text

BUSY = 0.85
"""Share of its time from which a receiver has none left."""

KEPT_UP = 0.99
"""Share of a rate below which it is not that rate."""

HICCUP_S = 0.05
"""Seconds by which a machine with other programs on it may be late once, without a meaning."""


def workers(plan: Plan, outcome: Outcome) -> tuple[WorkerSummary, ...]:
    """Return what each worker was given."""
    return tuple(_worker(role.rank, role.worker, outcome) for role in plan.ranks if role.worker is not None)


def _worker(rank: int, node: str, outcome: Outcome) -> WorkerSummary:
    report = outcome.workers.get(rank)
    if report is None:
        return WorkerSummary(rank, node, None, None, None, None)
    return WorkerSummary(rank, node, report.blocks, report.frames, report.failed, report.busy_s)


def rates(plan: Plan, outcome: Outcome, accounts: Mapping[str, FlowRecord]) -> Rates:
    """Return the rates of a run, and of its flows."""
    seconds = outcome.seconds or 1e-9
    sizes = dict.fromkeys(accounts, 0)
    for gdt in plan.gdts:
        sizes[gdt.flow] += gdt.source.area * gdt.pixel_bytes
    return Rates(
        asked_hz=None if plan.period_s is None else 1 / plan.period_s,
        achieved_hz=achieved_hz(plan, outcome),
        flows={
            name: FlowRate(account.received / seconds, account.received * sizes[name] / seconds)
            for name, account in accounts.items()
        },
    )


STATUSES = ("ok", "full", "incomplete")
"""Order of statuses of a flow, the worse later; see `FlowCount`."""


def flow_report(plan: Plan, flow: FlowRecord, outcome: Outcome) -> FlowReport:
    """Return what only the ranks know of a flow."""
    counts = _counts(plan, flow.name, outcome)
    return FlowReport(
        allowed=allowed_losses(plan, flow.name, flow.expected),
        status=max((count.status for count in counts.values()), key=STATUSES.index, default="incomplete"),
        receivers=_by_name(plan, {number: count.received for number, count in counts.items()}),
        group_events=_by_name(plan, {number: count.group_events for number, count in counts.items()}),
        end_events=_by_name(plan, {number: count.end_events for number, count in counts.items()}),
        first_lost=first_lost(plan, flow.name, outcome),
    )


def waited_s(plan: Plan, flow: str, outcome: Outcome) -> float:
    """Return for how many seconds receivers held the source of a flow back."""
    waits = [source.waited_s.get(gdt.name, 0.0) for gdt in plan.gdts_of(flow) for source in outcome.sources.values()]
    return max(waits, default=0.0)


def _counts(plan: Plan, flow: str, outcome: Outcome) -> dict[int, FlowCount]:
    """Return what each receiver of a flow has counted."""
    return {
        number: report.flows[gdt.name]
        for gdt in plan.gdts_of(flow)
        for number, report in outcome.receivers.items()
        if gdt.name in report.flows
    }


T = TypeVar("T")


def _by_name(plan: Plan, values: Mapping[int, T]) -> dict[str, T]:
    """Return values by the receivers' names, in their order."""
    return {plan.receivers[receiver]: values[receiver] for receiver in sorted(values)}


def resources(plan: Plan, outcome: Outcome, accounts: Mapping[str, FlowRecord]) -> Resources:
    """Return what ranks have used and measured."""
    used: dict[int, Usage] = {0: usage()}
    used |= {rank: source.usage for rank, source in outcome.sources.items()}
    used |= {plan.rank_of_receiver(r): report.usage for r, report in outcome.receivers.items()}
    used |= {rank: report.usage for rank, report in outcome.workers.items()}
    return Resources(
        ranks=tuple(
            RankUsage(role.rank, role.role, used[role.rank].cpu_s, used[role.rank].rss_bytes)
            for role in plan.ranks
            if role.rank in used
        ),
        peak_fill={
            flow: _by_name(plan, {r: count.peak_fill for r, count in _counts(plan, flow, outcome).items()})
            for flow in accounts
        },
        put_s={str(rank): source.put_s for rank, source in outcome.sources.items()},
        receivers={
            plan.receivers[number]: ReceiverFigures(
                rank=plan.rank_of_receiver(number),
                busy_s=report.measured.busy_s,
                cpu_s=report.measured.cpu_s,
                frames=_frames_of_detector(plan, report),
                kernels=tuple(kernel_costs(plan, report.measured.spent)),
            )
            for number, report in sorted(outcome.receivers.items())
        },
        latency=_latencies(plan, outcome),
        paces={gdt.name: _paces(plan, gdt, outcome) for gdt in plan.gdts},
        hold_s={gdt.name: None if plan.period_s is None else plan.period_s * held_frames(gdt) for gdt in plan.gdts},
        detectors={
            str(rank): DetectorFigures(
                put_s=source.put_s,
                flush_s=source.flush_s,
                cpu_s=source.cpu_s,
                behind_s=None if plan.period_s is None else source.behind * plan.period_s,
            )
            for rank, source in sorted(outcome.sources.items())
        },
    )


def _scale(gdt: Gdt, receiver: int) -> float:
    """Return the frames of the detector for each frame of the flow that comes to a receiver, on average."""
    own = sum(buffer.receiver == receiver for buffer in gdt.buffers)
    return gdt.rule.step * len(gdt.buffers) / own


def _frames_of_detector(plan: Plan, report: ReceiverReport) -> float:
    """Return the frames of the detector for which the receiver did its part.

    They are those of the flow that has come farthest.
    """
    paces = report.measured.paces
    own = [gdt for gdt in plan.gdts if gdt.name in paces and report.receiver in gdt.receivers]
    return max((paces[gdt.name].frames * _scale(gdt, report.receiver) for gdt in own), default=0.0)


def _paces(plan: Plan, gdt: Gdt, outcome: Outcome) -> dict[str, PaceFigures]:
    """Return results of a flow by receiver."""
    figures = {}
    for number, report in sorted(outcome.receivers.items()):
        pace = report.measured.paces.get(gdt.name)
        if pace is not None and number in gdt.receivers:
            lost = sum(visits for _, _, visits in report.flows[gdt.name].lost) * gdt.rule.blocks
            hz = pace.hz(lost * _scale(gdt, number))
            figures[plan.receivers[number]] = PaceFigures(pace.frames, hz, (pace.last_ns - pace.first_ns) * 1e-9)
    return figures


def _latencies(plan: Plan, outcome: Outcome) -> dict[str, Latency]:
    """Return the latencies of all receivers together, by flow and by node that waits for others."""
    measured = [report.measured.paces for report in outcome.receivers.values()]
    names = [*(gdt.name for gdt in plan.gdts), *(step.name for step in plan.steps)]
    own = {name: [paces[name].latency for paces in measured if name in paces] for name in names}
    whole = {name: merged(histograms) for name, histograms in own.items() if histograms}
    return {name: Latency(one.quantile(0.5), one.quantile(0.99), one.largest * 1e-9) for name, one in whole.items()}


def kernel_costs(plan: Plan, spent: Mapping[str, Spent]) -> list[KernelCost]:
    """Return times by kernel, in the order of the data; first those of flows whose frames came compressed.

    The cost to write a table or file behind a kernel is the kernel's.
    """
    left = dict(spent)
    flows = dict.fromkeys(gdt.flow for gdt in plan.gdts)
    figures = [_kernel((flow,), [left.pop(flow)]) for flow in flows if flow in left]
    for kernel in plan.kernels:
        own = [left.pop(name) for name in kernel.nodes if name in left]
        if own:
            figures.append(_kernel(kernel.nodes, own))
    return figures + [_kernel((name,), [one]) for name, one in left.items()]


def _kernel(nodes: tuple[str, ...], own: list[Spent]) -> KernelCost:
    return KernelCost(
        nodes=nodes,
        frames=max(one.frames for one in own),
        stage_s=sum(one.stage_ns for one in own) * 1e-9,
        commit_s=sum(one.commit_ns for one in own) * 1e-9,
    )


def first_lost(plan: Plan, flow: str, outcome: Outcome) -> FirstLost | None:
    """Return the first frame of a flow that was overwritten before it was used, and the receiver that was too slow."""
    losses_of_flow = [
        (int(gdt.rule.numbers(buffer, visit, 1)[0]), number)
        for gdt in plan.gdts_of(flow)
        for number, report in outcome.receivers.items()
        for buffer, visit, _ in (report.flows[gdt.name].lost if gdt.name in report.flows else ())
    ]
    if not losses_of_flow:
        return None
    frame, number = min(losses_of_flow)
    return FirstLost(frame, plan.receivers[number])


BRIDGED_S = 1.0
"""Seconds that buffers which are too small should hold."""


def allowed_losses(plan: Plan, flow: str, expected: int) -> int | None:
    """Return the number of frames of a flow that may be lost; None = any."""
    allowed = plan.allow_lost
    if allowed is None:
        return None if all(gdt.overrun == "continue" for gdt in plan.gdts_of(flow)) else 0
    if isinstance(allowed, int):
        return allowed
    return math.floor(float(allowed.rstrip().rstrip("%")) / 100 * expected * (1 + 1e-12))


def lost_frames(account: FlowRecord, state: str) -> int:
    """Return the number of frames of a flow that were lost in a run that ended so."""
    lost = account.lost + account.missing
    return lost - (account.expected - last_row(account, account.expected)) if lost and state == "stopped" else lost


def losses(plan: Plan, outcome: Outcome, accounts: Mapping[str, FlowRecord]) -> list[str]:
    """Return a sentence for each flow that lost more than is allowed.

    There is none for a run that has failed, whose reason is known.
    """
    if outcome.state == "failed":
        return []
    sentences = []
    for name, account in accounts.items():
        skips = plan.info.sensor.skips and plan.allow_lost is None  # what is missing was asked to be left out
        lost = account.lost if skips else lost_frames(account, outcome.state)
        allowed = allowed_losses(plan, name, account.expected)
        if allowed is not None and lost > allowed:
            share = f"{100 * lost / account.expected:.2g} %"
            sentences.append(f"{name}: {lost} of {account.expected} frames lost ({share}), {allowed_text(allowed)}")
    return sentences


def allowed_text(allowed: int | None) -> str:
    """Return the allowed losses in words."""
    return "any may be" if allowed is None else f"{allowed or 'none'} may be"


def shortfalls(plan: Plan, outcome: Outcome, accounts: Mapping[str, FlowRecord]) -> list[str]:
    """Return warnings of frames that receivers were too slow for, each with a cure, and of a low rate."""
    return [*_cures(plan, outcome, accounts), *_slow(plan, outcome)]


def _cures(plan: Plan, outcome: Outcome, accounts: Mapping[str, FlowRecord]) -> Iterator[str]:
    for name, account in accounts.items():
        first = first_lost(plan, name, outcome) if account.lost else None
        if first is not None:
            gdt = next(gdt for gdt in plan.gdts_of(name) if plan.receivers.index(first.receiver) in gdt.receivers)
            yield f"{name}: {account.lost} frames overwritten before {first.receiver} used them: " + _cure(
                plan, gdt, plan.receivers.index(first.receiver), outcome
            )


def _cure(plan: Plan, gdt: Gdt, receiver: int, outcome: Outcome) -> str:
    """Return what would help one receiver of a flow."""
    rule, report = gdt.rule, outcome.receivers[receiver]
    rate = _frames_per_s(plan, gdt, receiver, outcome)
    events = rate / rule.blocks
    if gdt.group_event and events >= EVENTS_HZ:
        return fewer_groups(rule.blocks, rule.slots, events)
    busy = report.measured.busy_s / outcome.seconds if outcome.seconds else 0.0
    if busy >= BUSY and rate:
        used = report.flows[gdt.name].received / outcome.seconds
        share = math.ceil(rate / used) if used else 2
        cause = f"it was busy for {busy:.0%} of the time and used {_digits(used)} of {_digits(rate)} frames/s"
        return f"{cause}; {max(2, share * len(set(gdt.receivers)))} receivers, or `threads`, share the work"
    frames = 4 * rule.slots
    if plan.period_s is not None:
        frames = max(frames, math.ceil(BRIDGED_S / (plan.period_s * rule.step * rule.buffers)))
        return (
            f"it was busy for {busy:.0%} of the time, so it paused for longer than its buffers hold, "
            f"{seconds_text(plan.period_s * held_frames(gdt))}; `buffers: {{frames: {frames}}}` hold "
            f"{seconds_text(frames * plan.period_s * rule.step * rule.buffers)}"
        )
    held = f"its buffers hold {rule.slots} frames, `buffers: {{frames: {frames}}}` more"
    return f"it was busy for {busy:.0%} of the time; {held}"


def fewer_groups(blocks: int, slots: int, events_hz: float) -> str:
    """Return the cure of groups of ``blocks`` that come too often: larger ones, and more ``slots`` to hold them."""
    cause, larger = f"groups of {blocks} came {_digits(events_hz)} times a second", blocks
    larger *= math.floor(events_hz / EVENTS_HZ) + 1
    if GROUPS * larger > slots:
        return f"{cause}; `buffers: {{frames: {GROUPS * larger}}}` have room for groups of {larger}, which are fewer"
    return f"{cause}; `blocks_per_group: {larger}` makes them fewer, and so does `auto`"


def _frames_per_s(plan: Plan, gdt: Gdt, receiver: int, outcome: Outcome) -> float:
    """Return the frames of a flow that came to a receiver each second."""
    hz = achieved_hz(plan, outcome) or 0.0
    own = sum(buffer.receiver == receiver for buffer in gdt.buffers)
    return hz / gdt.rule.step * own / len(gdt.buffers)


def achieved_hz(plan: Plan, outcome: Outcome) -> float | None:
    """Return the frames per second as the modules served them; None where there were none."""
    sent_ns = max((source.sent_ns for source in outcome.sources.values()), default=0)
    if not outcome.frames or sent_ns <= outcome.start_ns:
        return None
    return outcome.frames / ((sent_ns - outcome.start_ns) * 1e-9 + (plan.period_s or 0.0))


def own_hz(outcome: Outcome) -> float | None:
    """Return the frames per second by the detector's own clock; None where there was one at most."""
    elapsed_ns = outcome.last_ns - outcome.first_ns
    return (outcome.frames - 1) / (elapsed_ns * 1e-9) if outcome.frames > 1 and elapsed_ns > 0 else None


def _slow(plan: Plan, outcome: Outcome) -> Sequence[str]:
    """Return a warning below the asked rate; between triggers there is none.

    A detector that cannot wait is not held back by anything, and may start after the run: its own clock counts.
    """
    achieved = achieved_hz(plan, outcome) if plan.info.can_wait else own_hz(outcome)
    if plan.period_s is None or achieved is None or plan.acquisition.trigger != "internal":
        return []
    ratio, late_s = achieved * plan.period_s, outcome.frames * (1 / achieved - plan.period_s)
    if ratio >= KEPT_UP or (late_s < HICCUP_S and ratio > 0.5):
        return []
    rates = f"{_digits(achieved)} Hz of the {_digits(1 / plan.period_s)} Hz asked for"
    return [f"{rates}: {_reason(plan, outcome, late_s)}"]


def _digits(number: float) -> str:
    """Return a number with four digits; of large numbers all, in groups of three."""
    return f"{number:.4g}" if number < 9999.5 else grouped(round(number))


def _reason(plan: Plan, outcome: Outcome, late_s: float) -> str:
    """Return what held the source back for ``late_s`` seconds."""
    if not plan.info.can_wait:
        return "so it is by the detector's own clock"
    waits = [(seconds, name) for source in outcome.sources.values() for name, seconds in source.waited_s.items()]
    waited, flow = max(waits, default=(0.0, ""))
    if waited >= late_s / 2:
        return f"the detector had to wait for receivers, {seconds_text(waited)} for those of {flow.partition('[')[0]}"
    spent = outcome.frames / (achieved_hz(plan, outcome) or math.inf)
    rank, source = max(outcome.sources.items(), key=lambda it: it[1].cpu_s)
    if source.cpu_s >= spent / 2:
        cause = f"rank {rank} (detector) used {source.cpu_s / spent:.0%} of a core to give frames and send them"
        return f"{cause}, {seconds_text(source.cpu_s / outcome.frames)} each"
    if waited > 0:
        return (
            f"the detector had to wait for receivers for {seconds_text(waited)}, and for other programs of this machine"
        )
    return "receivers did not hold it back; the detector gave no more, or other programs used the machine"
