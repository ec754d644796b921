"""Frames that users look at: they are those of the run, and looking changes nothing."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import lima2cli as l2
from lima2cli.drive.contents import LiveFrame
from lima2cli.geometry import Rect
from lima2cli.runs.control_socket import where
from tests.running import TRANSPORTS, counter, lima2

PIPELINE = """
lima2: 1
name: k
detector:
  remu:
    image: {width: 64, height: 48}
    modules: {columns: 2, rows: 1, width: 30, height: 48, gap: {x: 4, y: 0}}
    datasets: {raw: {dtype: uint16}, other: {dtype: uint16}}
    scene: {counter: {}}
acquisition: {frames: 0, period: 1 ms}
receivers: 2
flows:
  data: {dataset: raw}
  pieces: {dataset: other, dispatch: modules}
nodes:
  less: {input: data, expression: {expr: "data - 2"}}
  half: {input: less, expression: {expr: "less / 2"}}
  cut: {input: data, roi_flip_rot: {roi: {x: 2, y: 4, width: 20, height: 10}, rotation: 90}}
  roi: {input: half, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 10, height: 10}}}}}
  bright: {input: data, sparsify: {above: 100}}
  few: {input: data, filter: {keep: "roi.all_sum >= 0"}}
  save: {input: few, io_hdf5: {}}
  keep: {input: cut, io_hdf5: {}}
  sparse: {input: bright, io_hdf5: {}}
  unread: {input: data, expression: {expr: "data + 1"}}
  counts: {input: pieces, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 10, height: 10}}}}}
"""


@pytest.fixture(scope="module", params=TRANSPORTS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[l2.Run]:
    """A run without end."""
    folder = tmp_path_factory.mktemp("tapped")
    (folder / "k.yaml").write_text(PIPELINE.replace("name: k", f"name: k\noutput: {{directory: '{folder}/k'}}"))
    with l2.run(folder / "k.yaml", transport=request.param) as run:
        yield run


def raw(number: int) -> NDArray[np.uint16]:
    """The detector's image, with its gap."""
    frame: NDArray[np.uint16] = counter(np.array([number], np.uint64), Rect(0, 0, 64, 48), 64)[0]
    frame[:, 30:34] = 0
    return frame


def masked(number: int) -> NDArray[np.float32]:
    """The same in floats: a gap is no number there."""
    frame = raw(number).astype(np.float32)
    frame[:, 30:34] = np.nan
    return frame


EXPECTED = {
    "data": raw,
    "less": lambda number: masked(number) - 2,
    "half": lambda number: (masked(number) - 2) / 2,
    "cut": lambda number: np.rot90(raw(number)[4:14, 2:22], -1),
    "bright": lambda number: np.where(raw(number) > 100, raw(number), 0),
    "few": raw,
    "save": raw,
    "sparse": lambda number: np.where(raw(number) > 100, raw(number), 0),
}
"""Frames by flow and node: of nodes that are fused, sparse, behind a filter, and of those that save."""


@pytest.mark.parametrize("node", EXPECTED)
def test_frames_are_those_of_the_scene(node: str, run: l2.Run) -> None:
    seen: list[LiveFrame] = []
    for frame in run.tap(node, count=400):
        seen.append(frame)
        if len(seen) >= 4 and len({frame.receiver for frame in seen}) == 2:
            break
    numbers = [frame.number for frame in seen]
    assert numbers == sorted(set(numbers))
    assert {frame.receiver for frame in seen} == {
        "receiver0",
        "receiver1",
    }  # all are asked
    for frame in seen:
        shown = EXPECTED[node](frame.number)
        np.testing.assert_array_equal(frame.pixels, shown)
        assert frame.pixels.shape == shown.shape
        assert (None if frame.mask is None else frame.mask.sum()) == (None if node == "cut" else 4 * 48)


