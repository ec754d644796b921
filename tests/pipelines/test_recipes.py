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


def test_the_recipe_of_jungfrau_gives_photons(tmp_path: Path) -> None:
    pedestal, steps, photons = blocks("jungfrau")
    (tmp_path / "pedestal.yaml").write_text(pedestal)
    (tmp_path / "photons.yaml").write_text(photons)
    steps = steps.replace("lima2 ", f"{sys.executable} -m lima2cli ").replace(" run ", " run --transport inline ")
    steps = steps.replace(" calibrate ", " calibrate --transport inline ")
    done = subprocess.run(["bash", "-ec", steps], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ran = Ran(0, "", (tmp_path / "runs" / "latest").resolve())
    (mean,), _, _ = ran.saved("save")
    raw, _, _ = ran.saved("raw")
    stage, charge = raw >> 14, (raw & 0x3FFF).astype(float)
    assert set(np.unique(stage)) == {0, 1}
    energy = np.where(stage == 0, (charge - 3000) / 41, (charge - 14900) / -1.44)
    np.testing.assert_allclose(mean, (energy / 12.4).mean(axis=0), atol=1e-3)
