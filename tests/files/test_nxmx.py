"""The second entry of masters, NXmx: complete by the definition, and as a reader of it sees the geometry."""

from pathlib import Path
from typing import Any

import fabio
import h5py
import numpy as np
import pytest
from nexusformat.nexus import nxload
from silx.io import nxdata
from silx.io import open as silx_open

import lima2cli as l2
from lima2cli.accounting.inspect_run import inspect_run
from tests.running import Ran, run

METADATA = {
    "instrument": "P11", "source": "PETRA III", "sample": "lysozyme", "photon_energy": "12 keV", "distance": "0.2 m",
    "beam_center": "{x: 20.5, y: 30}", "sensor": "{material: Si, thickness: 450 um}",
    "axes": "{omega: {start: 10, step: 0.1, vector: {x: -2}}, chi: {start: 0.5, step: 0, vector: {z: 1}},"
    " stage: {start: 1, step: 0.25, unit: mm, vector: {x: 1, y: 1}}, still: {start: 3, step: 0}}",
}  # fmt: skip

PIPELINE = """
lima2: 1
name: x
metadata: {METADATA}
detector:
  remu:
    pixel_size: {x: 75 um, y: 50 um}
    image: {width: 64, height: 48}
    datasets: {data: {dtype: uint16}}
    modules: {columns: 2, rows: 1, width: 31, height: 48, gap: {x: 2, y: 0}}
    scene: {counter: {}}
acquisition: {frames: 19, exposure: 1 ms, period: 2 ms}
receivers: 2
nodes:
  save: {input: data, io_hdf5: {frames_per_file: 6}}
  part: {input: data, roi_flip_rot: {roi: {x: 2, y: 1, width: 40, height: 30}, flip: horizontal, rotation: 90}}
  turned: {input: part, io_hdf5: {}}
  half: {input: data, roi_flip_rot: {binning: {x: 2, y: 3}}}
  binned: {input: half, io_hdf5: {}}
  one: {input: data, io_hdf5: {layout: common}}
  bright: {input: data, sparsify: {above: 3}}
  sparse: {input: bright, io_hdf5: {}}
  sum: {input: data, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 16, height: 12}}}}}
"""


def text_of(metadata: dict[str, str], text: str = PIPELINE) -> str:
    words = ", ".join(f"{key}: {value}" for key, value in metadata.items())
    return text.replace("{METADATA}", f"{{{words}}}")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    done = run(text_of(METADATA), tmp_path_factory.mktemp("nxmx"), "inline", name="x")
    assert done.code == 0, done.output
    return done


DENSE = ["save", "turned", "binned", "one"]

REQUIRED = {
    "": ("NXentry", ["definition", "start_time", "end_time", "end_time_estimated"]),
    "data": ("NXdata", ["data"]),
    "sample": ("NXsample", ["name", "depends_on"]),
    "sample/transformations": ("NXtransformations", []),
    "source": ("NXsource", ["name"]),
    "instrument": ("NXinstrument", ["name"]),
    "instrument/beam": ("NXbeam", ["incident_wavelength"]),
    "instrument/detector": (
        "NXdetector",
        ["data", "sensor_material", "sensor_thickness", "count_time", "distance", "beam_center_x", "beam_center_y",
         "pixel_mask", "frame_time", "depends_on", "detector_distance"],
    ),
    "instrument/detector/transformations": ("NXtransformations", ["translation"]),
    "instrument/detector/module": (
        "NXdetector_module", ["data_origin", "data_size", "fast_pixel_direction", "slow_pixel_direction"],
    ),
}  # fmt: skip
"""Groups and fields that the definition requires or recommends, as its manual lists them (2022.07 and later)."""

UNITS = {
    "instrument/beam/incident_wavelength": b"angstrom", "instrument/detector/sensor_thickness": b"m",
    "instrument/detector/frame_time": b"s", "instrument/detector/distance": b"m",
    "instrument/detector/module/fast_pixel_direction": b"m", "sample/transformations/omega": b"deg",
    "sample/transformations/stage": b"mm",
}  # fmt: skip


@pytest.mark.parametrize("node", DENSE)
def test_it_has_what_the_definition_requires(node: str, ran: Ran) -> None:
    with h5py.File(ran.directory / f"x_{node}_master.h5") as file:
        entry = file["entry"]
        assert entry["definition"].asstr()[()] == "NXmx"
        for path, (kind, names) in REQUIRED.items():
            group = entry[path] if path else entry
            assert group.attrs["NX_class"] == kind.encode()
            assert set(names) <= set(group)
        for path, unit in UNITS.items():
            assert entry[path].attrs["units"] == unit
        start, end = (entry[name].asstr()[()] for name in ("start_time", "end_time"))
        assert start.endswith("Z")
        assert start < end
        assert file["entry_0000/end_time"].asstr()[()].replace("+00:00", "Z") == end
        detector = entry["instrument/detector"]
        assert detector["data"] == file["entry_0000/measurement/data"]
        assert detector["frame_time"][()] == pytest.approx(0.002)
        assert detector["pixel_mask"].shape == detector["data"].shape[1:]
        assert file["entry_0000"].attrs["default"].endswith("plot")


