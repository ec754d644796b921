"""`lima2cli.dataclass` makes what the standard library makes."""

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field, fields, replace
from typing import Any

import pytest

from lima2cli.dataclass import dataclass as cheap
from tests import ROOT


def made(by: Callable[..., Any]) -> Any:
    """Return a class of each sort, by one of the two decorators."""

    @by(frozen=True)
    class Base:
        """With defaults, and more to do after ``__init__``."""

        x: int
        seen: list[int] = field(default_factory=list, compare=False, repr=False)

        def __post_init__(self) -> None:
            self.seen.append(self.x)

    @by(frozen=True, kw_only=True)
    class Derived(Base):
        """With a keyword."""

        word: str = "w"

        def __repr__(self) -> str:
            return f"<{self.word}>"

    @by
    class Open:
        """With values that can be set."""

        a: int = 1
        b: tuple[int, ...] = ()

    @by(frozen=True, eq=False)
    class Identity:
        """Equal to nothing else."""

        a: int = 1

    class Plain(Base):
        """Not decorated."""

    return Base, Derived, Open, Identity, Plain


def outcome(call: Callable[[Any], Any], classes: Any) -> tuple[str, str]:
    """Return what a call returns or raises, as text."""
    try:
        return "returned", repr(call(classes)).replace("made.<locals>.", "")
    except (TypeError, FrozenInstanceError) as error:
        return type(error).__name__, str(error).replace("made.<locals>.", "")


BEHAVIOUR = [
    lambda c: (c[0](1), c[0](x=2).seen, c[1](3, word="a"), c[2](4, b=(5,)), c[4](6)),
    lambda c: c[0](),
    lambda c: c[0](1, [], 3),
    lambda c: c[1](1, [], "positional"),
    lambda c: c[2](unknown=1),
    lambda c: setattr(c[0](1), "x", 2),
    lambda c: setattr(c[0](1), "other", 2),
    lambda c: setattr(c[4](1), "x", 2),
    lambda c: setattr(c[4](1), "other", 2),
    lambda c: delattr(c[1](1), "word"),
    lambda c: (c[0](1) == c[0](1, [9]), c[0](1) == c[0](2), c[0](1) == c[4](1), c[0](1) == 1, c[3]() == c[3]()),
    lambda c: (c[2](1) == c[2](1), c[2](1, (2,)) == c[2](1)),
    lambda c: (hash(c[1](1)) == hash(c[1](1)), len({c[1](1), c[1](1), c[1](2)})),
    lambda c: hash(c[2]()),
    lambda c: (replace(c[1](1), word="v"), replace(c[2](), a=3)),
    lambda c: [(one.name, one.default, one.kw_only) for one in fields(c[1])],
    lambda c: (c[1].__match_args__, c[2].a),
    lambda c: (copy.copy(c[2](7)), copy.deepcopy(c[0](8)).seen),
    lambda c: dataclasses.asdict(c[1](1)),
    lambda c: dataclasses.dataclass(frozen=True)(type("Ours", (c[1],), {"__annotations__": {"y": int}}))(1, [], 2),
    lambda c: dataclasses.dataclass(type("Thawed", (c[1],), {})),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BEHAVIOUR)))
def test_it_behaves_as_the_one_of_the_standard_library(number: int) -> None:
    assert outcome(BEHAVIOUR[number], made(cheap)) == outcome(BEHAVIOUR[number], made(dataclasses.dataclass))


def test_what_is_unpickled_was_never_called() -> None:
    from lima2cli.plan.ir import Placement

    program = (
        f"import pickle; p = pickle.loads({pickle.dumps(Placement())!r}); assert p == type(p)() and hash(p); print(p)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == (repr(Placement()), "")
