"""A shared file by collective MPI-IO: small requests of all ranks are put together to large ones.

The file view of a rank shows its own rows, one after another, so that what it writes is contiguous in its memory and
in its view; how the rows of ranks interleave in the file is left to MPI.

The writes are blocking calls in a thread of their own: MPICH's non-blocking collective write tells nobody when a disk
refuses.
"""

import errno
import queue
import threading
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from lima2cli.transport.shared_file import Stripes

LARGE_BYTES = 1 << 16
"""Stripes of this size each rank writes itself: moving them to another first costs more than it gains."""


class _Writing:
    """See `Pending`."""

    def __init__(self, first: int, rows: NDArray[np.uint8]) -> None:
        self.first, self.rows = first, rows
        self.ended = threading.Event()
        self.error: OSError | None = None

    def done(self) -> bool:
        """See `SharedFile.begin`."""
        if self.error is not None:
            raise self.error
        return self.ended.is_set()


class MpiFile:
    """See `SharedFile`. OSError where the file can't be opened; making one is collective over ``communicator``."""

    def __init__(self, communicator: MPI.Intracomm, path: str, stripes: Stripes) -> None:
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise OSError("this MPI gives no THREAD_MULTIPLE, which common files need")
        merge = "disable" if stripes.block * stripes.row_bytes >= LARGE_BYTES else "enable"
        every = {"cb_nodes": str(communicator.Get_size()), "cb_config_list": "*:*"}  # each rank may put together
        hints = MPI.Info.Create({"romio_cb_write": merge, "romio_ds_write": "disable"} | every)
        try:
            self._file = MPI.File.Open(communicator, path, MPI.MODE_WRONLY, hints)
        except MPI.Exception as error:
            raise _as_os_error(error, path) from error
        finally:
            hints.Free()
        self._path = path
        self._row = MPI.BYTE.Create_contiguous(stripes.row_bytes).Commit()
        stripe = self._row.Create_indexed_block(stripes.block, [place * stripes.block for place in stripes.own])
        self._view = stripe.Create_resized(0, stripes.row_bytes * stripes.block * stripes.count).Commit()
        stripe.Free()
        self._file.Set_view(stripes.offset, self._row, self._view)
        self._queue: queue.SimpleQueue[_Writing | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="mpi-file", daemon=True)
        self._thread.start()

    def begin(self, first: int, rows: NDArray[np.uint8]) -> _Writing:
        """See `SharedFile.begin`."""
        writing = _Writing(first, rows)
        self._queue.put(writing)
        return writing

    def close(self) -> None:
        """See `SharedFile.close`."""
        self._queue.put(None)
        self._thread.join()
        self._file.Close()
        self._view.Free()
        self._row.Free()

    def _write(self) -> None:
        while (writing := self._queue.get()) is not None:
            buffer: Any = [writing.rows, len(writing.rows), self._row]
            try:
                self._file.Write_at_all(writing.first, buffer)
            except MPI.Exception as error:
                writing.error = _as_os_error(error, self._path)
            writing.ended.set()


def _as_os_error(error: MPI.Exception, path: str) -> OSError:
    """What MPI says of a file, as the system would."""
    known = {
        MPI.ERR_NO_SPACE: errno.ENOSPC,
        MPI.ERR_QUOTA: errno.EDQUOT,
        MPI.ERR_ACCESS: errno.EACCES,
        MPI.ERR_READ_ONLY: errno.EROFS,
        MPI.ERR_NO_SUCH_FILE: errno.ENOENT,
    }
    words = error.Get_error_string().strip().rpartition("\n")[2].rpartition("error ")[2]
    return OSError(known.get(error.Get_error_class(), errno.EIO), words.removesuffix(f": '{path}'"), path)