def test_masters_of_runs_that_go_on_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rows that are there, and no end; of frames that are left out also."""
    monkeypatch.chdir(tmp_path)
    nodes = "{save: {input: third, io_hdf5: {frames_per_file: 2}}, sparse: {input: bright, io_hdf5: {}},"
    nodes += " bright: {input: third, sparsify: {above: 3}}}"
    text = text_of(METADATA, PIPELINE.partition("nodes:")[0]) + "flows: {third: {dataset: data, slices: {step: 3}}}\n"
    text = text.replace("19, exposure: 1 ms, period: 2 ms", "18, trigger: software, frames_per_trigger: 6")
    run = l2.run(f"{text}nodes: {nodes}\n", transport="inline")
    progress, looks = run.progress, []
    for point in range(3):
        run.trigger()
        next(event for event in progress if event["rows"]["save"] == 2 * point + 2)
        if point == 2:
            run.wait(60)
        with h5py.File(run.directory / "x_save_master.h5", swmr=point < 2) as file:
            entry = file["entry"]
            looks.append("end_time" in entry)
            rows = np.arange(2 * point + 2)
            for axis, begin, step in (("omega", 10, 0.3), ("chi", 0.5, 0), ("stage", 1, 0.75)):
                assert entry[f"sample/transformations/{axis}"][()] == pytest.approx(begin + step * rows)
            for path, (kind, names) in REQUIRED.items():
                group = entry[path] if path else entry
                assert group.attrs["NX_class"] == kind.encode()
                assert {*names} - {"end_time", "frame_time", "count_time"} <= {*group}
            assert entry["start_time"].asstr()[()] < entry["end_time_estimated"].asstr()[()]
            assert entry["data/data"].shape == (len(rows), 48, 64)
            seen = list(nexus_names(file))
        looks.append(len(seen))
    assert looks == [False, looks[1], False, looks[1], True, looks[5]]
    assert {*seen} >= {"entry/end_time", "entry_0000/end_time"}


def nexus_names(file: Any) -> list[str]:
    """The names of all groups and datasets."""
    names: list[str] = []
    file.visit(names.append)
    return names


@pytest.mark.interchange
@pytest.mark.parametrize("node", DENSE)
def test_a_reader_of_nxmx_finds_axes_and_geometry(node: str, ran: Ran) -> None:
    """The package nxmx is what DIALS reads such files with."""
    nxmx = pytest.importorskip("nxmx")
    view = l2.compile(text_of(METADATA)).channels[node].sensor_view
    with h5py.File(ran.directory / f"x_{node}_master.h5") as file:
        (entry,) = nxmx.NXmx(file).entries
        assert entry.source.name == "PETRA III"
        (sample,), (instrument,) = entry.samples, entry.instruments
        (detector,), (beam,) = instrument.detectors, instrument.beams
        assert beam.incident_wavelength.to("angstrom").magnitude == pytest.approx(1.03320165)
        assert detector.sensor_material == "Si"
        assert detector.sensor_thickness.to("um").magnitude == pytest.approx(450)

        chain = nxmx.get_dependency_chain(sample.depends_on)
        assert [axis.path.rpartition("/")[2] for axis in chain] == ["stage", "chi", "omega"]
        axes = nxmx.get_rotation_axes(chain)
        assert axes.names.tolist() == ["chi", "omega"]
        assert axes.is_scan_axis.tolist() == [False, True]
        assert axes.axes.tolist() == [[0, 0, 1], [-1, 0, 0]]
        assert chain[2][()].to("deg").magnitude == pytest.approx(10 + 0.1 * np.arange(19))
        assert chain[0].vector == pytest.approx([0.5**0.5, 0.5**0.5, 0])

        (module,) = detector.modules
        fast, slow = module.fast_pixel_direction, module.slow_pixel_direction
        moved = nxmx.get_cumulative_transformation(nxmx.get_dependency_chain(fast.depends_on))
        origin = moved[0, :3, 3]
        height, width = entry.data[0]["data"].shape[1:]
        assert module.data_size.tolist() == [height, width]
        steps = [one[0].to("mm").magnitude * one.vector for one in (fast, slow)]
        for column, row in ((0, 0), (width - 1, 0), (3, height - 1)):
            x, y = view.place(column, row)  # of the detector, whose beam is at (20.5, 30)
            there = origin + steps[0] * (column + 0.5) + steps[1] * (row + 0.5)
            assert there == pytest.approx([(20.5 - x) * 0.075, (30 - y) * 0.05, 200])


def test_axes_are_in_all_masters_and_in_tables(ran: Ran) -> None:
    for name in (*DENSE, "sparse"):
        with h5py.File(ran.directory / f"x_{name}_master.h5") as file:
            axes = file["entry_0000/sample/transformations"]
            assert set(axes) == {"omega", "chi", "stage", "still"}
            assert axes["omega"][()] == pytest.approx(10 + 0.1 * np.arange(19))
            assert axes["still"][()].tolist() == [3] * 19
            assert "vector" not in axes["still"].attrs
            assert ("entry" in file) == (name != "sparse")
    with h5py.File(ran.directory / "x_sum.h5") as file:
        assert file["entry_0000/measurement/stage"][()] == pytest.approx(1 + 0.25 * np.arange(19))
        assert file["entry_0000/plot"].attrs["axes"].tolist() == ["frame_number"]  # two axes move


def test_other_programs_find_the_image_as_before(ran: Ran) -> None:
    for name in ("x.h5", "x_save_master.h5", "x_one_master.h5"):
        image = fabio.open(str(ran.directory / name))
        assert image.nframes == 19
        image.close()
        with silx_open(str(ran.directory / name)) as file:
            assert nxdata.get_default(file).signal.shape == (19, 48, 64)
            if name != "x.h5":
                assert nxdata.get_default(file["entry"]).signal.shape == (19, 48, 64)
    tree = nxload(str(ran.directory / "x_one_master.h5"))
    assert "NXdetector_module" in tree.tree
    assert tree.plottable_data.nxsignal.shape == (19, 48, 64)
    assert inspect_run(str(ran.directory), verify=True).problems == ()


def has_nxmx(metadata: dict[str, str], folder: Path, text: str) -> bool:
    done = run(text_of(metadata, text), folder, "inline", name="x")
    assert done.code == 0, done.output
    with h5py.File(done.directory / "x_save_master.h5") as file:
        return "entry" in file


SMALL = """
lima2: 1
name: x
metadata: {METADATA}
detector: {remu: {pixel_size: 75 um, image: {width: 64, height: 48}, datasets: {data: {dtype: uint16}}}}
acquisition: {frames: 3}
nodes: {save: {input: data, io_hdf5: {}}}
"""


@pytest.mark.parametrize(
    "without", ["instrument", "source", "sample", "photon_energy", "distance", "beam_center", "sensor"]
)
def test_without_what_it_needs_there_is_none(without: str) -> None:
    from lima2cli.files.nxmx import lacking

    few = {key: value for key, value in METADATA.items() if key != without}
    channel = l2.compile(text_of(few, SMALL)).channels["save"]
    assert lacking(l2.compile(text_of(METADATA, SMALL)).channels["save"]) == []
    assert {what.split(".")[1] for what in lacking(channel)} == {without}


@pytest.mark.parametrize(
    ("axes", "there"),
    [
        (None, True),
        ("{omega: {start: 0, step: 0.1}}", False),  # which way it turns is not known
        ("{omega: {start: 0, step: 0}}", True),
        ("{omega: {step: 0.1, vector: {x: 1}}}", True),  # nor where it is: no such axis
        ("{two_theta: {start: 5, step: 0, vector: {x: 1}}}", False),
    ],
)
def test_axes_decide_too(axes: str | None, there: bool, tmp_path: Path) -> None:
    metadata: dict[str, Any] = {**METADATA, "axes": axes}
    if axes is None:
        del metadata["axes"]
    assert has_nxmx(metadata, tmp_path, SMALL) == there


def test_one_axis_that_moves_is_what_tables_are_plotted_over(tmp_path: Path) -> None:
    """Each row has the position of its frame, where a flow takes some frames only."""
    text = """
