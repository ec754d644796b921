"""Runs that wait for a request, are watched and driven: from Python, by the socket, and from the command line."""

import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import lima2cli as l2
from lima2cli.files.nexus import ChannelRecord
from lima2cli.geometry import Rect
from lima2cli.runs.control_socket import ask, watch, where
from tests import ROOT
from tests.running import TRANSPORTS, counter, lima2, mpi

DETECTOR = """
lima2: 1
name: k
detector: {remu: {image: {width: 64, height: 48}, datasets: {raw: {dtype: uint16}}, scene: {counter: {}}}}
receivers: {a: {memspaces: {m: {host: {size: 1 MiB}}}}, b: {memspaces: {m: {host: {size: 1 MiB}}}}}
flows: {data: {dataset: raw, buffers: {size: 512 KiB, at: [a.m, b.m]}}}
nodes:
  save: {io_hdf5: {}, input: data}
  roi: {roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 10, height: 10}}}}, input: data}
"""
ARMED = DETECTOR + "acquisition: {frames: 40, period: 1 ms, start: request}\n"
STEPS = DETECTOR + "acquisition: {frames: 12, period: 1 ms, trigger: software, frames_per_trigger: 2}\n"


def _file(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(folder)
    (folder / "k.yaml").write_text(text)
    return "k.yaml"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nothing_moves_before_the_start(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with l2.run(_file(ARMED, tmp_path, monkeypatch), transport=transport) as run:
        assert run.state == "armed"
        time.sleep(0.3)
        before = run.status()
        assert (before["phase"], before["flows"], before["rows"]) == ("armed", {"data": [0, 0]}, {"save": 0, "roi": 0})
        with pytest.raises(l2.StateError, match="takes no software triggers"):
            run.trigger()
        started = time.time_ns()
        run.start()
        summary = run.wait(60)
    assert summary.state == "complete"
    assert summary.channels["save"].saved == 40
    with h5py.File(run.directory / "k_save_0_00000.h5") as file:
        record = ChannelRecord.read(file)
    assert record is not None
    assert 0 <= record.start_ns - started < 60e9
    with pytest.raises(l2.StateError, match="no run is active"):
        run.start()


def test_what_is_told_when_it_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    run = l2.run(_file(DETECTOR + "acquisition: {frames: 3, period: 1 ms}\n", tmp_path, monkeypatch), armed=True,
                 transport="inline")  # fmt: skip
    files = next(event["files"] for event in run.events if "files" in event)
    run.on_event(events.append)
    run.start()
    run.wait(60)
    assert [event["type"] for event in events][:1] == ["start"]
    assert events[0]["files"] == files
    with h5py.File(run.directory / files["save"]["file"]) as file:
        data = file[files["save"]["dataset"]]
        assert [list(data.shape), str(data.dtype)] == [files["save"]["shape"], files["save"]["dtype"]]
    with h5py.File(run.directory / files["roi"]["file"]) as file:
        assert set(files["roi"]["columns"]) < set(file[files["roi"]["dataset"]])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_each_trigger_is_awaited_by_its_rows(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts are those that the files show: the last frame and the counters are read between triggers."""
    run = l2.run(_file(STEPS, tmp_path, monkeypatch), transport=transport)
    progress = run.progress
    for point in range(6):
        assert run.state == f"armed, waiting for trigger {point + 1} of 6"
        run.trigger()
        event = next(event for event in progress if min(event["rows"].values()) >= 2 * point + 2)
        assert event["rows"] == {"save": 2 * point + 2, "roi": 2 * point + 2}
        frame = run.frame("save")
        counters = run.counters["roi"]
        assert counters["frame_number"].tolist() == list(range(2 * point + 2))
        assert counters["all_sum"][-1] == frame[:10, :10].sum()
    assert run.wait(60).state == "complete"
    assert np.array_equal(run.counters["roi"]["all_sum"], counters["all_sum"])
    data = run.open("save")
    with data.file:
        assert np.array_equal(data[-1], frame)
    again = l2.open(run.directory)
    assert np.array_equal(again.frame("save", 11), frame)
    assert not again.live
    assert again.state == "complete"


def test_acquisitions_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as are asked for, each with its directory, in one job."""
    run = l2.run(_file(ARMED.replace("start: request", "start: request, repeat: 0"), tmp_path, monkeypatch),
                 transport="inline")  # fmt: skip
    done = []
    for number in range(4):
        _until(lambda: run.state == "armed")
        assert run.status()["acquisition"] == number + 1
        run.start()
        _until(lambda number=number: sum(event["type"] == "acquisition" for event in run.events) > number)
        done.append(run.events[-1] if run.events[-1]["type"] == "acquisition" else
                    [event for event in run.events if event["type"] == "acquisition"][-1])  # fmt: skip
    run.stop()
    assert run.wait(60).state == "complete"
    assert run.events[-1]["state"] == "stopped"
    assert [one["state"] for one in done] == ["complete"] * 4
    assert len({one["directory"] for one in done}) == 4
    for one in done:
        summary = json.loads((Path(one["directory"]) / "summary.json").read_text())
        assert (summary["channels"]["save"]["saved"], summary["acquisition"]["of"]) == (40, 0)


ENDLESS = DETECTOR.replace("lima2: 1", "lima2: 1\noutput: {directory: 'runs/{name}_{run:04d}'}") + (
    "acquisition: {frames: 0, period: 1 ms, start: request, repeat: 0}\n"
)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_acquisitions_of_other_frames(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames and period of each are asked for; the next may begin while files of the last are written."""
    asked = [(5, None), (300, None), (3, 0.02), (3, 0.02), (1, None)]
    with l2.run(_file(ENDLESS, tmp_path, monkeypatch), transport=transport) as run:
        for number, (frames, period) in enumerate(asked, 1):
            said = {"title": f"point {number}", "extra": {"motor": number / 2}} if number > 2 else None
            assert run.acquire(frames, period, said) == number
        done = [run.completed(number) for number in range(1, 6)]
        for said in ({"instrument": "x"}, {"title": 3}, {"extra": [1]}, "x"):
            _until(lambda: run.state == "armed")
            with pytest.raises(l2.StateError, match=r"metadata of an|are strings|is a mapping"):
                run.start(metadata=said)  # type: ignore[arg-type]
        for wrong in (
            {"frames": 0},
            {"frames": True},
            {"frames": 2.5},
            {"period": 1e-5},
            {"period": 0},
            {"period": "1"},
        ):
            _until(lambda: run.state == "armed")
            with pytest.raises(l2.StateError, match=r"whole number above 0|too short|number of seconds"):
                run.start(**wrong)  # type: ignore[arg-type]
    assert [(one["state"], one["frames"]) for one in done] == [("complete", frames) for frames, _ in asked]
    for one, (frames, period) in zip(done, asked, strict=True):
        summary = json.loads((Path(one["directory"]) / "summary.json").read_text())
        assert summary["flows"]["data"]["expected"] == summary["channels"]["save"]["saved"] == frames
        assert summary["rates"]["asked_hz"] == pytest.approx(1 / (period or 0.001))
        number = int(one["number"])
        with h5py.File(Path(one["directory"]) / "k_save_master.h5") as file:
            entry = file["entry_0000"]
            assert entry["title"][()].decode() == (f"point {number}" if number > 2 else "k")
            assert ("extra" in entry, "sample" in entry) == (number > 2, False)
        again = l2.open(one["directory"])
        assert again.counters["roi"]["frame_number"].tolist() == list(range(frames))
        data = again.open("save")
        with data.file:
            assert data.shape == (frames, 48, 64)
            shown = counter(np.arange(frames, dtype=np.uint64), Rect(0, 0, 64, 48), 64)
            assert np.array_equal(data[()], shown)
            times = data.parent["frame_time"][()]
            assert np.diff(times) == pytest.approx(period or 0.001, abs=1e-6)
    checked = lima2("inspect", done[2]["directory"], "--verify", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout


def test_no_more_and_no_faster_than_planned(armed: Any) -> None:
    for wrong, why in (({"frames": 41}, "made for 40"), ({"period": 1e-4}, "made for 1 ms")):
        with pytest.raises(l2.StateError, match=why):
            armed.start(**wrong)
    assert armed.state == "armed"


@pytest.mark.launch
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_run_can_be_aborted(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at once; what is in files is accounted for."""
    run = l2.run(_file(ENDLESS, tmp_path, monkeypatch), transport=transport)
    run.start(frames=100_000)
    progress = run.progress
    assert next(event for event in progress if event["saved"].get("save", 0) > 20)
    before = time.monotonic()
    assert "is being aborted" in lima2("stop", "--now", cwd=tmp_path).stdout
    summary = run.wait(60)
    assert time.monotonic() - before < 20
    assert (summary.state, summary.reason) == ("stopped", "ended at once by the user")
    assert 20 < summary.channels["save"].saved < 100_000
    with pytest.raises(l2.StateError, match="no run is active"):
        run.abort()


def _until(there: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_run_that_is_armed_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = l2.run(_file(ARMED, tmp_path, monkeypatch), transport="inline")
    run.stop()
    summary = run.wait(60)
    assert (summary.state, summary.channels["save"].saved) == ("stopped", 0)
    assert summary.reason == "stopped by the user, before it started"


@pytest.mark.parametrize(("others", "transport"), [(False, "inline"), (True, "inline"), mpi(True)])
def test_an_acquisition_that_never_starts(
    others: bool, transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directory goes, unless something else lies there; the job was stopped, and its last acquisition is the one
    before.
    """
    run = l2.run(_file(ARMED.replace("start: request", "start: request, repeat: 0"), tmp_path, monkeypatch),
                 transport=transport)  # fmt: skip
    seen = l2.open(run.directory)
    run.start()
    _until(lambda: sum(event.get("event") == "armed" for event in run.events) == 2)
    never = tmp_path / "runs/k_0002"
    assert never.is_dir()
    assert run.directory.name == "k_0001"
    if others:
        (never / "notes.txt").write_text("of a user")
    run.stop()
    run.wait(60)
    done = run.events[-1]
    assert (done["type"], done["state"], done["reason"]) == (
        "done", "stopped", "stopped by the user, before it started"
    )  # fmt: skip
    last = "k_0002" if others else "k_0001"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["k_0001", *["k_0002"] * others, "latest"]
    assert (tmp_path / "runs/latest").resolve().name == last
    for one, saved in ((run, 0 if others else 40), (seen, 40)):
        assert one.wait(60).channels["save"].saved == saved
    assert never.exists() == others
    assert [event["number"] for event in run.events if event["type"] == "acquisition"] == [1]


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = l2.run(_file(ARMED, tmp_path, monkeypatch), transport="inline")
    assert "armed" in lima2("runs", cwd=tmp_path).stdout
    assert "started" in lima2("start", cwd=tmp_path).stdout
    run.wait(60)
    done = lima2("start", cwd=tmp_path)
    assert (done.returncode, "no run is active" in done.stderr) == (1, True)


def test_others_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that takes its events, one that never does, and one that goes away: the run does not care."""
    run = l2.run(_file(STEPS, tmp_path, monkeypatch), transport="inline")
    place = where(run.directory)
    assert place is not None
    deaf, fickle = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    for caller in (deaf, fickle):
        caller.connect(f"\0{place['socket']}")
        caller.sendall(b'{"do": "watch"}\n')
    fickle.close()
    seen: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: seen.extend(watch(run.directory)))
    thread.start()
    _until(lambda: len(seen) > 0)
    other = l2.open(run.directory)
    assert other.live
    other.trigger(6)
    assert run.wait(60).state == "complete"
    assert other.wait(60).state == "complete"
    thread.join(60)
    deaf.close()
    assert seen[0]["state"] == "armed, waiting for trigger 1 of 6"
    assert [event["rows"] for event in seen if event.get("type") == "progress"][-1] == {"save": 12, "roi": 12}


@pytest.mark.parametrize(
    "request_", [b"start\n", b"[1]\n", b"{}\n", b'{"do": 3}\n', b'{"do": "fly"}\n', b"x" * 9000 + b"\n"]
)
def test_requests_that_are_none(request_: bytes, armed: Any) -> None:
    place = where(armed.directory)
    assert place is not None
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(10)
        caller.connect(f"\0{place['socket']}")
        caller.sendall(request_ + b"\n")
        with caller.makefile("rb") as file:
            assert json.loads(file.readline())["ok"] is False
    assert ask(armed.directory, {"do": "status"})["state"] == "armed"


@pytest.fixture(scope="module")
def armed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that is armed."""
    folder = tmp_path_factory.mktemp("armed")
    (folder / "k.yaml").write_text(ARMED.replace("name: k", f"name: k\noutput: {{directory: '{folder}/k'}}"))
    with l2.run(folder / "k.yaml", transport="inline") as run:
        yield run


def test_answers_come_soon(armed: Any) -> None:
    took = []
    for _ in range(50):
        before = time.perf_counter()
        ask(armed.directory, {"do": "status"})
        took.append(time.perf_counter() - before)
    assert statistics.median(took) < 0.5  # see the benchmark: this finds only answers that wait for a timeout


def test_mistakes_are_exceptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(l2.PipelineInvalid, match="flowz") as caught:
        l2.run(ARMED.replace("flows:", "flowz:"))
    assert any(one["rule"] == "unknown-key" and one["line"] for one in caught.value.diagnostics)
    assert {one.rule for one in l2.validate(ARMED.replace("flows:", "flowz:"))} >= {"unknown-key"}
    with pytest.raises(l2.PipelineInvalid):
        l2.compile({"lima2": 1})
    assert l2.compile(ARMED).on_request
    assert l2.validate(ARMED) == []
    with pytest.raises(l2.UnreadableInput):
        l2.validate("nothing.yaml")
    with pytest.raises(l2.UnreadableInput):
        l2.open("nothing")
    with pytest.raises(l2.EnvironmentUnfit):
        l2.run(ARMED.replace("512 KiB", "512 GiB").replace("1 MiB", "1 TiB"), transport="inline")
    assert not list(tmp_path.glob("runs/k*"))


def test_what_users_code_prints_and_how_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a line that is no event nor a function that fails ends the events."""
    (tmp_path / "u.py").write_text("def f(frames, numbers):\n    print('no', 'event', flush=True)\n    return frames\n")
    text = ARMED.replace("nodes:\n", "nodes:\n  user: {python: {function: 'u.py:f'}, input: data}\n")
    text = text.replace("save: {io_hdf5: {}, input: data}", "save: {io_hdf5: {}, input: user}")
    called: list[str] = []

    def fails(event: dict[str, Any]) -> None:
        called.append(event["type"])
        raise ValueError("of a user")

    run = l2.run(_file(text, tmp_path, monkeypatch), transport="inline")
    run.on_event(fails)
    run.start()
    assert run.wait(60).state == "complete"
    assert "no event" in run.printed
    assert called[0] == "start"
    assert called[-1] == "done"


def test_a_run_that_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = l2.run(_file(ARMED.replace("frames: 40", "frames: 0"), tmp_path, monkeypatch), transport="inline")
    run.start()
    next(run.progress)
    assert run._process is not None
    run._process.send_signal(signal.SIGINT)
    assert run.wait(60).state == "stopped"


def test_the_program_of_the_manual(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/python.md").read_text()
    program, pipeline, _ = re.findall(r"^```(?:python|yaml)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "scan.py").write_text(program)
    (tmp_path / "k.yaml").write_text(pipeline)
    done = subprocess.run(
        [sys.executable, "scan.py"], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120
    )
    *points, end = done.stdout.splitlines()
    assert end == "complete"
    assert len(points) == 3
    for point in points:
        sums = re.fullmatch(r"\(48, 64\) ([\d.]+) ([\d.]+)", point)
        assert sums is not None
        assert float(sums[1]) == float(sums[2])
