"""Chunks compressed outside the HDF5 library, byte for byte what its filters would have written.

Only so can a chunk be compressed without the library's global lock, and written without a second copy.
"""

import os
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

COMPRESSIONS = ("bslz4", "none", "gzip", "lz4", "zstd", "blosc")

GZIP_LEVEL = 4

Encoder = Callable[[NDArray[Any]], Any]
"""A C-contiguous chunk to the bytes that the file holds (any object with the buffer protocol)."""


def encoder(compression: str, dtype: str, chunk_shape: tuple[int, ...]) -> Encoder | None:
    """What turns a whole chunk into the stored bytes; for ``none`` the chunk itself.

    None for lz4, zstd and blosc: such chunks are written through the library's filter pipeline.
    Raises ValueError for an unknown compression.
    """
    if compression not in COMPRESSIONS:
        raise ValueError(f"unknown compression {compression!r}; known: {', '.join(COMPRESSIONS)}")
    if compression == "none":
        return lambda chunk: chunk
    if compression == "gzip":
        return lambda chunk: zlib.compress(chunk.data, GZIP_LEVEL)
    if compression == "bslz4":
        return _bslz4(np.dtype(dtype), chunk_shape)
    return None


def filter_options(compression: str) -> Mapping[str, Any]:
    """Keywords of `h5py.Group.create_dataset` that declare the filter of `encoder`."""
    if compression == "none":
        return {}
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": GZIP_LEVEL}
    import hdf5plugin

    options: dict[str, Callable[[], Mapping[str, Any]]] = {
        "bslz4": lambda: hdf5plugin.Bitshuffle(nelems=0, cname="lz4"),
        "lz4": lambda: hdf5plugin.LZ4(),
        "zstd": lambda: hdf5plugin.Zstd(),
        "blosc": lambda: hdf5plugin.Blosc(cname="lz4", shuffle=hdf5plugin.Blosc.SHUFFLE),
    }
    return dict(options[compression]())


def _bslz4(dtype: np.dtype[Any], chunk_shape: tuple[int, ...]) -> Encoder:
    """Bitshuffle + LZ4, filter 32008.

    The filter's stream begins with the number of uncompressed bytes (uint64) and the bytes of a block (uint32),
    both big-endian (bitshuffle, ``src/bshuf_h5filter.c``). The library's default block is the largest multiple
    of 8 elements within 8192 bytes, at least 128 elements (``bshuf_default_block_size``).
    """
    bitshuffle = load_bitshuffle()
    elements = max(8192 // dtype.itemsize // 8 * 8, 128)
    total = int(np.prod(chunk_shape)) * dtype.itemsize
    header = struct.pack(">QI", total, elements * dtype.itemsize)
    compress = bitshuffle.compress_lz4

    def encode(chunk: NDArray[Any]) -> bytes:
        return b"".join((header, compress(chunk, elements)))

    return encode


def load_bitshuffle() -> Any:
    """The module bitshuffle, without threads of its own: ranks share the cores, and its threads wait for each other.

    OpenMP reads the variable once, when the library is loaded.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        import bitshuffle
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
    return bitshuffle
