"""Construction of ranks from programs, and the loops that give them turns."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from lima2cli.accounting.acquisitions import Outcome
from lima2cli.errors import RunFailed
from lima2cli.foreign import WATCH
from lima2cli.inputs.stacks import FileStore
from lima2cli.plan.ir import Plan
from lima2cli.program import ControlProgram, DetectorProgram, Program, Wiring, WorkerProgram, lower
from lima2cli.transport.base import MemorySpec, Port, RegionSpec

if TYPE_CHECKING:
    from lima2cli.ranks.control import ControlRank, Emit
    from lima2cli.runs.channel import Stop


SHORTEST_SLEEP_S, LONGEST_SLEEP_S = 20e-6, 500e-6

ARRIVALS = 7
"""Number of times between arrivals of work, the median of which is expected to be the next."""

SHORTEST_PERIOD_S, LONGEST_PERIOD_S = 200e-6, 50e-3
"""Times between arrivals of work that is expected; what comes more often, or less, is not waited for in this way."""

NEAR = 0.1
"""Share of the time between arrivals, before and after the expected one, in which looks are frequent."""


class Rank(Protocol):
    """A state machine that is given turns."""

    done: bool

    def prepare(self) -> None:
        """Get ready and report so to the control rank."""
        ...

    def step(self) -> bool:
        """Do one thing; return False where there was none."""
        ...


@runtime_checkable
class Rests(Protocol):
    """A rank that may be woken while it rests."""

    def rest(self, seconds: float) -> None:
        """Rest for so long, or until there is something to do."""
        ...


def memory_of(wiring: Wiring, base: Path) -> MemorySpec:
    """Return what the transport is to make; paths of mapped memspaces are relative to the pipeline's file."""
    regions = tuple(
        RegionSpec(owner, region.size, None if region.path is None else str(base / region.path))
        for region, owner in zip(wiring.regions, wiring.owners, strict=True)
    )
    return MemorySpec(regions, wiring.control_words, wiring.collectives, wiring.mailboxes)


def make_rank(
    program: Program, port: Port, base: Path, directory: str, emit: "Emit", order: "Callable[[], Stop | None]"
) -> Rank:
    """Return the rank of a program.

    ``base`` resolves files named in the pipeline, ``directory`` is the run's.

    Modules that only other ranks need are not imported: there are many ranks, and they start at the same time.
    """
    if isinstance(program, ControlProgram):
        return _control(program, port, directory, emit, order)
    if isinstance(program, DetectorProgram):
        from lima2cli.ranks.detector import CompliantRank, DetectorRank

        detector = program.detector.open(program.info.sensor, FileStore(base))
        kind = CompliantRank if program.detector.writes_itself else DetectorRank
        return kind(program, port, detector)
    if isinstance(program, WorkerProgram):
        from lima2cli.graph.offload import WorkerRank

        if program.workers.command is not None:
            raise RunFailed(f"rank {program.rank} is a worker of {program.step.name}: start its command there")
        return WorkerRank(program, port, FileStore(base))
    from lima2cli.ranks.receiver import ReceiverRank

    return ReceiverRank(program, port, FileStore(base), directory)


def _control(
    program: ControlProgram, port: Port, directory: str, emit: "Emit", order: "Callable[[], Stop | None]"
) -> "ControlRank":
    from lima2cli.plan.figures import end_bytes
    from lima2cli.ranks.control import ControlRank
    from lima2cli.runs.directory import Claim, make_another
    from lima2cli.runs.ending import close_run
    from lima2cli.runs.ownership import RunNames

    plan = program.plan
    claims: list[Claim] = []  # held as long as the rank lives

    def close(outcome: Outcome, directory: str) -> None:
        try:
            close_run(replace(plan, period_s=outcome.period_s), outcome, directory)
        except OSError as error:
            reason = f"{outcome.reason}; then " if outcome.reason else ""
            raise RunFailed(f"{reason}the files of the run cannot be ended: {error}") from error

    def another(before: str) -> str:
        claims.append(make_another(Path(before), plan.output_directory, RunNames.of(plan), end_bytes(plan)))
        return str(claims[-1])

    return ControlRank(program, port, emit, close, order, directory, another)