def test_what_can_be_looked_at_is_told(run: l2.Run) -> None:
    visible = run.status(detail=True)["visible"]
    assert visible["cut"] | {"shape": [20, 10], "dtype": "uint16"} == visible["cut"]
    assert visible["bright"] | {"shape": [48, 64], "dtype": "uint16"} == visible["bright"]
    assert set(visible) == {*EXPECTED, "keep"}


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"node": "nothing"}, "there is no flow or node 'nothing'; these have frames: data, "),
        ({"node": "roi"}, "roi has no frames that are computed"),
        ({"node": "unread"}, "unread has no frames that are computed"),
        ({"node": "pieces"}, "no receiver has whole frames of pieces"),
        ({}, "there is no flow or node None"),
        ({"node": ["data"]}, "there is no flow or node"),
        ({"node": "data", "period": -1}, "a period is a number of seconds from 0"),
        ({"node": "data", "period": "1"}, "a period is a number of seconds from 0"),
        ({"node": "data", "period": True}, "a period is a number of seconds from 0"),
    ],
)
def test_refused(request_: dict[str, Any], why: str, run: l2.Run) -> None:
    place = where(run.directory)
    assert place is not None
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(10)
        caller.connect(f"\0{place['socket']}")
        caller.sendall(json.dumps({"do": "tap"} | request_).encode() + b"\n")
        with caller.makefile("rb") as file:
            answer = json.loads(file.readline())
            assert file.read() == b""
    assert answer["ok"] is False
    assert answer["message"].startswith(why)


def test_the_run_waits_for_nobody(run: l2.Run) -> None:
    """One who asks and never reads, one who goes away, and many more than are served."""
    place = where(run.directory)
    assert place is not None
    deaf = []
    for _ in range(70):
        caller = socket.socket(socket.AF_UNIX)
        caller.settimeout(10)
        caller.connect(f"\0{place['socket']}")
        caller.sendall(b'{"do": "tap", "node": "data"}\n')
        deaf.append(caller)
    deaf.pop(0).close()
    before = run.status()["saved"].get("save", 0)
    last = deaf[-1].makefile("rb")
    assert json.loads(last.readline()) == {"ok": False, "message": "64 look at frames of this run already"}
    for caller in deaf:
        caller.close()
    assert next(iter(run.tap("data", count=1))).pixels.shape == (48, 64)
    progress = run.progress
    assert next(event for event in progress if event["saved"].get("save", 0) > before)


def test_every_so_often(run: l2.Run) -> None:
    times = [time.monotonic() for _ in run.tap("data", every=0.1, count=6)]
    assert times[-1] - times[0] > 0.3  # sent in half a second, though frames come a millisecond apart


def test_from_the_command_line(run: l2.Run, tmp_path: Path) -> None:
    place = str(run.directory)
    (figures,) = lima2("tap", place, "less", "--as", "json", cwd=tmp_path).stdout.splitlines()
    frame = json.loads(figures)
    shown = EXPECTED["less"](frame["frame_number"])
    assert [frame["min"], frame["max"], frame["masked"]] == [np.nanmin(shown), np.nanmax(shown), 4 * 48]
    assert frame["sum"] == np.nansum(shown, dtype="f8")
    lines = lima2("tap", place, "data", "-n", "3", "--every", "20ms", cwd=tmp_path).stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("frame_number ") and "  masked 192" in line for line in lines)
    rows = lima2("tap", place, "roi", "--as", "json", "-n", "2", cwd=tmp_path).stdout.splitlines()
    for row in map(json.loads, rows):
        assert row["all_sum"] == EXPECTED["half"](row["frame_number"])[:10, :10].sum()
    for form in ("png", "npy", "h5"):
        done = lima2("tap", place, "data", "--as", form, "-o", "out", cwd=tmp_path)
        assert (done.returncode, "cannot write out/data_" in done.stderr) == (12, True)
    (tmp_path / "out").mkdir()
    for form in ("png", "npy", "h5"):
        (name,) = lima2("tap", place, "data", "--as", form, "-o", "out", cwd=tmp_path).stdout.split()
        _check_file(tmp_path / name)
    refused = lima2("tap", place, "nothing", cwd=tmp_path)
    assert (refused.returncode, "there is no flow or node 'nothing'" in refused.stderr) == (1, True)
    assert lima2("tap", place, "roi", "--as", "png", cwd=tmp_path).returncode == 2
    assert lima2("tap", place, "data", "--every", "soon", cwd=tmp_path).returncode == 2


