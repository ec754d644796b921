"""The launcher and its ranks: what is obeyed, what is imported, who is told to have died."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from lima2cli.job import launch
from lima2cli.runs.channel import Launcher, Lines
from tests.running import PATIENCE_S, Live, lima2, mpiexec, needs_mpi

pytestmark = [pytest.mark.mpi, pytest.mark.launch, needs_mpi]

PRINTING = """
lima2: 1
name: k
detector: {remu: {image: {width: 32, height: 32}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 40}
nodes: {u: {input: data, python: {function: "u.py:f"}}, save: {input: u, io_hdf5: {}}}
"""

LONG = """
lima2: 1
name: k
detector: {remu: {image: {width: 32, height: 32}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 600, rate: 200 Hz}
receivers: 2
nodes: {save: {input: data, io_hdf5: {}}}
"""

CODE = """
import os, sys
def f(frames, numbers):
    if 17 in numbers:
        sys.stdout.write(os.environ["SAY"] + "\\n"); sys.stdout.flush()
    if 33 in numbers:  # without an end of line
        sys.stdout.write(os.environ["SAY"]); sys.stdout.flush()
    return frames
"""


EVENTS = [
    {"type": "error", "message": "no peak found"},
    {"type": "done", "state": "failed", "directory": "/"},
    {"type": "directory", "directory": "mine"},
    {"type": "ranks", "ranks": [["HOST", "PID"]]},
]


def test_what_users_code_prints_is_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "k.yaml").write_text(PRINTING)
    (tmp_path / "u.py").write_text(CODE)
    (tmp_path / "mine").mkdir()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        lines = [json.dumps(event).replace('"PID"', str(other.pid)) for event in EVENTS]
        lines = [line.replace("HOST", socket.gethostname()) for line in lines]
        monkeypatch.setenv("SAY", "\n".join(lines))
        ran = lima2("run", "k.yaml", cwd=tmp_path)
        assert other.poll() is None, "a process that users' code named was killed"
        other.kill()
    assert ran.returncode == 0
    assert all(ran.stderr.count(line) == 2 for line in lines)  # shown as they are
    assert not list((tmp_path / "mine").iterdir())
    assert json.loads((tmp_path / "runs/k_0001/summary.json").read_text())["state"] == "complete"


def test_the_working_directory_is_no_code(tmp_path: Path) -> None:
    for module in ("random", "json", "numpy"):
        (tmp_path / f"{module}.py").write_text('open("executed", "w").write(__name__)\n')
    (tmp_path / "k.yaml").write_text(LONG.replace("600, rate: 200 Hz", "20"))
    program = Path(sys.executable).with_name("lima2")  # of `python -m` the working directory is what Python makes it
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PMI", "HYDRA"))}
    done = subprocess.run(
        [program, "run", "k.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "executed").exists()


def proxy_of(live: Live) -> psutil.Process:
    """Return the process of mpiexec that has started the ranks."""
    return live.ranks[0].parent()


def test_the_death_of_mpiexecs_proxy_loses_nothing(tmp_path: Path) -> None:
    live = Live(LONG, tmp_path, "mpi")
    live.wait_for_frames()
    proxy_of(live).kill()
    ran = live.end()
    assert (ran.code, ran.summary["state"]) == (0, "complete")
    data, numbers, _ = ran.saved("save")
    np.testing.assert_array_equal(numbers, np.arange(600))
    assert len(data) == 600


def test_the_death_of_mpiexec_is_a_failure(tmp_path: Path) -> None:
    live = Live(LONG, tmp_path, "mpi")
    live.wait_for_frames()
    proxy_of(live).parent().kill()
    ran = live.end()
    assert (ran.code, ran.summary["state"]) == (10, "failed")
    assert "mpiexec" in ran.summary["reason"]
    channel = ran.summary["channels"]["save"]
    assert 0 < channel["saved"] < 600
    assert channel["saved"] + channel["lost"] == 600


GOES = """
import os, shutil
def f(frames, numbers):
    if 60 in numbers:
        DO
    return frames
"""


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ('os.rename("runs/k_0001", "runs/moved")', "was renamed to"),
        ('shutil.rmtree("runs/k_0001")', "was removed during the run; nothing of the run is kept"),
    ],
    ids=["renamed", "removed"],
)
def test_the_directory_of_a_job_that_was_joined_goes(do: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text(PRINTING.replace("frames: 40", "frames: 1200, rate: 300 Hz"))
    (tmp_path / "u.py").write_text(GOES.replace("DO", do))
    done = mpiexec(3, "run", "k.yaml", "--progress", "none", cwd=tmp_path)
    assert done.returncode == 10, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "runs/moved").exists() == ("rename" in do)
    if "rename" in do:
        summary = json.loads((tmp_path / "runs/moved/summary.json").read_text())
        assert summary["state"] == "failed"
        channel = summary["channels"]["save"]
        assert 0 < channel["saved"] == channel["expected"] < 1200


def test_a_rank_that_aborts_the_job_is_named(tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text(PRINTING)
    (tmp_path / "u.py").write_text(
        GOES.replace("DO", "from mpi4py import MPI; MPI.COMM_WORLD.Abort(3)").replace("60", "17")
    )
    done = lima2("run", "k.yaml", "--progress", "none", cwd=tmp_path)
    assert done.returncode == 10
    assert "rank 2 (receiver0) ended the job (MPI_Abort)" in done.stderr


def test_lines_are_cut_where_their_ends_are() -> None:
    lines = Lines(longest=8)
    assert lines.feed(b"one\ntw") == [b"one"]
    assert lines.feed(b"o\n\nthree") == [b"two", b""]
    assert lines.feed(b" and more") == [b"three and more"]
    assert lines.feed(b"x") == []
    assert lines.end() == [b"x"]
    assert lines.end() == []


def test_only_a_launcher_hands_a_job_over() -> None:
    from lima2cli.errors import RunFailed

    with pytest.raises(RunFailed, match="did not hand over"):
        Launcher("lima2-nobody-listens-here")


def test_processes_that_have_lost_their_environment_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those that end: their memory goes before their files do."""
    with subprocess.Popen(["sleep", "600"]) as process:
        ranks = launch.Ranks(process, "job")
        monkeypatch.setattr(launch, "processes_with", lambda variable, value: [process.pid])
        assert ranks.left() == [process.pid]
        monkeypatch.setattr(launch, "processes_with", lambda variable, value: [])
        assert ranks.left() == [process.pid]
        process.kill()
        process.wait()
        assert ranks.left() == []
