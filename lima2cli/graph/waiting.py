"""Arrivals at a node that has to wait: for other flows, or for other receivers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lima2cli.frames import Block
from lima2cli.nodes.base import Partial

END = 2**63
"""A frame number beyond the last frame: nothing more will come."""


class Lease:
    """A hold on memory: it is given back when all who hold it are done.

    Whoever makes one holds it first.
    """

    def __init__(self, give_back: Callable[[], object]) -> None:
        self._holders, self._give_back = 1, give_back

    def take(self) -> "Lease":
        """Hold the memory, too."""
        self._holders += 1
        return self

    def done(self) -> None:
        """Release the hold."""
        self._holders -= 1
        if not self._holders:
            self._give_back()


@dataclass(slots=True)
class Arrival:
    """An arrival of some consecutive frames, the last of which is ``last``: a block, rows, or nothing (None).

    hold    of the memory of the block, None where the arrays are its own
    """

    last: int
    block: Block | None = None
    rows: Partial | None = None
    hold: Lease | None = None

    def done(self) -> None:
        """Note that it is not read any more."""
        if self.hold is not None:
            self.hold.done()
            self.hold = None


@dataclass(slots=True)
class Result:
    """A result of a node that has waited, as it stands for the frames up to ``last``.

    rows     merged rows; ``own``: they are this receiver's to save
    """

    last: int
    block: Block | None = None
    rows: Partial | None = None
    own: bool = False
    hold: Lease | None = None

    @property
    def frames(self) -> int:
        """Return how many frames the result is, or has rows about."""
        if self.block is not None:
            return len(self.block.numbers)
        return 0 if self.rows is None else len(self.rows["frame_number"])


class BlockFailed(Exception):
    """The work of a node that waits has failed for a block.

    ``frame`` is the first of the block, None where no frame is concerned.
    """

    def __init__(self, frame: int | None, error: Exception) -> None:
        super().__init__(str(error))
        self.frame, self.error = frame, error


class Waiting(Protocol):
    """A node that has to wait. Arrivals of each source are in the order of frames; so are results."""

    def arrive(self, source: str, what: Arrival) -> None:
        """Take an arrival from a source; it is kept until it is used."""
        ...

    def poll(self) -> Result | None:
        """Return the next result, if it is there; does not wait."""
        ...

    @property
    def idle(self) -> bool:
        """Return whether nothing is under way."""
        ...

    @property
    def full(self) -> bool:
        """Return whether its sources should rest until it has gone on."""
        ...
