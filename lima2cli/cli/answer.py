"""The answer of a simulation, for people: does it keep up, and what breaks first."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lima2cli.cli.totals import ranges_text, table
from lima2cli.human import count_text, frames_text, hertz_text, seconds_text
from lima2cli.runtime.rates import MaxRate, Probe
from lima2cli.runtime.simulation import Simulated
from lima2cli.runtime.verdict import Verdict, hold_of

Row = tuple[str, ...]


def show_probe(probe: Probe) -> str:
    """A rate that was tried, in a line."""
    word = {True: "keeps up", False: "does not keep up", None: "unknown"}[probe.kept_up]
    sustained = "" if probe.kept_up else f", sustained {hertz_text(probe.sustained_hz)}"
    return f"{hertz_text(probe.hz):>9}  {word}{sustained}"


def show_answer(found: Simulated, probes: Sequence[Probe], highest: MaxRate | None, file: str) -> str:
    """The answer first, then why, then the figures."""
    summary, file = found.summary, found.plan.name if file == "-" else file
    parts = [_headline(found.verdict, file) if highest is None else _highest(found, highest, file), *_why(found)]
    if summary["seconds"] is not None:
        measured = summary["resources"]
        ranks = [] if found.inline else _ranks(summary)
        for rows in (_buffers(measured), _latency(measured), _kernels(measured), ranks):
            parts += ["", *table(rows)] if len(rows) > 1 else []
    parts += ["", *(f"warning: {text}" for text in found.warnings)] if found.warnings else []
    parts += ["", f"files: {found.directory}"] if found.directory is not None else []
    return "\n".join(parts)


def _headline(verdict: Verdict, file: str) -> str:
    rate = "as fast as REMU sends" if verdict.asked_hz is None else f"at {hertz_text(verdict.asked_hz)}"
    word = {True: "yes", False: "no", None: "unknown"}[verdict.kept_up]
    return f"{file} keeps up {rate}: {word}, {verdict.reason}"


def _highest(found: Simulated, highest: MaxRate, file: str) -> str:
    if highest.hz is None:
        return f"{file}: no rate was found that it keeps up with: {found.verdict.reason}"
    if highest.bounded:
        said = f"{file} keeps up with {hertz_text(highest.hz)}, and not with {hertz_text(found.verdict.asked_hz)}"
        return f"{said}: {found.verdict.reason}"
    return f"{file} keeps up with {hertz_text(highest.hz)}; the emulator could not send faster on this machine"


def _why(found: Simulated) -> Iterator[str]:
    verdict, summary = found.verdict, found.summary
    asked = "" if verdict.asked_hz is None else f" of {hertz_text(verdict.asked_hz)}"
    sent = "" if verdict.sent_hz is None else f"; sent {hertz_text(verdict.sent_hz)}"
    yield f"  sustained     {hertz_text(verdict.sustained_hz)}{asked}{sent}"
    if (slow := verdict.bottleneck) is not None:
        nodes = ", ".join(slow.nodes) or "receiving and copying frames"
        cost = f"{seconds_text(slow.frame_s)} a frame, {slow.share:.0%} of its time"
        yield f"  bottleneck    {nodes} on {slow.place}: {cost}"
    if (first := verdict.first_lost) is not None:
        when = "" if first.time_s is None else f", {seconds_text(first.time_s)} after the start"
        total = sum(flow["expected"] for flow in summary["flows"].values())
        lost = f"{count_text(verdict.lost)} of {frames_text(total)}"
        yield f"  first lost    frame {first.frame} of {first.flow}{when}; in all {lost}"
    for name, flow in summary["flows"].items():
        if flow["missing"] and not flow["lost"]:
            which = ranges_text(flow["missing_frames"])
            missing = f"{count_text(flow['missing'])} of {frames_text(flow['expected'])}"
            yield f"  never came    {missing} of {name}: {which}"
    if (behind := verdict.behind) is not None:
        lasts = "" if behind.lasts_s is None else f": its buffers last {seconds_text(behind.lasts_s)}"
        rates = f"{hertz_text(behind.in_hz)} come, {hertz_text(behind.out_hz)} leave"
        yield f"  falls behind  {behind.flow} on {behind.receiver}: {rates}{lasts}"


def _buffers(measured: Mapping[str, Any]) -> list[Row]:
    """How full local buffers were at most; what is left of the time that they hold."""
    rows: list[Row] = [("buffers", "on", "hold", "fullest", "left")]
    for flow, fills in measured["peak_fill"].items():
        for receiver, fill in sorted(fills.items()):
            hold = hold_of(measured, flow)
            left = None if hold is None else hold * max(0.0, 1 - fill)
            rows.append((flow, receiver, seconds_text(hold), f"{min(fill, 1):.0%}", seconds_text(left)))
    return rows


def _latency(measured: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = [("latency", "p50", "p99", "longest")]
    for name, its in measured["latency"].items():
        rows.append((name, *(seconds_text(its[key]) for key in ("p50_s", "p99_s", "max_s"))))
    return rows


def _kernels(measured: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = [("nodes", "on", "frames", "a frame", "computing", "writing")]
    for receiver, its in measured["receivers"].items():
        for kernel in its["kernels"]:
            cost, frames = kernel["stage_s"] + kernel["commit_s"], kernel["frames"]
            each = seconds_text(cost / frames if frames else None)
            times = (seconds_text(kernel["stage_s"]), seconds_text(kernel["commit_s"]))
            rows.append((", ".join(kernel["nodes"]), receiver, count_text(frames), each, *times))
    return rows


def _ranks(summary: Mapping[str, Any]) -> list[Row]:
    """What ranks have used of a core, and for how long they were busy: detector ranks with sending."""
    rows: list[Row] = [("ranks", "CPU", "busy", "in Flush", "late by")]
    measured, seconds = summary["resources"], summary["seconds"]
    for rank, its in measured["detectors"].items():
        shares = (f"{its[key] / seconds:.0%}" for key in ("cpu_s", "put_s", "flush_s"))
        rows.append((f"{rank} detector", *shares, seconds_text(its["behind_s"])))
    for name, its in measured["receivers"].items():
        shares = (f"{its[key] / seconds:.0%}" for key in ("cpu_s", "busy_s"))
        rows.append((f"{its['rank']} {name}", *shares, "-", "-"))
    return rows
