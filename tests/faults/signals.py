"""Send signals to the processes of a run in each of its phases: ``python -m tests.faults.signals [--seed 1]``.

To the launcher each signal in each phase, to each other kind of process each signal in some phase. What a signal means
is fixed: INT and TERM end the run in order, with exit codes 130 and 143; HUP, PIPE, WINCH and a pause (STOP, then
CONT) change nothing; others end the process that gets them, as a kill does. All else is as after kills.
"""

import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals

from tests.faults import Outcome, command
from tests.faults.job import JobRun

PHASES = ("starting", "joining", "running", "draining", "finishing")
SIGNALS = ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "ALRM", "PIPE", "WINCH", "STOP")
OTHERS = ("control", "detector", "receiver", "worker", "mpiexec", "proxy")
PAUSE_S = 0.7
FRAMES = 450


@dataclass(frozen=True)
class Cell:
    """A signal, who gets it, and when."""

    signal: str
    target: str
    phase: str

    @property
    def codes(self) -> set[int]:
        """Exit codes that the launcher may have; 0 where the run was over before."""
        number, first = int(Signals[f"SIG{self.signal}"]), {"INT": {130}, "TERM": {143}}
        if self.phase == "draining":  # Ctrl-C came before
            dies = self.target == "launcher" and not self._survived and self.signal not in first
            failed = self.target != "launcher" and not self._survived  # a rank that died is a failure, after Ctrl-C too
            return {130, 0} | ({-number} if dies else set()) | ({10} if failed else set())
        if self.target != "launcher":
            return {0} if self._survived else {0, 10}
        if self.phase == "starting":  # Python itself may not be there yet
            return {0, -number, *first.get(self.signal, set())}
        return first.get(self.signal, {0} if self._survived else {-number}) | {0}

    @property
    def _survived(self) -> bool:
        """True where the process goes on."""
        if self.target in ("mpiexec", "proxy"):
            return self.signal in ("WINCH", "STOP")
        if self.target == "launcher":
            return self.signal in ("PIPE", "WINCH", "STOP", "HUP")
        ignored = self.signal == "INT" and self.phase != "joining"  # when its Python has started
        return ignored or self.signal in ("PIPE", "WINCH", "STOP")


@dataclass
class Round:
    """The outcome of a cell."""

    cell: Cell
    code: int = 0
    reason: str = ""
    wrong: list[str] = field(default_factory=list)


def cells(chance: random.Random) -> Iterator[Cell]:
    """All of them, in any order; again and again, others with phases of their own each time."""
    while True:
        found = [Cell(name, "launcher", phase) for name in SIGNALS for phase in PHASES]
        found += [Cell(name, target, chance.choice(PHASES[1:])) for name in SIGNALS for target in OTHERS]
        chance.shuffle(found)
        yield from found


SIZE = len(SIGNALS) * (len(PHASES) + len(OTHERS))


def send(cell: Cell, chance: random.Random) -> Round:
    """One round."""
    found = Round(cell)
    with tempfile.TemporaryDirectory(prefix="lima2-faults-", ignore_cleanup_errors=True) as folder:
        run = JobRun(Path(folder), frames=FRAMES)
        run.wait("running" if cell.phase == "draining" else cell.phase)
        time.sleep(chance.uniform(0, {"starting": 0.6, "joining": 1.0, "running": 1.2}.get(cell.phase, 0.1)))
        if cell.phase == "draining":
            run.send(["launcher"], Signals.SIGINT)
            time.sleep(chance.uniform(0, 0.3))
        names = run.roles().get(cell.target, [cell.target])
        name = chance.choice(names)
        run.send([name], Signals[f"SIG{cell.signal}"])
        if cell.signal == "STOP":
            time.sleep(PAUSE_S)
            run.send([name], Signals.SIGCONT)
        found.wrong = run.failures(cell.codes)
        found.code, found.reason = run.launcher.returncode, run.reason
        found.wrong += whole(run)
    return found


def whole(run: JobRun) -> list[str]:
    """Find the frames that a run lacks which ended in order, as asked for or not."""
    try:
        summary = json.loads((run.directory / "summary.json").read_text())
    except (OSError, ValueError):
        return []  # nothing was started, or it was said
    if summary["state"] == "complete" or summary["reason"] == "stopped by the user":
        flows = {name: flow["lost"] + flow["dropped"] for name, flow in summary["flows"].items()}
        nodes = {name: it["lost"] for name, it in summary["channels"].items()}
        return [f"{name} has lost {count} frames" for name, count in (flows | nodes).items() if count]
    return []


def search(seconds: float, seed: int, *, rounds: int = 10**9, say: bool = False) -> Outcome:
    """Cells in any order, until the time is over or there were so many."""
    chance, end, tried = random.Random(seed), time.monotonic() + seconds, list[Round]()
    for cell in cells(chance):
        if time.monotonic() > end or len(tried) >= rounds:
            break
        tried.append(send(cell, chance))
        if say:
            last = tried[-1]
            print(
                f"{_name(cell)}: exit {last.code}: {'; '.join(last.wrong) or 'as promised'} [{last.reason}]", flush=True
            )
    codes = Counter(it.code for it in tried)
    kinds = len({(it.cell.signal, it.cell.target, it.cell.phase) for it in tried})
    figures = f"signals: {len(tried)}, of {kinds} kinds (signal, target, phase); exit codes "
    figures += ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
    return Outcome("signals", len(tried), [f"{_name(it.cell)}: {text}" for it in tried for text in it.wrong], figures)


def _name(cell: Cell) -> str:
    return f"SIG{cell.signal} to {cell.target}, {cell.phase}"


if __name__ == "__main__":
    sys.exit(command(search, __doc__, "rounds", SIZE, say=True))
