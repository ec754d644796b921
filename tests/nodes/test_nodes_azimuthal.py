"""Node `azimuthal` gives what pyFAI gives, wherever the pixels of its frames are on the detector."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from lima2cli.errors import FileProblem, NodeMisuse
from lima2cli.files.nexus import MEASUREMENT
from lima2cli.frames import Experiment, FrameSpec, Invalid
from lima2cli.geometry import Rect
from lima2cli.inputs.stacks import FileStore
from lima2cli.nodes.base import Inputs
from lima2cli.testing import frame_spec
from lima2cli.testing.inputs import NoFiles, parts_of
from lima2cli.view import View
from tests.compiling import compiled
from tests.node_inputs import block, node
from tests.pipelines.test_run_real import STACK, frames_of, stack
from tests.running import TRANSPORTS, Ran, run

pytest.importorskip("pyFAI")

HEIGHT, WIDTH = 60, 80
PIXEL = (172e-6, 100e-6)
KNOWN = Experiment(12400.0, 0.05, (30.25, 41.5), PIXEL, (WIDTH, HEIGHT))
HOLES = np.random.default_rng(1).random((HEIGHT, WIDTH)) < 0.1


def integrator(known: Experiment = KNOWN, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> Any:
    """Integrator of pyFAI, of the same geometry."""
    from pyFAI.detectors import Detector
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

    assert known.photon_energy
    assert known.beam_center
    assert known.pixel_size
    (x, y), (width, height) = known.beam_center, known.pixel_size
    detector = Detector(height, width, max_shape=shape)
    wavelength = 12398.419843320026e-10 / known.photon_energy
    place = (known.distance, (y + 0.5) * height, (x + 0.5) * width)
    return AzimuthalIntegrator(*place, detector=detector, wavelength=wavelength)


def spec_of(dtype: str = "uint16", **more: Any) -> FrameSpec:
    return frame_spec(dtype, HEIGHT, WIDTH, experiment=KNOWN, **more)


def frames_like(dtype: str, count: int = 3, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> NDArray[Any]:
    values = np.random.default_rng(2).poisson(20 + 50 * np.hypot(*np.indices(shape)) / 100, (count, *shape))
    return (values + (0.5 if dtype.startswith("f") else 0)).astype(dtype)


def rows_of(frames: NDArray[Any], spec: FrameSpec, files: Any = None, **parameters: Any) -> dict[str, Any]:
    use = node("azimuthal", **parameters)
    return dict(use.finish(use.bind(Inputs.of(spec, files or NoFiles())).step(block(frames), 0)))


def axis_range(spec: FrameSpec, **parameters: Any) -> tuple[float, float]:
    """The limits of the radial axis, from its centres."""
    axis = node("azimuthal", **parameters).infer(Inputs.of(spec, NoFiles())).axes[-1].values
    half = (axis[1] - axis[0]) / 2
    return axis[0] - half, axis[-1] + half


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"unit": "2th_deg", "solid_angle": False},
        {"unit": "q_A^-1", "polarization": 0.95, "range": [0.3, 1.1]},
        {"azimuth_range": [-30, 75]},
        {"azimuth_range": [150, -150], "polarization": -1},
    ],
    ids=str,
)
def test_it_gives_what_pyfai_gives(dtype: str, parameters: dict[str, Any]) -> None:
    spec, frames = spec_of(dtype, mask=HOLES), frames_like(dtype)
    parameters = {"bins": 40, "error_model": "poisson", **parameters}
    rows = rows_of(frames, spec, **parameters)
    for i, frame in enumerate(frames):
        theirs = integrator().integrate1d(
            frame, 40, unit=parameters.get("unit", "q_nm^-1"), mask=HOLES, error_model="poisson",
            radial_range=axis_range(spec, **parameters), azimuth_range=parameters.get("azimuth_range"),
            polarization_factor=parameters.get("polarization"), method=("bbox", "csr", "cython"),
            correctSolidAngle=parameters.get("solid_angle", True),
        )  # fmt: skip
        there = theirs.sum_normalization > 0
        assert there.any()
        np.testing.assert_array_equal(np.isnan(rows["intensity"][i]), ~there)
        np.testing.assert_allclose(rows["intensity"][i][there], theirs.intensity[there], rtol=1e-5)
        np.testing.assert_allclose(rows["sigma"][i][there], theirs.sigma[there], rtol=1e-5)
        table = node("azimuthal", **parameters).infer(Inputs.of(spec, NoFiles()))
        np.testing.assert_allclose(table.axes[0].values, theirs.radial, rtol=1e-5)


@pytest.mark.parametrize("unit", ["q_nm^-1", "q_A^-1", "2th_deg"])
def test_the_default_range_is_that_of_pyfai_without_mask(unit: str) -> None:
    theirs = integrator().integrate1d(frames_like("uint16")[0], 50, unit=unit, method=("bbox", "csr", "cython"))
    rows = rows_of(frames_like("uint16"), spec_of(), bins=50, unit=unit)
    np.testing.assert_allclose(rows["intensity"][0], theirs.intensity, rtol=1e-5)


@pytest.mark.parametrize("azimuths", [None, [-60, 60], [90, 270]])
def test_two_dimensional(azimuths: list[float] | None) -> None:
    spec, frames = spec_of(mask=HOLES), frames_like("uint16")
    parameters = {"bins": {"radial": 20, "azimuthal": 12}, "azimuth_range": azimuths, "error_model": "poisson"}
    rows = rows_of(frames, spec, **parameters)
    theirs = integrator().integrate2d(
        frames[1], 20, 12, unit="q_nm^-1", mask=HOLES, error_model="poisson", method=("bbox", "csr", "cython"),
        radial_range=axis_range(spec, **parameters), azimuth_range=azimuths or (-180, 180),
    )  # fmt: skip
    chi, q = node("azimuthal", **parameters).infer(Inputs.of(spec, NoFiles())).axes
    turns = (np.array(chi.values) - theirs.azimuthal) / 360
    np.testing.assert_allclose(turns, np.rint(turns), atol=1e-6)
    np.testing.assert_allclose(q.values, theirs.radial, rtol=1e-5)
    image, there = rows["intensity"][1].reshape(12, 20), theirs.sum_normalization > 0
    np.testing.assert_array_equal(np.isnan(image), ~there)
    np.testing.assert_allclose(image[there], theirs.intensity[there], rtol=1e-5)
    np.testing.assert_allclose(rows["sigma"][1].reshape(12, 20)[there], theirs.sigma[there], rtol=1e-5)


def test_pixels_that_do_not_count_are_in_no_sum() -> None:
    """In numpy: each bin by the weights of pyFAI, pixel by pixel."""
    spec = spec_of("float32", mask=HOLES, invalid=Invalid((999.0,), below=0.0))
    frames = frames_like("float32", 11)
    random = np.random.default_rng(3)
    frames[1:][random.random(frames[1:].shape) < 0.2] = np.nan
    frames[2, 10:20] = 999
    frames[3, :, 30:40] = -1
    frames[4] = np.nan
    frames[:, HOLES] = np.nan
    rows = rows_of(frames, spec, bins=15, polarization=0.9, error_model="poisson")

    model = integrator()
    made = model.integrate1d(np.ones((HEIGHT, WIDTH)), 15, method=("bbox", "csr", "cython"))
    engine = model.engines[made.method].engine
    pixel_norm = (model.solidAngleArray((HEIGHT, WIDTH)) * model.polarization((HEIGHT, WIDTH), 0.9)).ravel()
    for i, frame in enumerate(frames.reshape(len(frames), -1)):
        for b in range(15):
            of_bin = slice(engine.indptr[b], engine.indptr[b + 1])
            pixels, weights = engine.indices[of_bin], engine.data[of_bin].astype(float)
            good = ~HOLES.ravel()[pixels] & (frame[pixels] >= 0) & (frame[pixels] != 999)
            pixels, weights = pixels[good], weights[good]
            norm = (weights * pixel_norm[pixels]).sum()
            expected = (weights * frame[pixels]).sum() / norm if good.any() else np.nan
            sigma = np.sqrt((weights**2 * np.maximum(1, frame[pixels])).sum()) / norm if good.any() else np.nan
            np.testing.assert_allclose(rows["intensity"][i, b], expected, rtol=1e-6)
            np.testing.assert_allclose(rows["sigma"][i, b], sigma, rtol=1e-6)


def test_frames_that_are_cut_and_binned_stay_where_they_are() -> None:
    view = View(Rect(10, 6, 60, 42), (2, 3))
    spec, frames = replace(spec_of("int32"), view=view), frames_like("int32", shape=(14, 30))
    rows = rows_of(frames, spec, bins=12, unit="2th_deg")
    center = ((30.25 + 0.5 - 10) / 2 - 0.5, (41.5 + 0.5 - 6) / 3 - 0.5)
    binned = replace(KNOWN, beam_center=center, pixel_size=(2 * PIXEL[0], 3 * PIXEL[1]))
    theirs = integrator(binned, (14, 30)).integrate1d(frames[2], 12, unit="2th_deg", method=("bbox", "csr", "cython"))
    np.testing.assert_allclose(rows["intensity"][2], theirs.intensity, rtol=1e-5)


@pytest.mark.parametrize("turn", [View(Rect(4, 2, 52, 40), (1, 1), mirrored, degrees)
                                  for mirrored in (False, True) for degrees in (0, 90, 180, 270)], ids=str)  # fmt: skip
def test_frames_that_are_turned_give_the_same(turn: View) -> None:
    upright = replace(turn, mirrored=False, rotation=0)
    whole, mask = frames_like("uint16"), HOLES
    parameters: Any = {"bins": {"radial": 9, "azimuthal": 7}, "polarization": 0.5}
    rows = [
        rows_of(view.apply(whole, "any" if view is None else "sum"),
                replace(spec_of(mask=view.apply(mask, "any")), view=view), **parameters)["intensity"]
        for view in (upright, turn)
    ]  # fmt: skip
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-6)


def test_the_detectors_own_cut_is_part_of_the_view() -> None:
    """Frames of a region that the detector itself reads out lie where the region is on the sensor."""
    frames, base = frames_like("uint16", shape=(30, 40)), View(Rect(20, 10, 40, 30))
    spec = FrameSpec("uint16", View(Rect(0, 0, 40, 30)), (40, 30), base=base, experiment=KNOWN)
    inside = replace(spec_of(), view=base)
    for name, values in rows_of(frames, inside, bins=10).items():
        np.testing.assert_array_equal(rows_of(frames, spec, bins=10)[name], values)


def test_parts_of_frames_are_merged() -> None:
    spec, frames = spec_of(mask=HOLES), frames_like("uint16", 9)
    use = node("azimuthal", bins=25, error_model="poisson")
    upper, lower = parts_of(spec)
    assert use.infer(Inputs.of(upper, NoFiles())) == use.infer(Inputs.of(lower, NoFiles()))
    halves = [
        use.bind(Inputs.of(part, NoFiles())).step(block(frames[:, part.view.area.y : part.view.area.bottom]), 0)
        for part in (upper, lower)
    ]
    merged, whole = use.finish(use.merge(*halves)), rows_of(frames, spec, bins=25, error_model="poisson")
    for name, values in whole.items():
        np.testing.assert_allclose(merged[name], values, rtol=1e-6)


def test_threads_share_a_block_and_the_matrix(tmp_path: Path) -> None:
    frames = frames_like("uint16", 23, (300, 310))
    np.save(tmp_path / "frames.npy", frames)
    text = """
