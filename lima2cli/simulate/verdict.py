"""Verdict of a simulation: whether the pipeline keeps up, and what fails first. Pure, from the summary of a run.

**No** where frames were lost, or where results arrived ever later: what is left of the buffers is then a matter of
time. **Yes** where neither was so, and frames were sent at the rate that was asked for. **Unknown** (None) where the
emulator could not send so fast, or was held up by transfers: hardware would have sent, with an unknown result.
"""

from collections.abc import Iterator, Sequence

from lima2cli.accounting.shortfalls import BUSY, HICCUP_S, KEPT_UP
from lima2cli.accounting.summary import KernelCost, Resources, Summary
from lima2cli.dataclass import dataclass
from lima2cli.units import seconds_text

BLOCKED = 0.1
"""Share of its time that a module may be blocked in Flush: a transfer that is not there when it should be."""


@dataclass(frozen=True)
class Bottleneck:
    """The kernel that takes the largest share of the time of the busiest receiver, or of the one that lost frames.

    Or the worker of a node that is busier than that.

    place    the receiver, or ``worker`` with the number of its rank
    nodes    of the kernel; empty where receiving itself takes longest: looking for groups, copies
    share    of the time of the place;  frame_s  seconds for each frame that the kernel was given
    """

    place: str
    nodes: tuple[str, ...]
    share: float
    frame_s: float


@dataclass(frozen=True)
class Lost:
    """The first frame that was lost.

    ``time_s``: when another took its place, in seconds since the start of the run; None where frames have no period.
    """

    flow: str
    frame: int
    receiver: str
    time_s: float | None


@dataclass(frozen=True)
class Behind:
    """A flow whose results leave a receiver more slowly than its frames arrive.

    Both are in frames of the detector per second.

    ``lasts_s``: seconds that its buffers last, None where that is not known.
    """

    flow: str
    receiver: str
    in_hz: float
    out_hz: float
    lasts_s: float | None


@dataclass(frozen=True)
class Verdict:
    """Findings of a simulation.

    Rates are of frames of the detector per second, None where there is none.

    kept_up       yes, no, or None: unknown;  reason  in one sentence
    asked_hz      None = as fast as REMU can;  sent_hz  by the emulator;  sustained_hz  by the slowest receiver
    capacity_hz   what the busiest receiver could take if it never paused: an estimate
    lost          frames of all flows that were overwritten before they were used
    """

    kept_up: bool | None
    reason: str
    asked_hz: float | None
    sent_hz: float | None
    sustained_hz: float | None
    capacity_hz: float | None
    lost: int
    first_lost: Lost | None
    behind: Behind | None
    bottleneck: Bottleneck | None


def judge(summary: Summary) -> Verdict:
    """Return the verdict on the summary of a simulation.

    There is none for one that failed for another reason than lost frames.
    """
    measured = measured_of(summary)
    rates = summary.rates
    asked, sent = (None, None) if rates is None else (rates.asked_hz, rates.achieved_hz)
    lost, first = sum(flow.lost or 0 for flow in summary.flows.values()), first_lost(summary, asked)
    in_hz = min((hz for hz in (asked, sent) if hz is not None), default=None)
    behind = None if in_hz is None else falls_behind(measured, in_hz)
    slow = behind.receiver if first is None and behind is not None else first.receiver if first else None
    kept_up, reason = _answer(summary, first, behind, asked, sent)
    return Verdict(
        kept_up=kept_up,
        reason=reason,
        asked_hz=asked,
        sent_hz=sent,
        sustained_hz=sustained(measured, in_hz),
        capacity_hz=capacity(summary),
        lost=lost,
        first_lost=first,
        behind=behind,
        bottleneck=bottleneck(summary, slow),
    )


def _answer(
    summary: Summary, first: Lost | None, behind: Behind | None, asked: float | None, sent: float | None
) -> tuple[bool | None, str]:
    """Return whether it kept up, and the reason."""
    if first is not None and _burst(summary, first, asked):
        return None, f"frame {first.frame} of {first.flow} was lost in a burst: the emulator had been late"
    if first is not None:
        return False, _lost_words(summary, first, asked)
    if summary.state == "stopped":
        return None, "the simulation was stopped"
    if summary.state == "failed":
        return None, f"the run failed: {summary.reason}"
    if behind is not None:
        return False, f"{behind.receiver} falls behind with {behind.flow}: nothing is lost yet, but buffers fill"
    blocked = blocked_share(summary)
    if blocked > BLOCKED:
        return None, f"modules were blocked in transfers for {blocked:.0%} of the time; hardware would not have waited"
    if asked is not None and (sent is None or _late(summary.frames or 0, asked, sent)):
        return None, "the emulator could not send faster on this machine"
    return True, "no frame was lost, and results were as fast as frames"


def _lost_words(summary: Summary, first: Lost, asked: float | None) -> str:
    words = f"frame {first.frame} of {first.flow} was overwritten before {first.receiver} used it"
    if summary.overrun:
        words += ", and the run stopped"
    can = capacity(summary)
    if asked is not None and can is not None and can * BUSY > asked:
        words += "; it has time left on average, so that larger buffers would help"
    return words


def _burst(summary: Summary, first: Lost, asked: float | None) -> bool:
    """Return whether frames were lost that an emulator had sent late and all at once.

    The receiver that lost them had time left.
    """
    can, hold = capacity(summary), hold_of(measured_of(summary), first.flow)
    if asked is None or can is None or hold is None or can * BUSY < asked:
        return False
    return late_by(measured_of(summary)) > hold / 2


