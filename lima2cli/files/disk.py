"""A disk that is full or fails, and the HDF5 library, which survives neither.

A library that meets a full disk while it flushes cannot close the file any more, and ends the process with it. All that
the library still has to write lies below the end of what it has given out, or a little beyond: so those bytes are
allocated first, and the disk refuses us, not the library (`Room`). Where the disk fails nevertheless, nothing more is
done with the file, not even at the end of the process (`disk_errors`).
"""

import ctypes
import errno
import os
import re
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

MARGIN = 1 << 16
"""Bytes that the library may give out while it flushes, where chunks are written directly."""

KEEP_SIZE = 1
"""FALLOC_FL_KEEP_SIZE of fallocate(2): the file does not look longer."""

REFUSALS = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the quota of the disk is used up", "make room"),
    errno.EROFS: ("the disk is read-only", "mount it for writing"),
    errno.EIO: ("the disk fails", "look at the system's log, and copy the readable files"),
    errno.EFBIG: ("the limit of the file size is reached", "raise it (`ulimit -f`)"),
    errno.ESTALE: ("the file server no longer knows the files", "mount it again"),
    errno.EPERM: ("files may not be changed", "change their attributes (`lsattr` shows them)"),
    errno.EACCES: ("there is no permission to write files", "change the permissions"),
}
"""Reasons why a disk takes nothing more, and what a user can do."""

_NUMBER = re.compile(r"\[Errno (\d+)\]")

FAILURES = (errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO)
"""Errors of a disk that takes no more writes at all, also not where there was room."""

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


def give_back(file: str | int) -> None:
    """Free what was allocated beyond the end of a file, given by its path or by an open descriptor.

    Raises:
        OSError: the file can't be changed.
    """
    os.truncate(file, os.stat(file).st_size)


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


_REFUSED = re.compile(r"errno = (\d+), error message = '([^']*)'")
"""Pattern of the reason in the long messages of the HDF5 library."""

_written: dict[str, tuple[Any, int]] = {}
"""HDF5 files that are open for writing and their descriptors, by the path that `disk_errors` is given."""

_broken = False


def watch(path: str, h5: Any) -> None:
    """Note an HDF5 file as open for writing, until `close_unwritten`."""
    _written[path] = h5, h5.id.get_vfd_handle()


def library_is_broken() -> bool:
    """Return whether a disk has failed in this process.

    The library then has structures that it has freed and goes on to use: it crashes when it closes a file, also at the
    end of the process. So no file that it writes is closed any more, and what it says of them is not to be trusted.
    """
    return _broken


@contextmanager
def disk_errors(path: str) -> Iterator[None]:
    """Raise whatever the HDF5 library raises when a disk refuses as an OSError, in the words of the system."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        refused = _REFUSED.search(str(error))
        number = int(refused[1]) if refused is not None else getattr(error, "errno", None)
        if number in FAILURES and _written:
            _distrust_library()
        if refused is not None:
            raise OSError(number, refused[2], path) from error
        if isinstance(error, OSError):
            if error.errno is not None and error.filename is None:
                raise OSError(error.errno, error.strerror, path) from error
            raise
        raise OSError(f"{path}: {error}") from error


def close_unwritten(path: str) -> None:
    """Close a file that is watched without another byte to the disk.

    The library insists on writing what it holds, so its descriptor is pointed to memory.
    """
    h5, descriptor = _written.pop(path, (None, -1))
    if not h5:
        return
    _point_to_memory(descriptor)
    if _broken:
        _keep(h5)
        return
    with suppress(RuntimeError, OSError):  # a limit on the size of files (ulimit -f) holds for memory too
        h5.close()


def _keep(h5: Any) -> None:
    """Give a file, and whatever is open of it, a reference forever: its last would close it."""
    import h5py

    kept = [h5, h5.id]
    with suppress(RuntimeError, ValueError):
        kept += h5py.h5f.get_obj_ids(h5.id)
    for one in kept:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


def _distrust_library() -> None:
    """Have the process end without the library's own end."""
    global _broken
    if not _broken:
        libc = ctypes.CDLL(None)
        with suppress(AttributeError):  # a system without on_exit(3): the process may end by a signal
            libc.on_exit(libc._exit, None)  # runs first: handlers that are registered before it do not
    _broken = True


def _point_to_memory(descriptor: int) -> None:
    memory = os.memfd_create("abandoned")
    os.dup2(memory, descriptor)
    os.close(memory)
