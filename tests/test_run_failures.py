"""Runs that are stopped, killed, starved or lied to: files stay readable, the summary tells the truth."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from lima2cli.geometry import Rect
from tests.running import TRANSPORTS, Live, Ran, counter, lima2, needs_mpi, run, truth

PIPELINE = """
lima2: 1
detector:
  remu:
    image: {width: 64, height: 48}
    datasets: {D: {dtype: uint16}}
    modules: {columns: 2, rows: 1, width: 32, height: 48}
    scene: {counter: {}}
acquisition: ACQUISITION
receivers: 2
flows:
  F: {dataset: D, rules: {blocks_per_group: 3}, buffers: {frames: 30}}
  G: {dataset: D, slices: {start: 2, step: 7}, events: {group: 2, end: true}, buffers: {frames: 30}}
nodes:
  f: {input: F, io_hdf5: {}}
  g: {input: G, io_hdf5: {compression: none, frames_per_file: 50}}
  t: {input: F, checkpoint: {}}
"""

RIGHT = {"f": (0, 1), "g": (2, 7)}
"""First frame and step of each channel."""


def pipeline(acquisition: str) -> str:
    return PIPELINE.replace("ACQUISITION", acquisition)


def check_pixels(ran: Ran, node: str, start: int = 0, step: int = 1) -> np.ndarray:
    """Rows are the selected frames in order, and every saved pixel is right; the status of the rows."""
    frames, numbers, status = ran.saved(node)
    assert numbers.tolist() == list(range(start, start + step * len(numbers), step))
    kept = status == 0
    width, height = frames.shape[2], frames.shape[1]
    np.testing.assert_array_equal(frames[kept], counter(numbers[kept], Rect(0, 0, width, height), width))
    assert ran.summary["channels"][node]["saved"] == kept.sum()
    return status


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("acquisition", ["{frames: 0}", "{frames: 0, period: 1 ms}"])
def test_ctrl_c_ends_a_run_in_order(acquisition: str, transport: str, tmp_path: Path) -> None:
    live = Live(pipeline(acquisition), tmp_path, transport)
    live.wait_for_frames()
    live.process.send_signal(signal.SIGINT)
    ran = live.end()
    assert ran.code == 130, ran.output
    summary = truth(ran)
    assert summary["state"] == "stopped"
    frames = summary["frames"]
    assert frames > 0
    for node, (start, step) in RIGHT.items():
        status = check_pixels(ran, node, start, step)
        assert len(status) == len(range(start, frames, step))
        assert not status.any()
    flow_f, flow_g = summary["flows"]["F"], summary["flows"]["G"]
    groups = frames // 3
    assert flow_f["group_events"] == {"receiver0": -(-groups // 2), "receiver1": groups // 2}
    assert flow_f["end_events"] == flow_g["end_events"] == {"receiver0": 1, "receiver1": 1}
    blocks = flow_g["expected"]
    assert flow_g["group_events"] == {"receiver0": -(-blocks // 2) // 2, "receiver1": blocks // 2 // 2}
    assert live.survivors() == []


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_sigterm_ends_a_run_in_order(transport: str, tmp_path: Path) -> None:
    live = Live(pipeline("{frames: 0, period: 1 ms}"), tmp_path, transport)
    live.process.send_signal(signal.SIGTERM)
    ran = live.end()
    assert ran.code == 143, ran.output
    assert truth(ran)["state"] == "stopped"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_second_ctrl_c_ends_a_run_at_once(transport: str, tmp_path: Path) -> None:
    """A slow sink keeps the first one from being done with at once."""
    text = pipeline("{frames: 0}").replace("image: {width: 64, height: 48}", "image: {width: 640, height: 480}")
    text = text.replace("width: 32, height: 48", "width: 320, height: 480").replace(
        "io_hdf5: {}", "io_hdf5: {compression: gzip}"
    )
    live = Live(text, tmp_path, transport)
    live.wait_for_frames()
    live.process.send_signal(signal.SIGINT)
    live.process.send_signal(signal.SIGTERM)
    ran = live.end(timeout=20)
    assert ran.code in (130, 143), ran.output
    assert ran.summary["state"] == "stopped"
    truth(ran)
    for node, (start, step) in RIGHT.items():
        check_pixels(ran, node, start, step)
    assert live.survivors() == []


@pytest.mark.mpi
@needs_mpi
@pytest.mark.parametrize(("rank", "role"), [(0, "control"), (1, "detector"), (3, "receiver")])
def test_a_killed_rank_fails_the_run_and_its_files_stay(rank: int, role: str, tmp_path: Path) -> None:
    live = Live(pipeline("{frames: 100000, period: 1 ms}"), tmp_path, "mpi")
    live.wait_for_frames(3)
    live.ranks[rank].kill()
    ran = live.end()
    assert ran.code == 10, ran.output
    summary = truth(ran)
    assert summary["state"] == "failed"
    assert "exit code 9" in summary["reason"]
    assert "BAD TERMINATION" not in ran.output
    for node, (start, step) in RIGHT.items():
        status = check_pixels(ran, node, start, step)
        assert (status == 0).sum() >= 10
    assert live.survivors() == []


@pytest.mark.mpi
@needs_mpi
def test_ranks_outlive_their_launcher_just_to_end_the_run(tmp_path: Path) -> None:
    live = Live(pipeline("{frames: 0, period: 1 ms}"), tmp_path, "mpi")
    live.wait_for_frames()
    live.process.kill()
    live.process.communicate(timeout=20)
    assert live.survivors() == []
    recovered = lima2("recover", "runs/latest", cwd=tmp_path)
    assert recovered.returncode == 0, recovered.stderr
    ran = Ran(0, "", (tmp_path / "runs" / "latest").resolve())
    truth(ran)
    for node, (start, step) in RIGHT.items():
        check_pixels(ran, node, start, step)


@pytest.mark.mpi
@needs_mpi
def test_nothing_is_left_in_shared_memory(tmp_path: Path) -> None:
    def ours() -> set[str]:
        return {name for name in os.listdir("/dev/shm") if name.startswith(("mpich", "ucx"))}

    before = ours()
    for index in range(5):
        ran = run(pipeline("{frames: 20}"), tmp_path, "mpi")
        assert ran.code == 0, ran.output
        assert ran.directory.name == f"pipeline_{index + 1:04d}"
    live = Live(pipeline("{frames: 0, period: 1 ms}"), tmp_path, "mpi")
    for rank in live.ranks:
        rank.kill()
    assert live.end().code == 10
    for path in ours() - before:
        assert _mapped_by_a_process(path), f"{path} is left"


def _mapped_by_a_process(name: str) -> bool:
    """Other tests may run MPI at the same time."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if name in maps.read_text():
                return True
        except OSError:
            continue
    return False
