"""Calibration files: made of emulated frames whose truth is known, and taken by the nodes that need them."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from lima2cli.calibrate import DEAD, GAP, HIGH, LOW, NOISY, images_of
from lima2cli.errors import RunFailed
from lima2cli.files.calibration_file import _give_name
from tests.running import TRANSPORTS, lima2, run

PIPELINE = """
lima2: 1
name: k
detector:
  remu:
    image: {width: 60, height: 40}
    modules: {columns: 2, rows: 1, width: 28, height: 40, gap: {x: 4, y: 0}}
    datasets: {D: {dtype: uint16}}
    scene: {frames: {file: dark.npy, loop: true}}
acquisition: {frames: 50}
receivers: 3
flows: {F: {dataset: D}}
nodes:
  less: {input: F, background_sub: {image: dark.h5}}
  save: {input: less, io_hdf5: {}}
"""


def saved(path: Path, name: str = "data") -> np.ndarray:
    with h5py.File(path) as file:
        return np.asarray(file[f"entry_0000/calibration/{name}"][()])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline, and dark frames of a bias that differs from pixel to pixel."""
    random = np.random.default_rng(1)
    bias = random.uniform(50, 150, (40, 60))
    np.save(tmp_path / "dark.npy", random.poisson(bias, (50, 40, 60)).astype(np.uint16))
    (tmp_path / "p.yaml").write_text(PIPELINE)
    return tmp_path


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_frames_less_their_dark_are_zero_on_average(folder: Path, transport: str) -> None:
    done = lima2("calibrate", "dark", "p.yaml", "-o", "dark.h5", "--transport", transport, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "dark.h5: dark of 50 frames; `background_sub: {image: dark.h5}`" in done.stdout
    frames = np.load(folder / "dark.npy").astype(float)
    gap = np.zeros((40, 60), bool)
    gap[:, 28:32] = True
    dark = saved(folder / "dark.h5")
    np.testing.assert_allclose(dark[~gap], frames.mean(axis=0)[~gap], rtol=1e-6)
    np.testing.assert_allclose(saved(folder / "dark.h5", "std")[~gap], frames.std(axis=0)[~gap], rtol=1e-5)
    assert np.isnan(dark[gap]).all()
    ran = run(PIPELINE, folder, "inline")
    less, _, _ = ran.saved("save")
    residual = less.mean(axis=0)[~gap]
    assert np.abs(residual).max() < 1e-4
    assert sorted(path.name for path in folder.iterdir()) == ["dark.h5", "dark.npy", "p.yaml", "pipeline.yaml", "runs"]


def test_a_file_holds_its_origin_and_opens_in_silx(folder: Path) -> None:
    assert lima2("calibrate", "dark", "p.yaml", "-o", "dark.h5", "--frames", "20", cwd=folder).returncode == 0
    with h5py.File(folder / "dark.h5") as file:
        process = file["entry_0000/process"]
        assert process["program"].asstr()[()] == "lima2 calibrate"
        assert process["runs/0/frames"][()] == 20
        assert process["runs/0/pipeline"].asstr()[()] == PIPELINE
        data = file["entry_0000/calibration/data"]
        assert (data.attrs["units"], data.dtype) == (b"counts", np.float32)
        errors, std = (file[f"entry_0000/calibration/{name}"][()] for name in ("data_errors", "std"))
    np.testing.assert_allclose(errors, std / 20**0.5, rtol=1e-6)
    from silx.io.nxdata import get_default

    with h5py.File(folder / "dark.h5") as file:
        plot = get_default(file)
        assert plot.signal.name == "/entry_0000/calibration/data"
        assert plot.errors is not None


def test_a_flat_evens_out_what_it_was_made_of(folder: Path) -> None:
    random = np.random.default_rng(2)
    light = np.outer(np.linspace(0.5, 1.5, 40), np.linspace(1.2, 0.8, 60)) * 1000
    light[3, 5] = 0
    np.save(folder / "flat.npy", random.poisson(light + 100, (50, 40, 60)).astype(np.uint16))
    np.save(folder / "offset.npy", np.full((40, 60), 100.0))
    options = ["--dark", "offset.npy", "-s", "detector.remu.scene.frames.file=flat.npy"]
    done = lima2("calibrate", "flat", "p.yaml", "-o", "flat.h5", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    flat = saved(folder / "flat.h5")
    assert np.nanmean(flat, dtype=float) == pytest.approx(1, abs=1e-6)
    corrected = PIPELINE.replace("dark.npy", "flat.npy").replace("dark.h5", "offset.npy")
    corrected = corrected.replace(
        "  save: {input: less", "  even: {input: less, flatfield: {image: flat.h5}}\n  save: {input: even"
    )
    less, _, _ = run(corrected, folder, "inline").saved("save")
    mean = less.mean(axis=0)
    good = np.isfinite(mean) & (light > 0)
    assert good.sum() == 40 * 56 - 1
    np.testing.assert_allclose(mean[good], mean[good].mean(), rtol=1e-4)


JUNGFRAU = """
lima2: 1
detector:
  jungfrau:
    modules: {columns: 1, rows: 1}
    gain_mode: MODE
    emulate: {scene: {noise: {mean: 0}}, pedestal: [3000, 14900, 15100]}
acquisition: {frames: 6, period: 20 ms}
nodes: {save: {input: adc, io_hdf5: {}}}
"""


def test_pedestals_of_three_gain_stages(tmp_path: Path) -> None:
    modes = ("dynamic", "forceswitchg1", "forceswitchg2")
    for mode in modes:
        (tmp_path / f"{mode}.yaml").write_text(JUNGFRAU.replace("MODE", mode))
    files = [f"{mode}.yaml" for mode in modes]
    done = lima2("calibrate", "pedestal", *files, "-o", "pedestal.h5", "--transport", "inline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note" not in done.stderr
    pedestal = saved(tmp_path / "pedestal.h5")
    assert pedestal.shape == (3, 512, 1024)
    np.testing.assert_array_equal(pedestal, np.broadcast_to([[[3000]], [[14900]], [[15100]]], pedestal.shape))
    np.testing.assert_array_equal(saved(tmp_path / "pedestal.h5", "frames"), 6)
    photons = JUNGFRAU.replace("MODE", "dynamic").replace("mean: 0}", "mean: 3}")
    nodes = "nodes:\n  g: {input: adc, gain: {pedestal: pedestal.h5, gain: gain.npy, photon_energy: 12.4 keV}}\n"
    np.save(tmp_path / "gain.npy", np.broadcast_to([[[41.0]], [[-1.44]], [[-0.1]]], pedestal.shape))
    text = photons.partition("nodes:")[0] + nodes + "  save: {input: g, io_hdf5: {}}\n"
    frames, _, _ = run(text, tmp_path, "inline").saved("save")
    np.testing.assert_allclose(frames, np.rint(frames), atol=0.01)  # whole photons
    assert frames.mean() == pytest.approx(3, abs=0.05)


def test_a_stage_without_frames_is_reported(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(JUNGFRAU.replace("MODE", "fixg1"))
    done = lima2("calibrate", "pedestal", "p.yaml", "-o", "pedestal.h5", "--transport", "inline", cwd=tmp_path)
    assert done.returncode == 0
    assert "note: gain stage 0 is not measured; NaN elsewhere" in done.stderr
    pedestal = saved(tmp_path / "pedestal.h5")
    assert np.isnan(pedestal[[0, 2]]).all()
    assert np.isfinite(pedestal[1]).all()


def test_a_mask_finds_the_pixels_that_were_made_bad(folder: Path) -> None:
    random = np.random.default_rng(3)
    frames = random.normal(100, 5, (50, 40, 60))
    frames[:, 2, 3], frames[:, 5, 6], frames[:, 8, 9] = 100, frames[:, 5, 6] + 80, frames[:, 8, 9] - 80
    frames[:, 11, 12] = random.normal(100, 40, 50)
    np.save(folder / "dark.npy", np.rint(frames).astype(np.uint16))
    done = lima2("calibrate", "mask", "p.yaml", "-o", "mask.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    mask = saved(folder / "mask.h5")
    assert (mask[:, 28:32] == GAP).all()
    mask[:, 28:32] = 0
    bad = {(int(y), int(x)): int(mask[y, x]) for y, x in np.argwhere(mask)}
    assert bad.pop((11, 12)) & NOISY
    assert bad == {(2, 3): DEAD, (5, 6): HIGH, (8, 9): LOW}
    text = PIPELINE.replace("background_sub: {image: dark.h5}", "mask: {image: mask.h5}")
    assert run(text, folder, "inline").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["dark", "p.yaml", "-o", "dark.npy.h5", "--dark", "x.h5"], 2, "--dark is for flat and mask, not for dark"),
        (["dark", "p.yaml", "p.yaml", "-o", "d.h5"], 2, "a dark is made of one pipeline, not of 2"),
        (["dark", "p.yaml", "-o", "d.npy"], 2, "expected a name that ends in .h5"),
        (["dark", "p.yaml", "-o", "there.h5"], 12, "there.h5 exists, and is not overwritten"),
        (["dark", "p.yaml", "-o", "nowhere/d.h5"], 12, "there is no directory nowhere"),
        (["flat", "p.yaml", "-o", "f.h5", "--dark", "none.h5"], 1, "none.h5"),
        (["dark", "p.yaml", "-o", "d.h5", "--dataset", "E"], 1, "dataset"),
        (["flat", "p.yaml", "-o", "f.h5", "-s", "detector.remu.scene={noise: {mean: 0}}"], 10, "no pixel of the mean"),
    ],
)
def test_mistakes_leave_no_file(folder: Path, arguments: list[str], code: int, why: str) -> None:
    (folder / "there.h5").write_bytes(b"mine")
    before = sorted(folder.iterdir())
    done = lima2("calibrate", *arguments, cwd=folder)
    assert (done.returncode, why in done.stderr) == (code, True), done.stderr
    assert sorted(folder.iterdir()) == before
    assert (folder / "there.h5").read_bytes() == b"mine"


def test_lost_frames_make_no_calibration(folder: Path) -> None:
    faults = "detector.remu.faults={died: {frame: 30}}"
    done = lima2("calibrate", "dark", "p.yaml", "-o", "d.h5", "-s", faults, cwd=folder)
    assert done.returncode == 11, done.stderr
    assert "nothing is written" in done.stderr
    assert not (folder / "d.h5").exists()


def test_frames_without_light_are_no_flat() -> None:
    zeros = np.zeros((3, 4), np.float32)
    with pytest.raises(RunFailed, match="as in a flat field"):
        images_of("flat", [({"mean": zeros, "std": zeros}, 5)], sigma=5)


def test_a_file_system_without_links_overwrites_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: object, target: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refused)
    part, path = tmp_path / "d.h5.part", tmp_path / "d.h5"
    part.write_bytes(b"new")
    _give_name(str(part), path)
    assert path.read_bytes() == b"new"
    part.write_bytes(b"newer")
    with pytest.raises(FileExistsError):
        _give_name(str(part), path)
    assert path.read_bytes() == b"new"
    assert not part.exists()
