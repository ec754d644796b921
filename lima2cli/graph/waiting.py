"""What arrives at a node that has to wait: for other flows, or for other receivers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lima2cli.frames import Block
from lima2cli.nodes.base import Partial

END = 2**63
"""Beyond the last frame: nothing more will come."""


class Lease:
    """Keeps memory from being given back: it is when all who hold it are done.

    Whoever makes one holds it first.
    """

    def __init__(self, give_back: Callable[[], object]) -> None:
        self._holders, self._give_back = 1, give_back

    def take(self) -> "Lease":
        """Hold it, too."""
        self._holders += 1
        return self

    def done(self) -> None:
        """No longer hold it."""
        self._holders -= 1
        if not self._holders:
            self._give_back()


@dataclass(slots=True)
class Arrival:
    """What comes of some consecutive frames, the last of which is ``last``: a block, rows, or nothing (None).

    hold    of the memory of the block, None where the arrays are its own
    """

    last: int
    block: Block | None = None
    rows: Partial | None = None
    hold: Lease | None = None

    def done(self) -> None:
        """It is not looked at any more."""
        if self.hold is not None:
            self.hold.done()
            self.hold = None


@dataclass(slots=True)
class Result:
    """What leaves a node that has waited, as it stands for the frames up to ``last``.

    rows     merged rows; ``own``: they are this receiver's to save
    """

    last: int
    block: Block | None = None
    rows: Partial | None = None
    own: bool = False
    hold: Lease | None = None

    @property
    def frames(self) -> int:
        """How many frames the result is, or has rows about."""
        if self.block is not None:
            return len(self.block.numbers)
        return 0 if self.rows is None else len(self.rows["frame_number"])


class BlockFailed(Exception):
    """What a node that waits had to do for a block has failed; ``frame`` is the first of the block, None where it was
    not about frames."""

    def __init__(self, frame: int | None, error: Exception) -> None:
        super().__init__(str(error))
        self.frame, self.error = frame, error


class Waiting(Protocol):
    """A node that has to wait. Arrivals of each source are in the order of frames; so are results."""

    def arrive(self, source: str, what: Arrival) -> None:
        """Something comes from a source; it is kept until it is used."""
        ...

    def poll(self) -> Result | None:
        """The next result, if it is there; does not wait."""
        ...

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        ...

    @property
    def full(self) -> bool:
        """Whether its sources had better rest until it has gone on."""
        ...
