"""Frames that travel as the detector has compressed them, from a detector rank through a slot to those who read them.

A slot holds one frame: 8 bytes with the number of bytes, 8 with the compression (its index in `COMPRESSIONS`), then the
bytes themselves. A frame that is missing has none.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.frames import Array, Block

COMPRESSIONS = ("none", "bslz4", "lz4")

HEAD_BYTES = 16

ALIGNMENT = 64
"""Bytes that slots are a multiple of."""


def slot_bytes(pixels: int, itemsize: int) -> int:
    """Return the bytes of a slot for any frame of so many pixels.

    Blocks of 2 KiB or more that can't be compressed grow by less than a 64th (LZ4: a 255th, and 20 bytes).
    """
    size = pixels * itemsize
    return -(-(HEAD_BYTES + size + size // 64 + 256) // ALIGNMENT) * ALIGNMENT


def head_of(compression: str, data: bytes) -> NDArray[np.uint8]:
    """Return what comes before the bytes of a frame in its slot."""
    return np.array([len(data), COMPRESSIONS.index(compression)], np.uint64).view(np.uint8)


def taken(slots: NDArray[np.uint8]) -> "Packed":
    """Return a copy of what slots (n, bytes) hold; of one that is being written anything, within its bounds."""
    heads = slots[:, :HEAD_BYTES].copy().view(np.uint64)
    lengths = np.minimum(heads[:, 0], slots.shape[1] - HEAD_BYTES).tolist()
    codes = np.minimum(heads[:, 1], len(COMPRESSIONS) - 1).tolist()
    data = tuple(slot[HEAD_BYTES : HEAD_BYTES + length].tobytes() for slot, length in zip(slots, lengths, strict=True))
    return Packed(tuple(COMPRESSIONS[code] for code in codes), data)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Frames as a detector has sent them, each compressed by itself.

    compressions  of each frame: ``bslz4``, ``lz4``, or ``none``
    data          of each frame the bytes that a chunk of HDF5 with this frame holds, by the filter of that name; of
                  ``none`` the pixels, row by row, in the order of this machine
    """

    compressions: tuple[str, ...]
    data: tuple[bytes, ...]

    def part(self, which: slice | NDArray[np.bool_]) -> "Packed":
        """Return some of them, chosen by a slice or by (n,) bool."""
        indices = np.arange(len(self.data))[which].tolist()
        return Packed(tuple(self.compressions[i] for i in indices), tuple(self.data[i] for i in indices))


class PackedBlock(Block):
    """A block whose frames came ``packed``, and are unpacked when they are asked for first."""

    __slots__ = ("_frames", "_unpack", "packed")

    def __init__(
        self,
        packed: Packed,
        unpack: Callable[[Packed], Array],
        numbers: NDArray[np.uint64],
        times: NDArray[np.uint64],
    ) -> None:
        self.packed, self._unpack = packed, unpack
        self._frames: Array | None = None
        self.numbers, self.times, self.stable = numbers, times, True

    @property
    def frames(self) -> Array:
        """Return the frames (n, height, width), read-only. Raises what the function that unpacks raises."""
        if self._frames is None:
            self._frames = self._unpack(self.packed)
        return self._frames

    @frames.setter
    def frames(self, frames: Array) -> None:
        self._frames = frames

    def one(self, index: int) -> Array:
        """Return a frame (1, height, width). Raises what the function that unpacks raises."""
        if self._frames is not None:
            return self._frames[index : index + 1]
        packed = self.packed
        return self._unpack(Packed(packed.compressions[index : index + 1], packed.data[index : index + 1]))

    def sent(self, compression: str) -> Iterator[tuple[bytes, Array | None]]:
        """Yield of each frame its bytes, or of one that is compressed in another way its pixels (1, height, width).

        Raises what the function that unpacks raises.
        """
        for index, (kind, data) in enumerate(zip(self.packed.compressions, self.packed.data, strict=True)):
            yield (data, None) if kind == compression else (b"", self.one(index))

    def part(self, which: slice | NDArray[np.bool_]) -> "PackedBlock":
        """See `Block.part`."""
        made = PackedBlock(self.packed.part(which), self._unpack, self.numbers[which], self.times[which])
        if self._frames is not None:
            made.frames = self._frames[which]
        return made

    def copy(self) -> "PackedBlock":
        """See `Block.copy`: pixels where they are unpacked; bytes never change."""
        made = PackedBlock(self.packed, self._unpack, self.numbers.copy(), self.times.copy())
        if self._frames is not None:
            made.frames = self._frames.copy()
        return made
