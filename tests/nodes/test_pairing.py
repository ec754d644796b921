"""Frames of several sources paired by number, however these are cut into arrivals and whichever comes first."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.errors import NodeMisuse
from lima2cli.frames import Block, FrameSpec
from lima2cli.geometry import Rect, Rule
from lima2cli.graph.joins import BoundJoin, ExpectedFrames, Pairing
from lima2cli.graph.protocol import END, Arrival, BlockFailed, Lease, Operator, Result
from lima2cli.inputs.stacks import FileStore
from lima2cli.nodes.base import Inputs
from lima2cli.nodes.expression import Expression
from lima2cli.plan.ir import Numbering, Passage, Step
from lima2cli.plan.numbering import paired
from lima2cli.view import View

RECEIVER, BEYOND = 0, 40
SPEC = FrameSpec("uint32", View(Rect(0, 0, 3, 2)), (3, 2))
POISON = 0xDEADBEEF


@dataclass
class Memory:
    """Memory of arrivals, spoilt as soon as it is given back."""

    given_back: list[int] = field(default_factory=list)
    made: int = 0

    def block(self, numbers: list[int], factor: int) -> tuple[Block, Lease]:
        """Frames whose pixels are the number times ``factor``."""
        own = np.array(numbers, np.uint64)
        frames = np.broadcast_to(own.astype(np.uint32)[:, None, None] * np.uint32(factor), (len(own), 2, 3)).copy()
        index, self.made = self.made, self.made + 1

        def give_back() -> None:
            self.given_back.append(index)
            frames[...] = POISON

        return Block(frames, own, own.copy(), True), Lease(give_back)


@dataclass(frozen=True)
class Case:
    """Sources of a join: their numberings, and arrivals as (last, numbers of a block or None)."""

    numberings: dict[str, Numbering]
    arrivals: dict[str, list[tuple[int, list[int] | None]]]

    def here(self, source: str) -> set[int]:
        """Numbers that come."""
        return {n for _, numbers in self.arrivals[source] for n in numbers or ()}


def due_here(it: Numbering) -> list[int]:
    count = BEYOND if it.selected is None else it.selected
    rule = it.rule
    frames = [rule.frame(k) for k in range(count) if it.receivers[k // rule.blocks % rule.buffers] == RECEIVER]
    return [f for f in frames if f < BEYOND]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    numberings = {}
    for name in "abc"[: draw(st.integers(2, 3))]:
        count = draw(st.none() | st.integers(1, 20))
        step, blocks = draw(st.sampled_from((1, 1, 2, 3, 5))), draw(st.sampled_from((1, 2, 3)))
        receivers = draw(st.sampled_from(((0,), (0, 1), (1, 0, 0))))
        rule = Rule(draw(st.integers(0, 8)), step, count, blocks, len(receivers), 50, 10)
        numberings[name] = Numbering(rule, receivers, count, (name,))
    arrivals: dict[str, list[tuple[int, list[int] | None]]] = {}
    chance = Random(draw(st.integers(0, 2**32)))
    for name, it in numberings.items():
        frames, cut = due_here(it), []
        while frames:
            size = chance.randint(1, 5)
            now, frames = frames[:size], frames[size:]
            kept = [n for n in now if chance.random() < 0.8]
            cut.append((now[-1], kept or None))
        arrivals[name] = [*cut, (END, None)]
    return Case(numberings, arrivals)


def bound(numberings: dict[str, Numbering], files: FileStore) -> BoundJoin:
    """The join a + 1000 b + 1000000 c."""
    expr = " + ".join(f"{1000**i} * {name}" for i, name in enumerate(numberings))
    node = Expression(expr=expr, dtype="uint64")
    specs = dict.fromkeys(numberings, SPEC)
    numbering = paired(numberings, ("r0", "r1"))
    passage = Passage(specs, node.infer(Inputs(specs, files)))
    step = Step("j", node, "a", "a", (passage,), numbering, {name: name for name in numberings})
    return BoundJoin(step, files, 1)


def pairing(case: Case, join: Any) -> Pairing:
    return Pairing(join, {name: ExpectedFrames(it, RECEIVER) for name, it in case.numberings.items()})


def polled(node: Pairing) -> Iterator[Result]:
    while (result := node.poll()) is not None:
        yield result


def play(case: Case, join: Any, turns: Iterator[str] | None, memory: Memory) -> tuple[list[int], dict[int, Any]]:
    """All arrivals in the order of turns, polled in between; lasts of the results, and pixels by number."""
    node, queues = pairing(case, join), {name: list(cut) for name, cut in case.arrivals.items()}
    lasts: list[int] = []
    found: dict[int, Any] = {}

    def poll() -> None:
        for result in polled(node):
            lasts.append(result.last)
            if result.block is not None:
                assert not set(found) & set(result.block.numbers.tolist())
                for number, frame in zip(result.block.numbers.tolist(), result.block.frames, strict=True):
                    assert len(np.unique(frame)) == 1
                    found[number] = frame[0, 0].item()
            assert result.hold is not None
            result.hold.done()

    while any(queues.values()):
        left = [name for name, queue in queues.items() if queue]
        name = left[0] if turns is None else next(turns)
        if name not in left:
            continue
        last, numbers = queues[name].pop(0)
        block, hold = memory.block(numbers, 1) if numbers else (None, None)
        node.push(Arrival(name, last, block, hold=hold))
        if turns is not None:
            poll()
    poll()
    assert node.idle
    return lasts, found


@given(cases(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_any_cut_and_any_order(case: Case, seed: int) -> None:
    with FileStore(Path()) as files:
        try:
            join, reference = bound(case.numberings, files), bound(case.numberings, files)
        except NodeMisuse:
            return
        memory = Memory()
        chance, names = Random(seed), sorted(case.numberings)
        lasts, found = play(case, join, iter(lambda: chance.choice(names), None), memory)
        common = set.intersection(*(case.here(name) for name in case.numberings))
        assert list(found) == sorted(common)
        factor = sum(1000**i for i in range(len(case.numberings)))
        assert found == {n: n * factor for n in common}
        assert sorted(memory.given_back) == list(range(memory.made)), "each once"
        shared = set.intersection(*(set(all_of(it)) for it in case.numberings.values()))
        some = set.union(*(case.here(name) for name in case.numberings))
        unmatched = {n for first, last in join.dropped for n in range(first, last + 1, paired_step(case))}
        assert unmatched == (some & shared) - common
        assert join.single == len(some - shared)
        again, _ = play(case, reference, None, Memory())
        assert lasts == again, "the same steps, whatever comes first"
        assert lasts[-1] == END


def all_of(it: Numbering) -> list[int]:
    count = BEYOND if it.selected is None else it.selected
    return [f for k in range(count) if (f := it.rule.frame(k)) < BEYOND]


def paired_step(case: Case) -> int:
    return paired(case.numberings, ("r0", "r1")).rule.step


def one(start: int, step: int, count: int | None) -> Numbering:
    return Numbering(Rule(start, step, count, 1, 1, 50, 10), (RECEIVER,), count, ("f",))


@pytest.mark.parametrize(
    ("other", "held"),
    [
        (one(100, 1, None), 0),
        (one(0, 1, 10), 0),
        (one(0, 7, None), 0),
        (one(1, 1000, None), 39),
    ],
    ids=["begins later", "ends earlier", "has few of them", "has one that has not come"],
)
def test_frames_that_no_other_source_has_are_not_held(other: Numbering, held: int) -> None:
    """A flow that goes on while another has not begun, or has ended, must not fill its local buffers."""
    case, memory = Case({"a": one(0, 1, None), "b": other}, {}), Memory()
    with FileStore(Path()) as files:
        node = pairing(case, bound(case.numberings, files))
        for number in range(BEYOND):
            block, hold = memory.block([number], 1)
            node.push(Arrival("a", number, block, hold=hold))
            if number in due_here(other) and held == 0:
                block, hold = memory.block([number], 1)
                node.push(Arrival("b", number, block, hold=hold))
            for result in polled(node):
                assert result.hold is not None
                result.hold.done()
        assert memory.made - len(memory.given_back) == held


class _Chooser(Operator):
    """Stands for a selection: frames that have a row with an even number."""

    def push(self, arrival: Arrival) -> Result | None:
        if arrival.tables is None or "t" not in arrival.tables:
            return None
        rows, block = arrival.tables["t"], arrival.there
        chosen = np.isin(block.numbers, rows["frame_number"][rows["value"] % 2 == 0])
        return Result(arrival.last, block.part(chosen)) if chosen.any() else None


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=8)


@given(SIZES, SIZES, st.data())
@settings(max_examples=40, deadline=None)
def test_rows_cut_otherwise_than_frames(frames: list[int], rows: list[int], data: st.DataObject) -> None:
    """A chosen block is a view of memory that is held until the result is done with."""
    count, memory = min(sum(frames), sum(rows)), Memory()
    due = {"f": ExpectedFrames(one(0, 1, count), RECEIVER), "t": ExpectedFrames(one(0, 1, count), RECEIVER)}
    node = Pairing(_Chooser("chosen"), due)
    queues: dict[str, list[Arrival]] = {"f": [], "t": []}
    for name, sizes in (("f", frames), ("t", rows)):
        first = 0
        for size in sizes:
            numbers = list(range(first, min(first + size, count)))
            first += size
            if numbers and name == "f":
                block, hold = memory.block(numbers, 1)
                queues[name].append(Arrival(name, numbers[-1], block, hold=hold))
            elif numbers:
                own = np.array(numbers, np.uint64)
                queues[name].append(Arrival(name, numbers[-1], rows={"frame_number": own, "value": own // 3}))
        queues[name].append(Arrival(name, END))
    found, later = list[int](), st.booleans()
    results: list[Result] = []
    while any(queues.values()):
        name = str(data.draw(st.sampled_from([name for name, queue in queues.items() if queue])))
        node.push(queues[name].pop(0))
        results.extend(polled(node))
        while data.draw(later) and results:  # results are used later, and in their order
            found += _use(results.pop(0))
    for result in results:
        found += _use(result)
    assert found == [n for n in range(count) if n // 3 % 2 == 0]
    assert sorted(memory.given_back) == list(range(memory.made))
    assert node.idle


def _use(result: Result) -> list[int]:
    assert result.hold is not None
    numbers = [] if result.block is None else result.block.numbers.tolist()
    if result.block is not None:
        np.testing.assert_array_equal(result.block.frames[:, 0, 0], result.block.numbers)
    result.hold.done()
    return numbers


class _Failing(Operator):
    """Stands for a join that fails from frame 3 on."""

    def push(self, arrival: Arrival) -> Result:
        if int(arrival.there.numbers[0]) >= 3:
            raise ValueError("three")
        return Result(arrival.last, arrival.there)


def test_a_node_that_fails_goes_on_with_nothing() -> None:
    """All that waits behind it is told of every step, and memory is given back."""
    memory = Memory()
    node = Pairing(_Failing("joined"), {name: ExpectedFrames(one(0, 1, 6), RECEIVER) for name in "ab"})
    lasts = []
    for number in range(6):
        for name in "ab":
            block, hold = memory.block([number], 1)
            node.push(Arrival(name, number, block, hold=hold))
        if number == 3:
            with pytest.raises(BlockFailed) as caught:
                node.poll()
            assert (caught.value.frame, str(caught.value)) == (3, "three")
        for result in polled(node):
            lasts.append((result.last, result.block is not None))
            assert result.hold is not None
            result.hold.done()
    assert lasts == [(n, n < 3) for n in range(6)]
    assert sorted(memory.given_back) == list(range(12))


def test_frames_made_of_several() -> None:
    """They come with the last frame of their window, and are due with the first."""
    flow, window = one(0, 2, None), Numbering(Rule(0, 8, None, 1, 1, 50, 10), (RECEIVER,), None, ("f",), window=4)
    due, origin = ExpectedFrames(window, RECEIVER), ExpectedFrames(flow, RECEIVER)
    assert [due.reached(last, origin) for last in (0, 4, 6, 8, 12, 14)] == [-1, -1, 0, 2, 6, 8]
    assert due.reached(END, origin) == END
    assert due.reached(8, due) == 8
    everything = ExpectedFrames(Numbering(Rule(0, 2, 1, 1, 1, 50, 10), (RECEIVER,), 1, ("f",), window=0), RECEIVER)
    assert [everything.reached(last, origin) for last in (0, 100, END)] == [-1, -1, END]
