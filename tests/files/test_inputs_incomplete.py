"""Files that lack frames, in every format: that is found without reading them, and skipped where that is asked."""

import gzip
import random
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2cli.errors import FileProblem
from lima2cli.frames import StackInfo
from lima2cli.inputs.missing import spans
from lima2cli.inputs.stacks import FileStore
from tests.faults.apart import reset_peak, status
from tests.faults.files import inputs
from tests.files.conftest import Store

FRAMES = np.arange(1, 20 * 4 * 6 + 1, dtype=np.uint16).reshape(20, 4, 6)


def missing(store: Store, reference: str, true: np.ndarray = FRAMES) -> list[int]:
    """Frames that are found missing; the others must be those of ``true``. Strictly, and as calibration, an error."""
    info = store.stack(reference, skip=True)
    reader = store.frames(reference, skip=True)
    frames = reader.read(range(info.shape[0]))
    absent = reader.missing(range(info.shape[0]))
    lacking = np.zeros(len(frames), bool) if absent is None else absent
    np.testing.assert_array_equal(frames[~lacking], true[: len(frames)][~lacking])
    assert not frames[lacking].any()
    assert info.missing == lacking.sum()
    if lacking.any():
        for ask in (store.stack, store.image, store.frames):
            with pytest.raises(FileProblem, match="lacks") as caught:
                ask(reference)
            assert caught.value.rule == "file-incomplete"
    else:
        np.testing.assert_array_equal(store.image(reference), true[: len(frames)])
    return np.flatnonzero(lacking).tolist()


def problem(store: Store, reference: str) -> tuple[str, str]:
    with pytest.raises(FileProblem) as caught:
        store.stack(reference)
    return caught.value.rule, str(caught.value)


def opened(store: Store, reference: str) -> StackInfo | None:
    """Return the description of a file, None where it cannot be opened."""
    try:
        return store.stack(reference, skip=True)
    except FileProblem:
        return None


def write(path: Path, data: Any = FRAMES) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = data


def write_virtual(path: Path, shape: Sequence[int], parts: Sequence[tuple[str, int, Any]], **more: Any) -> None:
    """A virtual dataset: of each part the file, the frames in it, and where it is shown."""
    layout = h5py.VirtualLayout(tuple(shape), "u2")
    for name, count, where in parts:
        layout[where] = h5py.VirtualSource(name, "data", (count, *shape[1:]))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout, **more)


# HDF5


@pytest.mark.parametrize(
    ("options", "lacking"),
    [
        ({"chunks": (1, 4, 6)}, range(12, 20)),
        ({"chunks": (5, 2, 3), "compression": "gzip"}, range(15, 20)),  # the third chunk was written in part
        ({"chunks": (1, 4, 6), "maxshape": (None, 4, 6)}, range(12, 20)),
        ({"chunks": (3, 4, 6), "fillvalue": 65535}, [*range(12, 20)]),
        ({}, []),  # allocated as a whole: this cannot be known
    ],
)
def test_chunks_that_were_never_written(store: Store, tmp_path: Path, options: dict, lacking: range) -> None:
    with h5py.File(tmp_path / "pre.h5", "w") as file:
        data = file.create_dataset("data", (20, 4, 6), "u2", **options)
        data[:12] = FRAMES[:12]
        true = np.where(np.arange(20)[:, None, None] < 12, FRAMES, data.fillvalue)
    assert missing(store, "pre.h5", true) == list(lacking)


