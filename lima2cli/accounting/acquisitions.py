"""Acquisitions of a job, as the control rank knows them, and their completion on disk by a thread."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import field

from lima2cli.dataclass import dataclass
from lima2cli.files.channel import Channel, TableChannel
from lima2cli.messages import (
    NEVER,
    Failure,
    ReceiverReport,
    SourceReport,
    Stats,
    Usage,
    WorkerReport,
    median_and_p99,
)
from lima2cli.plan.ir import Plan


@dataclass
class Outcome:
    """Outcome of an acquisition: ``state`` complete, stopped or failed, why, and the reports of all ranks.

    number   of the acquisition in its job, from 0
    period_s  that was asked for, None = as fast as possible
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
    period_s: float | None = None
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

    plan     of the job, with the frames and the period that were asked for
    waiting  receivers, by rank, that have still to report
    stats    how far each receiver was when it said so last, by rank
    """

    directory: str
    plan: Plan
    waiting: set[int]
    outcome: Outcome = field(default_factory=Outcome)
    stats: dict[int, Stats] = field(default_factory=dict)
    triggers: int = 0
    _chosen: dict[str, "_Chosen"] = field(default_factory=dict)

    def take(self, rank: int, stats: Stats) -> None:
        """Take a report of a receiver."""
        self.stats[rank] = stats
        for name, first in stats.undecided.items():
            self._chosen.setdefault(name, _Chosen()).note(rank, first, stats.saved.get(name, 0))

    def end(self, rank: int, report: ReceiverReport) -> None:
        """Take the last report of a receiver: its files are closed."""
        blocks = {gdt.name: gdt.rule.blocks for gdt in self.plan.gdts}
        before, measured = self.stats.get(rank, Stats()), report.measured
        stats = Stats(
            acquisition=report.acquisition,
            flows={
                name: (count.received, sum(visits for _, _, visits in count.lost) * blocks[name], 0.0)
                for name, count in report.flows.items()
            },
            saved=report.saved,
            done={name: sum(count.done.values()) * blocks[name] for name, count in report.flows.items()},
            spent=measured.spent,
            latency=median_and_p99(measured.paces),
            seconds=(time.time_ns() - self.outcome.start_ns) * 1e-9,
            busy_s=measured.busy_s,
            used=Usage(measured.cpu_s, report.usage.rss_bytes),
            undecided=dict.fromkeys(before.undecided.keys() | report.saved.keys(), NEVER),
            pid=before.pid,
        )
        self.take(rank, stats)

    def totals(self, plan: Plan) -> dict[str, tuple[int, int]]:
        """Return the frames received and lost, by flow.

        Of a flow whose receivers hold parts of frames those of the receiver most behind count.
        """
        counts = {gdt.name: (0, 0) for gdt in plan.gdts}
        for stats in self.stats.values():
            for name, (received, lost, _) in stats.flows.items():
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
        for stats in self.stats.values():
            for name, count in stats.saved.items():
                counts.setdefault(name, []).append(count)
        parts = {name: channel.parts for name, channel in plan.channels.items() if channel.parts > 1}
        return {
            name: sum(some) if name not in parts else min(some) if len(some) == parts[name] else 0
            for name, some in counts.items()
        }

    def rows(self, plan: Plan) -> dict[str, int]:
        """Return the leading rows whose fate is known and that readers of the files can see, by channel and table.

        Behind a filter, and of tables with a row for some frames only, those that are saved.
        """
        numbering = {step.name: step.numbering for step in plan.steps}
        rows = {}
        for name, entry in entries_of(plan).items():
            together = written_together(plan, name)
            if entry.complete and not together:
                rows[name] = self._rows(plan, name, entry)
            else:
                ranks = [plan.rank_of_receiver(receiver) for receiver in dict.fromkeys(entry.receivers)]
                first = self._undecided(name, ranks)
                if has_all_rows(plan, name):
                    rows[name] = self._before(entry, first)
                else:
                    chosen = self._chosen.get(name, _Chosen())
                    parts = numbering[name].parts and not together
                    rows[name] = chosen.count(ranks, first, together=min if parts else sum)
        return rows

    def _before(self, entry: Channel | TableChannel, first: int) -> int:
        """Return how many rows there are of frames before ``first``, of those that the acquisition has."""
        rule, window = entry.rule, entry.window
        if first == NEVER:  # before its end, as far as whole windows go
            first = self.outcome.frames - (rule.step - rule.step // window if window else 0)
        rows = rule.before(first)
        return rows if entry.selected is None else min(rows, entry.selected)

    def undecided(self, plan: Plan, name: str) -> int:
        """Return the number of the first frame of a channel or table that may still be saved, at any receiver."""
        receivers = dict.fromkeys(entries_of(plan)[name].receivers)
        return self._undecided(name, [plan.rank_of_receiver(receiver) for receiver in receivers])

    def _undecided(self, name: str, ranks: Iterable[int]) -> int:
        return min(self.stats.get(rank, Stats()).undecided.get(name, 0) for rank in ranks)

    def _rows(self, plan: Plan, name: str, entry: Channel | TableChannel) -> int:
        rule, firsts = entry.rule, []
        for role in plan.ranks:
            if role.receiver is None or role.receiver not in entry.receivers:
                continue
            parts = isinstance(entry, Channel) and entry.places
            own = [0] if parts else [index for index, one in enumerate(entry.receivers) if one == role.receiver]
            group, rest = divmod(self._final(plan, role.rank, name, entry.flow), rule.blocks)
            visit, place = divmod(group, len(own))
            firsts.append(rule.group_of(own[place], visit) * rule.blocks + rest)
        rows = min(firsts, default=0)
        return rows if entry.selected is None else min(rows, entry.selected)

    def _final(self, plan: Plan, rank: int, name: str, flow: str) -> int:
        """Return how many of a receiver's own frames are saved, or never will be, before the first that still may be.

        Where nodes still work on some, those that are saved: a lower limit.
        """
        stats = self.stats.get(rank, Stats())
        saved, flows = stats.saved.get(name, 0), stats.flows
        mine = [gdt.name for gdt in plan.gdts_of(flow) if gdt.name in flows]
        if not mine or saved < sum(flows[one][0] for one in mine):
            return saved
        return max(saved, sum(stats.done.get(one, 0) for one in mine))


def entries_of(plan: Plan) -> dict[str, Channel | TableChannel]:
    """Return channels and tables of a plan, by node."""
    return {**plan.channels, **plan.tables}


def written_together(plan: Plan, name: str) -> bool:
    """Return whether receivers write frames, or rows, of a node together."""
    return any(step.name == name and step.collective for step in plan.steps)


def has_all_rows(plan: Plan, name: str) -> bool:
    """Return whether each frame that reaches a node by the plan has its row, whatever becomes of it."""
    (step,) = (step for step in plan.steps if step.name == name)
    return not step.numbering.filters and getattr(step.node, "every", 1) == 1


REPORTS = 256
"""Reports of one receiver that are kept, of how many frames it had saved when."""


class _Chosen:
    """Saved frames of a node that not all frames reach: of each receiver how many there were before which frame."""

    def __init__(self) -> None:
        self._reports: dict[int, list[tuple[int, int]]] = {}

    def note(self, rank: int, first: int, saved: int) -> None:
        """Note that a receiver had saved so many, all of them before frame ``first``."""
        reports = self._reports.setdefault(rank, [])
        if reports and reports[-1][0] == first:
            reports.pop()
        reports.append((first, saved))
        if len(reports) > REPORTS:  # fewer: the count is then a little behind
            del reports[-2]

    def count(self, ranks: Sequence[int], first: int, *, together: Callable[[list[int]], int]) -> int:
        """Return how many frames before ``first`` are saved, at least.

        together  of the counts of the receivers: their sum, or the least where each has a part of all frames
        """
        counts = []
        for rank in ranks:
            reports = self._reports.get(rank, [])
            while len(reports) > 1 and reports[1][0] <= first:
                del reports[0]
            counts.append(reports[0][1] if reports and reports[0][0] <= first else 0)
        return together(counts) if counts else 0


class Acquisitions:
    """Acquisitions of a job, in their order. The first is there from the start; `add` announces another."""

    def __init__(self, directory: str, plan: Plan, receivers: Iterable[int]) -> None:
        self._receivers = frozenset(receivers)
        self._all = [LiveAcquisition(directory, plan, set(self._receivers))]

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
        """Announce another, whose files go to ``directory``; it asks for what the last one did."""
        self._all.append(
            LiveAcquisition(directory, self.now.plan, set(self._receivers), Outcome(number=len(self._all)))
        )

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
