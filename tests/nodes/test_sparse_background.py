"""Sparse frames chosen by images of levels and by the background, saved with it, and restored."""

from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from numpy.typing import NDArray

from lima2cli.accounting.inspect_run import inspect_run
from lima2cli.errors import NodeMisuse
from lima2cli.files.appending import level
from lima2cli.frames import Experiment, Invalid, SparseSpec
from lima2cli.nodes.base import Inputs
from lima2cli.testing import frame_spec
from lima2cli.testing.inputs import NoFiles, parts_of
from tests.node_inputs import DTYPES, MemoryFiles, node, pixels
from tests.nodes.test_nodes_peaks import CENTER, slow_radial, slow_rings, spots
from tests.running import TRANSPORTS, Ran, lima2, run

assert hdf5plugin  # registers the filters for h5py


@pytest.mark.parametrize("dtype", DTYPES)
def test_images_of_levels(dtype: str) -> None:
    frames, mask = pixels(dtype, (3, 12, 14)), np.random.default_rng(2).random((12, 14)) < 0.1
    exact = frames[0].astype(np.float64)
    levels = np.choose(np.arange(168).reshape(12, 14) % 5, [exact, exact - 0.5, exact + 0.5, np.nan, -exact])
    levels[0, :4], levels[1, :4] = (-1e30, 1e30, -0.5, 2.0**64), (2.0**63, -(2.0**63), 254.5, -1)
    spec = frame_spec(dtype, 12, 14, mask=mask)
    inputs = Inputs.of(spec, MemoryFiles(levels=levels))
    out = node("sparsify", above="levels").bind(inputs)(frames)
    number = float if frames.dtype.kind == "f" else int
    for i, frame in enumerate(frames):
        own = slice(int(out.frame_ptr[i]), int(out.frame_ptr[i + 1]))
        as_pixels = levels.astype(dtype) if number is float else levels
        wanted = [
            (y * 14 + x, frame[y, x])
            for y, x in np.ndindex(12, 14)
            if not mask[y, x] and number(frame[y, x]) > float(as_pixels[y, x])
        ]
        assert list(zip(out.index[own].tolist(), out.frames[own].tolist(), strict=True)) == wanted


def test_images_of_levels_follow_the_detector() -> None:
    with pytest.raises(NodeMisuse, match="5 x 4") as caught:
        node("sparsify", above="levels").infer(
            Inputs.of(frame_spec("uint16", 12, 14), MemoryFiles(levels=np.zeros((4, 5))))
        )
    assert (caught.value.rule, caught.value.key) == ("calibration-shape", ("above",))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint64", "float32", "float64"])
@pytest.mark.parametrize("above", [{"sigma": 2}, {"sigma": 1.5, "noise": 7.3}])
def test_pixels_above_the_background(dtype: str, above: dict[str, float]) -> None:
    frames, mask = spots(dtype).copy(), np.random.default_rng(4).random((13, 17)) < 0.15
    frames[1, 3] = 99
    frames[:, mask] = 250
    if frames.dtype.kind == "f":
        frames[2, 5] = np.nan
    spec = frame_spec(dtype, 13, 17, mask=mask, invalid=Invalid((99.0,)), experiment=CENTER)
    use = node("sparsify", above=above)
    after = use.infer(Inputs.of(spec, NoFiles()))
    assert isinstance(after, SparseSpec)
    assert after.background
    out = use.bind(Inputs.of(spec, NoFiles()))(frames)
    assert out.background is not None
    for i, frame in enumerate(frames):
        good = ~mask & (frame == frame) & (frame != 99)
        mean, sigma = slow_radial(frame, good, slow_rings(spec))
        kept = good & (frame > mean + np.maximum(above["sigma"] * sigma, above.get("noise", 0)))
        own = slice(int(out.frame_ptr[i]), int(out.frame_ptr[i + 1]))
        assert out.index[own].tolist() == np.flatnonzero(kept).tolist()
        np.testing.assert_array_equal(out.frames[own], frame[kept])
        of_rings = out.background[i][:, slow_rings(spec)]
        np.testing.assert_allclose(of_rings[0], mean, rtol=1e-6)
        np.testing.assert_allclose(of_rings[1], sigma, rtol=1e-5, atol=1e-6)


def test_mistakes() -> None:
    with pytest.raises(NodeMisuse, match="centre") as caught:
        node("sparsify", above={"sigma": 3}).infer(Inputs.of(frame_spec("uint16", 9, 9), NoFiles()))
    assert (caught.value.rule, caught.value.key) == ("geometry-missing", ("above",))
    upper, _ = parts_of(frame_spec("uint16", 9, 9, experiment=CENTER))
    with pytest.raises(NodeMisuse, match="full frames"):
        node("sparsify", above={"sigma": 3}).infer(Inputs.of(upper, NoFiles()))


