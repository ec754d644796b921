"""Facts of an acquisition that a detector's start message tells, in the files."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cbor2
import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import lima2cli as l2
from lima2cli.accounting.inspect_run import inspect_run
from lima2cli.detectors.dectris import Dectris, DetectorChannel
from lima2cli.detectors.dectris_facts import facts_of
from lima2cli.detectors.modules import ImageSize
from lima2cli.facts import MOST_BYTES, AxisFacts, Facts
from lima2cli.files.fields import FACTS_FILE, keep_facts, kept_facts
from lima2cli.stream import stream2
from lima2cli.testing import NoFiles
from tests.detectors.test_dectris import HEIGHT, WIDTH, coded, pipeline, sender, sent, start
from tests.running import TRANSPORTS, lima2

CHANNELS = ["threshold_1", "difference"]

FIELDS: Mapping[str, Any] = {
    "incident_energy": 12000.0, "incident_wavelength": 1.0332, "beam_center_x": 20.0, "beam_center_y": 10.0,
    "detector_translation": [0.0, 0.0, -0.25], "count_time": 0.001, "frame_time": 0.002, "saturation_value": 60000,
    "sensor_material": "Si", "sensor_thickness": 450e-6, "pixel_size_x": 75e-6, "pixel_size_y": 75e-6,
    "threshold_energy": {"threshold_1": 6000.0, "threshold_2": 8000.0},
    "detector_description": "DECTRIS EIGER2 Si 500K", "detector_serial_number": "E-02-0100",
    "goniometer": {"omega": {"start": 5.0, "increment": 0.1}, "phi": {"start": 0.0, "increment": 0.0}},
    "flatfield_enabled": True, "pixel_mask_enabled": True, "countrate_correction_enabled": False,
}  # fmt: skip
"""Fields of a start message, but for arrays."""

KEYS = ("count_time", "distance", "beam_center_x", "beam_center_y", "x_pixel_size", "y_pixel_size", "sensor_thickness")


def masks() -> dict[str, NDArray[np.uint32]]:
    """A mask of each channel, with several bits of NeXus."""
    one = np.zeros((HEIGHT, WIDTH), np.uint32)
    one[3, 4], one[3, 5], one[20, 30] = 1, 16, 1 << 31
    other = np.zeros_like(one)
    other[0, 0], other[3, 4] = 2, 4
    return {"threshold_1": one, "difference": other, "threshold_2": one + 1}


def flatfields() -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(1)
    return {name: random.normal(1, 0.1, (HEIGHT, WIDTH)).astype(np.float32) for name in CHANNELS}


def packed(pixels: NDArray[Any]) -> Any:
    """An array as it travels, compressed."""
    _, shape, data, _ = coded(pixels, "bslz4")
    array = cbor2.CBORTag(stream2.COMPRESSED, ["bslz4", pixels.itemsize, data])
    return cbor2.CBORTag(stream2.MULTI_DIM, [list(shape), cbor2.CBORTag(stream2.TAGS[pixels.dtype.name], array)])


def full_start(series: int = 1, **other: Any) -> bytes:
    fields = {
        "pixel_mask": {name: packed(mask) for name, mask in masks().items()},
        "flatfield": {name: stream2.array_of(field) for name, field in flatfields().items()},
    }
    return start(series, "uint16", CHANNELS, **{**FIELDS, **fields, **other})


def acquire(text: str, transport: str, first: Callable[[int], bytes], socket: Any, frames: int = 4) -> l2.Run:
    """A run of one series, which has ended."""
    run = l2.run(text, transport=transport)
    socket.send(first(1))
    for number in range(frames):
        socket.send(sent(number, "uint16", CHANNELS))
    socket.send(stream2.end_message(1, "ULID", 0))
    assert run.wait(60).state == "complete"
    return run


def fields(directory: Path, node: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The datasets of the detector in a master, and of the beam, by name."""
    with h5py.File(directory / f"d_{node}_master.h5") as file:
        instrument = file["entry_0000/instrument"]
        found = {
            name: {k: v.asstr()[()] if v.dtype.kind == "O" else v[()] for k, v in group.items() if hasattr(v, "dtype")}
            for name, group in instrument.items()
        }
        return found["dectris"], found.get("beam", {})


