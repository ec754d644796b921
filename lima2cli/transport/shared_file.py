"""What a transport promises to ranks that write one file together."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lima2cli.transport.base import Pending


@dataclass(frozen=True)
class Stripes:
    """Rows of a file that are dealt out to ranks, as one of them sees them.

    Row k lies at ``offset + k*row_bytes``, and is the rank's own where ``(k // block) % count`` is among ``own``.
    Own rows are counted from 0 in the order of the file.

    block   rows of a stripe;  count   stripes until they are dealt out from the first again
    own     at least one of these, increasing
    """

    offset: int
    row_bytes: int
    block: int
    count: int
    own: tuple[int, ...]

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        places = np.full(self.count, -1, np.int64)
        places[list(self.own)] = np.arange(len(self.own))
        return places

    def index(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which own row each of these rows (n,) is. ValueError where one is another's."""
        cycle, inside = np.divmod(rows, self.block * self.count)
        stripe, row = np.divmod(inside, self.block)
        place = self._places[stripe]
        if (place < 0).any():
            raise ValueError(f"row {rows[place < 0][0]} belongs to another rank")
        index: NDArray[np.int64] = (cycle * len(self.own) + place) * self.block + row
        return index

    def rows(self, first: int, last: int) -> NDArray[np.int64]:
        """The rows that the own rows ``first`` to ``last - 1`` are."""
        stripe, row = np.divmod(np.arange(first, last, dtype=np.int64), self.block)
        cycle, place = np.divmod(stripe, len(self.own))
        rows: NDArray[np.int64] = (cycle * self.count + np.asarray(self.own, np.int64)[place]) * self.block + row
        return rows

    def below(self, row: int) -> int:
        """How many own rows come before a row."""
        cycle, inside = divmod(row, self.block * self.count)
        part = sum(max(0, min(self.block, inside - stripe * self.block)) for stripe in self.own)
        return cycle * len(self.own) * self.block + part


class SharedFile(Protocol):
    """A file that is there already, opened by all members of a circle to write to it together."""

    def begin(self, first: int, rows: NDArray[np.uint8]) -> "Pending":
        """Begin to write own rows (n, row_bytes), C-contiguous, of which the first is the ``first``-th own one.

        A collective operation: every member takes part in each, in the same order; with no rows if it has none.
        ``rows`` must stay as they are until it is done. Its ``done`` raises OSError where this member's part failed.
        """
        ...

    def close(self) -> None:
        """Close it; collective, and only when nothing is under way."""
        ...


__all__ = ["SharedFile", "Stripes"]
