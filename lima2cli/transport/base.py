"""The promises of a transport to the ranks: windows, mailboxes, collectives and files that are written together."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.frames import Array
from lima2cli.geometry import Rect


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
        """Return the index of each of these rows (n,) among the own ones.

        Raises: ValueError where one is another's.
        """
        cycle, inside = np.divmod(rows, self.block * self.count)
        stripe, row = np.divmod(inside, self.block)
        place = self._places[stripe]
        if (place < 0).any():
            raise ValueError(f"row {rows[place < 0][0]} belongs to another rank")
        index: NDArray[np.int64] = (cycle * len(self.own) + place) * self.block + row
        return index

    def rows(self, first: int, last: int) -> NDArray[np.int64]:
        """Return the rows, int64 (n,), of the own rows ``first`` to ``last - 1``."""
        stripe, row = np.divmod(np.arange(first, last, dtype=np.int64), self.block)
        cycle, place = np.divmod(stripe, len(self.own))
        rows: NDArray[np.int64] = (cycle * self.count + np.asarray(self.own, np.int64)[place]) * self.block + row
        return rows

    def below(self, row: int) -> int:
        """Return the number of own rows before a row."""
        cycle, inside = divmod(row, self.block * self.count)
        part = sum(max(0, min(self.block, inside - stripe * self.block)) for stripe in self.own)
        return cycle * len(self.own) * self.block + part


class SharedFile(Protocol):
    """An existing file, opened by all members of a collective group to write to it together."""

    def begin(self, first: int, rows: NDArray[np.uint8]) -> "Pending":
        """Begin to write own rows (n, row_bytes), C-contiguous, of which the first is the ``first``-th own one.

        A collective operation: every member takes part in each, in the same order; with no rows if it has none.
        ``rows`` must stay as they are until it is done.

        Raises: OSError, from its ``done``, where this member's part failed.
        """
        ...

    def close(self) -> None:
        """Close the file; collective, and only when nothing is under way."""
        ...


Message = tuple[str, Any]
"""A message: kind and plain data."""


@dataclass(frozen=True)
class RegionSpec:
    """A memspace to be made: the rank that owns it, bytes, and the file it is mapped from (None: host memory)."""

    owner: int
    size: int
    path: str | None = None


@dataclass(frozen=True)
class MemorySpec:
    """The memory of a run: the regions, and the number of control words of each rank; ``collectives``, the ranks that
    take part in each collective; and ``mailboxes``, those that send each other blocks of frames.
    """

    regions: tuple[RegionSpec, ...]
    control_words: tuple[int, ...]
    collectives: tuple[tuple[int, ...], ...] = ()
    mailboxes: tuple[tuple[int, ...], ...] = ()


class Pending(Protocol):
    """A collective operation under way."""

    def done(self) -> bool:
        """Return True if this rank's part is complete; does not wait. Asking is what moves it."""
        ...


class Agreement(Pending, Protocol):
    """The words of all members. ``words`` (size,) uint64, once done: the word that each member sent."""

    words: NDArray[np.uint64]


class Shared(Pending, Protocol):
    """The bytes of all members. ``parts``, once done: the bytes that each member shared."""

    parts: list[NDArray[np.uint8]]


class CollectiveGroup(Protocol):
    """The ranks that take part in one collective, which no other collective uses.

    Its members begin the same operations of a kind in the same order: the n-th `agree` of one belongs to the n-th of
    all others, and so it is with `share` and `collect` together. Nothing waits. Arrays that are handed over must stay
    as they are until the operation is done.
    """

    rank: int
    size: int

    def agree(self, word: int) -> Agreement:
        """Send a word to all members, and receive those of all."""
        ...

    def share(self, own: NDArray[np.uint8], sizes: Sequence[int]) -> Shared:
        """Give all members bytes, and receive those of all, whose ``sizes`` all know."""
        ...

    def open_file(self, path: str, stripes: Stripes) -> SharedFile:
        """Open an existing file, to write to it together; the members do so in the same order, and wait for each other.

        Raises: OSError where it can't be opened.
        """
        ...

    def collect(self, root: int, part: Array, whole: Array, places: Sequence[Rect]) -> Pending:
        """Write the parts (n, h, w) of all members to their places in ``whole`` (n, height, width) of the root; other
        members' ``whole`` is unused. Rows of a part are contiguous.
        """
        ...


class Mailbox(Protocol):
    """Blocks of frames between some ranks, its members; no other ranks use it.

    Messages of one member to another arrive in order.
    """

    def send(self, member: int, head: Any, frames: Array | None = None) -> Pending:
        """Send plain data, and frames (n, height, width) of contiguous rows or none; does not wait. ``frames`` must
        stay as they are until it is done.
        """
        ...

    def receive(self) -> tuple[int, Any, Array | None] | None:
        """Return the next message, with its sender, or None; does not wait. Frames are the caller's own."""
        ...


class PutChannel(Protocol):
    """A channel that writes rectangles of one shape into the slots of one region."""

    def put(self, frames: Array, offset: int) -> None:
        """Start writing frames (n, rows, columns), rows contiguous, into n consecutive slots; ``offset`` is that of
        the first pixel in the region, bytes. ``frames`` must stay as they are until the next `flush`.

        Raises: IndexError where they would leave the region.
        """
        ...

    def put_bytes(self, data: "bytes | NDArray[np.uint8]", offset: int) -> None:
        """Start writing bytes, in a row, as `put` does."""
        ...

    def flush(self) -> None:
        """Wait until all that was put is at its target."""
        ...


class Port(Protocol):
    """A rank's access to the transport."""

    rank: int
    size: int

    def memory(self, region: int) -> NDArray[np.uint8]:
        """Return the own region, writable bytes."""
        ...

    def put_channel(self, region: int, rows: int, row_bytes: int, pitch: int, stride: int) -> PutChannel:
        """Return a channel to a region for rectangles of ``rows`` rows of ``row_bytes``, rows ``pitch`` and slots
        ``stride`` bytes apart.
        """
        ...

    def store(self, rank: int, word: int, value: int) -> None:
        """Write one control word atomically; it is at its target when this returns."""
        ...

    def store_words(self, rank: int, word: int, values: NDArray[np.uint64], step: int = 1) -> None:
        """Write every ``step``-th control word from ``word`` on, each atomically; at their target when this returns."""
        ...

    def put_words(self, rank: int, word: int, values: NDArray[np.uint64]) -> None:
        """Write several control words, not atomically; they are at their target when this returns."""
        ...

    def read(self, word: int, count: int) -> NDArray[np.uint64]:
        """Return own control words, uint64, each read atomically; valid until the next call."""
        ...

    def words(self, word: int, count: int) -> NDArray[np.uint64]:
        """Return a view, uint64, of own control words that generation words guard; `sync` first."""
        ...

    def sync(self) -> None:
        """Make the writes of others to own memory visible to loads that follow."""
        ...

    def collective(self, index: int) -> CollectiveGroup:
        """Return a collective group that this rank is a member of."""
        ...

    def mailbox(self, index: int) -> Mailbox:
        """Return a mailbox that this rank is a member of."""
        ...

    def send(self, rank: int, message: Message) -> None:
        """Send a control message; does not wait."""
        ...

    def receive(self) -> tuple[int, Message] | None:
        """Return the next control message and the rank that sent it, or None; does not wait."""
        ...

    def close(self) -> None:
        """Release the memory; collective."""
        ...


__all__ = [
    "CollectiveGroup",
    "Mailbox",
    "MemorySpec",
    "Message",
    "Pending",
    "Port",
    "PutChannel",
    "RegionSpec",
    "SharedFile",
    "Stripes",
]