lima2: 1
metadata: {{photon_energy: 12.4 keV, distance: 50 mm, beam_center: {{x: 130, y: 141}}}}
detector: {{replay: {{file: frames.npy, pixel_size: {{x: 172 um, y: 172 um}}}}}}
receivers: {{one: {{memspaces: {{host: {{host: {{}}}}}}, threads: {threads}}}}}
flows: {{data: {{dataset: data, rules: {{blocks_per_group: 9}}, buffers: {{frames: 18}}}}}}
nodes: {{q: {{input: data, azimuthal: {{bins: 30, error_model: poisson}}}}}}
"""
    rows = []
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        folder.mkdir()
        (folder / "frames.npy").symlink_to(tmp_path / "frames.npy")
        ran = run(text.format(threads=threads), folder, "inline")
        assert ran.code == 0, ran.output
        with table(ran, "q") as file:
            rows.append(file[f"{MEASUREMENT}/intensity"][()])
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-6)
    use, inputs = node("azimuthal"), Inputs.of(spec_of(mask=HOLES), NoFiles())
    assert use.bind(inputs)._matrix is use.bind(inputs)._matrix
    other = Inputs.of(spec_of(), NoFiles())
    assert use.bind(inputs)._matrix is not use.bind(other)._matrix


PONI = """
poni_version: 2.1
Detector: Detector
Detector_config: {"pixel1": 0.0001, "pixel2": 0.000172, "max_shape": [60, 80], "orientation": 3}
Distance: 0.05
Poni1: 0.0042
Poni2: 0.005289
Rot1: 0.1
Rot2: -0.05
Rot3: 0.3
Wavelength: 1e-10
"""


def test_geometry_of_a_poni_file(tmp_path: Path) -> None:
    import pyFAI

    (tmp_path / "g.poni").write_text(PONI)
    frames = frames_like("uint16")
    theirs = pyFAI.load(str(tmp_path / "g.poni")).integrate1d(frames[0], 30, method=("bbox", "csr", "cython"))
    with FileStore(tmp_path) as files:
        rows = rows_of(frames, spec_of(), files, poni="g.poni", bins=30)
        np.testing.assert_allclose(rows["intensity"][0], theirs.intensity, rtol=1e-5)
        cut = replace(spec_of(), view=View(Rect(8, 4, 50, 40)))
        rows = rows_of(frames[:, 4:44, 8:58], cut, files, poni="g.poni", bins=30, range=[5, 60])
    mask = np.ones((HEIGHT, WIDTH), bool)
    mask[4:44, 8:58] = False
    theirs = pyFAI.load(str(tmp_path / "g.poni")).integrate1d(
        frames[0], 30, mask=mask, radial_range=(5, 60), method=("bbox", "csr", "cython")
    )
    there = theirs.sum_normalization > 0
    np.testing.assert_allclose(rows["intensity"][0][there], theirs.intensity[there], rtol=2e-5)


@pytest.mark.parametrize("tilts", [(0, 0), (0.1, -0.05), (-0.6, 0.4), (1.2, 0.2), (2.5, 0)])
def test_the_range_is_found_on_the_edges(tilts: tuple[float, float], tmp_path: Path) -> None:
    """As that of all pixels, whether the beam is inside, outside, or behind the detector."""
    from lima2cli.nodes.azimuthal import _Geometry

    (tmp_path / "g.poni").write_text(PONI.replace("Rot1: 0.1", f"Rot1: {tilts[0]}").replace("-0.05", str(tilts[1])))
    with FileStore(tmp_path) as files:
        geometry = _Geometry.of(node("azimuthal", poni="g.poni"), Inputs.of(spec_of(), files))
    for view in (View(Rect(0, 0, 80, 60)), View(Rect(50, 44, 20, 16), (2, 4), True, 90), View(Rect(0, 3, 7, 1))):
        for unit in ("q_nm^-1", "2th_deg"):
            found = geometry.radial_range(view, unit)
            np.testing.assert_allclose(found, geometry.seen(view).radial_range(unit), rtol=1e-6, atol=1e-9)


def test_a_detector_that_pyfai_knows_has_its_mask(tmp_path: Path) -> None:
    import pyFAI

    text = PONI.replace("Detector: Detector", "Detector: Pilatus100k").replace("{", '{"orientation": 3}\n# {')
    (tmp_path / "g.poni").write_text(text)
    model = pyFAI.load(str(tmp_path / "g.poni"))
    shape = model.detector.max_shape
    known = replace(KNOWN, sensor=shape[::-1])
    spec = frame_spec("uint16", *shape, experiment=known)
    frames = frames_like("uint16", 1, shape)
    with FileStore(tmp_path) as files:
        rows = rows_of(frames, spec, files, poni="g.poni", bins=30)
        with pytest.raises(NodeMisuse, match="487 x 195") as caught:
            node("azimuthal", poni="g.poni").infer(Inputs.of(spec_of(), files))
    assert caught.value.rule == "geometry-other"
    theirs = model.integrate1d(frames[0], 30, method=("bbox", "csr", "cython"))
    np.testing.assert_allclose(rows["intensity"][0], theirs.intensity, rtol=1e-5)


@pytest.mark.parametrize("text", ["", "Distance: near\n", "Poni1: 0.1\nPoni2: 0.1\n", "\0\1\2"])
def test_poni_files_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "g.poni").write_text(text)
    with FileStore(tmp_path) as files:
        with pytest.raises(FileProblem, match=r"g\.poni"):
            node("azimuthal", poni="g.poni").infer(Inputs.of(spec_of(), files))
        with pytest.raises(FileProblem, match="there is no file") as caught:
            node("azimuthal", poni="other.poni").infer(Inputs.of(spec_of(), files))
    assert caught.value.rule == "file-missing"


@pytest.mark.parametrize(
    ("parameters", "known", "rule", "key", "words"),
    [
        ({}, {"distance": None}, "geometry-missing", (), "metadata.distance"),
        ({}, {"beam_center": None}, "geometry-missing", (), "metadata.beam_center"),
        ({}, {"pixel_size": None}, "geometry-missing", (), "pixel_size"),
        ({}, {"photon_energy": None}, "geometry-missing", ("unit",), "wavelength"),
        ({"range": [3, 3]}, {}, "range-empty", ("range",), "nothing from 3 to 3"),
        ({"range": [3, 1]}, {}, "range-empty", ("range",), "nothing from 3 to 1"),
        ({"range": [1, 2, 3]}, {}, "range-empty", ("range",), "2 are needed"),
        ({"range": [1e4, 2e4]}, {}, "range-empty", ("range",), "no pixel"),
        ({"azimuth_range": [0, 400]}, {}, "range-empty", ("azimuth_range",), "nothing from 0 to 400"),
    ],
)
def test_mistakes(
    parameters: dict[str, Any], known: dict[str, Any], rule: str, key: tuple[str, ...], words: str
) -> None:
    spec = replace(spec_of(), experiment=replace(KNOWN, **known))
    with pytest.raises(NodeMisuse, match=words) as caught:
        node("azimuthal", **parameters).infer(Inputs.of(spec, NoFiles()))
    assert (caught.value.rule, caught.value.key) == (rule, key)


def test_angles_need_no_wavelength() -> None:
    spec = replace(spec_of(), experiment=replace(KNOWN, photon_energy=None))
    assert np.isfinite(rows_of(frames_like("uint16"), spec, bins=9, unit="2th_deg")["intensity"]).all()


PIPELINE = """
lima2: 1
metadata: {{photon_energy: 12.4 keV, distance: 50 mm, beam_center: {{x: 30, y: 41}},
           axes: {{chi: {{start: 1, step: 2}}}}}}
