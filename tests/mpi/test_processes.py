"""Nothing is left and nothing waits for ever: directories that go, what is left behind, users' code that hangs."""

import json
import mmap
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from lima2cli import foreign as watch
from lima2cli.errors import RunFailed
from lima2cli.ranks import progress as patience
from lima2cli.runs import processes as leftovers
from lima2cli.runs.channel import LAUNCHED
from lima2cli.runs.processes import HeldDirectory, processes_with
from tests.running import TRANSPORTS, Live, copied, lima2, program, run, truth

LONG = """
lima2: 1
name: k
detector: {remu: {image: {width: 32, height: 32}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 2000, rate: 200 Hz}
nodes: {save: {input: data, io_hdf5: {frames_per_file: 0}}}
"""

USER = """
lima2: 1
name: k
detector: {remu: {image: {width: 8, height: 8}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 20}
flows: {data: {dataset: data, rules: {blocks_per_group: 5}, buffers: {frames: 5}}}
nodes: {u: {input: data, python: {function: "u.py:f", on_error: drop}}, save: {input: u, io_hdf5: {}}}
"""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_directory_that_is_renamed_takes_its_files_along(tmp_path: Path, transport: str) -> None:
    live = Live(LONG, tmp_path, transport)
    live.wait_for_frames()
    (tmp_path / "runs").rename(tmp_path / "moved")
    ran = live.end()
    assert ran.code == 10, ran.output
    assert "this is a bug" not in ran.output
    summary = json.loads((tmp_path / "moved/k_0001/summary.json").read_text())
    assert f"was renamed to {tmp_path}/moved/k_0001 during the run" in summary["reason"]
    found = lima2("inspect", "--verify", "--format", "json", "moved/k_0001", cwd=tmp_path)
    assert found.returncode == 0
    assert json.loads(found.stdout)["channels"]["save"]["saved"] == summary["channels"]["save"]["saved"] > 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_directory_that_is_removed_is_said_to_be(tmp_path: Path, transport: str) -> None:
    live = Live(LONG, tmp_path, transport)
    live.wait_for_frames()
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    ran = live.end()
    assert ran.code == 10, ran.output
    assert "was removed during the run; nothing of the run is kept" in ran.output
    assert "this is a bug" not in ran.output


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_directory_that_takes_no_more_files(tmp_path: Path, transport: str) -> None:
    live = Live(LONG, tmp_path, transport)
    live.wait_for_frames()
    directory = (tmp_path / "runs/k_0001").resolve()
    if subprocess.run(["chattr", "+i", directory], check=False, capture_output=True).returncode:
        live.process.kill()
        pytest.skip("no immutable directories here")
    try:
        live.process.terminate()
        ran = live.end()
    finally:
        subprocess.run(["chattr", "-i", directory], check=True)
    assert ran.code == 10, ran.output
    assert "its summary cannot be written: [Errno 1]" in ran.output
    assert "this is a bug" not in ran.output
    assert lima2("recover", str(directory), cwd=tmp_path).returncode == 0
    assert json.loads((directory / "summary.json").read_text())["channels"]["save"]["saved"] > 0
    assert not (directory / "control.json").exists()


def test_where_a_directory_is(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    held = HeldDirectory(tmp_path / "a")
    assert (held.now(), held.gone()) == (tmp_path / "a", None)
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").mkdir()  # another of that name is not taken for it
    assert held.now() == tmp_path / "b"
    (tmp_path / "b").rmdir()
    assert held.now() is None
    with pytest.raises(RunFailed, match="was removed"):
        held.found()
    held.close()


def test_only_shared_memory_that_nobody_uses_is_removed(tmp_path: Path) -> None:
    names = ["mpich_shm_1_0", "ucx_shm_2", "mpich_shm_mapped", "mpich_shm_open", "other_shm", "mpich_shm_x.bak"]
    for name in names:
        (tmp_path / name).write_bytes(b"0" * 4096)
    with (tmp_path / "mpich_shm_mapped").open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 4096)
    with (tmp_path / "mpich_shm_open").open("rb"):
        assert leftovers.sweep(folder=tmp_path) == []  # none is old
        assert leftovers.sweep(time.time_ns(), tmp_path) == []  # none is of this job
        assert leftovers.sweep(0, tmp_path) == ["mpich_shm_1_0", "ucx_shm_2"]
    assert leftovers.sweep(0, tmp_path) == ["mpich_shm_open"]
    mapped.close()
    assert leftovers.sweep(0, tmp_path) == ["mpich_shm_mapped"]
    assert sorted(os.listdir(tmp_path)) == ["mpich_shm_x.bak", "other_shm"]


