"""REMU and replay: what they say of themselves, their states and clock, and the frames that they give."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lima2cli.declare import Table
from lima2cli.declare.reading import Reading
from lima2cli.detectors import sources
from lima2cli.detectors.base import AcqParams, Detector, DetectorConfig, State, XferParams, detector_kinds
from lima2cli.detectors.lifecycle import ENDLESS
from lima2cli.detectors.sources import Recording
from lima2cli.diagnostics import POISON, Findings, Poisoned
from lima2cli.errors import FileProblem, NodeMisuse, StateError
from lima2cli.frames import DatasetInfo, StackInfo
from lima2cli.geometry import Rect
from lima2cli.inputs.stacks import FileStore
from tests.node_inputs import read

MAZE: dict[str, Any] = {
    "image": {"width": 500, "height": 500},
    "datasets": {"CTR1": {"dtype": "uint16"}, "CTR2": {"dtype": "uint16", "bits": 12}},
    "modules": {"columns": 2, "rows": 2, "width": 240, "height": 240, "gap": {"x": 20, "y": 20}},
    "channels": 10,
}
SMALL: dict[str, Any] = {
    "image": {"width": 20, "height": 10},
    "datasets": {"a": {"dtype": "uint16"}, "b": {"dtype": "int16"}},
    "scene": {"gradient": None},
}
STACK = np.arange(9 * 10 * 20, dtype=np.int32).reshape(9, 10, 20)


def config(kind: str, data: dict[str, Any]) -> DetectorConfig:
    table: DetectorConfig = read(Table(detector_kinds()[kind]), data)
    return table


@pytest.fixture
def store(tmp_path: Path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("data", data=STACK, chunks=(1, 10, 20), compression="gzip")
    with FileStore(tmp_path) as files:
        yield files


def opened(kind: str, data: dict[str, Any], store: FileStore) -> Detector:
    table = config(kind, data)
    return table.open(table.describe(store), store)


def test_remu_describes_itself(store: FileStore) -> None:
    info = config("remu", MAZE | {"pixel_size": {"x": "75 um", "y": 1e-4}, "saturation": 9}).describe(store)
    assert (info.kind, info.name, info.width, info.height, info.channels) == ("remu", "remu", 500, 500, 10)
    assert info.modules == tuple(Rect(x, y, 240, 240) for y in (0, 260) for x in (0, 260))
    assert info.datasets == (DatasetInfo("CTR1", 0, "uint16", 16), DatasetInfo("CTR2", 1, "uint16", 12))
    assert info.can_wait
    assert info.pixel_size == pytest.approx((75e-6, 1e-4))
    assert info.saturation == 9
    assert info.gap_value == 0
    assert config("remu", SMALL | {"name": "eye"}).describe(store).name == "eye"


def test_remu_defaults_to_one_module(store: FileStore) -> None:
    info = config("remu", SMALL).describe(store)
    assert info.modules == (Rect(0, 0, 20, 10),)
    assert info.channels is None
    assert config("remu", {"image": SMALL["image"], "datasets": {"a": {"dtype": "uint8"}}}).scene.kind == "rings"


def test_modules_as_a_list(store: FileStore) -> None:
    modules = [{"x": 5, "y": 0, "width": 2, "height": 2}, {"x": 0, "y": 0, "width": 5, "height": 10}]
    info = config("remu", SMALL | {"modules": modules}).describe(store)
    assert info.modules == (Rect(5, 0, 2, 2), Rect(0, 0, 5, 10))


def rect(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "width": width, "height": height}


@pytest.mark.parametrize(
    ("change", "rule", "key", "words"),
    [
        (
            {"modules": [rect(0, 0, 9, 9), rect(18, 0, 3, 9)]},
            "module-outside",
            ("modules", 1),
            "module 1 (3 x 9 at (18, 0)) lies beyond the image of 20 x 10 pixels",
        ),
        (
            {"modules": {"columns": 2, "width": 10, "height": 10, "gap": {"x": 1}}},
            "module-outside",
            ("modules",),
            "module 1 (10 x 10 at (11, 0))",
        ),
        (
            {"modules": [rect(0, 5, 9, 5), rect(12, 0, 2, 2), rect(8, 0, 2, 6)]},
            "module-overlap",
            ("modules", 2),
            "modules 0 (9 x 5 at (0, 5)) and 2 (2 x 6 at (8, 0)) overlap",
        ),
        (
            {"datasets": {"a": {"dtype": "uint8", "bits": 9}}},
            "dataset-bits",
            ("datasets", "a", "bits"),
            "9 significant bits, and uint8 holds 8",
        ),
        ({"gap_value": -1}, "gap-value", ("gap_value",), "-1 does not fit the pixels of dataset a (uint16)"),
        ({"gap_value": 40000}, "gap-value", ("gap_value",), "dataset b (int16)"),
        ({"gap_value": 0.5}, "gap-value", ("gap_value",), "0.5"),
        ({"gap_value": float("nan")}, "gap-value", ("gap_value",), "nan"),
        ({"scene": {"counter": {}}}, "scene-dtype", ("scene", "counter"), "dataset b is int16"),
        ({"scenes": {"b": {"counter": {}}}}, "scene-dtype", ("scenes", "b", "counter"), "unsigned"),
        ({"scenes": {"c": {"counter": {}}}}, "unknown-dataset", ("scenes", "c"), "there is no dataset c"),
        (
            {"scenes": {"a": {"frames": {"file": "s.h5"}}}},
            "file-dtype",
            ("scenes", "a", "frames", "file"),
            "s.h5 holds int32",
        ),
        (
            {"image": {"width": 9, "height": 9}, "scene": {"frames": {"file": "s.h5"}}},
            "file-shape",
            ("scene", "frames", "file"),
            "20 x 10 pixels",
        ),
    ],
)
def test_remu_parameters_that_contradict(store: FileStore, change: dict, rule: str, key: tuple, words: str) -> None:
    with pytest.raises(NodeMisuse) as caught:
        config("remu", SMALL | change).describe(store)
    assert (caught.value.rule, caught.value.key) == (rule, key)
    assert words in caught.value.message


def test_a_gap_value_that_no_text_can_give(store: FileStore) -> None:
    single: Any = config("remu", SMALL | {"datasets": {"a": {"dtype": "float32"}}})
    with pytest.raises(NodeMisuse, match="float32"):
        replace(single, gap_value=1e39).describe(store)


def test_unknown_dataset_gets_a_suggestion(store: FileStore) -> None:
    with pytest.raises(NodeMisuse) as caught:
        config("remu", MAZE | {"scenes": {"ctr2": {"gradient": {}}}}).describe(store)
    assert caught.value.help == "did you mean `CTR2`?"


@pytest.mark.parametrize("key", ["image", "datasets", "modules", "gap_value", "scene", "scenes"])
def test_values_known_to_be_bad_are_not_reported_again(store: FileStore, key: str) -> None:
    findings = Findings()
    poisoned = Table(detector_kinds()["remu"]).read(SMALL | {key: None}, (), Reading(findings, {(key,)}))
    assert not list(findings)
    assert getattr(poisoned, key) is POISON
    with pytest.raises(Poisoned):
        poisoned.describe(store)


def test_scenes_of_single_datasets(store: FileStore) -> None:
    scenes = {"b": {"frames": {"file": "s.h5", "loop": False}}}
    data = SMALL | {"datasets": {"a": {"dtype": "uint16"}, "b": {"dtype": "int32"}}, "scenes": scenes}
    info = config("remu", data).describe(store)
    assert [dataset.frames for dataset in info.datasets] == [None, 9]
    detector = opened("remu", data, store)
    detector.prepare(AcqParams(None, None), XferParams(((0, 0), (1, 0))))
    detector.start(time.time_ns())
    assert detector.nb_acq_frames() == 9
    np.testing.assert_array_equal(detector.get_frames(1, 0, range(3, 5)), STACK[3:5])
    assert detector.get_frames(0, 0, range(3, 5))[0, 2, 3] == 5 + 16 * 3


@pytest.mark.parametrize(("kind", "data"), [("remu", SMALL), ("replay", {"file": "s.h5"})])
def test_states(store: FileStore, kind: str, data: dict[str, Any]) -> None:
    detector = opened(kind, data, store)
    acquisition, transfer = AcqParams(5, None), XferParams(((0, 0),))

    def refused(*operations: str) -> None:
        calls = {
            "prepare": lambda: detector.prepare(acquisition, transfer),
            "start": lambda: detector.start(0),
            "stop": detector.stop,
            "get_frames": lambda: detector.get_frames(0, 0, range(1)),
            "times": lambda: detector.times(range(1)),
        }
        state = detector.status()
        for name, call in calls.items():
            if name in operations:
                with pytest.raises(StateError, match=state.value):
                    call()
                assert detector.status() is state

    assert detector.status() is State.IDLE
    refused("start", "stop", "get_frames", "times")
    assert detector.nb_acq_frames() == 0
    for _ in range(2):  # prepared again after stop
        detector.prepare(acquisition, transfer)
        assert detector.status() is State.PREPARED
        refused("prepare", "stop", "get_frames", "times")
        assert detector.nb_acq_frames() == 0
        detector.start(time.time_ns())
        assert detector.status() is State.RUNNING
        refused("prepare", "start")
        assert detector.nb_acq_frames() == 5
        detector.stop()
        assert detector.status() is State.STOPPED
        refused("start", "stop")
        assert detector.nb_acq_frames() == 5
        assert detector.get_frames(0, 0, range(1)).shape == (1, 10, 20)
    with pytest.raises(StateError, match="module 1 of dataset 0 was not prepared"):
        detector.get_frames(0, 1, range(1))
    detector.reset()
    assert detector.status() is State.IDLE
    refused("start", "stop", "get_frames", "times")
    detector.prepare(acquisition, transfer)
    detector.reset()
    assert detector.status() is State.IDLE


def test_a_detector_that_fails_is_at_fault_until_reset(store: FileStore, tmp_path: Path) -> None:
    table = config("replay", {"file": "s.h5"})
    info = table.describe(store)
    with h5py.File(tmp_path / "s.h5") as file:
        chunk = file["data"].id.get_chunk_info(0)
    with (tmp_path / "s.h5").open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    detector = table.open(info, store)
    detector.prepare(AcqParams(None, None), XferParams(((0, 0),)))
    detector.start(0)
    with pytest.raises(FileProblem, match=r"s\.h5::/data cannot be read"):
        detector.get_frames(0, 0, range(1))
    assert detector.status() is State.FAULT
    assert detector.nb_acq_frames() == 0
    for refused in (detector.stop, lambda: detector.start(0), lambda: detector.get_frames(0, 0, range(1))):
        with pytest.raises(StateError, match="fault"):
            refused()
    detector.reset()
    store.close()
    (tmp_path / "s.h5").unlink()
    with pytest.raises(FileProblem):
        detector.prepare(AcqParams(None, None), XferParams(((0, 0),)))
    assert detector.status() is State.FAULT
    detector.reset()
    assert detector.status() is State.IDLE


def test_frames_become_due_one_period_after_another(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000_000_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: now)
    detector = opened("remu", SMALL, store)
    detector.prepare(AcqParams(10, 1e-3), XferParams(((0, 0),)))
    detector.start(now)
    start, counts = now, []
    for passed in (-1, 0, 999_999, 1_000_000, 4_500_000, 8_999_999, 9_000_000, 10**12):
        now = start + passed
        counts.append(detector.nb_acq_frames())
    assert counts == [0, 1, 1, 2, 5, 9, 10, 10]
    np.testing.assert_array_equal(detector.times(range(0, 9, 4)), [start, start + 4_000_000, start + 8_000_000])
    assert detector.times(range(2)).dtype == np.uint64
    now = start + 4_500_000
    detector.stop()
    now = start + 10**12
    assert detector.nb_acq_frames() == 5
    assert len(detector.get_frames(0, 0, range(4, 5))) == 1


def test_without_a_period_all_frames_are_there(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 77)
    detector = opened("remu", SMALL, store)
    detector.prepare(AcqParams(None, None), XferParams(((0, 0),)))
    detector.start(0)
    assert detector.nb_acq_frames() == ENDLESS
    np.testing.assert_array_equal(detector.times(range(3)), [77, 77, 77])


def test_replay_describes_its_file(store: FileStore) -> None:
    info = config("replay", {"file": "s.h5::/data", "gap_value": -1}).describe(store)
    assert (info.kind, info.width, info.height, info.gap_value) == ("replay", 20, 10, -1)
    assert info.datasets == (DatasetInfo("data", 0, "int32", 32, 9),)
    assert info.can_wait
    assert config("replay", {"file": "s.h5", "loop": True}).describe(store).datasets[0].frames is None
    with pytest.raises(NodeMisuse) as caught:
        config("replay", {"file": "s.h5", "gap_value": 2**31}).describe(store)
    assert (caught.value.rule, caught.value.key) == ("gap-value", ("gap_value",))
    with pytest.raises(NodeMisuse) as caught:
        config("replay", {"file": "s.h5", "modules": [rect(0, 0, 21, 1)]}).describe(store)
    assert (caught.value.rule, caught.value.key) == ("module-outside", ("modules", 0))
    with pytest.raises(FileProblem):
        config("replay", {"file": "t.h5"}).describe(store)


def test_replay_has_the_recorded_frames(store: FileStore) -> None:
    detector = opened("replay", {"file": "s.h5"}, store)
    for asked, there in ((None, 9), (4, 4), (20, 9)):
        detector.prepare(AcqParams(asked, None), XferParams(((0, 0),)))
        detector.start(0)
        assert detector.nb_acq_frames() == there
        detector.stop()
    with pytest.raises(StateError, match="frame 9 was asked for, and 9 are recorded"):
        detector.get_frames(0, 0, range(9, 10))
    assert detector.status() is State.STOPPED


def test_replay_loops(store: FileStore) -> None:
    detector = opened("replay", {"file": "s.h5", "loop": True}, store)
    detector.prepare(AcqParams(None, None), XferParams(((0, 0),)))
    detector.start(0)
    assert detector.nb_acq_frames() == ENDLESS
    np.testing.assert_array_equal(detector.get_frames(0, 0, range(16, 20)), STACK[7:])
    np.testing.assert_array_equal(detector.get_frames(0, 0, range(18, 20)), STACK[:2])


class CountingReader:
    """A reader that notes which frames were read."""

    info = StackInfo(STACK.shape, "int32")

    def __init__(self) -> None:
        self.read_numbers: list[int] = []

    def read(self, numbers: range) -> np.ndarray:
        self.read_numbers += numbers
        return STACK[list(numbers)]

    def missing(self, numbers: range) -> None:
        return None

    def unread(self) -> tuple[str, ...]:
        return ()


@pytest.mark.parametrize("ahead", [1, 2, 3, 9])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_modules_share_what_was_read(monkeypatch: pytest.MonkeyPatch, ahead: int, blocks: int) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", ahead * STACK[0].nbytes)
    monkeypatch.setattr(sources, "RECORDING_BYTES", 0)
    reader = CountingReader()
    recording = Recording(reader, "int32")
    for first in range(0, 9, blocks):
        for _ in range(10):  # modules
            number, end = first, min(9, first + blocks)
            while number < end:
                frames = recording.get(range(number, end))
                np.testing.assert_array_equal(frames, STACK[number : number + len(frames)])
                number += len(frames)
    assert reader.read_numbers == list(range(9))


def test_flows_of_unlike_steps_share_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 2 * STACK[0].nbytes)
    monkeypatch.setattr(sources, "RECORDING_BYTES", 5 * STACK[0].nbytes)
    monkeypatch.setattr(sources, "GROUP_BYTES", 0)
    recording = Recording(CountingReader(), "int32")
    held = recording.get(range(1))
    for number in range(9):
        for numbers in (
            range(number, 9),
            range(number, 9, 2),
            range(number, 9, 3),
            [number],
            range(number, number + 1),
        ):
            frames = recording.get(numbers)
            assert 1 <= len(frames) <= len(numbers)
            np.testing.assert_array_equal(frames, STACK[list(numbers[: len(frames)])])
            assert sum(kept.nbytes for _, kept in recording._blocks) <= 5 * STACK[0].nbytes
    np.testing.assert_array_equal(held, STACK[:1])


def test_replay_gives_the_pixels_of_the_file(data_dir: Path) -> None:
    file = "pilatus3_1m_crop_thaumatin_stack.h5"
    modules = {"columns": 2, "rows": 5, "width": 487, "height": 195, "gap": {"x": 7, "y": 17}}
    with h5py.File(data_dir / file) as source:
        recorded = source["entry/data/data"][()]
    with FileStore(data_dir) as store:
        table = config("replay", {"file": file, "modules": modules, "gap_value": -1})
        info = table.describe(store)
        assert len(info.modules) == 10
        assert info.datasets[0].frames == 19
        shown = np.full_like(recorded, -1)
        for ranks in (range(0, 4), range(4, 10)):
            detector = table.open(info, store)
            detector.prepare(AcqParams(None, None), XferParams(tuple((0, module) for module in ranks)))
            detector.start(time.time_ns())
            number = 0
            while number < detector.nb_acq_frames():
                for module in ranks:
                    frames = detector.get_frames(0, module, range(number, 19))
                    assert frames.base is not None  # a view of full frames
                    assert frames.strides[2] == 4
                    shown[number : number + len(frames), *info.modules[module].within(info.image)] = frames
                number += len(frames)
            detector.reset()
    np.testing.assert_array_equal(shown, recorded)