class Rhythm:
    """Lengths of sleeps between looks for work: short ones when it is expected, as work that came often comes again.

    Else ever longer ones. Times are in seconds, of one clock.
    """

    def __init__(self) -> None:
        self._pause, self._rested = SHORTEST_SLEEP_S, False
        self._came = -1.0
        self._apart: deque[float] = deque(maxlen=ARRIVALS)
        self._every = 0.0

    def worked(self, began_s: float) -> None:
        """Note that a look that ``began_s`` found work."""
        self._pause = max(self._pause / 4, SHORTEST_SLEEP_S)
        if not self._rested:
            return
        self._rested = False
        if self._came >= 0:
            self._apart.append(began_s - self._came)
            self._every = sorted(self._apart)[len(self._apart) // 2] if len(self._apart) == ARRIVALS else 0.0
        self._came = began_s

    def rest_s(self, now_s: float) -> float:
        """Return how long to sleep after a look in vain: never less than the shortest, never more than the longest."""
        self._rested = True
        if SHORTEST_PERIOD_S < self._every < LONGEST_PERIOD_S:
            left, near = self._came + self._every - now_s, max(NEAR * self._every, 2 * SHORTEST_SLEEP_S)
            if left > near:
                self._pause = SHORTEST_SLEEP_S
                return min(max(left - near, SHORTEST_SLEEP_S), LONGEST_SLEEP_S)
            if left > -near:
                return SHORTEST_SLEEP_S
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_SLEEP_S)
        return pause


def turn(rank: Rank) -> None:
    """Give one rank turns until it is done; sleep while it has nothing to do (see `Rhythm`), never spin."""
    rest = rank.rest if isinstance(rank, Rests) else time.sleep
    rhythm = Rhythm()
    while not rank.done:
        began = time.perf_counter()
        if rank.step():
            rhythm.worked(began)
        else:
            rest(rhythm.rest_s(time.perf_counter()))


def turn_control(control: "ControlRank") -> None:
    """Give the control rank turns until it is done; it rests itself, since a request wakes it."""
    while not control.done:
        if not control.step():
            control.rest()


def run_inline(plan: Plan, base: Path, directory: str, emit: "Emit", order: "Callable[[], Stop | None]") -> Outcome:
    """Run all ranks in this process, in turn, until they are done; return the outcome. This is the reference."""
    from lima2cli.transport.inline import InlineMemory, InlinePort

    WATCH.timeout_s = plan.timeout_s
    wiring, programs = lower(plan)
    with closing(InlineMemory(memory_of(wiring, base))) as memory:
        ranks = [
            make_rank(program, InlinePort(number, memory), base, directory, emit, order)
            for number, program in enumerate(programs)
        ]
        return _run_all(ranks)


def _run_all(ranks: Sequence[Rank]) -> Outcome:
    from lima2cli.ranks.control import ControlRank
    from lima2cli.ranks.receiver import ReceiverRank

    try:
        for rank in ranks:
            rank.prepare()
        _take_turns(ranks)
    except BaseException:
        for rank in ranks:
            if isinstance(rank, ReceiverRank | ControlRank):
                rank.close()
        raise
    control = ranks[0]
    assert isinstance(control, ControlRank)
    control.close()
    return control.outcome


def _take_turns(ranks: Sequence[Rank]) -> None:
    pause = SHORTEST_SLEEP_S
    while not all(rank.done for rank in ranks):
        worked = [rank.step() for rank in ranks if not rank.done]
        if any(worked):
            pause = max(pause / 4, SHORTEST_SLEEP_S)
        else:
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_SLEEP_S)
