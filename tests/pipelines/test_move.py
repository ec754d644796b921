"""Directories that acquisitions are given at their start: all that is written, read, and killed follows."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import lima2cli as l2
from lima2cli.errors import StateError
from lima2cli.ranks.outputs import move_run
from tests.running import TRANSPORTS, lima2

PIPELINE = """
lima2: 1
name: k
detector: {remu: {image: {width: 64, height: 48}, datasets: {raw: {dtype: uint16}}, scene: {counter: {}}}}
receivers: {a: {memspaces: {m: {host: {size: 1 MiB}}}}, b: {memspaces: {m: {host: {size: 1 MiB}}}}}
flows: {data: {dataset: raw, buffers: {size: 512 KiB, at: [a.m, b.m]}}}
nodes:
  save: {io_hdf5: {frames_per_file: 8}, input: data}
  roi: {roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 10, height: 10}}}}, input: data}
acquisition: {frames: 40, period: 1 ms, start: request, repeat: 0}
"""
ENDLESS = PIPELINE.replace("frames: 40, period: 1 ms", "frames: 0, period: 1 ms")
ONE = PIPELINE.replace(", repeat: 0", "")


def _run(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, transport: str = "inline") -> l2.Run:
    monkeypatch.chdir(folder)
    (folder / "k.yaml").write_text(text)
    return l2.run("k.yaml", transport=transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_each_acquisition_where_it_was_asked_for(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scan/p2").mkdir(parents=True)
    with _run(PIPELINE, tmp_path, monkeypatch, transport) as run:
        seen = l2.open(run.directory)
        done = []
        for directory in ("runs/mine", "scan/deep/p1", None, tmp_path / "scan/p2"):
            number = run.acquire(directory=directory)
            if number == 1:
                assert run.directory == tmp_path / "runs/mine"
                assert seen.status()["ok"]
            done.append(run.completed(number)["directory"])
    places = [tmp_path / name for name in ("runs/mine", "scan/deep/p1", "runs/k_0003", "scan/p2")]
    assert done == list(map(str, places))
    assert seen.wait(60).state == "complete"
    for place in places:
        again = l2.open(place)
        assert again.counters["roi"]["frame_number"].tolist() == list(range(40))
        with h5py.File(place / "k_save_master.h5") as file:
            shown = file["entry_0000/measurement/data"][:, 0, 1].tolist()
        assert shown == [again.frame("save", number)[0, 1] for number in range(40)]
        assert not list(place.glob("*.new"))
        assert not (place / "control.json").exists()
        assert lima2("inspect", str(place), "--verify", cwd=tmp_path).returncode == 0
    links = {name: os.readlink(tmp_path / "runs" / name) for name in ("k_0001", "k_0002", "k_0004", "latest")}
    assert links == {"k_0001": "mine", "k_0002": "../scan/deep/p1", "k_0004": "../scan/p2", "latest": "k_0004"}
    assert l2.open("k_0001").summary == l2.open(places[0]).summary
    listed = lima2("runs", cwd=tmp_path).stdout
    assert [line.split()[0] for line in listed.splitlines()] == ["k_0002", "k_0003", "k_0004", "mine"]
    assert f"in {places[1]}" in listed
    assert not (tmp_path / "scan/latest").is_symlink()
    moved = [event for event in run.events if event.get("event") == "moved"]
    assert [event["acquisition"] for event in moved] == [1, 2, 4]


def test_refused_and_still_armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what others have nor what a run of its own is in the way of is touched; nothing is left of the try."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("mine")
    with _run(ONE, tmp_path, monkeypatch) as run:
        there = run.directory
        for directory, why in (
            ("full", "is not empty"),
            ("k.yaml", "is not a directory"),
            ("k.yaml/x/y", "can't be the directory"),
            (there / "x", "lies in the run directory"),
            ("runs/other/latest", "name of the link"),
            (".", "is not empty"),
            ("a\0b", "absolute path"),
        ):
            with pytest.raises(StateError, match=why):
                run.start(directory=directory)
        with pytest.raises(StateError, match="absolute path"):
            run._ask("start", directory="x")
        with pytest.raises(StateError, match="made for 40"):
            run.start(frames=41, directory="new")
        done = lima2("start", "--directory", "full", cwd=tmp_path)
        assert (done.returncode, "is not empty" in done.stderr) == (1, True)
        assert run.state == "armed"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "k.yaml", "runs"]
        assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["k_0001", "latest"]
        run.start(directory=there)  # where it is
        assert run.wait(60).channels["save"].saved == 40
    assert run.directory == there
    assert not there.is_symlink()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(ONE, tmp_path, monkeypatch)
    (tmp_path / "here").mkdir()
    done = lima2("start", str(tmp_path / "runs/k_0001"), "--directory", "point", cwd=tmp_path / "here")
    assert done.stdout == f"{tmp_path}/here/point: started\n"
    assert run.wait(60).state == "complete"
    assert run.directory == tmp_path / "here/point"


def test_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()

    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StateError, match=r"another file system than .*`output.directory` of the pipeline"):
        move_run(tmp_path / "run", str(tmp_path / "a/b/c"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_no_link_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()

    def refuse(path: Path, target: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert move_run(tmp_path / "run", str(tmp_path / "a")) == (tmp_path / "a", False)


def test_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run is in the place between the look at it and the move."""
    (tmp_path / "run").mkdir()
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        (target / "other").mkdir()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(StateError, match="is not empty"):
        move_run(tmp_path / "run", str(tmp_path / "a"))
    assert (tmp_path / "a/other").is_dir()


