"""Windows of frames that become one: a last incomplete one has no row in any file, and is counted as dropped."""

import json
import os
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.compiling import compiled
from tests.running import TRANSPORTS, Live, Ran, lima2, run, truth

HEAD = """
lima2: 1
detector:
  remu: {image: {width: 16, height: 12}, datasets: {A: {dtype: uint16}, B: {dtype: uint16}}, scene: {counter: {}}}
"""
SUMS = "sum: {input: A, accumulate: {frames: 3}}, save: {input: sum, io_hdf5: {}}"
ALL = "rois: {all: {rect: {x: 0, y: 0, width: 16, height: 12}}}"


def assert_windows(ran: Ran, frames: int, window: int, node: str = "save", *, gone: int = 0, vetoed: int = 0) -> None:
    """So many rows, numbered by the first frames of whole windows, of which ``gone`` are not saved; no other."""
    assert ran.code == 0, ran.output
    whole, partial = frames // window, int(frames % window > 0)
    channel = truth(ran)["channels"][node]
    counts = {key: channel[key] for key in ("expected", "saved", "dropped", "lost", "vetoed")}
    saved = whole - gone - vetoed
    assert counts == {
        "expected": whole + partial, "saved": saved, "dropped": partial + gone, "lost": 0, "vetoed": vetoed,
    }  # fmt: skip
    saved_frames, numbers, status = ran.saved(node)
    if vetoed:
        assert len(saved_frames) == saved
    else:
        assert numbers.tolist() == list(range(0, whole * window, window))
    assert np.count_nonzero(status) == gone
    assert all(frame.any() for frame in saved_frames[status == 0])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_case_with_a_row_of_zeros(tmp_path: Path, transport: str) -> None:
    np.save(tmp_path / "a.npy", np.ones((7, 4, 4), "u2"))
    text = """
lima2: 1
detector: {replay: {file: a.npy}}
nodes: {s: {input: data, accumulate: {frames: 3}}, save: {input: s, io_hdf5: {}}}
"""
    ran = run(text, tmp_path, transport)
    assert_windows(ran, 7, 3)
    assert ran.saved("save")[0].tolist() == np.full((2, 4, 4), 3).tolist()


