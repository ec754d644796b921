"""Control of runs: repeated acquisitions, software triggers and stops from other processes, receivers that hang."""

import json
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lima2cli.errors import RunFailed
from lima2cli.geometry import Rect
from lima2cli.job.run import open_directory
from lima2cli.ranks import progress as patience
from lima2cli.ranks.loop import run_inline
from lima2cli.ranks.receiver import ReceiverRank
from lima2cli.runs.channel import BY_USER
from lima2cli.runs.control_socket import FILE, ask
from lima2cli.runs.directory import find_run, read_run
from lima2cli.runs.requests import Requests
from lima2cli.runs.saved_plan import Origin
from tests.compiling import compiled
from tests.running import TRANSPORTS, Live, Ran, counter, lima2, run, truth

DETECTOR = "detector: {remu: {image: {width: 16, height: 8}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}"


def _ran(directory: Path) -> Ran:
    return Ran(0, "", directory)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_acquisitions_are_repeated_in_one_job(tmp_path: Path, transport: str) -> None:
    text = f"""
lima2: 1
{DETECTOR}
acquisition: {{frames: 30, period: 1 ms, repeat: 3}}
flows:
  data: {{dataset: data, source: full, buffers: {{frames: 4}}}}
  deep: {{dataset: data, source: full, buffers: {{frames: 29}}}}
nodes:
  save: {{input: data, io_hdf5: {{}}}}
  total: {{input: data, accumulate: {{frames: 0, operation: sum}}}}
  sums: {{input: total, io_hdf5: {{}}}}
  log: {{input: data, checkpoint: {{}}}}
"""
    ran = run(text, tmp_path, transport)
    assert ran.code == 0, ran.output
    starts, ends = [], []
    for number in (1, 2, 3):
        one = _ran(tmp_path / "runs" / f"pipeline_{number:04d}")
        summary = truth(one)
        frames, numbers, status = one.saved("save")
        assert numbers.tolist() == list(range(30))
        assert not status.any()
        np.testing.assert_array_equal(frames, counter(numbers, Rect(0, 0, 16, 8), 16))
        np.testing.assert_array_equal(one.saved("sums")[0][0], frames.sum(axis=0))
        assert summary["tables"]["log"]["rows"] == 30
        assert (summary["acquisition"]["number"], summary["acquisition"]["of"]) == (number, 3)
        assert 0 < summary["resources"]["peak_fill"]["deep"]["receiver0"] <= 1
        import h5py

        with h5py.File(one.directory / "pipeline_log.h5") as file:
            times = file["entry_0000/measurement/detector_time"][()]
        starts.append(times[0])
        ends.append(times[-1])
        dead = summary["acquisition"]["dead_time_s"]
        assert dead == (None if number == 1 else pytest.approx(starts[-1] - ends[-2], abs=1e-5))
        assert not list(one.directory.glob("*.new"))
    assert (tmp_path / "runs" / "latest").resolve().name == "pipeline_0003"


@pytest.mark.parametrize(
    "rules",
    [
        "rules: {placement: overwrite}",
        "rules: {placement: concatenate, cycle: oneshot}",
        "rules: {blocks_per_group: 3}",
        "overrun: stop",
    ],
)
def test_the_next_acquisition_overwrites_nothing_that_is_to_be_read(tmp_path: Path, rules: str) -> None:
    """Also where a receiver is slower than the detector: here a node sleeps."""
    (tmp_path / "slow.py").write_text(
        "import time\n\n\ndef f(frames, numbers):\n    time.sleep(0.002)\n    return frames\n"
    )
    text = f"""
lima2: 1
{DETECTOR}
acquisition: {{frames: 20, period: 2 ms, repeat: 3}}
flows: {{data: {{dataset: data, source: full, {rules}, events: {{group: 1, end: true}}, buffers: {{frames: 24}}}}}}
nodes:
  slow: {{input: data, python: {{function: "slow.py:f"}}}}
  save: {{input: slow, io_hdf5: {{}}}}
"""
    ran = run(text, tmp_path, "inline")
    assert ran.code == 0, ran.output
    for number in (1, 2, 3):
        frames, numbers, _ = _ran(tmp_path / "runs" / f"pipeline_{number:04d}").saved("save")
        assert numbers.tolist() == list(range(20))
        np.testing.assert_array_equal(frames, counter(numbers, Rect(0, 0, 16, 8), 16))


