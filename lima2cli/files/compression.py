"""Compression of chunks outside the HDF5 library by the filters of hdf5plugin, byte for byte as HDF5 would."""

import ctypes
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from math import prod
from typing import Any, NamedTuple

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
    """The C structure H5Z_class2_t."""

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
    """Hide the places where the HDF5 library looks for plugins for a moment."""
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
    """Return the plugin library of a filter.

    Raises:
        ImportError: hdf5plugin has none.
    """
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

    def __init__(self, name: str, values: tuple[int, ...], flags: int = 0) -> None:
        """Find a filter: ``name`` as hdf5plugin has it; ``values`` those of the dataset (cd_values).

        Raises:
            ImportError: hdf5plugin has none.
        """
        library = _library(name)
        library.H5PLget_plugin_info.restype = ctypes.POINTER(_FilterClass)
        self._filter = library.H5PLget_plugin_info().contents.filter
        self._values, self._flags = (ctypes.c_uint * len(values))(*values), flags

    def __call__(self, chunk: NDArray[Any]) -> tuple[bytes, bool]:
        """Return what the filter makes of a C-contiguous chunk, and True; the chunk and False where it gives up."""
        libc, count = _libc(), chunk.nbytes
        buffer, size = ctypes.c_void_p(libc.malloc(count)), ctypes.c_size_t(count)
        if not buffer.value:
            raise MemoryError(f"{count} bytes for a chunk")
        try:
            ctypes.memmove(buffer, chunk.ctypes.data, count)
            sizes = ctypes.byref(size), ctypes.byref(buffer)
            made = self._filter(self._flags, len(self._values), self._values, count, *sizes)
            return ctypes.string_at(buffer, made or count), bool(made)
        finally:
            libc.free(buffer)


_scratch = threading.local()


def bitshuffle_lz4(itemsize: int, block: int, count: int) -> Callable[[NDArray[Any]], bytes] | None:
    """Return a function that makes the same of chunks of ``count`` elements as the filter, without a copy of the chunk.

    ``block`` is the number of elements of a block. None where the plugin library does not export the function.
    """
    encode = bitshuffle_lz4_view(itemsize, block, count)
    return None if encode is None else lambda chunk: encode(chunk).tobytes()


Room = Callable[[int], NDArray[np.uint8]]
"""A function that returns memory for that many bytes or more; threads may call it at the same time."""


def scratch(size: int) -> NDArray[np.uint8]:
    """Return memory of this thread, (m,) bytes with m >= ``size``, valid until its next call."""
    held: NDArray[np.uint8] | None = getattr(_scratch, "bytes", None)
    if held is None or len(held) < size:
        held = _scratch.bytes = np.empty(size, np.uint8)
    return held


def bitshuffle_lz4_view(
    itemsize: int, block: int, count: int, room: Room = scratch
) -> Callable[[NDArray[Any]], memoryview] | None:
    """Return a function as `bitshuffle_lz4` does, whose result lies in memory that ``room`` gives.

    By default it is valid until the next call in the same thread only.

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

    def encode(chunk: NDArray[Any]) -> memoryview:
        out = room(most)
        made = compress(chunk.ctypes.data, out.ctypes.data + len(header), count, itemsize, block)
        if made < 0:
            raise OSError(f"bitshuffle cannot compress a chunk of {chunk.nbytes} bytes: its error {made}")
        out[: len(header)] = header
        return out[: len(header) + made].data

    return encode


LZ4_HEADER = struct.Struct(">QI")
"""Header of chunks of bitshuffle-LZ4 and LZ4: bytes before compression, bytes of a block."""

REVERSE = 0x0100
"""Flag of a filter that decompresses (H5Z_FLAG_REVERSE)."""


@cache
def lz4_reader(compression: str, itemsize: int) -> Callable[[bytes, NDArray[Any]], None]:
    """Return a function that decompresses a chunk, with its header, into a C-contiguous array of its size.

    compression  ``bslz4`` or ``lz4``. The function raises ValueError for a chunk that is damaged; it never reads or
    writes beyond either, and releases the interpreter's lock.

    Raises:
        ImportError: the filter is missing.
    """
    if compression == "lz4":
        undo = FilterFunction("lz4", (0,), REVERSE)

        def read_lz4(data: bytes, out: NDArray[Any]) -> None:
            _check_blocks(data, out.nbytes, 1)
            made, done = undo(np.frombuffer(data, np.uint8))
            if not done or len(made) != out.nbytes:
                raise ValueError("an LZ4 block can't be decompressed")
            out.reshape(-1).view(np.uint8)[:] = np.frombuffer(made, np.uint8)

        return read_lz4
    decompress, size = _library("bshuf")["bshuf_decompress_lz4"], ctypes.c_size_t
    decompress.argtypes = [ctypes.c_void_p, ctypes.c_void_p, size, size, size]
    decompress.restype = ctypes.c_int64

    def read_bslz4(data: bytes, out: NDArray[Any]) -> None:
        block = _check_blocks(data, out.nbytes, 8 * itemsize)
        blocks = np.frombuffer(data, np.uint8, offset=LZ4_HEADER.size)  # a view: the bytes are not copied
        made = decompress(blocks.ctypes.data, out.ctypes.data, out.size, itemsize, block // itemsize)
        if made < 0:
            raise ValueError(f"bitshuffle cannot decompress a block: its error {made}")

    return read_bslz4


def unpack(compression: str, data: bytes, out: NDArray[Any]) -> None:
    """Write what was compressed by ``bslz4``, ``lz4`` or ``none`` into a C-contiguous array; see `lz4_reader`.

    Raises:
        ValueError: it is damaged, or of another size.
    """
    if compression != "none":
        lz4_reader(compression, out.itemsize)(data, out)
    elif len(data) == out.nbytes:
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)
    else:
        raise ValueError(f"there are {len(data)} bytes, {out.nbytes} are expected")


def blocks_are_whole(compression: str, itemsize: int, data: bytes, size: int) -> bool:
    """Return whether a chunk of ``size`` bytes has its header and all its blocks, which are not looked into."""
    try:
        _check_blocks(data, size, 8 * itemsize if compression == "bslz4" else 1)
    except ValueError:
        return False
    return True


def _check_blocks(data: bytes, size: int, unit: int) -> int:
    """Return the bytes of a block, once all blocks are known to lie within ``data``: the libraries do not look.

    Blocks are of whole ``unit`` bytes; what is left is stored as it is.
    """
    whole, block = LZ4_HEADER.unpack_from(data) if len(data) >= LZ4_HEADER.size else (0, 0)
    if whole != size or block == 0 or block % unit:
        raise ValueError(f"its header says {whole} bytes in blocks of {block}")
    at, end = LZ4_HEADER.size, len(data) - size % unit
    for _ in range(-(-(size - size % unit) // block)):
        at += 4 + int.from_bytes(data[at : at + 4], "big")
        if at > end:
            raise ValueError("it is cut off")
    if at != end:
        raise ValueError(f"{end - at} bytes are left over")
    return int(block)


COMPRESSIONS = ("bslz4", "none", "gzip", "lz4", "zstd", "blosc")

GZIP_LEVEL = 4

BLOCK_BYTES = 48 << 10
"""Bytes that bitshuffle and LZ4 work on at once.

