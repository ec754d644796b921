"""Collectives of the receivers that hold parts of the same frames.

Each group of frames goes through two steps, one after the other, in the order of groups, several groups at a time:

tell   every receiver reports which frames of the group it has: none, where it lost them; nothing is sent then, and
       the frames are lost to all
move   parts go to the receiver whose turn it is, or partial rows to all

No receiver waits inside a call. Each takes part once for every group of its flow, even where it has lost the group.
"""

import zlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from lima2cli.frames import Block
from lima2cli.geometry import Rect, Rule
from lima2cli.graph.protocol import END, Arrival, Lease, Operator, Result
from lima2cli.nodes.base import Partial
from lima2cli.transport.base import Agreement, CollectiveGroup, Pending, Shared

UNDER_WAY = 16
"""Maximal number of groups that are reported, or moved, at the same time."""

Numbers = NDArray[np.uint64]
Move = Callable[[], Result | None]
"""A function that moves one group on and returns its result once, at its end."""


class Collective(Operator):
    """The common part of collectives; see `Operator`. ``_begin`` makes what moves a group whose frames agree."""

    always = waits = True

    def __init__(self, name: str, collective: CollectiveGroup) -> None:
        super().__init__(name)
        self._collective = collective
        self._queued: deque[Arrival] = deque()
        self._agreements: deque[tuple[Arrival, Agreement]] = deque()
        self._moving: deque[tuple[Arrival, Move]] = deque()
        self._settling: _After | None = None
        self._group = 0
        self._ending = False

    def push(self, arrival: Arrival) -> None:
        """Take a group: all of it that this receiver has; or the end."""
        if arrival.last == END:
            self._ending = True
        else:
            self._queued.append(arrival)

    @property
    def idle(self) -> bool:
        """See `Operator`."""
        return not (self._queued or self._agreements or self._moving or self._ending)

    @property
    def full(self) -> bool:
        """See `Operator`."""
        return len(self._queued) >= UNDER_WAY

    def poll(self) -> Result | None:
        """See `Operator`."""
        while self._queued and len(self._agreements) < UNDER_WAY:
            arrival = self._queued.popleft()
            self._agreements.append((arrival, self._collective.agree(_word(self._numbers(arrival)))))
        while self._agreements and len(self._moving) < UNDER_WAY and self._settled() and self._agreements[0][1].done():
            arrival, agreement = self._agreements.popleft()
            self._moving.append((arrival, self._agree(arrival, agreement.words, self._group)))
            self._group += 1
        if not self._moving:
            return self._end()
        arrival, move = self._moving[0]
        try:
            result = move()
        except Exception:  # of the node's; others go on, and of this group nothing does
            self._moving[0] = (arrival, lambda: Result(arrival.last))
            raise
        if result is not None:
            self._moving.popleft()
            arrival.done()
        return result

    def _end(self) -> Result | None:
        if not self._ending or self._queued or self._agreements:
            return None
        self._ending = False
        return Result(END)

    def _settled(self) -> bool:
        """Return whether the move of the group before is known, so that the next may be moved.

        All receivers move groups in the same order: the next one only when it is known what moves of this one.
        """
        if self._settling is not None and self._settling.begun():
            self._settling = None
        return self._settling is None

    def _numbers(self, arrival: Arrival) -> Numbers:
        raise NotImplementedError

    def _begin(self, arrival: Arrival, numbers: Numbers, group: int) -> Move:
        """Return the begun move of the part of the group with these frames, all of which the arrival has."""
        raise NotImplementedError

    def _agree(self, arrival: Arrival, words: Numbers, group: int) -> Move:
        """Return the move of a group; where receivers have different frames of it, those that all have go on."""
        if not words.all():
            return lambda: Result(arrival.last)
        own = self._numbers(arrival)
        if (words == words[0]).all():
            return self._begin(arrival, own, group)
        sizes = [8 * int(word & np.uint64(COUNT)) for word in words]
        self._settling = _After(
            self._collective.share(own.view(np.uint8), sizes),
            lambda parts: self._common(arrival, [part.copy().view(np.uint64) for part in parts], group),
        )
        return self._settling

    def _common(self, arrival: Arrival, numbers: Sequence[Numbers], group: int) -> Move:
        common = reduce(np.intersect1d, numbers)
        return self._begin(arrival, common, group) if len(common) else lambda: Result(arrival.last)


COUNT = 2**24 - 1
"""Maximal number of frames of a group in a report; a checksum of their numbers follows."""


def _word(numbers: Numbers) -> int:
    """Return a word for frame numbers, 0 where there are none.

    It is equal for equal numbers, and, but for one in four billion, for no others.
    """
    return (zlib.crc32(numbers.tobytes()) << 24 | len(numbers)) if len(numbers) else 0


