"""Masters as programs of others read them, and what they hold."""

from pathlib import Path
from typing import Any

import fabio
import h5py
import numpy as np
import pytest
from nexusformat.nexus import NeXusError, nxload
from silx.io import nxdata
from silx.io import open as silx_open

from tests.running import Ran, lima2, run

PIPELINE = """
lima2: 1
name: x
metadata: {instrument: P11, title: t, sample: s, photon_energy: 12 keV, distance: 0.2 m, extra: {a: {b: {c: 1}}}}
detector:
  remu:
    pixel_size: {x: 75 um, y: 75 um}
    image: {width: 16, height: 12}
    datasets: {data: {dtype: uint16}, other: {dtype: uint8}}
    modules: {columns: 2, rows: 1, width: 7, height: 12, gap: {x: 2, y: 0}}
    scene: {counter: {}}
acquisition: {frames: 19, exposure: 1 ms}
receivers: 2
nodes:
  good: {input: data, mask: {image: 0, fill: 0}}
  save: {input: good, io_hdf5: {frames_per_file: 6}}
  one: {input: data, io_hdf5: {layout: common}}
  bright: {input: good, sparsify: {above: 3}}
  sparse: {input: bright, io_hdf5: {}}
  sum: {input: good, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 16, height: 12}}}}}
  log: {input: other, checkpoint: {}}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    done = run(PIPELINE, tmp_path_factory.mktemp("readers"), "inline", name="x")
    assert done.code == 0, done.output
    return done


def _all(ran: Ran) -> list[Path]:
    return sorted(ran.directory.glob("*.h5"))


def _as_durin_reads(place: Any, name: str) -> bytes:
    """As a string of C, of the length of the one in the file; durin reads no other character set."""
    attribute = h5py.h5a.open(place.id, name.encode())
    kind = attribute.get_type()
    assert not kind.is_variable_str()
    assert kind.get_cset() == h5py.h5t.CSET_ASCII
    wanted = h5py.h5t.C_S1.copy()
    wanted.set_size(kind.get_size())
    held = np.zeros((), f"S{kind.get_size()}")
    attribute.read(held, mtype=wanted)
    return bytes(held[()])


def test_classes_are_texts_of_a_fixed_length(ran: Ran) -> None:
    for path in _all(ran):
        with h5py.File(path) as file:
            groups: dict[str, Any] = {"/": file}
            file.visititems(lambda name, item: groups.setdefault(name, item) and None)  # noqa: B023
            for item in groups.values():
                if isinstance(item, h5py.Group):
                    assert _as_durin_reads(item, "NX_class") == item.attrs["NX_class"]
            assert _as_durin_reads(file["entry_0000"], "NX_class") == b"NXentry"


@pytest.mark.parametrize("file", ["x_save_master.h5", "x_one_master.h5", "x_save_0_00000.h5", "x.h5"])
def test_durin_finds_the_detector_and_its_pixels(file: str, ran: Ran) -> None:
    with h5py.File(ran.directory / file) as master:
        found: list[Any] = []
        # groups of their own, not those behind links, as H5Ovisit gives them
        master.visititems(
            lambda _, item: (
                found.append(item)
                if isinstance(item, h5py.Group) and _as_durin_reads(item, "NX_class") == b"NXdetector"
                else None
            )
        )
        assert found
        detector = found[-1]
        for name in ("x_pixel_size", "y_pixel_size"):
            assert detector[name][()] == pytest.approx(75e-6)
            assert _as_durin_reads(detector[name], "units") == b"m"
        assert detector["pixel_mask"].shape == (12, 16)
        if file != "x.h5":  # there the last is that of sparse frames
            assert detector["data"].ndim == 3


def test_fabio_and_silx_find_the_image(ran: Ran) -> None:
    for name in ("x.h5", "x_save_master.h5", "x_one_master.h5"):
        image = fabio.open(str(ran.directory / name))
        assert image.nframes == 19
        image.close()
        with silx_open(str(ran.directory / name)) as file:
            shown = nxdata.get_default(file)
            assert shown.signal.shape == (19, 12, 16)


@pytest.mark.parametrize("node", ["save", "one"])
def test_nexusformat_reads_frames_and_slabs(node: str, ran: Ran) -> None:
    want = ran.saved(node)[0]
    signal = nxload(str(ran.directory / f"x_{node}_master.h5")).plottable_data.nxsignal
    for k in (0, 7, 18):
        np.testing.assert_array_equal(signal[k].nxdata, want[k])
    np.testing.assert_array_equal(signal[2:19].nxdata, want[2:19])


def test_nexusformat_reads_the_whole_of_a_common_file_only(ran: Ran) -> None:
    """The manual says so: with a nexusformat that reads both it is to be changed."""
    one = nxload(str(ran.directory / "x_one_master.h5")).plottable_data.nxsignal
    np.testing.assert_array_equal(one.nxdata, ran.saved("one")[0])
    virtual = nxload(str(ran.directory / "x_save_master.h5")).plottable_data.nxsignal
    assert virtual.shape != (19, 12, 16)
    with pytest.raises((NeXusError, ValueError)):
        _ = virtual.nxdata


def test_nexusformat_shows_the_tree_of_every_file(ran: Ran) -> None:
    for path in _all(ran):
        tree = nxload(str(path)).tree
        assert "NXentry" in tree
    linked = nxload(str(ran.directory / "x.h5"))
    assert "save:NXcollection" in linked.tree
    assert float(linked["entry_0000/save/detector/x_pixel_size"]) == pytest.approx(75e-6)


def test_the_linking_file_has_all_that_masters_have_of_the_detector(ran: Ran) -> None:
    with h5py.File(ran.directory / "x.h5") as links:
        for node in ("save", "one", "sparse"):
            with h5py.File(ran.directory / f"x_{node}_master.h5") as master:
                names: list[str] = []
                master["entry_0000/P11/remu"].visit(names.append)
                assert names
                for name in names:
                    linked, own = links[f"entry_0000/{node}/detector/{name}"], master[f"entry_0000/P11/remu/{name}"]
                    assert set(own.attrs) <= set(linked.attrs)
                    if isinstance(own, h5py.Dataset):
                        assert linked.shape == own.shape


def test_a_master_holds_what_concerns_its_node(ran: Ran) -> None:
    with h5py.File(ran.directory / "x_save_master.h5") as file:
        detector = file["entry_0000/P11/remu"]
        assert set(detector["params/processing"]) == {"good", "save"}
        assert set(detector["detector_information/datasets"]) == {"data"}
    with h5py.File(ran.directory / "x_sparse_master.h5") as file:
        assert set(file["entry_0000/P11/remu/params/processing"]) == {"good", "bright", "sparse"}


TABLES = """
lima2: 1
name: x
metadata: {title: a scan, instrument: P11, sample: s, photon_energy: 12 keV}
detector: {remu: {image: {width: 16, height: 12}, datasets: {data: {dtype: uint16}}, saturation: 100}}
acquisition: {frames: 7}
nodes:
  sums:
    input: data
    roi_counters:
      statistics: [avg, sum, saturated]
      rois: &rois
        a: {x: 0, y: 0, width: 6, height: 2}
        b: {x: 0, y: 0, width: 5, height: 2}
        c: {x: 9, y: 0, width: 6, height: 3}
  lines:
    input: data
    roi_profiles:
      rois: *rois
  log: {input: data, checkpoint: {}}
  spectrum: {input: data, histogram: {bins: 9, range: [0, 900]}}
  instrument: {input: data, checkpoint: {}}
