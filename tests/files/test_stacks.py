"""Frames read from files of each format, and what is said of files that are unfit."""

import sys
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from lima2cli.errors import FileProblem
from lima2cli.frames import StackInfo
from lima2cli.inputs.stacks import FileStore
from tests.files.conftest import Store

STACK = np.arange(5 * 4 * 6, dtype=np.uint16).reshape(5, 4, 6)


def write_h5(path: Path, **datasets) -> None:
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            file[name.replace("__", "/")] = data


def problem(store: Store, reference: str) -> tuple[str, str]:
    with pytest.raises(FileProblem) as caught:
        store.stack(reference)
    return caught.value.rule, str(caught.value)


def write_npy(path: Path) -> str:
    np.save(path / "s.npy", STACK)
    return "s.npy"


def write_swapped_npy(path: Path) -> str:
    np.save(path / "swapped.npy", np.asfortranarray(STACK.astype(">u2")))
    return "swapped.npy"


def write_bslz4(path: Path) -> str:
    with h5py.File(path / "s.nxs", "w") as file:
        file.create_dataset("a/b", data=STACK.astype(">u2"), chunks=(2, 4, 6), **hdf5plugin.Bitshuffle(cname="lz4"))
    return "s.nxs::a/b"


def write_edf(path: Path) -> str:
    from fabio import edfimage

    image = edfimage.EdfImage(data=STACK[0])
    for frame in STACK[1:]:
        image.append_frame(data=frame)
    image.write(str(path / "s.edf"))
    return "s.edf"


def write_tif(path: Path) -> str:
    from PIL import Image

    first, *rest = [Image.fromarray(frame) for frame in STACK]
    first.save(path / "s.tif", save_all=True, append_images=rest)
    return "s.tif"


@pytest.mark.parametrize("write", [write_npy, write_swapped_npy, write_bslz4, write_edf, write_tif])
def test_stacks_of_each_format(store: Store, tmp_path: Path, write) -> None:
    reference = write(tmp_path)
    assert store.stack(reference) == StackInfo((5, 4, 6), "uint16")
    np.testing.assert_array_equal(store.image(reference), STACK)
    reader = store.frames(reference)
    for numbers in (
        range(5),
        range(1, 5, 2),
        range(3, 4),
        [4, 0, 0],
        np.array([2, 1], np.uint64),
        range(4, -1, -2),
        [],
    ):
        frames = reader.read(numbers)
        np.testing.assert_array_equal(frames, STACK[np.asarray(numbers, int)])
        assert frames.flags.c_contiguous
        assert frames.dtype == np.dtype("uint16")
        assert frames.dtype.isnative
    with pytest.raises(IndexError, match="frames 0 to 4"):
        reader.read([5])
    with pytest.raises(IndexError):
        reader.read([-1])


@pytest.mark.parametrize("suffix", ["edf", "edf.gz", "cbf", "tif", "tiff"])
def test_single_images_by_fabio(store: Store, tmp_path: Path, suffix: str) -> None:
    import fabio

    data = STACK[0].astype(np.int32)
    codec = {"edf": "edfimage", "edf.gz": "edfimage", "cbf": "cbfimage"}.get(suffix, "tifimage")
    image = fabio.factory(codec)
    image.data = data
    image.write(str(tmp_path / f"one_0000.{suffix}"))
    image.data = data + 1
    image.write(str(tmp_path / f"one_0001.{suffix}"))  # a series of files is not one stack
    reference = f"one_0000.{suffix}"
    assert store.stack(reference) == StackInfo((1, 4, 6), "int32")
    np.testing.assert_array_equal(store.image(reference), data)
    np.testing.assert_array_equal(store.frames(reference).read([0, 0]), [data, data])
    with pytest.raises(IndexError):
        store.frames(reference).read([1])


def test_images_keep_their_dimensions_and_are_kept(store: Store, tmp_path: Path) -> None:
    write_h5(tmp_path / "c.h5", one=STACK[0], stack=STACK[:1], mask=STACK[0] > 3)
    one = store.image("c.h5::/one")
    assert one.shape == (4, 6)
    assert not one.flags.writeable
    assert store.image("c.h5::/stack").shape == (1, 4, 6)
    assert store.image("c.h5::/mask").dtype == np.uint8
    assert store.stack("c.h5::/mask") == StackInfo((1, 4, 6), "uint8")
    (tmp_path / "c.h5").unlink()
    assert store.image("c.h5::/one") is one
    assert store.stack("c.h5::/one").shape == (1, 4, 6)


def test_default_dataset_is_what_nexus_plots(store: Store, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "n.h5", "w") as file:
        file["raw"] = STACK[:2]
        file["entry/plot/data"] = STACK
        file.attrs["default"] = np.bytes_("entry")
        file["entry"].attrs["default"] = "plot"
        file["entry/plot"].attrs["signal"] = "data"
    assert store.stack("n.h5").shape == (5, 4, 6)
    assert store.stack("n.h5::/entry").shape == (5, 4, 6)


