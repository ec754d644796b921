"""Code of users in runs: what it returns and does not fit, and what it raises, whatever that is, and wherever."""

import re
import socket
from pathlib import Path

import numpy as np
import pytest

from lima2cli.geometry import Rect
from tests.running import TRANSPORTS, Ran, counter, lima2, mpi, run, truth

HEAD = """
lima2: 1
detector: {remu: {image: {width: 4, height: 3}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 20}
flows: {data: {dataset: data, rules: {blocks_per_group: 5}, buffers: {frames: 5}}}
"""
CODE = """
import sys

def double(frames, numbers):
    return frames.astype("u4") * 2

def negative(frames, numbers):
    return frames.astype("i4") - 7919 * 4

def half(frames, numbers):
    return frames / 2 + 0.25

def bye(frames, numbers):
    if 12 in numbers:
        sys.exit("no calibration")
    return frames

def fine(frames, numbers):
    if 12 in numbers:
        sys.exit(0)
    return frames

def key(frames, numbers):
    if 12 in numbers:
        raise KeyboardInterrupt
    return frames

def generator(frames, numbers):
    if 12 in numbers:
        raise GeneratorExit("done")
    return frames

class Init:
    def __init__(self, spec):
        sys.exit("no camera")

    def __call__(self, frames, numbers):
        return frames

class Close:
    def __init__(self, spec):
        pass

    def __call__(self, frames, numbers):
        return frames

    def close(self):
        sys.exit("not saved")

def own(receiver):
    for block in receiver.blocks("data"):
        if 12 in block.numbers:
            sys.exit("enough")

def early(receiver):
    sys.exit("no model")

def late(receiver):
    for block in receiver.blocks("data"):
        pass
    sys.exit()
"""
EXITS_AT_ONCE = """
import sys
sys.exit("no licence")
def f(frames, numbers):
    return frames
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "u.py").write_text(CODE)
    (tmp_path / "exits.py").write_text(EXITS_AT_ONCE)
    np.save(tmp_path / "a.npy", np.full((3, 4, 4), 40000, "u2"))
    return tmp_path


def pipeline(function: str, more: str = "", kind: str = "python") -> str:
    node = f'{{input: data, {kind}: {{function: "{function}"{more}}}}}'
    return f"{HEAD}nodes: {{p: {node}, s: {{input: p, io_hdf5: {{}}}}, raw: {{input: data, io_hdf5: {{}}}}}}\n"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_result_beyond_the_dtype_is_an_error_not_another_number(folder: Path, transport: str) -> None:
    """80000 was saved as 14464, 40000 as -25536."""
    text = """
lima2: 1
detector: {replay: {file: a.npy}}
nodes:
  double: {input: data, python: {function: "u.py:double"}}
  same: {input: data, python: {function: "u.py:bye", output: {dtype: int16}}}
  save: {input: double, io_hdf5: {}}
  save2: {input: same, io_hdf5: {}}
