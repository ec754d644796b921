"""Node `peaks`, and the background of rings, against definitions written pixel by pixel."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lima2cli.errors import NodeMisuse
from lima2cli.frames import Experiment, FrameSpec, Invalid
from lima2cli.geometry import Rect
from lima2cli.kernels.radial import RadialBackground, rings
from lima2cli.nodes.base import Inputs
from lima2cli.testing import frame_spec
from lima2cli.testing.inputs import NoFiles
from lima2cli.view import View
from tests.node_inputs import block, node
from tests.pipelines.test_run_real import STACK, stack
from tests.running import TRANSPORTS, run

CENTER = Experiment(beam_center=(6.3, 4.9), sensor=(17, 13))


def place_of(spec: FrameSpec, row: int, column: int) -> tuple[float, float]:
    x, y = spec.view.place(column, row)
    return x, y


def slow_rings(spec: FrameSpec) -> NDArray[np.int32]:
    """The ring of each pixel, one by one."""
    (x0, y0), (px, py) = spec.experiment.beam_center or (0, 0), spec.experiment.pixel_size or (1, 1)
    found = np.zeros(spec.shape, np.int32)
    bx, by = spec.view.binning
    for row, column in np.ndindex(*spec.shape):
        x, y = place_of(spec, row, column)
        found[row, column] = math.floor(math.hypot((x - x0) * px, (y - y0) * py) / min(px * bx, py * by))
    return found


def slow_radial(frame: NDArray[Any], good: NDArray[np.bool_], ring: NDArray[np.int32]) -> tuple[Any, Any]:
    """Mean and sigma at each pixel."""
    mean, sigma = np.full(frame.shape, np.nan), np.full(frame.shape, np.nan)
    for r in np.unique(ring):
        values = frame[good & (ring == r)].astype(float)
        if not len(values):
            continue
        for _ in range(5):
            near = np.abs(values - values.mean()) <= 5 * values.std()
            if near.all():
                break
            values = values[near]
        mean[ring == r], sigma[ring == r] = values.mean(), values.std()
    return mean, sigma


def slow_local(frame: NDArray[Any], good: NDArray[np.bool_], patch: int) -> tuple[Any, Any]:
    mean, sigma = np.full(frame.shape, np.nan), np.full(frame.shape, np.nan)
    half, far = patch // 2, patch // 2 + patch
    for row, column in np.ndindex(*frame.shape):
        values = [
            float(frame[r, c])
            for r, c in np.ndindex(*frame.shape)
            if max(abs(r - row), abs(c - column)) <= far and max(abs(r - row), abs(c - column)) > half and good[r, c]
        ]
        if values:
            mean[row, column], sigma[row, column] = np.mean(values), np.std(values)
    return mean, sigma


def slow_peaks(
    frame: NDArray[Any], good: NDArray[np.bool_], mean: Any, sigma: Any, use: Any, spec: FrameSpec
) -> list[tuple[float, float, float]]:
    """Peaks as the manual defines them: x, y, intensity."""
    half, found = use.patch // 2, []
    with np.errstate(invalid="ignore"):
        above = good & (frame > mean + np.maximum(use.cutoff * sigma, use.noise))
    for row, column in np.argwhere(above):
        patch = [
            (r, c)
            for r in range(max(0, row - half), min(frame.shape[0], row + half + 1))
            for c in range(max(0, column - half), min(frame.shape[1], column + half + 1))
            if good[r, c]
        ]
        greatest = max(frame[at] for at in patch)
        if next(at for at in patch if frame[at] == greatest) != (row, column):
            continue
        if sum(above[at] for at in patch) < use.connected:
            continue
        weights = [max(0.0, float(frame[at]) - mean[at]) if mean[at] == mean[at] else 0.0 for at in patch]
        r, c = (sum(w * at[axis] for w, at in zip(weights, patch, strict=True)) / sum(weights) for axis in (0, 1))
        found.append((*spec.view.place(c, r), sum(weights)))
    return found


def check(frames: NDArray[Any], spec: FrameSpec, good: NDArray[np.bool_] | None = None, **parameters: Any) -> int:
    """Compare with the definition; return the number of peaks."""
    use = node("peaks", **parameters)
    table, rows = (
        use.infer(Inputs.of(spec, NoFiles())),
        dict(use.bind(Inputs.of(spec, NoFiles())).step(block(frames), 0)),
    )
    assert set(rows) == {"frame_number", *table.columns}
    good = np.ones(frames.shape, bool) if good is None else good
    for i, frame in enumerate(frames):
        if use.background == "radial":
            mean, sigma = slow_radial(frame, good[i], slow_rings(spec))
        else:
            mean, sigma = slow_local(frame, good[i], use.patch)
        expected = sorted(slow_peaks(frame, good[i], mean, sigma, use, spec), key=lambda it: -it[2])
        assert rows["count"][i] == len(expected)
        shown = np.array(expected[: use.most], float).reshape(-1, 3)
        got = np.stack([rows[name][i] for name in ("x", "y", "intensity")], axis=1)
        assert np.isnan(got[len(shown) :]).all()
        np.testing.assert_allclose(np.sort(got[: len(shown)], axis=0), np.sort(shown, axis=0), rtol=1e-4, atol=1e-4)
    return int(rows["count"].sum())


def spots(dtype: str, count: int = 4, shape: tuple[int, int] = (13, 17), seed: int = 1) -> NDArray[Any]:
    random = np.random.default_rng(seed)
    frames = random.poisson(10, (count, *shape)).astype(np.float64)
    for _ in range(3 * count):
        frame, row, column = (int(random.integers(n)) for n in frames.shape)
        frames[frame, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] += 40
        frames[frame, row, column] += 40
    return frames.astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint64", "float32", "float64"])
@pytest.mark.parametrize("background", ["radial", "local"])
@pytest.mark.parametrize("patch", [3, 5])
def test_peaks_are_as_defined(dtype: str, background: str, patch: int) -> None:
    spec = frame_spec(dtype, 13, 17, experiment=CENTER)
    found = check(spots(dtype), spec, background=background, patch=patch, cutoff=2)
    assert found > 3


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_small_frame(data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 6), min_size=60, max_size=60))
    bad = data.draw(st.lists(st.booleans(), min_size=30, max_size=30))
    mask = np.array(bad).reshape(5, 6) if data.draw(st.booleans()) else np.zeros((5, 6), bool)
    frames = np.array(values, np.uint16).reshape(2, 5, 6)
    spec = frame_spec("uint16", 5, 6, mask=mask, invalid=Invalid((6.0,)), experiment=CENTER)
    parameters = {
        "background": data.draw(st.sampled_from(["radial", "local"])),
        "cutoff": data.draw(st.sampled_from([0, 0.51, 1.37])),
        "noise": data.draw(st.sampled_from([0.13, 1.29])),
        "connected": data.draw(st.integers(1, 4)),
        "most": data.draw(st.sampled_from([2, 30])),
    }
    check(frames, spec, ~mask & (frames != 6), **parameters)


@pytest.mark.parametrize("background", ["radial", "local"])
def test_pixels_that_do_not_count(background: str) -> None:
    frames, mask = spots("float32"), np.random.default_rng(4).random((13, 17)) < 0.2
    frames[1, 3:6] = np.nan
    frames[2] = np.nan
    frames[:, mask] = 1e6
    spec = frame_spec("float32", 13, 17, mask=mask, experiment=CENTER)
    assert check(frames, spec, ~mask & ~np.isnan(frames), background=background, cutoff=2)


@pytest.mark.parametrize(
    "view",
    [View(Rect(3, 2, 12, 10)), View(Rect(2, 1, 12, 10), (2, 2)), View(Rect(0, 0, 16, 12), (2, 1), True, 90),
     View(Rect(4, 0, 13, 13), (1, 1), False, 270)],
    ids=str,
)  # fmt: skip
def test_places_are_those_of_the_detector(view: View) -> None:
    experiment = replace(CENTER, pixel_size=(1e-4, 1.7e-4))
    spec = replace(frame_spec("int32", 13, 17, experiment=experiment), view=view)
    np.testing.assert_array_equal(rings(spec.of_sensor(spec.view), spec.experiment), slow_rings(spec))
    frames = spots("int32", shape=spec.shape)
    assert check(frames, spec, cutoff=1.5, connected=2)


def test_rings_are_clipped_like_pixel_by_pixel() -> None:
    """Outliers of all sizes, in several cycles; large numbers with little spread."""
    random = np.random.default_rng(5)
    spec = frame_spec("float64", 60, 70, experiment=Experiment(beam_center=(30.1, 20.2)))
    frames = 1e9 + random.normal(0, 1, (3, 60, 70))
    frames[random.random(frames.shape) < 0.01] += 30
    frames[random.random(frames.shape) < 0.01] += 1e6
    frames[random.random(frames.shape) < 0.003] = 4e18
    valid = random.random(frames.shape) < 0.9
    ring = rings(spec.of_sensor(spec.view), spec.experiment)
    mean, sigma = RadialBackground(ring, np.ones((60, 70), bool))(frames, valid)
    for i, frame in enumerate(frames):
        expected = slow_radial(frame, valid[i], ring)
        np.testing.assert_allclose(mean[i][ring], expected[0], rtol=1e-9)
        np.testing.assert_allclose(sigma[i][ring], expected[1], rtol=1e-6, atol=1e-6)


def test_more_peaks_than_are_listed() -> None:
    frames = np.zeros((1, 9, 33), np.uint16)
    frames[0, 4, 2::4] = np.arange(8) + 5
    spec = frame_spec("uint16", 9, 33)
    rows = (
        node("peaks", background="local", connected=1, most=3).bind(Inputs.of(spec, NoFiles())).step(block(frames), 0)
    )
    assert rows["count"].tolist() == [8]
    assert rows["intensity"][0].tolist() == pytest.approx([12, 11, 10], rel=0.05)
    assert rows["x"][0].tolist() == [30, 26, 22]
    assert rows["y"][0].tolist() == [4, 4, 4]


def test_mistakes() -> None:
    spec = frame_spec("uint16", 9, 9)
    with pytest.raises(NodeMisuse, match="centre") as caught:
        node("peaks").infer(Inputs.of(spec, NoFiles()))
    assert (caught.value.rule, caught.value.key) == ("geometry-missing", ("background",))
    with pytest.raises(NodeMisuse, match="less than 10") as caught:
        node("peaks", background="local", connected=10).infer(Inputs.of(spec, NoFiles()))
    assert (caught.value.rule, caught.value.key) == ("out-of-range", ("connected",))


HITS = """
lima2: 1
detector: {{replay: {{file: hits.npy}}}}
receivers: 2
flows: {{data: {{dataset: data, dispatch: {dispatch}, rules: {{blocks_per_group: 2}}, buffers: {{frames: 8}}}}}}
nodes:
  {more}
  peaks: {{input: {whole}, peaks: {{background: local, patch: 5, most: 4}}}}
  hits: {{input: {whole}, filter: {{keep: peaks.count > 1}}}}
  save: {{input: hits, io_hdf5: {{}}}}
