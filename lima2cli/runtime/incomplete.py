"""Frames that a module has failed to give, as a receiver sees them: words beside those of the times.

One word per position, contributing module and block of a local buffer, 1 where the module has failed; written before
the generation word that says that the visit is complete. Detectors whose modules never fail have no such words.
"""

import numpy as np
from numpy.typing import NDArray

from lima2cli.spec import Block

Rows = list[tuple[int, int]]
"""First and last index, among the selected frames, of consecutive ones."""


class Failures:
    """The words of one local buffer: ``words`` (positions * modules * blocks,) in the receiver's own memory."""

    def __init__(self, words: NDArray[np.uint64], modules: int, blocks: int) -> None:
        self._words = words.reshape(-1, modules, blocks)

    def of(self, position: int, visits: int, blocks: int) -> NDArray[np.bool_] | None:
        """Which of the first ``blocks`` blocks of the visits from ``position`` on lack a part; None = none."""
        words = self._words[position : position + visits]
        if not words.any():
            return None
        failed = np.asarray(words.any(axis=1)).ravel()[:blocks]
        return failed if failed.any() else None

    def usable(self, position: int, visits: int, last: int) -> int:
        """How many of the leading visits have a whole block each; ``last`` is how many blocks the last visit has."""
        words = self._words[position : position + visits]
        if not words.any():
            return visits
        failed = np.array(words.any(axis=1))
        failed[-1, last:] = True
        whole = np.count_nonzero(~failed, axis=1)
        return visits if whole.all() else int(whole.argmin())


def without(block: Block, failed: NDArray[np.bool_]) -> Block:
    """The frames of a block that are whole, copied."""
    whole = ~failed
    return Block(block.frames[whole], block.numbers[whole], block.times[whole], block.stable)


def add_rows(rows: Rows, indices: NDArray[np.int64]) -> None:
    """Note indices, in increasing order, after those that were noted before."""
    for index in map(int, indices):
        if rows and rows[-1][1] == index - 1:
            rows[-1] = (rows[-1][0], index)
        else:
            rows.append((index, index))