def test_nodes_that_wait_begin_anew(tmp_path: Path) -> None:
    """Joins, filters and collectives of receivers that hold parts of frames."""
    text = """
lima2: 1
detector:
  remu:
    image: {width: 16, height: 8}
    datasets: {low: {dtype: uint16}, high: {dtype: uint16}}
    modules: {columns: 2, rows: 1, width: 8, height: 8}
    scene: {counter: {}}
acquisition: {frames: 12, repeat: 3}
receivers: 2
flows:
  low: {dataset: low, source: full, buffers: {frames: 4, at: [receiver0.host, receiver1.host]}}
  high: {dataset: high, source: full, slices: {step: 2}, buffers: {frames: 8, at: [receiver0.host]}}
  second: {dataset: low, source: full, slices: {step: 2}, buffers: {frames: 8, at: [receiver0.host]}}
  parts: {dataset: low, source: full, dispatch: modules, buffers: {frames: 4, at: [receiver0.host, receiver1.host]}}
nodes:
  sum: {inputs: {a: second, b: high}, expression: {expr: a + b}}
  save: {input: sum, io_hdf5: {}}
  whole: {input: parts, reconstruction: {strategy: gather}}
  frames: {input: whole, io_hdf5: {}}
  counters: {input: parts, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 16, height: 8}}}}}
  few: {input: low, checkpoint: {}}
"""
    ran = run(text, tmp_path, "inline")
    assert ran.code == 0, ran.output
    for number in (1, 2, 3):
        one = _ran(tmp_path / "runs" / f"pipeline_{number:04d}")
        truth(one)
        frames, numbers, _ = one.saved("frames")
        assert numbers.tolist() == list(range(12))
        np.testing.assert_array_equal(frames, counter(numbers, Rect(0, 0, 16, 8), 16))
        assert one.saved("save")[1].tolist() == list(range(0, 12, 2))
        assert {table["rows"] for table in one.summary["tables"].values()} == {12}


def test_a_failure_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(
        "calls = []\n\n\ndef f(frames, numbers):\n    calls.append(1)\n    if len(calls) == 3:\n        1 / 0\n"
        "    return frames\n"
    )
    text = f"""
lima2: 1
{DETECTOR}
acquisition: {{frames: 4, period: 1 ms, repeat: 5}}
flows: {{data: {{dataset: data, source: full, rules: {{blocks_per_group: 2}}, buffers: {{frames: 4}}}}}}
nodes: {{f: {{input: data, python: {{function: "fails.py:f"}}}}, save: {{input: f, io_hdf5: {{}}}}}}
"""
    ran = run(text, tmp_path, "inline")
    assert ran.code == 10
    states = [read_run(path).state for path in sorted((tmp_path / "runs").glob("pipeline_*"))]
    assert states[0] == "complete"
    assert "failed" in states[1:3]
    assert len(states) < 5


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_cannot_be_bound_is_told_before_the_start(tmp_path: Path, transport: str) -> None:
    (tmp_path / "model.py").write_text(
        "class Model:\n    def __init__(self, spec):\n        raise OSError('no model')\n"
        "    def __call__(self, frames, numbers):\n        return frames\n"
    )
    text = f"""
lima2: 1
{DETECTOR}
acquisition: {{frames: 4}}
nodes: {{f: {{input: data, python: {{function: "model.py:Model"}}}}, save: {{input: f, io_hdf5: {{}}}}}}
"""
    ran = run(text, tmp_path, transport, "--progress", "json")
    assert ran.code == 10
    assert "no model" in ran.output
    assert '"type": "start"' not in ran.output
    summary = ran.summary
    assert (summary["state"], summary["frames"], summary["seconds"]) == ("failed", 0, 0)
    assert not list(ran.directory.glob("*.h5.new"))


def test_software_triggers_from_another_process(tmp_path: Path) -> None:
    text = f"""
lima2: 1
{DETECTOR}
acquisition: {{frames: 6, period: 1 ms, trigger: software, frames_per_trigger: 2, timeout: 100 ms}}
nodes: {{save: {{input: data, io_hdf5: {{}}}}}}
"""
    live = Live(text, tmp_path, "inline")
    directory = tmp_path / "runs" / "latest"
    assert lima2("trigger", cwd=tmp_path).stdout == "runs/latest: 1 trigger so far\n"
    for _ in range(200):
        seen = ask(directory, {"do": "status"})["flows"]["data"][0]
        if seen == 2:
            break
        time.sleep(0.05)
    assert seen == 2
    refused = lima2("trigger", "pipeline_0001", "--count", "3", cwd=tmp_path)
    assert refused.returncode == 1
    assert "too many: 2 are left of 3" in refused.stderr
    assert "3 triggers so far" in lima2("trigger", "--count", "2", cwd=tmp_path).stdout
    ran = live.end()
    assert ran.code == 0, ran.output
    assert ran.saved("save")[1].tolist() == list(range(6))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_run_is_stopped_by_another_process(tmp_path: Path, transport: str) -> None:
    text = f"""
lima2: 1
{DETECTOR}
acquisition: {{frames: 100000, period: 1 ms, repeat: 2}}
nodes: {{save: {{input: data, io_hdf5: {{}}}}}}
"""
    live = Live(text, tmp_path, transport)
    live.wait_for_frames()
    listed = lima2("runs", cwd=tmp_path)
    assert "pipeline_0001  live" in listed.stdout
    assert "takes no software triggers" in lima2("trigger", cwd=tmp_path).stderr
    assert lima2("runs", "stop", "runs/pipeline_0001", cwd=tmp_path).returncode == 0
    ran = live.end()
    assert ran.code == 0, ran.output
    assert truth(ran)["state"] == "stopped"
    assert [path.name for path in (tmp_path / "runs").glob("pipeline_*")] == ["pipeline_0001"]
    assert not (ran.directory / FILE).exists()
    ended = lima2("stop", cwd=tmp_path)
    assert (ended.returncode, "no run is active" in ended.stderr) == (1, True)
    assert "stopped" in lima2("runs", "show", cwd=tmp_path).stdout
    assert lima2("stop", "other", cwd=tmp_path).returncode == 2


