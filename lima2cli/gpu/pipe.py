"""Frames on their way through a device: copied to it, computed there, and what is wanted copied back.

All is enqueued and nothing waited for: while one piece is computed the next is copied, and results of the one before
come back. A ring of `SLOTS` pieces is all the memory that is used, on the device and here.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from lima2cli.frames import Array
from lima2cli.gpu.devices import Device
from lima2cli.kernels.opencl import GROUP, ROW, SLOTS, ChainSource, SumsSource, piece_frames
from lima2cli.kernels.statistics import Sums


class Slot:
    """Memory of a piece: ``raw`` and ``made`` on the device, ``frames`` (most, height, width) here, sums in both."""

    def __init__(self, device: Device, chain: ChainSource, sums: Sequence[SumsSource], makes: bool, most: int) -> None:
        self.raw: Any = None
        self.raw_bytes = 0
        self.frames: Array = np.empty((most if makes else 0, *chain.shape), chain.target)
        self.made = device.buffer(self.frames.nbytes) if makes else None
        self.sums = [{key: np.empty((most, len(one.tiles)), dtype) for key, dtype in one.keys.items()} for one in sums]
        self.sums_there = [{key: device.buffer(array.nbytes) for key, array in one.items()} for one in self.sums]


class Piece:
    """A piece that is under way in a slot: ``count`` frames. ``work`` are the events of its kernels."""

    def __init__(self, slot: Slot, count: int, copied: Any, work: Sequence[Any], ends: Sequence[Any]) -> None:
        self.slot, self.count, self._copied, self._work = slot, count, copied, work
        self._ends = [copied, *ends]

    @property
    def copied(self) -> bool:
        """Return whether the frames are on the device: their memory is not read any more.

        Raises:
            RuntimeError: the device failed.
        """
        return _is_done(self._copied)

    @property
    def done(self) -> bool:
        """Return whether all results are there. Raises as `copied`."""
        while self._ends and _is_done(self._ends[-1]):
            self._ends.pop()
        return not self._ends

    @property
    def spent_ns(self) -> int:
        """Return for how long the device was at work with its kernels; of a piece that is done."""
        return sum(event.profile.end - event.profile.start for event in self._work)

    @property
    def frames(self) -> Array:
        """Return the frames that were made, (count, height, width), in memory of the slot."""
        return self.slot.frames[: self.count]


def _is_done(event: Any) -> bool:
    status: int = event.command_execution_status
    if status < 0:
        raise RuntimeError(f"the device has failed (OpenCL error {status})")
    return status == 0  # CL_COMPLETE


class Pipe:
    """The pipe of one chain, for frames of ``shape`` (height, width); ``makes``: its frames are wanted here.

    Raises:
        RuntimeError: the device does not take the program, or has not the memory.
    """

    def __init__(
        self, device: Device, chain: ChainSource, sums: Sequence[SumsSource], *, makes: bool, shape: tuple[int, int]
    ) -> None:
        import pyopencl as cl

        self._device, self._chain, self._sums, self._makes = device, chain, sums, makes
        self._pixels = shape[0] * shape[1]
        self.most = piece_frames(self._pixels * chain.source.itemsize)
        program = device.program(chain.text + (chain.kernel if makes else "") + "".join(one.text for one in sums))
        self._make = cl.Kernel(program, "make") if makes else None
        self._images = [device.buffer(image.nbytes, image) for image in chain.images]
        self._kernels = [cl.Kernel(program, one.kernel) for one in sums]
        self._tables = [
            [device.buffer(array.nbytes, array) for array in (one.tiles, one.masks, one.places)] for one in sums
        ]
        self._free = deque(Slot(device, chain, sums, makes, self.most) for _ in range(SLOTS))
        self._warm(shape)

    def _warm(self, shape: tuple[int, int]) -> None:
        """Run all kernels once: some devices compile them when they are first enqueued."""
        piece = self.submit(np.zeros((1, *shape), self._chain.source))
        for queue in (self._device.up, self._device.work, self._device.down):
            queue.finish()
        self.give_back(piece.slot)

    @property
    def free(self) -> bool:
        """Return whether another piece can be submitted."""
        return bool(self._free)

    def give_back(self, slot: Slot) -> None:
        """Take back a slot whose results are not read any more."""
        self._free.append(slot)

    def submit(self, frames: Array) -> Piece:
        """Enqueue all that is to be done with frames (n, height, width), at most ``most``; a slot must be free.

        They are read until they are `Piece.copied`.

        Raises:
            RuntimeError: the device has failed, or has not the memory.
        """
        with self._device.named():
            return self._submitted(frames)

    def _submitted(self, frames: Array) -> Piece:
        import pyopencl as cl

        device, slot, count = self._device, self._free.popleft(), len(frames)
        data, stride = spanned(frames)
        if slot.raw_bytes < data.nbytes:
            slot.raw, slot.raw_bytes = device.buffer(data.nbytes), data.nbytes
        copied = cl.enqueue_copy(device.up, slot.raw, data, is_blocking=False)
        work, ends = list[Any](), list[Any]()
        if self._make is not None:
            height, width = self._chain.shape
            grid = (-(-width // ROW) * ROW, height, count)
            made = self._make(
                device.work, grid, (ROW, 1, 1), slot.raw, np.uint64(stride), slot.made, *self._images, wait_for=[copied]
            )
            work.append(made)
            ends.append(self._back(slot.frames[:count], slot.made, made))
        for i, kernel in enumerate(self._kernels):
            there, here = slot.sums_there[i], slot.sums[i]
            tiles = len(self._sums[i].tiles)
            if not tiles:  # no pixel of any region counts
                continue
            summed = kernel(
                device.work, (tiles * GROUP, count), (GROUP, 1), slot.raw, np.uint64(stride), *self._tables[i],
                *there.values(), *self._images, wait_for=[copied],
            )  # fmt: skip
            work.append(summed)
            ends += [self._back(here[key][:count], there[key], summed) for key in here]
        for queue in (device.up, device.work, device.down):
            queue.flush()
        return Piece(slot, count, copied, work, ends)

    def sums(self, piece: Piece, i: int) -> list[Sums]:
        """Return the sums of each region of a node, arrays (count,), of a piece that is done."""
        return self._sums[i].sums(piece.count, piece.slot.sums[i])

    def _back(self, here: Array, there: Any, after: Any) -> Any:
        import pyopencl as cl

        return cl.enqueue_copy(self._device.down, here, there, is_blocking=False, wait_for=[after])


def spanned(frames: Array) -> tuple[Array, int]:
    """Return the bytes from the first to the last of frames (n, height, width), and pixels from one to the next.

    They are a copy where frames are not in one piece each, or far from each other.
    """
    itemsize, frame_bytes = frames.itemsize, frames[0].nbytes
    stride = frames.strides[0] if len(frames) > 1 else frame_bytes
    if not frames[0].flags.c_contiguous or stride % itemsize or not frame_bytes <= stride <= 2 * frame_bytes:
        frames, stride = np.ascontiguousarray(frames), frame_bytes
    span = stride * (len(frames) - 1) + frame_bytes
    first = frames.reshape(len(frames), -1)[0, :1] if frames.flags.c_contiguous else frames[0].reshape(-1)[:1]
    return as_strided(first.view(np.uint8), (span,), (1,), writeable=False), stride // itemsize
