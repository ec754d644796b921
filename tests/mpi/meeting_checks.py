"""Receivers that do their part of each group together, as each of them sees it; checked against what should come.

Run under ``mpiexec -n 3 python -m mpi4py -m tests.mpi.meeting_checks``, or by `tests.mpi.test_meeting` in one process.
"""

import sys
import time
from collections.abc import Callable
from random import Random

import numpy as np

from lima2cli.frames import Block
from lima2cli.geometry import Rect, Rule
from lima2cli.graph.collectives import UNDER_WAY, Collective, Gathering, Reduction
from lima2cli.graph.protocol import END, Arrival, Lease, Result
from lima2cli.nodes.base import Partial
from lima2cli.transport.base import CollectiveGroup

BLOCKS, WIDTH, ROWS, FILL, POISON = 3, 5, 2, 9, 0xDEAD


def merged(one: Partial, other: Partial) -> Partial:
    """Sums of the same frames."""
    assert np.array_equal(one["frame_number"], other["frame_number"])
    return {"frame_number": one["frame_number"], "sum": one["sum"] + other["sum"]}


class Case:
    """Shares of each of ``size`` members in each group, the same on all ranks: ``had[group][member]`` are numbers."""

    def __init__(self, seed: int, size: int, groups: int, last_blocks: int = BLOCKS) -> None:
        chance = Random(seed)
        self.size = size
        self.rule = Rule(4, 2, None, BLOCKS, 1, 8, 8)
        self.had: list[list[list[int]]] = []
        for group in range(groups):
            count = BLOCKS if group < groups - 1 else last_blocks
            numbers = [self.rule.frame(group * BLOCKS + block) for block in range(count)]
            members = [[n for n in numbers if chance.random() < 0.9] for _ in range(size)]
            if chance.random() < 0.3:  # one has lost it
                members[chance.randrange(size)] = []
            self.had.append(members)

    def common(self, group: int) -> list[int]:
        """Frames that all have."""
        return sorted(set.intersection(*map(set, self.had[group])))

    def last(self, group: int) -> int:
        """The last frame of a group."""
        return self.rule.frame(group * BLOCKS + BLOCKS - 1)


