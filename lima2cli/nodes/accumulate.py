"""Node `accumulate`: n consecutive selected frames become one.

    sum    over the n frames: int64 for integers, float64 for floats
    mean   float32, from the sum
    max    the input's dtype
    std    float32: sqrt(sum((x - mean)^2) / n), the population's

``dtype`` asks for another dtype of the result; integers are then rounded half to even and clipped, NaN becomes 0;
floats beyond the range of float32 become infinite. Sums of integers are exact; one beyond the range of int64 is clipped
(``dtype: uint64`` has room up to 2**64 - 1). Means of 64-bit integers are computed in float64. For `std` sums and
squares of integers of 8 and 16 bits are exact; of others differences from the first value are summed in float64, so
that nothing is lost where large values hardly differ.

The result is numbered and timed by the first frame of its window. Windows follow each other and never overlap; they are
counted from the first selected frame, whatever was lost on the way: a window of which a frame is absent gives nothing,
nor does a last incomplete one: it has no row in any file, and is counted as dropped. The saturation level is that of
one frame for `max`, else unknown.

Pixels that are masked in single frames (NaN, invalid values) do not count: `mean`, `max` and `std` are those of the
frames that measured the pixel. For `sum` a pixel that any frame lacks is masked, as is one that no frame measured.
Masked pixels, also those of the static mask, are NaN; in integers they keep what the first such frame holds there.
Values above all valid ones, such as the largest of the dtype, become the largest of the sum's dtype.

What there is of all frames of a run (`frames: 0`) can be looked at while it goes on (`lima2 tap`, `lima2 view`),
numbered by the last frame in it.

Each window must lie on one receiver: several receivers need ``blocks_per_group`` a multiple of n, which ``auto`` is.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Choice, Integer, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import DTYPES, Array, Block, FrameSpec, Invalid
from lima2cli.geometry import Rule
from lima2cli.kernels.masked import (
    MaskedSums,
    carried,
    collision,
    finder,
    gap_in,
    kept,
    may_collide,
    of_sums,
    unmarked,
    valid_range,
)
from lima2cli.kernels.strips import store
from lima2cli.nodes.base import Inputs, Transform, Transformer, node


def total_of(operation: str, shape: tuple[int, int], dtype: str) -> "Largest | Sum | Spread | SmallSpread":
    """``sum``, ``mean``, ``max`` or ``std`` of frames (height, width) of ``dtype``."""
    if operation == "max":
        return Largest(shape, dtype)
    if operation == "std":
        exact = np.dtype(dtype).kind != "f" and np.dtype(dtype).itemsize <= 2
        return SmallSpread(shape, dtype) if exact else Spread(shape)
    kind = WideSum if dtype in ("int64", "uint64") else Sum
    return kind(shape, dtype, mean=operation == "mean")


def sum_dtype(dtype: str) -> str:
    """Wide enough for sums of many frames."""
    return "float64" if np.dtype(dtype).kind == "f" else "int64"


def narrowed(values: Array, dtype: "np.dtype[Any]") -> Array:
    """Return a copy in ``dtype``.

    Integers are rounded half to even and clipped to their range, NaN is 0; floats are infinite beyond their range.
    """
    if dtype.kind == "f" or values.dtype == dtype:
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    if values.dtype.kind == "f":
        out, work = np.empty(values.shape, dtype), values.copy()
        work[np.isnan(work)] = 0
        store(work, out)
        return out
    limits, own = np.iinfo(dtype), np.iinfo(values.dtype)
    return np.clip(values, max(limits.min, own.min), min(limits.max, own.max)).astype(dtype)


class Largest:
    """The largest value of each pixel, (height, width)."""

    def __init__(self, shape: tuple[int, int], dtype: str) -> None:
        self._largest: Array = np.zeros(shape, dtype)
        self.count = 0

    def clear(self) -> None:
        """Begin a window."""
        self.count = 0

    def add(self, frames: Array, found: NDArray[np.bool_] | None = None) -> None:
        """Frames (n, height, width) of the window, without the pixels that are ``found`` to hold no measurement."""
        if found is not None:
            frames = np.where(found, lowest(frames.dtype), frames)
        largest = frames.max(axis=0)
        if self.count:
            np.maximum(self._largest, largest, out=self._largest)
        else:
            self._largest[...] = largest
        self.count += len(frames)

    def result(self, dtype: "np.dtype[Any]", missing: Array | None = None) -> Array:
        """Return the result of the window, the caller's own; ``missing`` (height, width) frames not counted."""
        return narrowed(self._largest, dtype)