PIPELINE = """
lima2: 1
name: k
metadata: {beam_center: {x: 30.5, y: 20.25}}
detector:
  replay: {file: frames.npy, gap_value: -3, modules: {columns: 2, rows: 1, width: 30, height: 48, gap: {x: 4, y: 0}}}
receivers: 2
flows: {raw: {dataset: data, rules: {blocks_per_group: 2}, buffers: {frames: 8}}}
nodes:
  counters: {input: raw, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 64, height: 48}}}, statistics: [max]}}
  hits: {input: raw, filter: {keep: counters.all_max > 45}}
  cut: {input: raw, roi_flip_rot: {roi: {x: 2, y: 4, width: 20, height: 10}, rotation: 90}}
  bright: {input: raw, sparsify: {above: {sigma: 3, noise: 2}}}
  few: {input: cut, sparsify: {above: {sigma: 3}}}
  chosen: {input: hits, sparsify: {above: {sigma: 3}}}
  plain: {input: raw, sparsify: {above: 30}}
  whole: {input: bright, io_hdf5: {frames_per_file: 4}}
  part: {input: few, io_hdf5: {compression: gzip}}
  some: {input: chosen, io_hdf5: {}}
  level: {input: plain, io_hdf5: {}}
"""


def recorded() -> NDArray[np.int32]:
    """Frames of rings with spots; -3 between modules."""
    random = np.random.default_rng(3)
    y, x = np.mgrid[:48, :64]
    frames = random.poisson(5 + 5 * np.cos(np.hypot(x - 30.5, y - 20.25) / 5) ** 2, (19, 48, 64)).astype(np.int32)
    for number in range(0, 19, 2):
        for _ in range(6):
            frames[number, random.integers(48), random.integers(64)] += 50
    frames[:, :, 30:34] = -3
    return frames


SHOWN = {"whole": (slice(0, 48), slice(0, 64)), "part": (slice(4, 14), slice(2, 22))}


def restored(frame: NDArray[np.int32], where: tuple[slice, slice], sigmas: float, noise: float) -> NDArray[np.int32]:
    """The image of a frame that is to come back, pixel by pixel."""
    spec = frame_spec("int32", 48, 64, experiment=Experiment(beam_center=(30.5, 20.25)))
    good = np.zeros((48, 64), bool)
    good[where] = True
    good[:, 30:34] = False
    mean, sigma = slow_radial(frame, good, slow_rings(spec))
    with np.errstate(invalid="ignore"):
        kept = good & (frame > mean + np.maximum(sigmas * sigma, noise))
    image = np.full((48, 64), -3, np.int32)
    image[good] = np.floor(np.float32(mean[good]) + 0.5)
    image[kept] = frame[kept]
    return image


