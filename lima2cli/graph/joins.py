"""Joins and selections at work: frames of several inputs, and rows about them, paired by their numbers."""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lima2cli.frames import Array, Block, Files, FrameSpec
from lima2cli.graph.fused import Spread
from lima2cli.graph.protocol import END, Arrival, BlockFailed, Lease, Operator, Result
from lima2cli.nodes.base import JoinedTransformer, Map, Partial, Reduce, Select, Transform, WarningTransformer
from lima2cli.plan.ir import Numbering, Step
from lima2cli.plan.numbering import after, of_flow
from lima2cli.program import ReceiverProgram


class ExpectedFrames:
    """The frames of one numbering, and those of them that are at one receiver."""

    def __init__(self, numbering: Numbering, receiver: int) -> None:
        self._rule, self._selected, self._window = numbering.rule, numbering.selected, numbering.window
        everywhere = numbering.parts or numbering.everywhere
        self._here = [everywhere or numbering.receivers[n] == receiver for n in range(self._rule.buffers)]

    def after(self, last: int) -> int:
        """Return the first of them with a number above ``last``; END if there is none."""
        rule = self._rule
        index = rule.before(last + 1)
        group = rule.group(index)
        ahead = next((n for n in range(rule.buffers) if self._here[rule.turn(group + n)[0]]), None)
        if ahead is None:
            return END
        if ahead:
            index = (group + ahead) * rule.blocks
        return END if self._selected is not None and index >= self._selected else rule.frame(index)

    def reached(self, last: int, origin: "ExpectedFrames") -> int:
        """Return the number up to which these frames are complete when those of ``origin`` have come to ``last``.

        A frame that is made of several has the number of the first, and comes with the last. -1 where none has.
        """
        if last == END or self._window == origin._window:
            return last
        return max(-1, last - (self._rule.step - origin._rule.step)) if self._window else -1


def expected_frames(program: ReceiverProgram) -> Mapping[str, ExpectedFrames]:
    """Return the expected frames, by flow and node."""
    due = {flow.gdt.flow: ExpectedFrames(of_flow([flow.gdt]), program.receiver) for flow in program.flows}
    for step in program.steps:
        together = bool(step.collective) and isinstance(
            step.node, Reduce
        )  # whose rows all receivers of the collective get
        due[step.name] = ExpectedFrames(replace(after(step), everywhere=together), program.receiver)
    return due


Numbers = NDArray[np.uint64]

Blocks = Mapping[str, Block]
PartialRows = Mapping[str, Partial]


