"""Locks of whole files, which end with the process that holds them (flock(2))."""

import errno
import fcntl

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""File systems without locks."""


def lock(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file for this process alone; False where another one holds it. Where the file system has no locks
    it counts as locked. OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in NO_LOCKS:
            raise
    return True


def unlock(descriptor: int) -> None:
    """Unlock a file for all that have it open by the same `open`. OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
