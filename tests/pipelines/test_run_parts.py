"""Receivers that hold parts of frames (`dispatch: modules`) do together what one does with whole frames."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from lima2cli.geometry import Rect
from tests.running import TRANSPORTS, Ran, counter, mpi, run, truth

WIDTH, HEIGHT, FRAMES = 70, 53, 23
GRID = "modules: {columns: 2, rows: 3, width: 33, height: 15, gap: {x: 4, y: 4}}"
MODULES = [Rect(x, y, 33, 15) for y in (0, 19, 38) for x in (0, 37)]
HEAD = f"""
lima2: 1
detector:
  remu: {{image: {{width: {WIDTH}, height: {HEIGHT}}}, datasets: {{D: {{dtype: uint16}}}}, gap_value: 7, {GRID},
         scene: {{counter: {{}}}}}}
acquisition: {{frames: {FRAMES}}}
"""


IMAGE = Rect(0, 0, WIDTH, HEIGHT)


def seen(source: Rect = IMAGE) -> NDArray[np.bool_]:
    """Pixels that modules cover."""
    good = np.zeros((HEIGHT, WIDTH), bool)
    for module in MODULES:
        good[module.y : module.bottom, module.x : module.right] = True
    return good[source.y : source.bottom, source.x : source.right]


def whole(numbers: Any, source: Rect = IMAGE, gap: int = 7) -> NDArray[np.uint16]:
    """Frames of the scene, with the gap value between modules."""
    return np.where(seen(source), counter(np.asarray(numbers, np.uint64), source, WIDTH), gap).astype(np.uint16)


def table(ran: Ran, node: str) -> dict[str, NDArray[Any]]:
    with h5py.File(ran.directory / ran.summary["tables"][node]["file"]) as file:
        return {name: column[()] for name, column in file["entry_0000/measurement"].items()}


@pytest.mark.parametrize(
    ("shares", "transport"),
    [
        ([[0, 1, 2, 3, 4, 5]], "inline"),
        ([[0, 2, 4], [1, 3, 5]], "inline"),
        ([[4, 5], [0, 1], [2, 3]], "inline"),
        ([[0], [1], [2, 4], [3, 5]], "inline"),
        mpi([[0], [1], [2, 4], [3, 5]]),
    ],
)
def test_gathered_and_counted(shares: list[list[int]], transport: str, tmp_path: Path) -> None:
    ran = run(
        f"""{HEAD}
receivers: {len(shares)}
flows:
  F: {{dataset: D, source: {{x: 3, y: 2, width: 60, height: 50}}, slices: {{start: 1, step: 2}},
      dispatch: {{modules: {shares}}}, rules: {{blocks_per_group: 2}}, buffers: {{frames: 4}}}}
nodes:
  counters: {{input: F, roi_counters: {{rois: {{some: {{rect: {{x: 10, y: 9, width: 45, height: 25}}}}}}}}}}
  full: {{input: F, reconstruction: {{}}}}
  save: {{input: full, io_hdf5: {{}}}}
  times: {{input: full, checkpoint: {{}}}}
""",
        tmp_path,
        transport,
    )
    assert ran.code == 0, ran.output
    truth(ran)
    source, numbers = Rect(3, 2, 60, 50), np.arange(1, FRAMES, 2)
    frames, found, status = ran.saved("save")
    assert found.tolist() == numbers.tolist()
    assert not status.any()
    expected = whole(numbers, source)  # the gap value also where nobody holds a pixel
    np.testing.assert_array_equal(frames, expected)
    region, good = np.s_[9:34, 10:55], seen(source)[9:34, 10:55]
    pixels = [frame[region][good].astype(float) for frame in expected]
    columns = table(ran, "counters")
    assert columns["frame_number"].tolist() == numbers.tolist()
    for name, oracle in (("sum", np.sum), ("avg", np.mean), ("std", np.std), ("min", np.min), ("max", np.max)):
        np.testing.assert_allclose(columns[f"some_{name}"], [oracle(values) for values in pixels], rtol=1e-6)
    assert table(ran, "times")["frame_number"].tolist() == numbers.tolist()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_parts_shown_by_the_master(transport: str, tmp_path: Path) -> None:
    ran = run(
        f"""{HEAD}