"""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_hits_are_found(transport: str, tmp_path: Path) -> None:
    frames = np.random.default_rng(1).poisson(3, (12, 40, 50)).astype(np.uint16)
    for number in (2, 3, 7):
        for row, column in ((10, 12), (20, 40), (33, 5)):
            frames[number, row - 1 : row + 2, column - 1 : column + 2] += 60
    frames[5, 20:23, 20:23] += 60  # one peak
    np.save(tmp_path / "hits.npy", frames)
    ran = run(HITS.format(dispatch="frames", more="", whole="data"), tmp_path, transport)
    assert ran.code == 0, ran.output
    _, numbers, _ = ran.saved("save")
    assert numbers.tolist() == [2, 3, 7]
    with h5py.File(ran.directory / ran.summary["tables"]["peaks"]["file"]) as file:
        table = file["entry_0000/measurement"]
        assert table["count"][()].tolist() == [0, 0, 3, 3, 0, 1, 0, 3, 0, 0, 0, 0]
        assert table["x"].shape == (12, 4)
        assert sorted(table["x"][2][:3].round().tolist()) == [5, 12, 40]


def test_parts_of_frames_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "hits.npy", np.zeros((4, 40, 50), np.uint16))
    text = HITS.format(dispatch="modules", more="", whole="data").replace("replay: {file: hits.npy}",
        "replay: {file: hits.npy, modules: {columns: 1, rows: 2, width: 50, height: 20}}")  # fmt: skip
    from tests.compiling import compiled

    _, findings = compiled(text, tmp_path)
    assert [it.rule for it in findings if it.at == ("nodes", "peaks", "input")] == ["edge-mismatch"]


def test_real_frames_have_peaks(data_dir: Path, tmp_path: Path) -> None:
    """Thaumatin, until the scan leaves the crystal; those of the first frame are as defined."""
    path = stack(data_dir, "pilatus3_1m_crop_thaumatin_stack.h5")
    text = f"""
