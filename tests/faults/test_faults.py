"""The searches for faults themselves: a little of each, and that they find what is wrong."""

import io
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from lima2cli.files import appending
from lima2cli.files.common_file import WrittenRows, complete_common, lay_out
from lima2cli.job.launch import Ranks
from lima2cli.runs.ending import reopen_files
from lima2cli.runs.processes import ending
from tests import ROOT
from tests.artefacts_samples import detector_group, make_block, make_channel
from tests.faults import Outcome, __main__, kills, mixed, signals
from tests.faults.job import JobRun, accounted
from tests.faults.leavings import Leavings
from tests.running import needs_mpi


@pytest.mark.mpi
@needs_mpi
def test_a_kill_loses_nothing_that_was_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "KINDS", ("receiver",))
    outcome = kills.search(60, 3, rounds=1)
    assert isinstance(outcome, Outcome)
    assert (outcome.tried, outcome.failures) == (1, [])
    assert outcome.figures.startswith("kills: 1 (1 receiver; ")


@pytest.mark.mpi
@needs_mpi
def test_a_launcher_killed_while_ranks_start_leaves_nothing(tmp_path: Path) -> None:
    run = JobRun(tmp_path, frames=240)
    run.wait("joining")
    run.send(sorted(run.processes()), signal.SIGKILL)
    assert len(run.sent) > 2
    assert run.failures({-9}) == []
    assert run.reason == "the run was aborted; its files were recovered"


@pytest.mark.mpi
@needs_mpi
def test_a_signal_means_what_it_says() -> None:
    found = signals.send(signals.Cell("TERM", "launcher", "running"), random.Random(5))
    assert found.wrong == []
    assert found.code == 143


@pytest.mark.parametrize(
    ("cell", "codes"),
    [
        (("INT", "launcher", "running"), {0, 130}),
        (("HUP", "launcher", "finishing"), {0}),
        (("STOP", "receiver", "running"), {0}),
        (("INT", "worker", "running"), {0}),
        (("QUIT", "launcher", "joining"), {0, -3}),
        (("TERM", "detector", "running"), {0, 10}),
        (("TERM", "launcher", "draining"), {0, 130}),
    ],
)
def test_what_a_run_may_end_with(cell: tuple[str, str, str], codes: set[int]) -> None:
    assert signals.Cell(*cell).codes == codes


def test_all_signals_and_phases_are_tried() -> None:
    first = list(itertools.islice(signals.cells(random.Random(1)), signals.SIZE))
    assert len(set(first)) == signals.SIZE
    launcher = {(it.signal, it.phase) for it in first if it.target == "launcher"}
    assert launcher == set(itertools.product(signals.SIGNALS, signals.PHASES))
    others = {(it.signal, it.target) for it in first if it.target != "launcher"}
    assert others == set(itertools.product(signals.SIGNALS, signals.OTHERS))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> JobRun:
    """A small run without any fault, in one process."""
    folder = tmp_path_factory.mktemp("mixed")
    run = JobRun(folder, frames=24, rate=2000, worker=False, transport="inline")
    assert run.launcher.wait(120) == 0
    return run


def test_what_is_fine_is_found_fine(finished: JobRun) -> None:
    assert finished.failures({0}) == []
    rows = mixed.shown(finished.directory, frames=24).rows
    assert {name: len(it) for name, it in rows.items()} == {
        name: 12 if name in ("sums", "joined") else 24 for name in [*mixed.CHANNELS, *mixed.TABLES]
    }


