"""All ranks in one process: the reference that MPI must agree with, and the fall-back where there is no MPI."""

from collections import deque

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from lima2cli.spec import Array
from lima2cli.transport.base import MemorySpec, Message, RegionSpec
from lima2cli.transport.inline_circle import CircleTable, InlineCircle
from lima2cli.transport.inline_line import InlineLine, LineTable
from lima2cli.transport.mapped import MappedFile, map_file


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
        self.circles = [CircleTable(members) for members in spec.circles]
        self.lines = [LineTable(members) for members in spec.lines]
        self.mail: list[deque[tuple[int, Message]]] = [deque() for _ in spec.control_words]

    def _made(self, region: RegionSpec) -> NDArray[np.uint8]:
        if region.path is None:
            return np.zeros(max(1, region.size), np.uint8)
        self._maps.append(map_file(region.path, region.size))
        return self._maps[-1].memory

    def close(self) -> None:
        """Give mapped files free."""
        while self._maps:
            self._maps.pop().close()


class InlineLane:
    """See `Lane`."""

    def __init__(self, memory: NDArray[np.uint8], rows: int, row_bytes: int, pitch: int, stride: int) -> None:
        self._memory, self._rows, self._row_bytes = memory, rows, row_bytes
        self._pitch, self._stride = pitch, stride

    def put(self, frames: Array, offset: int) -> None:
        """See `Lane.put`; complete at once."""
        raw = frames.view(np.uint8) if frames.dtype != np.uint8 else frames
        shape = (len(raw), self._rows, self._row_bytes)
        end = offset + (shape[0] - 1) * self._stride + (self._rows - 1) * self._pitch + self._row_bytes
        if not 0 <= offset <= end <= len(self._memory):
            raise IndexError(f"bytes {offset} to {end} of a region of {len(self._memory)}")
        as_strided(self._memory[offset:], shape, (self._stride, self._pitch, 1))[...] = raw

    def flush(self) -> None:
        """Nothing is ever under way."""


class InlinePort:
    """See `Port`."""

    def __init__(self, rank: int, memory: InlineMemory) -> None:
        self.rank, self.size = rank, len(memory.control)
        self._memory = memory

    def memory(self, region: int) -> NDArray[np.uint8]:
        """See `Port.memory`."""
        return self._memory.regions[region]

    def lane(self, region: int, rows: int, row_bytes: int, pitch: int, stride: int) -> InlineLane:
        """See `Port.lane`."""
        return InlineLane(self._memory.regions[region], rows, row_bytes, pitch, stride)

    def store(self, rank: int, word: int, value: int) -> None:
        """See `Port.store`."""
        self._memory.control[rank][word] = value

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
        """Nothing to do: one process."""

    def circle(self, index: int) -> InlineCircle:
        """See `Port.circle`."""
        return InlineCircle(self._memory.circles[index], self.rank)

    def line(self, index: int) -> InlineLine:
        """See `Port.line`."""
        return InlineLine(self._memory.lines[index], self.rank)

    def send(self, rank: int, message: Message) -> None:
        """See `Port.send`."""
        self._memory.mail[rank].append((self.rank, message))

    def receive(self) -> tuple[int, Message] | None:
        """See `Port.receive`."""
        mail = self._memory.mail[self.rank]
        return mail.popleft() if mail else None

    def close(self) -> None:
        """Nothing to do."""