LZ4 clears a table of 16 KiB for each block: the library's own choice of 8 KiB costs a sixth of the rate, and compresses
less.
"""

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


def encoder(compression: str, dtype: str, chunk_shape: tuple[int, ...], room: Room | None = None) -> Encoder:
    """Return a function that compresses whole chunks; where it can, into memory that ``room`` gives.

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
        sizes = {"itemsize": values[2], "block": values[3], "count": prod(chunk_shape)}
        direct = bitshuffle_lz4(**sizes) if room is None else bitshuffle_lz4_view(**sizes, room=room)
        if direct is not None:
            return lambda chunk: Stored(direct(chunk))
    return _filtered(compression, values)


def filter_options(compression: str, dtype: str) -> Mapping[str, Any]:
    """Return the keywords of `h5py.Group.create_dataset` that declare the filter of `encoder` for a dtype."""
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
    """Return the parameters of the filter (cd_values) as the library completes them when a dataset is made."""
    import h5py

    with h5py.File("values.h5", "w", driver="core", backing_store=False) as file:
        options = filter_options(compression, dtype)
        data = file.create_dataset("data", chunk_shape, dtype, chunks=chunk_shape, **options)
        values: tuple[int, ...] = data.id.get_create_plist().get_filter(0)[2]
    return values


def _filtered(compression: str, values: tuple[int, ...]) -> Encoder:
    """Return a filter called as the library does.

    Blosc gives up where a chunk would grow, which is then stored as it is.
    """
    function = FilterFunction(_PLUGINS[compression], values)
    may_give_up = compression == "blosc"
    function(np.zeros(64, np.uint8))  # the first call initialises some libraries, which threads must not do at once

    def encode(chunk: NDArray[Any]) -> Stored:
        data, done = function(chunk)
        if not done and not may_give_up:
            raise OSError(f"the HDF5 filter {compression} cannot compress a chunk of {chunk.nbytes} bytes")
        return Stored(data, mask=0 if done else 1)

    return encode


CHUNK = (1, 64, 64)


def filter_problems() -> Mapping[str, str | None]:
    """Return, by compression, what goes wrong with a chunk that is written and read again; None where all is well."""
    return {compression: _problem(compression) for compression in COMPRESSIONS}


def _problem(compression: str) -> str | None:
    """Write a file in memory as frame files are, read it through the library's filters, and return what goes wrong."""
    frame = np.arange(CHUNK[1] * CHUNK[2], dtype=np.uint16).reshape(CHUNK)
    try:
        import h5py

        encode = encoder(compression, "uint16", CHUNK)
        with h5py.File("filters.h5", "w", driver="core", backing_store=False) as file:
            data = file.create_dataset("data", CHUNK, np.uint16, chunks=CHUNK, **filter_options(compression, "uint16"))
            stored = encode(frame)
            data.id.write_direct_chunk((0, 0, 0), stored.data, stored.mask)
            same = np.array_equal(data[()], frame)
    except (ImportError, OSError, ValueError, AttributeError) as error:  # AttributeError: a library without the filter
        return f"{type(error).__name__}: {error}"
    return None if same else "what is read is not what was written"


def hdf5_versions() -> str:
    """Return the versions of h5py and of the HDF5 library that it brings."""
    import h5py

    return f"h5py {h5py.version.version}, HDF5 {h5py.version.hdf5_version}"
