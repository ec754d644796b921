"""``lima2 simulate``, and its answer for people: does it keep up, and what breaks first."""

import gc
import json
import os
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from lima2cli.cli.border import Debug, ExitCode, LimitsFile, Overrides, Profiles, Strict, border
from lima2cli.cli.display import ProgressStyle, ranges_text, table
from lima2cli.cli.run import Transport, TransportOption
from lima2cli.dataclass import dataclass
from lima2cli.errors import BY_SIGNAL, EnvironmentUnfit, UnreadableInput
from lima2cli.units import count_text, frames_text, hertz_text, seconds_text

if TYPE_CHECKING:
    from lima2cli.accounting.summary import Resources
    from lima2cli.check import Checked
    from lima2cli.detectors.emulator_faults import Faults
    from lima2cli.plan.ir import Plan
    from lima2cli.plan.prediction import Prediction
    from lima2cli.simulate.simulation import MaxRate, Probe, Simulated, Simulation, Simulator
    from lima2cli.simulate.verdict import Verdict


class SimulateFormat(StrEnum):
    """Formats of the answer."""

    TEXT = "text"
    JSON = "json"


def simulate(
    file: Annotated[str, typer.Argument(metavar="FILE | -", help="A pipeline; - for stdin.")],
    rate: Annotated[
        str | None,
        typer.Option("--rate", metavar="2x|HZ|max", help="Frame rate instead of the file's, such as `2x`, `1 kHz`."),
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, help="Number of frames; default: those of 5 s, or more.")
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option("--fault", metavar="KIND[:KEY=VALUE,…]", help="A fault to inject; may be repeated."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the faults.")] = None,
    find_max_rate: Annotated[
        bool, typer.Option("--find-max-rate", help="Find the highest rate without loss in several short runs.")
    ] = False,
    no_save: Annotated[bool, typer.Option("--no-save", help="Compute everything, but write no frames.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the files, next to those of runs.")] = False,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Keep the files in this directory.")] = None,
    report: Annotated[
        str | None, typer.Option("--report", metavar="FILE", help="Write all results to this file, as JSON.")
    ] = None,
    format: Annotated[SimulateFormat, typer.Option("--format", help="Format of the result.")] = SimulateFormat.TEXT,
    progress: Annotated[ProgressStyle, typer.Option("--progress", help="How to show progress.")] = ProgressStyle.AUTO,
    limits: LimitsFile = None,
    transport: TransportOption = Transport.AUTO,
    overrides: Overrides = None,
    profiles: Profiles = None,
    strict: Strict = False,
    debug: Debug = False,
) -> None:
    """Run a pipeline against REMU: does it keep up?

    REMU takes the place of its detector; what breaks first is said.

    REMU behaves like hardware: it never waits. Exit code 0: it keeps up, 1: the file has problems, 10: the run failed,
    11: it does not, 12: this machine cannot tell (the emulator was too slow, memory is missing), 130 and 143: stopped.
    """
    as_json = format is SimulateFormat.JSON or progress is ProgressStyle.JSON
    with border(as_json=as_json, debug=debug):
        from lima2cli.cli.border import check_output, write_output
        from lima2cli.cli.display import Display
        from lima2cli.cli.reading import Changes, compiled, read_limits
        from lima2cli.job.launch import job_rank
        from lima2cli.plan.prediction import predict, prediction_figures
        from lima2cli.simulate.simulation import Simulator
        from lima2cli.simulate.simulation import report as plain

        if job_rank() is not None:
            raise EnvironmentUnfit("simulate starts its own ranks: call it without mpiexec or srun")
        if output is not None and find_max_rate:
            raise UnreadableInput(
                "--find-max-rate makes several runs: keep their files by --keep, not in one directory"
            )
        if output is not None and os.path.lexists(output):
            raise EnvironmentUnfit(f"{output} exists, and a simulation does not overwrite files")
        known = None if limits is None else read_limits(limits)
        checked, origin = compiled(file, Changes.of(overrides, profiles), strict, as_json=as_json)
        assert checked.plan is not None
        if report is not None:
            check_output(report, checked.plan.inputs)
        period_s = _period(rate, checked.plan.period_s)
        wanted = _Wanted(period_s, frames, _faults(checked, fault or [], seed), not no_save, output)
        notes = _notes(checked, rate, wanted)
        for note in () if as_json else notes:
            typer.echo(f"note: {note}", err=True)
        quiet = progress is ProgressStyle.AUTO and (find_max_rate or format is SimulateFormat.JSON)
        shown = ProgressStyle.NONE if quiet else progress
        keeps, bold = keep or output is not None, frames is not None
        display = Display(shown)
        simulator = Simulator(checked, origin, transport.value, keeps, bold, display)
        gc.enable()
        try:
            simulated = _run(simulator, wanted, checked.plan, search=find_max_rate, as_json=as_json)
        finally:
            display.close()
        prediction = None if known is None else predict(simulated[0].plan, known, simulated[0].cores)
        whole = plain(*simulated, file, notes)
        if prediction is not None:
            whole["predicted"] = prediction_figures(prediction) | {"measured_hz": _measured(*simulated)}
        if report is not None:
            write_output(report, json.dumps(whole, indent=2) + "\n", checked.plan.inputs)
        lines = None if progress is ProgressStyle.JSON else 2
        print(json.dumps(whole, indent=lines) if as_json else show_answer(*simulated, file, prediction), flush=True)
        raise typer.Exit(_code(simulated[0], simulated[2]))


@dataclass(frozen=True)
class _Wanted:
    """Request of the options; see `Simulation`. ``frames`` None = as many as are needed."""

    period_s: float | None
    frames: int | None
    faults: "Faults | None"
    saves: bool
    output: str | None

    def at(self, period_s: float | None, frames: int) -> "Simulation":
        from lima2cli.simulate.simulation import Simulation

        return Simulation(period_s, self.frames or frames, self.faults, self.saves, self.output)


def _run(
    simulator: "Simulator", wanted: _Wanted, plan: "Plan", *, search: bool, as_json: bool
) -> "tuple[Simulated, Sequence[Probe], MaxRate | None]":
    """Run one simulation, or as many as the search for a rate needs, and return the results."""
    from lima2cli.cli.reading import show_problems
    from lima2cli.simulate.simulation import SimulationUnfit, enough_frames, find_max_rate

    try:
        if not search:
            period_s = wanted.period_s
            return simulator.run(wanted.at(period_s, enough_frames(plan, period_s))), (), None
        best = find_max_rate(
            simulator,
            lambda hz, frames: wanted.at(1 / hz, frames),
            plan,
            wanted.period_s,
            lambda probe: None if as_json else typer.echo(show_probe(probe), err=True),
        )
    except SimulationUnfit as unfit:
        show_problems(unfit.checked, as_json=as_json)
        raise typer.Exit(ExitCode.PROBLEMS) from None
    return best


def _period(rate: str | None, period_s: float | None) -> float | None:
    """Return the seconds from frame to frame: those of the file, or of ``--rate``.

    Raises:
        UnreadableInput: the rate can't be used.
    """
    if rate is None or rate == "max":
        return period_s if rate is None else None
    from lima2cli.declare import Quantity

    try:
        if not rate.endswith("x"):
            return 1 / Quantity("hertz", above=0).parse(_number(rate))
        factor = float(rate[:-1])
        if not 0 < factor < float("inf"):
            raise ValueError("a factor above 0")
    except ValueError as error:
        raise UnreadableInput(
            f"--rate {rate}: expected a factor such as `2x`, a rate such as `1 kHz`, or `max`"
        ) from error
    if period_s is None:
        raise UnreadableInput(f"--rate {rate}: the file gives no rate to multiply; give one in Hz")
    return period_s / factor


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _faults(checked: "Checked", texts: list[str], seed: int | None) -> "Faults | None":
    """Return the faults of the file, then those of the command line instead.

    Raises:
        UnreadableInput: one can't be used.
    """
    from dataclasses import replace

    from lima2cli.detectors.emulator_faults import Faults, parse_fault
    from lima2cli.errors import NodeMisuse
    from lima2cli.simulate.simulation import faults_of

    assert checked.pipeline is not None
    faults = faults_of(checked.pipeline.config)
    for text in texts:
        try:
            faults = (faults or Faults()).plus(parse_fault(text))
            faults.check(len(checked.pipeline.detector.modules))
        except NodeMisuse as misfit:
            help = f" ({misfit.help})" if misfit.help else ""
            raise UnreadableInput(f"--fault {text}: {misfit.message}{help}") from None
    return faults if seed is None or faults is None else replace(faults, seed=seed)


def _notes(checked: "Checked", rate: str | None, wanted: _Wanted) -> list[str]:
    """Return how the simulation differs from a run."""
    from lima2cli.simulate.simulation import waiting_flows

    assert checked.pipeline is not None
    asked, notes = checked.pipeline.acquisition, []
    if waiting := waiting_flows(checked.pipeline.flows):
        notes.append(f"{', '.join(waiting)}: `overrun: wait` is simulated as `continue`, since hardware never waits")
    if rate is None and wanted.period_s is None:
        notes.append("the file gives no rate: REMU sends as fast as it can; give one with --rate")
    if asked.exposure is not None and wanted.period_s is not None and asked.exposure > wanted.period_s:
        notes.append(
            f"the detector could not do this: an exposure of {seconds_text(asked.exposure)} is longer than the period"
        )
    if not wanted.saves:
        notes.append("nothing is saved: the cost of compressing and writing is not in the figures")
    return notes


def _code(found: "Simulated", highest: "MaxRate | None") -> int:
    """Return the exit code."""
    if found.failed or found.code > BY_SIGNAL:
        return found.code or ExitCode.FAILED
    if highest is not None:
        return ExitCode.FINE if highest.hz is not None else ExitCode.DATA_LOST
    return {True: ExitCode.FINE, False: ExitCode.DATA_LOST, None: ExitCode.UNFIT}[found.verdict.kept_up]


Row = tuple[str, ...]


def show_probe(probe: "Probe") -> str:
    """A rate that was tried, in a line."""
    word = {True: "keeps up", False: "does not keep up", None: "unknown"}[probe.kept_up]
    sustained = "" if probe.kept_up else f", sustained {hertz_text(probe.sustained_hz)}"
    return f"{hertz_text(probe.hz):>9}  {word}{sustained}"


def show_answer(
    found: "Simulated",
    probes: "Sequence[Probe]",
    highest: "MaxRate | None",
    file: str,
    prediction: "Prediction | None" = None,
) -> str:
    """The answer first, then why, then the figures."""
    summary, file = found.summary, found.plan.name if file == "-" else file
    parts = [_headline(found.verdict, file) if highest is None else _highest(found, highest, file), *_why(found)]
    if prediction is not None and prediction.bottleneck is not None:
        parts.append(_predicted(prediction, _measured(found, probes, highest)))
    if (measured := summary.resources) is not None:
        ranks = [] if found.inline else _ranks(measured, summary.seconds or 1e-9)
        for rows in (_buffers(measured), _latency(measured), _kernels(measured), ranks):
            parts += ["", *table(rows)] if len(rows) > 1 else []
    parts += ["", *(f"warning: {text}" for text in found.warnings)] if found.warnings else []
    parts += ["", f"files: {found.directory}"] if found.directory is not None else []
    return "\n".join(parts)


def _measured(found: "Simulated", probes: "Sequence[Probe]", highest: "MaxRate | None") -> float | None:
    """Return the rate that is compared with the predicted one: the highest, or what the busiest receiver could take."""
    return found.verdict.capacity_hz if highest is None else highest.hz


def _predicted(prediction: "Prediction", measured: float | None) -> str:
    from lima2cli.cli.plan_text import predicted_text

    ratio = "" if measured is None else f"; measured {hertz_text(measured)}, {measured / prediction.hz:.2f} of it"
    return f"  predicted     {predicted_text(prediction)}{ratio}"


def _headline(verdict: "Verdict", file: str) -> str:
    rate = "as fast as REMU sends" if verdict.asked_hz is None else f"at {hertz_text(verdict.asked_hz)}"
    word = {True: "yes", False: "no", None: "unknown"}[verdict.kept_up]
    return f"{file} keeps up {rate}: {word}, {verdict.reason}"


def _highest(found: "Simulated", highest: "MaxRate", file: str) -> str:
    if highest.hz is None:
        return f"{file}: no rate was found that it keeps up with: {found.verdict.reason}"
    if highest.bounded:
        verdict = f"{file} keeps up with {hertz_text(highest.hz)}, and not with {hertz_text(found.verdict.asked_hz)}"
        return f"{verdict}: {found.verdict.reason}"
    return f"{file} keeps up with {hertz_text(highest.hz)}; the emulator could not send faster on this machine"


def _why(found: "Simulated") -> Iterator[str]:
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
        total = sum(flow.expected or 0 for flow in summary.flows.values())
        lost = f"{count_text(verdict.lost)} of {frames_text(total)}"
        yield f"  first lost    frame {first.frame} of {first.flow}{when}; in all {lost}"
    for name, flow in summary.flows.items():
        if flow.missing and not flow.lost:
            which = ranges_text(flow.missing_frames or ())
            missing = f"{count_text(flow.missing)} of {frames_text(flow.expected or 0)}"
            yield f"  missing       {missing} of {name}: {which}"
    if (behind := verdict.behind) is not None:
        lasts = "" if behind.lasts_s is None else f": its buffers last {seconds_text(behind.lasts_s)}"
        rates = f"{hertz_text(behind.in_hz)} in, {hertz_text(behind.out_hz)} out"
        yield f"  falls behind  {behind.flow} on {behind.receiver}: {rates}{lasts}"


def _buffers(measured: "Resources") -> list[Row]:
    """Return how full local buffers were at most, and what is left of the time that they hold."""
    from lima2cli.simulate.verdict import hold_of

    rows: list[Row] = [("buffers", "on", "hold", "fullest", "left")]
    for flow, fills in measured.peak_fill.items():
        for receiver, fill in sorted(fills.items()):
            hold = hold_of(measured, flow)
            left = None if hold is None else hold * max(0.0, 1 - fill)
            rows.append((flow, receiver, seconds_text(hold), f"{min(fill, 1):.0%}", seconds_text(left)))
    return rows


def _latency(measured: "Resources") -> list[Row]:
    rows: list[Row] = [("latency", "p50", "p99", "longest")]
    for name, its in measured.latency.items():
        rows.append((name, seconds_text(its.p50_s), seconds_text(its.p99_s), seconds_text(its.max_s)))
    return rows


def _kernels(measured: "Resources") -> list[Row]:
    rows: list[Row] = [("nodes", "on", "frames", "a frame", "computing", "writing")]
    for receiver, its in measured.receivers.items():
        for kernel in its.kernels:
            cost, frames = kernel.stage_s + kernel.commit_s, kernel.frames
            each = seconds_text(cost / frames if frames else None)
            times = (seconds_text(kernel.stage_s), seconds_text(kernel.commit_s))
            rows.append((", ".join(kernel.nodes), receiver, count_text(frames), each, *times))
    return rows


def _ranks(measured: "Resources", seconds: float) -> list[Row]:
    """Return what ranks have used of a core, and for how long they were busy: detector ranks with sending."""
    rows: list[Row] = [("ranks", "CPU", "busy", "in Flush", "late by")]
    for rank, its in measured.detectors.items():
        shares = (f"{spent / seconds:.0%}" for spent in (its.cpu_s, its.put_s, its.flush_s))
        rows.append((f"{rank} detector", *shares, seconds_text(its.behind_s)))
    for name, own in measured.receivers.items():
        rows.append((f"{own.rank} {name}", f"{own.cpu_s / seconds:.0%}", f"{own.busy_s / seconds:.0%}", "-", "-"))
    return rows
