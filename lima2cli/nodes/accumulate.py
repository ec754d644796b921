"""Node `accumulate`: n consecutive selected frames become one.

    sum    over the n frames: int64 for integers, float64 for floats
    mean   float32, from the sum
    max    the input's dtype

``dtype`` asks for another dtype of the result; integers are then rounded half to even and clipped, NaN becomes 0;
floats beyond the range of float32 become infinite. Sums of integers are exact; one beyond the range of int64 is clipped
(``dtype: uint64`` has room up to 2**64 - 1). Means of 64-bit integers are computed in float64. The result is numbered
and timed by the first frame of its window. Windows are counted from the first selected frame, whatever was lost on the
way: a window of which a frame is absent gives nothing, nor does a last incomplete one: it has no row in any file, and
is counted as dropped. NaN goes through as in numpy; the static mask goes on with the frames. The saturation level is
that of one frame for `max`, else unknown.

Each window must lie on one receiver: several receivers need ``blocks_per_group`` a multiple of n.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lima2cli.declare import Choice, Integer, param
from lima2cli.errors import Misfit
from lima2cli.geometry import Rule
from lima2cli.nodes.base import Transform, Transformer
from lima2cli.nodes.totals import sum_dtype, total_of
from lima2cli.spec import DTYPES, Array, Block, Files, FrameSpec


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
        return replace(spec, dtype=self.dtype or self._natural(spec), saturation=saturation)

    def _natural(self, spec: FrameSpec) -> str:
        if self.operation == "max":
            return spec.dtype
        return "float32" if self.operation == "mean" else sum_dtype(spec.dtype)

    def numbering(self, rule: Rule, receivers: Sequence[int]) -> tuple[Rule, Sequence[int], int]:
        """See `Transform.numbering`: one frame in n; a last incomplete window gives none."""
        n, alone = self.frames, len(set(receivers)) == 1
        if not alone and (not n or rule.blocks % n):
            what = f"windows of {n} frames" if n else "all frames"
            help = f"blocks_per_group: a multiple of {n}, or one receiver" if n else "one receiver"
            message = f"{what} reach several receivers, in groups of {rule.blocks}"
            raise Misfit("window-split", message, ("frames",), help)
        if not n:
            return replace(rule, count=1, blocks=1, buffers=1), receivers[:1], 0
        count = None if rule.count is None else rule.count // n
        fewer = replace(rule, step=rule.step * n, count=count)
        if alone:
            return replace(fewer, blocks=1, buffers=1), receivers[:1], n
        return replace(fewer, blocks=rule.blocks // n), receivers, n

    def start(self, spec: FrameSpec, files: Files, rule: Rule) -> Transformer:
        """See `Transform.start`."""
        return _Windows(self, spec, self.infer(spec, files).dtype, rule)


class _Windows:
    """See `Transformer`. ``_total`` is of frames of window ``_window``."""

    def __init__(self, node: Accumulate, spec: FrameSpec, dtype: str, rule: Rule) -> None:
        self._frames = node.frames
        self._rule, self._dtype = rule, np.dtype(dtype)
        self._total = total_of(node.operation, spec.shape, spec.dtype)
        self._window = -1
        self._first: tuple[np.uint64, np.uint64] = (np.uint64(0), np.uint64(0))

    def step(self, block: Block) -> Block | None:
        """See `Transformer.step`: the windows that the block completes."""
        index = (block.numbers - np.uint64(self._rule.start)) // np.uint64(self._rule.step)
        windows = index // np.uint64(self._frames) if self._frames else np.zeros(len(index), np.uint64)
        ends = np.flatnonzero(np.diff(windows)) + 1
        done: list[tuple[np.uint64, np.uint64, Array]] = []
        for begin, end in zip([0, *ends.tolist()], [*ends.tolist(), len(windows)], strict=True):
            self._add(int(windows[begin]), block, begin, end)
            if self._total.count == self._frames:
                done.append((*self._first, self._total.result(self._dtype)))
        if not done:
            return None
        numbers, times, frames = zip(*done, strict=True)
        return Block(np.stack(frames), np.array(numbers, np.uint64), np.array(times, np.uint64), False)

    def _add(self, window: int, block: Block, begin: int, end: int) -> None:
        """Frames begin to end of a block, which all belong to one window."""
        if window != self._window:
            self._window = window
            self._first = (block.numbers[begin], block.times[begin])
            self._total.clear()
        self._total.add(block.frames[begin:end])

    def finish(self) -> Block | None:
        """See `Transformer.finish`: all frames of the run, where that was asked for."""
        whole = None if self._frames or not self._total.count else self._total.result(self._dtype)
        self._window = -1
        self._total.clear()
        if whole is None:
            return None
        _, time = self._first
        number = np.uint64(self._rule.start)  # of the window's first frame, whether it came or not
        return Block(whole[np.newaxis], np.array([number]), np.array([time]), False)

    def close(self) -> None:
        """Nothing is held."""
