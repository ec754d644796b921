"""Node `histogram`: how many pixels of each frame lie in each of some bins of intensity.

    bin = floor((x - lo) * bins / (hi - lo))        lo <= x < hi

Columns, all uint32, in pixels:

counts   of each bin, a vector (frames, bins): bins are equal, closed below and open above
below    pixels with x < lo
above    pixels with x >= hi

Masked pixels don't count: those of the static mask, and of single frames NaN and invalid values. All others do, once:
counts, below and above add up to the valid pixels. Without `range` all values of uint8 and int8 are in it, so that
`histogram: {}` has a bin for each. Bins are computed in float64: exactly where pixels and limits are integers, and
(hi - lo) * bins and the pixels are below 2**53, else as exactly as float64 has the edges. A range of less than 2**17
integers is the fastest.

The second axis of the table's plot is `intensity`, the centres of the bins; `intensity_edges` are next to it. A
histogram of a whole run is the sum over its rows: `counts.sum(axis=0)`.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Integer, ListOf, Number, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, Block, FrameSpec, TableAxis, TableSpec
from lima2cli.kernels.masked import finder
from lima2cli.kernels.strips import tiles
from lima2cli.nodes.base import Inputs, Partial, Reduce, StripReducer, node

COLUMNS = ("counts", "below", "above")

FEW = 1024
"""Bins that frames of any size may have: more are refused where there are fewer pixels."""

LONGEST = 1 << 17
"""Longest table of places: 1 MiB."""

ROOM = 1 << 20
"""Bins of several frames that are counted together."""


@node("histogram")
class Histogram(Reduce):
    """Counts pixels by intensity."""

    strips: ClassVar[bool] = True
    parts: ClassVar[bool] = True

    bins: int = param("Number of bins.", Integer(1, 65536), 256)
    range: tuple[float, float] | None = param(
        "[lo, hi]: where the first bin begins and the last one ends; default: all values of uint8 and int8.",
        ListOf(Number(), 2, 2),
        None,
    )

    def infer(self, inputs: Inputs) -> TableSpec:
        """See `Node.infer`. Raises `NodeMisuse`: ``histogram-range``, ``histogram-bins``."""
        spec = inputs.spec
        low, high = self._limits(spec)
        height, width = (spec.whole or spec.view).shape
        if self.bins > max(FEW, height * width):
            message = f"{self.bins} bins are more than the pixels of a frame, {width} x {height}"
            raise NodeMisuse("histogram-bins", message, ("bins",), f"{FEW} are always allowed")
        edges = np.linspace(low, high, self.bins + 1)
        centres = (edges[1:] + edges[:-1]) / 2
        return TableSpec(
            dict.fromkeys(COLUMNS, "uint32"),
            "counts",
            dict.fromkeys(COLUMNS, "pixels"),
            {"counts": self.bins},
            {"counts": "pixels", "below": f"pixels below {low:.15g}", "above": f"pixels from {high:.15g} on"},
            axis=TableAxis("intensity", tuple(centres.tolist()), edges=tuple(edges.tolist())),
        )

    def _limits(self, spec: FrameSpec) -> tuple[float, float]:
        if self.range is None:
            if spec.dtype not in ("uint8", "int8"):
                help = "for example `range: [0, 1000]`"
                raise NodeMisuse("histogram-range", f"pixels of {spec.dtype} need a range of bins", (), help)
            limits = np.iinfo(spec.dtype)
            return float(limits.min), float(limits.max) + 1
        low, high = map(float, self.range)
        if not low < high:
            raise NodeMisuse("histogram-range", f"no pixel lies in bins from {low:g} to {high:g}", ("range",))
        return low, high

    def bind(self, inputs: Inputs) -> StripReducer:
        """See `Reduce.bind`."""
        return _Counts(inputs.spec, self.bins, *self._limits(inputs.spec))

    def merge(self, one: Partial, other: Partial) -> Partial:
        """See `Reduce.merge`."""
        return {name: one[name] + other[name] for name in COLUMNS} | {"frame_number": one["frame_number"]}

    def finish(self, partial: Partial) -> Mapping[str, NDArray[Any]]:
        """See `Reduce.finish`."""
        return partial


class _Counts:
    """See `StripReducer`.

    A pixel has a place: 0 is below, 1 is the first bin, ``bins`` + 1 is above, and the last one is of pixels that don't
    count. A table has the place of each integer: of all of 8 and 16 bits, else of those from ``least`` to ``most``,
    which stand for the rest. Without a table (floats, a long range) places are computed.
    """

    def __init__(self, spec: FrameSpec, bins: int, low: float, high: float) -> None:
        self.bins, self.low, self.high, self.places = bins, low, high, bins + 3
        self.dtype, self.mask = np.dtype(spec.dtype), spec.mask
        self.invalid = finder(spec.invalid, spec.dtype, nan=False)
        self.work, self.found = np.empty(0), np.empty(0, np.intp)
        self.table, self.least, self.most = self._table()
        self.counts = np.zeros((0, self.places), np.uint32)

    def _table(self) -> tuple[NDArray[np.intp] | None, int, int]:
        if self.dtype.kind == "f":
            return None, 0, 0
        limits = np.iinfo(self.dtype)
        least, most = int(limits.min), int(limits.max)
        if self.dtype.itemsize > 2:
            least = min(max(math.floor(self.low) - 1, least), most)
            most = max(min(math.ceil(self.high), most), least)
        if most - least > LONGEST:
            return None, least, most
        every = (np.arange(most - least + 1) + np.array(least, self.dtype)).astype(self.dtype)
        return self._computed(every, np.empty(every.shape, np.intp)), least, most

    def step(self, block: Block, received_ns: int) -> Partial:
        """Partial: the columns, and ``frame_number``."""
        count, height, width = block.frames.shape
        self.begin(count)
        with np.errstate(all="ignore"):
            for deep, rows in tiles(count, height, width):
                self.strip(block.frames[deep, rows], deep, rows, slice(0, width))
        return self.end(block, received_ns)

    def begin(self, frames: int) -> None:
        """See `StripReducer.begin`."""
        self.counts = np.zeros((frames, self.places), np.uint32)

    def strip(self, pixels: Array, frames: slice, rows: slice, columns: slice) -> None:
        """See `StripReducer.strip`."""
        masked = None if self.mask is None else self.mask[rows, columns]
        together = max(1, ROOM // self.places)
        for first in range(0, len(pixels), together):
            some = pixels[first : first + together]
            found = self._found(some)
            if masked is not None:
                np.copyto(found, self.places - 1, where=masked)
            found += np.arange(0, len(some) * self.places, self.places)[:, None, None]
            counts = np.bincount(found.ravel(), minlength=len(some) * self.places)
            begin = frames.start + first
            self.counts[begin : begin + len(some)] += counts.reshape(len(some), -1).astype(np.uint32)

    def end(self, block: Block, received_ns: int) -> Partial:
        """See `StripReducer.end`."""
        counts, below, above = self.counts[:, 1 : self.bins + 1], self.counts[:, 0], self.counts[:, self.bins + 1]
        partial = {"counts": counts.copy(), "below": below.copy(), "above": above.copy()}
        return partial | {"frame_number": block.numbers.copy()}

    def _found(self, pixels: Array) -> NDArray[np.intp]:
        """Return the place of each pixel, in memory of its own."""
        if self.found.size < pixels.size:
            self.found = np.empty(pixels.size, np.intp)
        found = self.found[: pixels.size].reshape(pixels.shape)
        if self.table is None:
            return self._computed(pixels, found)
        if self.dtype.itemsize <= 2:
            np.copyto(found, pixels)
            found -= self.least
            return np.take(self.table, found, out=found, mode="clip")  # `raise` would make a copy
        kind = self.dtype.type
        np.subtract(np.clip(pixels, kind(self.least), kind(self.most)), kind(self.least), out=found, casting="unsafe")
        np.take(self.table, found, out=found, mode="clip")
        if self.invalid is not None:
            np.copyto(found, self.places - 1, where=self.invalid(pixels))
        return found

    def _computed(self, pixels: Array, out: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return ``out`` with the place of each pixel."""
        if self.work.size < pixels.size:
            self.work = np.empty(pixels.size)
        work = self.work[: pixels.size].reshape(pixels.shape)
        np.copyto(work, pixels)
        above = work >= self.high
        work -= self.low
        work *= self.bins
        work /= self.high - self.low
        np.floor(work, out=work)
        np.clip(work, -1, self.bins - 1, out=work)
        np.copyto(work, self.bins, where=above)
        work += 1
        if self.dtype.kind == "f":
            np.copyto(work, self.places - 1, where=np.isnan(work))
        np.copyto(out, work, casting="unsafe")
        if self.invalid is not None:
            np.copyto(out, self.places - 1, where=self.invalid(pixels))
        return out