class Sum:
    """The sum of each pixel, or with ``mean`` the sum by the number of frames."""

    def __init__(self, shape: tuple[int, int], dtype: str, *, mean: bool) -> None:
        self._sum: Array = np.zeros(shape, sum_dtype(dtype))
        self._mean = mean
        self.count = 0

    def clear(self) -> None:
        """See `Largest`."""
        self._sum[...] = 0
        self.count = 0

    def add(self, frames: Array, found: NDArray[np.bool_] | None = None) -> None:
        """See `Largest`."""
        if found is not None:
            frames = np.where(found, frames.dtype.type(0), frames)
        with np.errstate(all="ignore"):  # infinities
            self._sum += frames.sum(axis=0, dtype=self._sum.dtype)
        self.count += len(frames)

    def result(self, dtype: "np.dtype[Any]", missing: Array | None = None) -> Array:
        """See `Largest`."""
        return narrowed(self._sum / self._counted(missing) if self._mean else self._sum, dtype)

    def _counted(self, missing: Array | None) -> Any:
        return self.count if missing is None else self.count - missing


class WideSum(Sum):
    """The same of integers of 64 bits, whose sums need not be such: their upper and lower halves are summed apart."""

    def __init__(self, shape: tuple[int, int], dtype: str, *, mean: bool) -> None:
        super().__init__(shape, dtype, mean=mean)
        self._low: Array = np.zeros(shape, np.int64)

    def clear(self) -> None:
        """See `Largest`."""
        super().clear()
        self._low[...] = 0

    def add(self, frames: Array, found: NDArray[np.bool_] | None = None) -> None:
        """See `Largest`."""
        if found is not None:
            frames = np.where(found, frames.dtype.type(0), frames)
        low = frames & frames.dtype.type(2**32 - 1)
        self._low += low.sum(axis=0, dtype=np.int64)
        super().add((frames >> frames.dtype.type(32)).astype(np.int64))

    def result(self, dtype: "np.dtype[Any]", missing: Array | None = None) -> Array:
        """See `Largest`."""
        high, low = self._sum + (self._low >> 32), self._low & (2**32 - 1)
        if self._mean or dtype.kind == "f":
            total = high * 2.0**32 + low
            return narrowed(total / self._counted(missing) if self._mean else total, dtype)
        wide = np.dtype(f"{dtype.kind}8")
        limits = np.iinfo(wide)
        least, most = int(limits.min) >> 32, int(limits.max) >> 32
        whole = (high.astype(wide) << wide.type(32)) | low.astype(wide)
        whole[high < least], whole[high > most] = limits.min, limits.max
        return narrowed(whole, dtype)


class SmallSpread:
    """The population's standard deviation of each pixel, of integers of up to 16 bits: sums and squares are exact."""

    def __init__(self, shape: tuple[int, int], dtype: str) -> None:
        self._sum, self._squares = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._wide = np.dtype(f"{np.dtype(dtype).kind}4")
        self.count = 0

    def clear(self) -> None:
        """See `Largest`."""
        self._sum[...] = self._squares[...] = 0
        self.count = 0

    def add(self, frames: Array, found: NDArray[np.bool_] | None = None) -> None:
        """See `Largest`."""
        for i, frame in enumerate(frames):
            counted = frame if found is None else np.where(found[i], frame.dtype.type(0), frame)
            self._sum += counted
            self._squares += np.multiply(counted, counted, dtype=self._wide)
        self.count += len(frames)

    def result(self, dtype: "np.dtype[Any]", missing: Array | None = None) -> Array:
        """See `Largest`: differences from a whole number next to the mean are exact, too."""
        count = self.count if missing is None else self.count - missing
        near = self._sum // count
        rest = self._sum - near * count
        squares = self._squares - near * (2 * self._sum - near * count)
        return narrowed(np.sqrt((squares - rest * rest / count) / count), dtype)


