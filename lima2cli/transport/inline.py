"""All ranks in one process: the reference that MPI must agree with, and the fallback without MPI."""

import os
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from lima2cli.frames import Array
from lima2cli.geometry import Rect
from lima2cli.transport.base import MemorySpec, Message, RegionSpec, Stripes
from lima2cli.transport.mapped import MappedFile, map_file


class _Written:
    """See `Pending`; complete when it begins."""

    def __init__(self, error: OSError | None) -> None:
        self._error = error

    def done(self) -> bool:
        """See `SharedFile.begin`."""
        if self._error is not None:
            raise self._error
        return True


class InlineFile:
    """See `SharedFile`. OSError where the file can't be opened."""

    def __init__(self, path: str, stripes: Stripes) -> None:
        self._stripes = stripes
        self._descriptor = os.open(path, os.O_WRONLY)

    def begin(self, first: int, rows: NDArray[np.uint8]) -> _Written:
        """See `SharedFile.begin`; a system call for each run of neighbours."""
        stripes, error = self._stripes, None
        own = stripes.rows(first, first + len(rows))
        cuts = np.flatnonzero(np.diff(own) != 1) + 1
        try:
            for piece, row in zip(np.split(rows, cuts), own[np.concatenate(([0], cuts))[: len(own)]], strict=False):
                write_whole(self._descriptor, piece, stripes.offset + int(row) * stripes.row_bytes)
        except OSError as refused:
            error = refused
        return _Written(error)

    def close(self) -> None:
        """See `SharedFile.close`."""
        os.close(self._descriptor)


def write_whole(descriptor: int, piece: NDArray[np.uint8], offset: int) -> None:
    """Write bytes at an offset, in as many calls as the system needs.

    Raises: OSError.
    """
    left = piece.reshape(-1).data
    while len(left):
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


class _Operation:
    """An operation of a collective; ``given`` by member. The last of them completes it."""

    def __init__(self, size: int) -> None:
        self.given: dict[int, Any] = {}
        self._size = size

    def complete(self) -> bool:
        return len(self.given) == self._size

    def all(self) -> list[Any]:
        return [self.given[member] for member in sorted(self.given)]


class CollectiveTable:
    """The state that members of one group share: operations by kind and number, until all have begun them."""

    def __init__(self, members: tuple[int, ...]) -> None:
        self.members = members
        self._operations: dict[tuple[str, int], _Operation] = {}

    def give(self, kind: str, number: int, member: int, what: Any) -> _Operation:
        """Add a member's contribution to an operation."""
        key = (kind, number)
        operation = self._operations.setdefault(key, _Operation(len(self.members)))
        operation.given[member] = what
        if operation.complete():
            del self._operations[key]
        return operation


class _Inline:
    """An operation as a member sees it; ``finish`` is called once, when it is complete."""

    def __init__(self, operation: _Operation, finish: Callable[[list[Any]], None]) -> None:
        self._operation, self._finish, self._done = operation, finish, False
        self.words: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self.parts: list[NDArray[np.uint8]] = []

    def done(self) -> bool:
        """See `Pending`."""
        if not self._done and self._operation.complete():
            self._finish(self._operation.all())
            self._done = True
        return self._done


class InlineCollectiveGroup:
    """See `CollectiveGroup`."""

    def __init__(self, table: CollectiveTable, rank: int) -> None:
        self.rank, self.size = table.members.index(rank), len(table.members)
        self._table = table
        self._begun: dict[str, int] = defaultdict(int)

    def agree(self, word: int) -> _Inline:
        """See `CollectiveGroup.agree`."""

        def finish(words: list[int]) -> None:
            agreement.words = np.array(words, np.uint64)

        agreement = _Inline(self._give("agree", word), finish)
        return agreement

    def share(self, own: NDArray[np.uint8], sizes: Sequence[int]) -> _Inline:
        """See `CollectiveGroup.share`."""

        def finish(parts: list[NDArray[np.uint8]]) -> None:
            shared.parts = parts

        shared = _Inline(self._give("move", own.copy()), finish)
        return shared

    def collect(self, root: int, part: Array, whole: Array, places: Sequence[Rect]) -> _Inline:
        """See `CollectiveGroup.collect`. The first member that sees all parts copies, before a part is released."""
        operation = self._give("move", (part, whole if self.rank == root else None))

        def finish(given: list[tuple[Array, Array | None]]) -> None:
            target = given[root][1]
            if target is None:  # another member was here before
                return
            for (piece, _), place in zip(given, places, strict=True):
                target[(slice(None), *place.within(Rect(0, 0, target.shape[2], target.shape[1])))] = piece
            operation.given[root] = (given[root][0], None)

        return _Inline(operation, finish)

    def open_file(self, path: str, stripes: Stripes) -> InlineFile:
        """See `CollectiveGroup.open_file`; there is nothing to wait for."""
        return InlineFile(path, stripes)

    def _give(self, kind: str, what: Any) -> _Operation:
        number = self._begun[kind]
        self._begun[kind] += 1
        return self._table.give(kind, number, self.rank, what)


Mail = tuple[int, Any, Array | None]


class MailboxTable:
    """The messages that members of one mailbox share."""

    def __init__(self, members: tuple[int, ...]) -> None:
        self.members = members
        self.mail: list[deque[Mail]] = [deque() for _ in members]


