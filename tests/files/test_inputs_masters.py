"""Choice of a dataset of an HDF5 file, masters of other programs, and what files declare of their pixels."""

from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from lima2cli.errors import FileProblem
from lima2cli.frames import Invalid
from tests.files.conftest import Store

FRAMES = np.arange(1, 10 * 4 * 6 + 1, dtype=np.uint16).reshape(10, 4, 6)
MASK = np.zeros((4, 6), np.uint32)
MASK[1, 2] = 8
DETECTOR = "entry/instrument/detector"


def problem(store: Store, reference: str) -> tuple[str, str]:
    with pytest.raises(FileProblem) as caught:
        store.stack(reference)
    return caught.value.rule, str(caught.value)


def write(path: Path, items: dict[str, Any], attributes: dict[str, tuple[str, Any]] | None = None) -> None:
    with h5py.File(path, "w") as file:
        for name, data in items.items():
            file[name] = data
        for where, (key, value) in (attributes or {}).items():
            file[where].attrs[key] = value


def dectris(folder: Path, **more: Any) -> Path:
    """A master as DECTRIS writes it, with 10 frames behind three links."""
    for i, (first, last) in enumerate(((0, 4), (4, 8), (8, 10)), 1):
        with h5py.File(folder / f"s_data_{i:06d}.h5", "w") as file:
            file.create_dataset("entry/data/data", data=FRAMES[first:last], chunks=(1, 4, 6), **hdf5plugin.Bitshuffle())
    specific = {"pixel_mask": MASK, "flatfield": np.ones((4, 6), "f4"), **more}
    links = {f"entry/data/data_{i:06d}": h5py.ExternalLink(f"s_data_{i:06d}.h5", "/entry/data/data") for i in (1, 2, 3)}
    write(
        folder / "s_master.h5", links | {f"{DETECTOR}/detectorSpecific/{key}": data for key, data in specific.items()}
    )
    return folder / "s_master.h5"


@pytest.mark.parametrize("reference", ["s_master.h5", "s_master.h5::/entry/data", "s_master.h5::/entry"])
def test_a_dectris_master_is_all_of_its_files(store: Store, tmp_path: Path, reference: str) -> None:
    dectris(tmp_path)
    np.testing.assert_array_equal(store.image(reference), FRAMES)
    info = store.stack(reference)
    assert info.taken == "s_master.h5::/entry/data/data_000001 to data_000003"
    assert info.pixel_mask == f"s_master.h5::/{DETECTOR}/detectorSpecific/pixel_mask"
    np.testing.assert_array_equal(store.image(info.pixel_mask), MASK)
    assert info.invalid == Invalid()  # nothing says which value is none
    files = {path.name for path in store.inputs()[reference]}
    assert files == {"s_master.h5", *(f"s_data_{i:06d}.h5" for i in (1, 2, 3))}


def test_links_in_the_order_of_their_numbers_not_of_their_making(store: Store, tmp_path: Path) -> None:
    dectris(tmp_path)
    with h5py.File(tmp_path / "o.h5", "w", track_order=True) as file:
        group = file.create_group("entry/data", track_order=True)
        for i in (3, 1, 2):
            group[f"data_{i:06d}"] = h5py.ExternalLink(f"s_data_{i:06d}.h5", "/entry/data/data")
    np.testing.assert_array_equal(store.image("o.h5"), FRAMES)


@pytest.mark.parametrize(
    ("number", "count", "lacking"), [(1, 10, range(4)), (2, 10, range(4, 8)), (3, 12, range(8, 12))]
)
@pytest.mark.parametrize("link", [True, False])
def test_files_that_a_master_lacks(
    store: Store, tmp_path: Path, number: int, count: int, lacking: range, link: bool
) -> None:
    """The file behind a link, or the link: of the last one only the number of frames that were to be taken tells."""
    master = dectris(tmp_path)
    if link:
        (tmp_path / f"s_data_{number:06d}.h5").unlink()
    else:
        with h5py.File(master, "a") as file:
            del file[f"entry/data/data_{number:06d}"]
    if number == 3 and not link:
        assert store.stack("s_master.h5").shape[0] == 8
        with h5py.File(master, "a") as file:
            file[f"{DETECTOR}/detectorSpecific/nimages"], file[f"{DETECTOR}/detectorSpecific/ntrigger"] = 4, 3
    fresh = store.anew()
    assert problem(fresh, "s_master.h5")[0] == "file-incomplete"
    assert fresh.stack("s_master.h5", skip=True).shape[0] == count
    reader = fresh.frames("s_master.h5", skip=True)
    frames, absent = reader.read(range(count)), reader.missing(range(count))
    np.testing.assert_array_equal(np.flatnonzero(absent), lacking)
    there = [number for number in range(10) if number not in lacking]
    np.testing.assert_array_equal(frames[there], FRAMES[there])