NODES = """
  save: {input: threshold_1, io_hdf5: {}}
  other: {input: difference, io_hdf5: {}}
  part: {input: threshold_1, roi_flip_rot: {roi: {x: 2, y: 1, width: 40, height: 30}, flip: horizontal, rotation: 90}}
  turned: {input: part, io_hdf5: {}}
  half: {input: threshold_1, roi_flip_rot: {binning: 2}}
  binned: {input: half, io_hdf5: {}}
  hole: {input: threshold_1, mask: {image: hole.npy}}
  holed: {input: hole, io_hdf5: {}}
"""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_the_detector_says_is_in_masters(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each channel has its own mask, shown as its frames are."""
    monkeypatch.chdir(tmp_path)
    hole = np.zeros((HEIGHT, WIDTH), np.uint8)
    hole[3, 4:7] = 1
    np.save("hole.npy", hole)
    with sender() as socket:
        text = pipeline(socket.last_endpoint.decode(), 4, dict.fromkeys(CHANNELS, "uint16"), nodes=NODES)
        run = acquire(text, transport, lambda series: full_start(series), socket)
    detector, beam = fields(run.directory, "save")
    assert [detector[key] for key in KEYS] == pytest.approx([0.001, 0.25, 20, 10, 75e-6, 75e-6, 450e-6])
    assert (beam["incident_energy"], beam["incident_wavelength"]) == (12000, 1.0332)
    assert (detector["saturation_value"], detector["threshold_energy"]) == (60000, 6000)
    assert (detector["sensor_material"], detector["description"]) == ("Si", FIELDS["detector_description"])
    assert detector["serial_number"] == "E-02-0100"
    assert (detector["flatfield_applied"], detector["countrate_correction_applied"]) == (True, False)
    mask, flatfield = masks()["threshold_1"], flatfields()["threshold_1"]
    assert np.array_equal(detector["pixel_mask"], mask)
    assert np.array_equal(detector["flatfield"], flatfield)

    other, _ = fields(run.directory, "other")
    assert np.array_equal(other["pixel_mask"], masks()["difference"])
    assert "threshold_energy" not in other

    turned, _ = fields(run.directory, "turned")
    for name, array in (("pixel_mask", mask), ("flatfield", flatfield)):
        assert np.array_equal(turned[name], np.rot90(array[1:31, 2:42][:, ::-1], -1))
    assert "saturation_value" not in turned  # a node was before

    binned, _ = fields(run.directory, "binned")
    whole = mask[:34, :50].reshape(17, 2, 25, 2)
    assert np.array_equal(binned["pixel_mask"], np.bitwise_or.reduce(np.bitwise_or.reduce(whole, 3), 1))
    assert binned["x_pixel_size"] == pytest.approx(150e-6)
    assert "flatfield" not in binned

    holed, _ = fields(run.directory, "holed")
    mask[3, 6] |= 1  # what has its bits keeps them
    assert np.array_equal(holed["pixel_mask"], mask)
    with h5py.File(run.directory / "d_save_master.h5") as file:
        reported = file["entry_0000/instrument/dectris/reported"]
        assert reported["axes/omega/step"][()] == 0.1
        assert set(reported["axes"]) == {"omega"}
        assert reported["period"][()] == 0.002


SAYS = """
metadata: {photon_energy: 10 keV, distance: 0.5 m, beam_center: {x: 1, y: 2}}
"""


@pytest.mark.parametrize("layout", ["files", "common"])
def test_the_pipeline_wins(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The energy is the pipeline's, and the wavelength follows from it; what it doesn't say is the detector's."""
    monkeypatch.chdir(tmp_path)
    with sender() as socket:
        text = pipeline(
            socket.last_endpoint.decode(), 4, {"threshold_1": "uint16"}, more=", exposure: 3 ms, start: request",
            nodes=f"{{save: {{input: threshold_1, io_hdf5: {{layout: {layout}}}}}}}",
        )  # fmt: skip
        text = text.replace("depth: 8", "depth: 8\n    pixel_size: 55 um\n    saturation: 1000") + SAYS
        run = l2.run(text, transport="inline")
        run.start(metadata={"title": "first"})
        socket.send(full_start())
        for number in range(4):
            socket.send(sent(number, "uint16", CHANNELS))
        run.wait(60)
    detector, beam = fields(run.directory, "save")
    assert [detector[key] for key in KEYS] == pytest.approx([0.003, 0.5, 1, 2, 55e-6, 55e-6, 450e-6])
    assert beam["incident_energy"] == 10000
    assert beam["incident_wavelength"] == pytest.approx(1.2398419843)
    assert detector["saturation_value"] == 1000
    assert np.array_equal(detector["pixel_mask"], masks()["threshold_1"])
    with h5py.File(run.directory / "d_save_master.h5") as file:
        assert file["entry_0000/title"].asstr()[()] == "first"
        assert file["entry_0000/measurement/data"].shape == (4, HEIGHT, WIDTH)
    assert inspect_run(str(run.directory)).problems == ()


MX = """
metadata: {instrument: P11, source: PETRA III, sample: lysozyme, axes: {omega: {vector: {x: -1}}}}
"""


def test_with_what_the_detector_says_files_are_nxmx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline says which way the axis turns, the detector where it is; pixels with the largest value are marks."""
    monkeypatch.chdir(tmp_path)
    nodes = """
  save: {input: threshold_1, io_hdf5: {}}
  roi: {input: threshold_1, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 9, height: 9}}}}}
