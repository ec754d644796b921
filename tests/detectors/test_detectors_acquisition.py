"""Acquisition: triggers, what the detector does to frames, capabilities, and what goes wrong on purpose."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2cli.check import check_text
from lima2cli.declare import Table
from lima2cli.detectors import lifecycle
from lima2cli.detectors.base import AcqParams, Capabilities, Operations, XferParams
from lima2cli.detectors.capability_record import read_record, write_record
from lima2cli.detectors.emulator_faults import (
    Corrupted,
    Dead,
    Died,
    Dropped,
    Failed,
    Faults,
    Hot,
    Jitter,
    Late,
    parse_fault,
)
from lima2cli.detectors.lifecycle import Lifecycle
from lima2cli.detectors.modules import operate
from lima2cli.detectors.remu import Remu
from lima2cli.diagnostics import Diagnostic, Findings, attempt
from lima2cli.errors import NodeMisuse, StateError
from lima2cli.frames import DatasetInfo, DetectorInfo
from lima2cli.geometry import Rect
from lima2cli.language.checks import check_synchronisation, operated_detector
from lima2cli.language.records import Acquisition
from lima2cli.testing import NoFiles
from tests.node_inputs import read
from tests.running import EXAMPLES, run

REMU = "detector: {remu: {image: {width: 40, height: 20}, datasets: {data: {dtype: uint16}}}}"
SMARTPIX = "detector: {smartpix: {modules: {columns: 1, rows: 1}}}"
SAVE = "nodes: {save: {input: f, io_hdf5: {}}}"


def found(*lines: str, base: Path = Path(".")) -> list[Diagnostic]:
    """Return the mistakes of a pipeline."""
    text = "\n".join(["lima2: 1", *lines])
    return list(check_text(text, "p.yaml", base, cores=2, environment={}).findings)


def remu(**parameters: Any) -> Remu:
    data = {"image": {"width": 40, "height": 20}, "datasets": {"data": {"dtype": "uint16"}}} | parameters
    table: Remu = read(Table(Remu), data)
    return table


@pytest.mark.parametrize(
    ("detector", "acquisition", "rule", "key", "words"),
    [
        (SMARTPIX, "flip: vertical", "cannot-operate", "flip", "smartpix does not support flip"),
        (SMARTPIX, "accumulate: 3", "cannot-operate", "accumulate", "does not support accumulation"),
        (SMARTPIX, "roi: {x: 0, y: 0, width: 8, height: 8}", "cannot-operate", "roi", "does not support roi"),
        (REMU, "frames_per_trigger: 3", "frames-per-trigger", "frames_per_trigger", "starts by itself"),
        (REMU, "binning: {x: 41}", "binning-too-large", "binning", "no bin of 41 x 1 pixels fits"),
        (REMU, "roi: {x: 0, y: 0, width: 41, height: 8}", "roi-outside", "roi", "41 x 8 at (0, 0)"),
        (
            REMU,
            "{binning: {x: 2, y: 2}, roi: {x: 10, y: 0, width: 11, height: 8}}",
            "roi-outside",
            "roi",
            "binned 2 x 2",
        ),
        (REMU.replace("uint16", "int64"), "accumulate: 2", "sum-too-wide", "accumulate", "up to 65 bits"),
        (REMU, "shutter: shut", "unknown-value", "shutter", "shut"),
        (REMU, "trigger: softwre", "unknown-value", "trigger", "softwre"),
    ],
)
def test_what_a_detector_cannot_do(detector: str, acquisition: str, rule: str, key: str, words: str) -> None:
    inner = acquisition if acquisition.startswith("{") else f"{{{acquisition}}}"
    flow = f"flows: {{f: {{dataset: {'CTR1' if detector is SMARTPIX else 'data'}}}}}"
    (one,) = found(detector, f"acquisition: {inner}", flow, SAVE)
    assert (one.rule, one.at) == (rule, ("acquisition", key))
    assert words in one.message


def test_replay_has_no_pulses_and_no_shutter(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.zeros((3, 4, 5), np.uint16))
    head = ("detector: {replay: {file: s.npy}}", "nodes: {s: {input: data, io_hdf5: {}}}")
    wrong = found(*head, "acquisition: {trigger: gate, shutter: closed}", base=tmp_path)
    assert [(it.rule, it.at, it.help) for it in wrong] == [
        ("cannot-trigger", ("acquisition", "trigger"), "one of internal, software"),
        ("cannot-shutter", ("acquisition", "shutter"), "leave `shutter` out"),
    ]
    assert found(*head, "acquisition: {trigger: software, frames_per_trigger: 2}", base=tmp_path) == []


RECORD: dict[str, Any] = {
    "version": 1,
    "name": "eye",
    "image": {"width": 64, "height": 32},
    "modules": [{"x": 0, "y": 0, "width": 32, "height": 32}, {"x": 32, "y": 0, "width": 32, "height": 32}],
    "datasets": {"data": {"dtype": "uint16", "bits": 14}},
    "channels": 2,
    "operations": ["binning", "accumulation"],
    "binnings": [{"x": 2, "y": 2}],
    "accumulation": 4,
    "triggers": ["internal", "external"],
    "frames_per_trigger": 8,
    "extraction": {"granularity": {"x": 8, "y": 4}},
    "alignment": 256,
    "reconstruction": False,
}


@pytest.mark.parametrize(
    ("change", "rest", "rule", "at", "help"),
    [
        ({}, {"source": "{x: 9, y: 2, width: 10, height: 8}"}, "cannot-extract", ("flows", "f", "source"),
         "{x: 8, y: 0, width: 16, height: 12} contains it"),
        ({"extraction": {"possible": False}}, {"source": "{x: 0, y: 0, width: 8, height: 8}"}, "cannot-extract",
         ("flows", "f", "source"), "source: full, and the node `roi_flip_rot`"),
        ({}, {"alignment": "{row: 512 bit}", "source": "{x: 0, y: 0, width: 8, height: 8}"}, "cannot-align",
         ("flows", "f", "alignment", "row"), None),
        ({}, {}, "cannot-reconstruct", ("flows", "f"), "`dispatch: modules`"),
    ],
)  # fmt: skip
def test_flows_against_a_capability_record(
    change: dict[str, Any], rest: dict[str, str], rule: str, at: tuple[str, ...], help: str | None, tmp_path: Path
) -> None:
    (tmp_path / "eye.json").write_text(json.dumps(RECORD | change))
    flow = "".join(f", {key}: {value}" for key, value in rest.items())
    wrong = found(
        "detector: {rashpa: {file: eye.json}}",
        "acquisition: {frames: 4}",
        f"flows: {{f: {{dataset: data{flow}}}}}",
        "nodes: {c: {input: f, checkpoint: {}}}",
        base=tmp_path,
    )
    assert [(it.rule, it.at) for it in wrong] == [(rule, at)]
    assert help is None or help in str(wrong[0].help)


@pytest.mark.parametrize(
    ("said", "rule", "key", "words"),
    [
        ({"binning": {"x": 4, "y": 4}}, "cannot-operate", "binning", "it bins 2 x 2"),
        ({"accumulate": 5}, "cannot-operate", "accumulate", "sums at most 4"),
        ({"flip": "both"}, "cannot-operate", "flip", "`roi_flip_rot`"),
        ({"trigger": "software"}, "cannot-trigger", "trigger", "one of internal, external"),
        ({"trigger": "external", "frames_per_trigger": 9}, "frames-per-trigger", "frames_per_trigger", "at most 8"),
        ({"shutter": "open"}, "cannot-shutter", "shutter", "no shutter"),
    ],
)
def test_an_acquisition_against_a_capability_record(said: dict[str, Any], rule: str, key: str, words: str) -> None:
    info, can = read_record(RECORD, "eye")
    acquisition, findings = read(Table(Acquisition), said), Findings()
    attempt(lambda: operated_detector(acquisition, can, info, findings))
    check_synchronisation(acquisition, can, info, findings)
    (one,) = findings
    assert (one.rule, one.at) == (rule, ("acquisition", key))
    assert words in f"{one.message} {one.help}"


def test_a_record_comes_back_as_it_was_written() -> None:
    info, can = read_record(RECORD, "eye")
    assert (info.image, info.channels, can.granularity, can.alignment) == (Rect(0, 0, 64, 32), 2, (8, 4), 256)
    assert read_record(json.loads(json.dumps(write_record(info, can))), "eye") == (info, can)
    assert read_record({"kind": "eye", "record": write_record(info, can)}, "eye") == (info, can)


@pytest.mark.parametrize(
    ("change", "rule", "key"),
    [
        ({"modulez": []}, "unknown-key", ("modulez",)),
        ({"version": 2}, "unknown-value", ("version",)),
        ({"triggers": ["internl"]}, "unknown-value", ("triggers", 0)),
        ({"image": {"width": 63, "height": 32}}, "module-outside", ("modules", 1)),
        ({"datasets": {"data": {"dtype": "uint8", "bits": 9}}}, "dataset-bits", ("datasets", "data", "bits")),
        ({"gap_value": -1}, "gap-value", ("gap_value",)),
        ({"datasets": {}}, "wrong-type", ("datasets",)),
    ],
)
def test_mistakes_of_a_record(change: dict[str, Any], rule: str, key: tuple[Any, ...]) -> None:
    with pytest.raises(NodeMisuse) as caught:
        read_record(RECORD | change, "eye")
    assert caught.value.key == key
    assert caught.value.rule == rule or change == {"datasets": {}}


def test_capabilities_of_a_configured_detector() -> None:
    detector = remu(channels=3)
    info = detector.described(NoFiles())
    can = detector.retrieve(info)
    assert isinstance(can, Capabilities)
    assert (can.channels, can.modules, can.dtypes, can.bit_depths, can.largest) == (3, 1, ("uint16",), (16,), (40, 20))
    assert info.versions["lima2"]


SENSOR = DetectorInfo(
    "d",
    "d",
    12,
    9,
    (Rect(0, 0, 5, 9), Rect(6, 1, 6, 8)),
    (DatasetInfo("a", 0, "uint16", 12, 11),),
    pixel_size=(1.0, 2.0),
)


@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.sampled_from(["none", "horizontal", "vertical", "both"])
)
def test_operated_modules_are_the_bins_that_they_cover(x: int, y: int, summed: int, flip: str) -> None:
    shown = operate(SENSOR, Operations(summed, (x, y), None, flip))
    covered = np.zeros((9, 12), int)
    for number, module in enumerate(SENSOR.modules, 1):
        covered[module.within(SENSOR.image)] = number
    bins = covered[: 9 // y * y, : 12 // x * x].reshape(9 // y, y, 12 // x, x)
    least, most = bins.min(axis=(1, 3)), bins.max(axis=(1, 3))
    expected = np.where(least == most, least, 0)
    expected = expected[:: -1 if flip in ("vertical", "both") else 1, :: -1 if flip in ("horizontal", "both") else 1]
    placed = np.zeros((shown.height, shown.width), int)
    for number, module in enumerate(shown.modules, 1):
        placed[module.within(shown.image)] = number
    np.testing.assert_array_equal(placed, expected)
    dataset = shown.datasets[0]
    assert 4095 * x * y * summed < 2**dataset.bits <= 2 * 4096 * x * y * summed
    assert dataset.bits <= 8 * dataset.pixel_bytes
    assert dataset.frames == 11 // summed
    if (x, y, summed, flip) != (1, 1, 1, "none"):
        assert shown.sensor is SENSOR
        assert shown.pixel_size == (x, 2.0 * y)


def test_a_roi_may_leave_modules_out() -> None:
    shown = operate(SENSOR, Operations(roi=Rect(6, 0, 6, 9)))
    assert [module.area for module in shown.modules] == [0, 48]
    with pytest.raises(NodeMisuse, match="no module covers a pixel"):
        operate(SENSOR, Operations(roi=Rect(5, 0, 1, 9)))


class Clock:
    """A clock that stands still, in place of the module `time`."""

    def __init__(self) -> None:
        self.now = 1_000_000_000

    def time_ns(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lifecycle, "time", clock)
    return clock


def test_software_triggers_start_frames_a_period_apart(clock: Clock) -> None:
    life = Lifecycle()
    life.prepared(AcqParams(10, 1e-3, trigger="software", frames_per_trigger=3), None)
    life.start(clock.now)
    clock.now += 10**9
    assert life.acquired() == 0
    life.trigger()
    for after, acquired in ((0, 1), (999_999, 1), (1_000_000, 2), (2_000_000, 3), (50_000_000, 3)):
        clock.now = 2_000_000_000 + after
        assert life.acquired() == acquired
    clock.now = 3_000_000_000
    life.trigger()
    clock.now += 500_000
    life.trigger()  # while frames of the last are acquired: after them
    assert life.acquired() == 4
    clock.now = 3_000_000_000 + 3_000_000
    assert life.acquired() == 7
    np.testing.assert_array_equal(
        life.times(range(2, 7)) - np.uint64(2 * 10**9), [2e6, 1e9, 1e9 + 1e6, 1e9 + 2e6, 1e9 + 3e6]
    )
    life.trigger()
    clock.now += 10**9
    assert life.acquired() == 10, "never more than was asked for"
    life.stop()
    with pytest.raises(StateError):
        life.trigger()


def test_the_clock_takes_no_software_trigger(clock: Clock) -> None:
    for trigger in ("internal", "external", "gate"):
        life = Lifecycle()
        life.prepared(AcqParams(10, 1e-3, trigger=trigger, frames_per_trigger=2), None)
        life.start(clock.now)
        with pytest.raises(StateError, match="another trigger"):
            life.trigger()
        clock.now += 5_000_000
        assert life.acquired() == 6, "pulses and gates are as regular as the clock"


def test_jitter_and_lag(clock: Clock) -> None:
    faults = Faults(jitter=Jitter(by=1.0), late=Late(by=2e-3, module=1))
    assert (faults.lag_ns([0]), faults.lag_ns([0, 1])) == (0, 2_000_000)
    life, start = Lifecycle(), clock.now
    life.prepared(AcqParams(50, 1e-3), None, faults.lag_ns([1]), lambda numbers: faults.delays(numbers, 1e6))
    life.start(start)
    due = [start + 1e6 * k + float(faults.delays(np.array([k]), 1e6)[0]) for k in range(50)]
    assert (np.diff(due) > 0).all()
    for now in range(start, start + 53_000_000, 130_000):
        clock.now = now
        assert life.acquired() == sum(time <= now - 2_000_000 for time in due)
    assert np.abs(life.times(range(50)).astype(float) - due).max() <= 128, "as exact as float64 ns are"


def test_a_closed_shutter_is_dark() -> None:
    table = remu(modules=[{"x": 0, "y": 0, "width": 7, "height": 5}])
    detector = table.open(table.describe(NoFiles()), NoFiles())
    detector.prepare(AcqParams(3, None, shutter="closed", operations=Operations(binning=(2, 1))), XferParams(((0, 0),)))
    detector.start(0)
    frames = detector.get_frames(0, 0, range(3))
    assert frames.shape[1:] == (5, 3)
    assert not frames.any()


ALL = np.arange(20_000)


def test_faults_depend_on_seed_module_and_number_alone() -> None:
    faults = Faults(failed=Failed(rate=0.1), dropped=Dropped(rate=0.05), died=Died(module=2, frame=15_000))
    missing = [faults.missing(module, ALL) for module in range(3)]
    for module, lost in enumerate(missing):
        assert lost is not None
        for numbers in (ALL[::-7], ALL[5:6], ALL[100:200:3]):
            part = faults.missing(module, numbers)
            np.testing.assert_array_equal(np.zeros(len(numbers), bool) if part is None else part, lost[numbers])
        assert lost[:15_000].mean() == pytest.approx(1 - 0.9 * 0.95, abs=0.015)
    together = (missing[0] & missing[1])[:15_000].mean()
    assert together == pytest.approx(0.05 + 0.95 * 0.01, abs=0.01), "single failures are independent, drops common"
    assert missing[2][15_000:].all()
    other = replace(faults, seed=2).missing(0, ALL)
    assert (other != missing[0]).mean() > 0.1
    assert Faults(hot=Hot()).missing(0, ALL) is None


def test_bad_pixels_and_corrupted_frames() -> None:
    scene = {"counter": {}}
    grid = {"columns": 2, "rows": 2, "width": 20, "height": 10}
    clean = remu(scene=scene, modules=grid)
    faults = Faults(hot=Hot(pixels=30), dead=Dead(pixels=50), corrupted=Corrupted(rate=0.3, module=1))
    struck = replace(clean, faults=faults)
    shown = []
    for table in (clean, struck):
        info = table.describe(NoFiles())
        detector = table.open(info, NoFiles())
        detector.prepare(AcqParams(20, None), XferParams(tuple((0, module) for module in range(4))))
        detector.start(0)
        whole = np.zeros((20, 20, 40), np.uint16)
        for module, rect in enumerate(info.modules):
            whole[:, *rect.within(info.image)] = detector.get_frames(0, module, range(20))
        shown.append(whole)
    bad = faults.corrupts(1, np.arange(20))
    assert bad is not None
    assert 0 < bad.sum() < 20
    right, wrong = shown
    assert (right[bad, :10, 20:] != wrong[bad, :10, 20:]).mean() > 0.9
    right, wrong = right[~bad], wrong[~bad]
    differ = (right != wrong).any(axis=0)
    hot = (wrong == 65535).all(axis=0)
    dead = (wrong == 0).all(axis=0)
    assert (hot | dead)[differ].all()
    assert 20 <= hot.sum() <= 30, "a pixel may be drawn for both"
    assert dead.sum() == 50


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("failed", Failed()),
        ("failed:rate=0.5,module=2", Failed(rate=0.5, module=2)),
        ("late: by = 20 ms", Late(by=0.02)),
        ("died:frame=7", Died(frame=7)),
    ],
)
def test_faults_of_the_command_line(text: str, fault: Any) -> None:
    assert parse_fault(text) == fault
    assert getattr(Faults().plus(parse_fault(text)), fault.kind) == fault


@pytest.mark.parametrize(
    ("text", "rule", "help"),
    [
        ("droped", "unknown-fault", "did you mean `dropped`?"),
        ("failed:rte=1", "unknown-key", "did you mean `rate`?"),
        ("failed:rate", "fault-syntax", "write `failed:key=value,key=value`"),
        ("failed:rate=2", "out-of-range", None),
        ("late", "missing-key", None),
        ("late:by=20 parsec", "bad-quantity", None),
    ],
)
def test_mistyped_faults(text: str, rule: str, help: str | None) -> None:
    with pytest.raises(NodeMisuse) as caught:
        parse_fault(text)
    assert caught.value.rule == rule
    assert help in (None, caught.value.help)


def test_photons_are_counted_above_thresholds() -> None:
    lines = [{"energy": "8 keV", "share": 1}, {"energy": "12.4 keV", "share": 3}]
    table = remu(
        image={"width": 200, "height": 100},
        datasets={
            "all": {"dtype": "uint16"},
            "hard": {"dtype": "uint16", "threshold": "10 keV"},
            "half": {"dtype": "uint16", "threshold": "12.4 keV"},
        },
        scene={"poisson": {"mean": 20, "lines": lines, "resolution": "300 eV"}},
    )
    info = table.describe(NoFiles())
    detector = table.open(info, NoFiles())
    detector.prepare(AcqParams(8, None), XferParams(((0, 0), (1, 0), (2, 0))))
    detector.start(0)
    counts = [detector.get_frames(dataset, 0, range(8)).astype(float) for dataset in range(3)]
    for frames, mean in zip(counts, (20, 15, 7.5), strict=True):
        assert frames.mean() == pytest.approx(mean, rel=0.01)
        assert frames.var() == pytest.approx(mean, rel=0.03)
    assert (counts[0] >= counts[1]).all(), "a photon above the higher threshold is above the lower one"
    assert (counts[1] >= counts[2]).all()


def test_incomplete_frames_are_left_out_and_counted(tmp_path: Path) -> None:
    ran = run((EXAMPLES / "faults.yaml").read_text(), tmp_path, "inline")
    assert ran.code == 0, ran.output
    faults = Faults(seed=7, dropped=Dropped(rate=0.02), failed=Failed(rate=0.02), died=Died(module=3, frame=180))
    parts = [faults.missing(module, np.arange(200)) for module in range(4)]
    lost = np.any([part for part in parts if part is not None], axis=0)
    flow = ran.summary["flows"]["frames"]
    named = np.zeros(200, bool)
    for first, last, step in flow["missing_frames"]:
        named[first : last + 1 : step] = True
    np.testing.assert_array_equal(named, lost)
    assert (flow["received"], flow["missing"], flow["lost"]) == (200 - lost.sum(), lost.sum(), 0)
    assert ran.summary["channels"]["save"]["saved"] == 200 - lost.sum()
    _, _, status = ran.saved("save")
    np.testing.assert_array_equal(status == 3, lost[: len(status)])


def test_a_module_that_fails_does_not_hold_up_receivers_that_have_its_parts(tmp_path: Path) -> None:
    text = """
