"""Joins and selections at work: frames of several inputs, and rows about them, are paired by frame number."""

from collections import deque
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lima2cli.nodes.base import Join, Partial, Reduce, Select
from lima2cli.plan.records import Step
from lima2cli.runtime.arrivals import Arrival, Hold, Result
from lima2cli.runtime.spread import Spread
from lima2cli.spec import Block, Files, FrameSpec

Numbers = NDArray[np.uint64]

Blocks = Mapping[str, Block]
Rows = Mapping[str, Partial]


class Ranges:
    """Frame numbers as ranges (first, last) of frames that follow each other in steps of ``step``."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.ranges: list[tuple[int, int]] = []

    def add(self, numbers: Numbers) -> None:
        """Numbers in increasing order."""
        for number in numbers.tolist():
            if self.ranges and number == self.ranges[-1][1] + self._step:
                self.ranges[-1] = (self.ranges[-1][0], number)
            else:
                self.ranges.append((number, number))


class BoundJoin:
    """A join, bound. ``dropped`` are (first, last) numbers of frames that were not in all inputs and should have been;
    ``beside`` counts those that are of one flow only.

    Behind a filter they are not kept: what was vetoed is counted there.
    """

    def __init__(self, step: Step, files: Files, threads: int) -> None:
        node = cast(Join, step.node)
        self._inputs, self._sources = step.inputs, step.sources
        self._function = Spread(lambda: node.bind_all(step.specs, files), cast(FrameSpec, step.after), threads)
        self.beside = 0
        self._rule = step.numbering.rule
        self._unmatched = Ranges(self._rule.step)
        self._notes = not step.numbering.filters

    @property
    def dropped(self) -> list[tuple[int, int]]:
        """See the class."""
        return self._unmatched.ranges

    def stage(self, blocks: Blocks, rows: Rows | None = None) -> Block | None:
        """The result for blocks by source; None where no frame is in all."""
        common = self._common(blocks)
        if not len(common):
            return None
        given = {source: _only(block, common) for source, block in blocks.items()}
        first = given[self._sources[0]]
        frames = self._function({name: given[source].frames for name, source in self._inputs.items()})
        return Block(frames, first.numbers, first.times, False)

    def _common(self, blocks: Blocks) -> Numbers:
        """Numbers that are in all inputs; the others are noted."""
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
        index = numbers.astype(np.int64) - self._rule.start
        expected = (index >= 0) & (index % self._rule.step == 0)
        self.beside += len(numbers) - int(np.count_nonzero(expected))
        self._unmatched.add(numbers[expected])


class BoundSelect:
    """A selection, bound. ``vetoed`` counts the frames that did not pass."""

    def __init__(self, step: Step, reduces: Mapping[str, Reduce]) -> None:
        self.vetoed = 0
        self._node, self._rule = cast(Select, step.node), step.numbering.rule
        self._reduces = {name: reduces[name] for name in step.tables}

    def stage(self, blocks: Blocks, rows: Rows) -> Block | None:
        """Those that pass; None where none does, or where rows were lost, and with them the frames."""
        block = next(iter(blocks.values()), None)
        if block is None or not self._reduces.keys() <= rows.keys():
            return None
        columns = {name: reduce.finish(rows[name]) for name, reduce in self._reduces.items()}
        chosen = self._node.choose(block.numbers, self._rule, columns)
        count = int(np.count_nonzero(chosen))
        self.vetoed += len(chosen) - count
        if not count:
            return None
        return block if count == len(chosen) else part_of(block, chosen)


def part_of(block: Block, chosen: NDArray[np.bool_]) -> Block:
    """Some frames of a block: a view where they follow each other, else a copy."""
    (places,) = np.nonzero(chosen)
    which: slice | NDArray[np.bool_] = chosen
    if len(places) and places[-1] - places[0] + 1 == len(places):
        which = slice(int(places[0]), int(places[-1]) + 1)
    return Block(block.frames[which], block.numbers[which], block.times[which], block.stable)


def _only(block: Block, numbers: Numbers) -> Block:
    """Frames of these numbers, which are some or all of the block's."""
    return block if len(numbers) == len(block.numbers) else part_of(block, np.isin(block.numbers, numbers))


class Pairing:
    """Frames, and rows, that do not come together: each is kept until all sources have come as far; see `Waiting`."""

    def __init__(self, bound: BoundJoin | BoundSelect, sources: Sequence[str]) -> None:
        self._bound: BoundJoin | BoundSelect | None = bound
        self.sources = tuple(sources)
        self._kept: dict[str, deque[Arrival]] = {source: deque() for source in sources}

    def arrive(self, source: str, what: Arrival) -> None:
        """See `Waiting`."""
        self._kept[source].append(what)

    def give_up(self) -> None:
        """Give nothing any more; what comes is let go."""
        self._bound = None

    @property
    def idle(self) -> bool:
        """See `Waiting`."""
        return not any(self._kept.values())

    @property
    def full(self) -> bool:
        """See `Waiting`; what it keeps is limited by the local buffers, or by what the flows tell late."""
        return False

    def poll(self) -> Result | None:
        """See `Waiting`: up to where the source that is most behind has come."""
        if not all(self._kept.values()):
            return None
        heads = {source: kept[0] for source, kept in self._kept.items()}
        last = min(head.last for head in heads.values())
        blocks, rows, holds = {}, {}, []
        for source, head in heads.items():
            if head.block is not None:
                now, head.block = _split(head.block, last)
                if now is not None:
                    blocks[source] = now
                    holds += [head.hold.take()] if head.hold is not None else []
            if head.rows is not None:
                rows[source], head.rows = _split_rows(head.rows, last)
            if head.last == last:
                self._kept[source].popleft().done()
        out = self._bound.stage(blocks, rows) if blocks and self._bound is not None else None
        return Result(last, block=out, hold=_all_of(holds))


def _all_of(holds: Sequence[Hold]) -> Hold:
    def done() -> None:
        for hold in holds:
            hold.done()

    return Hold(done)


def _split(block: Block, last: int) -> tuple[Block | None, Block | None]:
    """Frames up to ``last``, and those after it."""
    count = int(np.searchsorted(block.numbers, np.uint64(last), "right"))
    if count in (0, len(block.numbers)):
        return (block, None) if count else (None, block)
    first = Block(block.frames[:count], block.numbers[:count], block.times[:count], block.stable)
    return first, Block(block.frames[count:], block.numbers[count:], block.times[count:], block.stable)


def _split_rows(rows: Partial, last: int) -> tuple[Partial, Partial]:
    count = int(np.searchsorted(rows["frame_number"], np.uint64(last), "right"))
    return {key: value[:count] for key, value in rows.items()}, {key: value[count:] for key, value in rows.items()}
