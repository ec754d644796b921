"""Kill every kind of process of a run at random moments: ``python -m tests.faults.kills [--rounds 12] [--seed 1]``.

The run has channels and tables of all kinds. After each kill: `lima2 inspect`, `recover` (twice), `inspect --verify`.
All rows are held against the scene, against what the progress called saved, and against the summary; whoever is blamed
is who was killed; nothing is left.
"""

import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import Outcome, command
from tests.faults.job import JobRun

KINDS = ("launcher", "mpiexec", "proxy", "control", "detector", "receiver", "worker", "two", "all", "recover")


@dataclass
class Round:
    """A kill: of what, when, and what is wrong after it."""

    kind: str
    phase: str = ""
    hit: list[str] = field(default_factory=list)
    known: int = 0
    reason: str = ""
    wrong: list[str] = field(default_factory=list)


def victims(kind: str, run: JobRun, chance: random.Random) -> list[str]:
    """The processes to kill, as the run calls them."""
    there = sorted(run.processes())
    if kind in ("all", "recover"):
        return chance.sample(there, len(there))
    if kind == "two":
        return chance.sample(there, min(2, len(there)))
    ranks = run.roles().get(kind)
    return [chance.choice(ranks)] if ranks else [kind]


def kill(kind: str, chance: random.Random, *, frames: int = 900) -> Round:
    """One round: a quarter of them while the ranks start, a tenth while the files are ended."""
    found = Round(kind, chance.choices(("joining", "running", "finishing"), (25, 65, 10))[0])
    with tempfile.TemporaryDirectory(prefix="lima2-faults-", ignore_cleanup_errors=True) as folder:
        run = JobRun(Path(folder), frames=frames)
        run.wait(found.phase)
        time.sleep(chance.uniform(0, {"joining": 1.5, "running": frames / 300, "finishing": 0.2}[found.phase]))
        run.send(victims(kind, run, chance), signal.SIGKILL)
        found.hit = [name for name, _ in run.sent]
        for _ in range(2 * (kind == "recover")):
            run.kill_recovery(chance.uniform(0.2, 1.5))
        died = {-9} if "launcher" in found.hit else {0, 10}
        found.wrong = run.failures(died)
        found.reason, found.known = run.reason, run.known
    return found


def search(seconds: float, seed: int, *, rounds: int = 10**9, say: bool = False) -> Outcome:
    """Rounds of each kind in turn, until the time is over or there were so many of each."""
    chance, end, tried = random.Random(seed), time.monotonic() + seconds, list[Round]()
    for number in range(rounds * len(KINDS)):
        if time.monotonic() > end:
            break
        tried.append(kill(KINDS[number % len(KINDS)], chance))
        if say:
            last = tried[-1]
            print(
                f"{last.kind}, {last.phase}, {last.hit}: {'; '.join(last.wrong) or 'as promised'} [{last.reason}]",
                flush=True,
            )
    counts = Counter(it.kind for it in tried)
    named = sum("first to end" in it.reason for it in tried)
    phases = Counter(it.phase for it in tried)
    figures = f"kills: {len(tried)} ({', '.join(f'{count} {kind}' for kind, count in counts.items())}; "
    figures += f"{phases['joining']} while ranks started, {phases['finishing']} while files were ended), "
    figures += f"{sum(it.known for it in tried)} frames that were known before, who died was named {named} times"
    wrong = [f"{it.kind}, {it.phase}, {it.hit}: {text}" for it in tried for text in it.wrong]
    return Outcome("kills", len(tried), wrong, figures)


if __name__ == "__main__":
    sys.exit(command(search, __doc__, "rounds", 12, say=True))
