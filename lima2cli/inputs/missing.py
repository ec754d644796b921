"""Frames of a stack that are not all there, with the reasons."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass

RowMask = NDArray[np.bool_]

SPANS = 4
"""Most ranges of frames that a message lists."""

REASONS = 2
"""Most reasons that a message gives."""


@dataclass(frozen=True, eq=False)
class Missing:
    """Frames that lack pixels: (n,) bool, True where one does; and the reasons, one clause each."""

    rows: RowMask
    reasons: tuple[str, ...]

    @property
    def count(self) -> int:
        """Return the number of these frames."""
        return int(self.rows.sum())

    def __str__(self) -> str:
        """Return ``lacks 8 of 20 frames (12 to 19): nothing was ever written to them``."""
        of = len(self.rows)
        which = f" ({spans(np.flatnonzero(self.rows))})" if of > 1 else ""
        more = f"; and {len(self.reasons) - REASONS} more" if len(self.reasons) > REASONS else ""
        return f"lacks {self.count} of {of} frame{'s' * (of != 1)}{which}: {'; '.join(self.reasons[:REASONS])}{more}"


def lack_of(rows: RowMask, *reasons: str) -> Missing | None:
    """Return the lack of these frames, None where there are none."""
    return Missing(rows, tuple(dict.fromkeys(reasons))) if rows.any() else None


def both(*lacks: Missing | None) -> Missing | None:
    """Return the union of several lacks of the same frames."""
    there = [lack for lack in lacks if lack is not None]
    if len(there) < 2:
        return there[0] if there else None
    rows = np.logical_or.reduce([lack.rows for lack in there])
    return lack_of(rows, *(reason for lack in there for reason in lack.reasons))


def chained(parts: Iterable[tuple[int, Missing | None, str]], count: int) -> Missing | None:
    """Return the lack of ``count`` frames made of consecutive parts: the length of each, its lack, and its name."""
    rows, reasons, first = np.zeros(count, bool), [], 0
    for length, lack, name in parts:
        if lack is not None:
            rows[first : first + length] = lack.rows
            reasons += [f"{name} {lack}" if name else reason for reason in lack.reasons[:1]]
        first += length
    return lack_of(rows, *reasons)


def spans(numbers: "NDArray[np.intp]", text: Callable[[int], str] = str) -> str:
    """Return numbers in words: ``3, 7 to 9 and 12 more``."""
    edges = np.flatnonzero(np.diff(numbers) > 1)
    firsts, lasts = np.r_[0, edges + 1], np.r_[edges, len(numbers) - 1]
    shown = [
        text(int(numbers[a])) if a == b else f"{text(int(numbers[a]))} to {text(int(numbers[b]))}"
        for a, b in zip(firsts[:SPANS], lasts[:SPANS], strict=True)
    ]
    rest = len(numbers) - 1 - int(lasts[:SPANS][-1])
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