class Spread:
    """The population's standard deviation of each pixel, of any dtype, by differences from its first value.

    _first    that value, of pixels that have one: not of those that are ``_open``, None = all have
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._first, self._sum, self._squares, self._apart = np.zeros((4, *shape))
        self._open: NDArray[np.bool_] | None = None
        self.count = 0

    def clear(self) -> None:
        """See `Largest`."""
        self._sum[...] = self._squares[...] = 0
        self.count = 0

    def add(self, frames: Array, found: NDArray[np.bool_] | None = None) -> None:
        """See `Largest`. Frame by frame, so that sums do not depend on how many come at once."""
        with np.errstate(all="ignore"):  # infinities
            for i, frame in enumerate(frames):
                self._add(frame, None if found is None else found[i])
                self.count += 1

    def _add(self, frame: Array, found: NDArray[np.bool_] | None) -> None:
        if not self.count:
            self._first[...] = frame
            self._open = None if found is None or not found.any() else found.copy()
        elif self._open is not None:
            new = self._open if found is None else self._open & ~found
            self._first[new] = frame[new]
            self._open = self._open & ~new
        apart = np.subtract(frame, self._first, out=self._apart)
        if found is not None:
            apart[found] = 0
        self._sum += apart
        self._squares += np.square(apart, out=apart)

    def result(self, dtype: "np.dtype[Any]", missing: Array | None = None) -> Array:
        """See `Largest`."""
        count = self.count if missing is None else self.count - missing
        with np.errstate(all="ignore"):  # infinities
            spread = (self._squares - self._sum * self._sum / count) / count
            return narrowed(np.sqrt(np.maximum(spread, 0, out=spread)), dtype)


class MaskedTotal:
    """``sum``, ``mean``, ``max`` or ``std`` of frames of ``spec`` that ends in the dtype of ``after``.

    _missing  frames of the window in which a pixel was masked, (height, width)
    _values   what the first of these held there; of pixels of the static mask what the first frame held
    """

    def __init__(self, operation: str, spec: FrameSpec, after: FrameSpec) -> None:
        self._total, self._dtype = total_of(operation, spec.shape, spec.dtype), np.dtype(after.dtype)
        self._float = np.dtype(spec.dtype).kind == "f"
        self._find = finder(spec.invalid, spec.dtype)
        self._sums = MaskedSums(spec.invalid, spec.dtype, after.dtype) if operation == "sum" else None
        self._mask, self._gap = spec.mask, spec.gap
        self._missing = np.zeros(spec.shape, np.int64)
        self._values: Array = np.zeros(spec.shape, spec.dtype)
        self._any_missing = False

    @property
    def count(self) -> int:
        """Frames of the window so far."""
        return self._total.count

    def clear(self) -> None:
        """Begin a window."""
        self._total.clear()
        if self._any_missing:
            self._missing[...] = 0
            self._any_missing = False

    def add(self, frames: Array) -> None:
        """Frames (n, height, width) of the window."""
        if not self.count and self._mask is not None:
            self._values[self._mask] = frames[0][self._mask]
        found = None if self._find is None else self._find(frames)
        if found is None or not found.any():
            self._total.add(frames)
            return
        self._note(frames, found)
        self._total.add(frames, found)

    def _note(self, frames: Array, found: NDArray[np.bool_]) -> None:
        new = found.any(axis=0) & (self._missing == 0)
        if self._mask is not None:
            new &= ~self._mask
        rows, columns = np.nonzero(new)
        self._values[new] = frames[found.argmax(axis=0)[new], rows, columns]
        self._missing += np.count_nonzero(found, axis=0)
        self._any_missing = True

    def result(self) -> Array:
        """Return the result of the window, (height, width), the caller's own."""
        with np.errstate(all="ignore"):  # pixels that no frame measured
            result = self._total.result(self._dtype, self._missing if self._any_missing else None)
        masked = self._masked()
        if masked is None:
            return result
        if self._dtype.kind == "f":
            result[masked] = np.nan
        elif self._float:
            result[masked] = gap_in(self._gap, self._dtype.name)
        else:
            values = self._values[masked]
            held = kept(values, self._dtype.name, self._gap) if self._sums is None else self._sums.held(values)
            result[masked] = held
        return result

    def _masked(self) -> NDArray[np.bool_] | None:
        """Pixels of the window without a result; None = all have one."""
        if not self._any_missing:
            return self._mask
        masked = self._missing >= (1 if self._sums is not None else self.count)
        return masked if self._mask is None else masked | self._mask


def lowest(dtype: "np.dtype[Any]") -> Any:
    """Return a value that no pixel is less than."""
    return dtype.type(-np.inf if dtype.kind == "f" else np.iinfo(dtype).min)