lima2: 1
detector:
  remu:
    image: {width: 80, height: 60}
    datasets: {data: {dtype: uint16}}
    modules: {columns: 2, rows: 2, width: 40, height: 30}
    scene: {counter: {}}
    faults: {failed: {rate: 0.05}}
acquisition: {frames: 100}
receivers: 2
flows: {f: {dataset: data, dispatch: modules, rules: {blocks_per_group: 4}}}
nodes:
  whole: {input: f, reconstruction: {strategy: gather}}
  save: {input: whole, io_hdf5: {}}
"""
    ran = run(text, tmp_path, "inline")
    parts = [Faults(failed=Failed(rate=0.05)).missing(module, np.arange(100)) for module in range(4)]
    lost = np.any([part for part in parts if part is not None], axis=0)
    frames, numbers, status = ran.saved("save")
    np.testing.assert_array_equal(status == 0, ~lost[: len(status)])
    y, x = np.mgrid[:60, :80]
    for row in np.flatnonzero(status == 0):
        np.testing.assert_array_equal(frames[row], (7919 * row + y * 80 + x) % 65536)
        assert numbers[row] == row


def test_frames_of_a_detector_that_operates_on_them(tmp_path: Path) -> None:
    text = """
lima2: 1
metadata: {beam_center: {x: 20, y: 10}}
detector:
  remu:
    image: {width: 40, height: 22}
    pixel_size: {x: 50 um, y: 50 um}
    datasets: {a: {dtype: uint16, bits: 12}}
    modules: {columns: 2, rows: 2, width: 14, height: 9, gap: {x: 3, y: 1}}
    scene: {counter: {}}
