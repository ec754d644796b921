"""Sources of the pixels of one module of one dataset: a rendered pool, a formula, or a recording."""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lima2cli.errors import StateError
from lima2cli.frames import Array, DatasetInfo, FrameReader
from lima2cli.geometry import Rect

BLOCK_BYTES = 8 << 20
"""Bytes of frames that are rendered or read at once, at least one frame."""

RECORDING_BYTES = 64 << 20
"""Bytes of the blocks of a recording that are kept for other modules and flows; at least two are kept."""

GROUP_BYTES = 256 << 20
"""Maximal bytes of frames that, asked for at once, are read at once, so that all modules find them."""


class PixelSource(Protocol):
    """Frames of one module of one dataset; base of all sources."""

    def get(self, numbers: Sequence[int]) -> Array:
        """Return (n, height, width) for the leading n >= 1 numbers, as `Detector.get_frames` has it."""
        ...

    def missing(self, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """Return which of these frames are missing, as `Detector.missing` has it."""
        return None


def leading(numbers: Sequence[int], period: int) -> range:
    """Return places, in a cycle of ``period`` frames, of the leading numbers up to where the cycle starts again."""
    place = int(numbers[0]) % period
    if isinstance(numbers, range):
        step = numbers.step % period
    else:
        step = (int(numbers[1]) - int(numbers[0])) % period if len(numbers) > 1 else 1
    if step == 0:
        return range(place, place + 1)
    count = min(len(numbers), -(-(period - place) // step))
    return range(place, place + (count - 1) * step + 1, step)


class Pool(PixelSource):
    """Frames rendered beforehand, (period, height, width); frame f is number ``f % period``, handed out uncopied.

    ``absent``, (period,) bool: those that are missing; None = none is.
    """

    def __init__(self, frames: Array, absent: NDArray[np.bool_] | None = None) -> None:
        self.frames, self.absent = frames, absent
        frames.setflags(write=False)

    def get(self, numbers: Sequence[int]) -> Array:
        """See `PixelSource`."""
        places = leading(numbers, len(self.frames))
        return self.frames[places.start : places.stop : places.step]

    def missing(self, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """See `PixelSource`."""
        return None if self.absent is None else self.absent[np.asarray(numbers, np.int64) % len(self.frames)]


class Counter(PixelSource):
    """``(7919*f + 104729*d + y*width + x) mod 2**bits``: every pixel of every frame differs from its neighbours."""

    def __init__(self, dataset: DatasetInfo, image: Rect, module: Rect) -> None:
        dtype = np.dtype(dataset.dtype)
        self._mask = 2**dataset.bits - 1
        rows = np.arange(module.y, module.bottom, dtype=np.uint64)[:, np.newaxis] * np.uint64(image.width)
        columns = np.arange(module.x, module.right, dtype=np.uint64) + np.uint64(104729 * dataset.index)
        self._first: Array = ((rows + columns) & np.uint64(self._mask)).astype(dtype)
        self._narrow = dataset.bits < 8 * dtype.itemsize  # otherwise unsigned arithmetic wraps by itself
        self._out: Array = np.empty((max(1, min(256, BLOCK_BYTES // self._first.nbytes)), *self._first.shape), dtype)

    def get(self, numbers: Sequence[int]) -> Array:
        """See `PixelSource`."""
        out = self._out[: len(numbers)]
        for frame, number in zip(out, numbers, strict=False):
            np.add(self._first, self._first.dtype.type(7919 * int(number) & self._mask), out=frame)
        if self._narrow:
            np.bitwise_and(out, self._first.dtype.type(self._mask), out=out)
        return out


class Recording:
    """Full frames of a file, read ahead in blocks, which all modules that a rank serves share.

    Memory that it returned is never written to again, so that it stays valid as long as it is held.
    """

    def __init__(
        self, reader: FrameReader, dtype: str, largest: int | None = None, loop: bool = False, gap: float = 0
    ) -> None:
        """Open a recording.

        largest  the value above which pixels are cut, None for none
        gap      value of frames that are missing
        """
        self._reader, self._gap = reader, gap
        self._count = reader.info.shape[0]
        self._dtype, self._largest, self._loop = np.dtype(dtype), largest, loop
        self._frame_bytes = reader.info.shape[1] * reader.info.shape[2] * self._dtype.itemsize
        self._blocks: deque[tuple[range, Array]] = deque()

    def get(self, numbers: Sequence[int]) -> Array:
        """Return (n, image height, image width), as `PixelSource`.

        Raises:
            StateError: a frame is beyond the end.
        """
        if not self._loop and int(numbers[0]) >= self._count:
            raise StateError(f"frame {numbers[0]} was asked for, and {self._count} are recorded")
        places = leading(numbers, self._count)
        for block, frames in self._blocks:
            if places.start in block and (len(places) == 1 or places.step % block.step == 0):
                step = max(1, places.step // block.step)
                return frames[block.index(places.start) :: step][: len(places)]
        return self._read_ahead(places)[: len(places)]

    def missing(self, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """Return which of these frames are missing, (len(numbers),) bool; None = none of them. Asked after `get`."""
        return self._reader.missing((np.asarray(numbers, np.int64) % self._count).tolist())

    def _read_ahead(self, places: range) -> Array:
        asked = min(len(places), GROUP_BYTES // self._frame_bytes)
        ahead = range(places.start, self._count, places.step)[: max(1, asked, BLOCK_BYTES // self._frame_bytes)]
        frames = self._reader.read(ahead)
        if self._largest is not None:
            frames = np.minimum(frames, frames.dtype.type(self._largest))
        frames = frames.astype(self._dtype, copy=False)
        if (absent := self._reader.missing(ahead)) is not None:
            frames[absent] = self._gap
        frames.setflags(write=False)
        while len(self._blocks) > 1 and sum(kept.nbytes for _, kept in self._blocks) + frames.nbytes > RECORDING_BYTES:
            self._blocks.popleft()
        self._blocks.append((ahead, frames))
        return frames


class RecordingPart(PixelSource):
    """The rectangle of a recording that one module covers, uncopied."""

    def __init__(self, recording: Recording, image: Rect, module: Rect) -> None:
        self._recording = recording
        self._index = (slice(None), *module.within(image))

    def get(self, numbers: Sequence[int]) -> Array:
        """See `PixelSource`."""
        return self._recording.get(numbers)[self._index]

    def missing(self, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """See `PixelSource`."""
        return self._recording.missing(numbers)
