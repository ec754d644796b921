"""Code of users that misbehaves: a sample of `python -m tests.faults.code`, and what it has found."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lima2cli import foreign as watch
from lima2cli.foreign import error_text, place_of
from lima2cli.nodes.user_function import read_only
from tests.faults.code import Round, rounds
from tests.faults.misbehaviour import DETECTORS, KINDS, PLUGINS, PROCESSING, Kind, receiver_program
from tests.running import mpi, needs_mpi

SAMPLE = [
    ("raise: no text", "drop"),
    ("hang: catches all", "stop"),
    ("hang: in C, lock released", "drop"),
    ("hang: in C, lock held", "drop"),
    ("death: os._exit(0)", "drop"),
    ("leave: atexit hangs", "drop"),
    ("result: in place, forced", "drop"),
    ("result: array that hangs", "drop"),
    ("change: hooks", "drop"),
    ("hang: reads stdin", "drop"),
    ("hang: signal taken", "drop"),
    ("leave: child of its own session", "drop"),
]


def as_promised(one: Round) -> None:
    assert one.run().faults == []


@pytest.mark.parametrize(("name", "on_error"), SAMPLE, ids=[name for name, _ in SAMPLE])
def test_misbehaviour_inline(name: str, on_error: str) -> None:
    as_promised(Round(name, KINDS[name], "python", on_error, "inline"))


@pytest.mark.mpi
@needs_mpi
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("hang: in C, lock held", "python"),
        ("hang: sleep", "mpi"),
        ("result: in place, forced", "python"),
    ],
)
def test_misbehaviour_in_ranks(name: str, where: str) -> None:
    as_promised(Round(name, KINDS[name], where, "drop", "mpi"))


@pytest.mark.parametrize(("name", "transport"), [("hangs", "inline"), ("hangs in C", "inline"), mpi("hangs")])
def test_programs_of_receivers_that_hang(name: str, transport: str) -> None:
    statement, words = PROCESSING[name]
    as_promised(Round(name, Kind(receiver_program(statement), "fails", words), "receiver", "stop", transport))


@pytest.mark.parametrize("name", ["hangs", "bind hangs"])
def test_nodes_of_packages(name: str) -> None:
    as_promised(Round(name, PLUGINS[name], "plugin", "stop", "inline"))


@pytest.mark.parametrize(
    ("name", "transport"), [("frames hangs", "inline"), ("prepare exits", "inline"), mpi("start hangs")]
)
def test_detectors_of_packages(name: str, transport: str) -> None:
    as_promised(Round(name, DETECTORS[name], "detector", "stop", transport))


def test_rounds_are_chosen_by_their_seed() -> None:
    first, again, other = ([str(one) for one in rounds(seed)] for seed in (1, 1, 2))
    assert first == again != other
    assert len({one.partition(" (")[0] for one in first}) >= 57


def test_what_is_wrong_is_found() -> None:
    """The search can fail: code that is said to be fine, and is not."""
    one = Round("no", Kind("def f(frames, numbers): return frames + 1\n", "fine"), "python", "stop", "inline").run()
    assert any("frames of save are wrong" in fault for fault in one.faults)
    one = Round("no", Kind("def f(frames, numbers): 1 / 0\n", "fails", "KeyError"), "python", "drop", "inline").run()
    assert any("'KeyError' is not said" in fault for fault in one.faults)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "u8", "f2", "f4", "f8", "?"])
def test_frames_cannot_be_made_writeable(dtype: str) -> None:
    frames = np.ones((4, 6, 8), dtype)[:, 1:5, ::2]
    given = read_only(frames)
    assert np.shares_memory(given, frames)
    assert (given.dtype, given.strides) == (frames.dtype, frames.strides)
    np.testing.assert_array_equal(given, frames)
    with pytest.raises(ValueError, match="WRITEABLE"):
        given.flags.writeable = True
    with pytest.raises(ValueError, match="WRITEABLE"):
        given.view().flags.writeable = True
    assert read_only(frames[:0]).shape == frames[:0].shape


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)


def test_any_exception_is_put_into_words() -> None:
    assert error_text(Mute()) == "Mute: (it cannot be printed)"
    assert len(error_text(ValueError("x" * 10**7))) < 3000


def test_the_place_is_that_of_the_users_code() -> None:
    library, ours = os.__file__, watch.__file__
    assert place_of([(ours, 1), ("/home/me/u.py", 7), (library, 9)]) == "u.py:7: "
    assert place_of([(ours, 1), (library, 9)]) == "os.py:9: "
    assert place_of([("/bin/lima2", 8), (ours, 1), ("/home/me/u.py", 7), (ours, 2)]) == "u.py:7: "
    assert place_of([("/bin/lima2", 8), (ours, 1)]) == ""
    assert place_of([(ours, 1), ("<frozen importlib>", 2)]) == ""


DUMP = f"""
Timeout (0:00:38)!
Thread 0x00007f6e3e5fd6c0 (most recent call first):
  File "{os.__file__}", line 324 in wait

Thread 0x00007f6e40d3b040 (most recent call first):
  File "/home/me/u.py", line 12 in g
  File "/home/me/u.py", line 5 in f
  File "{watch.__file__}", line 12 in call_foreign
"""


def test_what_faulthandler_writes_is_read() -> None:
    words = "u: u.py:12: TookTooLong: it did not return from C, and held the interpreter's lock"
    assert watch.hung_at(DUMP, {"v": "w.py:f", "u": "/home/me/u.py:f"}) == words
    told = "a line\nUserCodeError: u.py:5: TookTooLong: it had not returned after 25 s (u.py:f, frame 3)\n"
    assert watch.hung_at(told, {"u": "u.py:f"}) == f"u: {told.splitlines()[1].partition(': ')[2]}"
    assert watch.hung_at("RunFailed: no\n", {}) is None


SLEEPS = """
import sys
from pathlib import Path
from lima2cli import foreign as watch
watch.IMPORT_S, watch.CALL_S, watch.RESORT_S, watch.SILENT_S = 0.5, 0.4, 0.2, 0.5
from lima2cli.cli import app
app(["run", "k.yaml", "--transport", "inline", "--progress", "none"])
"""


def test_a_run_that_was_only_stopped_goes_on(tmp_path: Path) -> None:
    """As by Ctrl-Z: the C thread's time is over, and the process has done nothing wrong."""
    import signal
    import time

    (tmp_path / "k.yaml").write_text(
        "lima2: 1\nname: k\n"
        "detector: {remu: {image: {width: 8, height: 8}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}\n"
        "acquisition: {frames: 600, rate: 200 Hz, timeout: 300 ms}\n"
        'nodes: {u: {input: data, python: {function: "u.py:f"}}, save: {input: u, io_hdf5: {}}}\n'
    )
    (tmp_path / "u.py").write_text("def f(frames, numbers): return frames\n")
    with subprocess.Popen([sys.executable, "-c", SLEEPS], cwd=tmp_path, stderr=subprocess.PIPE) as process:
        for _ in range(600):
            if list(tmp_path.glob("runs/k_0001/k_save_*.h5")):
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)
        time.sleep(3)
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=60)
    assert not re.search(rb"interpreter's lock", errors), errors
    assert process.returncode in (0, 10, 11)  # time has passed: that is all that may have gone wrong
    assert (tmp_path / "runs/k_0001/summary.json").exists()