"""


def test_tables_and_the_linking_file_say_what_is_shown(tmp_path: Path) -> None:
    """Curves of one length are plotted together, with labels; the file has title, names and times without a master."""
    done = run(TABLES, tmp_path, "inline", name="x")
    assert done.code == 0, done.output
    with silx_open(str(done.directory / "x.h5")) as file:
        entry = file["entry_0000"]
        assert entry["instrument/beam/incident_energy"][()] == 12000
        sums, lines = nxdata.NXdata(entry["sums/plot"]), nxdata.NXdata(entry["lines/plot"])
        assert (sums.is_valid, lines.is_valid) == (True, True)
        assert (sums.signal_dataset_name, sums.auxiliary_signals_names) == ("a_sum", ["sum of b", "sum of c"])
        assert (sums.axes_dataset_names, lines.axes_dataset_names) == (["frame_number"], ["frame_number", None])
        assert (lines.signal.shape, lines.auxiliary_signals_names) == ((7, 6), ["sum of c"])
        assert sums.signal.attrs["long_name"] == "sum of a"
        assert entry["sums/a_saturated"].attrs["units"] == "pixels"
        assert entry["sums/a_saturated"].attrs["pixels"] == 12
        spectrum = nxdata.NXdata(entry["spectrum/plot"])
        assert spectrum.is_valid
        assert spectrum.axes_dataset_names == ["frame_number", "intensity"]
        np.testing.assert_array_equal(spectrum.axes[1], np.arange(50, 900, 100))
        assert entry["log/latency"].attrs["units"] == "s"
        assert entry["instrument_2"].attrs["key"] == "instrument"
    with h5py.File(done.directory / "x.h5") as file:
        names = ("title", "instrument/name", "sample/name", "start_time", "end_time")
        *words, start, end = (file[f"entry_0000/{name}"].asstr()[()] for name in names)
        assert words == ["a scan", "P11", "s"]
        assert start < end
        assert nxload(str(done.directory / "x.h5"))["entry_0000/sums/plot"].nxsignal.shape == (7,)


def test_a_recovered_linking_file_has_the_times_of_masters(tmp_path: Path) -> None:
    done = run(PIPELINE, tmp_path, "inline", name="x")
    for name in ("x.h5", "summary.json"):
        (done.directory / name).unlink()
    assert lima2("recover", str(done.directory), cwd=tmp_path).returncode in (0, 10)
    ends = []
    for node in ("save", "one", "sparse"):
        with h5py.File(done.directory / f"x_{node}_master.h5") as master:
            ends.append(master["entry_0000/end_time"].asstr()[()])
            start = master["entry_0000/start_time"].asstr()[()]
    with h5py.File(done.directory / "x.h5") as file:
        assert file["entry_0000/start_time"].asstr()[()] == start
        assert file["entry_0000/end_time"].asstr()[()] == max(ends)
        assert file["entry_0000/title"].asstr()[()] == "t"


FLOWS = """
lima2: 1
detector:
  remu: {image: {width: 8, height: 8}, datasets: {DATASETS}, scene: {counter: {}}}