@pytest.mark.parametrize(("receivers", "blocks"), [(1, 1), (1, 4), (2, 3), (3, 6)])
@pytest.mark.parametrize("frames", [2, 3, 20, 21, 22])
def test_windows_wherever_they_end(tmp_path: Path, receivers: int, blocks: int, frames: int) -> None:
    """A table behind them, and sums of sums; each number of frames, receivers and blocks with both layouts."""
    layout = "files" if (receivers + blocks // 2 + frames) % 2 else "common"
    text = f"""{HEAD}
acquisition: {{frames: {frames}}}
receivers: {receivers}
flows: {{F: {{dataset: A, rules: {{blocks_per_group: {blocks}}}, buffers: {{frames: 24}}}}}}
nodes:
  sum: {{input: F, accumulate: {{frames: 3}}}}
  save: {{input: sum, io_hdf5: {{layout: {layout if frames > 2 else "files"}}}}}
  c: {{input: sum, roi_counters: {{{ALL}}}}}
"""
    ran = run(text, tmp_path, "inline")
    assert_windows(ran, frames, 3)
    with h5py.File(ran.directory / "pipeline_c.h5") if frames > 2 else h5py.File.in_memory() as file:
        assert frames == 2 or len(file["entry_0000/measurement/all_sum"]) == frames // 3
    assert ran.summary["tables"]["c"]["rows"] == frames // 3


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_sums_of_sums_vectors_and_joined_frames(tmp_path: Path, transport: str) -> None:
    (tmp_path / "u.py").write_text("def row(frames, numbers):\n    return frames.sum(axis=1)\n")
    text = f"""{HEAD}
acquisition: {{frames: 29, repeat: 2}}
nodes:
  sum: {{input: A, accumulate: {{frames: 3}}}}
  sums: {{input: sum, accumulate: {{frames: 2}}}}
  save: {{input: sums, io_hdf5: {{}}}}
  vectors: {{input: sum, python: {{function: u.py:row, output: {{shape: [16]}}}}}}
  rows: {{input: vectors, io_hdf5: {{}}}}
  both: {{inputs: {{a: A, b: B}}, expression: {{expr: a + b}}}}
  four: {{input: both, accumulate: {{frames: 4}}}}
  joined: {{input: four, io_hdf5: {{}}}}
  all: {{input: A, accumulate: {{frames: 0}}}}
  one: {{input: all, io_hdf5: {{}}}}
"""
    ran = run(text, tmp_path, transport)
    for directory in sorted((tmp_path / "runs").glob("pipeline_*")):
        each = Ran(ran.code, ran.output, directory)
        for node, window in (("save", 6), ("rows", 3), ("joined", 4), ("one", 29)):
            assert_windows(each, 29, window, node)


def test_a_stopped_run_ends_with_its_last_whole_window(tmp_path: Path) -> None:
    text = f"""{HEAD}
acquisition: {{frames: 0, rate: 200 Hz}}
nodes: {{{SUMS}}}
"""
    live = Live(text, tmp_path, "inline")
    live.wait_for_frames(2)
    os.kill(live.process.pid, signal.SIGINT)
    ran = live.end()
    assert ran.code == 130
    frames = ran.summary["frames"]
    assert_windows(Ran(0, ran.output, ran.directory), frames, 3)


def test_frames_that_are_given_up_and_windows_that_are_vetoed(tmp_path: Path) -> None:
    """In the last incomplete window, too."""
    drop = "def f(frames, numbers):\n    if {2, 22} & set(numbers.tolist()): raise ValueError\n    return frames\n"
    (tmp_path / "u.py").write_text(drop)
    text = f"""{HEAD}
acquisition: {{frames: 23}}
flows: {{F: {{dataset: A, buffers: {{frames: 1}}}}}}
nodes:
  some: {{input: F, python: {{function: u.py:f, on_error: drop}}}}
  sum: {{input: some, accumulate: {{frames: 5}}}}
  save: {{input: sum, io_hdf5: {{}}}}
  good: {{input: F, accumulate: {{frames: 5}}}}
  log: {{input: good, checkpoint: {{}}}}
  first: {{input: good, filter: {{keep: log.latency < -1, every: 2}}}}
  kept: {{input: first, io_hdf5: {{}}}}
"""
    ran = run(text, tmp_path, "inline")
    assert_windows(ran, 23, 5, gone=1)
    assert_windows(ran, 23, 5, "kept", vetoed=ran.summary["channels"]["kept"]["vetoed"])
    assert 0 < ran.summary["channels"]["kept"]["vetoed"] < 4


def test_what_recover_makes_says_the_same(tmp_path: Path) -> None:
    """Without a master it is known from the flows."""
    text = f"{HEAD}acquisition: {{frames: 20}}\nnodes: {{{SUMS}, raw: {{input: A, io_hdf5: {{}}}}}}\n"
    ran = run(text, tmp_path, "inline")
    (ran.directory / "pipeline_save_master.h5").unlink()
    done = lima2("inspect", "--format", "json", str(ran.directory), cwd=tmp_path)
    channel = json.loads(done.stdout)["channels"]["save"]
    assert [channel[key] for key in ("expected", "saved", "dropped", "lost")] == [7, 6, 1, 0]
    done = lima2("recover", str(ran.directory), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_windows(ran, 20, 3)


@pytest.mark.parametrize(("frames", "warned"), [(2, True), (3, False)])
def test_a_window_longer_than_the_run_is_warned_of(frames: int, warned: bool) -> None:
    plan, findings = compiled(f"{HEAD}acquisition: {{frames: {frames}}}\nnodes: {{{SUMS}}}\n")
    assert plan is not None
    found = [item.at for item in findings if item.rule == "window-too-long"]
    assert found == [("nodes", "sum", "accumulate", "frames")] * warned
