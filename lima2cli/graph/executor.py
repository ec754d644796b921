"""Executor of the nodes of one receiver, with the counts of each, and without those that failed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, ParamSpec, TypeVar

from lima2cli.dataclass import dataclass
from lima2cli.errors import StateError, UserCodeError
from lima2cli.foreign import CALL_S, WATCH, TookTooLong, call_foreign, is_foreign
from lima2cli.frames import Block, Files
from lima2cli.graph.build import BoundPass, BoundStep, NodeFailed, bind_passes
from lima2cli.graph.changes import Changes
from lima2cli.graph.operators import BoundCommon
from lima2cli.graph.protocol import END, Arrival, BlockFailed, Lease, Operator, PartFailed, Result
from lima2cli.graph.taps import Taps
from lima2cli.graph.user_program import OwnProcessing
from lima2cli.messages import Change, Timings
from lima2cli.nodes.base import Partial
from lima2cli.nodes.user_function import words
from lima2cli.program import ReceiverProgram
from lima2cli.transport.base import Port

StagedResult = tuple[Operator, Any]
"""Work that an operator has prepared, and can still discard."""


@dataclass(slots=True)
class PassState:
    """One pass under way, of frames up to ``last``.

    Blocks and rows are by name; ``held`` are the blocks that lie in the memory of ``hold``, ``copies`` those of others.
    """

    last: int
    received_ns: int
    hold: Lease | None
    blocks: dict[str, Block] = field(default_factory=dict)
    rows: dict[str, Partial] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    copies: dict[str, Block] = field(default_factory=dict)
    staged: list[StagedResult] = field(default_factory=list)


def leave_out(passes: Mapping[str, BoundPass], name: str) -> set[str]:
    """Take a node out of all passes, and what needs it; return their names.

    The name of a sink is not among them: it still hands its frames on. What others wait for stays, with nothing.
    """
    gone = {name}
    for each in passes.values():
        each.steps[:] = [step for step in each.steps if _stays(step, name, gone)]
    for each in passes.values():
        for feed in each.feeds:
            feed.operator.give_up(gone)
    return gone


def _stays(step: BoundStep, name: str, gone: set[str]) -> bool:
    """Return whether a step stays once ``name`` has failed; add it to those that are gone where it does not."""
    operator = step.operator
    operator.give_up((name,))
    if operator.name == name and operator.saves:
        gone.discard(name)
    elif operator.name in gone or not gone.isdisjoint((*step.sources, *step.tables)):
        gone.add(operator.name)
        return operator.polled
    return True


class NodeCounts:
    """Counts by node name, of the acquisition that is processed; those of nodes that failed stay."""

    def __init__(
        self, operators: Sequence[Operator], savers: Mapping[str, Operator], warnings: list[str] | None = None
    ) -> None:
        self._operators, self._savers, self._warnings = operators, dict(savers), warnings or []

    @property
    def saved(self) -> dict[str, int]:
        """Return the number of frames and rows that each sink and table has written."""
        return {name: saver.saved for name, saver in self._savers.items()}

    @property
    def dropped(self) -> dict[str, list[tuple[int, int]]]:
        """Return (first, last) numbers of consecutive frames that a transform has given up, or no join could pair."""
        return {each.name: ranges for each in self._operators if (ranges := each.dropped) is not None}

    @property
    def single(self) -> dict[str, int]:
        """Return the number of frames that arrived at each join and are of one of its flows only."""
        return {each.name: count for each in self._operators if (count := each.single) is not None}

    @property
    def vetoed(self) -> dict[str, int]:
        """Return the number of frames that did not pass each selection."""
        return {each.name: count for each in self._operators if (count := each.vetoed) is not None}

    def warnings(self) -> list[str]:
        """Return what users should know of code of theirs, since the last call."""
        of_nodes = [text for each in self._operators if each.warnings for text in _taken(each.warnings)]
        return _taken(self._warnings) + of_nodes if self._warnings else of_nodes

    def silent(self) -> list[int]:
        """Return the ranks of workers that did not reply in time, since the last call."""
        return [rank for each in self._operators if each.silent for rank in _taken(each.silent)]


P = ParamSpec("P")
T = TypeVar("T")


def _taken(some: list[T]) -> list[T]:
    """Return what a list has, and clear it."""
    taken = some.copy()
    some.clear()
    return taken


class Executor:
    """The nodes of one receiver, bound once.

    Each acquisition is announced (`ready`), begins (`begin`) and ends (`close`); `leave` is the end of all.

    A node that fails is left out from then on, and so is what reads from it; all else goes on, and in collectives the
    receiver still takes part, with nothing. `failures` reports it.
    """

    def __init__(
        self, program: ReceiverProgram, port: Port, files: Files, processing: OwnProcessing | None = None
    ) -> None:
        bound = bind_passes(program, port, files, processing)
        self._passes, self._operators, self._due = bound.passes, bound.operators, bound.due
        self._failures = bound.failures
        self._polled = {each.name: each for each in bound.operators if each.polled}
        self._behind = {name: _polled_in(each) for name, each in bound.passes.items()}
        self._savers, self._working, self._open = bound.savers, dict(bound.savers), dict[str, Operator]()
        self.counts = NodeCounts(bound.operators, bound.savers, bound.warnings)
        self.timings = Timings()
        self.needs_stable = any(each.always for each in bound.operators)
        """True where any node waits, keeps a state or runs code of the user's: torn data must not reach it."""
        self._together = {step.name for step in program.steps if step.collective}
        self._foreign = {step.name for step in program.steps if is_foreign(type(step.node))}
        self._origins = {
            name: bound.origins[name] for name, saver in bound.savers.items() if not isinstance(saver, BoundCommon)
        }
        self._come = dict.fromkeys(self._polled, -1)
        self._told_end = False
        self.taps = Taps(program.steps)
        self.changes = Changes(program.steps, bound.changing, files)
        self.reached = 0
        """Before which frame some frames of this acquisition have been taken."""

    def ready(self, directory: str) -> None:
        """Announce an acquisition, whose files go to ``directory``."""
        for name, saver in self._working.copy().items():
            if self._attempt(name, None, _done, saver.ready, directory):
                self._open[name] = saver

    def begin(self, start_ns: int) -> None:
        """Begin the acquisition that was announced; it started at ``start_ns``, ns since the epoch."""
        self._told_end, self.timings, self.reached = False, Timings(), 0
        self.changes.begin()
        self._come = dict.fromkeys(self._polled, -1)
        for each in self._operators:
            if self._savers.get(each.name) is not each or each.name in self._open:
                self._attempt(each.name, None, each.begin, start_ns)

    def failures(self) -> list[NodeFailed]:
        """Return what has failed since the last call."""
        failed = self._failures.copy()
        self._failures.clear()
        return failed

    def prepare_change(self, change: Change) -> None:
        """Make a change ready. Raises `StateError` where it can't be done."""
        try:
            call_foreign(self.changes.prepare, change, self._operators)
        except StateError:
            raise
        except Exception as error:
            raise StateError(f"{change.node}: {error}") from error

    def parts(self, flow: str, block: Block) -> list[Block]:
        """Return the parts of a block that are staged and committed one after another: changes lie between them."""
        return self.changes.parts(flow, block) if self.changes.due else [block]

    def stage(self, flow: str, block: Block, received_ns: int, hold: Lease | None = None) -> list[StagedResult]:
        """Do everything that can still be discarded, and return it.

        Where `needs_stable`, ``block`` must be stable, and ``hold`` is of the memory where it lies, if that is given
        back.
        """
        state = PassState(int(block.numbers[-1]), received_ns, hold, {flow: block})
        if hold is not None and block.stable:
            state.held.add(flow)
        return self._run(flow, state)

    def absent(self, flow: str, last: int) -> None:
        """Note that a group of which ``last`` is the last frame will not come."""
        self.commit(self._run(flow, PassState(last, 0, None)), last)

    def commit(self, staged: list[StagedResult], first_frame: int) -> None:
        """Make permanent what was staged last."""
        for saver, kept in staged:
            before = time.perf_counter_ns()
            self._attempt(saver.name, first_frame, saver.commit, kept)
            self.timings.of(saver.name).commit_ns += time.perf_counter_ns() - before
        if self.taps.wanted:
            self.taps.keep()

    def poll(self) -> bool:
        """Let operators that wait go on; return whether any did."""
        worked = False
        for name, operator in self._polled.items():
            before = time.perf_counter_ns()
            result = self._attempt(name, None, operator.poll)
            if result is not None:
                worked = True
                spent_ns = time.perf_counter_ns() - before + result.elsewhere_ns
                self.timings.took(name, spent_ns, result.frames)
                self._follow(name, result)
        return worked

    def full(self, flow: str) -> bool:
        """Return whether operators that wait should go on before more is taken from a flow."""
        return any(one.full or (one.waits and self.full(one.name)) for one in self._behind[flow])

    def drain(self, frames: int) -> bool:
        """End the graph: transforms give what they hold, and operators that wait come to their end.

        All flows have ended, with the acquisition's frame ``frames``. Returns whether nothing is under way any more.
        """
        if not self._told_end:
            self._told_end = True
            for operator in self._operators:
                operator.limit(frames)
            for name in self._passes:
                if name not in self._polled:
                    self.commit(self._run(name, PassState(END, time.time_ns(), None)), END)
        self.poll()
        return all(operator.idle for operator in self._polled.values())

    def undecided(self, flows: Mapping[str, int]) -> dict[str, int]:
        """Return the first frame of this receiver that each sink and table may still get, `END` where there is none.

        Those before it are saved, or never will be. Of a file that all receivers write the first frame of any.

        flows  the first frame of each flow that has not been processed
        """
        for flow, first in flows.items():
            if first != END:
                self._come[flow] = first - 1
            elif self._told_end:  # before, what transforms hold may still come
                self._come[flow] = END
        come = self._come
        reached = {
            name: self._due[name].reached(come[origin], self._due[origin])
            for name, origin in self._origins.items()
            if origin in come and name in self._open
        }
        common = {name: saver.undecided for name, saver in self._open.items() if isinstance(saver, BoundCommon)}
        return common | {name: self._due[name].after(last) for name, last in reached.items()}

    @property
    def saving(self) -> list[str]:
        """Return the names of the sinks and tables that are at work."""
        return list(self._open)

    def flush(self, name: str) -> None:
        """Make what one of them has committed readable, if it is still at work."""
        if name in self._open:
            self._attempt(name, None, self._open[name].flush)

    def close(self) -> None:
        """End all files, the rest too where one fails."""
        savers, self._open = self._open, {}
        self._end({name: saver.close for name, saver in savers.items()})

    def leave(self) -> None:
        """End what nodes hold: no more acquisitions follow."""
        operators, self._operators = self._operators, []
        for each in operators:
            self._end({each.name: each.leave})

    def _end(self, ends: Mapping[str, Callable[[], None]]) -> None:
        for name, end in ends.items():
            try:
                call_foreign(end)
            except Exception as error:  # noqa: BLE001
                self._failures.append(NodeFailed(name, None, error))

    def _attempt(
        self, name: str, frame: int | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Return what a function of a node gives; None where it fails: the node is then left out.

        frame  the first that the call is about
        """
        try:
            return call_foreign(function, *args, **kwargs)
        except BlockFailed as failed:
            self._drop(name, failed.frame, failed.error)
        except PartFailed as failed:
            self._drop(failed.name, frame, failed.error)
        except UserCodeError as error:
            self._drop(name, frame if error.frame is None else error.frame, error)
        except Exception as error:  # noqa: BLE001
            self._drop(name, frame, error)
        return None

    def _bounded(self, operator: Operator, arrival: Arrival) -> Result | None:
        """Return what `_pushed` does for a node that a package brings, which must return in time.

        Raises:
            UserCodeError: it failed, or did not return in time; with the place in it.
        """
        try:
            with WATCH.during(operator.name, CALL_S):
                return call_foreign(self._pushed, operator, arrival)
        except (UserCodeError, BlockFailed):
            raise
        except (Exception, TookTooLong) as error:
            raise UserCodeError(words(error)) from error

    def _follow(self, name: str, result: Result) -> None:
        """Pass on what an operator that has waited gives."""
        parts = [result.block] if result.block is None else self.parts(name, result.block)
        for number, part in enumerate(parts):
            last = result.last if part is None or number == len(parts) - 1 else int(part.numbers[-1])
            state = PassState(last, time.time_ns(), result.hold)
            self._take(name, replace(result, block=part, staged=None if number else result.staged), state)
            if part is not None and result.hold is not None and part.stable:
                state.held.add(name)
            self.commit(self._run(name, state), last)
        self._come[name] = result.last
        if result.block is not None:
            self.timings.note(name, result.block.numbers, result.block.times[-1:])
        if result.hold is not None:
            result.hold.done()

    def _run(self, origin: str, state: PassState) -> list[StagedResult]:
        """Run one pass, for what has arrived from an origin."""
        if origin in state.blocks and state.last < END:
            self.reached = max(self.reached, state.last + 1)
            if self.changes.due:
                self.changes.apply(origin, int(state.blocks[origin].numbers[0]))
        each = self._passes[origin]
        for step in each.steps.copy():
            operator = step.operator
            block = _first_of(state.blocks, step.sources)
            if block is not None:
                before = time.perf_counter_ns()
                self._push(step, block, origin, state)
                spent = self.timings.of(operator.name)
                spent.stage_ns += time.perf_counter_ns() - before
                spent.frames += len(block.numbers)
            elif operator.always:
                self._push(step, None, origin, state)
        for feed in each.feeds:
            self._feed(feed.operator, feed.sources[0], origin, state)
        if self.taps.wanted:
            self._look(each, state)
        return state.staged

    def _look(self, each: BoundPass, state: PassState) -> None:
        """Copy the frames that users look at; what is computed only on the way is made for them."""
        self.taps.discard()
        for name in self.taps.wanted:
            if (last := _last_of(state, name)) is not None:
                self.taps.stage(name, last)
                continue
            for step in (*each.steps, *each.feeds):
                operator, block = step.operator, _last_of(state, step.sources[0])
                frame = None if block is None else self._attempt(operator.name, None, operator.last_frame, name, block)
                if block is not None and frame is not None:
                    self.taps.stage(name, block, frame)

    def _push(self, step: BoundStep, block: Block | None, origin: str, state: PassState) -> None:
        """Push an operator that answers at once."""
        operator, source = step.operator, step.sources[0]
        last = self._reached(source, origin, state) if operator.always else state.last
        arrival = Arrival(source, last, block, None, None, state.received_ns, state.blocks, state.rows)
        first = None if block is None else int(block.numbers[0])
        push = self._bounded if operator.name in self._foreign else self._pushed
        result = self._attempt(operator.name, first, push, operator, arrival)
        if result is None and operator.saves:  # it has failed just now
            result = Result(state.last, block)
        if result is None:
            return
        self._take(operator.name, result, state)
        if source in state.held and result.block is not None and (operator.same or result.block is block):
            state.held.add(operator.name)

    def _pushed(self, operator: Operator, arrival: Arrival) -> Result | None:
        """Return what an operator gives and prepares; a part of it that fails is left out."""
        while True:
            try:
                return operator.push(arrival)
            except PartFailed as failed:  # once more without it
                block = arrival.block
                self._drop(failed.name, None if block is None else int(block.numbers[0]), failed.error)

    def _take(self, name: str, result: Result, state: PassState) -> None:
        """Take what an operator gives for those that read it, and what is to be saved by those that are at work."""
        if result.block is not None:
            state.blocks[name] = result.block
        if result.rows:
            state.rows.update(result.rows)
        for saver, kept in (result.staged or {}).items():
            if saver in self._open:
                state.staged.append((self._open[saver], kept))

    def _feed(self, operator: Operator, source: str, origin: str, state: PassState) -> None:
        """Push an operator that waits: how far a source has come, and what it gave, in memory that stays."""
        block, hold = state.blocks.get(source), None
        if block is not None and source in state.held and state.hold is not None:
            hold = state.hold.take()
        elif block is not None:
            if source not in state.copies:
                state.copies[source] = block.copy()
            block = state.copies[source]
        last = self._reached(source, origin, state)
        operator.push(Arrival(source, last, block, state.rows.get(source), hold, state.received_ns))

    def _reached(self, source: str, origin: str, state: PassState) -> int:
        """Return the number up to which the frames of a source are complete."""
        return self._due[source].reached(state.last, self._due[origin])

    def _drop(self, name: str, frame: int | None, error: Exception) -> None:
        """Leave out a node that failed and what needs it; their files are ended with what they have."""
        steps = [step.operator for each in self._passes.values() for step in each.steps]
        label = next((operator.label for operator in steps if operator.name == name), name)
        failed = NodeFailed(label, frame, error)
        self._failures.append(failed)
        gone = leave_out(self._passes, name)
        alive = self._together - gone
        alive.update(*(step.operator.nodes for each in self._passes.values() for step in (*each.steps, *each.feeds)))
        alive -= gone
        ended = [saver for saved, saver in self._open.items() if saved not in alive]
        self._open = {saved: saver for saved, saver in self._open.items() if saved in alive}
        self._working = {saved: saver for saved, saver in self._working.items() if saved in alive}
        for saver in ended:
            try:
                call_foreign(saver.close)
            except Exception as again:  # noqa: BLE001
                failed.add_note(str(again))


def _last_of(state: PassState, name: str) -> Block | None:
    """Return the block of a name, or its last frame alone where the others are not in this memory; None without one."""
    block = state.blocks.get(name)
    if block is None or name not in state.held or state.hold is None:
        return block
    frame = state.hold.last_frame(block.frames)
    return block if frame is None else Block(frame[None], block.numbers[-1:], block.times[-1:])


def _polled_in(some: BoundPass) -> list[Operator]:
    return [step.operator for step in (*some.steps, *some.feeds) if step.operator.polled]


def _first_of(blocks: Mapping[str, Block], sources: Sequence[str]) -> Block | None:
    """Return the block of the first source that has one."""
    for source in sources:
        if source in blocks:
            return blocks[source]
    return None


def _done(function: Callable[..., object], *arguments: object) -> bool:
    function(*arguments)
    return True
