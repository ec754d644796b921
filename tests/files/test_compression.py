"""Chunks compressed outside the HDF5 library are those that it would have written, with its own plugins."""

import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from numpy.typing import NDArray

from lima2cli.files import compression as hdf5_filters
from lima2cli.files import compression as module
from lima2cli.files.compression import COMPRESSIONS, FilterFunction, encoder, filter_options, load_filters
from tests.running import TRANSPORTS, program, run

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
SHAPES = [(1, 1, 1), (3, 7, 5), (2, 129, 67), (1, 64, 64), (1, 300, 301)]
PLUGINS = [name for name in COMPRESSIONS if name not in ("none", "gzip")]

load_filters()


def written_by_the_library(path: Path, compression: str, chunk: NDArray[Any]) -> tuple[int, bytes]:
    """Filter mask and bytes of a chunk that went through the filter pipeline."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "data", data=chunk, chunks=chunk.shape, **filter_options(compression, chunk.dtype.name)
        )
        mask, stored = data.id.read_direct_chunk((0, 0, 0))
    return mask, bytes(stored)


@pytest.mark.parametrize("kind", ["counts", "noise"])
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [*((dtype, SHAPES[2]) for dtype in DTYPES), *(("uint16", shape) for shape in SHAPES if shape != SHAPES[2])],
)
def test_encoded_chunks_are_those_of_the_library(
    tmp_path: Path, compression: str, dtype: str, shape: tuple[int, int, int], kind: str
) -> None:
    """Noise does not become smaller: blosc leaves such a chunk as it is, and says so in the filter mask."""
    random = np.random.default_rng(1)
    if kind == "counts":
        chunk = random.integers(0, 100, shape).astype(dtype)
    else:
        chunk = np.frombuffer(random.bytes(prod(shape) * np.dtype(dtype).itemsize), dtype).reshape(shape)
    stored = encoder(compression, dtype, shape)(chunk)
    assert (stored.mask, bytes(stored.data)) == written_by_the_library(tmp_path / "library.h5", compression, chunk)
    with h5py.File(tmp_path / "direct.h5", "w") as file:
        data = file.create_dataset("data", shape, dtype, chunks=shape, **filter_options(compression, chunk.dtype.name))
        data.id.write_direct_chunk((0, 0, 0), stored.data, stored.mask)
    with h5py.File(tmp_path / "direct.h5") as file:
        np.testing.assert_array_equal(file["data"][()], chunk)


def test_what_blosc_leaves_as_it_is_is_a_copy() -> None:
    """Frames may be overwritten before the chunk is written."""
    chunk = np.frombuffer(np.random.default_rng(1).bytes(2048), "uint16").reshape(1, 32, 32).copy()
    before = chunk.tobytes()
    stored = encoder("blosc", "uint16", chunk.shape)(chunk)
    chunk[:] = 0
    assert (stored.mask, stored.data) == (1, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bslz4_without_the_exported_function(
    shape: tuple[int, int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin library need not export more than its filter."""
    chunk = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    direct = encoder("bslz4", dtype, shape)(chunk)
    monkeypatch.setattr(module, "bitshuffle_lz4", lambda **_: None)
    assert encoder("bslz4", dtype, shape)(chunk) == direct


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_threads_share_an_encoder(compression: str) -> None:
    random = np.random.default_rng(1)
    chunks = [random.poisson(i % 50, (1, 200, 300)).astype(np.uint16) for i in range(100)]
    encode = encoder(compression, "uint16", (1, 200, 300))
    one = [bytes(encode(chunk).data) for chunk in chunks]
    with ThreadPoolExecutor(8) as pool:
        assert [bytes(stored.data) for stored in pool.map(encode, chunks)] == one