"""
    ran = run(text, folder, transport)
    assert ran.code == 10
    problems = " ".join(truth(ran, problems=True)["problems"])
    assert (
        "double: u.py:double returned 80000 in frame 0 at y 0, x 0, uint16 has whole numbers from 0 to 65535"
        in problems
    )
    assert (
        "same: u.py:bye returned 40000 in frame 0 at y 0, x 0, int16 has whole numbers from -32768 to 32767" in problems
    )
    assert ran.summary["channels"]["save"]["saved"] == ran.summary["channels"]["save2"]["saved"] == 0


@pytest.mark.parametrize("kind", ["python", "mpi"])
@pytest.mark.parametrize("function", ["double", "negative", "half"])
def test_the_frame_of_the_first_misfit_is_named(folder: Path, kind: str, function: str) -> None:
    """The first misfit of a batch is named, not its first frame."""
    ran = run(pipeline(f"u.py:{function}", kind=kind), folder, "inline", "--progress", "json")
    assert ran.code == 10
    raw = counter(np.arange(20, dtype=np.uint64), Rect(0, 0, 4, 3), 4).astype(int)
    returned = {"double": raw * 2, "negative": raw - 7919 * 4, "half": raw / 2 + 0.25}[function]
    misfits = (returned < 0) | (returned > 65535) | (returned % 1 != 0)
    frame, y, x = (int(i) for i in np.argwhere(misfits)[0])
    named = f"p: u.py:{function} returned {returned[frame, y, x]} in frame {frame} at y {y}, x {x}, uint16 has"
    assert named in ran.summary["reason"]
    assert f'"frame": {frame}' in ran.output


@pytest.mark.parametrize(
    ("kind", "transport"), [("python", "inline"), ("mpi", "inline"), mpi("mpi")]
)  # fmt: skip
@pytest.mark.parametrize(("on_error", "drops"), [("drop", True), ("pass", False)])
def test_on_error_holds_for_results_that_do_not_fit(
    folder: Path, kind: str, transport: str, on_error: str, drops: bool
) -> None:
    """Groups in which all frames fit when they are doubled are saved so."""
    ran = run(pipeline("u.py:double", f", on_error: {on_error}", kind), folder, transport)
    assert ran.code == 0, ran.output
    summary = truth(ran)
    channel = summary["channels"]["s"]
    raw, _, _ = ran.saved("raw")
    frames, _, status = ran.saved("s")
    fits = (2 * raw.astype(int) <= 65535).reshape(4, -1).all(axis=1).repeat(5)
    assert 0 < fits.sum() < 20
    assert channel["dropped"] == (20 - fits.sum() if drops else 0)
    np.testing.assert_array_equal(frames[fits], 2 * raw[fits])
    if not drops:
        np.testing.assert_array_equal(frames[~fits], raw[~fits])
    assert set(status[~fits].tolist()) == {2 if drops else 0}
    assert f"on_error: {on_error}" in summary["warnings"][0]
    assert "u.py:double returned" in summary["warnings"][0]


OUT = [
    ("bye", 'sys.exit("no calibration")', "SystemExit: no calibration", "frames 10 to 14"),
    ("fine", "sys.exit(0)", "SystemExit: 0", "frames 10 to 14"),
    ("key", "raise KeyboardInterrupt", "KeyboardInterrupt", "frames 10 to 14"),
    ("generator", 'raise GeneratorExit("done")', "GeneratorExit: done", "frames 10 to 14"),
    ("Init", 'sys.exit("no camera")', "SystemExit: no camera", "__init__"),
    ("Close", 'sys.exit("not saved")', "SystemExit: not saved", "close"),
]


def assert_attributed(ran: Ran, name: str, code: str, said: str, when: str) -> None:
    """A failed run whose message names node, function, and frames."""
    assert ran.code == 10
    line = [text.strip() for text in CODE.splitlines()].index(code) + 1
    assert f"p: u.py:{line}: {said} (u.py:{name}, {when})" in truth(ran, problems=True)["problems"]


@pytest.mark.parametrize("kind", ["python", "mpi"])
@pytest.mark.parametrize(("name", "code", "said", "when"), OUT)
def test_what_ends_a_program_ends_a_node(folder: Path, kind: str, name: str, code: str, said: str, when: str) -> None:
    ran = run(pipeline(f"u.py:{name}", kind=kind), folder, "inline")
    assert_attributed(ran, name, code, said, when)
    if name not in ("Init", "Close"):
        assert ran.summary["channels"]["s"]["saved"] == 10


@pytest.mark.mpi
@pytest.mark.parametrize(("name", "code", "said", "when"), [OUT[0], OUT[4], OUT[5]])
def test_so_it_does_where_each_rank_is_a_process(folder: Path, name: str, code: str, said: str, when: str) -> None:
    ran = run(pipeline(f"u.py:{name}"), folder, "mpi")
    assert_attributed(ran, name, code, said, when)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("kind", ["python", "mpi"])
def test_a_file_that_exits_when_it_is_imported(folder: Path, kind: str, transport: str) -> None:
    ran = run(pipeline("exits.py:f", kind=kind), folder, transport)
    assert ran.code == 10
    assert ran.summary["reason"] == "p: exits.py:3: SystemExit: no licence (exits.py:f, import)"


def test_a_case_of_a_run_that_left_no_summary(folder: Path) -> None:
    """Inline the program ended, with the user's exit code."""
    text = """
lima2: 1
detector: {replay: {file: a.npy}}
nodes: {py: {input: data, python: {function: "u.py:out"}}, save: {input: py, io_hdf5: {}}}
"""
    (folder / "u.py").write_text('import sys\ndef out(frames, numbers):\n    sys.exit("no calibration")\n')
    ran = run(text, folder, "inline")
    assert ran.code == 10
    assert ran.summary["state"] == "failed"
    assert "py: u.py:3: SystemExit: no calibration (u.py:out, frame" in ran.summary["reason"]


@pytest.mark.parametrize("on_error", ["drop", "pass"])
def test_on_error_holds_for_exits(folder: Path, on_error: str) -> None:
    ran = run(pipeline("u.py:fine", f", on_error: {on_error}"), folder, "inline")
    assert ran.code == 0, ran.output
    summary = truth(ran)
    assert summary["channels"]["s"]["saved"] == (15 if on_error == "drop" else 20)
    said = f"p: it has failed (on_error: {on_error}): u.py:20: SystemExit: 0 (u.py:fine, frames 10 to 14)"
    assert summary["warnings"] == [said]


@pytest.mark.parametrize(
    ("name", "said", "transport"),
    [
        ("own", "SystemExit: enough (u.py:own, frames 10 to 14)", "inline"),
        ("early", "SystemExit: no model (u.py:early, before the start)", "inline"),
        ("late", "SystemExit (u.py:late, after the last block)", "inline"),
        mpi("own", "SystemExit: enough (u.py:own, frames 10 to 14)"),
    ],
)
def test_processing_of_ones_own_that_exits(folder: Path, name: str, said: str, transport: str) -> None:
    text = f"{HEAD}nodes: {{raw: {{input: data, io_hdf5: {{}}}}}}\n"
    ran = run(text, folder, transport, "--receiver", f"u.py:{name}")
    assert ran.code == 10
    assert ran.summary["state"] == "failed"
    assert said in ran.summary["reason"]


PLACED = """lima2: 1
name: k
detector: {remu: {image: {width: 4, height: 3}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 20}
flows: {data: {dataset: data, rules: {blocks_per_group: 5}, buffers: {frames: 5}}}
graphs:
  own:
    output: it
    nodes:
      it: {input: frames, python: {function: "u.py:fine"}}
nodes:
  a: {input: data, graph: {own: {}}}
  save: {input: a, io_hdf5: {}}
"""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_failure_ends_with_the_line_of_the_node_the_rank_and_the_log(transport: str, tmp_path: Path) -> None:
    (tmp_path / "u.py").write_text(CODE)
    (tmp_path / "k.yaml").write_text(PLACED)
    done = lima2("run", "k.yaml", "--transport", transport, cwd=tmp_path)
    assert done.returncode == 10
    place, rank, *log = done.stdout.partition("\n  --> ")[2].splitlines()
    assert place.startswith("k.yaml:10:7  at /nodes/a")
    assert re.fullmatch(rf"   = rank 2 \(receiver0\) on {re.escape(socket.gethostname())}, frame 10", rank)
    assert log == (["   = log: runs/k_0001/lima2.log"] if (tmp_path / "runs/k_0001/lima2.log").exists() else [])
    assert log or transport == "inline"
