"""Node `accumulate`: n consecutive selected frames become one.

    sum    over the n frames: int64 for integers, float64 for floats
    mean   float32, from the sum
    max    the input's dtype

``dtype`` asks for another dtype of the result; integers are then rounded half to even and clipped. The result is
numbered and timed by the first frame of its window. Windows are counted from the first selected frame, whatever was
lost on the way: a window of which a frame is absent gives nothing, nor does a last incomplete one. The saturation level
is that of one frame for `max`, else unknown. Sums of integers are exact up to 2**63.

Pixels that are masked in single frames (NaN, invalid values) do not count: `mean` and `max` are those of the frames
that measured the pixel. A sum with a frame missing is no sum: the pixel is masked, as it is where no frame measured it.
Masked pixels, those of the static mask too, are NaN, in integers what the first such frame holds there. Values above
all valid ones, such as the largest of the dtype, become the largest of the sum's dtype.

Each window must lie on one receiver: several receivers need ``blocks_per_group`` a multiple of n.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Choice, Integer, param
from lima2cli.errors import Misfit
from lima2cli.geometry import Rule
from lima2cli.invalid import MaskedSums, carried, finder, gap_in, kept, met, of_sums, valid_range
from lima2cli.nodes.base import Transform, Transformer
from lima2cli.nodes.masked import collision, unmarked
from lima2cli.spec import DTYPES, Array, Block, Files, FrameSpec, Invalid


@dataclass(frozen=True, kw_only=True)
class Accumulate(Transform):
    """Makes one frame of several."""

    kind: ClassVar[str] = "accumulate"

    frames: int = param("Frames of a window; 0 = all of the run.", Integer(0))
    operation: str = param("What is made of them.", Choice(("sum", "mean", "max")), "sum")
    dtype: str | None = param(
        "Pixels of the result; default: int64 or float64 for sum, float32 for mean, the input's for max.",
        Choice(DTYPES),
        None,
    )

    def infer(self, spec: FrameSpec, files: Files) -> FrameSpec:
        """See `Node.infer`."""
        saturation = spec.saturation if self.operation == "max" and self.dtype is None else None
        dtype = self.dtype or self._natural(spec)
        rule = carried(self._rule(spec), self._work(spec), dtype)
        is_float, was_float = (np.dtype(it).kind == "f" for it in (dtype, spec.dtype))
        holds = math.nan if is_float else None if was_float else spec.holds
        return replace(spec, dtype=dtype, saturation=saturation, invalid=rule, holds=holds)

    def warnings(self, spec: FrameSpec, files: Files) -> Sequence[Misfit]:
        """See `Node.warnings`: what could be mistaken for a measurement, or for none."""
        after = self.infer(spec, files)
        if np.dtype(after.dtype).kind == "f":
            return ()
        if np.dtype(spec.dtype).kind == "f":
            found = unmarked(spec, after.invalid, after.dtype)
            return () if found is None else (found,)
        low, high = map(float, valid_range(spec.invalid, spec.dtype))
        if self.operation == "sum":
            low, high = (limit * (self.frames or math.inf) if limit else 0.0 for limit in (low, high))
        met_by = after.invalid != Invalid() and met(after.invalid, after.dtype, low, high)
        return (collision(after.invalid, ("dtype",) if self.dtype else ("operation",)),) if met_by else ()

    def _work(self, spec: FrameSpec) -> str:
        """dtype of the arithmetic."""
        return spec.dtype if self.operation == "max" else sum_dtype(spec.dtype)

    def _rule(self, spec: FrameSpec) -> Invalid:
        """Of pixels of `_work`."""
        if self.operation == "sum":
            return of_sums(spec.invalid, spec.dtype, self._work(spec))[0]
        return carried(spec.invalid, spec.dtype, self._work(spec))

    def _natural(self, spec: FrameSpec) -> str:
        if self.operation == "max":
            return spec.dtype
        return "float32" if self.operation == "mean" else sum_dtype(spec.dtype)

    def numbering(self, rule: Rule, receivers: Sequence[int]) -> tuple[Rule, Sequence[int], int]:
        """See `Transform.numbering`: one frame in n, a last incomplete window among them, which gives none."""
        n, alone = self.frames, len(set(receivers)) == 1
        if not alone and (not n or rule.blocks % n):
            what = f"windows of {n} frames" if n else "all frames"
            help = f"blocks_per_group: a multiple of {n}, or one receiver" if n else "one receiver"
            message = f"{what} reach several receivers, in groups of {rule.blocks}"
            raise Misfit("window-split", message, ("frames",), help)
        if not n:
            return replace(rule, count=1, blocks=1, buffers=1), receivers[:1], 0
        count = None if rule.count is None else -(-rule.count // n)
        fewer = replace(rule, step=rule.step * n, count=count)
        if alone:
            return replace(fewer, blocks=1, buffers=1), receivers[:1], n
        return replace(fewer, blocks=rule.blocks // n), receivers, n

    def start(self, spec: FrameSpec, files: Files, rule: Rule) -> Transformer:
        """See `Transform.start`."""
        return _Windows(self, spec, self.infer(spec, files), rule)


def sum_dtype(dtype: str) -> str:
    """Wide enough for sums of many frames."""
    return "float64" if np.dtype(dtype).kind == "f" else "int64"


def lowest(dtype: "np.dtype[Any]") -> Any:
    """What no pixel is less than."""
    return dtype.type(-np.inf if dtype.kind == "f" else np.iinfo(dtype).min)


class _Windows:
    """See `Transformer`. ``_held`` frames of window ``_window`` are in ``_sum``.

    _missing  frames of the window in which a pixel was masked, (height, width); None = no pixel was
    _values   what the first of these held there; of pixels of the static mask what the first frame held
    """

    def __init__(self, node: Accumulate, spec: FrameSpec, after: FrameSpec, rule: Rule) -> None:
        self._frames, self._operation = node.frames, node.operation
        self._rule, self._dtype, self._gap = rule, np.dtype(after.dtype), spec.gap
        work = spec.dtype if node.operation == "max" else sum_dtype(spec.dtype)
        self._sum: Array = np.zeros(spec.shape, work)
        self._float = self._sum.dtype.kind == "f"
        self._neutral = lowest(self._sum.dtype) if node.operation == "max" else self._sum.dtype.type(0)
        self._find = finder(spec.invalid, spec.dtype, nan=False)
        self._as_held = MaskedSums(spec.invalid if node.operation == "sum" else Invalid(), spec.dtype, work).held
        self._mask, self._missing = spec.mask, np.zeros(spec.shape, np.int64)
        self._any_missing = False
        self._values: Array = np.zeros(spec.shape, work)
        self._window, self._held = -1, 0
        self._first: tuple[np.uint64, np.uint64] = (np.uint64(0), np.uint64(0))

    def step(self, block: Block) -> Block | None:
        """See `Transformer.step`: the windows that the block completes."""
        index = (block.numbers - np.uint64(self._rule.start)) // np.uint64(self._rule.step)
        windows = index // np.uint64(self._frames) if self._frames else np.zeros(len(index), np.uint64)
        ends = np.flatnonzero(np.diff(windows)) + 1
        done: list[tuple[np.uint64, np.uint64, Array]] = []
        for begin, end in zip([0, *ends.tolist()], [*ends.tolist(), len(windows)], strict=True):
            self._add(int(windows[begin]), block, begin, end)
            if self._held == self._frames:
                done.append((*self._first, self._result()))
        if not done:
            return None
        numbers, times, frames = zip(*done, strict=True)
        return Block(np.stack(frames), np.array(numbers, np.uint64), np.array(times, np.uint64), False)

    def _add(self, window: int, block: Block, begin: int, end: int) -> None:
        """Frames begin to end of a block, which all belong to one window."""
        frames = block.frames[begin:end]
        if window != self._window:
            self._window, self._held = window, 0
            self._first = (block.numbers[begin], block.times[begin])
            self._sum[...] = self._neutral
            self._forget_masked(frames[0])
        part = self._reduced(frames)
        found = self._masked_in(frames, part)
        if found is not None:
            part = self._reduced(np.where(found, frames.dtype.type(self._neutral), frames))
            self._note_masked(frames, found)
        if self._operation == "max":
            np.maximum(self._sum, part, out=self._sum)
        else:
            self._sum += part
        self._held += end - begin

    def _reduced(self, frames: Array) -> Array:
        with np.errstate(all="ignore"):  # sums of infinities
            if self._operation == "max":
                return np.asarray(frames.max(axis=0))
            return np.asarray(frames.sum(axis=0, dtype=self._sum.dtype))

    def _masked_in(self, frames: Array, reduced: Array) -> NDArray[np.bool_] | None:
        """Which pixels of frames (n, height, width) do not count; None where all do, or where NaN says it anyway."""
        found = None if self._find is None else self._find(frames)
        if self._float and np.isnan(reduced).any():
            found = np.isnan(frames) if found is None else found | np.isnan(frames)
        return None if found is None or not found.any() else found

    def _forget_masked(self, first: Array) -> None:
        if self._any_missing:
            self._missing[...] = 0
            self._any_missing = False
        if self._mask is not None and not self._float:
            self._values[self._mask] = self._as_held(first[self._mask])

    def _note_masked(self, frames: Array, found: NDArray[np.bool_]) -> None:
        new = found.any(axis=0) & (self._missing == 0)
        if self._mask is not None:
            new &= ~self._mask
        if not self._float:
            first = found.argmax(axis=0)[new]
            rows, columns = np.nonzero(new)
            self._values[new] = self._as_held(frames[first, rows, columns])
        self._missing += np.count_nonzero(found, axis=0)
        self._any_missing = True

    def _result(self) -> Array:
        masked, whole = self._masked(), self._sum
        if self._operation == "mean":
            with np.errstate(all="ignore"):  # pixels that no frame measured
                whole = self._sum / (self._held - self._missing if self._any_missing else self._held)
        result = kept(whole, self._dtype.name, self._gap)
        if result is self._sum:
            result = result.copy()
        if masked is None:
            return result
        if self._dtype.kind == "f":
            result[masked] = np.nan
        elif self._float:
            result[masked] = gap_in(self._gap, self._dtype.name)
        else:
            result[masked] = kept(self._values[masked], self._dtype.name, self._gap)
        return result

    def _masked(self) -> NDArray[np.bool_] | None:
        """Pixels of the window without a result; None = all have one."""
        if not self._any_missing:
            return self._mask
        least = 1 if self._operation == "sum" else self._held
        masked = self._missing >= least
        return masked if self._mask is None else masked | self._mask

    def finish(self) -> Block | None:
        """See `Transformer.finish`: all frames of the run, where that was asked for."""
        whole = None if self._frames or not self._held else self._result()
        self._window, self._held = -1, 0
        if whole is None:
            return None
        _, time = self._first
        number = np.uint64(self._rule.start)  # of the window's first frame, whether it came or not
        return Block(whole[np.newaxis], np.array([number]), np.array([time]), False)

    def close(self) -> None:
        """Nothing is held."""