lima2: 1
metadata: {{beam_center: {{x: 520, y: 350}}}}
detector: {{replay: {{file: "{path}{STACK}", invalid: {{below: 0}}, pixel_size: {{x: 172 um, y: 172 um}}}}}}
nodes:
  peaks: {{input: data, peaks: {{cutoff: 6, noise: 4}}}}
  save: {{input: data, io_hdf5: {{}}}}
"""
    ran = run(text, tmp_path, "inline")
    assert ran.code == 0, ran.output
    frames, _, _ = ran.saved("save")
    spec = frame_spec("int32", *frames.shape[1:], experiment=Experiment(beam_center=(520, 350)))
    ring = rings(spec.of_sensor(spec.view), spec.experiment)
    with h5py.File(ran.directory / ran.summary["tables"]["peaks"]["file"]) as file:
        table = {name: column[()] for name, column in file["entry_0000/measurement"].items()}
    assert (table["count"][:14] > 100).all()
    assert not table["count"][15:].any()
    good = frames[0] >= 0
    mean, sigma = slow_radial(frames[0], good, ring)
    use = node("peaks", cutoff=6, noise=4)
    expected = slow_peaks(frames[0], good, mean, sigma, use, spec)
    assert table["count"][0] == len(expected)
    best = sorted(expected, key=lambda it: -it[2])[0]
    np.testing.assert_allclose([table[name][0][0] for name in ("x", "y", "intensity")], best, rtol=1e-5)