"""
    with sender() as socket:
        text = pipeline(socket.last_endpoint.decode(), 4, {"threshold_1": "uint16"}, nodes=nodes) + MX
        run = acquire(text, "inline", lambda series: full_start(series), socket)
    positions = 5 + 0.1 * np.arange(4)
    with h5py.File(run.directory / "d_save_master.h5") as file:
        assert file["entry/definition"].asstr()[()] == "NXmx"
        assert file["entry/sample/transformations/omega"][()] == pytest.approx(positions)
        detector = file["entry/instrument/detector"]
        assert detector["bit_depth_readout"][()] == 16
        assert (detector["saturation_value"][()], detector["frame_time"][()]) == (60000, 0.002)
        assert detector["pixel_mask"][3, 5] == 16
    assert run.counters["roi"]["omega"] == pytest.approx(positions)


def test_each_acquisition_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with sender() as socket:
        text = pipeline(socket.last_endpoint.decode(), 2, {"threshold_1": "uint16"}, more=", repeat: 3")
        run = l2.run(text, transport="inline")
        for series in range(1, 4):
            message = full_start(series) if series < 3 else start(series, "uint16", CHANNELS)
            if series == 2:
                message = full_start(series, pixel_mask={}, detector_translation=[0.0, 0.0, 2.0])
            socket.send(message)
            for number in range(2):
                socket.send(sent(number, "uint16", CHANNELS, series=series))
            socket.send(stream2.end_message(series, "ULID", 0))
            if series < 3:
                run.completed(series)
        run.wait(60)
    first, second, third = (fields(path, "save")[0] for path in sorted((tmp_path / "runs").glob("d_*")))
    assert (first["distance"], second["distance"]) == (0.25, 2)
    assert "pixel_mask" in first
    assert "pixel_mask" not in second
    assert not third.keys() & {*KEYS, "pixel_mask", "description"}


def shown(run: l2.Run) -> int:
    """The rows of a master that grows."""
    with h5py.File(run.directory / "d_save_master.h5", swmr=True) as live:
        return len(live["entry_0000/instrument/dectris/data"])


def test_before_the_first_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start message is taken while the run waits; the live master has what it says, and so has a recovered one."""
    monkeypatch.chdir(tmp_path)
    with sender() as socket:
        text = pipeline(socket.last_endpoint.decode(), 4, {"threshold_1": "uint16"}, more=", start: request")
        run = l2.run(text, transport="inline")
        socket.send(full_start())
        kept = run.directory / FACTS_FILE
        deadline = time.monotonic() + 30
        while not kept.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        run.start()
        for number in range(2):
            socket.send(sent(number, "uint16", CHANNELS))
        progress = run.progress
        assert next(event for event in progress if event["rows"].get("save", 0) == 2)
        while time.monotonic() < deadline and shown(run) < 2:  # it grows twice a second
            time.sleep(0.05)
        with h5py.File(run.directory / "d_save_master.h5", swmr=True) as live:
            assert live["entry_0000/instrument/beam/incident_energy"][()] == 12000
            detector = live["entry_0000/instrument/dectris"]
            assert detector["data"].shape[0] == 2
            assert detector["pixel_mask"][3, 5] == 16
            assert "flatfield" not in detector
        for number in range(2, 4):
            socket.send(sent(number, "uint16", CHANNELS))
        run.wait(60)
    before = fields(run.directory, "save")
    for name in ("d_save_master.h5", "summary.json", "d.h5"):
        (run.directory / name).unlink()
    done = lima2("recover", str(run.directory), cwd=tmp_path)
    assert done.returncode in (0, 10), done.stderr
    after = fields(run.directory, "save")
    assert before[0].keys() == after[0].keys()
    assert np.array_equal(after[0]["flatfield"], flatfields()["threshold_1"])
    assert np.array_equal(after[0]["pixel_mask"], before[0]["pixel_mask"])