HANGS = {
    "sleep": "import time\ndef f(frames, numbers):\n    if 7 in numbers: time.sleep(900)\n    return frames\n",
    "loop": "def f(frames, numbers):\n    while 7 in numbers: pass\n    return frames\n",
    "caught": "import time\ndef f(frames, numbers):\n    while 7 in numbers:\n        try: time.sleep(900)\n"
    "        except Exception: pass\n    return frames\n",
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users' code has a second, however long the run waits for frames; what does not hang has it on a slow machine."""
    monkeypatch.setattr(watch, "CALL_S", 1.0)
    monkeypatch.setattr(watch, "IMPORT_S", 1.1)  # more than a call
    ignored = property(lambda _: 0.0, lambda _, seconds: None)
    monkeypatch.setattr(watch.Watch, "timeout_s", ignored, raising=False)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("code", HANGS.values(), ids=HANGS)
def test_a_call_that_hangs_has_failed(tmp_path: Path, code: str) -> None:
    (tmp_path / "u.py").write_text(code)
    ran = run(USER, tmp_path, "inline")
    summary = truth(ran)
    assert (summary["channels"]["save"]["saved"], summary["channels"]["save"]["dropped"]) == (15, 5)
    assert any(
        "TookTooLong: it had not returned after 1 s (u.py:f, frames 5 to 9)" in it for it in summary["warnings"]
    ), summary["warnings"]


@pytest.mark.usefixtures("impatient")
def test_an_import_that_hangs_keeps_the_run_from_starting(tmp_path: Path) -> None:
    (tmp_path / "u.py").write_text("import time\ntime.sleep(900)\ndef f(frames, numbers): return frames\n")
    ran = run(USER, tmp_path, "inline")
    assert ran.code == 10
    assert ran.summary["reason"] == "u: u.py:2: TookTooLong: it had not returned after 1.1 s (u.py:f, import)"


THREAD = """
import threading, time
def g():
    while True: time.sleep(1)
threading.Thread(target=g, name="mine").start()
def f(frames, numbers): return frames
"""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_thread_that_goes_on_holds_nothing_up(tmp_path: Path, transport: str) -> None:
    (tmp_path / "u.py").write_text(THREAD)
    ran = run(USER, tmp_path, transport, by=program)
    assert ran.code == 0, ran.output
    assert truth(ran)["warnings"] == ["u: thread mine did not end with the run (at u.py:4), and is ended"]


FORK = """
import os, time
def f(frames, numbers):
    if 7 in numbers and not os.fork():
        time.sleep({nap})
    return frames
"""


@pytest.mark.parametrize(("transport", "nap"), [("inline", 0), pytest.param("mpi", 60, marks=pytest.mark.mpi)])
def test_a_child_that_is_forked_is_no_rank(tmp_path: Path, transport: str, nap: int) -> None:
    (tmp_path / "u.py").write_text(FORK.format(nap=nap))
    began = time.monotonic()
    ran = run(USER, tmp_path, transport, by=program)
    assert ran.code == 0, ran.output
    assert truth(ran)["channels"]["save"]["saved"] == 20
    assert time.monotonic() - began < 50


ODD = {
    "descriptors": "import os\ndef f(frames, numbers):\n    for d in range(3): os.close(d)\n    return frames\n",
    "directory": "import os\ndef f(frames, numbers):\n    os.chdir('/')\n    return frames\n",
    "signals": "import signal\ndef f(frames, numbers):\n    for n in (2, 15): signal.signal(n, signal.SIG_IGN)\n"
    "    return frames\n",
    "prints": "def f(frames, numbers):\n    print('x' * 3_000_000)\n    return frames\n",
}


@pytest.mark.parametrize("code", ODD.values(), ids=ODD)
def test_odd_code_changes_nothing(tmp_path: Path, code: str) -> None:
    (tmp_path / "u.py").write_text(code)
    ran = run(USER, tmp_path, "inline", "--progress", "none", by=copied)
    assert ran.code == 0, ran.output[-500:]
    np.testing.assert_array_equal(ran.saved("save")[1], np.arange(20))


FAILS = {
    "recursion": ("def f(frames, numbers): return f(frames, numbers)\n", "RecursionError"),
    "memory": ("import numpy as np\ndef f(frames, numbers): return np.ones(1 << 55)\n", "MemoryError"),
}


@pytest.mark.parametrize(("code", "said"), FAILS.values(), ids=FAILS)
def test_code_that_asks_for_too_much_has_failed(tmp_path: Path, code: str, said: str) -> None:
    (tmp_path / "u.py").write_text(code)
    ran = run(USER.replace(", on_error: drop", ""), tmp_path, "inline")
    assert ran.code == 10
    assert said in ran.summary["reason"]
    assert "(u.py:f, frames 0 to 4)" in ran.summary["reason"]


def test_ranks_that_never_get_ready_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lima2cli.ranks.receiver import ReceiverRank

    monkeypatch.setattr(patience, "PREPARATION_S", 0.3)
    monkeypatch.setattr(ReceiverRank, "prepare", lambda self: None)
    ran = run(LONG.replace("2000", "5, timeout: 200 ms"), tmp_path, "inline")
    assert ran.code == 10
    assert "receiver0 (rank 2) was not ready after 300 ms" in ran.summary["reason"]


@pytest.mark.mpi
@pytest.mark.parametrize("wait_s", [0.3, 0.8])
def test_what_is_ended_while_it_starts_leaves_nothing(tmp_path: Path, wait_s: float) -> None:
    import signal
    import sys

    (tmp_path / "k.yaml").write_text(LONG)
    before = set(os.listdir("/dev/shm"))
    process = subprocess.Popen(
        [sys.executable, "-m", "lima2cli", "run", "k.yaml", "--progress", "none"], cwd=tmp_path, start_new_session=True
    )
    job = None
    for _ in range(1000):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children:
            values = Path(f"/proc/{children[0]}/environ").read_bytes().split(b"\0")
            job = next((it.partition(b"=")[2].decode() for it in values if it.startswith(LAUNCHED.encode())), None)
        if job:
            break
        time.sleep(0.02)
    assert job
    time.sleep(wait_s)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.03)
    assert process.wait(60) == 130
    assert not list(processes_with(LAUNCHED, job))
    for _ in range(100):  # other tests start ranks, and end them, meanwhile
        if not (left := _unused(set(os.listdir("/dev/shm")) - before)):
            break
        time.sleep(0.1)
    assert not left


def _unused(names: set[str]) -> set[str]:
    """Return those of some files of shared memory that no process uses."""
    keys = {}
    for name in filter(leftovers.NAMES.fullmatch, names):
        with suppress(FileNotFoundError):
            status = os.stat(f"/dev/shm/{name}")
            keys[status.st_dev, status.st_ino] = name
    used = leftovers._used(keys) or set()
    return {name for key, name in keys.items() if key not in used}
