"""Simulations of a pipeline: REMU in the place of its detector, one run or several, and what they show."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lima2cli.check import Checked, compile_again
from lima2cli.config.simulated import Simulation, simulated
from lima2cli.errors import EnvironmentUnfit
from lima2cli.exit_codes import STOPPED
from lima2cli.plan.records import Plan
from lima2cli.runtime.doctor_pipeline import disk_room, output_folder
from lima2cli.runtime.launch import Emit, find_mpiexec
from lima2cli.runtime.origin import Origin
from lima2cli.runtime.rates import MaxRate, Probe, bracket, max_rate, next_rate, probe_frames
from lima2cli.runtime.run import run_plan
from lima2cli.runtime.verdict import Verdict, judge, warnings

VERSION = 1

FIRST_GUESS_HZ = 100.0
"""Tried first where no rate is said."""


@dataclass(frozen=True)
class Simulated:
    """A simulation that was run.

    plan       that was run;  directory  of its files, None where they were removed;  code  of the run's end
    cores      of this machine;  inline  whether all ranks took turns in one process
    """

    plan: Plan
    verdict: Verdict
    summary: Mapping[str, Any]
    directory: Path | None
    code: int
    cores: int
    inline: bool
    warnings: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether it failed for another reason than lost frames."""
        return self.summary["state"] == "failed" and not self.summary["overrun"]


class Unfit(Exception):
    """The simulated pipeline does not compile, as with a number of frames that leaves a group half full."""

    def __init__(self, checked: Checked) -> None:
        super().__init__("the simulated pipeline does not compile")
        self.checked = checked


@dataclass(frozen=True)
class Simulator:
    """Runs simulations of one pipeline that was checked.

    keep   their files stay;  bold   also where the disk may not hold them
    """

    checked: Checked
    origin: Origin
    transport: str
    keep: bool
    bold: bool
    emit: Emit

    def run(self, asked: Simulation) -> Simulated:
        """One. Raises `Unfit`, and what `run_plan` raises."""
        assert self.checked.pipeline is not None
        pipeline = simulated(self.checked.pipeline, asked)
        checked = compile_again(self.checked, pipeline, self.origin.base, cores=self.origin.cores)
        if checked.plan is None:
            raise Unfit(checked)
        room = disk_room(checked.plan, output_folder(checked.plan.output_directory))
        if room.status != "ok" and not self.bold:
            raise EnvironmentUnfit(f"{room.message}; give fewer --frames, or --no-save")
        directory, summary, code = run_plan(
            checked.plan, self.origin, self.emit, transport=self.transport, latest=False
        )
        broken = summary["seconds"] is None
        kept = self.keep or (summary["state"] == "failed" and not summary["overrun"])
        if not kept:
            shutil.rmtree(directory, ignore_errors=True)
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


def _broken(summary: Mapping[str, Any], plan: Plan) -> Verdict:
    """Ranks died, and nobody is left to tell what they have measured."""
    asked = None if plan.period_s is None else 1 / plan.period_s
    reason = "the simulation was stopped" if summary["state"] == "stopped" else f"the run failed: {summary['reason']}"
    return Verdict(None, reason, asked, None, None, None, 0, None, None, None)


def find_max_rate(
    simulator: Simulator,
    asked: Callable[[float, int], Simulation],
    plan: Plan,
    period_s: float | None,
    told: Callable[[Probe], None],
) -> tuple[Simulated, Sequence[Probe], MaxRate]:
    """Try one rate after another; gives the simulation to learn from, all that was tried, and what was found.

    That simulation is the one at the lowest rate that was not kept up with; else, and after a failure, the last.

    ``asked``  the simulation at a rate, with so many frames;  ``told``  of each that was tried
    """
    probes: list[Probe] = []
    first = FIRST_GUESS_HZ if period_s is None else 1 / period_s
    runs: dict[float, Simulated] = {}
    last = None
    while (hz := next_rate(probes, first)) is not None:
        last = simulator.run(asked(hz, probe_frames(plan, hz)))
        if last.failed or last.code > STOPPED:
            return last, probes, max_rate(probes)
        runs[hz], found = last, last.verdict
        probes.append(Probe(hz, found.kept_up, found.sustained_hz, found.capacity_hz))
        told(probes[-1])
    high = bracket(probes)[1]
    learnt = last if high is None else runs[high]
    assert learnt is not None
    return learnt, probes, max_rate(probes)


def report(
    found: Simulated, probes: Sequence[Probe], highest: MaxRate | None, file: str, notes: Sequence[str]
) -> dict[str, Any]:
    """All of it as plain data: what ``--report`` writes."""
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
        "summary": dict(found.summary),
    }
