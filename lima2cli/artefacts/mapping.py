"""Rows of a source file to rows of a virtual dataset, in as few regular pieces as there are."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Rows ``target + i*target_stride + j`` come from ``source + i*source_stride + j``, i < count, j < block."""

    target: int
    source: int
    count: int
    block: int
    target_stride: int
    source_stride: int


def pieces(target: Indices, buffer: Indices | None = None) -> list[Piece]:
    """Pieces that map source row i to row ``target[i]``; target (n,) without duplicates.

    buffer (n,) is the local buffer that each row went through: rows of one buffer are regular where those of a
    receiver, which may own several, need not be. The shorter list wins.
    """
    source = np.arange(len(target), dtype=np.int64)
    whole = list(_runs(target, source))
    if buffer is None or len(whole) <= 2:
        return whole
    split = [piece for one in np.unique(buffer) for piece in _runs(target[buffer == one], source[buffer == one])]
    return min(whole, split, key=len)


def rows(first: int, stride: int, count: int, block: int) -> Indices:
    """Row indices of a regular selection, in order."""
    starts = first + stride * np.arange(count, dtype=np.int64)
    return np.add.outer(starts, np.arange(block, dtype=np.int64)).ravel()


def _runs(target: Indices, source: Indices) -> Iterator[Piece]:
    """Two run-length encodings: rows into blocks of neighbours, equal blocks at equal distances into pieces."""
    if not len(target):
        return
    order = np.argsort(target, kind="stable")
    target, source = target[order], source[order]
    cuts = np.flatnonzero((np.diff(target) != 1) | (np.diff(source) != 1)) + 1
    begin = np.concatenate(([0], cuts))
    length = np.diff(np.concatenate((begin, [len(target)])))
    at, of = target[begin], source[begin]
    first = _first_of_each(at, of, length)
    last = np.concatenate((first[1:], [len(at)]))
    for i, end in zip(first.tolist(), last.tolist(), strict=True):
        count, block = end - i, int(length[i])
        strides = (int(at[i + 1] - at[i]), int(of[i + 1] - of[i])) if count > 1 else (block, block)
        yield Piece(int(at[i]), int(of[i]), count, block, *strides)


def _first_of_each(at: Indices, of: Indices, length: Indices) -> Indices:
    """The first block of each piece, of blocks at rows ``at`` that come from rows ``of``.

    Runs of equal steps from block to block become pieces; a block between two runs goes to the longer.
    """
    if len(at) < 2:
        return np.zeros(len(at), np.int64)
    joins = (length[1:] == length[:-1]) & (np.diff(of) >= length[:-1]) & (np.diff(at) >= length[:-1])
    same = (np.diff(np.diff(at)) == 0) & (np.diff(np.diff(of)) == 0) & joins[1:] & joins[:-1]
    begin = np.concatenate(([0], np.flatnonzero(~same) + 1))  # step i leads from block i to block i + 1
    weight = np.diff(np.concatenate((begin, [len(joins)]))) * joins[begin]
    longer = np.concatenate(([True], weight[1:] > weight[:-1]))
    starts = np.where(longer, begin, begin + 1)
    stops = np.concatenate((starts[1:], [len(at)]))
    kept = starts[stops > starts]
    return np.union1d(kept, [1]) if not weight[0] and stops[0] == 2 else kept
