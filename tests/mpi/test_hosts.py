"""Runs over several hosts, which are network namespaces: see `tests.hosts`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.hosts import Hosts, hosts
from tests.running import EXAMPLES, Ran, lima2, needs_mpi, truth

pytestmark = [pytest.mark.mpi, pytest.mark.launch, needs_mpi]

LIMA2 = (sys.executable, "-P", "-m", "lima2cli")

PIPELINE = """
lima2: 1
name: k
detector:
  remu:
    image: {width: 64, height: 48}
    modules: {columns: 2, rows: 1, width: 32, height: 48}
    datasets: {d: {dtype: uint16}}
    scene: {counter: {}}
acquisition: {frames: FRAMES, period: 2 ms, timeout: 3 s}
receivers: {a: {}, b: {host: HOST1}, c: {host: HOST2}}
flows: {f: {dataset: d, rules: {blocks_per_group: 4}}}
nodes: {save: {input: f, io_hdf5: {}}}
"""


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Hosts]:
    with hosts(3, tmp_path) as made:
        yield made


def written(folder: Path, three: Hosts, frames: int) -> None:
    text = PIPELINE.replace("FRAMES", str(frames)).replace("HOST1", three.names[1]).replace("HOST2", three.names[2])
    (folder / "k.yaml").write_text(text)


def test_the_maze_on_three_hosts_is_that_on_one(tmp_path: Path, three: Hosts) -> None:
    maze = (EXAMPLES / "maze.yaml").read_text()
    for number in (1, 2):
        maze = maze.replace(f"  receiver{number}:\n", f"  receiver{number}:\n    host: {three.names[number]}\n")
    (tmp_path / "maze.yaml").write_text(maze)
    code, printed = three.run(*LIMA2, "run", "maze.yaml", "--progress", "plain", cwd=tmp_path)
    assert code == 0, printed
    spread = Ran(code, printed, (tmp_path / "runs" / "latest").resolve())
    done = lima2("run", str(EXAMPLES / "maze.yaml"), "--transport", "inline", cwd=tmp_path)
    assert done.returncode == 0
    alone = Ran(0, done.stdout, (tmp_path / "runs" / "latest").resolve())
    assert alone.directory != spread.directory
    assert set(spread.summary["channels"]) == {"corridor", "full1", "full2", "room"}
    for channel in spread.summary["channels"]:
        for one, other in zip(spread.saved(channel), alone.saved(channel), strict=True):
            np.testing.assert_array_equal(one, other)
    for key in ("expected", "received", "missing"):
        assert {it: flow[key] for it, flow in spread.summary["flows"].items()} == {
            it: flow[key] for it, flow in alone.summary["flows"].items()
        }
    assert (
        three.received(three.names[1]) > spread.saved("corridor")[0].size
    )  # half of its uint16, as the flow shares them


def started(three: Hosts, folder: Path) -> "subprocess.Popen[str]":
    """A run whose last receiver has its file, two seconds later."""
    process = three.start(*LIMA2, "run", "k.yaml", "--progress", "plain", cwd=folder)
    until = time.monotonic() + 60
    while time.monotonic() < until and not list(folder.glob("runs/latest/k_save_2_00000.h5")):
        time.sleep(0.1)
    time.sleep(2)
    return process


@pytest.mark.parametrize("how", ["killed", "unplugged"])
def test_a_host_that_vanishes_ends_the_run(tmp_path: Path, three: Hosts, how: str) -> None:
    """In bounded time, with files that can be read and say what is in them."""
    written(tmp_path, three, 20_000)
    process = started(three, tmp_path)
    if how == "unplugged":
        three.unplug(three.names[2])
    else:
        for pid in three.processes(three.names[2]):
            os.kill(pid, signal.SIGKILL)
    printed, _ = process.communicate(timeout=120)
    ran = Ran(process.returncode, printed, (tmp_path / "runs" / "latest").resolve())
    assert ran.code == 10, printed
    summary = truth(ran)
    assert summary["state"] == "failed"
    assert summary["channels"]["save"]["saved"] > 0
    frames, numbers, status = ran.saved("save")
    expected = (7919 * numbers[status == 0, np.newaxis].astype(np.int64) + np.arange(64 * 48)) % 65536
    np.testing.assert_array_equal(frames[status == 0].reshape(-1, 64 * 48), expected)


def test_hosts_that_do_not_share_the_directory_say_so(tmp_path: Path, three: Hosts) -> None:
    written(tmp_path, three, 20)
    (tmp_path / "runs").mkdir()
    three.keep_apart(tmp_path / "runs")
    code, printed = three.run(*LIMA2, "run", "k.yaml", "--progress", "plain", cwd=tmp_path)
    assert code == 10
    assert f"{three.names[1]} does not see the run directory {tmp_path / 'runs' / 'k_0001'}: all hosts" in printed
