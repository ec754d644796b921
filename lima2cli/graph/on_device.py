"""A fused kernel at work on a device of OpenCL: it keeps what it is pushed until that has been copied there, and gives
what comes back.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field
from functools import partial
from typing import cast

from lima2cli.dataclass import dataclass
from lima2cli.frames import Array, Block, Files
from lima2cli.gpu.pipe import Borrower, Load, Piece, Pipe, Source, Upload
from lima2cli.graph.fused import stage_of, stage_part
from lima2cli.graph.protocol import Arrival, BlockFailed, Lease, Operator, PartFailed, Result
from lima2cli.kernels.chain import Chain, Recipe, settle
from lima2cli.kernels.strips import whole
from lima2cli.nodes.base import Partial, Reduce, RegionReducer, StripReducer
from lima2cli.plan.ir import Kernel, Step
from lima2cli.plan.lowering import lower_kernel, recipe_of

MOST_WAITING = 2
"""Pieces that wait for a slot before the flow has to rest."""


@dataclass(slots=True)
class _Task:
    """A part of an arrival, up to frame ``last``, or one without frames; ``ends``: it is the last part.

    ``reducers`` are those of its time, with which of the sums of the device is theirs, -1 = they read frames.
    """

    arrival: Arrival
    block: Block | None
    last: int
    ends: bool
    pipe: Pipe | None = None
    load: Load | None = None
    piece: Piece | None = None
    reducers: Mapping[str, tuple[int, StripReducer]] = field(default_factory=dict)


class DeviceLease(Lease):
    """A hold on the slot of a piece, which others read on the device or here."""

    def __init__(self, pipe: Pipe, piece: Piece) -> None:
        super().__init__(partial(pipe.give_back, piece.slot))
        self.made, self._device = piece.made, pipe.device

    def last_frame(self, frames: Array) -> Array | None:
        """See `Lease.last_frame`."""
        return self.made.last(self._device, frames)


class BoundOnDevice(Operator):
    """A kernel on a device. What it gives begins a pass of its own.

    upload   of the flow that its frames come from;  borrows  it reads what a kernel on the device has made of that
    back     the frames that it makes are copied back

    Raises:
        RuntimeError: the device does not take it.
    """

    always = waits = True

    def __init__(
        self,
        kernel: Kernel,
        steps: Mapping[str, Step],
        files: Files,
        upload: Upload,
        reducers: Mapping[str, StripReducer],
        *,
        borrows: bool = False,
        back: bool = True,
    ) -> None:
        super().__init__(kernel.operator)
        self._kernel, self._steps, self._upload, self._back = kernel, dict(steps), upload, back
        self._makes, self._reducers = bool(kernel.makes), dict(reducers)
        self._pipe, self._summed = self._piped(self._recipe(kernel.maps, steps, files), reducers)
        self._source: Source = Borrower() if borrows else upload.reader()
        self._unsent: deque[_Task] = deque()
        self._order: deque[_Task] = deque()
        self._stopped = False
        self._looks: dict[str, Chain] = {}
        self._files = files

    @property
    def nodes(self) -> Collection[str]:
        """See `Operator`."""
        return () if self._stopped else (self.name, *self._reducers)

    @property
    def label(self) -> str:
        """See `Operator`."""
        return ", ".join(self._kernel.maps) or self.name

    def _recipe(self, maps: Sequence[str], steps: Mapping[str, Step], files: Files) -> Recipe:
        """Return the recipe of the first maps of the kernel. Raises `PartFailed` where one can't be bound."""
        return recipe_of(maps, steps[self._kernel.nodes[0]].before, lambda name: stage_of(steps[name], files))

    def _piped(self, recipe: Recipe, reducers: Mapping[str, StripReducer]) -> tuple[Pipe, tuple[str, ...]]:
        lowered = lower_kernel(self._kernel, self._steps, recipe, reducers)
        shape, upload = self._steps[self._kernel.nodes[0]].before.shape, self._upload
        pipe = Pipe(
            upload.device, lowered.chain, lowered.sums, makes=lowered.makes, shape=shape, most=upload.most,
            back=self._back,
        )  # fmt: skip
        return pipe, lowered.summed

    def push(self, arrival: Arrival) -> None:
        """See `Operator.push`: its memory is held until the device has a copy of the frames."""
        block, pipe = arrival.block, self._pipe
        if block is None or self._stopped:
            self._order.append(_Task(arrival, None, arrival.last, True))
            arrival.done()
            return
        made = arrival.hold.made if isinstance(arrival.hold, DeviceLease) else None
        loads = self._source.take(block.frames, made)
        for load in loads:
            part, ends = block.part(load.part), load is loads[-1]
            task = _Task(arrival, part, arrival.last if ends else int(part.numbers[-1]), ends, pipe, load)
            task.reducers = {name: (self._place(name), reducer) for name, reducer in self._reducers.items()}
            self._order.append(task)
            self._unsent.append(task)

    def _place(self, name: str) -> int:
        """Return which of the sums on the device are a reduction's, -1 = none: it reads frames."""
        return self._summed.index(name) if name in self._summed else -1

    def poll(self) -> Result | None:
        """See `Operator.poll`.

        Raises:
            BlockFailed: the device failed; once.
            PartFailed: a reduction failed: once more without it.
        """
        if not self._order:
            return None
        try:
            self._send()
            for task in self._order:
                if task.piece is None:
                    break
                if task.ends and task.arrival.hold is not None and task.piece.copied:
                    task.arrival.done()
            return self._next()
        except PartFailed:
            raise
        except Exception as error:
            block = self._order[0].block
            self._stop()
            raise BlockFailed(None if block is None else int(block.numbers[0]), error) from error

    def _send(self) -> None:
        while self._unsent:
            task = self._unsent[0]
            assert task.pipe is not None
            assert task.load is not None
            if not task.pipe.free or task.load.there() is None:
                return
            self._unsent.popleft()
            task.piece = task.pipe.submit(task.load)
            self._source.enqueued(task.load, task.piece.work)

    def _next(self) -> Result | None:
        task = self._order[0]
        if task.block is None:
            self._order.popleft()
            return Result(task.last)
        if task.piece is None or not task.piece.done:
            return None
        if task.ends:
            task.arrival.done()
        result = self._result(task, task.block, task.piece)
        self._order.popleft()
        return result

    def _result(self, task: _Task, block: Block, piece: Piece) -> Result:
        """Return what a piece that is done gives; its slot is free when its frames are not read any more."""
        pipe = task.pipe
        assert pipe is not None
        frames = piece.frames if piece.slot.made is not None else block.frames
        made = Block(frames, block.numbers.copy(), block.times.copy())
        rows, spent_ns = self._rows(task, pipe, piece, made), piece.spent_ns
        if self._makes:
            return Result(task.last, made, rows, rows, DeviceLease(pipe, piece), spent_ns)
        pipe.give_back(piece.slot)
        return Result(task.last, None, rows, rows, None, spent_ns)

    def _rows(self, task: _Task, pipe: Pipe, piece: Piece, block: Block) -> dict[str, Partial]:
        """Return what the reducers make of a piece: of sums of the device, or of the frames that came back."""
        rows, received_ns = dict[str, Partial](), task.arrival.received_ns
        others = {name: one for name, (place, one) in task.reducers.items() if place < 0 and name in self._reducers}
        if others:
            height, width = block.frames.shape[1:]
            chain = Chain(settle([], block.frames.dtype.name, height, width), keeps=False)
            rows |= stage_part(others, [(whole((height, width)), chain)], block, None, received_ns)
        for name, (place, one) in task.reducers.items():
            if place >= 0 and name in self._reducers:
                rows[name] = cast(RegionReducer, one).of_sums(block, pipe.sums(piece, place))
        return rows

    @property
    def idle(self) -> bool:
        """See `Operator`."""
        return not self._order

    @property
    def full(self) -> bool:
        """See `Operator`."""
        return len(self._unsent) >= MOST_WAITING

    def give_up(self, gone: Collection[str]) -> None:
        """See `Operator`."""
        for name in self._reducers.keys() & gone:
            del self._reducers[name]
        if self.name in gone:
            self._stop()

    def _stop(self) -> None:
        """Go on with nothing."""
        self._stopped = True
        self._unsent.clear()
        self._source.leave()
        for task in self._order:
            task.arrival.done()
            task.block = None

    def rebind(self, step: Step, files: Files) -> Callable[[], None] | None:
        """See `Operator.rebind`: one of the maps; what follows is computed by another program."""
        if step.name not in self._steps or step.name not in self._kernel.nodes:
            return None
        steps = self._steps | {step.name: step}
        reducers = dict(self._reducers)
        if step.name in reducers:
            reducers[step.name] = cast(StripReducer, cast(Reduce, step.node).bind(step.given(files)))
        made = self._piped(self._recipe(self._kernel.maps, steps, files), reducers)

        def put() -> None:
            self._steps, self._reducers, self._looks = steps, reducers, {}
            self._pipe, self._summed = made

        return put

    def last_frame(self, name: str, block: Block) -> Array | None:
        """See `Operator.last_frame`: the maps up to this one are computed here, for one frame more."""
        if name not in self._kernel.maps:
            return None
        if name not in self._looks:
            maps = self._kernel.maps[: self._kernel.maps.index(name) + 1]
            self._looks[name] = Chain(self._recipe(maps, self._steps, self._files))
        frame: Array = self._looks[name](block.frames[-1:])[0]
        return frame.copy()

    def leave(self) -> None:
        """See `Operator.leave`."""
        self._stop()
        self._order.clear()