class Ranges:
    """Frame numbers as ranges (first, last) of frames that follow each other in steps of ``step``."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.ranges: list[tuple[int, int]] = []

    def add(self, numbers: Numbers) -> None:
        """Add numbers in increasing order."""
        for number in numbers.tolist():
            if self.ranges and number == self.ranges[-1][1] + self._step:
                self.ranges[-1] = (self.ranges[-1][0], number)
            else:
                self.ranges.append((number, number))


class Joining(Operator):
    """Base of the operators of several inputs.

    Behind a filter frames that were not in all inputs are not kept: what was vetoed is counted there.
    """

    def __init__(self, step: Step) -> None:
        super().__init__(step.name)
        self._inputs, self._sources = step.inputs, step.sources
        self._single = 0
        self._rule, self._selected = step.numbering.rule, step.numbering.selected
        self._unmatched = Ranges(self._rule.step)
        self._notes = not step.numbering.filters

    def begin(self, start_ns: int) -> None:
        """See `Operator.begin`."""
        self._single, self._unmatched = 0, Ranges(self._rule.step)

    @property
    def dropped(self) -> list[tuple[int, int]]:
        """See `Operator`."""
        return self._unmatched.ranges

    @property
    def single(self) -> int:
        """See `Operator`."""
        return self._single

    def _matched(self, arrival: Arrival) -> Blocks | None:
        """Return the frames that are in all inputs, by the names of these; None where there are none."""
        given = arrival.blocks or {}
        blocks = {source: given[source] for source in self._sources if source in given}
        common = self._common(blocks)
        if not len(common):
            return None
        matched = {source: _only(block, common) for source, block in blocks.items()}
        return {name: matched[source] for name, source in self._inputs.items()}

    def _common(self, blocks: Blocks) -> Numbers:
        """Return the numbers that are in all inputs; the others are noted."""
        numbers = [block.numbers for block in blocks.values()]
        if len(blocks) < len(self._sources):
            self._note(reduce(np.union1d, numbers, np.empty(0, np.uint64)))
            return np.empty(0, np.uint64)
        if all(np.array_equal(numbers[0], other) for other in numbers[1:]):
            return numbers[0]
        common = reduce(np.intersect1d, numbers)
        self._note(np.setdiff1d(reduce(np.union1d, numbers), common))
        return common

    def _note(self, numbers: Numbers) -> None:
        if not self._notes:
            return
        places = self._rule.place(numbers.astype(np.int64))
        expected = places.selected
        if self._selected is not None:
            expected &= places.index < self._selected
        self._single += len(numbers) - int(np.count_nonzero(expected))
        self._unmatched.add(numbers[expected])


class BoundJoin(Joining):
    """A map of several inputs, bound."""

    def __init__(self, step: Step, files: Files, threads: int) -> None:
        super().__init__(step)
        node = cast(Map, step.node)
        self._function = Spread(lambda: node.bind(step.given(files)), cast(FrameSpec, step.after), threads)

    def push(self, arrival: Arrival) -> Result | None:
        """See `Operator.push`; None where no frame is in all inputs."""
        matched = self._matched(arrival)
        if matched is None:
            return None
        first = next(iter(matched.values()))
        frames = self._function(*(block.frames for block in matched.values()))
        return Result(arrival.last, Block(frames, first.numbers, first.times, False))


class BoundJoinedTransform(Joining):
    """A node with a state that reads several inputs, bound."""

    always = True

    def __init__(self, step: Step, files: Files, receiver: int) -> None:
        super().__init__(step)
        transformer = cast(Transform, step.node).bind(replace(step.given(files), receiver=receiver))
        assert isinstance(transformer, JoinedTransformer)
        self._transformer = transformer

    def push(self, arrival: Arrival) -> Result | None:
        """See `Operator.push`; None where no frame is in all inputs."""
        matched = self._matched(arrival)
        made = None if matched is None else self._transformer.join(matched)
        if arrival.last == END:
            self._transformer.finish()
            if isinstance(self._transformer, WarningTransformer):
                self.warnings += [f"{self.name}: {text}" for text in self._transformer.warnings()]
        return None if made is None else Result(arrival.last, made)

    def leave(self) -> None:
        """See `Operator.leave`."""
        self._transformer.close()


class BoundSelect(Operator):
    """A selection, bound."""

    same = True

    def __init__(self, step: Step, reduces: Mapping[str, Reduce]) -> None:
        super().__init__(step.name)
        self._vetoed = 0
        self._node, self._rule = cast(Select, step.node), step.numbering.rule
        self._reduces = {name: reduces[name] for name in step.tables}

    def begin(self, start_ns: int) -> None:
        """See `Operator.begin`."""
        self._vetoed = 0

    @property
    def vetoed(self) -> int:
        """See `Operator`."""
        return self._vetoed

    def push(self, arrival: Arrival) -> Result | None:
        """See `Operator.push`; None where none passes. Frames whose rows were lost are lost with them."""
        block, rows = arrival.there, arrival.tables or {}
        if not self._reduces.keys() <= rows.keys():
            return None
        columns = {name: reduce.finish(rows[name]) for name, reduce in self._reduces.items()}
        known = self._with_rows(block.numbers, rows)
        chosen = known & self._node.choose(block.numbers, self._rule, columns)
        count = int(np.count_nonzero(chosen))
        self._vetoed += int(np.count_nonzero(known)) - count
        if not count:
            return None
        return Result(arrival.last, block if count == len(chosen) else block.part(chosen))

    def _with_rows(self, numbers: Numbers, rows: PartialRows) -> NDArray[np.bool_]:
        """Return which frames have all rows that they should have."""
        known = np.ones(len(numbers), bool)
        for name, node in self._reduces.items():
            numbers_of_rows = rows[name]["frame_number"]
            if len(numbers_of_rows) < len(numbers):
                known &= np.isin(numbers, numbers_of_rows) | (numbers % np.uint64(node.every) != 0)
        return known


def _only(block: Block, numbers: Numbers) -> Block:
    """Return the frames of these numbers, which are some or all of the block's."""
    return block if len(numbers) == len(block.numbers) else block.part(np.isin(block.numbers, numbers))