detector:
  remu:
    image: {{width: 80, height: 60}}
    pixel_size: {{x: 172 um, y: 172 um}}
    datasets: {{data: {{dtype: uint16}}}}
    modules: {{columns: 2, rows: 2, width: 38, height: 28, gap: {{x: 4, y: 4}}}}
    scene: {{rings: {{seed: 1}}}}
acquisition: {{frames: 10}}
receivers: 2
flows: {{raw: {{dataset: data, dispatch: {dispatch}, rules: {{blocks_per_group: 2}}, buffers: {{frames: 8}}}}}}
nodes:
  {more}
  turned: {{input: {whole}, roi_flip_rot: {{binning: {{x: 2, y: 2}}, rotation: 90}}}}
  save: {{input: turned, io_hdf5: {{}}}}
  q: {{input: raw, azimuthal: {{bins: 30, error_model: poisson}}}}
  cake: {{input: turned, azimuthal: {{bins: {{radial: 10, azimuthal: 6}}}}}}
"""


def pipeline(dispatch: str) -> str:
    parts = dispatch == "modules"
    more = "full: {input: raw, reconstruction: {}}" if parts else ""
    return PIPELINE.format(dispatch=dispatch, more=more, whole="full" if parts else "raw")


def table(ran: Ran, name: str) -> h5py.File:
    return h5py.File(ran.directory / ran.summary["tables"][name]["file"])


@pytest.mark.parametrize("dispatch", ["frames", "modules"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_runs_save_curves_over_q(dispatch: str, transport: str, tmp_path: Path) -> None:
    ran = run(pipeline(dispatch), tmp_path, transport)
    assert ran.code == 0, ran.output
    saved, _, _ = ran.saved("save")  # 2 x 2 bins, turned
    gaps = np.ones((60, 80), bool)
    for y in (0, 32):
        for x in (0, 42):
            gaps[y : y + 28, x : x + 38] = False
    bins = np.rot90(saved, axes=(1, 2))
    known = Experiment(12400.0, 0.05, (30 / 2 - 0.25, 41 / 2 - 0.25), (344e-6, 344e-6))
    with table(ran, "cake") as file:
        assert file[f"{MEASUREMENT}/intensity"].shape == (10, 6, 10)
        theirs = integrator(known, (30, 40)).integrate2d(
            bins[4], 10, 6, unit="q_nm^-1", method=("bbox", "csr", "cython"), azimuth_range=(-180, 180),
            mask=gaps.reshape(30, 2, 40, 2).any(axis=(1, 3)), radial_range=(0, edge(file["entry_0000/axes/q"][()])),
        )  # fmt: skip
        there = theirs.sum_normalization > 0
        np.testing.assert_allclose(file[f"{MEASUREMENT}/intensity"][4][there], theirs.intensity[there], rtol=1e-5)
        plot = file["entry_0000/plot"]
        assert plot.attrs["axes"].tolist() == ["chi_2", "chi", "q"]
        assert plot["chi"].shape == (6,)
    with table(ran, "q") as file:
        plot = file["entry_0000/plot"]
        assert plot.attrs["signal"] == "intensity"
        assert plot.attrs["axes"].tolist()[1] == "q"
        assert plot["q"].attrs["units"] == "1/nm"
        assert plot["intensity_errors"].shape == (10, 30)
        assert plot["intensity"].attrs["interpretation"] == "spectrum"
        assert (plot["intensity"][()] > 0).all()


def edge(centres: NDArray[np.float64]) -> float:
    return float(centres[-1] + (centres[1] - centres[0]) / 2)


def test_readers_of_nexus_see_a_curve_over_q(tmp_path: Path) -> None:
    from nexusformat.nexus import nxload
    from silx.io.nxdata import get_default

    ran = run(pipeline("frames"), tmp_path, "inline")
    assert ran.code == 0, ran.output
    path = ran.directory / ran.summary["tables"]["q"]["file"]
    shown = nxload(str(path)).plottable_data
    assert [axis.nxname for axis in shown.nxaxes] == ["chi", "q"]
    for name in (path, ran.directory / ran.summary["file"]):  # the linking file, too
        with h5py.File(name) as file:
            found = get_default(file["entry_0000/q"] if name != path else file)
            assert found.is_valid
            assert found.errors.shape == (10, 30)
    with h5py.File(path) as file:
        found = get_default(file)
        assert found.interpretation == "spectrum"
        assert found.axes_names[-1] == "q (1/nm)"
        np.testing.assert_array_equal(found.errors[()], file[f"{MEASUREMENT}/sigma"][()])


def test_mistakes_have_their_places(tmp_path: Path) -> None:
    text = pipeline("frames").replace("distance: 50 mm, ", "").replace("bins: 30", "bins: 30, unit: q_m^-1")
    _, findings = compiled(text, tmp_path)
    places = {(finding.rule, finding.at) for finding in findings}
    assert ("unknown-value", ("nodes", "q", "azimuthal", "unit")) in places
    assert ("geometry-missing", ("nodes", "cake", "azimuthal")) in places


def test_without_pyfai_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyFAI", None)
    with pytest.raises(NodeMisuse, match="pyFAI is needed") as caught:
        node("azimuthal").infer(Inputs.of(spec_of(), NoFiles()))
    assert caught.value.help == "pip install 'lima2cli[azimuthal]'"


REAL = """
lima2: 1
metadata: {{photon_energy: 12.4 keV, distance: 0.26 m, beam_center: {{x: {x}, y: {y}}}}}
detector: {{replay: {{file: "{path}{stack}", pixel_size: {{x: {pitch}, y: {pitch}}}}}}}
nodes:
  {more}
  q: {{input: {input}, azimuthal: {{bins: 500, polarization: 0.99, error_model: poisson}}}}
  save: {{input: {input}, io_hdf5: {{}}}}
