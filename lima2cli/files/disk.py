"""Room on a disk, had before the HDF5 library writes: a library that meets a full disk while it flushes cannot close
the file any more, and takes the process along when that ends.

All that the library still has to write lies below the end of what it has given out, or a little beyond: so those bytes
are allocated first, and the disk refuses us, not the library.
"""

import ctypes
import errno
import os
import re
import resource
from collections.abc import Iterable
from functools import cache
from typing import Any

MARGIN = 1 << 16
"""Bytes that the library may give out while it flushes, where chunks are written directly."""

KEEP_SIZE = 1
"""FALLOC_FL_KEEP_SIZE of fallocate(2): the file does not look longer."""

REFUSALS = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the quota of the disk is used up", "make room"),
    errno.EROFS: ("the disk is read-only", "have it mounted for writing"),
    errno.EIO: ("the disk fails", "look into the system's log, and copy what can be read"),
    errno.EFBIG: ("a file may grow no larger", "raise its limit (`ulimit -f`)"),
    errno.ESTALE: ("the file server does not know the files any more", "mount it again"),
    errno.EPERM: ("files may not be changed", "have that allowed (`lsattr` shows why)"),
    errno.EACCES: ("files may not be written", "have that allowed"),
}
"""Why a disk takes nothing more, and what a user can do."""

_NUMBER = re.compile(r"\[Errno (\d+)\]")

UNKNOWN = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)
"""File systems that cannot allocate."""


def allocate(descriptor: int, first: int, last: int) -> None:
    """Have the bytes ``first`` to ``last - 1`` of an open file on the disk. OSError where it has no room.

    What is there already stays as it is. Where the file system cannot allocate, bytes beyond the end of the file are
    written as zeros.
    """
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if resource.RLIM_INFINITY != limit < last:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    if last <= first:
        return
    while _fallocate()(descriptor, KEEP_SIZE, first, last - first):
        error = ctypes.get_errno()
        if error in UNKNOWN:
            _write_zeros(descriptor, max(first, os.fstat(descriptor).st_size), last)
            return
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))


def refusal(*messages: str) -> tuple[str, str] | None:
    """What it means that a disk refused, and what helps, of the first of these messages that tells of that."""
    numbers = (int(number) for message in messages for number in _NUMBER.findall(message))
    return next((REFUSALS[number] for number in numbers if number in REFUSALS), None)


def advice(messages: Iterable[str], directory: object, *, whole: bool) -> list[str]:
    """In a sentence: what to do where messages tell of a disk that refused. ``whole``: masters and tables are there."""
    told = refusal(*messages)
    if told is None:
        return []
    then = "" if whole else f", then `lima2 recover {directory}` makes what is missing"
    return [f"{told[0]}: {told[1]}{then}"]


class Room:
    """What an HDF5 file that is open for writing has of the disk: all below ``_had``."""

    def __init__(self, h5: Any) -> None:
        self._h5, self._had = h5, 0

    def secure(self, margin: int = MARGIN, ahead: int = 0) -> None:
        """Make sure that what the library holds can be written, and ``margin`` bytes more. OSError.

        Where something has to be had, ``ahead`` bytes more are taken if the disk has them, so that this is seldom.
        """
        needed = int(self._h5.id.get_filesize()) + margin
        if needed <= self._had:
            return
        descriptor = self._h5.id.get_vfd_handle()
        try:
            allocate(descriptor, self._had, needed + ahead)
            self._had = needed + ahead
        except OSError:
            allocate(descriptor, self._had, needed)
            self._had = needed

    def cut(self) -> None:
        """The library has flushed: it cuts the file where what it has given out ends."""
        self._had = int(self._h5.id.get_filesize())


def begin(path: str) -> None:
    """Make sure that a new file of this name has room for its beginning; what was there is gone. OSError; then there is
    no such file."""
    with open(path, "wb") as file:
        try:
            allocate(file.fileno(), 0, MARGIN)
        except OSError:
            os.remove(path)
            raise


def give_back(path: str) -> None:
    """Free what was allocated beyond the end of a file. OSError."""
    os.truncate(path, os.path.getsize(path))


@cache
def _fallocate() -> Any:
    function = ctypes.CDLL(None, use_errno=True).fallocate64
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return function


def _write_zeros(descriptor: int, first: int, last: int) -> None:
    """In pieces, as far as the disk takes them. OSError."""
    while first < last:
        first += os.pwrite(descriptor, bytes(min(1 << 20, last - first)), first)
