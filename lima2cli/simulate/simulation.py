"""Simulations of a pipeline with REMU as its detector: one run, or several until the highest rate is known."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePath
from typing import Any, ClassVar

from lima2cli.accounting.shortfalls import BUSY
from lima2cli.accounting.summary import Summary
from lima2cli.check import Checked, compile_again
from lima2cli.dataclass import dataclass
from lima2cli.declare.plain import to_plain
from lima2cli.detectors.base import DetectorConfig, PixelSize, written
from lima2cli.detectors.emulator_faults import Faults
from lima2cli.detectors.modules import ImageSize, Module, operate
from lima2cli.detectors.remu import Dataset, Remu
from lima2cli.detectors.scenes import Frames, Scene
from lima2cli.doctor.machine import disk_room
from lima2cli.errors import BY_SIGNAL, EnvironmentUnfit
from lima2cli.frames import Block, DetectorInfo, TableSpec
from lima2cli.job.launch import Emit, find_mpiexec
from lima2cli.job.run import run_plan
from lima2cli.language.pipeline import Pipeline
from lima2cli.language.records import Flow, GraphNode, Output
from lima2cli.nodes.base import Inputs, Partial, Reduce, Reducer, Rows, Sink, node
from lima2cli.plan.ir import Gdt, Plan
from lima2cli.runs.ownership import remove_run
from lima2cli.runs.saved_plan import Origin
from lima2cli.simulate.verdict import Verdict, judge, warnings

SUFFIX = "{name}_sim_{run:04d}"
"""Template of the run directory of a simulation, which lies next to those of runs: on the same disk."""


ANY_LOST = "100 %"
"""Losses that a simulation allows: they are its answer, not its failure."""


@dataclass(frozen=True)
class Simulation:
    """Request of a simulation.

    period_s   from frame to frame, None = as fast as REMU can;  frames  of the acquisition
    faults     of the detector, None for none;  saves  whether frames are written
    directory  of its files; None: next to the runs
    """

    period_s: float | None
    frames: int
    faults: Faults | None = None
    saves: bool = True
    directory: str | None = None


@node("count_only")
class CountOnly(Reduce):
    """Count frames, dense or sparse, in the place of a sink."""

    sparse: ClassVar[bool] = True
    parts: ClassVar[bool] = True

    def infer(self, inputs: Inputs) -> TableSpec:
        """See `Node.infer`: a row per frame."""
        return TableSpec({"frame_time": "uint64"}, units={"frame_time": "ns"})

    def bind(self, inputs: Inputs) -> Reducer:
        """See `Reduce.bind`."""
        return _Times()

    def merge(self, one: Partial, other: Partial) -> Partial:
        """See `Reduce.merge`: parts of a frame are one frame."""
        return one

    def finish(self, partial: Partial) -> Rows:
        """See `Reduce.finish`."""
        return partial


class _Times:
    """See `Reducer`."""

    def step(self, block: Block, received_ns: int) -> Partial:
        """Return ``frame_number`` and ``frame_time``."""
        return {"frame_number": block.numbers.copy(), "frame_time": block.times.copy()}


def simulated(pipeline: Pipeline, asked: Simulation) -> Pipeline:
    """Return the pipeline as a simulation runs it.

    It must be without `POISON`.

    REMU has the sensor of the detector (image, modules, datasets, channels, gap value, names), does what the detector
    is asked to do itself, and sees what `DetectorConfig.scenes_for` gives. Frames start by themselves; nothing repeats;
    no run is overwritten.
    """
    wanted = pipeline.acquisition
    acquisition = replace(
        wanted,
        frames=asked.frames,
        period=asked.period_s,
        rate=None,
        trigger="internal",
        frames_per_trigger=1,
        repeat=1,
        allow_lost=ANY_LOST,
    )
    config, sensor = emulator(pipeline.config, pipeline.detector.sensor, asked.faults)
    return replace(
        pipeline,
        config=config,
        detector=operate(sensor, wanted.operations),
        acquisition=acquisition,
        flows={name: _unwaiting(flow) for name, flow in pipeline.flows.items()},
        nodes=pipeline.nodes if asked.saves else {name: _unsaved(node) for name, node in pipeline.nodes.items()},
        output=Output(directory=asked.directory or simulation_directory(pipeline.output.directory)),
    )


def emulator(config: DetectorConfig, sensor: DetectorInfo, faults: Faults | None) -> tuple[Remu, DetectorInfo]:
    """Return REMU that plays a detector whose sensor is described, and the description of that."""
    scenes = {name: _endless(scene) for name, scene in config.scenes_for(sensor).items()}
    datasets = tuple(replace(dataset, frames=None) for dataset in sensor.datasets)
    loses = (faults is not None and faults.lose_frames) or any(scene.lossy for scene in scenes.values())
    played = replace(sensor, datasets=datasets, can_wait=False, can_fail=loses, operated=None)
    pixels = sensor.pixel_size
    remu = Remu(
        name=sensor.name,
        pixel_size=None if pixels is None else PixelSize(x=pixels[0], y=pixels[1]),
        saturation=sensor.saturation,
        invalid=written(datasets[0].invalid),
        image=ImageSize(width=sensor.width, height=sensor.height),
        datasets={it.name: Dataset(dtype=it.dtype, bits=it.bits, threshold=it.threshold_ev) for it in datasets},
        modules=tuple(Module(x=m.x, y=m.y, width=m.width, height=m.height) for m in sensor.modules),
        channels=sensor.channels,
        gap_value=sensor.gap_value,
        faults=faults,
        scenes=scenes,
    )
    return remu, played


def simulation_directory(directory: str) -> str:
    """Return the directory of a simulation, as a template, from that of runs."""
    return str(PurePath(directory).parent / SUFFIX)


def faults_of(config: DetectorConfig) -> Faults | None:
    """Return the faults that the pipeline gives its detector."""
    faults = getattr(config, "faults", None)
    return faults if isinstance(faults, Faults) else None


def waiting_flows(flows: Mapping[str, Flow]) -> list[str]:
    """Return the names of the flows for which a run would wait."""
    return [name for name, flow in flows.items() if flow.overrun == "wait"]


def _endless(scene: Scene) -> Scene:
    return replace(scene, loop=True) if isinstance(scene, Frames) else scene


def _unwaiting(flow: Flow) -> Flow:
    return replace(flow, overrun="continue") if flow.overrun == "wait" else flow


def _unsaved(it: GraphNode) -> GraphNode:
    """Return a node that notes frames instead of saving them, so that all that makes them is still computed."""
    return replace(it, node=CountOnly()) if isinstance(it.node, Sink) else it


SECONDS = 5.0
"""Default number of frames."""

UNPACED = 1000
"""Default number of frames without a period."""

PROBE_S, PROBE_FRAMES = 1.5, 40
"""Seconds of frames, and minimal number of frames, for each rate that is tried."""

CLOSE = 1.05
"""Ratio of two rates that are close enough."""

MOST_PROBES = 16


@dataclass(frozen=True)
class Probe:
    """A rate that was tried.

    ``kept_up`` None: the emulator could not send so fast; ``capacity_hz``: see `Verdict`.
    """

    hz: float
    kept_up: bool | None
    sustained_hz: float | None
    capacity_hz: float | None


@dataclass(frozen=True)
class MaxRate:
    """The highest rate that was kept up with, None where there is none.

    ``bounded``: the next rate that was tried was not kept up with, so that it is the pipeline's limit, and not the
    emulator's.
    """

    hz: float | None
    bounded: bool


def next_rate(probes: Sequence[Probe], first: float) -> float | None:
    """Return the rate to try next, None when it is known.

    The first guess may be far off: what receivers were measured to do leads to the neighbourhood, then the interval is
    halved, in ratios. A rate that fails although receivers had time left is tried once more: it may have been the
    machine, which others use, too.
    """
    if not probes:
        return first
    if len(probes) >= MOST_PROBES:
        return None
    last = probes[-1]
    guess = last.capacity_hz or last.sustained_hz or last.hz
    if last.kept_up is False and last.hz < BUSY * guess and sum(probe.hz == last.hz for probe in probes) == 1:
        return last.hz
    low, high = bracket(probes)
    if high is None:
        return max(2 * last.hz, 0.9 * guess)
    if low is None:
        return min(0.9 * guess, high / 1.5)
    if high / low <= CLOSE:
        return None
    middle = math.sqrt(low * high)
    trusted = len(probes) % 2 == 0  # each other time only: what was measured may be far off
    return min(middle, max(1.2 * low, 1.1 * guess)) if trusted and high > 1.5 * low else middle


def bracket(probes: Sequence[Probe]) -> tuple[float | None, float | None]:
    """Return the highest rate that was kept up with below the lowest that was not, and that one.

    None where there is none.
    """
    kept = {probe.hz for probe in probes if probe.kept_up}
    high = min((probe.hz for probe in probes if probe.hz not in kept), default=None)
    return max((hz for hz in kept if high is None or hz < high), default=None), high


def max_rate(probes: Sequence[Probe]) -> MaxRate:
    """Return what has been found."""
    low, high = bracket(probes)
    return MaxRate(low, any(probe.hz == high and probe.kept_up is False for probe in probes))


def enough_frames(plan: Plan, period_s: float | None) -> int:
    """Return the number of frames after which an overrun has shown: of `SECONDS`, and twice what the buffers hold.

    Where receivers are notified at the end only, no more than the pipeline has: its buffers are made for these.
    """
    if plan.frames is not None and any(not gdt.group_event and not gdt.rule.bounded for gdt in plan.gdts):
        return plan.frames
    frames = UNPACED if period_s is None else math.ceil(SECONDS / period_s)
    depth = max(gdt.rule.step * gdt.rule.blocks * gdt.rule.depth * gdt.rule.buffers for gdt in plan.gdts)
    return whole_groups(plan.gdts, max(frames, 2 * depth))


def probe_frames(plan: Plan, hz: float) -> int:
    """Return the number of frames to try a rate with."""
    return min(enough_frames(plan, 1 / hz), whole_groups(plan.gdts, max(PROBE_FRAMES, math.ceil(PROBE_S * hz))))


def whole_groups(gdts: Sequence[Gdt], frames: int) -> int:
    """Return so many frames or a few more, in whole groups.

    No flow has a group that no event would report, and each has two groups.
    """
    rules = [gdt.rule for gdt in gdts]
    start = max(rule.start for rule in rules)
    groups = max(gdt.rule.step * gdt.rule.blocks * gdt.rule.buffers * max(1, gdt.group_event) for gdt in gdts)
    need = [
        rule.step * rule.blocks * rule.buffers * gdt.group_event
        for gdt, rule in zip(gdts, rules, strict=True)
        if not gdt.end_event and not rule.bounded
    ]
    unit = math.lcm(*need) if need else 1
    return start + -(-max(frames - start, 2 * groups) // unit) * unit


VERSION = 1

FIRST_GUESS_HZ = 100.0
"""Rate that is tried first where none is given, in Hz."""


@dataclass(frozen=True)
class Simulated:
    """A simulation that was run.

    plan       that was run;  directory  of its files, None where they were removed;  code  of the run's end
    cores      of this machine;  inline  whether all ranks took turns in one process
    """

    plan: Plan
    verdict: Verdict
    summary: Summary
    directory: Path | None
    code: int
    cores: int
    inline: bool
    warnings: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Return whether it failed for another reason than lost frames."""
        return self.summary.state == "failed" and not self.summary.overrun


