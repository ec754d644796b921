"""Totals of windows of frames in which pixels are masked: they do not count."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.invalid import MaskedSums, finder, gap_in, kept
from lima2cli.nodes.totals import total_of
from lima2cli.spec import Array, FrameSpec


class MaskedTotal:
    """``sum``, ``mean`` or ``max`` of frames of ``spec`` that ends in the dtype of ``after``.

    _missing  frames of the window in which a pixel was masked, (height, width)
    _values   what the first of these held there; of pixels of the static mask what the first frame held
    """

    def __init__(self, operation: str, spec: FrameSpec, after: FrameSpec) -> None:
        self._total, self._dtype = total_of(operation, spec.shape, spec.dtype), np.dtype(after.dtype)
        self._float = np.dtype(spec.dtype).kind == "f"
        self._neutral = lowest(np.dtype(spec.dtype)) if operation == "max" else np.dtype(spec.dtype).type(0)
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
        if found is not None and found.any():
            self._note(frames, found)
            frames = np.where(found, self._neutral, frames)
        self._total.add(frames)

    def _note(self, frames: Array, found: NDArray[np.bool_]) -> None:
        new = found.any(axis=0) & (self._missing == 0)
        if self._mask is not None:
            new &= ~self._mask
        rows, columns = np.nonzero(new)
        self._values[new] = frames[found.argmax(axis=0)[new], rows, columns]
        self._missing += np.count_nonzero(found, axis=0)
        self._any_missing = True

    def result(self) -> Array:
        """Of the window, of the caller's own."""
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
    """What no pixel is less than."""
    return dtype.type(-np.inf if dtype.kind == "f" else np.iinfo(dtype).min)