def test_facts_that_are_damaged_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masters are written without, and the run says so."""
    monkeypatch.chdir(tmp_path)
    with sender() as socket:
        text = pipeline(socket.last_endpoint.decode(), 4, {"threshold_1": "uint16"})
        run = acquire(text, "inline", lambda series: full_start(series), socket)
    with h5py.File(run.directory / FACTS_FILE, "r+") as file:
        del file["facts"]
        file["facts"] = json.dumps({"photon_energy": "much"})
    for name in ("d_save_master.h5", "summary.json"):
        (run.directory / name).unlink()
    lima2("recover", str(run.directory), cwd=tmp_path)
    summary = l2.open(run.directory).summary
    assert summary is not None
    assert any("masters lack what the detector said" in problem for problem in summary.problems)
    assert "distance" not in fields(run.directory, "save")[0]


def test_what_can_not_be_used_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of another size, damaged ones, bytes where arrays should be: frames are taken all the same."""
    monkeypatch.chdir(tmp_path)
    wrong = {"threshold_1": packed(np.zeros((7, 9), np.uint32)), "difference": b"aGVsbG8="}
    floats = {name: packed(np.zeros((HEIGHT, WIDTH), np.float64)) for name in CHANNELS[:1]}
    with sender() as socket:
        text = pipeline(socket.last_endpoint.decode(), 4, dict.fromkeys(CHANNELS, "uint16"))
        run = acquire(text, "inline", lambda series: full_start(series, pixel_mask=wrong, flatfield=floats), socket)
    summary = run.summary
    assert summary is not None
    words = " ".join(summary.warnings)
    assert "pixel_mask of threshold_1 in the start message can't be used: it is uint32 9 x 7" in words
    assert "pixel_mask of difference in the start message can't be used" in words
    detector, _ = fields(run.directory, "save")
    assert "pixel_mask" not in detector
    assert detector["distance"] == 0.25
    assert "flatfield" in detector  # float64 becomes float32


def info() -> Any:
    config = Dectris(
        stream="tcp://127.0.0.1:1", image=ImageSize(width=WIDTH, height=HEIGHT),
        datasets={"threshold_1": DetectorChannel(dtype="uint16")},
    )  # fmt: skip
    return config.describe(NoFiles())


def test_values_that_were_never_set_say_nothing() -> None:
    unset: dict[str, Any] = {
        "incident_energy": 0.0, "incident_wavelength": float("nan"), "beam_center_x": 0.0, "beam_center_y": 0.0,
        "detector_translation": [0.0, 0.0, 0.0], "count_time": "1", "frame_time": True, "pixel_size_x": 75e-6,
        "sensor_material": "", "goniometer": {"chi": {"start": 0.0, "increment": 0.0}, "phi": 3, 4: {}},
        "threshold_energy": {"threshold_1": 0.0}, "pixel_mask": [], "flatfield_enabled": 1,
    }  # fmt: skip
    facts, doubts = facts_of(unset, info())
    assert (facts.values(), facts.arrays, doubts) == ({}, {}, [])


@pytest.mark.parametrize(
    "wrong",
    [
        {"wavelength": 0.0}, {"photon_energy": float("inf")}, {"pixel_size": (75e-6, -1.0)}, {"description": "a\0b"},
        {"beam_center": (float("nan"), 0.0)}, {"thresholds": {"a": 0.0}}, {"axes": {"": AxisFacts(start=0, step=1)}},
    ],
)  # fmt: skip
def test_facts_that_can_not_be_are_refused(wrong: dict[str, Any]) -> None:
    """Masters are written from them, at the end of a run: it must not fail there."""
    with pytest.raises(ValueError, match="not"):
        Facts(**wrong)


def test_axes_that_can_not_be_are_refused() -> None:
    for begin, unit in ((float("nan"), "deg"), (0.0, "\N{DEGREE SIGN}")):
        with pytest.raises(ValueError, match="an axis is not at"):
            AxisFacts(start=begin, step=1.0, unit=unit)


