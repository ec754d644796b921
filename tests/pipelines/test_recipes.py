"""The recipes: each example or page is run, and its physics compared with the truth that was emulated."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest

from lima2cli.detectors.experiments import MATERIALS, Peaks
from lima2cli.geometry import Rect
from tests import ROOT
from tests.running import EXAMPLES, Ran, lima2, needs_mpi


def example(name: str, folder: Path, *options: str) -> Ran:
    done = lima2("run", str(EXAMPLES / f"{name}.yaml"), "--progress", "none", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return Ran(done.returncode, done.stdout + done.stderr, (folder / "runs" / "latest").resolve())


def blocks(page: str) -> list[str]:
    """The blocks of code of a recipe's page."""
    text = (ROOT / "docs" / "recipes" / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^```(?:python|yaml|sh)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def column(ran: Ran, node: str, name: str) -> np.ndarray:
    (path,) = ran.directory.glob(f"*_{node}.h5")
    with h5py.File(path) as file:
        return np.asarray(file[f"entry_0000/measurement/{name}"][()])


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_xpcs_measures_the_decay_that_was_emulated(tmp_path: Path) -> None:
    ran = example("xpcs", tmp_path, "--transport", "inline")
    correlate = script("xpcs_g2")
    dense = correlate.frames_of(ran.directory / "xpcs_save_master.h5")
    np.testing.assert_array_equal(dense.sum(axis=1), column(ran, "intensity", "all_sum"))
    delays, g2 = correlate.multi_tau(dense)
    fast = delays <= 16
    slope, start = np.polyfit(delays[fast], np.log(g2[fast] - 1), 1)
    assert -slope / 2 == pytest.approx(0.05, rel=0.05)
    assert 0.85 < np.exp(start) < 1.1
    assert np.abs(g2[(delays > 100) & (delays < 500)] - 1).max() < 0.01


def test_an_energy_window_holds_the_line_in_it(tmp_path: Path) -> None:
    ran = example("dual_threshold", tmp_path, "--transport", "inline")
    assert column(ran, "counts", "centre_avg").mean() == pytest.approx(7.5, rel=0.002)
    assert column(ran, "counts", "centre_std").mean() == pytest.approx(7.5**0.5, rel=0.01)


@pytest.mark.mpi
@needs_mpi
def test_a_slow_viewer_costs_no_saved_frame(tmp_path: Path) -> None:
    ran = example("slow_viewer", tmp_path)
    frames, numbers, status = ran.saved("save")
    assert not status.any()
    np.testing.assert_array_equal(numbers, np.arange(2000))
    kept, seen, status = ran.saved("kept")
    good = status == 0
    assert good.any()
    np.testing.assert_array_equal(kept[good], np.log1p(frames[seen[good].astype(int)]).astype(np.float32))
    flow = ran.summary["flows"]["few"]
    assert flow["received"] + flow["lost"] == flow["expected"] == 40


def test_a_sinogram_holds_the_mass_of_the_cylinders(tmp_path: Path) -> None:
    make, pipeline = blocks("tomography")
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, check=True)
    (tmp_path / "tomo.yaml").write_text(pipeline)
    done = lima2("run", "tomo.yaml", "--transport", "inline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ran = Ran(0, "", (tmp_path / "runs" / "latest").resolve())
    sinogram = column(ran, "sinogram", "row_avg")
    mass = np.pi * 50**2 / 4 / 20 + np.pi * 10**2 / 10  # area by attenuation length
    np.testing.assert_allclose(sinogram.sum(axis=1), mass, rtol=0.03)
    assert sinogram.sum(axis=1).mean() == pytest.approx(mass, rel=0.005)
    frames, _, _ = ran.saved("save")
    np.testing.assert_array_equal(sinogram, frames[:, 20])


def paged(folder: Path, pipeline: str, steps: str, name: str) -> Ran:
    """Run the commands of a page, with the pipeline that they name."""
    (folder / f"{name}.yaml").write_text(pipeline)
    steps = steps.replace("lima2 ", f"{sys.executable} -m lima2cli ").replace(" run ", " run --transport inline ")
    steps = steps.replace(" calibrate ", " calibrate --transport inline ")
    done = subprocess.run(["bash", "-ec", steps], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return Ran(0, done.stdout, (folder / "runs" / "latest").resolve())


def test_a_powder_shows_the_rings_of_its_material(tmp_path: Path) -> None:
    pytest.importorskip("pyFAI")
    pipeline, steps = blocks("powder")
    ran = paged(tmp_path, pipeline, steps, "powder")
    (path,) = ran.directory.glob("*_profile.h5")
    with h5py.File(path) as file:
        q, profiles = file["entry_0000/axes/q"][()], file["entry_0000/measurement/intensity"][()]
        sigma = file["entry_0000/measurement/sigma"][()]
    assert profiles.shape == (200, 400)
    mean = profiles.mean(axis=0)
    spacings = MATERIALS["CeO2"]
    seen = [2 * np.pi / (d * 1e9) for d in spacings if 2 * np.pi / (d * 1e9) < 50]
    assert len(seen) >= 6
    step = q[1] - q[0]
    for ring in seen:
        near = np.flatnonzero(np.abs(q - ring) < 5 * step)
        assert abs(q[near[np.nanargmax(mean[near])]] - ring) <= step
    between = np.all([np.abs(q - ring) > 15 * step for ring in seen], axis=0) & (q < 50) & (q > 5)
    assert abs(np.nanmean(mean[between])) < 0.3  # what the dark left
    strong = np.nan_to_num(mean) > 40  # where the background that was subtracted adds little noise
    scatter = profiles[:, strong].std(axis=0) / sigma[:, strong].mean(axis=0)
    assert np.median(scatter) == pytest.approx((1 + 10 / mean[strong].mean()) ** 0.5, rel=0.15)
    frames, _, _ = ran.saved("save")
    assert np.isnan(frames).all(axis=0).sum() == 17 * 487 + 93  # the gap, and the bad pixels that are not in it


def test_every_hit_is_found_with_all_its_peaks(tmp_path: Path) -> None:
    ran = example("crystallography", tmp_path, "--transport", "inline")
    truth = Peaks(hit_rate=0.1, peaks=25, intensity=400, background=0.5)
    hits = truth.hits(np.arange(500, dtype=np.uint64))
    count = column(ran, "peaks", "count")
    np.testing.assert_array_equal(count, np.where(hits, 25, 0))
    (path,) = ran.directory.glob("*_save_master.h5")
    with h5py.File(path) as file:
        detector = file[f"entry_0000/{file['entry_0000'].attrs['default']}"].parent
        saved = detector["frame_number"][()][detector["frame_status"][()] == 0]
    np.testing.assert_array_equal(saved, np.flatnonzero(hits))
    x, y, intensity = (column(ran, "peaks", name) for name in ("x", "y", "intensity"))
    for number in np.flatnonzero(hits)[:10].tolist():
        spots = truth.spots(number, Rect(0, 0, 512, 512))
        apart = np.hypot(spots[:, 0, np.newaxis] - x[number, :25], spots[:, 1, np.newaxis] - y[number, :25])
        assert apart.min(axis=1).max() < 0.5
        assert intensity[number, :25].sum() == pytest.approx(spots[:, 2].sum(), rel=0.1)


def test_virtual_detectors_show_the_deflection(tmp_path: Path) -> None:
    make, pipeline, _ = blocks("virtual-detectors")
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, check=True)
    (tmp_path / "stem.yaml").write_text(pipeline)
    assert lima2("run", "stem.yaml", "--transport", "inline", cwd=tmp_path).returncode == 0
    ran = Ran(0, "", (tmp_path / "runs" / "latest").resolve())
    bright, dark, x, y = column(ran, "virtual", "sums").T.reshape(4, 32, 32)
    v, u = np.mgrid[:32, :32] / 16 - 1
    held = np.exp(-2 * (u**2 + v**2))
    assert np.abs(x / bright - 3 * u * held).max() < 0.5
    assert np.abs(y / bright - 3 * v * held).max() < 0.5
    hole = (u - 0.3) ** 2 + v**2 < 0.1
    assert bright[hole].max() < bright[~hole].min()
    assert dark[hole].min() > dark[~hole].max()


def test_the_recipe_of_jungfrau_gives_photons(tmp_path: Path) -> None:
    pedestal, steps, photons = blocks("jungfrau")
    (tmp_path / "photons.yaml").write_text(photons)
    ran = paged(tmp_path, pedestal, steps, "pedestal")
    (mean,), _, _ = ran.saved("save")
    raw, _, _ = ran.saved("raw")
    stage, charge = raw >> 14, (raw & 0x3FFF).astype(float)
    assert set(np.unique(stage)) == {0, 1}
    energy = np.where(stage == 0, (charge - 3000) / 41, (charge - 14900) / -1.44)
    np.testing.assert_allclose(mean, (energy / 12.4).mean(axis=0), atol=1e-3)