def _check_file(path: Path) -> None:
    shown = raw(int(path.stem.removeprefix("data_")))
    if path.suffix == ".npy":
        np.testing.assert_array_equal(np.load(path), shown)
    elif path.suffix == ".h5":
        import silx.io

        with silx.io.open(str(path)) as file:
            np.testing.assert_array_equal(file["entry/data/data"][()], shown)
            assert file["entry/data"].attrs["signal"] == "data"
            assert (file["entry/data/pixel_mask"][:, 30:34] == 1).all()
    else:
        picture = np.asarray(Image.open(path))
        assert picture.shape == (48, 64, 3)
        assert (picture[:, 30:34] == (160, 40, 40)).all()
        grey = picture[:, 34:, 0].astype(int)
        assert np.array_equal(np.argsort(grey[0], kind="stable"), np.argsort(shown[0, 34:], kind="stable"))


def test_after_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last frame that is saved; what was not saved is gone. No file is written over another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "k.yaml").write_text(PIPELINE.replace("frames: 0", "frames: 20"))
    run = l2.run("k.yaml", transport="inline")
    run.wait(60)
    assert [frame.number for frame in [run.last("save")]] == [19]
    (name,) = lima2("tap", "keep", "--as", "npy", cwd=tmp_path).stdout.split()
    assert name == "keep_000019.npy"
    np.testing.assert_array_equal(np.load(name), EXPECTED["cut"](19))
    again = lima2("tap", "keep", "--as", "npy", cwd=tmp_path)
    assert (again.returncode, "keep_000019.npy exists, and is not overwritten" in again.stderr) == (12, True)
    gone = lima2("tap", "half", cwd=tmp_path)
    assert (gone.returncode, "the run has ended, and half is not saved" in gone.stderr) == (1, True)
    (row,) = lima2("tap", "roi", "--as", "json", cwd=tmp_path).stdout.splitlines()
    assert json.loads(row)["frame_number"] == 19
    with pytest.raises(l2.StateError):
        next(run.tap("data"))
    with h5py.File(tmp_path / "runs/k_0001/k_keep_master.h5") as file:
        assert len(file["entry_0000/measurement/data"]) == 20


TOTAL = """
lima2: 1
name: k
output: {directory: OUT}
detector:
  remu:
    image: {width: 16, height: 12}
    scene: {counter: {}}
acquisition: {frames: 0, period: 1 ms}
nodes:
  total: {input: data, accumulate: {frames: 0, operation: OPERATION}}
  save: {input: total, io_hdf5: {compression: none}}
"""


@pytest.mark.parametrize("operation", ["sum", "std"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_accumulation_can_be_looked_at_while_it_grows(tmp_path: Path, transport: str, operation: str) -> None:
    """Numbered by its last frame; what is saved in the end is the same of all frames."""

    def expected(number: int) -> NDArray[Any]:
        frames = counter(np.arange(number + 1, dtype=np.uint64), Rect(0, 0, 16, 12), 16).astype(np.int64)
        return frames.sum(axis=0) if operation == "sum" else frames.std(axis=0).astype(np.float32)

    (tmp_path / "k.yaml").write_text(TOTAL.replace("OUT", f"'{tmp_path}/k'").replace("OPERATION", operation))
    with l2.run(tmp_path / "k.yaml", transport=transport) as run:
        seen = list(run.tap("total", count=4))
        run.stop()
        frames = run.wait().frames
    numbers = [frame.number for frame in seen]
    assert numbers == sorted(set(numbers))
    for frame in seen:
        assert frame.pixels.dtype == (np.int64 if operation == "sum" else np.float32)
        np.testing.assert_allclose(frame.pixels, expected(frame.number), rtol=3e-7)
    with h5py.File(tmp_path / "k" / "k.h5") as file:
        (saved,) = file["entry_0000/save/data"][()]
    assert frames is not None
    np.testing.assert_allclose(saved, expected(frames - 1), rtol=3e-7)
