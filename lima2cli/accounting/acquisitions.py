"""Acquisitions of a job, as the control rank knows them, and their completion on disk by a thread."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from lima2cli.messages import Failure, ReceiverReport, SourceReport, WorkerReport
from lima2cli.plan.ir import Plan


@dataclass
class Outcome:
    """Outcome of an acquisition: ``state`` complete, stopped or failed, why, and the reports of all ranks.

    number   of the acquisition in its job, from 0
    dead_s   seconds from the last frame of the acquisition before to when this one could take a frame, None where there
             is none
    losses   what was lost beyond what is allowed, a sentence for each flow: known when the files are being ended
    silent   ranks of workers that do not answer, and won't take part in the end of the job
    """

    state: str = "complete"
    reason: str | None = None
    overrun: bool = False
    frames: int = 0
    start_ns: int = 0
    seconds: float = 0.0
    receivers: dict[int, ReceiverReport] = field(default_factory=dict)
    sources: dict[int, SourceReport] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    workers: dict[int, WorkerReport] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)
    number: int = 0
    dead_s: float | None = None
    losses: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> tuple[str, str | None]:
        """Return state and reason as users see them: with losses no acquisition is complete."""
        if not self.losses:
            return self.state, self.reason
        reason = "; ".join([*([self.reason] if self.reason else []), *self.losses])
        return "failed" if self.state == "complete" else self.state, reason

    def fail(self, reason: str) -> None:
        """Set the state to failed; the first reason counts."""
        if self.state != "failed":
            self.state, self.reason = "failed", reason

    @property
    def first_ns(self) -> int:
        """The detector's time of the first frame, ns since the epoch; 0 where there was none."""
        return min((source.first_ns for source in self.sources.values() if source.first_ns), default=0)

    @property
    def last_ns(self) -> int:
        """The detector's time of the last frame, ns since the epoch; 0 where there was none."""
        return max((source.last_ns for source in self.sources.values()), default=0)


@dataclass
class LiveAcquisition:
    """An acquisition that has been announced; its files go to ``directory``.

    waiting       receivers, by rank, that have still to report
    flows, saved  the last report of each receiver, by rank
    """

    directory: str
    waiting: set[int]
    outcome: Outcome = field(default_factory=Outcome)
    flows: dict[int, dict[str, tuple[int, int, float]]] = field(default_factory=dict)
    saved: dict[int, dict[str, int]] = field(default_factory=dict)
    triggers: int = 0

    def totals(self, plan: Plan) -> dict[str, tuple[int, int]]:
        """Return the frames received and lost, by flow.

        Of a flow whose receivers hold parts of frames those of the receiver most behind count.
        """
        counts = {gdt.name: (0, 0) for gdt in plan.gdts}
        for flows in self.flows.values():
            for name, (received, lost, _) in flows.items():
                counts[name] = (counts[name][0] + received, counts[name][1] + lost)
        totals: dict[str, tuple[int, int]] = {}
        for gdt in plan.gdts:
            totals[gdt.flow] = min(totals.get(gdt.flow, counts[gdt.name]), counts[gdt.name])
        return totals

    def saved_totals(self, plan: Plan) -> dict[str, int]:
        """Return the frames and rows that all receivers have written, by node.

        Of partial frames those of the receiver most behind count.
        """
        counts: dict[str, list[int]] = {}
        for saved in self.saved.values():
            for name, count in saved.items():
                counts.setdefault(name, []).append(count)
        parts = {name: channel.parts for name, channel in plan.channels.items() if channel.parts > 1}
        return {
            name: sum(some) if name not in parts else min(some) if len(some) == parts[name] else 0
            for name, some in counts.items()
        }


class Acquisitions:
    """Acquisitions of a job, in their order. The first is there from the start; `add` announces another."""

    def __init__(self, directory: str, receivers: Iterable[int]) -> None:
        self._receivers = frozenset(receivers)
        self._all = [LiveAcquisition(directory, set(self._receivers))]

    @property
    def now(self) -> LiveAcquisition:
        """The acquisition that started, or was announced, last."""
        return self._all[-1]

    @property
    def begun(self) -> list[LiveAcquisition]:
        """Return the acquisitions that have started."""
        return [one for one in self._all if one.outcome.start_ns]

    def __len__(self) -> int:
        return len(self._all)

    def of(self, number: int | None) -> LiveAcquisition:
        """Return an acquisition by its number; None is the last."""
        return self.now if number is None else self._all[number]

    def add(self, directory: str) -> None:
        """Announce another, whose files go to ``directory``, and return it."""
        self._all.append(LiveAcquisition(directory, set(self._receivers), Outcome(number=len(self._all))))

    @property
    def well(self) -> bool:
        """Return whether none has been stopped or has failed."""
        return all(one.outcome.state == "complete" for one in self._all)

    @property
    def faultless(self) -> bool:
        """Return whether nothing has failed in any, and the last is not to stop."""
        return self.now.outcome.state == "complete" and not any(one.outcome.failures for one in self._all)

    @property
    def behind(self) -> set[int]:
        """Return the ranks of receivers that have still to report of those before the last."""
        return set().union(*(one.waiting for one in self._all[:-1]))

    def end(self, frames: int) -> None:
        """End the last before frame ``frames``; nothing more is served of it."""
        outcome = self.now.outcome
        outcome.seconds, outcome.frames = (time.time_ns() - outcome.start_ns) * 1e-9, frames
        before = self._all[-2].outcome.last_ns if len(self._all) > 1 else 0
        if before and outcome.first_ns:  # from the start on it may have waited for a trigger
            outcome.dead_s = (min(outcome.start_ns, outcome.first_ns) - before) * 1e-9


class Completion:
    """Completion of acquisitions: ``close`` writes what ends one in its directory."""

    def __init__(self, close: Callable[[Outcome, str], None]) -> None:
        self._close = close
        self._thread = ThreadPoolExecutor(1, "closing")
        self._under_way: list[tuple[LiveAcquisition, Future[None]]] = []

    def begin(self, acquisition: LiveAcquisition) -> None:
        """Complete an acquisition of which all receivers have reported."""
        self._under_way.append(
            (acquisition, self._thread.submit(self._close, acquisition.outcome, acquisition.directory))
        )

    @property
    def idle(self) -> bool:
        """Return whether all that were begun are done."""
        return not self._under_way

    def done(self) -> Iterator[LiveAcquisition]:
        """Yield the acquisitions that have been completed since the last call. Raises what ``close`` raised."""
        while self._under_way and self._under_way[0][1].done():
            acquisition, future = self._under_way.pop(0)
            future.result()
            yield acquisition

    def shutdown(self) -> None:
        """Wait for what is under way."""
        self._thread.shutdown()
