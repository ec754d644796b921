"""Parameters that are changed while a run goes on: from a frame that is named, on all receivers, and in the files."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import lima2cli as l2
from lima2cli.geometry import Rect
from tests.running import TRANSPORTS, counter, lima2

PIPELINE = """
lima2: 1
name: c
detector: {remu: {image: {width: 64, height: 48}, datasets: {raw: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 0, period: 2 ms}
receivers: 2
flows: {data: {dataset: raw, rules: {blocks_per_group: 4}}}
nodes:
  clean: {input: data, background_sub: {image: 3}}
  roi: {input: clean, roi_counters: {rois: {a: {rect: {x: 0, y: 0, width: 8, height: 6}}}}}
  alone: {input: data, roi_counters: {rois: {a: {rect: {x: 0, y: 0, width: 8, height: 6}}}}}
  scaled: {input: data, expression: {expr: "data * 2"}}
  bright: {input: data, sparsify: {above: 40000}}
  save: {input: scaled, io_hdf5: {}}
  peaks: {input: bright, io_hdf5: {}}
  mean: {input: data, accumulate: {frames: 2}}
  sums: {input: mean, roi_counters: {rois: {a: {rect: {x: 0, y: 0, width: 8, height: 6}}}}}
"""


def raw(frames: int) -> Any:
    return counter(np.arange(frames, dtype=np.uint64), Rect(0, 0, 64, 48), 64).astype(np.int64)


@pytest.fixture(scope="module", params=TRANSPORTS)
def changed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that has ended in which everything was changed, and the frames from which that applied."""
    folder = tmp_path_factory.mktemp("changed")
    np.save(folder / "dark.npy", np.full((48, 64), 7, np.uint16))
    (folder / "c.yaml").write_text(PIPELINE.replace("name: c", f"name: c\noutput: {{directory: '{folder}/c'}}"))
    frames = {}
    with l2.run(folder / "c.yaml", transport=request.param) as run:
        for node, parameter, value in (
            ("clean", "image", "dark.npy"),
            ("roi", "rois", {"a": {"rect": {"x": 20, "y": 10, "width": 4, "height": 4}}}),
            ("alone", "rois", {"a": {"rect": {"x": 30, "y": 10, "width": 4, "height": 4}}}),
            ("scaled", "expr", "data * 3"),
            ("bright", "above", 60000),
            ("sums", "rois", {"a": {"rect": {"x": 1, "y": 1, "width": 2, "height": 2}}}),
        ):
            progress = run.progress
            before = next(progress)["flows"]["data"]["received"]
            next(event for event in progress if event["flows"]["data"]["received"] > before + 40)
            frames[node] = run.set(node, parameter, value)
        progress = run.progress
        last = max(frames.values())
        next(event for event in progress if event["flows"]["data"]["received"] > last + 40)
    return run, frames


def test_each_frame_is_of_one_value(changed: Any) -> None:
    run, frames = changed
    assert all(frame > 20 for frame in frames.values())
    counters = {node: run.counters[node] for node in ("roi", "alone", "sums")}
    numbers = counters["roi"]["frame_number"]
    assert numbers.tolist() == list(range(len(numbers)))
    image, number = raw(len(numbers)), np.arange(len(numbers))
    dark = np.where(number < frames["clean"], 3, 7)
    old, new = image[:, :6, :8].sum(axis=(1, 2)) - 48 * dark, image[:, 10:14, 20:24].sum(axis=(1, 2)) - 16 * dark
    assert np.array_equal(counters["roi"]["a_sum"], np.where(number < frames["roi"], old, new))
    old, new = image[:, :6, :8].sum(axis=(1, 2)), image[:, 10:14, 30:34].sum(axis=(1, 2))
    assert np.array_equal(counters["alone"]["a_sum"], np.where(number < frames["alone"], old, new))
    assert len(numbers) > max(frames.values()) + 40
    windows = counters["sums"]["frame_number"].astype(int)
    pairs = image[windows] + image[windows + 1]
    old, new = pairs[:, :6, :8].sum(axis=(1, 2)), pairs[:, 1:3, 1:3].sum(axis=(1, 2))
    assert np.array_equal(counters["sums"]["a_sum"], np.where(windows < frames["sums"], old, new))


def test_frames_that_are_saved_are_too(changed: Any) -> None:
    run, frames = changed
    data = run.open("save")
    with data.file:
        saved = data[()]
    factor = np.where(np.arange(len(saved)) < frames["scaled"], 2, 3)
    assert np.array_equal(saved, raw(len(saved)) * factor[:, None, None])
    with h5py.File(run.directory / "c_peaks_master.h5") as file:
        sparse = file["entry_0000/instrument/remu/data"]
        pointers, values = sparse["frame_ptr"][()].astype(int), sparse["intensity"][()]
    lowest = [values[a:b].min(initial=65535) for a, b in pairwise(pointers)]
    level = np.where(np.arange(len(lowest)) < frames["bright"], 40000, 60000)
    expected = [int((raw_one > above).sum()) for raw_one, above in zip(raw(len(lowest)), level, strict=True)]
    assert np.diff(pointers).tolist() == expected
    assert (np.array(lowest) > level).all()


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_where_the_source_does_not_wait(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is checked as a whole before it is cut: each frame is saved once, with one value."""
    monkeypatch.chdir(tmp_path)
    text = PIPELINE.replace("dataset: raw,", f"dataset: raw, overrun: {policy}, buffers: {{frames: 512}},")
    with l2.run(text, transport="inline") as run:
        progress = run.progress
        next(event for event in progress if event["flows"]["data"]["received"] > 40)
        frame = run.set("scaled", "expr", "data * 3")
        next(event for event in progress if event["flows"]["data"]["received"] > frame + 40)
    data = run.open("save")
    with data.file:
        numbers, saved = data.parent["frame_number"][()].astype(int), data[()]
    assert len(set(numbers.tolist())) == len(numbers) > frame
    factor = np.where(numbers < frame, 2, 3)
    assert np.array_equal(saved, raw(len(numbers))[numbers] * factor[:, None, None])


def test_files_and_events_say_so(changed: Any) -> None:
    run, frames = changed
    told = [event for event in run.events if event.get("event") == "changed"]
    assert [(event["node"], event["frame"]) for event in told] == list(frames.items())
    noted = json.loads((run.directory / "changes.json").read_text())["changes"]
    assert [(one["node"], one["frame"]) for one in noted] == list(frames.items())
    with h5py.File(run.directory / "c_save_master.h5") as file:
        found = []
        file.visititems(lambda name, item: found.append(name) if "/changes" in f"/{name}" else None)
    assert found
    checked = lima2("inspect", str(run.directory), "--verify", cwd=run.directory)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("node", "parameter", "value", "why"),
    [
        ("nothing", "image", 3, "there is no node 'nothing'"),
        ("clean", "dtype", "keep", "dtype can't be changed while the run goes on, image can"),
        ("save", "compression", "none", "none of its parameters can"),
        ("clean", "image", "nothing.npy", "nothing.npy"),
        ("clean", "image", [1], "got"),
        ("roi", "rois", {"b": {"rect": {"x": 0, "y": 0, "width": 1, "height": 1}}}, "would not be the same"),
        ("roi", "rois", {"a": {"rect": {"x": 99, "y": 0, "width": 1, "height": 1}}}, "leaves the frames"),
        ("scaled", "expr", "data +", "formula"),
        ("bright", "above", "much", "there is no file much"),
    ],
)
def test_refused(node: str, parameter: str, value: Any, why: str, going: l2.Run) -> None:
    """Nothing is changed, and the run goes on."""
    with pytest.raises(l2.StateError, match=why):
        going.set(node, parameter, value)
    before = going.status()["saved"].get("alone", 0)
    progress = going.progress
    assert next(event for event in progress if event["saved"].get("alone", 0) > before)


@pytest.fixture(scope="module")
def going(tmp_path_factory: pytest.TempPathFactory) -> Iterator[l2.Run]:
    """A run that goes on."""
    folder = tmp_path_factory.mktemp("going")
    (folder / "c.yaml").write_text(PIPELINE.replace("name: c", f"name: c\noutput: {{directory: '{folder}/c'}}"))
    with l2.run(folder / "c.yaml", transport="inline") as run:
        yield run


def test_from_the_command_line(going: l2.Run, tmp_path: Path) -> None:
    done = lima2("set", "bright", "above", "50000", "--run", str(going.directory), cwd=tmp_path)
    assert (done.returncode, "bright: above is changed from frame " in done.stdout) == (0, True), done.stderr
    done = lima2("set", "bright", "below", "1", "--run", str(going.directory), cwd=tmp_path)
    assert (done.returncode, "below can't be changed" in done.stderr) == (1, True)
    done = lima2("set", "bright", "above", "{", "--run", str(going.directory), cwd=tmp_path)
    assert done.returncode == 2


def test_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change while a run is armed applies from its first frame on."""
    monkeypatch.chdir(tmp_path)
    text = PIPELINE.replace("frames: 0", "frames: 40")
    with l2.run(text, armed=True, transport="inline") as run:
        assert run.set("scaled", "expr", "data + 1") == 0
        run.start()
        run.wait(60)
    data = run.open("save")
    with data.file:
        assert np.array_equal(data[()], raw(40) + 1)