class _Sent:
    """See `Pending`; sending is complete when it begins."""

    def done(self) -> bool:
        """Return True: a copy has been sent."""
        return True


class InlineMailbox:
    """See `Mailbox`."""

    def __init__(self, table: MailboxTable, rank: int) -> None:
        self._mail, self._member = table.mail, table.members.index(rank)

    def send(self, member: int, head: Any, frames: Array | None = None) -> _Sent:
        """See `Mailbox.send`."""
        self._mail[member].append((self._member, head, None if frames is None else frames.copy()))
        return _Sent()

    def receive(self) -> Mail | None:
        """See `Mailbox.receive`."""
        mail = self._mail[self._member]
        return mail.popleft() if mail else None


class InlineMemory:
    """The memory of all ranks."""

    def __init__(self, spec: MemorySpec) -> None:
        self._maps: list[MappedFile] = []
        try:
            self.regions = [self._made(region) for region in spec.regions]
        except BaseException:
            self.close()
            raise
        self.control = [np.zeros(count, np.uint64) for count in spec.control_words]
        self.collectives = [CollectiveTable(members) for members in spec.collectives]
        self.mailboxes = [MailboxTable(members) for members in spec.mailboxes]
        self.mail: list[deque[tuple[int, Message]]] = [deque() for _ in spec.control_words]

    def _made(self, region: RegionSpec) -> NDArray[np.uint8]:
        if region.path is None:
            return np.zeros(max(1, region.size), np.uint8)
        self._maps.append(map_file(region.path, region.size))
        return self._maps[-1].memory

    def close(self) -> None:
        """Release mapped files."""
        while self._maps:
            self._maps.pop().close()


class InlinePutChannel:
    """See `PutChannel`."""

    def __init__(self, memory: NDArray[np.uint8], rows: int, row_bytes: int, pitch: int, stride: int) -> None:
        self._memory, self._rows, self._row_bytes = memory, rows, row_bytes
        self._pitch, self._stride = pitch, stride

    def put(self, frames: Array, offset: int) -> None:
        """See `PutChannel.put`; complete at once."""
        raw = frames.view(np.uint8) if frames.dtype != np.uint8 else frames
        shape = (len(raw), self._rows, self._row_bytes)
        end = offset + (shape[0] - 1) * self._stride + (self._rows - 1) * self._pitch + self._row_bytes
        if not 0 <= offset <= end <= len(self._memory):
            raise IndexError(f"bytes {offset} to {end} of a region of {len(self._memory)}")
        as_strided(self._memory[offset:], shape, (self._stride, self._pitch, 1))[...] = raw

    def put_bytes(self, data: bytes | NDArray[np.uint8], offset: int) -> None:
        """See `PutChannel.put_bytes`."""
        end = offset + len(data)
        if not 0 <= offset <= end <= len(self._memory):
            raise IndexError(f"bytes {offset} to {end} of a region of {len(self._memory)}")
        self._memory[offset:end] = np.frombuffer(data, np.uint8)

    def flush(self) -> None:
        """Do nothing: every put is complete at once."""


class InlinePort:
    """See `Port`."""

    def __init__(self, rank: int, memory: InlineMemory) -> None:
        self.rank, self.size = rank, len(memory.control)
        self._memory = memory

    def memory(self, region: int) -> NDArray[np.uint8]:
        """See `Port.memory`."""
        return self._memory.regions[region]

    def put_channel(self, region: int, rows: int, row_bytes: int, pitch: int, stride: int) -> InlinePutChannel:
        """See `Port.put_channel`."""
        return InlinePutChannel(self._memory.regions[region], rows, row_bytes, pitch, stride)

    def store(self, rank: int, word: int, value: int) -> None:
        """See `Port.store`."""
        self._memory.control[rank][word] = value

    def store_words(self, rank: int, word: int, values: NDArray[np.uint64], step: int = 1) -> None:
        """See `Port.store_words`."""
        self._memory.control[rank][word : word + len(values) * step : step] = values

    def put_words(self, rank: int, word: int, values: NDArray[np.uint64]) -> None:
        """See `Port.put_words`."""
        self._memory.control[rank][word : word + len(values)] = values

    def read(self, word: int, count: int) -> NDArray[np.uint64]:
        """See `Port.read`."""
        return self._memory.control[self.rank][word : word + count].copy()

    def words(self, word: int, count: int) -> NDArray[np.uint64]:
        """See `Port.words`."""
        return self._memory.control[self.rank][word : word + count]

    def sync(self) -> None:
        """Do nothing: one process sees its own writes."""

    def collective(self, index: int) -> InlineCollectiveGroup:
        """See `Port.collective`."""
        return InlineCollectiveGroup(self._memory.collectives[index], self.rank)

    def mailbox(self, index: int) -> InlineMailbox:
        """See `Port.mailbox`."""
        return InlineMailbox(self._memory.mailboxes[index], self.rank)

    def send(self, rank: int, message: Message) -> None:
        """See `Port.send`."""
        self._memory.mail[rank].append((self.rank, message))

    def receive(self) -> tuple[int, Message] | None:
        """See `Port.receive`."""
        mail = self._memory.mail[self.rank]
        return mail.popleft() if mail else None

    def close(self) -> None:
        """Do nothing: there is nothing to release."""