@pytest.mark.parametrize("name", ["runs/k_0001", "point"])
def test_killed_and_recovered(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its master grows where it is; of a run that was killed all is found there, by its old name, too."""
    run = _run(ENDLESS.replace(", repeat: 0", ""), tmp_path, monkeypatch)
    run.start(directory="point")
    _saved(run, 40)
    data = run.open("save")
    with data.file:
        assert len(data) > 0
        assert np.array_equal(data[len(data) - 1], run.frame("save", len(data) - 1))
    assert run._process is not None
    run._process.kill()
    run._process.wait(60)
    assert "aborted" in lima2("runs", cwd=tmp_path).stdout
    done = lima2("recover", name, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "point/summary.json").read_text())
    assert summary["channels"]["save"]["saved"] >= 40
    assert lima2("inspect", "point", "--verify", cwd=tmp_path).returncode == 0


def _saved(run: l2.Run, count: int) -> None:
    next(event for event in run.progress if event["rows"].get("save", 0) >= count)


@pytest.mark.launch
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_aborted(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher ends the files where they are when the ranks were killed."""
    run = _run(ENDLESS, tmp_path, monkeypatch, transport)
    run.start(frames=100_000, directory="point")
    _saved(run, 20)
    run.abort()
    assert run.wait(60).state == "stopped"
    assert run.directory == tmp_path / "point"
    assert json.loads((tmp_path / "point/summary.json").read_text())["channels"]["save"]["saved"] >= 20


@pytest.mark.launch
def test_users_code_that_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "u.py").write_text(
        "import os\n\n\ndef f(frames, numbers):\n    if numbers[-1] > 20:\n        os._exit(0)\n    return frames\n"
    )
    text = ONE.replace("nodes:\n", "nodes:\n  user: {python: {function: 'u.py:f'}, input: data}\n")
    run = _run(text.replace("input: data}\n  roi", "input: user}\n  roi"), tmp_path, monkeypatch)
    run.start(directory="point")
    with pytest.raises(l2.RunFailed):
        run.wait(60)
    assert "_exit" in json.loads((tmp_path / "point/summary.json").read_text())["reason"]


def test_a_link_is_overwritten_and_the_run_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `if_exists: overwrite` the next run takes the place of the link alone."""
    text = ONE.replace("name: k", "name: k\noutput: {directory: out/k, if_exists: overwrite}")
    for point in ("one", "two"):
        run = _run(text, tmp_path, monkeypatch)
        assert not (tmp_path / "out/k").is_symlink()
        run.start(directory=point)
        assert run.wait(60).state == "complete"
    assert (tmp_path / "out/k").resolve() == tmp_path / "two"
    for point in ("one", "two"):
        assert l2.open(tmp_path / point).frame("save", 39).shape == (48, 64)
    with _run(text, tmp_path, monkeypatch) as run:
        run.start()
        assert run.wait(60).state == "complete"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["k", "latest"]


def test_a_program_of_the_receivers_knows_its_directory(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("def main(receiver):\n    for block in receiver.blocks('data'):\n        pass\n")
    (tmp_path / "k.yaml").write_text(ONE)
    command = [sys.executable, "-m", "lima2cli", "run", "k.yaml", "--receiver", "p.py:main", "--transport", "inline"]
    with subprocess.Popen([*command, "--progress", "json"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("armed" in line for line in process.stdout)
        with l2.open(tmp_path / "runs/k_0001") as run:
            with pytest.raises(StateError, match="the program of `--receiver` knows it"):
                run.start(directory=tmp_path / "point")
            assert run.state == "armed"
        assert process.wait(60) == 0