def saved(folder: Path, transport: str = "inline") -> Ran:
    np.save(folder / "frames.npy", recorded())
    ran = run(PIPELINE, folder, transport)
    assert ran.code == 0, ran.output
    return ran


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_frames_come_back_with_their_background(transport: str, tmp_path: Path) -> None:
    ran, frames = saved(tmp_path, transport), recorded()
    assert inspect_run(str(ran.directory), verify=True).problems == ()
    for name, (sigmas, noise) in {"whole": (3, 2), "part": (3, 0)}.items():
        done = lima2("densify", str(ran.directory), "-o", f"{name}.h5", "--node", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "19 frames" in done.stdout
        with h5py.File(tmp_path / f"{name}.h5") as file:
            images, numbers = file["entry_0000/measurement/data"], file["entry_0000/measurement/frame_number"]
            assert numbers[()].tolist() == list(range(19))
            for number, frame in enumerate(frames):
                np.testing.assert_array_equal(images[number], restored(frame, SHOWN[name], sigmas, noise))


def test_frames_of_receivers_and_of_levels_come_back(tmp_path: Path) -> None:
    ran, frames = saved(tmp_path), recorded()
    done = lima2("densify", str(next(ran.directory.glob("k_whole_1_*.h5"))), "-o", "one.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "one.h5") as file:
        for number, image in zip(file["entry_0000/measurement/frame_number"], file["entry_0000/measurement/data"],
                                 strict=True):  # fmt: skip
            np.testing.assert_array_equal(image, restored(frames[number], SHOWN["whole"], 3, 2))
    assert lima2("densify", str(ran.directory), "-o", "two.h5", "--node", "level", cwd=tmp_path).returncode == 0
    with h5py.File(tmp_path / "two.h5") as file:
        np.testing.assert_array_equal(file["entry_0000/measurement/data"], np.where(frames > 30, frames, 0))


def test_only_frames_that_passed_a_filter_have_rows(tmp_path: Path) -> None:
    ran, frames = saved(tmp_path), recorded()
    done = lima2("densify", str(ran.directory), "-o", "some.h5", "--node", "some", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "some.h5") as file:
        numbers = file["entry_0000/measurement/frame_number"][()].tolist()
        assert numbers == [number for number in range(19) if frames[number].max() > 45]
        assert len(numbers) == 10
        for row, number in enumerate(numbers):
            image = file["entry_0000/measurement/data"][row]
            np.testing.assert_array_equal(image, restored(frames[number], SHOWN["whole"], 3, 0))


def test_fabio_reads_the_master(tmp_path: Path) -> None:
    from fabio.sparseimage import SparseImage

    ran, frames = saved(tmp_path), recorded()
    image = SparseImage().read(str(ran.directory / "k_whole_master.h5"))
    try:
        assert image.nframes == 19
        for number in (0, 7, 18):
            theirs = image.getframe(number).data
            np.testing.assert_array_equal(theirs, restored(frames[number], SHOWN["whole"], 3, 2))
    finally:
        image.close()


def test_what_a_kill_leaves_is_cut(tmp_path: Path) -> None:
    ran = saved(tmp_path)
    path = next(ran.directory.glob("k_part_0_*.h5"))
    with h5py.File(path, "r+") as file:
        detector = next(it for it in file["entry_0000/instrument"].values() if "data" in it)
        before = len(detector["frame_number"])
        data = detector["data"]
        for name in ("background_avg", "background_std"):
            data[name].resize(before + 3, axis=0)
            data[name][before:] = 1
    level(str(path))
    with h5py.File(path) as file:
        data = file[detector_name(file)]["data"]
        assert len(data["background_avg"]) == len(data["background_std"]) == len(data["frame_ptr"]) - 1 == before
    assert inspect_run(str(ran.directory), verify=True).problems == ()
    with h5py.File(path, "r+") as file:
        data = file[detector_name(file)]["data"]
        data["background_std"].resize(before - 2, axis=0)
    level(str(path))
    with h5py.File(path) as file:
        data = file[detector_name(file)]["data"]
        assert len(data["background_avg"]) == len(data["frame_ptr"]) - 1 == before - 2


def detector_name(file: Any) -> str:
    return str(next(it for it in file["entry_0000/instrument"].values() if "data" in it).name)


def test_damaged_backgrounds_are_found(tmp_path: Path) -> None:
    ran = saved(tmp_path)
    path = next(ran.directory.glob("k_whole_0_*.h5"))
    with h5py.File(path, "r+") as file:
        file[detector_name(file)]["data/background_avg"][1, 3] += 1
    problems = inspect_run(str(ran.directory), verify=True).problems
    assert any("background_avg" in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("run", "-o", "out.h5"), 2, "level, part, some, whole"),
        (("run", "-o", "out.h5", "--node", "raw"), 2, "--node"),
        (("run/k_counters.h5", "-o", "out.h5"), 2, "no sparse frames|not a file"),
        (("frames.npy", "-o", "out.h5"), 2, "cannot be read"),
        (("run", "-o", "frames.npy", "--node", "whole"), 12, "not overwritten"),
        ((".", "-o", "out.h5"), 2, "no master of sparse frames"),
    ],
)
def test_what_cannot_be_restored(words: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    ran = saved(tmp_path)
    (tmp_path / "run").symlink_to(ran.directory)
    done = lima2("densify", *words, cwd=tmp_path)
    assert done.returncode == code
    assert any(word in done.stderr for word in message.split("|")), done.stderr
    assert not (tmp_path / "out.h5").exists()


def test_levels_of_backgrounds_can_be_changed_but_not_taken_away() -> None:
    from lima2cli.errors import StateError
    from lima2cli.nodes.change import changed

    spec = frame_spec("uint16", 13, 17, experiment=CENTER)
    use, inputs = node("sparsify", above={"sigma": 3}), Inputs.of(spec, NoFiles())
    assert changed(use, "above", {"sigma": 5}, inputs, use.infer(inputs)).above.sigma == 5  # type: ignore[attr-defined]
    with pytest.raises(StateError, match="not be the same"):
        changed(use, "above", 7, inputs, use.infer(inputs))
