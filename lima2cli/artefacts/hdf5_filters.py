"""The filters of hdf5plugin: registered with the HDF5 library, and called without it and its global lock.

A plugin library exports ``H5PLget_plugin_info``, which gives an ``H5Z_class2_t`` (H5Zpublic.h). Its filter function
takes a buffer from ``malloc`` and, where it succeeds, frees it and leaves another one from ``malloc`` in its place.
"""

import ctypes
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FUNCTION = ctypes.CFUNCTYPE(  # releases the interpreter's lock
    ctypes.c_size_t,
    ctypes.c_uint,  # flags
    ctypes.c_size_t,  # cd_nelmts
    ctypes.POINTER(ctypes.c_uint),  # cd_values
    ctypes.c_size_t,  # nbytes
    ctypes.POINTER(ctypes.c_size_t),  # buf_size
    ctypes.POINTER(ctypes.c_void_p),  # buf
)


class _FilterClass(ctypes.Structure):
    """H5Z_class2_t."""

    _fields_ = [
        ("version", ctypes.c_int),
        ("id", ctypes.c_int),
        ("encoder_present", ctypes.c_uint),
        ("decoder_present", ctypes.c_uint),
        ("name", ctypes.c_char_p),
        ("can_apply", ctypes.c_void_p),
        ("set_local", ctypes.c_void_p),
        ("filter", _FUNCTION),
    ]


@cache
def load_filters() -> None:
    """Register the filters of hdf5plugin with the HDF5 library of h5py, whatever HDF5_PLUGIN_PATH names.

    hdf5plugin leaves out what the library finds by that variable, be they its own files (which do not work before
    hdf5plugin has initialised them) or those of another version. Filters that hdf5plugin lacks are found there still.
    """
    with _no_other_plugins(), _single_threaded():
        import hdf5plugin
    config = hdf5plugin.get_config()
    foreign = [name for name, file in config.registered_filters.items() if file == "unknown"]  # loaded before us
    if own := [name for name in foreign if name in config.build_config.embedded_filters]:
        hdf5plugin.register(tuple(own), force=True)


@contextmanager
def _no_other_plugins() -> Iterator[None]:
    """Where the HDF5 library looks for plugins there are none for a moment."""
    from h5py import h5pl

    paths = [h5pl.get(index) for index in range(h5pl.size())]
    for _ in paths:
        h5pl.remove(0)
    try:
        yield
    finally:
        for path in paths:
            h5pl.append(path)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Load libraries without threads of their own: ranks share the cores, and such threads wait for each other.

    OpenMP reads the variable once, when it is loaded.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]


@cache
def _library(name: str) -> ctypes.CDLL:
    """The plugin library of a filter. ImportError where hdf5plugin has none."""
    load_filters()
    import hdf5plugin

    path = hdf5plugin.get_config().registered_filters.get(name, "unknown")
    if path == "unknown":
        raise ImportError(f"hdf5plugin {hdf5plugin.version} has no filter {name}")
    return ctypes.CDLL(path)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
    return libc


class FilterFunction:
    """A filter with its parameters. Threads may call it at the same time."""

    def __init__(self, name: str, values: tuple[int, ...]) -> None:
        """``name`` as hdf5plugin has it; ``values`` those of the dataset (cd_values). Raises ImportError."""
        library = _library(name)
        library.H5PLget_plugin_info.restype = ctypes.POINTER(_FilterClass)
        self._filter = library.H5PLget_plugin_info().contents.filter
        self._values = (ctypes.c_uint * len(values))(*values)

    def __call__(self, chunk: NDArray[Any]) -> tuple[bytes, bool]:
        """Return what the filter makes of a C-contiguous chunk, and True; the chunk and False where it gives up."""
        libc, count = _libc(), chunk.nbytes
        buffer, size = ctypes.c_void_p(libc.malloc(count)), ctypes.c_size_t(count)
        if not buffer.value:
            raise MemoryError(f"{count} bytes for a chunk")
        try:
            ctypes.memmove(buffer, chunk.ctypes.data, count)
            made = self._filter(0, len(self._values), self._values, count, ctypes.byref(size), ctypes.byref(buffer))
            return ctypes.string_at(buffer, made or count), bool(made)
        finally:
            libc.free(buffer)


_scratch = threading.local()


def bitshuffle_lz4(itemsize: int, block: int, count: int) -> Callable[[NDArray[Any]], bytes] | None:
    """Return what makes of chunks of ``count`` elements the same as the filter, without a copy of the chunk.

    ``block`` is the number of elements of a block. None where the plugin library does not export the function.
    The stream begins with the number of uncompressed bytes (uint64) and the bytes of a block (uint32), both big-endian
    (``bshuf_h5filter.c``). Raises ImportError.
    """
    library = _library("bshuf")
    try:
        compress, bound = library["bshuf_compress_lz4"], library["bshuf_compress_lz4_bound"]
    except AttributeError:
        return None
    size = ctypes.c_size_t
    compress.argtypes, compress.restype = [ctypes.c_void_p, ctypes.c_void_p, size, size, size], ctypes.c_int64
    bound.argtypes, bound.restype = [size, size, size], size
    header = np.frombuffer(struct.pack(">QI", count * itemsize, block * itemsize), np.uint8)
    most = len(header) + bound(count, itemsize, block)

    def encode(chunk: NDArray[Any]) -> bytes:
        out = scratch(most)
        made = compress(chunk.ctypes.data, out.ctypes.data + len(header), count, itemsize, block)
        if made < 0:
            raise OSError(f"bitshuffle cannot compress a chunk of {chunk.nbytes} bytes: its error {made}")
        out[: len(header)] = header
        return out[: len(header) + made].tobytes()

    return encode


def scratch(size: int) -> NDArray[np.uint8]:
    """Memory of this thread, at least so many bytes, until its next call."""
    held: NDArray[np.uint8] | None = getattr(_scratch, "bytes", None)
    if held is None or len(held) < size:
        held = _scratch.bytes = np.empty(size, np.uint8)
    return held
