"""Latencies of a whole run in constant memory: a histogram of logarithmic bins, which can be merged.

The bins are those of HdrHistogram (https://hdrhistogram.org): `SUB` to an octave, so that a bin is no wider than a
sixteenth of what it holds, and numbers below `2 * SUB` ns have bins of their own.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SUB = 16
"""Bins of an octave."""

_BITS = SUB.bit_length()


def bin_of(nanoseconds: int) -> int:
    """The bin of one number; what is below 0 (clocks that differ) counts as 0."""
    number = max(0, nanoseconds)
    shift = max(0, number.bit_length() - _BITS)
    return shift * SUB + (number >> shift)


def bins_of(nanoseconds: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same of many (n,), all below 2**53."""
    number = np.maximum(nanoseconds, 0)
    length: NDArray[np.int64] = np.frexp(number.astype(np.float64))[1].astype(np.int64)
    shift: NDArray[np.int64] = np.maximum(length - _BITS, 0)
    bins: NDArray[np.int64] = shift * SUB + np.right_shift(number, shift)
    return bins


def bounds(index: int) -> tuple[int, int]:
    """Smallest number of a bin, and the first beyond it."""
    shift = max(0, index // SUB - 1)
    first = (index - shift * SUB) << shift
    return first, first + (1 << shift)


@dataclass(slots=True)
class Histogram:
    """Counts by bin (see `bin_of`), and the largest number, in nanoseconds."""

    counts: dict[int, int] = field(default_factory=dict)
    largest: int = 0

    def __len__(self) -> int:
        """How many numbers it holds."""
        return sum(self.counts.values())

    def add(self, nanoseconds: int) -> None:
        """One more."""
        index = bin_of(nanoseconds)
        self.counts[index] = self.counts.get(index, 0) + 1
        if nanoseconds > self.largest:
            self.largest = nanoseconds

    def add_all(self, nanoseconds: NDArray[np.int64]) -> None:
        """Many more, (n,); all below 2**53."""
        if not len(nanoseconds):
            return
        for index, count in zip(*np.unique(bins_of(nanoseconds), return_counts=True), strict=True):
            self.counts[int(index)] = self.counts.get(int(index), 0) + int(count)
        self.largest = max(self.largest, int(nanoseconds.max()))

    def quantile(self, share: float) -> float | None:
        """The number in seconds that this share of all are not above; None where there are none.

        It is the middle of the bin where that number lies, so within a thirty-second of it.
        """
        due = max(1, int(np.ceil(share * len(self))))
        for index in sorted(self.counts):
            due -= self.counts[index]
            if due <= 0:
                first, beyond = bounds(index)
                return min((first + beyond - 1) / 2, self.largest) * 1e-9
        return None


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """All of them as one."""
    whole = Histogram()
    for one in histograms:
        for index, count in one.counts.items():
            whole.counts[index] = whole.counts.get(index, 0) + count
        whole.largest = max(whole.largest, one.largest)
    return whole