def test_a_run_that_was_killed_is_told_as_such(tmp_path: Path) -> None:
    """See `test_a_memspace_is_ours_after_a_kill` for one by MPI."""
    text = f"lima2: 1\n{DETECTOR}\nacquisition: {{period: 1 ms}}\nnodes: {{save: {{input: data, io_hdf5: {{}}}}}}\n"
    live = Live(text, tmp_path, "inline")
    live.process.kill()
    live.end()
    broken = lima2("stop", cwd=tmp_path)
    assert broken.returncode == 10
    assert "was aborted" in broken.stderr
    assert "lima2 recover" in broken.stderr
    assert read_run(find_run(str(tmp_path / "runs" / "latest"))).state == "aborted"


def test_a_run_that_is_being_started_is_told_as_such(tmp_path: Path) -> None:
    """As long as its launcher lives; here that is this process."""
    text = f"lima2: 1\n{DETECTOR}\nacquisition: {{frames: 5}}\nnodes: {{save: {{input: data, io_hdf5: {{}}}}}}\n"
    plan, _ = compiled(text)
    assert plan is not None
    plan = replace(plan, output_directory=str(tmp_path / "runs" / "one"))
    directory = open_directory(plan, Origin(text, "pipeline.yaml", tmp_path)).path
    assert read_run(directory).state == "starting"
    assert "one  starting" in lima2("runs", cwd=tmp_path).stdout
    early = lima2("stop", "one", cwd=tmp_path)
    assert (early.returncode, "is starting" in early.stderr) == (1, True)

    told = json.loads((directory / FILE).read_text())
    for gone in ({"started": "1"}, {"pid": 2**30}):  # another process of that number; none
        (directory / FILE).write_text(json.dumps(told | gone))
        assert read_run(directory).state == "aborted"
        with pytest.raises(RunFailed, match="was aborted"):
            ask(directory, {"do": "stop"})

    requests = Requests()
    try:
        requests.announce(str(directory))
        assert "socket" in json.loads((directory / FILE).read_text())
    finally:
        requests.close()
    assert not list(directory.glob("*control*"))


def test_requests_are_checked(tmp_path: Path) -> None:
    requests = Requests()
    try:
        requests.announce(str(tmp_path))
        told = json.loads((tmp_path / FILE).read_text())
        assert len(told["socket"]) < 108
        for sent in (b"nonsense\n", b"[1]\n", b'{"do": 3}\n', b"x" * 5000):
            with socket.socket(socket.AF_UNIX) as caller:
                caller.connect("\0" + told["socket"])
                caller.sendall(sent)
                answer = _answer(requests, caller)
            assert answer == {"ok": False, "message": "not a valid request"}
    finally:
        requests.close()
    assert not (tmp_path / FILE).exists()
    assert ask(tmp_path, {"do": "stop"})["ok"] is False


def _answer(requests: Requests, caller: socket.socket) -> Any:
    caller.settimeout(0.05)
    for _ in range(100):
        requests.poll(lambda request: {"ok": True})
        try:
            return json.loads(caller.recv(4096))
        except TimeoutError:
            continue
    raise AssertionError("no answer")


def test_a_run_on_another_host_cannot_be_asked(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"host": "elsewhere", "pid": 1, "socket": "/nowhere"}))
    with pytest.raises(RunFailed, match="elsewhere"):
        ask(tmp_path, {"do": "stop"})


@pytest.mark.parametrize("when", ["ended", "limit"])
def test_a_receiver_that_hangs_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    text = f"lima2: 1\n{DETECTOR}\nacquisition: {{frames: 5, timeout: 200 ms}}\n"
    plan, _ = compiled(text + "nodes: {t: {input: data, checkpoint: {}}}\n")
    assert plan is not None
    obey = ReceiverRank._obey
    hung: list[str] = []

    def hang(self: ReceiverRank, kind: str, what: object) -> None:
        hung.append(kind)
        if when not in hung:
            obey(self, kind, what)

    monkeypatch.setattr(ReceiverRank, "_obey", hang)
    monkeypatch.setattr(ReceiverRank, "_report_progress", lambda self, *how: False)
    monkeypatch.setattr(patience, "SHORTEST_SILENCE_S", 0.2)
    step = ReceiverRank.step
    monkeypatch.setattr(ReceiverRank, "step", lambda self: when not in hung and step(self))
    order = BY_USER if when == "limit" else None
    with pytest.raises(RunFailed, match=r"receiver0 \(rank 2\) has sent nothing for 240 ms"):
        run_inline(plan, tmp_path, str(tmp_path), lambda event: None, lambda: order)
