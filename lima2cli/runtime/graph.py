"""The nodes at work on one receiver.

A block of a flow goes through all nodes that need nothing else (`stage`): maps compute, reductions reduce, sinks
compress. Only then, when the runtime knows that the data were not overwritten meanwhile, does it count (`commit`): rows
are appended, chunks written.

A node that needs more, of other flows or of other receivers, has to wait: what it reads is kept for it, and what it
gives, when it is there, goes through the nodes behind it in the same way. Memory of frames that wait is held.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from lima2cli.errors import UserCodeError
from lima2cli.foreign import call_foreign, is_foreign
from lima2cli.nodes.function import words
from lima2cli.program.records import ReceiverProgram
from lima2cli.runtime.arrivals import END, Arrival, BlockFailed, Hold, Result
from lima2cli.runtime.bound import BoundReduce, BoundSink, BoundTransform, End, Paired, Single
from lima2cli.runtime.chain import BoundChain, PartFailed
from lima2cli.runtime.common import BoundCommon
from lima2cli.runtime.course import Course, Staged, copy_of, whole
from lima2cli.runtime.delegation import Delegation
from lima2cli.runtime.leaving_out import at_work, label, leave_out
from lima2cli.runtime.node_counts import NodeCounts
from lima2cli.runtime.pairing import BoundSelect, Pairing
from lima2cli.runtime.passes import BoundStep, NodeFailed, Pass, bind_passes
from lima2cli.runtime.processing import OwnProcessing
from lima2cli.runtime.timing import Timings
from lima2cli.spec import Block, Files
from lima2cli.transport.base import Port
from lima2cli.watch import CALL_S, WATCH, TookTooLong

P = ParamSpec("P")
T = TypeVar("T")


class Graph:
    """The nodes of one receiver, bound once. Each acquisition is announced (`ready`), begins (`begin`) and ends
    (`close`); `leave` is the end of all.

    A node that fails is left out from then on, and so is what reads from it; all else goes on, and in collectives the
    receiver still takes part, with nothing. `failures` tells of it.
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
        waits = [one for one in self._waiting.values() if isinstance(one, Delegation | Pairing)]
        self._anew = [*self._transforms.values(), *self._paired.values(), *waits]
        self._together = {step.name for step in program.steps if step.circle}
        self._read = self._together.union(*(step.tables for step in program.steps))
        self._foreign = {step.name for step in program.steps if is_foreign(type(step.node))}
        self._told_end = False

    def ready(self, directory: str) -> None:
        """An acquisition will come, whose files go to ``directory``."""
        for name, end in self._working.copy().items():
            made = self._attempt(name, None, _made_ready, end, directory)
            if made is not None:
                self._ends[name] = made

    def begin(self, start_ns: int) -> None:
        """The acquisition that was announced began at ``start_ns``, ns since the epoch."""
        self._told_end, self.timings = False, Timings()
        for each in self._anew:
            each.begin()
        for name, end in self._ends.copy().items():
            self._attempt(name, None, end.begin, start_ns)

    @property
    def needs_stable(self) -> bool:
        """Whether any node waits, keeps a state or runs code of the user's: torn data must not reach it."""
        return bool(self._transforms or self._waiting)

    def failures(self) -> list[NodeFailed]:
        """What has failed since the last call."""
        failed = self._failures.copy()
        self._failures.clear()
        return failed

    def stage(self, flow: str, block: Block, received_ns: int, hold: Hold | None = None) -> list[Staged]:
        """Everything that can still be thrown away; where `needs_stable`, ``block`` must be stable, and ``hold`` is of
        the memory where it lies, if that is given back."""
        course = Course(int(block.numbers[-1]), received_ns, hold, {flow: block})
        if hold is not None and block.stable:
            course.held.add(flow)
        return self._run(flow, course)

    def absent(self, flow: str, last: int) -> None:
        """A group of which ``last`` is the last frame will not come."""
        self._feed(flow, Course(last, 0, None))

    def commit(self, staged: list[Staged], first_frame: int) -> None:
        """Make what was staged last."""
        for name, bound, kept in staged:
            before = time.perf_counter_ns()
            self._attempt(name, first_frame, bound.commit, kept)
            self.timings.of(name).commit_ns += time.perf_counter_ns() - before

    def poll(self) -> bool:
        """Let nodes that wait go on; whether any did."""
        worked = False
        for name in self._waiting:
            before = time.perf_counter_ns()
            result = self._attempt(name, None, self._waiting[name].poll)
            if result is not None:
                worked = True
                self.timings.took(name, time.perf_counter_ns() - before, result)
                self._follow(name, result)
        return worked

    def full(self, flow: str) -> bool:
        """Whether nodes that wait had better go on before more comes of a flow."""
        names = [name for name, _ in self._passes[flow].feeds]
        return any(self._waiting[name].full or (name in self._passes and self.full(name)) for name in names)

    def drain(self, frames: int) -> bool:
        """All flows have ended, with the acquisition's frame ``frames``: let transforms give what they hold, and nodes
        that wait come to their end. Whether nothing is under way any more."""
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
        """No more acquisitions: end what nodes hold."""
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
        """What a function of a node gives; None where it fails: the node is then left out. ``frame`` is the first that
        the call is about."""
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
        """Call a node for a block; one that a package brings must return in time, as functions of users must. Raises
        `UserCodeError` with the place in it."""
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
        """What a node that has waited gives goes on."""
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

    def _end(self, name: str, each: Pass) -> None:
        course = Course(END, time.time_ns(), None)
        self.commit(self._run(name, course), END)

    def _run(self, origin: str, course: Course) -> list[Staged]:
        """One pass, for what has come of an origin."""
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
        """What a kernel gives and prepares; a part of it that fails is left out."""
        while True:
            try:
                return bound.stage(block, received_ns)
            except PartFailed as failed:  # once more without it
                self._drop(failed.name, int(block.numbers[0]), failed.error)

    def _keep(self, name: str, bound: End, kept: Any, course: Course) -> None:
        """What a sink or reduction has prepared: of parts of frames, for the other receivers."""
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
        """The last of a transform: what it makes of what came at the end, and what it still holds."""
        pieces = self._attempt(step.name, None, _last_pieces, bound, list(given.values()), course.received_ns)
        if pieces:
            course.blocks[step.name] = whole(pieces)

    def _feed(self, origin: str, course: Course) -> None:
        """Tell nodes that wait how far their source has come, and what it gave."""
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
    """What a transform makes of what comes at the end, and what it still holds."""
    given = [copy_of(out) for out, _ in (bound.stage(block, received_ns) for block in blocks) if out is not None]
    left = bound.finish()
    return given if left is None else [*given, left]