GROWS = """
    import resource, sys
    import numpy as np
    from lima2cli.files.compression import encoder
    chunk = np.random.default_rng(1).poisson(2, (1, 1024, 1024)).astype(np.uint16)
    if sys.argv[2] == "noise":
        chunk = np.frombuffer(np.random.default_rng(1).bytes(chunk.nbytes), np.uint16).reshape(chunk.shape)
    encode = encoder(sys.argv[1], "uint16", chunk.shape)
    for i in range(60):
        encode(chunk)
        if i == 9:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("kind", ["counts", "noise"])
@pytest.mark.parametrize("compression", PLUGINS)
def test_memory_does_not_grow(compression: str, kind: str) -> None:
    """50 chunks of 2 MiB would add 100 MiB if any were kept."""
    assert int(python(GROWS, compression, kind)) < 10 << 10


def test_a_filter_that_fails() -> None:
    """An item size of 7 bytes does not divide the chunk."""
    values = (0, 4, 7, 0, 2)
    chunk = np.arange(64, dtype=np.uint8)
    assert FilterFunction("bshuf", values)(chunk) == (chunk.tobytes(), False)
    with pytest.raises(OSError, match="the HDF5 filter bslz4 cannot compress a chunk of 64 bytes"):
        module._filtered("bslz4", values)(chunk)


def test_no_memory_for_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    function = FilterFunction("lz4", (0,))
    monkeypatch.setattr(hdf5_filters._libc(), "malloc", lambda size: None)
    with pytest.raises(MemoryError, match="64 bytes for a chunk"):
        function(np.zeros(64, np.uint8))


def test_a_filter_that_hdf5plugin_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=r"hdf5plugin [\d.]+ has no filter nope"):
        FilterFunction("nope", ())


def test_unknown_compression() -> None:
    with pytest.raises(ValueError, match="known: bslz4"):
        encoder("lzma", "uint16", (1, 2, 2))


def plugin_paths(folder: Path) -> dict[str, str]:
    """Values of HDF5_PLUGIN_PATH, by what they lead to."""
    own = Path(hdf5plugin.PLUGIN_PATH)
    copies, broken, wrong, empty = (folder / name for name in ("copies", "broken", "wrong", "empty"))
    for made in (copies, broken, wrong, empty):
        made.mkdir()
    for file in own.glob("*bshuf*"):
        shutil.copy(file, copies)  # the files of another installation
    for file in own.glob("*.so"):
        (broken / file.name).write_bytes(b"\x7fELF, and no more")
        shutil.copy(next(own.glob("*lz4*")), wrong / file.name)
    return {
        "own": str(own), "copies": str(copies), "broken": str(broken), "wrong": str(wrong), "empty": str(empty),
        "missing": str(folder / "missing"), "file": __file__, "several": f"{folder / 'missing'}:{own}:{broken}",
        "unset": "",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["own", "copies", "broken", "wrong", "empty", "missing", "file", "several", "unset"])
def test_plugins_of_others_do_not_matter(tmp_path: Path, name: str) -> None:
    path = plugin_paths(tmp_path)[name]
    code = "from lima2cli.files.compression import filter_problems\nprint(set(filter_problems().values()))"
    assert python(code, HDF5_PLUGIN_PATH=path) == "{None}\n"


def test_hdf5plugin_was_imported_by_others() -> None:
    """By code of the user's, say, before us."""
    code = """
        import hdf5plugin
        assert set(hdf5plugin.get_config().registered_filters.values()) == {"unknown"}
        from lima2cli.files.compression import filter_problems
        print(set(filter_problems().values()))
    """
    assert python(code, HDF5_PLUGIN_PATH=hdf5plugin.PLUGIN_PATH) == "{None}\n"


def test_the_library_looks_where_it_was_told_to() -> None:
    code = """
        from lima2cli.files.compression import load_filters
        from h5py import h5pl
        load_filters()
        print([h5pl.get(i) for i in range(h5pl.size())])
    """
    assert python(code, HDF5_PLUGIN_PATH="/one:/two") == "[b'/one', b'/two']\n"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_run_where_plugins_are_named(tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As hdf5plugin's documentation says, for programs that are not Python's."""
    np.save(tmp_path / "a.npy", np.random.default_rng(1).poisson(3, (20, 64, 64)).astype(np.uint16))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=np.load(tmp_path / "a.npy"), chunks=(1, 64, 64), **hdf5plugin.Zstd())
    monkeypatch.setenv("HDF5_PLUGIN_PATH", hdf5plugin.PLUGIN_PATH)
    text = "lima2: 1\ndetector: {replay: {file: a.h5::/data}}\nnodes: {save: {input: data, io_hdf5: {}}}\n"
    ran = run(text, tmp_path, transport, by=program)
    assert ran.code == 0, ran.output
    np.testing.assert_array_equal(ran.saved("save")[0], np.load(tmp_path / "a.npy"))
    for arguments in (
        ("inspect", "--verify", str(ran.directory)),
        ("doctor", "pipeline.yaml"),
        ("recover", str(ran.directory)),
    ):
        done = program(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "filter" not in done.stdout + done.stderr


def python(code: str, *arguments: str, **environment: str) -> str:
    """Return the output of a program of Python."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
