"""Transforms in whole runs: what they make is saved, what they drop is accounted for."""

from pathlib import Path

import numpy as np
import pytest

from lima2cli.geometry import Rect
from tests.running import TRANSPORTS, counter, lima2, mpi, needs_mpi, run

DETECTOR = "detector: {remu: {image: {width: 16, height: 12}, datasets: {D: {dtype: uint16}}, scene: {counter: {}}}}"
SOURCE = Rect(0, 0, 16, 12)


@pytest.mark.parametrize(("receivers", "transport"), [(1, "inline"), (2, "inline"), mpi(2)])
def test_accumulated_frames(receivers: int, transport: str, tmp_path: Path) -> None:
    ran = run(
        f"""
lima2: 1
{DETECTOR}
acquisition: {{frames: 50}}
receivers: {receivers}
flows: {{F: {{dataset: D, slices: {{start: 2, step: 2}}, rules: {{blocks_per_group: 8}}, buffers: {{frames: 16}}}}}}
nodes:
  four: {{input: F, accumulate: {{frames: 4}}}}
  save: {{input: four, io_hdf5: {{}}}}
  spread: {{input: F, accumulate: {{frames: 4, operation: std}}}}
  noise: {{input: spread, io_hdf5: {{}}}}
  counters: {{input: four, roi_counters: {{rois: {{all: {{rect: {{x: 0, y: 0, width: 16, height: 12}}}}}}}}}}
  raw: {{input: F, io_hdf5: {{}}}}
""",
        tmp_path,
        transport,
    )
    assert ran.code == 0, ran.output
    numbers = np.arange(2, 50, 2, dtype=np.uint64)
    windows = counter(numbers, SOURCE, 16).astype(np.int64).reshape(6, 4, 12, 16)
    saved, found, status = ran.saved("save")
    assert saved.dtype == np.int64
    assert found.tolist() == list(range(2, 50, 8))
    assert not status.any()
    np.testing.assert_array_equal(saved, windows.sum(axis=1))
    noise, found, _ = ran.saved("noise")
    assert found.tolist() == list(range(2, 50, 8))
    np.testing.assert_array_equal(noise, windows.std(axis=1).astype(np.float32))
    channel = ran.summary["channels"]["save"]
    assert (channel["expected"], channel["saved"], channel["dropped"], channel["lost"]) == (6, 6, 0, 0)
    assert ran.summary["channels"]["raw"]["saved"] == 24


@pytest.mark.parametrize("frames", [7, 0])
def test_the_last_window(frames: int, tmp_path: Path) -> None:
    ran = run(
        f"""
lima2: 1
{DETECTOR}
acquisition: {{frames: 20}}
nodes:
  some: {{input: D, accumulate: {{frames: {frames}, operation: max}}}}
  save: {{input: some, io_hdf5: {{}}}}
""",
        tmp_path,
        "inline",
    )
    assert ran.code == 0, ran.output
    everything = counter(np.arange(20, dtype=np.uint64), SOURCE, 16)
    saved, found, status = ran.saved("save")
    channel = ran.summary["channels"]["save"]
    if frames:
        assert found.tolist() == [0, 7]  # an incomplete window is dropped
        assert status.tolist() == [0, 0]
        np.testing.assert_array_equal(saved, everything[:14].reshape(2, 7, 12, 16).max(axis=1))
        assert (channel["expected"], channel["saved"], channel["dropped"], channel["lost"]) == (3, 2, 1, 0)
    else:
        assert found.tolist() == [0]
        np.testing.assert_array_equal(saved[0], everything.max(axis=0))
        assert (channel["expected"], channel["saved"], channel["dropped"], channel["lost"]) == (1, 1, 0, 0)


CODE = """
def negative(frames, numbers):
    return 65535 - frames

def picky(frames, numbers):
    if (numbers % 10 == 3).any():
        raise ValueError(f"no threes, please: {numbers.tolist()}")
    return frames
"""


def pipeline(on_error: str, receivers: int = 2) -> str:
    return f"""
lima2: 1
{DETECTOR}
acquisition: {{frames: 40}}
receivers: {receivers}
flows: {{F: {{dataset: D, buffers: {{frames: 4}}}}}}
nodes:
  less: {{input: F, python: {{function: user.py:picky, on_error: {on_error}}}}}
  save: {{input: less, io_hdf5: {{}}}}
  raw: {{input: F, io_hdf5: {{}}}}
"""


def test_a_function_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(CODE)
    ran = run(pipeline("drop").replace("picky", "negative"), tmp_path, "inline")
    assert ran.code == 0, ran.output
    saved, found, _ = ran.saved("save")
    np.testing.assert_array_equal(saved, 65535 - counter(found, SOURCE, 16))


def test_frames_that_a_function_gives_up_are_counted(tmp_path: Path) -> None:
    """Batches may hold several frames: what goes with a three goes, too, and all of it is told."""
    (tmp_path / "user.py").write_text(CODE)
    ran = run(pipeline("drop"), tmp_path, "inline")
    assert ran.code == 0, ran.output
    saved, found, status = ran.saved("save")
    gone = found[status == 2]
    assert {3, 13, 23, 33} <= set(gone.tolist())
    assert set(status.tolist()) == {0, 2}
    channel = ran.summary["channels"]["save"]
    assert (channel["expected"], channel["dropped"], channel["lost"]) == (40, len(gone), 0)
    assert channel["saved"] == 40 - len(gone)
    kept = status == 0
    np.testing.assert_array_equal(saved[kept], counter(found[kept], SOURCE, 16))
    assert ran.summary["channels"]["raw"]["saved"] == 40
    inspected = lima2("inspect", "--verify", "--format", "json", str(ran.directory), cwd=tmp_path)
    assert inspected.returncode == 0, inspected.stdout


def test_pass_hands_the_input_on(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(CODE)
    ran = run(pipeline("pass"), tmp_path, "inline")
    assert ran.code == 0, ran.output
    saved, found, status = ran.saved("save")
    assert not status.any()
    np.testing.assert_array_equal(saved, counter(found, SOURCE, 16))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_stop_ends_the_run_and_says_where(transport: str, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(CODE)
    ran = run(pipeline("stop", 1).replace("frames: 40", "frames: 40, rate: 200"), tmp_path, transport)
    assert ran.code == 10, ran.output
    line = CODE.splitlines().index('        raise ValueError(f"no threes, please: {numbers.tolist()}")') + 1
    assert f"user.py:{line}: ValueError: no threes, please" in ran.output
    assert "Traceback" not in ran.output
    assert ran.summary["state"] == "failed"
    saved, found, status = ran.saved("save")
    assert found[status == 0].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(saved[:3], counter(found[:3], SOURCE, 16))


@pytest.mark.mpi
@needs_mpi
def test_a_slow_node_is_not_a_dead_detector(tmp_path: Path) -> None:
    """The detector waits for memory longer than `timeout`, and says so."""
    (tmp_path / "user.py").write_text(
        "import time\n\ndef slow(frames, numbers):\n    time.sleep(2.2 * (numbers[0] == 0))\n    return frames\n"
    )
    text = pipeline("stop", 1).replace("picky", "slow").replace("frames: 40", "frames: 6, timeout: 1.2 s")
    ran = run(text.replace("buffers: {frames: 4}", "buffers: {frames: 1}"), tmp_path, "mpi")
    assert ran.code == 0, ran.output
    assert ran.summary["channels"]["save"]["saved"] == 6
    assert ran.summary["flows"]["F"]["waited_s"] > 2