class _After:
    """A move that begins when bytes are there."""

    def __init__(self, shared: Shared, begin: Callable[[Sequence[NDArray[np.uint8]]], Move]) -> None:
        self._shared, self._begin = shared, begin
        self._move: Move | None = None

    def begun(self) -> bool:
        """Return whether it has begun; begin it where it can."""
        if self._move is None and self._shared.done():
            self._move = self._begin(self._shared.parts)
        return self._move is not None

    def __call__(self) -> Result | None:
        return self._move() if self.begun() and self._move is not None else None


class Gathering(Collective):
    """Assembly of parts of frames to whole frames, each group at the next receiver of the collective.

    rule    of the frames: it gives the group of a frame
    places  of the parts in the whole frame, in pixels;  fill  value of pixels that no part covers
    """

    def __init__(
        self,
        name: str,
        collective: CollectiveGroup,
        rule: Rule,
        places: Sequence[Rect],
        shape: tuple[int, int],
        dtype: str,
        fill: float,
    ) -> None:
        super().__init__(name, collective)
        self._rule = rule
        self._places, self._shape, self._dtype, self._fill = places, shape, np.dtype(dtype), fill
        self._spare: list[NDArray[np.generic]] = []

    def _numbers(self, arrival: Arrival) -> Numbers:
        return np.empty(0, np.uint64) if arrival.block is None else arrival.block.numbers

    def _begin(self, arrival: Arrival, numbers: Numbers, group: int) -> Move:
        block = arrival.block
        assert block is not None
        if len(numbers) < len(block.numbers):
            chosen = np.isin(block.numbers, numbers)
            block = Block(block.frames[chosen], block.numbers[chosen], block.times[chosen])
        root = self._group_of(numbers) % self._collective.size
        mine = root == self._collective.rank
        whole = self._room(len(numbers)) if mine else np.empty((0, 0, 0), self._dtype)
        pending = self._collective.collect(root, block.frames, whole, self._places)
        return lambda: self._result(arrival.last, block, whole, pending, mine=mine)

    def _group_of(self, numbers: Numbers) -> int:
        """Return the group of frames that are all of one; consecutive blocks of frames may be of the same one."""
        return self._rule.group(self._rule.index(int(numbers[0])))

    def _result(
        self, last: int, block: Block, whole: NDArray[np.generic], pending: Pending, *, mine: bool
    ) -> Result | None:
        if not pending.done():
            return None
        if not mine:
            return Result(last)
        full = Block(whole, block.numbers.copy(), block.times.copy())
        return Result(last, block=full, hold=Lease(lambda: self._spare.append(whole)))

    def _room(self, frames: int) -> NDArray[np.generic]:
        """Return memory for whole frames; what was used before has been touched, and still has its fill."""
        while self._spare:
            spare = self._spare.pop()
            if len(spare) == frames:
                return spare
        return np.full((frames, *self._shape), self._fill, self._dtype)


class Reduction(Collective):
    """Reduction of partial rows of parts of frames to whole rows.

    All receivers get them; each group is one receiver's to save.
    """

    def __init__(self, name: str, collective: CollectiveGroup, merge: Callable[[Partial, Partial], Partial]) -> None:
        super().__init__(name, collective)
        self._merge = merge

    def _numbers(self, arrival: Arrival) -> Numbers:
        return np.empty(0, np.uint64) if arrival.rows is None else arrival.rows["frame_number"]

    def _begin(self, arrival: Arrival, numbers: Numbers, group: int) -> Move:
        rows = arrival.rows
        assert rows is not None
        if len(numbers) < len(rows["frame_number"]):
            chosen = np.isin(rows["frame_number"], numbers)
            rows = {key: value[chosen] for key, value in rows.items()}
        own = _bytes(rows)
        shared = self._collective.share(own, [len(own)] * self._collective.size)
        mine = group % self._collective.size == self._collective.rank

        def move() -> Result | None:
            if not shared.done():
                return None
            merged = {self.name: reduce(self._merge, [_rows(part, rows) for part in shared.parts])}
            return Result(arrival.last, rows=merged, staged=merged if mine else None)

        return move


def _bytes(rows: Partial) -> NDArray[np.uint8]:
    """Return rows as bytes (n,) uint8: keys in their order, one array after another."""
    return np.concatenate([np.ascontiguousarray(rows[key]).reshape(-1).view(np.uint8) for key in sorted(rows)])


def _rows(data: NDArray[np.uint8], like: Partial) -> Partial:
    """Return the rows of bytes, the inverse of `_bytes`, for rows of the same frames and node."""
    rows, start = {}, 0
    for key in sorted(like):
        end = start + like[key].nbytes
        rows[key] = data[start:end].copy().view(like[key].dtype).reshape(like[key].shape)
        start = end
    return rows
