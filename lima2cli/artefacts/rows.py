"""Rows of files, read in order and in pieces: memory does not grow with the number of rows."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW = 65_536
"""Rows of a whole run that are looked at together."""

READ = 16_384
"""Rows of one file that are read together."""

Rows = NDArray[np.int64]


def windows(count: int, size: int = WINDOW) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of consecutive pieces of ``count`` rows."""
    return ((first, min(count, first + size)) for first in range(0, count, size))


def rows_of(numbers: NDArray[np.uint64], start: int, step: int) -> Rows:
    """Row k of each frame number; ValueError where one is not among the selected frames."""
    row, rest = np.divmod(numbers.astype(np.int64) - start, step)
    if len(row) and (rest.any() or row.min() < 0):
        bad = numbers[(rest != 0) | (row < 0)][0]
        raise ValueError(f"frame {bad} is not one of {start}, {start + step}, ...")
    return row


class InOrder:
    """Columns that are read piece by piece and taken up to some row; the first column holds the rows.

    At most one piece is held. What the iterator raises comes out of `take`.
    """

    def __init__(self, pieces: Iterator[Sequence[NDArray[Any]]]) -> None:
        self._pieces = pieces
        self._held: Sequence[NDArray[Any]] | None = next(pieces, None)

    def take(self, until: int) -> Iterator[Sequence[NDArray[Any]]]:
        """The columns, piece by piece, as far as the rows are below ``until``."""
        while self._held is not None:
            beyond = self._held[0] >= until
            count = int(beyond.argmax()) if beyond.any() else len(beyond)
            if count:
                yield [column[:count] for column in self._held]
            if count < len(beyond):
                self._held = [column[count:] for column in self._held]
                return
            self._held = next(self._pieces, None)
