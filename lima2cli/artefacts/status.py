"""What became of the frame of a row: the values of ``frame_status``."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.rows import windows

SAVED, LOST, DROPPED, INCOMPLETE = 0, 1, 2, 3
"""Values of ``frame_status``."""

Status = NDArray[np.uint8]


class Statuses(Protocol):
    """``frame_status`` of rows, uint8: an array, or what gives one for a slice of rows."""

    def __getitem__(self, rows: slice, /) -> Status:
        """Of the rows of a slice."""
        ...


def told(statuses: Statuses | None, first: int, last: int) -> Status:
    """Of rows ``first`` to ``last - 1``; those that nobody tells of are incomplete."""
    known = np.full(last - first, INCOMPLETE, np.uint8)
    if statuses is not None:
        some = statuses[first:last]
        known[: len(some)] = some
    return known


def last_row(statuses: Statuses, count: int) -> int:
    """Index after the last of ``count`` rows that came, be it in vain: that is not missing."""
    for first, last in reversed(list(windows(count))):
        if len(kept := np.flatnonzero(statuses[first:last] != INCOMPLETE)):
            return first + int(kept[-1]) + 1
    return 0
