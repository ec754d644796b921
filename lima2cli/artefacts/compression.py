"""Chunks compressed outside the HDF5 library, byte for byte what its filters would have written.

Only so can a chunk be compressed without the library's global lock, and written without a second copy.
"""

import zlib
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.hdf5_filters import FilterFunction, bitshuffle_lz4, load_filters

COMPRESSIONS = ("bslz4", "none", "gzip", "lz4", "zstd", "blosc")

GZIP_LEVEL = 4

BLOCK_BYTES = 48 << 10
"""What bitshuffle and LZ4 work on at once. LZ4 clears a table of 16 KiB for each block: the library's own choice of
8 KiB costs a sixth of the rate, and compresses less."""

_PLUGINS = {"bslz4": "bshuf", "lz4": "lz4", "zstd": "zstd", "blosc": "blosc"}
"""Name of the filter in hdf5plugin."""


class Stored(NamedTuple):
    """A chunk as the file holds it.

    data  any object with the buffer protocol
    mask  filter mask of `h5py.h5d.DatasetID.write_direct_chunk`: 1 where the filter was left out
    checksum   of the data, None: not taken
    """

    data: Any
    mask: int = 0
    checksum: int | None = None


Encoder = Callable[[NDArray[Any]], Stored]
"""A C-contiguous chunk to what the file holds; for ``none`` the chunk itself. Threads may share one."""


def encoder(compression: str, dtype: str, chunk_shape: tuple[int, ...]) -> Encoder:
    """Return what compresses whole chunks.

    Raises ValueError for an unknown compression, ImportError where its filter is missing. The encoder raises OSError
    where a filter fails.
    """
    if compression not in COMPRESSIONS:
        raise ValueError(f"unknown compression {compression!r}; known: {', '.join(COMPRESSIONS)}")
    if compression == "none":
        return Stored
    if compression == "gzip":
        return lambda chunk: Stored(zlib.compress(chunk.data, GZIP_LEVEL))
    values = _filter_values(compression, dtype, chunk_shape)
    if compression == "bslz4":
        direct = bitshuffle_lz4(itemsize=values[2], block=values[3], count=prod(chunk_shape))
        if direct is not None:
            return lambda chunk: Stored(direct(chunk))
    return _filtered(compression, values)


def filter_options(compression: str, dtype: str) -> Mapping[str, Any]:
    """Keywords of `h5py.Group.create_dataset` that declare the filter of `encoder` for a dataset of a dtype."""
    if compression == "none":
        return {}
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": GZIP_LEVEL}
    load_filters()
    import hdf5plugin

    options: dict[str, Callable[[], Mapping[str, Any]]] = {
        "bslz4": lambda: hdf5plugin.Bitshuffle(nelems=BLOCK_BYTES // np.dtype(dtype).itemsize, cname="lz4"),
        "lz4": lambda: hdf5plugin.LZ4(),
        "zstd": lambda: hdf5plugin.Zstd(),
        "blosc": lambda: hdf5plugin.Blosc(cname="lz4", shuffle=hdf5plugin.Blosc.SHUFFLE),
    }
    return dict(options[compression]())


def _filter_values(compression: str, dtype: str, chunk_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The parameters of the filter (cd_values) as the library completes them when a dataset is made."""
    import h5py

    with h5py.File("values.h5", "w", driver="core", backing_store=False) as file:
        options = filter_options(compression, dtype)
        data = file.create_dataset("data", chunk_shape, dtype, chunks=chunk_shape, **options)
        values: tuple[int, ...] = data.id.get_create_plist().get_filter(0)[2]
    return values


def _filtered(compression: str, values: tuple[int, ...]) -> Encoder:
    """A filter called as the library does. Blosc gives up where a chunk would grow, which is then stored as it is."""
    function = FilterFunction(_PLUGINS[compression], values)
    may_give_up = compression == "blosc"
    function(np.zeros(64, np.uint8))  # the first call initialises some libraries, which threads must not do at once

    def encode(chunk: NDArray[Any]) -> Stored:
        data, done = function(chunk)
        if not done and not may_give_up:
            raise OSError(f"the HDF5 filter {compression} cannot compress a chunk of {chunk.nbytes} bytes")
        return Stored(data, mask=0 if done else 1)

    return encode
