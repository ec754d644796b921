"""Ranks that stay: runs of tests on them are as those that are launched, and one that ends costs no other run."""

from pathlib import Path

import numpy as np
import pytest

from tests.running import needs_mpi, run
from tests.world import Worlds

pytestmark = [pytest.mark.mpi, needs_mpi]

TEXT = """
lima2: 1
detector: {remu: {image: {width: 16, height: 8}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 12}
receivers: 2
flows: {data: {dataset: data, rules: {blocks_per_group: 2}, buffers: {frames: 12}}}
nodes: {u: {input: data, python: {function: "u.py:f"}}, save: {input: u, io_hdf5: {}}}
"""

PRINTS = "def f(frames, numbers):\n    print(f'saw {numbers[0]}\\n', end='')\n    return frames\n"

DIES = "import os\n\ndef f(frames, numbers):\n    os._exit(3)\n"


def test_two_runs_on_the_same_ranks(tmp_path: Path) -> None:
    (tmp_path / "u.py").write_text(PRINTS)
    processes = []
    for number in (1, 2):
        ran = run(TEXT, tmp_path, "mpi")
        assert ran.code == 0, ran.output
        assert ran.directory.name == f"pipeline_{number:04d}"
        np.testing.assert_array_equal(ran.saved("save")[1], np.arange(12))
        assert sorted(line for line in ran.output.splitlines() if line.startswith("saw ")) == sorted(
            f"saw {first}" for first in range(0, 12, 2)
        )
        assert Worlds.now is not None
        processes.append(Worlds.now.process.pid)
    assert processes[0] == processes[1]


def test_a_rank_that_ends_fails_its_run_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "u.py").write_text(DIES)
    ran = run(TEXT, tmp_path, "mpi")
    assert (ran.code, ran.summary["state"]) == (10, "failed"), ran.output
    assert ran.summary["reason"].startswith("the ranks ended without a summary")
    assert Worlds.now is not None
    gone = Worlds.now.process
    (tmp_path / "u.py").write_text(PRINTS)
    ran = run(TEXT, tmp_path, "mpi")
    assert ran.code == 0, ran.output
    gone.wait(60)  # raises where it goes on


@pytest.mark.launch
def test_a_test_of_the_launch_starts_its_own(tmp_path: Path) -> None:
    before = Worlds.now
    (tmp_path / "u.py").write_text(DIES)
    ran = run(TEXT, tmp_path, "mpi")
    assert ran.code == 10, ran.output
    assert ran.summary["reason"].startswith("the ranks ended without a summary (mpiexec: exit code")
    assert Worlds.now is before
    assert before is None or before.alive