class SimulationUnfit(Exception):
    """The simulated pipeline does not compile, as with a number of frames that leaves a group half full."""

    def __init__(self, checked: Checked) -> None:
        super().__init__("the simulated pipeline does not compile")
        self.checked = checked


@dataclass(frozen=True)
class Simulator:
    """Runner of simulations of one pipeline that was checked.

    keep   their files stay;  bold   also where the disk may not hold them
    """

    checked: Checked
    origin: Origin
    transport: str
    keep: bool
    bold: bool
    emit: Emit

    def run(self, asked: Simulation) -> Simulated:
        """Run one simulation and return its results.

        Raises:
            SimulationUnfit: it does not compile; and what `run_plan` raises.
        """
        assert self.checked.pipeline is not None
        pipeline = simulated(self.checked.pipeline, asked)
        checked = compile_again(self.checked, pipeline, self.origin.base, cores=self.origin.cores)
        if checked.plan is None:
            raise SimulationUnfit(checked)
        room = disk_room(checked.plan)
        if room.status != "ok" and not self.bold:
            raise EnvironmentUnfit(f"{room.message}; give fewer --frames, or --no-save")
        directory, summary, code = run_plan(
            checked.plan, self.origin, self.emit, transport=self.transport, latest=False
        )
        broken = not summary.orderly
        kept = self.keep or (summary.state == "failed" and not summary.overrun)
        kept = kept or bool(remove_run(directory))
        cores, inline = self.origin.cores, self.transport == "inline" or find_mpiexec() is None
        return Simulated(
            checked.plan,
            _broken(summary, checked.plan) if broken else judge(summary),
            summary,
            directory if kept else None,
            code,
            cores,
            inline,
            () if broken else tuple(warnings(summary, cores, inline=inline)),
        )