class Pairing(Operator):
    """Pairing of frames, and rows, that do not come together, for an operator that reads them.

    Each is kept until all sources that it is due from have come as far.

    It goes on to where any source has come, the same steps however the sources take turns: receivers that hold parts of
    frames do the same.
    """

    always = waits = True

    def __init__(self, paired: Operator, due: Mapping[str, ExpectedFrames]) -> None:
        super().__init__(paired.name)
        self._operator, self._due, self._over = paired, due, False
        self.warnings = paired.warnings
        self._kept: dict[str, deque[Arrival]] = {source: deque() for source in due}
        self._expect()

    def _expect(self) -> None:
        """Begin an acquisition: frames are numbered from 0 again."""
        self._next = {source: each.after(-1) for source, each in self._due.items()}

    def begin(self, start_ns: int) -> None:
        """See `Operator.begin`."""
        self._expect()
        self._operator.begin(start_ns)

    def push(self, arrival: Arrival) -> None:
        """See `Operator.push`. What it keeps is limited by the local buffers, or by what the flows report late."""
        if arrival.last < self._next[arrival.source]:  # no frame is due yet: nothing new
            arrival.done()
            return
        self._next[arrival.source] = self._due[arrival.source].after(arrival.last)
        self._kept[arrival.source].append(arrival)

    def give_up(self, gone: Collection[str]) -> None:
        """See `Operator`: it gives nothing any more, and arrivals are released."""
        if self.name in gone or not self._due.keys().isdisjoint(gone):
            self._over = True

    @property
    def dropped(self) -> list[tuple[int, int]] | None:
        """See `Operator`."""
        return self._operator.dropped

    @property
    def single(self) -> int | None:
        """See `Operator`."""
        return self._operator.single

    @property
    def vetoed(self) -> int | None:
        """See `Operator`."""
        return self._operator.vetoed

    @property
    def idle(self) -> bool:
        """See `Operator`."""
        return not any(self._kept.values())

    def poll(self) -> Result | None:
        """See `Operator.poll`."""
        heads = {source: kept[0] for source, kept in self._kept.items() if kept}
        if not heads:
            return None
        last = min(head.last for head in heads.values())
        if any(self._next[source] <= last for source, kept in self._kept.items() if not kept):
            return None
        blocks = {s: now for s, head in heads.items() if (now := _upto(head.block, last)) is not None}
        rows = {s: _rows_upto(head.rows, last) for s, head in heads.items() if head.rows is not None}
        out = self._paired(last, blocks, rows)
        holds = [heads[s].hold for s in blocks if heads[s].hold is not None]
        hold = Lease(partial(_all_done, [each.take() for each in holds if each is not None]))
        for source, head in heads.items():
            self._let_go(source, head, last)
        return Result(last, block=out, hold=hold)

    def leave(self) -> None:
        """See `Operator.leave`."""
        self._operator.leave()

    def _paired(self, last: int, blocks: Blocks, rows: PartialRows) -> Block | None:
        if self._over or not (blocks or (self._operator.always and last == END)):
            return None
        source, block = next(iter(blocks.items()), (next(iter(self._due)), None))
        try:
            result = self._operator.push(Arrival(source, last, block, blocks=blocks, tables=rows))
            return None if result is None else result.block
        except Exception as error:
            self._over = True
            raise BlockFailed(min((int(one.numbers[0]) for one in blocks.values()), default=None), error) from error

    def _let_go(self, source: str, head: Arrival, last: int) -> None:
        """Release what was used."""
        if head.last == last:
            self._kept[source].popleft().done()
            return
        if head.rows is not None:
            head.rows = _rows_after(head.rows, last)
        if head.block is not None:
            head.block = _after(head.block, last)
            if head.block is None:
                head.done()


def _all_done(holds: Sequence[Lease]) -> None:
    for hold in holds:
        hold.done()


def _upto(block: Block | None, last: int) -> Block | None:
    """Return the frames of an arrival up to ``last``."""
    return None if block is None else _between(block, 0, _count(block.numbers, last))


def _after(block: Block, last: int) -> Block | None:
    """Return the frames of an arrival after ``last``."""
    return _between(block, _count(block.numbers, last), len(block.numbers))


def _between(block: Block, begin: int, end: int) -> Block | None:
    if begin == end:
        return None
    if end - begin == len(block.numbers):
        return block
    return block.part(slice(begin, end))


def _rows_upto(rows: Partial, last: int) -> Partial:
    count = _count(rows["frame_number"], last)
    return {key: value[:count] for key, value in rows.items()}


def _rows_after(rows: Partial, last: int) -> Partial:
    count = _count(rows["frame_number"], last)
    return {key: value[count:] for key, value in rows.items()}


def _count(numbers: Array, last: int) -> int:
    """Return how many numbers are not above ``last``."""
    return int(np.searchsorted(numbers, np.uint64(last), "right"))
