"""Frames on their way through a device: copied to it, computed there, and what is wanted copied back.

All is enqueued and nothing waited for: while one piece is computed the next is copied, and results of the one before
come back. The frames of a flow are copied once (`Upload`), however many kernels read them. Rings of `SLOTS` pieces, of
the frames and of what each kernel makes, are all the memory that is used, on the device and here.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided

from lima2cli.dataclass import dataclass
from lima2cli.frames import Array
from lima2cli.gpu.devices import Device
from lima2cli.kernels.opencl import GROUP, ROW, SLOTS, ChainSource, SumsSource, piece_frames
from lima2cli.kernels.statistics import Sums


@dataclass(frozen=True, eq=False)
class There:
    """Frames on a device, once ``event`` is over: in a buffer from pixel ``first``, one ``stride`` after another."""

    buffer: Any
    first: int
    stride: int
    event: Any


class Room:
    """Memory of the device for a piece of frames; kernels read what is there until ``after`` is over."""

    def __init__(self) -> None:
        self.buffer: Any = None
        self.size = 0
        self.after: list[Any] = []


class Load:
    """Some frames of a block, for kernels on a device: those of ``part``.

    borrowed  they are there already, in memory of the kernel that made them
    """

    borrowed = False

    def __init__(self, part: slice) -> None:
        self.part, self.count = part, part.stop - part.start

    def there(self) -> There | None:
        """Return where they are, or will be: the copy is enqueued when there is room. None = there is none yet.

        Raises:
            RuntimeError: the device has failed, or has not the memory.
        """
        raise NotImplementedError


class Source(Protocol):
    """The frames that one kernel on a device reads."""

    def take(self, frames: Array, memory: "Made | None") -> Sequence[Load]:
        """Return the loads of the next block (n, height, width); ``memory``: where it was made, on a device."""
        ...

    def enqueued(self, load: Load, work: Sequence[Any]) -> None:
        """Note that all that the kernel does with a load is enqueued; ``work`` are the events."""
        ...

    def leave(self) -> None:
        """Read nothing more, also of what was taken."""
        ...


class _Uploaded(Load):
    def __init__(self, upload: "Upload", frames: Array, part: slice, readers: set["Reader"]) -> None:
        super().__init__(part)
        self._upload, self._frames = upload, frames[part]
        self._there: There | None = None
        self._room: Room | None = None
        self.waited_for, self.work = set(readers), list[Any]()

    def there(self) -> There | None:
        """See `Load.there`."""
        if self._there is None and (room := self._upload.room()) is not None:
            self._room, self._there = room, self._upload.copied(self._frames, room)
        return self._there

    def read(self, reader: "Reader", work: Sequence[Any]) -> None:
        """Note that a reader needs no more of it than ``work``; after the last one its room is free."""
        self.work += work
        self.waited_for.discard(reader)
        if not self.waited_for and self._room is not None:
            self._upload.give_back(self._room, self.work)
            self._room = None


class Upload:
    """The frames of a flow, (n, height, width), on their way to a device: once, for all that read them there.

    A piece has a room of a ring. It is free when all readers have enqueued what they do with it: the device begins the
    next copy there when they have done it.
    """

    def __init__(self, device: Device, shape: tuple[int, int], dtype: str) -> None:
        self.most = piece_frames(math.prod(shape) * np.dtype(dtype).itemsize)
        self.device = device
        self._free = deque(Room() for _ in range(SLOTS))
        self.readers: set[Reader] = set()
        self.loads: dict[int, Sequence[_Uploaded]] = {}

    def reader(self) -> "Reader":
        """Return one more reader; before the first block."""
        reader = Reader(self)
        self.readers.add(reader)
        return reader

    def divided(self, number: int, frames: Array) -> Sequence["_Uploaded"]:
        """Return the loads of a block by its number; all readers get the same."""
        if number not in self.loads:
            self._forget()
            cuts = range(0, len(frames), self.most)
            parts = [slice(first, min(first + self.most, len(frames))) for first in cuts]
            self.loads[number] = [_Uploaded(self, frames, part, self.readers) for part in parts]
        return self.loads[number]

    def _forget(self) -> None:
        for number, loads in list(self.loads.items()):
            if not any(load.waited_for for load in loads):
                del self.loads[number]

    def room(self) -> Room | None:
        """Return a room that is free."""
        return self._free.popleft() if self._free else None

    def give_back(self, room: Room, after: Sequence[Any]) -> None:
        """Take back a room that is free ``after`` these events."""
        room.after = list(after)
        self._free.append(room)

    def copied(self, frames: Array, room: Room) -> There:
        """Enqueue the copy of frames to a room."""
        import pyopencl as cl

        data, stride = spanned(frames)
        with self.device.named():
            if room.size < data.nbytes:
                room.buffer, room.size = self.device.buffer(data.nbytes), data.nbytes
            event = cl.enqueue_copy(self.device.up, room.buffer, data, is_blocking=False, wait_for=room.after)
            self.device.up.flush()
        room.after = []
        return There(room.buffer, 0, stride, event)


class Reader:
    """One of those that read an upload, see `Source`."""

    def __init__(self, upload: Upload) -> None:
        self._upload, self._blocks = upload, 0

    def take(self, frames: Array, memory: "Made | None") -> Sequence[Load]:
        """See `Source.take`."""
        self._blocks += 1
        return self._upload.divided(self._blocks, frames)

    def enqueued(self, load: Load, work: Sequence[Any]) -> None:
        """See `Source.enqueued`."""
        assert isinstance(load, _Uploaded)
        load.read(self, work)

    def leave(self) -> None:
        """See `Source.leave`."""
        self._upload.readers.discard(self)
        for loads in self._upload.loads.values():
            for load in loads:
                if self in load.waited_for:
                    load.read(self, ())


class Slot:
    """Memory of a piece: ``made`` on the device, ``frames`` (most, height, width) here, sums in both."""

    def __init__(self, device: Device, chain: ChainSource, sums: Sequence[SumsSource], makes: bool, most: int) -> None:
        self.frames: Array = np.empty((most if makes else 0, *chain.shape), chain.target)
        self.made = device.buffer(self.frames.nbytes) if makes else None
        self.sums = [{key: np.empty((most, len(one.tiles)), dtype) for key, dtype in one.keys.items()} for one in sums]
        self.sums_there = [{key: device.buffer(array.nbytes) for key, array in one.items()} for one in self.sums]


class Made:
    """Frames (n, height, width) that a kernel has made on a device, and where they come back, if they do."""

    def __init__(self, here: Array, buffer: Any, event: Any, comes_back: bool) -> None:
        self._here, self._buffer, self._event, self._comes_back = here, buffer, event, comes_back

    def where(self, frames: Array) -> There:
        """Return where some of them, consecutive ones, are on the device."""
        apart: int = frames.ctypes.data - self._here.ctypes.data
        return There(self._buffer, apart // self._here.itemsize, math.prod(self._here.shape[1:]), self._event)

    def last(self, device: Device, frames: Array) -> Array | None:
        """Return a copy of the last of some frames (height, width), which waits for the device; None = it is here."""
        import pyopencl as cl

        if self._comes_back:
            return None
        frame: Array = np.empty_like(frames[-1])
        offset = self.where(frames[-1:]).first * self._here.itemsize
        with device.named():
            cl.enqueue_copy(device.down, frame, self._buffer, src_offset=offset, wait_for=[self._event])
        return frame


class _Borrowed(Load):
    borrowed = True

    def __init__(self, frames: Array, memory: Made) -> None:
        super().__init__(slice(0, len(frames)))
        self._there = memory.where(frames)

    def there(self) -> There:
        """See `Load.there`."""
        return self._there


class Borrower:
    """A kernel that reads what another has made, where it is on the device; see `Source`."""

    def take(self, frames: Array, memory: Made | None) -> Sequence[Load]:
        """See `Source.take`."""
        assert memory is not None, "what was made on a device has been copied"
        return [_Borrowed(frames, memory)]

    def enqueued(self, load: Load, work: Sequence[Any]) -> None:
        """See `Source.enqueued`: their memory is held until the piece is done."""

    def leave(self) -> None:
        """See `Source.leave`."""


class Piece:
    """A piece that is under way in a slot: the frames of ``load``. ``work`` are the events of its kernels."""

    def __init__(self, slot: Slot, load: Load, came: Any, work: Sequence[Any], ends: Sequence[Any], back: bool) -> None:
        self.slot, self.load, self.count, self.work, self._came, self._back = slot, load, load.count, work, came, back
        self._ends = [came, *work, *ends]

    @property
    def copied(self) -> bool:
        """Return whether the memory that the frames came from is not read any more: they are on the device, or done.

        Raises:
            RuntimeError: the device failed.
        """
        return self.done if self.load.borrowed else _is_done(self._came)

    @property
    def done(self) -> bool:
        """Return whether all results are there. Raises as `copied`."""
        while self._ends and _is_done(self._ends[-1]):
            self._ends.pop()
        return not self._ends

    @property
    def spent_ns(self) -> int:
        """Return for how long the device was at work with its kernels; of a piece that is done."""
        return sum(event.profile.end - event.profile.start for event in self.work)

    @property
    def frames(self) -> Array:
        """Return the frames that were made, (count, height, width), in memory of the slot; not filled where they do not
        come back.
        """
        return self.slot.frames[: self.count]

    @property
    def made(self) -> Made:
        """Return the frames that were made, where they are on the device."""
        return Made(self.slot.frames, self.slot.made, self.work[0], self._back)


def _is_done(event: Any) -> bool:
    status: int = event.command_execution_status
    if status < 0:
        raise RuntimeError(f"the device has failed (OpenCL error {status})")
    return status == 0  # CL_COMPLETE


class Pipe:
    """The pipe of one chain, for loads of at most ``most`` frames of ``shape`` (height, width).

    ``makes``: frames are made, for other kernels there;  ``back``: these are copied back, too

    Raises:
        RuntimeError: the device does not take the program, or has not the memory.
    """

    def __init__(
        self,
        device: Device,
        chain: ChainSource,
        sums: Sequence[SumsSource],
        *,
        makes: bool,
        shape: tuple[int, int],
        most: int,
        back: bool = True,
    ) -> None:
        import pyopencl as cl

        self.device, self._chain, self._sums, self._back = device, chain, sums, makes and back
        program = device.program(chain.text + (chain.kernel if makes else "") + "".join(one.text for one in sums))
        self._make = cl.Kernel(program, "make") if makes else None
        self._images = [device.buffer(image.nbytes, image) for image in chain.images]
        self._kernels = [cl.Kernel(program, one.kernel) for one in sums]
        self._tables = [
            [device.buffer(array.nbytes, array) for array in (one.tiles, one.masks, one.places)] for one in sums
        ]
        self._free = deque(Slot(device, chain, sums, makes, most) for _ in range(SLOTS))
        self._warm(shape)

    def _warm(self, shape: tuple[int, int]) -> None:
        """Run all kernels once: some devices compile them when they are first enqueued."""
        upload = Upload(self.device, shape, self._chain.source.name)
        (load,) = upload.reader().take(np.zeros((1, *shape), self._chain.source), None)
        piece = self.submit(load)
        for queue in (self.device.up, self.device.work, self.device.down):
            queue.finish()
        self.give_back(piece.slot)

    @property
    def free(self) -> bool:
        """Return whether another load can be submitted."""
        return bool(self._free)

    def give_back(self, slot: Slot) -> None:
        """Take back a slot whose results are not read any more."""
        self._free.append(slot)

    def submit(self, load: Load) -> Piece:
        """Enqueue all that is to be done with a load that is there; a slot must be free.

        Raises:
            RuntimeError: the device has failed, or has not the memory.
        """
        there = load.there()
        assert there is not None
        with self.device.named():
            return self._submitted(load, there)

    def _submitted(self, load: Load, there: There) -> Piece:
        device, slot, count = self.device, self._free.popleft(), load.count
        frames = there.buffer, np.uint64(there.first), np.uint64(there.stride)
        work, ends = list[Any](), list[Any]()
        if self._make is not None:
            height, width = self._chain.shape
            grid = (-(-width // ROW) * ROW, height, count)
            made = self._make(device.work, grid, (ROW, 1, 1), *frames, slot.made, *self._images, wait_for=[there.event])
            work.append(made)
            if self._back:
                ends.append(self._copy_back(slot.frames[:count], slot.made, made))
        for i, kernel in enumerate(self._kernels):
            sums_there, here = slot.sums_there[i], slot.sums[i]
            tiles = len(self._sums[i].tiles)
            if not tiles:  # no pixel of any region counts
                continue
            summed = kernel(
                device.work, (tiles * GROUP, count), (GROUP, 1), *frames, *self._tables[i],
                *sums_there.values(), *self._images, wait_for=[there.event],
            )  # fmt: skip
            work.append(summed)
            ends += [self._copy_back(here[key][:count], sums_there[key], summed) for key in here]
        for queue in (device.work, device.down):
            queue.flush()
        return Piece(slot, load, there.event, work, ends, self._back)

    def sums(self, piece: Piece, i: int) -> list[Sums]:
        """Return the sums of each region of a node, arrays (count,), of a piece that is done."""
        return self._sums[i].sums(piece.count, piece.slot.sums[i])

    def _copy_back(self, here: Array, there: Any, after: Any) -> Any:
        import pyopencl as cl

        return cl.enqueue_copy(self.device.down, here, there, is_blocking=False, wait_for=[after])


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