def _broken(summary: Summary, plan: Plan) -> Verdict:
    """Return a simulation whose ranks died: their measurements are lost."""
    asked = None if plan.period_s is None else 1 / plan.period_s
    reason = "the simulation was stopped" if summary.state == "stopped" else f"the run failed: {summary.reason}"
    return Verdict(None, reason, asked, None, None, None, 0, None, None, None)


def find_max_rate(
    simulator: Simulator,
    asked: Callable[[float, int], Simulation],
    plan: Plan,
    period_s: float | None,
    report_probe: Callable[[Probe], None],
) -> tuple[Simulated, Sequence[Probe], MaxRate]:
    """Try one rate after another; return the simulation to learn from, all that was tried, and what was found.

    That simulation is the one at the lowest rate that was not kept up with; else, and after a failure, the last.

    ``asked``  runs the simulation at a rate, with so many frames;  ``report_probe``  is called with each that was tried
    """
    probes: list[Probe] = []
    first = FIRST_GUESS_HZ if period_s is None else 1 / period_s
    runs: dict[float, Simulated] = {}
    last = None
    while (hz := next_rate(probes, first)) is not None:
        last = simulator.run(asked(hz, probe_frames(plan, hz)))
        if last.failed or last.code > BY_SIGNAL:
            return last, probes, max_rate(probes)
        runs[hz], found = last, last.verdict
        probes.append(Probe(hz, found.kept_up, found.sustained_hz, found.capacity_hz))
        report_probe(probes[-1])
    high = bracket(probes)[1]
    learnt = last if high is None else runs[high]
    assert learnt is not None
    return learnt, probes, max_rate(probes)


def report(
    found: Simulated, probes: Sequence[Probe], highest: MaxRate | None, file: str, notes: Sequence[str]
) -> dict[str, Any]:
    """Return all of it as plain data, as ``--report`` writes it."""
    searched: dict[str, Any] = {}
    if highest is not None:
        searched = {"max_rate_hz": highest.hz, "max_rate_bounded": highest.bounded}
        searched["probes"] = [asdict(probe) for probe in probes]
    return {
        "version": VERSION,
        "file": file,
        **asdict(found.verdict),
        **searched,
        "ranks": len(found.plan.ranks),
        "cores": found.cores,
        "inline": found.inline,
        "warnings": list(found.warnings),
        "notes": list(notes),
        "directory": None if found.directory is None else str(found.directory),
        "summary": to_plain(found.summary),
    }
