"""Rows of a source file to rows of a virtual dataset, in as few regular pieces as there are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.progressions import Progressions

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``target + i*target_stride + j`` come from ``source + i*source_stride + j``, i < count, j < block."""

    target: int
    source: int
    count: int
    block: int
    target_stride: int
    source_stride: int


class Mapping:
    """Pieces of a file whose rows come in order, a few at a time; a regular file of any length is a few pieces.

    Rows of one local buffer are regular where those of a receiver, which may own several, need not be: both are
    tried, and the shorter list wins.
    """

    def __init__(self) -> None:
        self._whole = _Runs()
        self._split: dict[int, _Runs] = {}

    def add(self, target: Indices, source: Indices, buffer: Indices | None = None) -> None:
        """Source rows ``source[i]`` go to rows ``target[i]``, both (n,) and ascending, through local buffer (n,)."""
        self._whole.add(target, source)
        if buffer is not None:
            for one in np.unique(buffer).tolist():
                mine = buffer == one
                self._split.setdefault(one, _Runs()).add(target[mine], source[mine])

    def finish(self) -> list[Piece]:
        """The pieces."""
        whole = self._whole.finish()
        if len(whole) <= 2 or not self._split:
            return whole
        split = [piece for _, runs in sorted(self._split.items()) for piece in runs.finish()]
        return min(whole, split, key=len)


def pieces(target: Indices, buffer: Indices | None = None) -> list[Piece]:
    """Pieces that map source row i to row ``target[i]``; target (n,) without duplicates, in any order."""
    order = np.argsort(target, kind="stable")
    mapping = Mapping()
    mapping.add(target[order], order, None if buffer is None else buffer[order])
    return mapping.finish()


def rows(first: int, stride: int, count: int, block: int) -> Indices:
    """Row indices of a regular selection, in order."""
    starts = first + stride * np.arange(count, dtype=np.int64)
    return np.add.outer(starts, np.arange(block, dtype=np.int64)).ravel()


class _Runs:
    """Two run-length encodings: rows into blocks of neighbours, equal blocks at equal distances into pieces."""

    def __init__(self) -> None:
        self._open = np.empty((0, 3), np.int64)  # the last block: first target row, first source row, length
        self._blocks = Progressions(3, _joins)

    def add(self, target: Indices, source: Indices) -> None:
        if not len(target):
            return
        cuts = np.flatnonzero((np.diff(target) != 1) | (np.diff(source) != 1)) + 1
        begin = np.concatenate(([0], cuts))
        length = np.diff(np.concatenate((begin, [len(target)])))
        blocks = np.stack((target[begin], source[begin], length), axis=1)
        if len(self._open):
            at, of, size = self._open[0]
            if blocks[0, 0] == at + size and blocks[0, 1] == of + size:
                blocks[0] = at, of, size + blocks[0, 2]
            else:
                blocks = np.concatenate((self._open, blocks))
        self._blocks.add(blocks[:-1])
        self._open = blocks[-1:]

    def finish(self) -> list[Piece]:
        self._blocks.add(self._open)
        self._open = self._open[:0]
        return [
            Piece(at, of, count, block, at_step or block, of_step or block)
            for at, of, block, at_step, of_step, _, count in self._blocks.finish().tolist()
        ]


def _joins(blocks: Indices, steps: Indices) -> NDArray[np.bool_]:
    """Whether blocks (n, 3) and the ones that follow them by ``steps`` can be one piece."""
    joins: NDArray[np.bool_] = (steps[:, 2] == 0) & (steps[:, 0] >= blocks[:, 2]) & (steps[:, 1] >= blocks[:, 2])
    return joins
