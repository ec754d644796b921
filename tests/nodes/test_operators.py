"""The protocol of operators: what a node that failed takes along, and what stays because others wait for it."""

from collections.abc import Collection

import numpy as np

from lima2cli.frames import Block
from lima2cli.graph.build import BoundPass, BoundStep
from lima2cli.graph.executor import leave_out
from lima2cli.graph.operators import BoundNothing, Writing
from lima2cli.graph.protocol import Arrival, Operator, Result

BLOCK = Block(np.zeros((2, 3, 4), np.uint8), np.arange(2, dtype=np.uint64), np.arange(2, dtype=np.uint64))


class Shared(Writing):
    """A sink that others wait for."""

    def poll(self) -> Result | None:
        return None


class Waits(Operator):
    """An operator in a pass of its own, which notes what it lacks."""

    always = waits = True
    lacks: Collection[str] = ()

    def poll(self) -> Result | None:
        return None

    def give_up(self, gone: Collection[str]) -> None:
        self.lacks = set(gone)


def passes(save: Writing, feed: Waits) -> dict[str, BoundPass]:
    """Passes data → a → save → b, and a → feed; feed → c."""
    steps = [
        BoundStep(BoundNothing("a"), ("data",)),
        BoundStep(save, ("a",)),
        BoundStep(BoundNothing("b"), ("save",)),
    ]
    own = BoundPass([BoundStep(BoundNothing("c"), ("feed",))])
    return {"data": BoundPass(steps, [BoundStep(feed, ("a",))]), "feed": own}


def names(some: BoundPass) -> list[str]:
    return [step.operator.name for step in some.steps]


def test_what_needs_a_node_that_failed_goes_with_it() -> None:
    feed = Waits("feed")
    all_passes = passes(Writing("save"), feed)
    assert leave_out(all_passes, "a") == {"a", "save", "b"}
    assert names(all_passes["data"]) == []
    assert names(all_passes["feed"]) == ["c"], "it gets nothing any more"
    assert feed.lacks == {"a", "save", "b"}


def test_a_sink_that_failed_hands_its_frames_on_and_saves_nothing() -> None:
    save = Writing("save")
    all_passes = passes(save, Waits("feed"))
    assert leave_out(all_passes, "save") == set()
    assert names(all_passes["data"]) == ["a", "save", "b"]
    assert save.nodes == ()
    result = save.push(Arrival("a", 1, BLOCK))
    assert (result.block, result.staged) == (BLOCK, None)


def test_what_others_wait_for_stays_without_frames() -> None:
    all_passes = passes(Shared("save"), Waits("feed"))
    assert leave_out(all_passes, "a") == {"a", "save", "b"}
    assert names(all_passes["data"]) == ["save"]


def test_an_operator_that_answers_at_once_has_nothing_to_poll() -> None:
    operator = BoundNothing("a")
    assert operator.push(Arrival("data", 1, BLOCK)).block is BLOCK
    assert operator.poll() is None
    assert (operator.polled, operator.idle, operator.full) == (False, True, False)
    assert Waits("feed").polled