def measured_of(summary: Summary) -> Resources:
    """Return what a run that ended in order has measured."""
    assert summary.resources is not None, "its ranks died"
    return summary.resources


def late_by(measured: Resources) -> float:
    """Return the seconds that detector ranks were behind their clock at most."""
    return max((rank.behind_s or 0.0 for rank in measured.detectors.values()), default=0.0)


def _late(frames: int, asked: float, sent: float) -> bool:
    return sent < KEPT_UP * asked and frames / sent - frames / asked > HICCUP_S


def blocked_share(summary: Summary) -> float:
    """Return the share of the run that the worst detector rank was blocked in Flush."""
    ranks = measured_of(summary).detectors.values()
    return max((rank.flush_s for rank in ranks), default=0.0) / (summary.seconds or 1e-9)


def first_lost(summary: Summary, asked: float | None) -> Lost | None:
    """Return the first lost frame of all flows."""
    reports = {name: flow.reported for name, flow in summary.flows.items()}
    losses = [
        (report.first_lost.frame, name, report.first_lost.receiver)
        for name, report in reports.items()
        if report is not None and report.first_lost is not None
    ]
    if not losses:
        return None
    frame, name, receiver = min(losses)
    hold = hold_of(measured_of(summary), name)
    return Lost(name, frame, receiver, None if asked is None else frame / asked + (hold or 0.0))


def hold_of(measured: Resources, flow: str) -> float | None:
    """Return for how many seconds the local buffers of a data flow hold its frames.

    Of one dispatched by modules those of a place.
    """
    return next((hold for name, hold in measured.hold_s.items() if name.partition("[")[0] == flow), None)


def _paces(measured: Resources) -> Iterator[tuple[str, str, float, float]]:
    """Yield (flow, receiver, rate in Hz, for how many seconds) where a rate is known."""
    for flow, receivers in measured.paces.items():
        for receiver, pace in receivers.items():
            if pace.hz is not None:
                yield flow, receiver, pace.hz, pace.seconds


def falls_behind(measured: Resources, in_hz: float) -> Behind | None:
    """Return the flow and receiver whose results leave most slowly, if that is more slowly than frames arrive."""
    slowest = None
    for flow, receiver, out_hz, seconds in _paces(measured):
        late_s = seconds * (1 - out_hz / in_hz)
        if out_hz < KEPT_UP * in_hz and late_s > HICCUP_S and (slowest is None or out_hz < slowest.out_hz):
            hold = measured.hold_s.get(flow)
            lasts = None if hold is None else hold * in_hz / (in_hz - out_hz)
            slowest = Behind(flow, receiver, in_hz, out_hz, lasts)
    return slowest


def sustained(measured: Resources, most: float | None) -> float | None:
    """Return the frames of the detector per second whose results left the slowest receiver; None where nothing did."""
    rates = [hz for _, _, hz, _ in _paces(measured)]
    return min([*rates, *([] if most is None else [most])]) if rates else None


def capacity(summary: Summary) -> float | None:
    """Return the frames of the detector per second of work of the busiest receiver, or worker.

    None where there was none.
    """
    receivers = [its for its in measured_of(summary).receivers.values() if its.busy_s > 0 and its.frames]
    rates = [its.frames / its.busy_s for its in receivers]
    busiest = max((its.busy_s or 0.0 for its in summary.workers or ()), default=0.0)
    if rates and busiest > 0:
        rates.append(max(its.frames for its in receivers) / busiest)
    return min(rates, default=None)


def bottleneck(summary: Summary, receiver: str | None) -> Bottleneck | None:
    """Return the bottleneck of the receiver that is named, else of the busiest; and of all workers."""
    receivers, seconds = measured_of(summary).receivers, summary.seconds or 1e-9
    if not receivers:
        return None
    if receiver is None or receiver not in receivers:
        receiver = max(receivers, key=lambda name: receivers[name].busy_s)
    its = receivers[receiver]
    most: float = max((kernel.frames for kernel in its.kernels), default=its.frames)
    costs: list[tuple[tuple[str, ...], float, float]] = [((), its.busy_s - sum(map(_cost, its.kernels)), most)]
    costs += [(kernel.nodes, _cost(kernel), kernel.frames) for kernel in its.kernels]
    nodes, cost, frames = max(costs, key=lambda it: it[1])
    busiest = Bottleneck(receiver, nodes, cost / seconds, cost / frames if frames else 0.0)
    for worker in summary.workers or ():
        busy = worker.busy_s or 0.0
        if worker.frames and busy / seconds > busiest.share:
            busiest = Bottleneck(f"worker {worker.rank}", (worker.node,), busy / seconds, busy / worker.frames)
    return busiest


def _cost(kernel: KernelCost) -> float:
    return kernel.stage_s + kernel.commit_s


def warnings(summary: Summary, cores: int, *, inline: bool = False) -> Sequence[str]:
    """Return warnings about the value of the figures.

    ``inline``: the ranks were given turns in one process.
    """
    measured, sentences = measured_of(summary), []
    if inline:
        sentences.append("all ranks took turns in one process: the figures are those of less than one core")
    elif len(measured.ranks) > cores:
        shared = f"{len(measured.ranks)} ranks share {cores} cores of this machine"
        sentences.append(f"{shared}: the figures are not those of the beamline's")
    if (late := late_by(measured)) > HICCUP_S:
        sentences.append(
            f"the emulator was late by up to {seconds_text(late)}: frames arrived in bursts, unlike those of hardware"
        )
    missing = sum(flow.missing or 0 for flow in summary.flows.values())
    if missing:
        sentences.append(f"{missing} frames were missing or incomplete: the receivers are not the cause")
    return sentences