"""


@pytest.mark.parametrize("name", ["pilatus3_1m_crop_thaumatin_stack.h5", "perkinelmer_xpd_ni_light_dark.h5"])
def test_real_frames(name: str, data_dir: Path, tmp_path: Path) -> None:
    """The saved curves are those of pyFAI, run afterwards on the saved frames."""
    path, pilatus = stack(data_dir, name), name.startswith("pilatus")
    dark = f'dark: {{input: data, background_sub: {{image: "{path}::/entry/data/dark"}}}}'
    shape = frames_of(path).shape[1:]
    x, y, pitch = shape[1] / 2 + 3.3, shape[0] / 3, "172 um" if pilatus else "200 um"
    text = REAL.format(
        x=x, y=y, path=path, stack=STACK, pitch=pitch, more="" if pilatus else dark, input="data" if pilatus else "dark"
    )
    if pilatus:
        text = text.replace("replay: {", "replay: {invalid: {below: 0}, ")
    ran = run(text, tmp_path, "inline")
    assert ran.code == 0, ran.output
    size = float(pitch.split()[0]) * 1e-6
    model = integrator(Experiment(12400.0, 0.26, (x, y), (size, size)), shape)
    saved, _, _ = ran.saved("save")
    with table(ran, "q") as file:
        measured = file[MEASUREMENT]
        q = file["entry_0000/axes/q"][()]
        limits = (q[0] - (q[1] - q[0]) / 2, edge(q))
        for i, frame in enumerate(saved):
            theirs = model.integrate1d(
                frame, 500, radial_range=limits, polarization_factor=0.99, error_model="poisson",
                mask=frame < 0 if pilatus else np.zeros(shape, bool), method=("bbox", "csr", "cython"),
            )  # fmt: skip
            there = theirs.sum_normalization > 0
            assert there.mean() > 0.9
            # float32 of pyFAI: the differences of large numbers of both signs are good to 1e-5 of their size
            size_of = np.abs(theirs.intensity[there]).max() if not pilatus else 0.0
            np.testing.assert_allclose(
                measured["intensity"][i][there], theirs.intensity[there], rtol=1e-5, atol=1e-7 * size_of
            )
            np.testing.assert_allclose(measured["sigma"][i][there], theirs.sigma[there], rtol=1e-5)