acquisition: {frames: 5}
flows: {FLOWS}
nodes: {NODES}
"""

KINDS = {
    "saved": "s{i}: {{input: f{i}, io_hdf5: {{}}}}",
    "common": "s{i}: {{input: f{i}, io_hdf5: {{layout: common}}}}",
    "filtered": "c{i}: {{input: f{i}, checkpoint: {{}}}}, g{i}: {{input: f{i}, filter: {{keep: c{i}.latency > -9}}}}, "
    "s{i}: {{input: g{i}, io_hdf5: {{}}}}",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_master_does_not_grow_with_other_nodes(kind: str, tmp_path: Path) -> None:
    held: dict[int, tuple[int, set[str]]] = {}
    for count in (1, 16):
        text = FLOWS
        for word, each in (
            ("DATASETS", "d{i}: {{dtype: uint16}}"),
            ("FLOWS", "f{i}: {{dataset: d{i}}}"),
            ("NODES", KINDS[kind]),
        ):
            text = text.replace(f"{{{word}}}", "{" + ", ".join(each.format(i=i) for i in range(count)) + "}")
        (tmp_path / str(count)).mkdir()
        ran = run(text, tmp_path / str(count), "inline")
        assert ran.code == 0, ran.output
        names: set[str] = set()
        with h5py.File(ran.directory / "pipeline_s0_master.h5") as file:
            file.visit(names.add)
            if kind == "filtered":
                assert set(file["entry_0000/instrument/remu/params/processing"]) == {"c0", "g0", "s0"}
        held[count] = (ran.directory / "pipeline_s0_master.h5").stat().st_size, names
    assert held[1][1] == held[16][1]
    assert held[16][0] <= held[1][0] + 512