def test_fewer_frames_than_were_to_be_taken(store: Store, tmp_path: Path) -> None:
    dectris(tmp_path, nimages=4, ntrigger=3)
    rule, message = problem(store, "s_master.h5")
    assert rule == "file-incomplete"
    assert message.endswith("lacks 2 of 12 frames (10 to 11): 12 were expected, but 10 are in the files")


def test_a_virtual_dataset_beside_the_links_is_what_is_meant(store: Store, tmp_path: Path) -> None:
    with h5py.File(dectris(tmp_path), "a") as file:
        layout = h5py.VirtualLayout((10, 4, 6), "u2")
        for i, (first, last) in enumerate(((0, 4), (4, 8), (8, 10)), 1):
            layout[first:last] = h5py.VirtualSource(f"s_data_{i:06d}.h5", "entry/data/data", (last - first, 4, 6))
        file["entry/data"].create_virtual_dataset("data", layout)
        file["entry/data"].attrs["signal"] = "data"
        file["entry"].attrs["default"], file.attrs["default"] = "data", "entry"
    np.testing.assert_array_equal(store.image("s_master.h5"), FRAMES)
    assert store.stack("s_master.h5").taken == "s_master.h5::/entry/data/data"


@pytest.mark.parametrize("signal", ["data_000001", "data"])
def test_a_signal_that_is_a_link_of_several(store: Store, tmp_path: Path, signal: str) -> None:
    with h5py.File(dectris(tmp_path), "a") as file:
        file["entry/data"].attrs["signal"] = signal  # EIGER names a dataset that does not exist
        file["entry"].attrs["default"], file.attrs["default"] = "data", "entry"
    np.testing.assert_array_equal(store.image("s_master.h5"), FRAMES)


# which dataset


@pytest.mark.parametrize(
    ("items", "taken"),
    [
        ({"entry/data": FRAMES, "entry/mask": MASK}, "/entry/data"),
        ({"entry/data": FRAMES, "entry/mask": MASK, "entry/flat": MASK * 1.0}, "/entry/data"),
        ({"mask": MASK}, "/mask"),
    ],
)
def test_the_only_dataset_of_images(store: Store, tmp_path: Path, items: dict[str, Any], taken: str) -> None:
    write(tmp_path / "a.h5", items)
    assert store.stack("a.h5").taken == f"a.h5::{taken}"


@pytest.mark.parametrize(
    ("items", "rule", "words"),
    [
        ({"a": FRAMES, "b": FRAMES[:3]}, "dataset-ambiguous", "/a (10 x 4 x 6 uint16), /b (3 x 4 x 6 uint16)"),
        ({"pixel_mask": MASK, "sum": MASK * 2}, "dataset-ambiguous", "write it as `x.h5::/sum`"),
        ({"data": FRAMES.reshape(2, 5, 4, 6), "mask": MASK}, "file-shape", "2 x 5 x 4 x 6"),
        ({"data": FRAMES.reshape(2, 5, 4, 6), "more": FRAMES}, "dataset-ambiguous", "/data (2 x 5 x 4 x 6 uint16)"),
        ({f"{DETECTOR}/detectorSpecific/pixel_mask": MASK}, "dataset-ambiguous", "pixel_mask (4 x 6 uint32)"),
    ],
)
def test_what_is_not_guessed(store: Store, tmp_path: Path, items: dict[str, Any], rule: str, words: str) -> None:
    write(tmp_path / "x.h5", items)
    found, message = problem(store, "x.h5")
    assert found == rule
    assert words in message


