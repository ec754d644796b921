"""Jobs of SLURM: the script that starts the ranks of a plan, and plans that fit a job of another size."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2cli.plan.compile import fitted
from lima2cli.plan.slurm import job_script
from tests.compiling import plan_of
from tests.running import Ran, lima2, mpiexec, needs_mpi

PIPELINE = """
lima2: 1
name: k
detector:
  remu:
    image: {width: 64, height: 48}
    modules: {columns: 2, rows: 2, width: 32, height: 24}
    datasets: {D: {dtype: uint16}}
    scene: {counter: {}}
acquisition: {frames: 90, period: 10 s}
receivers:
  a: {memspaces: {host: {host: {size: 64 MiB}}}, threads: 4}
  b: {HOST}
flows: {F: {dataset: D}}
nodes: {save: {input: F, io_hdf5: {}}}
"""


def script(text: str) -> list[str]:
    made = job_script(plan_of(text), "my pipeline.yaml")
    done = subprocess.run(["bash", "-n"], input=made, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return made.splitlines()


def test_a_job_has_the_ranks_and_their_memory() -> None:
    lines = script(PIPELINE.replace("HOST", ""))
    asked = dict(line.removeprefix("#SBATCH --").split("=") for line in lines if line.startswith("#SBATCH"))
    ranks = len(plan_of(PIPELINE.replace("HOST", "")).ranks)
    assert asked == {
        "job-name": "k", "ntasks": str(ranks), "cpus-per-task": "4", "mem-per-cpu": f"{(512 + 64) // 4}M",
        "time": str(10 + 15), "signal": "TERM@60", "output": "%x-%j.log",
    }  # fmt: skip
    assert lines[-1] == "srun --mpi=pmi2 --cpu-bind=none lima2 run 'my pipeline.yaml' --progress plain"


def test_ranks_are_put_on_their_hosts() -> None:
    lines = script(PIPELINE.replace("HOST", "host: node17"))
    assert "#SBATCH --nodelist=node17" in lines
    assert "#SBATCH --nodes=2" in lines
    (placing,) = [line for line in lines if line.startswith("printf")]
    others = len(plan_of(PIPELINE.replace("HOST", "")).ranks) - 1
    assert placing == "printf '%s\\n' " + '"$here" ' * others + 'node17 > "$SLURM_HOSTFILE"'
    assert "--distribution=arbitrary" in lines[-1]


@pytest.mark.parametrize("change", [("frames: 90", "frames: 0"), ("period: 10 s", "start: request")])
def test_a_run_without_a_known_end_has_no_time_limit(change: tuple[str, str]) -> None:
    lines = script(PIPELINE.replace("HOST", "").replace(*change))
    assert not [line for line in lines if line.startswith("#SBATCH --time")]
    assert any("scancel -s TERM" in line for line in lines)


@given(st.integers(1, 12))
def test_modules_are_shared_out_among_as_many_ranks_as_there_are(size: int) -> None:
    made = fitted(plan_of(PIPELINE.replace("HOST", "")), size)
    if not 1 + 1 + 2 <= size <= 1 + 4 + 2:
        assert made is None
        return
    assert made is not None
    assert [role.rank for role in made.ranks] == list(range(size))
    assert sorted(m for role in made.ranks for m in role.modules) == [0, 1, 2, 3]
    assert [role.receiver for role in made.ranks if role.role == "receiver"] == [0, 1]


@pytest.mark.mpi
@pytest.mark.launch
@needs_mpi
@pytest.mark.parametrize("ranks", [4, 6])
def test_a_job_of_another_size_takes_the_same_frames(tmp_path: Path, ranks: int) -> None:
    (tmp_path / "k.yaml").write_text(PIPELINE.replace("HOST", "").replace("period: 10 s", "period: 1 ms"))
    done = mpiexec(ranks, "run", "k.yaml", "--progress", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = Ran(0, "", (tmp_path / "runs" / "latest").resolve())
    frames, numbers, _ = ran.saved("save")
    expected = (7919 * numbers[:, np.newaxis].astype(np.int64) + np.arange(64 * 48)) % 65536
    np.testing.assert_array_equal(frames.reshape(-1, 64 * 48), expected)


@pytest.mark.mpi
@pytest.mark.launch
@needs_mpi
def test_a_saved_plan_has_the_ranks_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text(PIPELINE.replace("HOST", "").replace("period: 10 s", "period: 1 ms"))
    assert lima2("plan", "k.yaml", "--format", "json", "-o", "k.json", cwd=tmp_path).returncode == 0
    ranks = len(plan_of(PIPELINE.replace("HOST", "")).ranks)
    done = mpiexec(ranks + 1, "run", "k.json", "--progress", "none", cwd=tmp_path)
    assert done.returncode == 12
    assert f"this job has {ranks + 1} ranks, the plan needs {ranks}" in done.stderr