lima2: 1
name: x
metadata: {axes: {omega: {start: -1, step: 0.5}, sum: {start: 2, step: 0}}}
detector: {remu: {image: {width: 64, height: 48}, datasets: {data: {dtype: uint16}}}}
acquisition: {frames: 20}
flows: {some: {slices: {start: 3, step: 4}}}
nodes:
  save: {input: some, io_hdf5: {}}
  table: {input: some, roi_profiles: {rois: {all: {rect: {x: 0, y: 0, width: 16, height: 12}}}}}
"""
    done = run(text, tmp_path, "inline", name="x")
    assert done.code == 0, done.output
    expected = -1 + 0.5 * np.arange(3, 20, 4)
    with h5py.File(done.directory / "x_save_master.h5") as file:
        assert file["entry_0000/sample/transformations/omega"][()] == pytest.approx(expected)
    with h5py.File(done.directory / "x_table.h5") as file:
        plot = file["entry_0000/plot"]
        assert plot.attrs["axes"].tolist() == ["omega", "."]
        assert plot["omega"][()] == pytest.approx(expected)
    assert l2.open(done.directory).counters["table"]["omega"] == pytest.approx(expected)
    with silx_open(str(done.directory / "x.h5")) as file:
        assert file["entry_0000/table/plot/omega"][()] == pytest.approx(expected)


def test_a_vector_without_a_direction(tmp_path: Path) -> None:
    (error,) = l2.validate(text_of({"axes": "{omega: {start: 0, step: 1, vector: {}}}"}, SMALL))
    assert "has no direction" in str(error)