def test_an_image_to_be_plotted_does_not_hide_a_stack(store: Store, tmp_path: Path) -> None:
    plot = {"/": ("default", "entry"), "entry": ("default", "plot"), "entry/plot": ("signal", "sum")}
    write(tmp_path / "a.h5", {"entry/plot/sum": MASK, "entry/raw": FRAMES}, plot)
    assert store.stack("a.h5").taken == "a.h5::/entry/raw"
    write(tmp_path / "b.h5", {"entry/plot/sum": MASK}, plot)
    assert store.stack("b.h5").taken == "b.h5::/entry/plot/sum"


def test_parts_in_the_file_itself_and_a_part_that_lacks_frames(store: Store, tmp_path: Path) -> None:
    write(tmp_path / "a.h5", {f"entry/data/data_{i:06d}": FRAMES[2 * i - 2 : 2 * i] for i in range(1, 6)})
    np.testing.assert_array_equal(store.image("a.h5"), FRAMES)
    write(tmp_path / "b.h5", {f"entry/frame_{i:04d}": FRAMES[i] for i in range(10)})
    np.testing.assert_array_equal(store.image("b.h5::/entry"), FRAMES)
    dectris(tmp_path)
    with h5py.File(tmp_path / "s_data_000002.h5", "w") as file:
        file.create_dataset("entry/data/data", (4, 4, 6), "u2", chunks=(1, 4, 6))[:3] = FRAMES[4:7]
    assert "lacks 1 of 10 frames (7): " in problem(store, "s_master.h5")[1]


def test_numbers_that_are_no_order(store: Store, tmp_path: Path) -> None:
    write(tmp_path / "a.h5", {"entry/detector1": FRAMES, "entry/detector2": FRAMES})
    assert problem(store, "a.h5::/entry")[0] == "dataset-ambiguous"


def test_what_nexus_says_decides_among_stacks_also_through_links(store: Store, tmp_path: Path) -> None:
    plot = {"/": ("default", "entry"), "entry": ("default", "plot"), "entry/plot": ("signal", "data")}
    write(tmp_path / "a.h5", {"entry/one": FRAMES, "entry/two": FRAMES[:3], "entry/plot/x": 1})
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["entry/plot/data"] = h5py.SoftLink("/entry/two")
        for where, (key, value) in plot.items():
            file[where].attrs[key] = value
    assert store.stack("a.h5").shape == (3, 4, 6)
    write(tmp_path / "b.h5", {"entry/one": FRAMES, "entry/plot/data": np.arange(5.0)}, plot)
    assert store.stack("b.h5").taken == "b.h5::/entry/one"


def test_links_to_other_files_are_looked_into(store: Store, tmp_path: Path) -> None:
    write(tmp_path / "far.h5", {"deep/frames": FRAMES, f"{DETECTOR}/x": 1})
    write(tmp_path / "near.h5", {"entry/here": h5py.ExternalLink("far.h5", "/deep"), "mask": MASK})
    write(tmp_path / "alias.h5", {"entry/data": h5py.ExternalLink("far.h5", "/deep/frames"), "mask": MASK})
    assert store.stack("near.h5::/entry/here/frames").shape == (10, 4, 6)
    assert store.stack("alias.h5").taken == "alias.h5::/entry/data"
    assert {path.name for path in store.inputs()["alias.h5"]} == {"alias.h5", "far.h5"}


# what is declared


def nexus(path: Path, frames: np.ndarray, **detector: Any) -> None:
    """A file as NXmx has it: frames in NXdata, what is known of the pixels in NXdetector."""
    write(
        path,
        {"entry/data/data": frames} | {f"{DETECTOR}/{key}": value for key, value in detector.items()},
        {
            "/": ("default", "entry"),
            "entry": ("default", "data"),
            "entry/data": ("signal", "data"),
            DETECTOR: ("NX_class", "NXdetector"),
        },
    )


