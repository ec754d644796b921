"""Executor of the nodes of one receiver, with the counts of each, and without those that failed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import numpy as np

from lima2cli.errors import UserCodeError
from lima2cli.foreign import CALL_S, WATCH, TookTooLong, call_foreign, is_foreign
from lima2cli.frames import Block, Files, SparseBlock
from lima2cli.graph.build import BoundPass, BoundStep, NodeFailed, Passes, bind_passes
from lima2cli.graph.fused import BoundChain, PartFailed
from lima2cli.graph.joins import BoundJoin, BoundSelect, Pairing
from lima2cli.graph.offload import BoundDelegate
from lima2cli.graph.operators import BoundCommon, BoundReduce, BoundSink, BoundTransform, End, Paired, Single
from lima2cli.graph.user_program import OwnProcessing
from lima2cli.graph.waiting import END, Arrival, BlockFailed, Lease, Result
from lima2cli.messages import Timings
from lima2cli.nodes.base import Partial
from lima2cli.nodes.user_function import words
from lima2cli.program import ReceiverProgram
from lima2cli.transport.base import Port

StagedResult = tuple[str, End, Any]
"""Work that a node has prepared, and can still discard."""


@dataclass(slots=True)
class Course:
    """One pass under way, of frames up to ``last``.

    Blocks and rows are by name; ``held`` are the blocks that lie in the memory of ``hold``.
    """

    last: int
    received_ns: int
    hold: Lease | None
    blocks: dict[str, Block] = field(default_factory=dict)
    rows: dict[str, Partial] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    staged: list[StagedResult] = field(default_factory=list)


def copy_of(block: Block) -> Block:
    """Return the block with arrays of its own."""
    if isinstance(block, SparseBlock):  # has them
        return block
    return Block(block.frames.copy(), block.numbers.copy(), block.times.copy())


def whole(blocks: list[Block]) -> Block:
    """Return blocks that follow each other as one."""
    if len(blocks) == 1:
        return blocks[0]
    frames, numbers, times = zip(*((b.frames, b.numbers, b.times) for b in blocks), strict=True)
    return Block(np.concatenate(frames), np.concatenate(numbers), np.concatenate(times))


def leave_out(passes: Mapping[str, BoundPass], name: str) -> set[str]:
    """Take a node out of all passes, and what needs it; return their names.

    The name of a sink is not among them: it still hands its frames on.
    """
    gone = {name}
    for each in passes.values():
        each.steps[:] = [kept for step in each.steps for kept in _without(step, name, gone)]
    return gone


def _without(step: BoundStep, name: str, gone: set[str]) -> list[BoundStep]:
    """Return what is left of a step once ``name`` is gone; add it to those that are."""
    if isinstance(step.bound, BoundChain):
        step.bound.reducers.pop(name, None)
    if step.name == name and isinstance(step.bound, BoundSink | BoundCommon):
        gone.discard(name)
        return [BoundStep(name, step.sources, None)]
    if step.name in gone or not gone.isdisjoint((*step.sources, *step.tables)):
        gone.add(step.name)
        return []
    return [step]


def at_work(passes: Mapping[str, BoundPass]) -> set[str]:
    """Return the names of the nodes that the passes still have, reductions of fused kernels among them."""
    alive = {step.name for each in passes.values() for step in each.steps if step.bound is not None}
    for each in passes.values():
        alive.update(*(step.bound.reducers for step in each.steps if isinstance(step.bound, BoundChain)))
    return alive


def label(passes: Mapping[str, BoundPass], name: str) -> str:
    """Return the label of a node for messages: of a fused kernel all its maps."""
    steps = (step for each in passes.values() for step in each.steps)
    maps = (step.bound.maps for step in steps if step.name == name and isinstance(step.bound, BoundChain))
    return ", ".join(next(maps, (name,)))


class NodeCounts:
    """Counts by node name, of the acquisition that is processed; those of nodes that failed stay."""

    def __init__(self, bound: Passes) -> None:
        steps = [step for each in bound.passes.values() for step in each.steps]
        self._ends = dict(bound.ends)
        self._transforms = {step.name: step.bound for step in steps if isinstance(step.bound, BoundTransform)}
        self._delegations = {name: one for name, one in bound.waiting.items() if isinstance(one, BoundDelegate)}
        self._joins = {name: one for name, one in bound.paired.items() if isinstance(one, BoundJoin)}
        self._selects = {name: one for name, one in bound.paired.items() if isinstance(one, BoundSelect)}

    @property
    def saved(self) -> dict[str, int]:
        """Return the number of frames and rows that each sink and table has written."""
        return {name: bound.saved for name, bound in self._ends.items()}

    @property
    def dropped(self) -> dict[str, list[tuple[int, int]]]:
        """Return (first, last) numbers of consecutive frames that a transform has given up, or no join could pair."""
        nodes: dict[str, BoundTransform | BoundJoin | BoundDelegate]
        nodes = {**self._transforms, **self._delegations, **self._joins}
        return {name: bound.dropped for name, bound in nodes.items()}

    @property
    def beside(self) -> dict[str, int]:
        """Return the number of frames that arrived at each join and are of one of its flows only."""
        return {name: bound.beside for name, bound in self._joins.items()}

    @property
    def vetoed(self) -> dict[str, int]:
        """Return the number of frames that did not pass each selection."""
        return {name: bound.vetoed for name, bound in self._selects.items()}

    def warnings(self) -> list[str]:
        """Return what users should know of code of theirs, since the last call."""
        nodes: list[BoundTransform | BoundDelegate] = [*self._transforms.values(), *self._delegations.values()]
        warnings = [text for each in nodes for text in each.warnings]
        for each in nodes:
            each.warnings.clear()
        return warnings

    def silent(self) -> list[int]:
        """Return the ranks of workers that did not reply in time, since the last call."""
        ranks = [rank for each in self._delegations.values() for rank in each.silent]
        for each in self._delegations.values():
            each.silent.clear()
        return ranks


P = ParamSpec("P")
T = TypeVar("T")


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
        self._passes, self._waiting, self._working = bound.passes, bound.waiting, bound.ends
        self._ends: dict[str, End] = {}
        self._paired, self._failures, self._due = bound.paired, bound.failures, bound.due
        self.counts = NodeCounts(bound)
        self.timings = Timings()
        steps = [step for each in self._passes.values() for step in each.steps]
        self._transforms = {step.name: step.bound for step in steps if isinstance(step.bound, BoundTransform)}
        waits = [one for one in self._waiting.values() if isinstance(one, BoundDelegate | Pairing)]
        self._anew = [*self._transforms.values(), *self._paired.values(), *waits]
        self._together = {step.name for step in program.steps if step.circle}
        self._read = self._together.union(*(step.tables for step in program.steps))
        self._foreign = {step.name for step in program.steps if is_foreign(type(step.node))}
        self._told_end = False

    def ready(self, directory: str) -> None:
        """Announce an acquisition, whose files go to ``directory``."""
        for name, end in self._working.copy().items():
            made = self._attempt(name, None, _made_ready, end, directory)
            if made is not None:
                self._ends[name] = made

    def begin(self, start_ns: int) -> None:
        """Begin the acquisition that was announced; it started at ``start_ns``, ns since the epoch."""
        self._told_end, self.timings = False, Timings()
        for each in self._anew:
            each.begin()
        for name, end in self._ends.copy().items():
            self._attempt(name, None, end.begin, start_ns)

    @property
    def needs_stable(self) -> bool:
        """Return whether any node waits, keeps a state or runs code of the user's: torn data must not reach it."""
        return bool(self._transforms or self._waiting)

    def failures(self) -> list[NodeFailed]:
        """Return what has failed since the last call."""
        failed = self._failures.copy()
        self._failures.clear()
        return failed

    def stage(self, flow: str, block: Block, received_ns: int, hold: Lease | None = None) -> list[StagedResult]:
        """Do everything that can still be discarded, and return it.

        Where `needs_stable`, ``block`` must be stable, and ``hold`` is of the memory where it lies, if that is given
        back.

        Where `needs_stable`, ``block`` must be stable, and ``hold`` is of the memory where it lies, if that is given
        back.
        """
        course = Course(int(block.numbers[-1]), received_ns, hold, {flow: block})
        if hold is not None and block.stable:
            course.held.add(flow)
        return self._run(flow, course)

    def absent(self, flow: str, last: int) -> None:
        """Note that a group of which ``last`` is the last frame will not come."""
        self._feed(flow, Course(last, 0, None))

    def commit(self, staged: list[StagedResult], first_frame: int) -> None:
        """Make permanent what was staged last."""
        for name, bound, kept in staged:
            before = time.perf_counter_ns()
            self._attempt(name, first_frame, bound.commit, kept)
            self.timings.of(name).commit_ns += time.perf_counter_ns() - before

    def poll(self) -> bool:
        """Let nodes that wait go on; return whether any did."""
        worked = False
        for name in self._waiting:
            before = time.perf_counter_ns()
            result = self._attempt(name, None, self._waiting[name].poll)
            if result is not None:
                worked = True
                self.timings.took(name, time.perf_counter_ns() - before, result.frames)
                self._follow(name, result)
        return worked

    def full(self, flow: str) -> bool:
        """Return whether nodes that wait should go on before more is taken from a flow."""
        names = [name for name, _ in self._passes[flow].feeds]
        return any(self._waiting[name].full or (name in self._passes and self.full(name)) for name in names)

    def drain(self, frames: int) -> bool:
        """End the graph: transforms give what they hold, and nodes that wait come to their end.

        All flows have ended, with the acquisition's frame ``frames``. Returns whether nothing is under way any more.

        All flows have ended, with the acquisition's frame ``frames``.
        """
        if not self._told_end:
            self._told_end = True
            for waiting in self._waiting.values():
                if isinstance(waiting, BoundCommon):
                    waiting.frames = frames
            for name, each in self._passes.items():
                if name not in self._waiting:
                    self._end(name, each)
        self.poll()
        return all(waiting.idle for waiting in self._waiting.values())

    def flush(self) -> None:
        """Make what was committed readable."""
        for name, bound in list(self._ends.items()):
            self._attempt(name, None, bound.flush)

    def close(self) -> None:
        """End all files, the rest too where one fails."""
        ends, self._ends = self._ends, {}
        self._close(ends)

    def leave(self) -> None:
        """End what nodes hold: no more acquisitions follow."""
        transforms, self._transforms = self._transforms, {}
        self._close(transforms)

    def _close(self, some: Mapping[str, End | BoundTransform]) -> None:
        for name, one in some.items():
            try:
                call_foreign(one.close)
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
        except UserCodeError as error:
            self._drop(name, frame if error.frame is None else error.frame, error)
        except Exception as error:  # noqa: BLE001
            self._drop(name, frame, error)
        return None

    def _bounded(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a node for a block and return the result; one that a package brings must return in time.

        Raises:
            UserCodeError: it failed, or did not return in time; with the place in it.

        Raises:
            UserCodeError: it failed, or did not return in time; with the place in it.
        """
        if name not in self._foreign:
            return function(*args, **kwargs)
        try:
            with WATCH.during(name, CALL_S):
                return call_foreign(function, *args, **kwargs)
        except (UserCodeError, BlockFailed):
            raise
        except (Exception, TookTooLong) as error:
            raise UserCodeError(words(error)) from error

    def _follow(self, name: str, result: Result) -> None:
        """Pass on what a node that has waited gives."""
        course = Course(result.last, time.time_ns(), result.hold)
        if result.block is not None:
            course.blocks[name] = result.block
            if result.hold is not None and result.block.stable:
                course.held.add(name)
        if result.rows is not None:
            course.rows[name] = result.rows
            if result.own and name in self._ends:
                course.staged.append((name, self._ends[name], result.rows))
        self.commit(self._run(name, course), result.last)
        if result.block is not None:
            self.timings.note(name, result.block.numbers, result.block.times[-1:])
        if result.hold is not None:
            result.hold.done()

    def _end(self, name: str, each: BoundPass) -> None:
        course = Course(END, time.time_ns(), None)
        self.commit(self._run(name, course), END)

    def _run(self, origin: str, course: Course) -> list[StagedResult]:
        """Run one pass, for what has arrived from an origin."""
        each = self._passes[origin]
        for step in each.steps.copy():
            given = {source: course.blocks[source] for source in step.sources if source in course.blocks}
            bound, before = step.bound, time.perf_counter_ns()
            if course.last == END and isinstance(bound, BoundTransform):
                self._finish(step, bound, given, course)
            elif isinstance(bound, Paired):
                self._pair(step, bound, given, course)
            elif given and bound is not None:
                self._kernel(step, bound, given[step.sources[0]], course)
            elif given:
                course.blocks[step.name] = given[step.sources[0]]
                course.held |= {step.name} if step.sources[0] in course.held else set()
            if given:
                spent = self.timings.of(step.name)
                spent.stage_ns += time.perf_counter_ns() - before
                spent.frames += len(next(iter(given.values())).numbers)
        self._feed(origin, course)
        return course.staged

    def _kernel(self, step: BoundStep, bound: Single, block: Block, course: Course) -> None:
        staged = self._attempt(
            step.name, int(block.numbers[0]), self._bounded, step.name, self._staged, bound, block, course.received_ns
        )
        if staged is None:
            staged = (block if isinstance(bound, BoundSink | BoundCommon) else None), {}
        out, kept = staged
        if out is not None:
            course.blocks[step.name] = out
            if out is block and step.sources[0] in course.held:
                course.held.add(step.name)
        if isinstance(bound, BoundChain):
            for end, partial in kept.items():
                self._keep(end, self._ends[end], partial, course)
        elif isinstance(bound, End) and step.name in self._ends:
            self._keep(step.name, bound, kept, course)

    def _staged(self, bound: Single, block: Block, received_ns: int) -> tuple[Block | None, Any]:
        """Return what a kernel gives and prepares; a part of it that fails is left out."""
        while True:
            try:
                return bound.stage(block, received_ns)
            except PartFailed as failed:  # once more without it
                self._drop(failed.name, int(block.numbers[0]), failed.error)

    def _keep(self, name: str, bound: End, kept: Any, course: Course) -> None:
        """Keep what a sink or reduction has prepared: of parts of frames, for the other receivers."""
        if isinstance(bound, BoundReduce) and name in self._read:
            course.rows[name] = kept
        if name not in self._together or isinstance(bound, BoundCommon):
            course.staged.append((name, bound, kept))

    def _pair(self, step: BoundStep, bound: Paired, given: dict[str, Block], course: Course) -> None:
        if not given:
            return
        first = int(next(iter(given.values())).numbers[0])
        out = self._attempt(step.name, first, self._bounded, step.name, bound.stage, given, course.rows)
        if out is not None:
            course.blocks[step.name] = out
            if isinstance(bound, BoundSelect) and step.sources[0] in course.held:
                course.held.add(step.name)

    def _finish(self, step: BoundStep, bound: BoundTransform, given: dict[str, Block], course: Course) -> None:
        """End a transform: pass on what it makes of what arrived at the end, and what it still holds."""
        pieces = self._attempt(step.name, None, _last_pieces, bound, list(given.values()), course.received_ns)
        if pieces:
            course.blocks[step.name] = whole(pieces)

    def _feed(self, origin: str, course: Course) -> None:
        """Report to nodes that wait how far their source has come, and pass on what it gave."""
        for name, source in self._passes[origin].feeds:
            waiting = self._waiting.get(name)
            if waiting is None:
                continue
            block = course.blocks.get(source)
            hold = None
            if block is not None and source in course.held and course.hold is not None:
                hold = course.hold.take()
            elif block is not None:
                block = copy_of(block)
            last = self._due[source].reached(course.last, self._due[origin])
            waiting.arrive(source, Arrival(last, block, course.rows.get(source), hold))

    def _drop(self, name: str, frame: int | None, error: Exception) -> None:
        """Leave out a step that failed and what needs it; their files are ended with what they have."""
        failed = NodeFailed(label(self._passes, name), frame, error)
        self._failures.append(failed)
        gone = leave_out(self._passes, name)
        for waiting, paired in self._waiting.items():
            if isinstance(paired, Pairing) and (waiting in gone or not gone.isdisjoint(paired.sources)):
                paired.give_up()
        alive = at_work(self._passes) | (self._together - gone)
        alive |= {end for end, one in self._working.items() if isinstance(one, BoundCommon)}
        ended = {end: bound for end, bound in self._ends.items() if end not in alive}
        self._ends = {end: bound for end, bound in self._ends.items() if end in alive}
        self._working = {end: bound for end, bound in self._working.items() if end in alive}
        for bound in ended.values():
            try:
                call_foreign(bound.close)
            except Exception as again:  # noqa: BLE001
                failed.add_note(str(again))


def _made_ready(end: End, directory: str) -> End:
    end.ready(directory)
    return end


def _last_pieces(bound: BoundTransform, blocks: Sequence[Block], received_ns: int) -> list[Block]:
    """Return what a transform makes of what arrives at the end, and what it still holds."""
    given = [copy_of(out) for out, _ in (bound.stage(block, received_ns) for block in blocks) if out is not None]
    left = bound.finish()
    return given if left is None else [*given, left]
