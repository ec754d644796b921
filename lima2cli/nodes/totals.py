"""What windows of frames are made to, pixel by pixel: the sum, the mean, the largest."""

from typing import Any

import numpy as np

from lima2cli.nodes.stages import store
from lima2cli.spec import Array


def total_of(operation: str, shape: tuple[int, int], dtype: str) -> "Largest | Sum":
    """``sum``, ``mean`` or ``max`` of frames (height, width) of ``dtype``."""
    if operation == "max":
        return Largest(shape, dtype)
    kind = WideSum if dtype in ("int64", "uint64") else Sum
    return kind(shape, dtype, mean=operation == "mean")


def sum_dtype(dtype: str) -> str:
    """Wide enough for sums of many frames."""
    return "float64" if np.dtype(dtype).kind == "f" else "int64"


def narrowed(values: Array, dtype: "np.dtype[Any]") -> Array:
    """A copy in ``dtype``: for integers rounded half to even and clipped to their range, NaN 0; for floats, infinite
    beyond it."""
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

    def add(self, frames: Array) -> None:
        """Frames (n, height, width) of the window."""
        largest = frames.max(axis=0)
        if self.count:
            np.maximum(self._largest, largest, out=self._largest)
        else:
            self._largest[...] = largest
        self.count += len(frames)

    def result(self, dtype: "np.dtype[Any]") -> Array:
        """Of the window, of the caller's own."""
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

    def add(self, frames: Array) -> None:
        """See `Largest`."""
        with np.errstate(all="ignore"):  # infinities
            self._sum += frames.sum(axis=0, dtype=self._sum.dtype)
        self.count += len(frames)

    def result(self, dtype: "np.dtype[Any]") -> Array:
        """See `Largest`."""
        return narrowed(self._sum / self.count if self._mean else self._sum, dtype)


class WideSum(Sum):
    """The same of integers of 64 bits, whose sums need not be such: their upper and lower halves are summed apart."""

    def __init__(self, shape: tuple[int, int], dtype: str, *, mean: bool) -> None:
        super().__init__(shape, dtype, mean=mean)
        self._low: Array = np.zeros(shape, np.int64)

    def clear(self) -> None:
        """See `Largest`."""
        super().clear()
        self._low[...] = 0

    def add(self, frames: Array) -> None:
        """See `Largest`."""
        low = frames & frames.dtype.type(2**32 - 1)
        self._low += low.sum(axis=0, dtype=np.int64)
        super().add((frames >> frames.dtype.type(32)).astype(np.int64))

    def result(self, dtype: "np.dtype[Any]") -> Array:
        """See `Largest`."""
        high, low = self._sum + (self._low >> 32), self._low & (2**32 - 1)
        if self._mean or dtype.kind == "f":
            total = high * 2.0**32 + low
            return narrowed(total / self.count if self._mean else total, dtype)
        wide = np.dtype(f"{dtype.kind}8")
        limits = np.iinfo(wide)
        least, most = int(limits.min) >> 32, int(limits.max) >> 32
        whole = (high.astype(wide) << wide.type(32)) | low.astype(wide)
        whole[high < least], whole[high > most] = limits.min, limits.max
        return narrowed(whole, dtype)