def test_default_dataset_is_the_only_stack_or_image(store: Store, tmp_path: Path) -> None:
    write_h5(tmp_path / "stack.h5", a__data=STACK, a__dark=STACK[0], angles=np.arange(5.0))
    write_h5(tmp_path / "image.h5", a__dark=STACK[0], angles=np.arange(5.0))
    write_h5(tmp_path / "two.h5", a=STACK, b=STACK)
    write_h5(tmp_path / "none.h5", angles=np.arange(5.0))
    with h5py.File(tmp_path / "cycle.h5", "w") as file:
        file.attrs["default"] = "/"
    assert store.stack("stack.h5").shape == (5, 4, 6)
    assert store.stack("image.h5").shape == (1, 4, 6)
    rule, message = problem(store, "two.h5")
    assert (rule, message) == (
        "dataset-ambiguous",
        "two.h5 does not say which dataset: /a (5 x 4 x 6 uint16), /b (5 x 4 x 6 uint16); write it as `two.h5::/a`",
    )
    assert problem(store, "none.h5") == ("dataset-missing", "none.h5 has no dataset of images in /")
    assert problem(store, "cycle.h5")[0] == "dataset-missing"


def test_missing_files_and_datasets(store: Store, tmp_path: Path) -> None:
    write_h5(tmp_path / "dark.h5", entry__dark=STACK[0], entry__more=STACK[0])
    write_npy(tmp_path)
    assert problem(store, "drak.h5") == (
        "file-missing",
        f"there is no file drak.h5 in {tmp_path}; did you mean dark.h5?",
    )
    (tmp_path / "a::b.h5").write_bytes((tmp_path / "dark.h5").read_bytes())
    assert problem(store, "a::b.h5") == ("file-missing", "a::b.h5: the name of a file ends at `::`; give it another")
    assert problem(store, "x/dark.h5") == (
        "file-missing",
        f"there is no file x/dark.h5: no directory {tmp_path / 'x'}",
    )
    assert problem(store, "dark.h5:/entry/dark") == (
        "file-missing",
        "there is no file dark.h5:/entry/dark; did you mean dark.h5::/entry/dark?",
    )
    assert problem(store, "dark.h5::/entry/drak") == (
        "dataset-missing",
        "dark.h5 has no dataset /entry/drak; did you mean /entry/dark?",
    )
    assert problem(store, "dark.h5::/zzzzzzzz")[1].endswith("it has /entry/dark, /entry/more")
    assert problem(store, "s.npy::/a")[0] == "dataset-missing"
    assert problem(store, ".")[1] == ". is a directory, not a file"
    assert problem(store, "x" * 300 + ".h5") == (
        "file-unreadable",
        "x" * 300 + ".h5 cannot be read: File name too long",
    )


def test_dangling_links(store: Store, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["soft"] = h5py.SoftLink("/nowhere")
        file["external"] = h5py.ExternalLink("gone.h5", "/data")
    assert problem(store, "l.h5::/soft") == (
        "dataset-missing",
        "l.h5::/soft is a link to /nowhere, which does not exist",
    )
    rule, message = problem(store, "l.h5::/external")
    assert rule == "file-missing"
    assert "gone.h5::/data" in message


@pytest.mark.parametrize("suffix", ["h5", "npy", "edf", "cbf", "tif"])
@pytest.mark.parametrize("content", [b"", b"not an image at all" * 100])
def test_files_that_are_not_what_their_suffix_says(store: Store, tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"bad.{suffix}").write_bytes(content)
    rule, message = problem(store, f"bad.{suffix}")
    assert rule == "file-unreadable"
    assert message.startswith(f"bad.{suffix} cannot be read: ")
    assert "\n" not in message


def test_truncated_files(store: Store, tmp_path: Path) -> None:
    write_h5(tmp_path / "t.h5", data=STACK)
    write_npy(tmp_path)
    for name in ("t.h5", "s.npy"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-50])
        assert problem(store, name)[0] == "file-unreadable"


def test_a_damaged_chunk_is_told_when_its_frame_is_read(store: Store, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "d.h5", "w") as file:
        data = file.create_dataset("data", data=STACK, chunks=(1, 4, 6), compression="gzip")
        chunk = data.id.get_chunk_info(3)
    with (tmp_path / "d.h5").open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    reader = store.frames("d.h5")
    np.testing.assert_array_equal(reader.read([2]), STACK[2:3])
    with pytest.raises(FileProblem, match=r"^d.h5::/data cannot be read: "):
        reader.read([3])