@node("accumulate")
class Accumulate(Transform):
    """Makes one frame of several."""

    frames: int = param("Frames of a window; 0 = all of the run.", Integer(0))
    operation: str = param("What is computed from them.", Choice(("sum", "mean", "max", "std")), "sum")
    dtype: str | None = param(
        "Type of the result; default: int64 or float64 for sum, float32 for mean and std, the input's for max.",
        Choice(DTYPES),
        None,
    )

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Node.infer`."""
        spec = inputs.spec
        saturation = spec.saturation if self.operation == "max" and self.dtype is None else None
        dtype = self.dtype or self._natural(spec)
        summed = self.operation == "sum"
        rule = of_sums(spec.invalid, spec.dtype, dtype)[0] if summed else carried(spec.invalid, spec.dtype, dtype)
        is_float, was_float = (np.dtype(it).kind == "f" for it in (dtype, spec.dtype))
        holds = math.nan if is_float else None if was_float else spec.holds
        return replace(spec, dtype=dtype, saturation=saturation, invalid=rule, holds=holds)

    def warnings(self, inputs: Inputs) -> Sequence[NodeMisuse]:
        """See `Node.warnings`: what could be mistaken for a measurement, or for none."""
        spec, after = inputs.spec, self.infer(inputs)
        if np.dtype(after.dtype).kind == "f":
            return ()
        if np.dtype(spec.dtype).kind == "f":
            found = unmarked(spec, after.invalid, after.dtype)
            return () if found is None else (found,)
        low, high = map(float, valid_range(spec.invalid, spec.dtype))
        if self.operation == "sum":
            low, high = (limit * (self.frames or math.inf) if limit else 0.0 for limit in (low, high))
        if self.operation == "std":
            low, high = 0.0, (high - low) / 2
        met_by = after.invalid != Invalid() and may_collide(after.invalid, after.dtype, low, high)
        return (collision(after.invalid, ("dtype",) if self.dtype else ("operation",)),) if met_by else ()

    def _natural(self, spec: FrameSpec) -> str:
        if self.operation == "max":
            return spec.dtype
        return sum_dtype(spec.dtype) if self.operation == "sum" else "float32"

    def numbering(self, rule: Rule, receivers: Sequence[int]) -> tuple[Rule, Sequence[int], int]:
        """See `Transform.numbering`: one frame in n; a last incomplete window gives none."""
        n, alone = self.frames, len(set(receivers)) == 1
        if not alone and (not n or rule.blocks % n):
            what = f"windows of {n} frames" if n else "all frames"
            help = f"blocks_per_group: a multiple of {n}, or one receiver" if n else "one receiver"
            message = f"{what} reach several receivers, in groups of {rule.blocks}"
            raise NodeMisuse("window-split", message, ("frames",), help)
        if not n:
            return replace(rule, count=1, blocks=1, buffers=1), receivers[:1], 0
        count = None if rule.count is None else rule.count // n
        fewer = replace(rule, step=rule.step * n, count=count)
        if alone:
            return replace(fewer, blocks=1, buffers=1), receivers[:1], n
        return replace(fewer, blocks=rule.blocks // n), receivers, n

    def bind(self, inputs: Inputs) -> Transformer:
        """See `Transform.bind`."""
        return _Windows(self, inputs.spec, self.infer(inputs), inputs.rule)


class _Windows:
    """See `Transformer`. ``_total`` is of frames of window ``_window``."""

    def __init__(self, node: Accumulate, spec: FrameSpec, after: FrameSpec, rule: Rule) -> None:
        self._frames, self._rule = node.frames, rule
        self._total = MaskedTotal(node.operation, spec, after)
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
                done.append((*self._first, self._total.result()))
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
        whole = None if self._frames or not self._total.count else self._total.result()
        self._window = -1
        self._total.clear()
        if whole is None:
            return None
        _, time = self._first
        number = np.uint64(self._rule.start)  # of the window's first frame, whether it arrived or not
        return Block(whole[np.newaxis], np.array([number]), np.array([time]), False)

    def so_far(self) -> Array | None:
        """See `GrowingTransformer.so_far`: of all frames of the run; windows are shown whole."""
        return None if self._frames or not self._total.count else self._total.result()

    def close(self) -> None:
        """Nothing is held."""
