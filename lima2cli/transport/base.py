"""What a transport promises to the ranks.

Memory: each memspace is a *region* of bytes of one rank, each rank has *control words* of 8 bytes. Any rank writes
to both by one-sided operations; only the owner reads. Order is guaranteed by `flush` alone: what was written before
it is at its target before anything after it. Messages between ranks are for control only, never for frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lima2cli.geometry import Rect
from lima2cli.spec import Array
from lima2cli.transport.shared_file import SharedFile, Stripes

Message = tuple[str, Any]
"""A kind and plain data."""


@dataclass(frozen=True)
class RegionSpec:
    """A memspace to be made: the rank that owns it, bytes, and the file it is mapped from (None: host memory)."""

    owner: int
    size: int
    path: str | None = None


@dataclass(frozen=True)
class MemorySpec:
    """All memory of a run: the regions, and the number of control words of each rank; ``circles``, the ranks that take
    part in each collective; and ``lines``, those that send each other blocks of frames."""

    regions: tuple[RegionSpec, ...]
    control_words: tuple[int, ...]
    circles: tuple[tuple[int, ...], ...] = ()
    lines: tuple[tuple[int, ...], ...] = ()


class Pending(Protocol):
    """A collective operation under way."""

    def done(self) -> bool:
        """Whether this rank's part is complete; does not wait. To ask is what moves it."""
        ...


class Told(Pending, Protocol):
    """``words`` (size,) uint64, once done: what each member told."""

    words: NDArray[np.uint64]


class Shared(Pending, Protocol):
    """``parts``, once done: the bytes that each member shared."""

    parts: list[NDArray[np.uint8]]


class Circle(Protocol):
    """The ranks that take part in one collective, which nobody else uses.

    Its members begin the same operations of a kind in the same order: the n-th `tell` of one belongs to the n-th of all
    others, and so it is with `share` and `collect` together. Nothing waits. What is handed over must stay as it is
    until the operation is done.
    """

    rank: int
    size: int

    def tell(self, word: int) -> Told:
        """Tell all members a word, and hear those of all."""
        ...

    def share(self, own: NDArray[np.uint8], sizes: Sequence[int]) -> Shared:
        """Give all members bytes, and get those of all, whose ``sizes`` all know."""
        ...

    def open_file(self, path: str, stripes: Stripes) -> SharedFile:
        """Open a file that is there, to write to it together; the members do so in the same order, and wait for each
        other. OSError where it can't be opened."""
        ...

    def collect(self, root: int, part: Array, whole: Array, places: Sequence[Rect]) -> Pending:
        """Write the parts (n, h, w) of all members to their places in ``whole`` (n, height, width) of the root; other
        members' ``whole`` is not looked at. Rows of a part are contiguous."""
        ...


class Line(Protocol):
    """Blocks of frames between some ranks, its members, which nobody else uses. What one member sends to another
    arrives in order."""

    def send(self, member: int, head: Any, frames: Array | None = None) -> Pending:
        """Send plain data, and frames (n, height, width) of contiguous rows or none; does not wait. ``frames`` must
        stay as they are until it is done."""
        ...

    def receive(self) -> tuple[int, Any, Array | None] | None:
        """What has come next, and the member that sent it, or None; does not wait. Frames are the caller's own."""
        ...


class Lane(Protocol):
    """Writes rectangles of one shape into the slots of one region."""

    def put(self, frames: Array, offset: int) -> None:
        """Start writing frames (n, rows, columns), rows contiguous, into n consecutive slots; ``offset`` is that of
        the first pixel in the region, bytes. ``frames`` must stay as they are until the next `flush`."""
        ...

    def flush(self) -> None:
        """All that was put is at its target."""
        ...


class Port(Protocol):
    """A rank's access to the transport."""

    rank: int
    size: int

    def memory(self, region: int) -> NDArray[np.uint8]:
        """Own region, writable bytes."""
        ...

    def lane(self, region: int, rows: int, row_bytes: int, pitch: int, stride: int) -> Lane:
        """A lane to a region for rectangles of ``rows`` rows of ``row_bytes``, rows ``pitch`` and slots ``stride``
        bytes apart."""
        ...

    def store(self, rank: int, word: int, value: int) -> None:
        """Write one control word atomically; it is at its target when this returns."""
        ...

    def put_words(self, rank: int, word: int, values: NDArray[np.uint64]) -> None:
        """Write several control words, not atomically; they are at their target when this returns."""
        ...

    def read(self, word: int, count: int) -> NDArray[np.uint64]:
        """Own control words, each read atomically; valid until the next call."""
        ...

    def words(self, word: int, count: int) -> NDArray[np.uint64]:
        """A view of own control words, for what generation words guard; `sync` first."""
        ...

    def sync(self) -> None:
        """Make what others wrote to own memory visible to loads that follow."""
        ...

    def circle(self, index: int) -> Circle:
        """A circle that this rank is a member of."""
        ...

    def line(self, index: int) -> Line:
        """A line that this rank is a member of."""
        ...

    def send(self, rank: int, message: Message) -> None:
        """Send a control message; does not wait."""
        ...

    def receive(self) -> tuple[int, Message] | None:
        """The next control message and the rank it came from, or None; does not wait."""
        ...

    def close(self) -> None:
        """Give the memory back; collective."""
        ...


__all__ = ["Circle", "Lane", "Line", "MemorySpec", "Message", "Pending", "Port", "RegionSpec"]