def test_odd_words_of_a_detector_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names with slashes and points, and texts that HDF5 does not take."""
    monkeypatch.chdir(tmp_path)
    axis = {"start": 1.0, "increment": 2.0}
    odd = {"goniometer": {"a/b": axis, ".": axis, "\0": axis, "": axis, "\N{GREEK SMALL LETTER OMEGA}": axis}}
    with sender() as socket:
        text = pipeline(socket.last_endpoint.decode(), 4, {"threshold_1": "uint16"})
        more = {**odd, "detector_description": "a\0b", "sensor_material": " "}
        run = acquire(text, "inline", lambda series: full_start(series, **more), socket)
    with h5py.File(run.directory / "d_save_master.h5") as file:
        axes = file["entry_0000/sample/transformations"]
        assert set(axes) == {"a-b", "unnamed", "\N{GREEK SMALL LETTER OMEGA}"}
        assert axes["a-b"][()].tolist() == [1, 3, 5, 7]
        assert "description" not in file["entry_0000/instrument/dectris"]


def test_arrays_are_bounded() -> None:
    """Masks come first; what is not of the detector's size, or no mask, is left out, and said."""
    small = info()
    arrays = {
        "pixel_mask": {"threshold_1": np.zeros((HEIGHT, WIDTH), np.uint32), "b": np.zeros((HEIGHT, WIDTH))},
        "flatfield": {"threshold_1": np.zeros((1, 2), np.float32)},
    }
    kept, doubts = Facts(arrays=arrays).fitting(small)
    assert {name: list(held) for name, held in kept.arrays.items()} == {"pixel_mask": ["threshold_1"]}
    assert [doubt.partition(" is left out")[0] for doubt in doubts] == ["pixel_mask of b", "flatfield of threshold_1"]
    side = int((MOST_BYTES / 8) ** 0.5) + 1
    config = Dectris(stream="tcp://127.0.0.1:1", image=ImageSize(width=side, height=side))
    large = np.broadcast_to(np.zeros((), np.uint32), (side, side))
    both = Facts(arrays={"flatfield": {"a": large.astype(np.float32)}, "pixel_mask": {"a": large}})
    kept, (doubt,) = both.fitting(config.describe(NoFiles()))
    assert list(kept.arrays) == ["pixel_mask"]
    assert "256 MiB" in doubt


def test_facts_are_kept_as_they_are(tmp_path: Path) -> None:
    """Without pickle: JSON, and arrays of HDF5."""
    facts = Facts(
        photon_energy=12e3, beam_center=(1.5, 2.5), axes={"a/b": AxisFacts(start=1, step=0.5)},
        applied={"flatfield": True},
        arrays={"pixel_mask": {"a/b": np.eye(3, dtype=np.uint32), "a-b": np.eye(3, dtype=np.uint32) * 2}},
    )  # fmt: skip
    keep_facts(tmp_path, facts)
    again = kept_facts(tmp_path)
    assert again is not None
    assert again.values() == facts.values()
    assert {name: mask.tolist() for name, mask in again.arrays["pixel_mask"].items()} == {
        name: mask.tolist() for name, mask in facts.arrays["pixel_mask"].items()
    }
    assert kept_facts(tmp_path / "nowhere") is None


@pytest.mark.parametrize("recording", ["r500k_bm_bslz4_16bit"])
def test_recorded_images(recording: str, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three channels of a real detector, each with a mask of its own: its masked pixels."""
    monkeypatch.chdir(tmp_path)
    messages = [path.read_bytes() for path in sorted((data_dir / "stream2" / recording).glob("*.cbor"))]
    image = stream2.read(messages[0])
    assert isinstance(image, stream2.Image)
    made = {}
    for name, pixels in image.pixels.items():
        out = np.empty(pixels.shape, np.uint16)
        pixels.read(out)
        made[name] = (out == 65535).astype(np.uint32) * 2
    nodes = "{" + ", ".join(f"s{k}: {{input: {name}, io_hdf5: {{}}}}" for k, name in enumerate(made)) + "}"
    sizes = {"width": 1030, "height": 514}
    first = start(
        1, "uint16", list(made), **FIELDS, image_size_x=1030, image_size_y=514,
        pixel_mask={name: packed(mask) for name, mask in made.items()},
    )  # fmt: skip
    with sender() as socket:
        text = pipeline(socket.last_endpoint.decode(), 3, dict.fromkeys(made, "uint16"), nodes=nodes, **sizes)
        run = l2.run(text, transport="inline")
        for message in (first, *messages):
            socket.send(message)
        assert run.wait(60).state == "complete"
    for k, mask in enumerate(made.values()):
        detector, _ = fields(run.directory, f"s{k}")
        assert np.array_equal(detector.get("pixel_mask", np.zeros_like(mask)), mask)
