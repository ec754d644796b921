"""Disk space, allocated before the HDF5 library writes.

A library that meets a full disk while it flushes cannot close the file any more, and ends the process with it. All that
the library still has to write lies below the end of what it has given out, or a little beyond: so those bytes are
allocated first, and the disk refuses us, not the library.
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
"""Reasons why a disk takes nothing more, and what a user can do."""

_NUMBER = re.compile(r"\[Errno (\d+)\]")

UNKNOWN = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)
"""File systems that cannot allocate."""


def allocate(descriptor: int, first: int, last: int) -> None:
    """Allocate the bytes ``first`` to ``last - 1`` of an open file on the disk.

    Existing bytes stay as they are. Where the file system cannot allocate, bytes beyond the end of the file are written
    as zeros.

    Raises:
        OSError: the disk has no room.
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
    """Return what the refusal of a disk means, and what helps, for the first of these messages that reports one."""
    numbers = (int(number) for message in messages for number in _NUMBER.findall(message))
    return next((REFUSALS[number] for number in numbers if number in REFUSALS), None)


def advice(messages: Iterable[str], directory: object, *, whole: bool) -> list[str]:
    """Return a sentence of advice where messages report that a disk refused.

    ``whole``: masters and tables are there.
    """
    advised = refusal(*messages)
    if advised is None:
        return []
    then = "" if whole else f", then `lima2 recover {directory}` makes what is missing"
    return [f"{advised[0]}: {advised[1]}{then}"]


class Room:
    """Disk space of an HDF5 file that is open for writing: all below ``_had`` is allocated."""

    def __init__(self, h5: Any) -> None:
        self._h5, self._had = h5, 0

    def secure(self, margin: int = MARGIN, ahead: int = 0) -> None:
        """Make sure that what the library holds can be written, and ``margin`` bytes more.

        Where bytes have to be allocated, ``ahead`` more are taken if the disk has them, so that this is seldom.

        Raises:
            OSError: the disk has no room.
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
        """Note that the library has flushed: it cuts the file where what it has given out ends."""
        self._had = int(self._h5.id.get_filesize())


def begin(path: str) -> None:
    """Allocate the beginning of a new file of this name; an existing one is replaced.

    Raises:
        OSError: the disk has no room; there is no such file then.
    """
    with open(path, "wb") as file:
        try:
            allocate(file.fileno(), 0, MARGIN)
        except OSError:
            os.remove(path)
            raise


def give_back(path: str) -> None:
    """Free what was allocated beyond the end of a file.

    Raises:
        OSError: the file can't be changed.
    """
    os.truncate(path, os.path.getsize(path))


@cache
def _fallocate() -> Any:
    function = ctypes.CDLL(None, use_errno=True).fallocate64
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return function


def _write_zeros(descriptor: int, first: int, last: int) -> None:
    """Write zeros in pieces, as far as the disk takes them.

    Raises:
        OSError: the disk refuses.
    """
    while first < last:
        first += os.pwrite(descriptor, bytes(min(1 << 20, last - first)), first)