acquisition: {frames: 10, accumulate: 2, binning: {x: 2, y: 1}, flip: horizontal}
flows: {f: {dataset: a, source: {x: 1, y: 0, width: 12, height: 5}}}
nodes: {save: {input: f, io_hdf5: {}}}
"""
    import h5py

    ran = run(text, tmp_path, "inline")
    frames, _, _ = ran.saved("save")
    assert frames.dtype == np.uint16
    y, x = np.mgrid[:22, :40]
    covered = np.zeros((22, 40), bool)
    for top, left in ((0, 0), (0, 17), (10, 0), (10, 17)):
        covered[top : top + 9, left : left + 14] = True
    for number, frame in enumerate(frames):
        summed = sum((7919 * exposure + y * 40 + x) % 4096 for exposure in (2 * number, 2 * number + 1))
        bins = np.where(covered.reshape(22, 20, 2).all(axis=2), summed.reshape(22, 20, 2).sum(axis=2), 0)
        np.testing.assert_array_equal(frame, bins[:, ::-1][:5, 1:13])
    with h5py.File(ran.directory / ran.summary["file"]) as file:
        detector = file["entry_0000/save/detector"]
        did = detector["image_operation"]
        assert (did["origin/x"][()], did["origin/y"][()]) == (14, 0)
        assert (did["binning/x"][()], did["flip"][()]) == (2, b"horizontal")
        assert (detector["x_pixel_size"][()], detector["y_pixel_size"][()]) == pytest.approx((100e-6, 50e-6))
        assert detector["beam_center_x"][()] == pytest.approx(12 - 1 - ((20 - 14 + 0.5) / 2 - 0.5))
        assert detector["beam_center_y"][()] == 10


@pytest.mark.parametrize("example", ["smartpix", "poisson"])
def test_examples(example: str, tmp_path: Path) -> None:
    ran = run((EXAMPLES / f"{example}.yaml").read_text(), tmp_path, "inline")
    assert ran.code == 0, ran.output
    channel = ran.summary["channels"]["save"]
    assert channel["saved"] == channel["expected"] > 0
    frames, _, _ = ran.saved("save")
    assert frames.any()