class Member:
    """One receiver: brings arrivals, keeps results. Memory is spoilt as soon as it is given back."""

    def __init__(self, case: Case, rank: int, node: Collective) -> None:
        self.case, self.rank, self.node = case, rank, node
        self.results: list[tuple[int, Result, list[int]]] = []
        self.given_back: list[int] = []
        self._group, self._made = 0, 0

    @property
    def over(self) -> bool:
        """Return whether all has come, and gone."""
        return bool(self.results) and self.results[-1][0] == END and self.node.idle

    def bring(self) -> None:
        """The next group, or the end."""
        if self._group > len(self.case.had) or self.node.full:
            return
        if self._group == len(self.case.had):
            self.node.push(Arrival("f", END))
        else:
            numbers = self.case.had[self._group][self.rank]
            self.node.push(self._arrival(self.case.last(self._group), np.array(numbers, np.uint64)))
        self._group += 1

    def _arrival(self, last: int, numbers: np.ndarray) -> Arrival:  # type: ignore[type-arg]
        if isinstance(self.node, Reduction):
            rows = {"frame_number": numbers, "sum": numbers * 10.0 ** (2 * self.rank)}
            return Arrival("f", last, rows=rows if len(numbers) else None)
        if not len(numbers):
            return Arrival("f", last)
        memory = np.zeros((len(numbers), ROWS, WIDTH + 3), np.uint32)  # rows lie apart, as in slots
        frames = memory[:, :, :WIDTH]
        frames[...] = numbers[:, None, None] * 10 + self.rank
        index, self._made = self._made, self._made + 1

        def give_back() -> None:
            self.given_back.append(index)
            memory[...] = POISON

        return Arrival("f", last, Block(frames, numbers, numbers + 1, True), hold=Lease(give_back))

    def poll(self) -> bool:
        """One look; whether something came."""
        result = self.node.poll()
        if result is None:
            return False
        pixels = [] if result.block is None else result.block.frames.copy().tolist()
        self.results.append((result.last, result, pixels))
        if result.hold is not None:
            result.hold.done()  # whole frames are used again
        return True

    def wrong(self) -> list[str]:
        """Return all that is not as it should be."""
        found = [] if sorted(self.given_back) == list(range(self._made)) else [f"given back: {self.given_back}"]
        lasts = [last for last, _, _ in self.results]
        if lasts != [*map(self.case.last, range(len(self.case.had))), END]:
            return [*found, f"results up to {lasts}"]
        for group, (_, result, pixels) in enumerate(self.results[:-1]):
            check = self._rows_wrong if isinstance(self.node, Reduction) else self._frames_wrong
            found += [f"member {self.rank}, group {group}: {text}" for text in check(group, result, pixels)]
        return found

    def _frames_wrong(self, group: int, result: Result, pixels: list[int]) -> list[str]:
        common, mine = self.case.common(group), group % self.case.size == self.rank
        if not common or not mine:
            return [] if result.block is None else ["frames that it should not have"]
        if result.block is None:
            return ["no frames"]
        whole = np.full((len(common), ROWS, 1 + self.case.size * WIDTH), FILL, np.uint32)
        for member in range(self.case.size):
            x = place(member).x
            whole[:, :, x : x + WIDTH] = np.array(common, np.uint32)[:, None, None] * 10 + member
        same = result.block.numbers.tolist() == common and result.block.times.tolist() == [n + 1 for n in common]
        return [] if same and pixels == whole.tolist() else ["other frames"]

    def _rows_wrong(self, group: int, result: Result, pixels: list[int]) -> list[str]:
        common = self.case.common(group)
        if not common:
            return ["rows that were lost"] if result.rows else []
        rows = (result.rows or {}).get("node")
        if rows is None or rows["frame_number"].tolist() != common:
            return ["no rows, or others"]
        sums = [sum(n * 10.0 ** (2 * member) for member in range(self.case.size)) for n in common]
        return [] if rows["sum"].tolist() == sums else ["other sums"]


def place(member: int) -> Rect:
    """Return the rectangle of a member's part in the whole frame, whose first column nobody has."""
    return Rect(1 + member * WIDTH, 0, WIDTH, ROWS)


def members(case: Case, ranks: list[int], collectives: Callable[[int], CollectiveGroup], kind: str) -> list[Member]:
    """The nodes of some ranks."""
    found = []
    for rank in ranks:
        if kind == "gather":
            shape, places = (ROWS, 1 + case.size * WIDTH), [place(member) for member in range(case.size)]
            node: Collective = Gathering("node", collectives(rank), case.rule, places, shape, "uint32", FILL)
        else:
            node = Reduction("node", collectives(rank), merged)
        found.append(Member(case, rank, node))
    return found


def play(own: list[Member], chance: Random, deadline: float = 20.0) -> None:
    """Bring and poll, in any order, until all is over."""
    end = time.monotonic() + deadline
    while not all(member.over for member in own):
        member = chance.choice(own)
        if chance.random() < 0.5:
            member.bring()
        else:
            member.poll()
        if time.monotonic() > end:
            raise TimeoutError([len(member.results) for member in own])


def main() -> None:
    """One rank of three; each at a pace of its own."""
    from mpi4py import MPI

    from lima2cli.transport.mpi_collective import MpiCollectiveGroup

    world = MPI.COMM_WORLD
    wrong: list[str] = []
    for seed, kind in enumerate(("gather", "reduce")):
        case = Case(seed, world.size, 3 * UNDER_WAY, last_blocks=1)
        collective = MpiCollectiveGroup(world, range(world.size), seed)
        own = members(case, [world.rank], lambda rank, collective=collective: collective, kind)  # type: ignore[misc]
        play(own, Random(100 * seed + world.rank))
        wrong += own[0].wrong()
        collective.close()
    everything = world.gather(wrong)
    if everything is not None:
        print([text for own in everything for text in own] or "all is well", flush=True)


if __name__ == "__main__":
    sys.exit(main())
