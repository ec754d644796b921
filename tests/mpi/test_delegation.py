"""Node mpi: other ranks of the run work on blocks; what they reply, and what becomes of the run when they fail."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from lima2cli.geometry import Rect
from tests.compiling import compiled, figures, plan_of
from tests.running import EXAMPLES, TRANSPORTS, Live, counter, lima2, mpiexec, needs_mpi, run, truth

HEAD = """
lima2: 1
detector: {remu: {image: {width: 16, height: 12}, datasets: {D: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 41, timeout: 20 s}
receivers: 2
flows:
  F: {dataset: D, rules: {blocks_per_group: 4}, buffers: {frames: 16}}
"""
SOURCE = Rect(0, 0, 16, 12)
FUNCTIONS = """
import os, signal, sys, time
import numpy as np

def scaled(frames, numbers, by=2):
    return frames * np.uint16(by)

def sums(frames, numbers):
    return frames.sum(axis=(1, 2), dtype=np.float64)[:, None]

def odd(frames, numbers):
    if 5 in numbers:
        raise ValueError("five")
    return frames

def wrong(frames, numbers):
    return frames[:, :3]

def slow(frames, numbers):
    if 5 in numbers:
        time.sleep(1.5)
    return frames

class Count:
    def __init__(self, spec, path):
        self.seen, self.path, self.shape = [], path, spec.shape

    def __call__(self, frames, numbers):
        assert frames.shape[1:] == self.shape and not frames.flags.writeable
        self.seen += numbers.tolist()
        return frames

    def close(self):
        with open(self.path, "w") as file:
            file.write(" ".join(map(str, self.seen)))

class Broken:
    def __init__(self, spec):
        raise OSError("no such camera")

    def __call__(self, frames, numbers):
        return frames
"""
SAVE = "  s: {input: w, io_hdf5: {}}\n"


def text(node: str, more: str = SAVE) -> str:
    return f"{HEAD}nodes:\n  w: {{input: F, mpi: {{{node}}}}}\n{more}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(FUNCTIONS)
    return tmp_path


def pixels(numbers: NDArray[np.uint64]) -> NDArray[np.uint16]:
    return counter(numbers, SOURCE, 16)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_several_workers_reply_and_the_order_of_frames_is_kept(folder: Path, transport: str) -> None:
    nodes = SAVE + (
        '  t: {input: w, mpi: {function: "own.py:sums", output: {dtype: float64, shape: [1]}}}\n'
        "  v: {input: t, io_hdf5: {}}\n  j: {inputs: {a: F, b: w}, expression: {expr: b - a, dtype: int32}}\n"
        "  d: {input: j, io_hdf5: {}}\n"
    )
    ran = run(text('function: "own.py:scaled", ranks: 3, params: {by: 3}', nodes), folder, transport)
    assert ran.code == 0, ran.output
    summary = truth(ran)
    frames, numbers, _ = ran.saved("s")
    assert numbers.tolist() == list(range(41))
    np.testing.assert_array_equal(frames, pixels(numbers) * np.uint16(3))
    vectors, _, _ = ran.saved("v")
    assert vectors.shape == (41, 1, 1)
    np.testing.assert_array_equal(vectors[:, 0, 0], frames.sum(axis=(1, 2)))
    np.testing.assert_array_equal(ran.saved("d")[0], frames.astype(np.int32) - pixels(numbers))
    workers = summary["workers"]
    assert [worker["node"] for worker in workers] == ["w", "w", "w", "t"]
    assert sum(worker["frames"] for worker in workers[:3]) == workers[3]["frames"] == 41
    assert all(worker["blocks"] for worker in workers)
    assert [rank["role"] for rank in summary["resources"]["ranks"]].count("worker") == 4


def test_without_replies_frames_go_on_and_the_worker_sees_them_all(folder: Path) -> None:
    node = f'function: "own.py:Count", reply: false, params: {{path: {json.dumps(str(folder / "seen"))}}}'
    ran = run(text(node), folder, "inline")
    frames, numbers, _ = ran.saved("s")
    np.testing.assert_array_equal(frames, pixels(numbers))
    seen = np.array((folder / "seen").read_text().split(), int)
    assert sorted(seen) == list(range(41))
    for receiver in (0, 1):
        assert (np.diff(seen[seen // 4 % 2 == receiver]) > 0).all()


@pytest.mark.parametrize(
    ("on_error", "saved", "dropped"), [("drop", 37, 4), ("pass", 41, 0)]
)  # fmt: skip
def test_a_block_that_fails_is_dropped_or_passed_on(folder: Path, on_error: str, saved: int, dropped: int) -> None:
    ran = run(text(f'function: "own.py:odd", on_error: {on_error}'), folder, "inline")
    assert ran.code == 0, ran.output
    summary = truth(ran)
    channel = summary["channels"]["s"]
    assert (channel["saved"], channel["dropped"]) == (saved, dropped)
    frames, numbers, status = ran.saved("s")
    np.testing.assert_array_equal(frames[status == 0], pixels(numbers[status == 0]))
    assert numbers[status == 2].tolist() == list(range(4, 8))[: int(dropped)]
    assert summary["warnings"] == [
        f"w: a worker has failed (on_error: {on_error}): own.py:13: ValueError: five (own.py:odd, frames 4 to 7)"
    ]
    assert summary["workers"][0]["failed"] == 1


@pytest.mark.parametrize(
    ("name", "why"), [("odd", "own.py:13: ValueError: five"), ("wrong", "own.py:wrong returned (4, 3, 16)")]
)
def test_a_block_that_fails_stops_the_run(folder: Path, name: str, why: str) -> None:
    ran = run(text(f'function: "own.py:{name}"'), folder, "inline")
    assert ran.code == 10
    assert why in ran.summary["reason"]
    assert "node w" in ran.output
    truth(ran, problems=True)


def test_a_worker_that_cannot_start_keeps_the_run_from_starting(folder: Path) -> None:
    ran = run(text('function: "own.py:Broken"'), folder, "inline")
    assert ran.code == 10
    assert ran.summary["reason"] == "w: own.py:39: OSError: no such camera (own.py:Broken, __init__)"
    assert ran.summary["seconds"] == 0
    assert ran.summary["flows"]["F"]["received"] == 0


def test_frames_that_may_be_overwritten_are_copied_and_a_slow_worker_holds_them_back(folder: Path) -> None:
    """Whoever is too slow loses frames where they arrive: what waits for the worker is bounded."""
    slow = text('function: "own.py:scaled"').replace("buffers:", "overrun: continue, buffers:")
    ran = run(slow.replace("frames: 41", "frames: 4000, rate: 20 kHz"), folder, "inline")
    frames, numbers, status = ran.saved("s")
    assert (status == 0).any()
    np.testing.assert_array_equal(frames[status == 0], pixels(numbers[status == 0]) * np.uint16(2))
    truth(ran)


LOOP = """
import os, signal, sys, time
from lima2cli.worker import Worker

mode, frames = sys.argv[1], 0
for task in Worker():
    frames += len(task.numbers)
    if frames > 12 and mode == "raise":
        raise ValueError("enough")
    if frames > 12 and mode == "hang":
        time.sleep(60)
    if frames > 12 and mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    task.reply(task.frames)
print("the worker saw", frames)
"""


@pytest.mark.mpi
@needs_mpi
@pytest.mark.parametrize("mode", ["raise", "hang", "kill"])
def test_a_program_of_the_users_that_goes_wrong(tmp_path: Path, mode: str) -> None:
    (tmp_path / "loop.py").write_text(LOOP)
    asked = text(f"command: [python, loop.py, {mode}], on_error: drop")
    ran = run(asked.replace("timeout: 20 s", "timeout: 2 s") if mode == "hang" else asked, tmp_path, "mpi")
    if mode == "kill":
        assert ran.code == 10
        seen = r"the ranks ended without a summary \(mpiexec: exit code 9\)(: .* was the first to end)?;.*"
        assert re.fullmatch(seen, ran.summary["reason"])
        return
    assert ran.code == 0, ran.output
    summary, (frames, numbers, status) = truth(ran), ran.saved("s")
    np.testing.assert_array_equal(frames[status == 0], pixels(numbers[status == 0]))
    why = {"raise": "loop.py:9: ValueError: enough", "hang": "it did not reply for 2 s"}[mode]
    assert summary["warnings"] == [f"w: rank 4, a worker, has ended: {why}"]
    assert (summary["channels"]["s"]["saved"], summary["channels"]["s"]["dropped"]) == (12, 29)
    assert summary["workers"][0]["frames"] == {"raise": 16, "hang": None}[mode]


@pytest.mark.mpi
@needs_mpi
def test_a_program_that_does_not_join_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lima2cli.job import launch
    from lima2cli.job.run import run_plan
    from lima2cli.plan.ir import Plan
    from lima2cli.runs.saved_plan import Origin

    (tmp_path / "idle.py").write_text("print('nothing to do')")
    monkeypatch.setattr(launch, "START_UP_S", 1.5)
    monkeypatch.chdir(tmp_path)
    source = text("command: [python, idle.py]")
    plan: Plan = plan_of(source, tmp_path)
    _, summary, code = run_plan(plan, Origin(source, "idle.yaml", tmp_path), lambda event: None, transport="mpi")
    assert code == 10
    assert summary.reason == "the programs of w did not all join the run (lima2cli.worker); see lima2.log"


def align() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rt_align", EXAMPLES / "rt_align.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rolled(shifts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """A picture that moves by these shifts (n, 2) from frame to frame."""
    picture = np.random.default_rng(1).integers(0, 1000, (30, 42), np.uint16)
    return np.stack([np.roll(picture, tuple(moved), (0, 1)) for moved in np.cumsum(shifts, axis=0)])


def test_phase_correlation_finds_known_shifts() -> None:
    shifts = np.random.default_rng(2).integers(-14, 15, (20, 2))
    found = align().Shift(None)(rolled(shifts), np.arange(20))
    assert found[0].tolist() == [0, 0]
    np.testing.assert_array_equal(found[1:], shifts[1:])


@pytest.mark.mpi
@needs_mpi
def test_the_example_measures_shifts_under_mpiexec(tmp_path: Path) -> None:
    """As in: mpiexec -n 3 lima2 run … : -n 1 python -m rt_align."""
    shifts = np.array([[0, 0], [3, -2], [1, 1], [-4, 5], [0, 7], [2, 0]])
    np.save(tmp_path / "moving.npy", rolled(shifts))
    (tmp_path / "rt_align.py").write_text((EXAMPLES / "rt_align.py").read_text())
    pipeline = (EXAMPLES / "rt_align.yaml").read_text()
    start, end = pipeline.index("detector:"), pipeline.index("receivers: 1")
    (tmp_path / "p.yaml").write_text(pipeline[:start] + "detector: {replay: {file: moving.npy}}\n" + pipeline[end:])
    done = mpiexec(3, "run", "p.yaml", ":", "-n", "1", sys.executable, "-m", "rt_align", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    import h5py

    with h5py.File(tmp_path / "runs/latest/p_shifts_master.h5") as file:
        np.testing.assert_array_equal(file["entry_0000/measurement/data"][:, 0], shifts)


@pytest.mark.launch
@pytest.mark.mpi
@needs_mpi
def test_control_c_ends_the_workers_too(folder: Path) -> None:
    live = Live(text('function: "own.py:scaled"').replace("frames: 41", "period: 5 ms"), folder, "mpi")
    live.wait_for_frames()
    live.process.send_signal(2)
    ran = live.end()
    assert ran.code == 130
    assert live.survivors() == []
    assert truth(ran)["state"] == "stopped"


def found(node: str) -> list[tuple[str, tuple[str | int, ...]]]:
    _, findings = compiled(text(node))
    return [(item.rule, item.at) for item in findings]


@pytest.mark.parametrize(
    ("node", "rule", "at"),
    [
        ("ranks: 2", "command-or-function", ()),
        ('command: [a], function: "os:getcwd"', "command-or-function", ()),
        ('function: "nope:f"', "unknown-function", ("function",)),
        ("command: [a, ':']", "bad-command", ("command", 1)),
        ("command: ['-n']", "bad-command", ("command", 0)),
        ("command: []", "out-of-range", ("command",)),
        ("command: [a], ranks: 0", "out-of-range", ("ranks",)),
        ("command: [a], output: {shape: [2]}, on_error: pass", "edge-mismatch", ("on_error",)),
        ("command: [a], output: {shape: [2, 3, 4]}", "not-available", ("output", "shape")),
        ("command: [a], output: {dtype: float32}, reply: false", "unused-output", ("output",)),
    ],
)
def test_each_mistake_is_told_once_at_its_place(node: str, rule: str, at: tuple[str, ...]) -> None:
    assert found(node) == [(rule, ("nodes", "w", "mpi", *at))]


def test_partial_frames_are_refused() -> None:
    parts = text("command: [a]").replace("rules: {blocks_per_group: 4}", "dispatch: modules")
    parts = parts.replace("datasets", "modules: {columns: 2, rows: 1, width: 8, height: 12}, datasets")
    _, findings = compiled(parts)
    assert [item.rule for item in findings] == ["edge-mismatch"]


def test_the_plan_lists_workers() -> None:
    ranks = figures(plan_of(text("command: [a], ranks: 2")))["ranks"]
    assert ranks[-2:] == [{"rank": rank, "role": "worker", "node": "w"} for rank in (4, 5)]


def test_a_program_needs_mpi_and_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text("command: [no-such-program]"))
    for transport, word in (("inline", "only MPI can"), ("mpi", "no program `no-such-program`")):
        done = lima2("run", "p.yaml", "--transport", transport, cwd=tmp_path)
        assert done.returncode == 12
        assert word in done.stderr
