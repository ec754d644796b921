"""A shared file in one process: each rank writes its own rows at once."""

import os

import numpy as np
from numpy.typing import NDArray

from lima2cli.transport.shared_file import Stripes


class _Written:
    """See `Pending`: of what is written when it begins."""

    def __init__(self, error: OSError | None) -> None:
        self._error = error

    def done(self) -> bool:
        """See `SharedFile.begin`."""
        if self._error is not None:
            raise self._error
        return True


class InlineFile:
    """See `SharedFile`. OSError where the file can't be opened."""

    def __init__(self, path: str, stripes: Stripes) -> None:
        self._stripes = stripes
        self._descriptor = os.open(path, os.O_WRONLY)

    def begin(self, first: int, rows: NDArray[np.uint8]) -> _Written:
        """See `SharedFile.begin`; a system call for each run of neighbours."""
        stripes, error = self._stripes, None
        own = stripes.rows(first, first + len(rows))
        cuts = np.flatnonzero(np.diff(own) != 1) + 1
        try:
            for piece, row in zip(np.split(rows, cuts), own[np.concatenate(([0], cuts))[: len(own)]], strict=False):
                write_whole(self._descriptor, piece, stripes.offset + int(row) * stripes.row_bytes)
        except OSError as refused:
            error = refused
        return _Written(error)

    def close(self) -> None:
        """See `SharedFile.close`."""
        os.close(self._descriptor)


def write_whole(descriptor: int, piece: NDArray[np.uint8], offset: int) -> None:
    """Write bytes at an offset, however often the system has to be asked. OSError."""
    left = piece.reshape(-1).data
    while len(left):
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written