receivers: 3
flows: {{F: {{dataset: D, dispatch: {{modules: [[4, 5], [0, 1], [2, 3]]}}, rules: {{blocks_per_group: 3}}}}}}
nodes:
  dark: {{input: F, background_sub: {{image: 3}}}}
  save: {{input: dark, io_hdf5: {{layout: virtual, frames_per_file: 5}}}}
  virtual: {{input: F, reconstruction: {{strategy: virtual}}}}
  raw: {{input: virtual, io_hdf5: {{layout: virtual}}}}
""",
        tmp_path,
        transport,
    )
    assert ran.code == 0, ran.output
    truth(ran)
    numbers = np.arange(FRAMES)
    frames, found, status = ran.saved("save")
    assert found.tolist() == numbers.tolist()
    assert not status.any()
    assert frames.dtype == np.float32
    np.testing.assert_array_equal(frames, np.where(seen(), whole(numbers).astype(np.float32) - 3, np.nan))
    np.testing.assert_array_equal(ran.saved("raw")[0], whole(numbers))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_parts_are_vetoed_together(transport: str, tmp_path: Path) -> None:
    ran = run(
        f"""{HEAD}
receivers: 3
flows: {{F: {{dataset: D, dispatch: modules, rules: {{blocks_per_group: 4}}}}}}
nodes:
  counters: {{input: F, roi_counters: {{rois: {{some: {{rect: {{x: 5, y: 3, width: 50, height: 40}}}}}}}}}}
  bright: {{input: F, filter: {{keep: counters.some_max > 20000, every: 7}}}}
  full: {{input: bright, reconstruction: {{}}}}
  save: {{input: full, io_hdf5: {{}}}}
  later: {{input: F, reconstruction: {{}}}}
  same: {{input: later, filter: {{keep: counters.some_max > 20000, every: 7}}}}
  also: {{input: same, io_hdf5: {{}}}}
""",
        tmp_path,
        transport,
    )
    assert ran.code == 0, ran.output
    truth(ran)
    some = np.array([frame[3:43, 5:55][seen()[3:43, 5:55]].max() for frame in whole(np.arange(FRAMES))])
    passed = [f for f in range(FRAMES) if some[f] > 20000 or f % 7 == 0]
    assert 3 < len(passed) < FRAMES - 3
    for node in ("save", "also"):
        frames, found, _ = ran.saved(node)
        assert found.tolist() == passed
        np.testing.assert_array_equal(frames, whole(passed))
        channel = ran.summary["channels"][node]
        assert (channel["saved"], channel["vetoed"], channel["lost"]) == (len(passed), FRAMES - len(passed), 0)


def test_a_node_that_fails_at_one_receiver_hangs_no_other(tmp_path: Path) -> None:
    """Its groups are lost to all, and those before are saved."""
    (tmp_path / "user.py").write_text(
        "def f(frames, numbers):\n    if numbers[0] == 10: raise ValueError('ten')\n    return frames\n"
    )
    ran = run(
        f"""{HEAD}
receivers: 3
flows: {{F: {{dataset: D, dispatch: modules, buffers: {{frames: 2}}}}}}
nodes:
  full: {{input: F, reconstruction: {{}}}}
  user: {{input: full, python: {{function: "user.py:f"}}}}
  save: {{input: user, io_hdf5: {{}}}}
  counters: {{input: F, roi_counters: {{rois: {{all: {{rect: {{x: 0, y: 0, width: 70, height: 53}}}}}}}}}}
