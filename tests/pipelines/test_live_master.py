"""Masters of runs that go on: each row that readers see is final, and in its place; the end makes the final master."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
import silx.io
from numpy.typing import NDArray

import lima2cli as l2
from lima2cli.files import live_master
from lima2cli.files.live_master import LiveMaster, discard_live, grows, is_final
from lima2cli.geometry import Rect
from tests.pipelines.test_run_parts import HEAD, IMAGE, whole
from tests.running import TRANSPORTS, counter, lima2

WIDTH, HEIGHT = 16, 12
IMAGE16 = Rect(0, 0, WIDTH, HEIGHT)
TWO = """
lima2: 1
name: k
detector: {remu: {image: {width: 16, height: 12}, datasets: {raw: {dtype: uint16}}, scene: {counter: {}}FAULTS}}
receivers: {a: {memspaces: {m: {host: {size: 1 MiB}}}}, b: {memspaces: {m: {host: {size: 1 MiB}}}}}
flows: {data: {dataset: raw, buffers: {size: 16 KiB, at: [a.m, b.m]}, rules: {blocks_per_group: 2}}}
acquisition: {frames: 1000, period: 1 msMORE}
nodes: {save: {io_hdf5: {}, input: data}}
"""
PLAIN = TWO.replace("FAULTS", "")
MASTER = "k_save_master.h5"


@contextmanager
def seen(path: Path) -> Iterator[tuple[Any, NDArray[np.uint64], NDArray[np.uint8]]]:
    """Frames, numbers and statuses of a master, as a reader of growing files opens it."""
    with h5py.File(path, swmr=True) as file:
        detector = file["entry_0000/" + file["entry_0000"].attrs["default"]].parent
        yield detector["data"], detector["frame_number"][()], detector["frame_status"][()]


def check(path: Path, *, gap: int = 0) -> tuple[int, int]:
    """Hold all rows of a master against the scene; return how many there are, and how many of them are saved."""
    with seen(path) as (data, numbers, status):
        assert len(data) == len(numbers) == len(status)
        assert np.array_equal(numbers, np.arange(len(numbers)))
        saved = status == 0
        expected = counter(numbers, IMAGE16, WIDTH)
        expected[~saved] = gap
        if len(data):
            assert np.array_equal(data[()], expected)
        return len(numbers), int(saved.sum())


def start(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, transport: str = "inline", **more: Any) -> l2.Run:
    monkeypatch.chdir(folder)
    (folder / "k.yaml").write_text(text.replace("MORE", ""))
    return l2.run("k.yaml", transport=transport, **more)


def _files(run: l2.Run) -> dict[str, Any]:
    """Return what the run told of its files when it was ready; events may have come since."""
    files: dict[str, Any] = next(event["files"] for event in run.events if "files" in event)
    return files


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_it_grows_and_is_replaced(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment that the run is ready on; h5py and silx see rows that are final, and no others."""
    with start(PLAIN.replace("1000", "0"), tmp_path, monkeypatch, transport, armed=True) as run:
        path = run.directory / MASTER
        assert _files(run)["save"]["live"] is True
        assert check(path) == (0, 0)
        with pytest.raises(OSError, match="already open for write"):
            h5py.File(path)
        run.start()
        lengths = set()
        for _ in run.progress:
            rows, saved = check(path)
            if not is_final(path):
                assert saved == rows
                with silx.io.open(str(path)) as file:
                    shown = file["entry_0000/measurement/data"]
                    assert len(shown) >= rows
                    frame = shown[len(shown) - 1] if len(shown) else None
                assert frame is None or np.array_equal(frame, counter(np.array([len(shown) - 1]), IMAGE16, WIDTH)[0])
                lengths.add(rows)
            if len(lengths) == 4:
                run.stop()
        summary = run.wait(60)
    assert len(lengths) >= 4
    assert check(path) == (summary.frames, summary.frames)
    assert summary.frames >= max(lengths)
    assert is_final(path)
    with h5py.File(path) as file:
        assert file["entry_0000/channel"].attrs["role"] == "master"
    assert sorted(each.name for each in run.directory.glob("k_save*")) == [
        "k_save_0_00000.h5", "k_save_1_00000.h5", MASTER,
    ]  # fmt: skip


def test_it_is_there_when_the_frames_of_a_trigger_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PLAIN.replace("frames: 1000, period: 1 ms", "frames: 20, trigger: software, frames_per_trigger: 4")
    run = start(text, tmp_path, monkeypatch)
    progress = run.progress
    for point in range(5):
        run.trigger()
        next(event for event in progress if event["rows"]["save"] == 4 * point + 4)
        assert check(run.directory / MASTER) == (4 * point + 4, 4 * point + 4)
        data = run.open("save")
        with data.file:
            assert len(data) == 4 * point + 4
    assert run.wait(60).state == "complete"


