"""A join at work: frames of several inputs are paired by their numbers."""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lima2cli.nodes.base import Join
from lima2cli.plan.records import Step
from lima2cli.spec import Array, Block, Files

Numbers = NDArray[np.uint64]


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
    """A join, bound. ``dropped`` are (first, last) numbers of frames that were not in all inputs.

    What transforms give, they give for all inputs alike as their own input comes: frames that come with the same block
    are paired. Only what they give at the end comes one by one, and is kept until all have given.
    """

    def __init__(self, step: Step, files: Files) -> None:
        node = cast(Join, step.node)
        self._inputs, self._sources = step.inputs, step.sources
        self._function: Callable[[Mapping[str, Array]], Array] = node.bind_all(step.specs, files)
        self._kept: dict[str, list[Block]] = {}
        self._unmatched = Ranges(step.numbering.rule.step)

    @property
    def dropped(self) -> list[tuple[int, int]]:
        """See the class."""
        return self._unmatched.ranges

    def stage(self, blocks: Mapping[str, Block]) -> Block | None:
        """The result for blocks by source; None where no frame is in all."""
        common = self._common(blocks)
        if not len(common):
            return None
        given = {source: _only(block, common) for source, block in blocks.items()}
        first = given[self._sources[0]]
        frames = self._function({name: given[source].frames for name, source in self._inputs.items()})
        return Block(frames, first.numbers, first.times, False)

    def keep(self, blocks: Mapping[str, Block]) -> None:
        """Keep a copy of what comes at the end, until `finish`."""
        for source, block in blocks.items():
            own = Block(block.frames.copy(), block.numbers.copy(), block.times.copy())
            self._kept.setdefault(source, []).append(own)

    def finish(self) -> Block | None:
        """The result for all that was kept."""
        kept, self._kept = self._kept, {}
        return self.stage({source: _whole(blocks) for source, blocks in kept.items()}) if kept else None

    def _common(self, blocks: Mapping[str, Block]) -> Numbers:
        """Numbers that are in all inputs; the others are noted."""
        numbers = [block.numbers for block in blocks.values()]
        if len(blocks) < len(self._sources):
            self._unmatched.add(reduce(np.union1d, numbers))
            return np.empty(0, np.uint64)
        if all(np.array_equal(numbers[0], other) for other in numbers[1:]):
            return numbers[0]
        common = reduce(np.intersect1d, numbers)
        self._unmatched.add(np.setdiff1d(reduce(np.union1d, numbers), common))
        return common


def _only(block: Block, numbers: Numbers) -> Block:
    """Frames of these numbers, which are some or all of the block's."""
    if len(numbers) == len(block.numbers):
        return block
    chosen = np.isin(block.numbers, numbers)
    return Block(block.frames[chosen], block.numbers[chosen], block.times[chosen])


def _whole(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    frames, numbers, times = zip(*((b.frames, b.numbers, b.times) for b in blocks), strict=True)
    return Block(np.concatenate(frames), np.concatenate(numbers), np.concatenate(times))