""",
        tmp_path,
        "inline",
    )
    assert ran.code == 10, ran.output
    _, found, status = ran.saved("save")
    saved = set(found[status == 0].tolist())
    assert set(range(10)) <= saved
    assert 10 not in saved
    counts = table(ran, "counters")
    assert set(range(11)) <= set(counts["frame_number"].tolist())


@pytest.mark.parametrize("transport", [mpi()])
def test_a_jungfrau_of_eight_modules(transport: str, tmp_path: Path) -> None:
    """Gain, mask, gathered, counted, filtered, saved sparse: as numpy does with whole frames."""
    count, height, width = 2, 4 * 512 + 3 * 36, 2 * 1024 + 8
    rng = np.random.default_rng(5)
    pedestal = rng.uniform(0, 2000, (3, height, width)).astype(np.float32)
    gain = rng.uniform(5, 50, (3, height, width)).astype(np.float32)
    bad = (rng.random((height, width)) < 0.01).astype(np.uint8)
    for name, array in (("pedestal", pedestal), ("gain", gain), ("bad", bad)):
        np.save(tmp_path / f"{name}.npy", array)
    modules = [Rect(x, y, 1024, 512) for y in range(0, height, 548) for x in (0, 1032)]
    covered = np.zeros((height, width), bool)
    for module in modules:
        covered[module.y : module.bottom, module.x : module.right] = True
    raw = counter(np.arange(count, dtype=np.uint64), Rect(0, 0, width, height), width).astype(np.uint16)
    stage = np.array([0, 1, 9, 2])[raw >> 14]
    chosen = np.minimum(stage, 2)
    rows, columns = np.mgrid[:height, :width]
    energy = ((raw & 0x3FFF) - pedestal[chosen, rows, columns]) / gain[chosen, rows, columns]
    counts = covered & (bad == 0) & (stage != 9)
    spot = np.s_[400:600, 900:1200]
    average = np.array([energy[i][spot][counts[i][spot]].mean() for i in range(count)])
    level = float(np.median(average))
    ran = run(
        f"""
lima2: 1
detector:
  remu:
    image: {{width: {width}, height: {height}}}
    datasets: {{adc: {{dtype: uint16}}}}
    modules: {{columns: 2, rows: 4, width: 1024, height: 512, gap: {{x: 8, y: 36}}}}
    scene: {{counter: {{}}}}
acquisition: {{frames: {count}}}
receivers: 4
flows: {{adc: {{dataset: adc, dispatch: modules, buffers: {{frames: 4}}}}}}
nodes:
  kev: {{input: adc, gain: {{pedestal: pedestal.npy, gain: gain.npy}}}}
  good: {{input: kev, mask: {{image: bad.npy, fill: nan}}}}
  counters: {{input: good, roi_counters: {{rois: {{spot: {{rect: {{x: 900, y: 400, width: 300, height: 200}}}}}}}}}}
  full: {{input: good, reconstruction: {{}}}}
  hits: {{input: full, filter: {{keep: counters.spot_avg > {level}}}}}
  pixels: {{input: hits, sparsify: {{above: 2000}}}}
  save: {{input: pixels, io_hdf5: {{}}}}
""",
        tmp_path,
        transport,
    )
    assert ran.code == 0, ran.output
    truth(ran)
    columns_found = table(ran, "counters")
    np.testing.assert_allclose(columns_found["spot_avg"], average, rtol=1e-5)
    passed = np.flatnonzero(average > level)
    assert 0 < len(passed) < count
    with h5py.File(ran.directory / ran.summary["channels"]["save"]["dataset"].split("::")[0]) as file:
        detector = file[f"entry_0000/{file['entry_0000'].attrs['default']}"].parent
        assert detector["frame_number"][()].tolist() == passed.tolist()
        ptr, index, values = (detector["data"][name][()] for name in ("frame_ptr", "index", "intensity"))
    for row, frame in enumerate(passed):
        kept = np.flatnonzero(counts[frame] & (energy[frame].astype(np.float32) > 2000))
        mine = slice(int(ptr[row]), int(ptr[row + 1]))
        near = np.abs(energy[frame].ravel() - 2000) < 1e-2  # may fall on either side by rounding
        assert set(index[mine].tolist()) ^ set(kept.tolist()) <= set(np.flatnonzero(near).tolist())
        np.testing.assert_allclose(values[mine], energy[frame].ravel()[index[mine]], rtol=1e-4)