def test_a_row_that_is_lost_is_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is all that comes after it."""
    text = TWO.replace("FAULTS", ", faults: {seed: 1, dropped: {rate: 0.1}}").replace("MORE", ", allow_lost: 50 %")
    run = start(text, tmp_path, monkeypatch)
    path = run.directory / MASTER
    looks = [check(path) for _ in run.progress if not is_final(path)]
    summary = run.wait(60)
    rows, saved = looks[-1]
    assert 0.8 * rows < saved < rows
    assert check(run.directory / MASTER) == (1000, summary.channels["save"].saved)


@pytest.mark.parametrize("files", ["frames_per_file: 6", "frames_per_file: 4, compression: none"])
def test_of_many_files(files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PLAIN.replace("io_hdf5: {}", f"io_hdf5: {{{files}}}").replace("1000, period: 1 ms", "30000, period: 10 ms")
    run = start(text, tmp_path, monkeypatch)
    looks = list[tuple[int, int]]()
    for _ in run.progress:
        looks.append(check(run.directory / MASTER))
        if len(set(looks)) == 3:
            run.stop()
    assert run.wait(60).state == "stopped"
    assert all(rows == saved for rows, saved in looks)


def test_of_parts_of_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"""{HEAD.replace("frames: 23", "frames: 30000, period: 5 ms")}
name: k
receivers: 3
flows: {{F: {{dataset: D, dispatch: {{modules: [[4, 5], [0, 1], [2, 3]]}}, rules: {{blocks_per_group: 3}}}}}}
nodes:
  virtual: {{input: F, reconstruction: {{strategy: virtual}}}}
  save: {{input: virtual, io_hdf5: {{layout: virtual}}}}
"""
    run = start(text, tmp_path, monkeypatch)
    lengths = set()
    for _ in run.progress:
        with seen(run.directory / MASTER) as (data, numbers, status):
            assert not status.any()
            if len(data):
                assert np.array_equal(data[()], whole(numbers, IMAGE))
            lengths.add(len(data))
        if len(lengths) == 3:
            run.stop()
    assert run.wait(60).state == "stopped"


@pytest.mark.launch
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_after_a_kill(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It still shows what it showed; `recover` replaces it."""
    run = start(PLAIN.replace("frames: 1000", "frames: 5000"), tmp_path, monkeypatch, transport)
    for event in run.progress:
        if event["rows"]["save"] > 300:
            break
    pids = _processes(run)
    for pid in pids:
        os.kill(pid, 9)
    directory = run.directory
    rows, saved = check(directory / MASTER)
    assert rows == saved > 0
    assert not is_final(directory / MASTER)
    told = lima2("inspect", str(directory), cwd=tmp_path).stdout
    assert f"{MASTER} is missing or unreadable: `lima2 recover` rebuilds it" in told
    end = time.monotonic() + 30
    while (done := lima2("recover", str(directory), cwd=tmp_path)).returncode and time.monotonic() < end:
        time.sleep(0.2)
    assert done.returncode == 0, done.stderr
    assert is_final(directory / MASTER)
    assert check(directory / MASTER)[1] >= rows
    assert lima2("inspect", "--verify", str(directory), cwd=tmp_path).returncode == 0
    assert not list(directory.glob("*.part"))


def _processes(run: l2.Run) -> list[int]:
    """The run and all its children, oldest first."""
    import psutil

    assert run._process is not None
    process = psutil.Process(run._process.pid)
    return [process.pid, *(child.pid for child in process.children(recursive=True))]


def test_a_disk_that_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on without, and says so."""

    def refuses(path: str) -> None:
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(live_master, "set_marks", refuses)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "k.yaml").write_text(PLAIN.replace("MORE", "").replace("frames: 1000", "frames: 20"))
    done = lima2("run", "k.yaml", "--transport", "inline", cwd=tmp_path)
    assert done.returncode == 0
    assert "warning: the master of save does not grow during the run: " in done.stderr + done.stdout
    assert check(tmp_path / "runs/k_0001" / MASTER) == (20, 20)
    assert not list((tmp_path / "runs/k_0001").glob("*.part"))


def test_a_final_master_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No live one stands for it."""
    from lima2cli.runs import ending

    def refuses(*arguments: object, **more: object) -> str:
        raise OSError("refused")

    monkeypatch.setattr(ending, "write_master", refuses)
    (tmp_path / "k.yaml").write_text(PLAIN.replace("MORE", "").replace("frames: 1000", "frames: 20"))
    done = lima2("run", "k.yaml", "--transport", "inline", cwd=tmp_path)
    assert done.returncode == 10
    assert not (tmp_path / "runs/k_0001" / MASTER).exists()
    monkeypatch.undo()
    assert lima2("recover", "runs/k_0001", cwd=tmp_path).returncode == 0
    assert check(tmp_path / "runs/k_0001" / MASTER) == (20, 20)


def test_channels_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames of a common file are in the master itself."""
    text = PLAIN.replace("io_hdf5: {}", "io_hdf5: {layout: common}").replace("frames: 1000", "frames: 20")
    run = start(text, tmp_path, monkeypatch, armed=True)
    assert _files(run)["save"]["live"] is False
    assert not (run.directory / MASTER).exists()
    run.stop()


def test_what_is_final(tmp_path: Path) -> None:
    plan = l2.compile(PLAIN.replace("MORE", ""))
    master = LiveMaster(plan.channels["save"], str(tmp_path))
    assert (grows(master.path), is_final(master.path)) == (True, False)
    again = LiveMaster(plan.channels["save"], str(tmp_path), master.template)
    assert again.template == master.template
    assert not master.write(1, {0: 1}, 0)  # no frame file is there
    assert check(Path(master.path)) == (0, 0)
    (tmp_path / "other.h5").write_bytes(b"no HDF5")
    for path in (tmp_path / "other.h5", tmp_path / "nothing.h5"):
        assert (grows(path), is_final(path)) == (False, False)
        discard_live(path)
    discard_live(master.path)
    assert [path.name for path in tmp_path.iterdir()] == ["other.h5"]