@pytest.mark.parametrize(
    ("dtype", "detector", "invalid"),
    [
        ("u2", {"bit_depth_image": 16}, Invalid((65535.0,))),
        ("u4", {"detectorSpecific/bit_depth_image": 32}, Invalid((4294967295.0,))),
        ("u4", {"bit_depth_image": 16}, Invalid((65535.0,))),
        ("i4", {"bit_depth_image": 32}, Invalid()),
        ("u2", {}, Invalid()),
        ("i4", {"description": "PILATUS3 6M, S/N 60-0102"}, Invalid((-2.0, -1.0))),
        ("i4", {"description": b"Dectris Pilatus 300K"}, Invalid((-2.0, -1.0))),
        ("u2", {"description": "PILATUS"}, Invalid()),
        ("i4", {"underload_value": -1}, Invalid(below=-1.0)),
        ("i4", {"underload_value": np.array([0])}, Invalid(below=0.0)),
        ("i4", {"underload_value": np.nan}, Invalid()),
    ],
)
def test_values_that_are_declared_to_be_none(
    store: Store, tmp_path: Path, dtype: str, detector: dict[str, Any], invalid: Invalid
) -> None:
    nexus(tmp_path / "n.h5", FRAMES.astype(dtype), x=1, **detector)
    assert store.stack("n.h5").invalid == invalid


def test_saturated_pixels_are_no_invalid_ones(store: Store, tmp_path: Path) -> None:
    nexus(tmp_path / "n.h5", FRAMES, saturation_value=200)
    assert (store.stack("n.h5").saturation, store.stack("n.h5").invalid) == (200.0, Invalid())


def test_a_pilatus_in_the_header_of_cbf(store: Store, tmp_path: Path) -> None:
    import fabio

    for name, detector in (("p", "PILATUS 2M, S/N 24-0107"), ("e", "Eiger 4M")):
        header = {"_array_data.header_contents": f"# Detector: {detector}\r\n# Pixel_size 172e-6 m x 172e-6 m"}
        image = fabio.cbfimage.CbfImage(data=FRAMES[0].astype(np.int32), header=header)
        image.write(str(tmp_path / f"{name}.cbf"))
    assert store.stack("p.cbf").invalid == Invalid((-2.0, -1.0))
    assert store.stack("e.cbf").invalid == Invalid()


def test_a_pixel_mask_is_taken_over(store: Store, tmp_path: Path) -> None:
    nexus(tmp_path / "a.h5", FRAMES, pixel_mask=MASK)
    assert store.stack("a.h5").pixel_mask == f"a.h5::/{DETECTOR}/pixel_mask"
    write(tmp_path / "link.h5", {"mine": h5py.ExternalLink("a.h5", "/entry/data/data")})
    mask = store.stack("link.h5::/mine").pixel_mask
    assert mask == f"{tmp_path / 'a.h5'}::/{DETECTOR}/pixel_mask"
    np.testing.assert_array_equal(store.image(mask), MASK)
    nexus(tmp_path / "s_1.h5", FRAMES, pixel_mask=MASK)
    nexus(tmp_path / "s_2.h5", FRAMES, pixel_mask=MASK)
    assert store.stack("s_%d.h5").pixel_mask == f"s_1.h5::/{DETECTOR}/pixel_mask"


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (MASK[:3], "is 3 x 6, and frames are 4 x 6: it is not taken"),
        (np.zeros((2, 4, 6), "u4"), "is 2 x 4 x 6, and frames are 4 x 6: it is not taken"),
        (h5py.ExternalLink("gone.h5", "/mask"), "is a link that leads nowhere"),
        (None, "nothing was ever written to it: it is not taken"),
    ],
)
def test_a_pixel_mask_that_does_not_fit_is_doubted(store: Store, tmp_path: Path, mask: Any, words: str) -> None:
    nexus(tmp_path / "a.h5", FRAMES, x=1)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        if mask is None:
            file[DETECTOR].create_dataset("pixel_mask", (4, 6), "u4")
        else:
            file[f"{DETECTOR}/pixel_mask"] = mask
    info = store.stack("a.h5")
    assert info.pixel_mask is None
    assert len(info.doubts) == 1
    assert words in info.doubts[0]


def test_masks_of_several_detectors(store: Store, tmp_path: Path) -> None:
    items = {f"entry/instrument/{name}/pixel_mask": MASK for name in ("one", "two")}
    write(tmp_path / "a.h5", {"entry/data/data": FRAMES, **items})
    assert "several detectors" in store.stack("a.h5").doubts[0]
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["entry/instrument/two/data"] = file["entry/data/data"]
    fresh = store.anew().stack("a.h5::/entry/data/data")
    assert (fresh.doubts, fresh.pixel_mask) == ((), "a.h5::/entry/instrument/two/pixel_mask")
