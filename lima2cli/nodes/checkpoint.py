"""Node `checkpoint`: notes when frames were acquired and received.

Columns, all float64 in seconds:

detector_time   the detector's time of the frame, since the epoch (1970-01-01 UTC); float64 resolves 0.24 us there
receive_time    when the receiver was notified of it, since the epoch; of several that get parts of it, the last
latency         receive_time - detector_time, from the nanosecond clocks, before rounding; negative where clocks differ

``every: n`` keeps the frames whose number is a multiple of n, whatever receiver they are on. Pixels are not read.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Integer, param
from lima2cli.frames import Block, FrameSpec, TableSpec
from lima2cli.geometry import Rect
from lima2cli.nodes.base import Inputs, Partial, Reduce, Reducer, node

COLUMNS = ("detector_time", "receive_time", "latency")


@node("checkpoint")
class Checkpoint(Reduce):
    """Logs when frames were acquired and received."""

    parts: ClassVar[bool] = True

    every: int = param("Log the frames whose number is a multiple of this.", Integer(1), 1)

    def infer(self, inputs: Inputs) -> TableSpec:
        """See `Node.infer`."""
        return TableSpec(dict.fromkeys(COLUMNS, "float64"), "latency", dict.fromkeys(COLUMNS, "s"))

    def reads(self, spec: FrameSpec) -> Sequence[Rect]:
        """See `Reduce.reads`: no pixel."""
        return ()

    def bind(self, inputs: Inputs) -> Reducer:
        """See `Reduce.bind`."""
        return _Clock(self.every)

    def merge(self, one: Partial, other: Partial) -> Partial:
        """See `Reduce.merge`: a frame is there when its last part is."""
        return one | {"received_ns": np.maximum(one["received_ns"], other["received_ns"])}

    def finish(self, partial: Partial) -> Mapping[str, NDArray[Any]]:
        """See `Reduce.finish`."""
        detector, received = partial["detector_ns"], partial["received_ns"]
        return {
            "frame_number": partial["frame_number"],
            "detector_time": detector / 1e9,
            "receive_time": received / 1e9,
            "latency": (received - detector).view(np.int64) / 1e9,  # the difference modulo 2**64 is signed
        }


class _Clock:
    """See `Reducer`."""

    def __init__(self, every: int) -> None:
        self.every = every

    def step(self, block: Block, received_ns: int) -> Partial:
        """Partial: ``frame_number``, ``detector_ns``, ``received_ns``, all uint64."""
        numbers, times = block.numbers, block.times
        if self.every > 1:
            chosen = numbers % np.uint64(self.every) == 0
            numbers, times = numbers[chosen], times[chosen]
        received = numbers.copy()
        received.fill(received_ns)
        return {"frame_number": numbers.copy(), "detector_ns": times.copy(), "received_ns": received}