@pytest.mark.parametrize("node", [*mixed.CHANNELS, "counters", "profiles"])
def test_wrong_pixels_are_seen(finished: JobRun, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(want: Callable[[int], Any]) -> Callable[[int], Any]:
        return lambda number: want(number) + (number == 6)

    if node in mixed.CHANNELS:
        monkeypatch.setitem(mixed.CHANNELS, node, off(mixed.CHANNELS[node]))
    else:
        monkeypatch.setitem(mixed.TABLES, node, {"a_sum": off(mixed.TABLES[node]["a_sum"])})
    wrong = mixed.shown(finished.directory, frames=24).wrong
    assert len(wrong) == 1
    assert wrong[0].startswith(f"{node}: ")
    assert "6" in wrong[0]


def test_lost_rows_and_wrong_codes_are_seen(finished: JobRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed, "told", lambda output: {"packed": 25, "counters": 24})
    assert finished.failures({10}) == ["exit code 0: ", "packed: 25 were called saved, 24 are there"]
    finished.sent.append(("rank1", 9))
    assert finished._blame("x: rank 1 (detector) was the first to end; see lima2.log") == []
    assert finished._blame("x: rank 2 (receiver0) was the first to end; see lima2.log")
    assert finished._blame("x: mpiexec was the first to end; see lima2.log")


def test_sums_that_do_not_add_up_are_seen() -> None:
    flow = {"expected": 9, "received": 7, "lost": 1, "dropped": 0, "missing": 0, "missing_frames": [[3, 3, 1]]}
    channel = {"expected": 9, "saved": 7, "vetoed": 0, "dropped": 0, "lost": 1}
    summary = {"flows": {"a": flow}, "channels": {"b": channel}, "tables": {"c": {"rows": 3}}}
    found = accounted(summary, mixed.Shown({"b": set(range(6))}))
    assert [it.partition(":")[0] for it in found] == ["flow a", "channel b", "b", "c"]


def test_what_is_left_is_seen(tmp_path: Path) -> None:
    leavings = Leavings(tmp_path)
    assert leavings.left(0) == []
    shared = Path("/dev/shm/mpich_shm_testoffaults")
    with (
        socket.socket(socket.AF_UNIX) as held,
        subprocess.Popen(
            [sys.executable, "-c", "import socket, time; s = socket.socket(socket.AF_UNIX); s.bind('\\0lima2-testing');"
             "print(flush=True); time.sleep(600)"],
            env=leavings.environment, stdout=subprocess.PIPE,
        ) as process,
    ):  # fmt: skip
        try:
            assert process.stdout is not None
            process.stdout.readline()
            held.bind("\0lima2-of-others")
            (tmp_path / "lima2-x").mkdir()
            (tmp_path / "pytest-of-me").mkdir()
            for _ in range(10):
                shared.write_bytes(b"x")
                found = leavings.left(0)
                if any(str(shared) in it for it in found):  # else a run of another test has swept it meanwhile
                    break
        finally:
            shared.unlink(missing_ok=True)
            process.kill()
    words = [f"process {process.pid} is left", "socket lima2-testing is left", f"{shared} is left"]
    said = [it.partition(": ")[0] for it in found]
    assert [it for it in said if it != words[2]] == [*words[:2], f"{tmp_path / 'lima2-x'} is left"]
    assert words[2] in said


SEARCH = """
import os, pathlib, subprocess, tempfile
from tests.faults import Outcome
def search(seconds, seed):
    assert seed == 7
    {body}
    return Outcome("made", 3, {failures}, f"made: 3 in {{seconds:g}} s")
"""

BODIES = {
    "fine": ("pass", [], []),
    "fails": ("pass", ["it broke"], ["made: it broke"]),
    "leaves": ("tempfile.mkdtemp(prefix='lima2-')", [], ["made: left behind: "]),
    "ends": ("os._exit(4)", [], ["made: the search itself ended with 4"]),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_one_command(name: str, tmp_path: Path) -> None:
    body, failures, said = BODIES[name]
    (tmp_path / "made.py").write_text(SEARCH.format(body=body, failures=failures))
    command = [sys.executable, "-m", "tests.faults", "--minutes", "0.05", "--seed", "7", "--only", "made"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path), "LIMA2_OWN_MOUNTS": "1"}, check=False,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    first, *rest = done.stdout.splitlines()
    assert first.startswith("made: ")
    assert done.returncode == bool(said), done.stderr
    assert len(rest) == max(1, len(said))
    assert all(line.startswith(text) for line, text in zip(rest, said or ["nothing broke a promise"], strict=True))


def test_kills_and_signals_are_searches() -> None:
    assert {"tests.faults.kills", "tests.faults.signals"} <= set(__main__.searches())


def test_who_is_about_to_end_is_seen() -> None:
    with subprocess.Popen(["sleep", "600"]) as process, open(f"/proc/{process.pid}/stat", "rb", buffering=0) as stat:
        assert not ending(stat)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        stat.seek(0)
        assert ending(stat)  # a zombie
        process.wait()
        stat.seek(0)
        assert ending(stat)  # gone


@pytest.mark.parametrize("about_to", [False, True])
def test_nobody_is_named_where_another_was_about_to_end(about_to: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    if about_to:
        monkeypatch.setattr("lima2cli.job.launch.ending", lambda stat: True)
    ranks = Ranks(others[0], "lima2-nothing")
    others[1].kill()
    ranks._watch({others[0].pid: 0, others[1].pid: 1})
    others[0].kill()
    for other in others:
        other.wait()
    assert ranks.first == (None if about_to else 1)


class _Killed(io.FileIO):
    """A file whose process ends after some writes."""

    left = 0

    def write(self, data: Any) -> int:
        if not _Killed.left:
            os._exit(9)
        _Killed.left -= 1
        return super().write(data)


def _complete_until(writes: int, channel: Any, folder: Path) -> None:
    """Complete a common file in a process that ends at a write of the HDF5 library."""
    pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        return
    try:
        _Killed.left, real = writes, h5py.File

        def opened(name: str, mode: str = "r", **options: Any) -> h5py.File:
            return real(_Killed(name, "r+b") if mode == "r+" else name, mode, **options)

        vars(h5py)["File"] = opened
        vars(appending)["Room"] = lambda file: SimpleNamespace(secure=lambda size: None)  # there is some
        vars(appending)["watch"] = lambda path, file: None  # it has no descriptor
        vars(appending)["close_flushed"] = lambda path, file: file.close()
        complete_common(channel, str(folder), rows=40)
    finally:
        os._exit(1)


@pytest.mark.parametrize("writes", [0, 2, 5, 9, 14, 20])
def test_a_common_file_is_completed_after_a_kill_at_a_write(tmp_path: Path, writes: int) -> None:
    channel = make_channel(compression="none", layout="common", selected=40)
    offset = lay_out(channel, str(tmp_path), 10**18)
    frames = make_block(channel, range(30)).frames
    with (tmp_path / "maze_save_master.h5.part").open("r+b") as file:
        file.seek(offset)
        file.write(frames.tobytes())
    told = WrittenRows(channel, str(tmp_path), 0, 10**18)
    told.append(np.arange(30), np.arange(30) + 10**18, np.zeros(30, np.uint64), 30)
    told.close()
    _complete_until(writes, channel, tmp_path)
    assert (tmp_path / "maze_save_master.h5.part.kept").exists()
    with h5py.File(complete_common(channel, str(tmp_path), rows=40)) as done:
        detector = detector_group(done)
        np.testing.assert_array_equal(detector["data"][:30], frames)
        assert detector["frame_status"][()].tolist() == [0] * 30 + [3] * 10
    assert [path.name for path in tmp_path.iterdir()] == ["maze_save_master.h5"]


def test_half_a_common_file_is_none(tmp_path: Path) -> None:
    """A run was killed while the file was laid out: no frame has been taken for it."""
    channel = make_channel(compression="none", layout="common", selected=40)
    lay_out(channel, str(tmp_path), 10**18)
    part = tmp_path / "maze_save_master.h5.part"
    part.rename(f"{part}.new")
    os.truncate(f"{part}.new", 100)
    assert reopen_files(tmp_path) == []
    assert not list(tmp_path.iterdir())
    with h5py.File(complete_common(channel, str(tmp_path), rows=4, start_ns=10**18)) as done:
        assert detector_group(done)["frame_status"][()].tolist() == [3] * 4


@pytest.mark.parametrize("module", ["typer", "lima2cli.cli.border", "main"])
def test_a_key_while_the_program_is_imported_shows_no_traceback(module: str) -> None:
    """Ctrl-C in the middle of an import, and behind all of them."""
    code = f"""
import os, signal, sys
import lima2cli.__main__ as program
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
if {module!r} == "main":
    import lima2cli.cli
    lima2cli.cli.app = lambda **_: os.kill(os.getpid(), signal.SIGINT)
program.main()
"""
    command = [sys.executable, "-c", f"import signal; signal.signal(2, signal.default_int_handler)\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130 if module == "main" else -2, "")