@pytest.mark.parametrize(
    ("data", "rule", "words"),
    [
        (STACK.astype(complex), "file-dtype", "complex128"),
        (np.full((3, 4), "abc"), "file-dtype", "not a type of pixels"),
        (STACK.astype(np.float16), "file-dtype", "float16"),
        (STACK[0, 0], "file-shape", "has the shape 6, not (frames, height, width)"),
        (np.uint8(1), "file-shape", "a single value"),
        (STACK[np.newaxis], "file-shape", "1 x 5 x 4 x 6"),
        (STACK[:0], "file-shape", "0 x 4 x 6"),
    ],
)
def test_arrays_that_are_no_stack_of_frames(store: Store, tmp_path: Path, data, rule: str, words: str) -> None:
    np.save(tmp_path / "a.npy", data)
    found, message = problem(store, "a.npy")
    assert found == rule
    assert words in message
    if data.dtype.kind != "U":
        write_h5(tmp_path / "a.h5", data=data)
        assert problem(store, "a.h5::/data")[0] == rule


def test_colours_and_empty_datasets_are_no_frames(store: Store, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "rgb.tif")
    write_h5(tmp_path / "e.h5", data=h5py.Empty("f4"))
    assert problem(store, "rgb.tif") == (
        "file-shape",
        "rgb.tif has the shape 1 x 4 x 6 x 3, not (frames, height, width)",
    )
    assert problem(store, "e.h5::/data")[0] == "file-shape"


def test_frames_of_unlike_shapes(store: Store, tmp_path: Path) -> None:
    from fabio import edfimage

    image = edfimage.EdfImage(data=STACK[0])
    image.append_frame(data=STACK[1, :2])
    image.write(str(tmp_path / "u.edf"))
    with pytest.raises(FileProblem, match=r"u.edf: frame 1 differs from frame 0") as caught:
        store.image("u.edf")
    assert caught.value.rule == "file-shape"


LACKS = {
    "a.h5": "lacks 5 of 10 frames (0, 2, 4, 6 and 1 more)",
    "b.h5": "lacks 2 of 10 frames (7, 9)",
}
"""Frames that the sources of the virtual dataset below lack."""


def test_virtual_datasets_lack_nothing(store: Store, tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        write_h5(tmp_path / name, data=STACK)
    layout = h5py.VirtualLayout((10, 4, 6), "uint16")
    layout[0::2] = h5py.VirtualSource("a.h5", "data", (5, 4, 6))
    layout[1:8:2] = h5py.VirtualSource("b.h5", "data", (5, 4, 6))[:4]
    layout[9] = h5py.VirtualSource("b.h5", "data", (5, 4, 6))[4]
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_virtual_dataset("data", layout)
    np.testing.assert_array_equal(store.image("v.h5"), np.repeat(STACK, 2, 0))
    for name in ("a.h5", "b.h5"):
        write_h5(tmp_path / name, data=STACK[:3])
        assert problem(store.anew(), "v.h5") == (
            "file-incomplete",
            f"v.h5 {LACKS[name]}: its source {name} has the shape (3, 4, 6), which is too small",
        )
        write_h5(tmp_path / name, data=STACK)
    write_h5(tmp_path / "b.h5", other=STACK)
    assert problem(store.anew(), "v.h5")[1].endswith("data cannot be read in its source b.h5")
    (tmp_path / "b.h5").unlink()
    assert problem(store.anew(), "v.h5")[1].endswith("its source b.h5 does not exist")


def test_virtual_datasets_may_be_as_long_as_their_source(store: Store, tmp_path: Path) -> None:
    endless = (None, 4, 6)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=STACK, maxshape=endless)
    layout = h5py.VirtualLayout((5, 4, 6), "uint16", maxshape=endless)
    all_frames = slice(0, h5py.h5s.UNLIMITED)
    layout[all_frames] = h5py.VirtualSource("a.h5", "data", (5, 4, 6), maxshape=endless)[all_frames]
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_virtual_dataset("data", layout)
    np.testing.assert_array_equal(store.image("v.h5"), STACK)


def test_unknown_suffix_and_missing_fabio(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.cbf").write_bytes(b"x")
    assert problem(store, "a.png")[0] == "file-format"
    monkeypatch.setitem(sys.modules, "fabio", None)
    assert problem(store, "a.cbf")[1] == "a.cbf: reading .cbf files needs fabio: `pip install fabio`"


def test_files_are_closed(tmp_path: Path) -> None:
    write_h5(tmp_path / "c.h5", data=STACK)
    with FileStore(tmp_path) as store:
        store.frames("c.h5").read([0])
        assert store.frames("c.h5") is store.frames("c.h5")
        store.stack("c.h5")
    with h5py.File(tmp_path / "c.h5", "r+") as file:  # refused while the file is open for reading
        file["more"] = 1


def test_real_files(data_dir: Path) -> None:
    with FileStore(data_dir) as store:
        assert store.stack("pilatus3_1m_crop_thaumatin_stack.h5") == StackInfo((19, 1043, 981), "int32")
        assert store.stack("tomo_pco_raw_dark_flat.h5").shape == (91, 135, 160)
        assert store.image("tomo_pco_raw_dark_flat.h5::/entry/data/dark").shape == (135, 160)
