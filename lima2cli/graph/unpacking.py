"""Frames that come as the detector has compressed them, unpacked by the threads of a receiver."""

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lima2cli.errors import StreamProblem
from lima2cli.files.compression import blocks_are_whole, unpack
from lima2cli.frames import Array
from lima2cli.packed import Packed
from lima2cli.threads import team

MOST_ROOMS = 4
"""Arrays that are kept for the next frames."""


class Unpacker:
    """Unpacks frames (height, width) of a dtype, into memory that is used again once it is given back."""

    def __init__(self, shape: tuple[int, int], dtype: str, threads: int) -> None:
        self._shape, self._dtype, self._team = shape, np.dtype(dtype), team(threads)
        self._rooms: list[Array] = []

    def unpack(self, packed: Packed) -> tuple[Array, NDArray[np.bool_]]:
        """Return the frames (n, height, width), and which of them are damaged (n,): those hold anything.

        The frames are valid until they are given back.
        """
        count = len(packed.data)
        room = next((room for room in self._rooms if len(room) >= count), None)
        if room is None:
            room = np.empty((count, *self._shape), self._dtype)
        else:
            self._rooms = [other for other in self._rooms if other is not room]
        frames = room[:count]
        whole = self._team.each([partial(self._one, packed, index, frames[index]) for index in range(count)])
        return frames, ~np.array(whole, bool)

    def damaged(self, packed: Packed, compression: str) -> NDArray[np.bool_]:
        """Return which frames are damaged (n,); of those of this compression only whether all blocks are there."""
        size, itemsize = math.prod(self._shape) * self._dtype.itemsize, self._dtype.itemsize
        spare = np.empty(self._shape, self._dtype)
        whole = [
            blocks_are_whole(kind, itemsize, data, size) if kind == compression else self._one(packed, index, spare)
            for index, (kind, data) in enumerate(zip(packed.compressions, packed.data, strict=True))
        ]
        return ~np.array(whole, bool)

    def frames(self, packed: Packed) -> Array:
        """Return the frames (n, height, width), read-only, in memory of their own.

        Raises:
            StreamProblem: one of them is damaged.
        """
        frames = np.empty((len(packed.data), *self._shape), self._dtype)
        if not all(self._one(packed, index, frame) for index, frame in enumerate(frames)):
            raise StreamProblem("a frame is damaged: it can't be unpacked")
        frames.flags.writeable = False
        return frames

    def give_back(self, frames: Array) -> None:
        """Take the memory of frames that nobody reads any more."""
        room = frames if frames.base is None else frames.base
        if len(self._rooms) < MOST_ROOMS:
            self._rooms.append(room)

    def _one(self, packed: Packed, index: int, out: Array) -> bool:
        """Return whether a frame could be unpacked into ``out``; one without bytes could not."""
        try:
            unpack(packed.compressions[index], packed.data[index], out)
        except ValueError:
            return False
        return True