def test_one_chunk_of_several_of_a_frame(store: Store, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "c.h5", "w") as file:
        data = file.create_dataset("data", (20, 4, 6), "u2", chunks=(2, 2, 6))
        data[:] = FRAMES
        hole = file.create_dataset("hole", (20, 4, 6), "u2", chunks=(2, 2, 6))
        hole[:, :2] = FRAMES[:, :2]
        hole[:6, 2:] = FRAMES[:6, 2:]
        image = file.create_dataset("image", (4, 6), "u2", chunks=(2, 6))
        image[:2] = 1
    assert missing(store, "c.h5::/data") == []
    assert missing(store, "c.h5::/hole") == list(range(6, 20))
    assert missing(store, "c.h5::/image") == [0]


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 5), st.integers(1, 5)),
    chunk=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
    written=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 4), st.integers(0, 4)), max_size=12),
)
def test_frames_lack_something_where_one_of_their_chunks_was_not_written(
    tmp_path: Path, shape: tuple[int, ...], chunk: tuple[int, ...], written: list[tuple[int, ...]]
) -> None:
    """Against a map of the pixels that lie in chunks that exist."""
    chunk = tuple(min(c, n) for c, n in zip(chunk, shape, strict=True))
    there = np.zeros(shape, bool)
    with h5py.File(tmp_path / "any.h5", "w") as file:
        data = file.create_dataset("data", shape, "u1", chunks=chunk, fillvalue=0)
        for at in written:
            place = tuple(a % n for a, n in zip(at, shape, strict=True))
            data[place] = 7
            there[tuple(slice(p // c * c, (p // c + 1) * c) for p, c in zip(place, chunk, strict=True))] = True
    with FileStore(tmp_path) as store:
        info = store.stack("any.h5", skip=True)
        assert info.missing == (~there.all(axis=(1, 2))).sum()


def test_datasets_that_were_never_written(store: Store, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "n.h5", "w") as file:
        file.create_dataset("stack", (20, 4, 6), "u2")
        file.create_dataset("image", (4, 6), "f4")
    assert missing(store, "n.h5::/stack") == list(range(20))
    assert missing(store, "n.h5::/image") == [0]
    assert problem(store, "n.h5::/image")[1].endswith("lacks 1 of 1 frame: nothing was ever written to it")


def test_raw_files_beside(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # HDF5 looks for them there
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("data", (20, 4, 6), "u2", external=[("a.raw", 0, 480), ("b.raw", 10, 480)])
    assert missing(store, "raw.h5") == list(range(20))
    (tmp_path / "a.raw").write_bytes(FRAMES[:10].tobytes())
    (tmp_path / "b.raw").write_bytes(b"\0" * 10 + FRAMES[10:].tobytes()[:-1])
    fresh = store.anew()
    assert missing(fresh, "raw.h5") == [19]
    assert fresh.inputs()["raw.h5"] == {tmp_path / name for name in ("raw.h5", "a.raw", "b.raw")}


def nested(tmp_path: Path) -> None:
    """top.h5 shows mid0.h5 and mid1.h5, which show two leaves each."""
    for i in range(4):
        write(tmp_path / f"leaf{i}.h5", FRAMES[5 * i : 5 * i + 5])
    for i in range(2):
        parts = [(f"leaf{2 * i}.h5", 5, slice(0, 10, 2)), (f"leaf{2 * i + 1}.h5", 5, slice(1, 10, 2))]
        write_virtual(tmp_path / f"mid{i}.h5", (10, 4, 6), parts)
    write_virtual(tmp_path / "top.h5", (20, 4, 6), [("mid0.h5", 10, slice(0, 10)), ("mid1.h5", 10, slice(10, 20))])


INTERLEAVED = np.concatenate([FRAMES[[0, 5, 1, 6, 2, 7, 3, 8, 4, 9]], FRAMES[[10, 15, 11, 16, 12, 17, 13, 18, 14, 19]]])


@pytest.mark.parametrize(
    ("lost", "lacking"),
    [
        ([], []),
        (["leaf1.h5"], range(1, 10, 2)),
        (["leaf0.h5", "leaf3.h5"], [*range(0, 10, 2), *range(11, 20, 2)]),
        (["mid1.h5"], range(10, 20)),
    ],
)
def test_sources_missing_at_any_depth(store: Store, tmp_path: Path, lost: list[str], lacking: range) -> None:
    nested(tmp_path)
    for name in lost:
        (tmp_path / name).unlink()
    assert missing(store, "top.h5", INTERLEAVED) == list(lacking)
    assert {path.name for path in store.inputs()["top.h5"]} >= {"top.h5", "mid0.h5", "leaf0.h5", "leaf1.h5"}


def test_sources_that_lack_frames_themselves(store: Store, tmp_path: Path) -> None:
    nested(tmp_path)
    with h5py.File(tmp_path / "leaf2.h5", "w") as file:
        file.create_dataset("data", (5, 4, 6), "u2", chunks=(1, 4, 6))[1:4] = FRAMES[11:14]
    assert missing(store, "top.h5", INTERLEAVED) == [10, 18]
    store.close()
    with h5py.File(tmp_path / "leaf2.h5", "w") as file:
        file["data"] = FRAMES[10:15]
        file["frame_status"] = np.array([0, 1, 0, 3, 0], np.uint8)
    assert missing(store.anew(), "top.h5", INTERLEAVED) == [12, 16]


def test_rows_that_no_source_is_mapped_to(store: Store, tmp_path: Path) -> None:
    write(tmp_path / "a.h5", FRAMES[:10])
    write_virtual(tmp_path / "v.h5", (20, 4, 6), [("a.h5", 10, slice(3, 13))])
    true = np.zeros_like(FRAMES)
    true[3:13] = FRAMES[:10]
    assert missing(store, "v.h5", true) == [0, 1, 2, *range(13, 20)]


def test_gaps_between_modules_are_no_lack_and_rows_of_one_module_are(store: Store, tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / f"module{i}.h5", FRAMES[:, :2])
    layout, full = h5py.VirtualLayout((20, 6, 6), "u2"), h5py.VirtualLayout((20, 6, 6), "u2")
    for it, count in ((layout, 15), (full, 20)):
        it[:, 0:2] = h5py.VirtualSource("module0.h5", "data", (20, 2, 6))
        it[:count, 4:6] = h5py.VirtualSource("module1.h5", "data", (20, 2, 6))[:count]
    for name, it in (("cut.h5", layout), ("full.h5", full)):
        with h5py.File(tmp_path / name, "w") as file:
            file.create_virtual_dataset("data", it)
    true = np.zeros((20, 6, 6), np.uint16)
    true[:, :2] = true[:, 4:] = FRAMES[:, :2]
    assert missing(store, "full.h5", true) == []
    assert missing(store, "cut.h5", true) == list(range(15, 20))


def test_a_virtual_dataset_of_itself_and_a_hole_in_counted_sources(store: Store, tmp_path: Path) -> None:
    write_virtual(tmp_path / "self.h5", (20, 4, 6), [("self.h5", 20, slice(0, 20))])
    assert "made of itself" in problem(store, "self.h5")[1]
    for i in (0, 1, 3):
        write(tmp_path / f"part_{i}.h5", FRAMES[:2])
    endless = h5py.h5s.UNLIMITED
    space = h5py.h5s.create_simple((8, 4, 6), (endless, 4, 6))
    space.select_hyperslab((0, 0, 0), (endless, 1, 1), (2, 4, 6), (2, 4, 6))
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_virtual(space, b"part_%b.h5", b"data", h5py.h5s.create_simple((2, 4, 6)))
    with h5py.File(tmp_path / "counted.h5", "w") as file:
        whole = h5py.h5s.create_simple((8, 4, 6), (endless, 4, 6))
        h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_UINT16, whole, layout)
    assert problem(store, "counted.h5") == (
        "file-incomplete",
        "counted.h5 ends at part_2.h5, which does not exist, and part_3.h5 does",
    )
    (tmp_path / "part_3.h5").unlink()
    assert store.stack("counted.h5").shape == (4, 4, 6)


def test_a_filter_that_is_not_there(store: Store, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_chunk((1, 4, 6))
        layout.set_filter(33333, h5py.h5z.FLAG_OPTIONAL)
        h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_UINT16, h5py.h5s.create_simple((20, 4, 6)), layout)
    assert "has no filter 33333" in problem(store, "f.h5")[1]


def test_many_chunks_are_looked_at_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read, and where no chunk is missing they are only counted."""
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("data", (20000, 2, 2), "u1", chunks=(1, 2, 2))[:] = 1

    def never(*_: Any) -> None:
        raise AssertionError("frames were read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", never)
    assert store.stack("m.h5").missing == 0


# other formats


def write_edf(path: Path, count: int = 20) -> None:
    from fabio import edfimage

    image = edfimage.EdfImage(data=FRAMES[0])
    for frame in FRAMES[1:count]:
        image.append_frame(data=frame)
    image.write(str(path))


@pytest.mark.parametrize("cut", [1, 47, 49, 500])
def test_edf_files_that_were_cut(store: Store, tmp_path: Path, cut: int) -> None:
    write_edf(tmp_path / "whole.edf", 4)
    raw = (tmp_path / "whole.edf").read_bytes()
    (tmp_path / "cut.edf").write_bytes(raw[:-cut])
    (tmp_path / "cut.edf.gz").write_bytes(gzip.compress(raw[:-cut]))
    (tmp_path / "broken.edf.gz").write_bytes(gzip.compress(raw)[:-12])
    assert missing(store, "whole.edf") == []
    assert missing(store, "cut.edf") == [3]
    assert missing(store, "cut.edf.gz") == [3]
    assert problem(store, "broken.edf.gz")[0] in ("file-incomplete", "file-unreadable")


HEADER = (
    "{{\nHeaderID = EH:000001:000000:000000 ;\nByteOrder = LowByteFirst ;\nDataType = UnsignedShort ;\n"
    "Dim_1 = 6 ;\nDim_2 = 4 ;\n{more}Size = {size} ;\n"
)


@pytest.mark.parametrize(
    ("more", "size", "rule"),
    [("Dim_3 = 5 ;\n", 240, None), ("", 240, "file-shape"), ("", 48, "file-incomplete")],
)
def test_several_frames_behind_one_header(store: Store, tmp_path: Path, more: str, size: int, rule: str | None) -> None:
    header = HEADER.format(more=more, size=size).encode().ljust(510) + b"}\n"
    (tmp_path / "one.edf").write_bytes(header + FRAMES[:5].tobytes())
    (tmp_path / "cut.edf").write_bytes(header + FRAMES[:5].tobytes()[:-20])
    if rule is not None:
        assert problem(store, "one.edf")[0] == rule
        return
    np.testing.assert_array_equal(store.image("one.edf"), FRAMES[:5])
    assert missing(store, "one.edf", FRAMES[:5]) == []
    for cut, lacking in ((1, [4]), (48, [4]), (49, [3, 4]), (240 - 20, [0, 1, 2, 3, 4])):
        name = f"cut{cut}.edf"
        (tmp_path / name).write_bytes(header + FRAMES[:5].tobytes()[:-cut])
        assert problem(store, name)[0] == "file-incomplete"
        assert missing(store, name, FRAMES[:5]) == lacking
    (tmp_path / "cut.edf.gz").write_bytes(gzip.compress(header + FRAMES[:5].tobytes()[:-20]))
    assert missing(store, "cut.edf.gz", FRAMES[:5]) == [0, 1, 2, 3, 4]


def test_cbf_files_that_were_cut_or_changed(store: Store, tmp_path: Path) -> None:
    import fabio

    image = fabio.cbfimage.CbfImage(data=FRAMES[0].astype(np.int32))
    image.write(str(tmp_path / "whole.cbf"))
    raw = (tmp_path / "whole.cbf").read_bytes()
    first = raw.index(b"\x0c\x1a\x04\xd5") + 4
    for at in range(first, first + 20, 3):
        (tmp_path / "cut.cbf").write_bytes(raw[:at])
        assert problem(store.anew(), "cut.cbf")[0] == "file-unreadable"
    (tmp_path / "changed.cbf").write_bytes(raw[: first + 5] + bytes([raw[first + 5] ^ 1]) + raw[first + 6 :])
    assert "Checksum" in problem(store, "changed.cbf")[1]
    (tmp_path / "empty.cbf").write_bytes(b"")
    assert problem(store, "empty.cbf")[1] == "empty.cbf cannot be read: it is empty"


TIFFS = {
    "plain": {},
    "big": {"big_tiff": True},
    "lzw": {"compression": "tiff_lzw"},
    "deflate": {"compression": "tiff_adobe_deflate"},
}


@pytest.mark.parametrize("kind", TIFFS)
def test_tiff_files_and_what_is_left_of_them(tmp_path: Path, kind: str) -> None:
    """Wherever a file is cut, what is whole is read as it was, and the rest is found; nothing hangs."""
    from PIL import Image

    first, *rest = [Image.fromarray(frame) for frame in FRAMES[:3]]
    first.save(tmp_path / "whole.tif", save_all=True, append_images=rest, **TIFFS[kind])
    raw = (tmp_path / "whole.tif").read_bytes()
    with FileStore(tmp_path) as store:
        assert missing(store, "whole.tif") == []
    for length in range(0, len(raw), 7):
        (tmp_path / "cut.tif").write_bytes(raw[:length])
        with FileStore(tmp_path) as store:
            if (info := opened(store, "cut.tif")) is None:
                assert problem(store, "cut.tif")[0] == "file-unreadable"
                continue
            lost = missing(store, "cut.tif")
            assert lost or info.shape[0] == 3, length
            if not lost:
                np.testing.assert_array_equal(store.image("cut.tif"), FRAMES[:3])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int32", "float32", "uint64"])
def test_pixels_of_tiff_files(store: Store, tmp_path: Path, dtype: str) -> None:
    import fabio

    data = (FRAMES[0].astype(np.int64) - (5 if np.dtype(dtype).kind != "u" else 0)).astype(dtype)
    fabio.tifimage.TifImage(data=data).write(str(tmp_path / "a.tif"))
    assert store.stack("a.tif").dtype == dtype
    np.testing.assert_array_equal(store.image("a.tif"), data)


def test_formats_by_their_first_bytes(store: Store, tmp_path: Path) -> None:
    write(tmp_path / "hdf5")
    write(tmp_path / "scan.hdf")
    np.save(tmp_path / "numpy.npy", FRAMES)
    (tmp_path / "numpy.npy").rename(tmp_path / "numpy.000")
    with h5py.File(tmp_path / "block", "w", userblock_size=1024) as file:
        file["data"] = FRAMES
    write_edf(tmp_path / "edf.raw")
    (tmp_path / "packed").write_bytes(gzip.compress(b"1"))
    for name in ("hdf5", "scan.hdf", "numpy.000", "block", "edf.raw"):
        np.testing.assert_array_equal(store.image(name), FRAMES)
    rule, message = problem(store, "packed")
    assert rule == "file-format"
    assert "unpack it first" in message


# series


@pytest.mark.parametrize("pattern", ["s_%05d.npy", "s_*.npy", "s_%5d.npy", "s_0000?.npy"])
def test_series_of_files(store: Store, tmp_path: Path, pattern: str) -> None:
    for i in range(3, 10):
        np.save(tmp_path / f"s_{i:05d}.npy", FRAMES[i])
    np.save(tmp_path / "other.npy", FRAMES)
    assert missing(store, pattern, FRAMES[3:]) == []
    assert len(store.inputs()[pattern]) == 7
    (tmp_path / "s_00005.npy").unlink()
    (tmp_path / "s_00007.npy").unlink()
    (tmp_path / "s_00008.npy").unlink()
    fresh = store.anew()
    assert missing(fresh, pattern, FRAMES[3:]) == [2, 4, 5]
    assert problem(fresh, pattern)[1].endswith("s_00005.npy, s_00007.npy to s_00008.npy missing")


def test_series_in_the_order_of_their_numbers(store: Store, tmp_path: Path) -> None:
    for i in range(12):
        np.save(tmp_path / f"s{i}.npy", FRAMES[i])
        with h5py.File(tmp_path / f"h_{i}.h5", "w") as file:
            file["entry/data"] = FRAMES[i : i + 1]
    np.testing.assert_array_equal(store.image("s*.npy"), FRAMES[:12])
    np.testing.assert_array_equal(store.image("h_%d.h5::/entry/data"), FRAMES[:12])
    np.testing.assert_array_equal(store.frames("s%d.npy").read([11, 2, 3, 3, 4]), FRAMES[[11, 2, 3, 3, 4]])
    np.testing.assert_array_equal(store.frames("s%d.npy").read(range(1, 12, 3)), FRAMES[1:12:3])


@pytest.mark.parametrize("suffix", ["cbf", "edf", "tif"])
def test_series_of_images_of_each_format(store: Store, tmp_path: Path, suffix: str) -> None:
    import fabio

    image = fabio.factory({"edf": "edfimage", "cbf": "cbfimage"}.get(suffix, "tifimage"))
    for i in range(8):
        image.data = FRAMES[i].astype(np.int32)
        image.write(str(tmp_path / f"a_{i:04d}.{suffix}"))
    pattern = f"a_%04d.{suffix}"
    assert missing(store, pattern, FRAMES.astype(np.int32)) == []
    (tmp_path / f"a_0002.{suffix}").write_bytes(b"")
    (tmp_path / f"a_0006.{suffix}").unlink()
    assert missing(store.anew(), pattern, FRAMES.astype(np.int32)) == [2, 6]


def test_a_file_of_a_series_that_turns_out_damaged(store: Store, tmp_path: Path) -> None:
    import fabio

    for i in range(6):
        fabio.cbfimage.CbfImage(data=FRAMES[i].astype(np.int32)).write(str(tmp_path / f"a_{i}.cbf"))
    raw = (tmp_path / "a_3.cbf").read_bytes()
    at = raw.index(b"\x0c\x1a\x04\xd5") + 8
    (tmp_path / "a_3.cbf").write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    assert store.stack("a_%d.cbf").missing == 0  # nobody has looked
    with pytest.raises(FileProblem, match=r"a_3.cbf cannot be read: Checksum"):
        store.frames("a_%d.cbf").read(range(6))
    reader = store.frames("a_%d.cbf", skip=True)
    frames = reader.read(range(6))
    np.testing.assert_array_equal(reader.missing(range(6)), np.arange(6) == 3)
    np.testing.assert_array_equal(frames[[0, 1, 2, 4, 5]], FRAMES[[0, 1, 2, 4, 5]])
    assert [text.partition(": ")[0] for text in reader.unread()] == ["frame 3 counts as missing"]


@pytest.mark.parametrize(
    ("names", "pattern", "words"),
    [
        (["a_1.npy", "a_1_bg.npy"], "a_*.npy", "differ in more than a number"),
        (["a_1_1.npy", "a_2_2.npy"], "a_*.npy", "differ in 2 numbers"),
        (["a_1.npy", "a_01.npy"], "a_*.npy", "have the same number"),
    ],
)
def test_files_that_are_no_one_series(store: Store, tmp_path: Path, names: list[str], pattern: str, words: str) -> None:
    for name in names:
        np.save(tmp_path / name, FRAMES[0])
    rule, message = problem(store, pattern)
    assert rule == "file-series"
    assert words in message


def test_series_of_unlike_files(store: Store, tmp_path: Path) -> None:
    np.save(tmp_path / "a_1.npy", FRAMES[0])
    np.save(tmp_path / "a_2.npy", FRAMES[0][:2])
    assert problem(store, "a_%d.npy")[0] == "file-incomplete"
    assert problem(store, "b_%d.npy") == ("file-missing", f"there is no file b_%d.npy in {tmp_path}")
    np.save(tmp_path / "a_%d.npy", FRAMES)  # a file of this very name is meant itself
    assert store.anew().stack("a_%d.npy").shape == (20, 4, 6)


@given(st.sets(st.integers(0, 60), min_size=1))
def test_spans_of_numbers(numbers: set[int]) -> None:
    text = spans(np.array(sorted(numbers)))
    named: set[int] = set()
    shown, _, rest = text.partition(" and ")
    for part in shown.split(", "):
        first, _, last = part.partition(" to ")
        named |= set(range(int(first), int(last or first) + 1))
    assert named <= numbers
    assert len(numbers - named) == (int(rest.split()[0]) if rest else 0)


def test_a_damaged_index_of_chunks_is_a_damaged_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "d.h5", "w") as file:
        data = file.create_dataset("data", (400, 4, 6), "u2", chunks=(1, 4, 6))
        data[:] = 1
        chunks = sorted(data.id.get_chunk_info(k).byte_offset for k in range(400))
    with (tmp_path / "d.h5").open("r+b") as raw:
        raw.seek(chunks[200])
        raw.write(bytes(chunks[-1] - chunks[200]))  # nodes of the B-tree among them
    with pytest.raises(FileProblem, match=r"d\.h5 cannot be read"):
        FileStore(tmp_path).stack("d.h5")


@pytest.mark.parametrize("kind", ["cbf", "edf", "tif", "npy"])
def test_files_that_are_cut_anywhere_are_answered_at_once(kind: str, tmp_path: Path) -> None:
    """In headers above all: a library that looks for the end of one looks for ever."""
    sound = inputs(tmp_path)[kind]
    data, damaged = sound.read_bytes(), tmp_path / f"cut{sound.suffix}"
    for length in range(0, len(data), 37):
        damaged.write_bytes(data[:length])
        with FileStore(tmp_path) as store, suppress(FileProblem):
            store.image(damaged.name)


@pytest.mark.parametrize("kind", ["cbf", "edf"])
@pytest.mark.parametrize("number", [b"99999999", b"0", b"-1", b"9" * 300])
def test_headers_for_more_than_there_is(kind: str, number: bytes, tmp_path: Path) -> None:
    """No memory is taken for pixels that no file has; every number of a header is tried."""
    sound = inputs(tmp_path)[kind]
    data, damaged = sound.read_bytes(), tmp_path / f"bomb{sound.suffix}"
    for it in re.finditer(rb"\d+", data[:600]):
        damaged.write_bytes(data[: it.start()] + number + data[it.end() :])
        reset_peak()
        before = status("VmRSS")
        with FileStore(tmp_path) as store, suppress(FileProblem):
            store.image(damaged.name)
        assert status("VmHWM") - before < 100 << 20


def test_what_is_neither_edf_nor_cbf(tmp_path: Path) -> None:
    (tmp_path / "x.edf").write_bytes(b"II*\0" + bytes(1000))
    with FileStore(tmp_path) as store, pytest.raises(FileProblem, match="neither EDF nor CBF"):
        store.stack("x.edf")


def test_bits_of_cbf_headers(tmp_path: Path) -> None:
    """Such as those that hide where the pixels begin."""
    sound, damaged, draw = inputs(tmp_path)["cbf"], tmp_path / "flipped.cbf", random.Random(3)
    head, separator, pixels = sound.read_bytes().partition(b"\x0c\x1a\x04\xd5")
    for _ in range(100):
        changed = bytearray(head)
        changed[draw.randrange(len(head))] ^= 1 << draw.randrange(8)
        damaged.write_bytes(bytes(changed) + separator + pixels)
        with FileStore(tmp_path) as store, suppress(FileProblem):
            store.image(damaged.name)


def test_damaged_headers_of_numpy_files_are_damaged_files(tmp_path: Path) -> None:
    np.save(tmp_path / "sound.npy", FRAMES)
    sound, chance = (tmp_path / "sound.npy").read_bytes(), random.Random(3)
    texts = [sound.replace(b"(20, 4, 6)", new) for new in (b"((20, 4, 6", b"20L, (4, 6", b"(20, 4, -6)", b"(9**9**9,)")]
    for _ in range(400):
        a, b, c = sorted(chance.randrange(128) for _ in range(3))
        texts.append(sound[:a] + sound[b:c] + sound[a:b] + sound[c:])
    refused = 0
    for number, text in enumerate(texts):
        (tmp_path / f"d{number}.npy").write_bytes(text)
        with FileStore(tmp_path) as store:
            try:
                store.stack(f"d{number}.npy")
            except FileProblem:
                refused += 1
    assert refused > 300
