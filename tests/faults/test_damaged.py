"""Files and requests of others: damaged ones are refused with a word, and hide nothing else."""

import json
import random
import socket
import sys
from pathlib import Path

import pytest

from lima2cli.runs.directory import read_run
from tests.faults import files
from tests.running import Live, lima2, run

TEXT = """
lima2: 1
name: k
detector: {remu: {image: {width: 8, height: 8}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 4}
nodes:
  s: {input: data, io_hdf5: {}}
  c: {input: data, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 8, height: 8}}}}}
"""

DEEP = "[" * 100_000 + "]" * 100_000
CONTENTS = {
    "empty": "",
    "nothing": "{}",
    "list": "[]",
    "number": "7",
    "cut": '{"version": 1, "state": "complete", "flows": {"data": {"expected"',
    "deep": f'{{"state": {DEEP}}}',
    "binary": "\x00\x01\x02",
    "null": "null",
    "twice": "{}{}",
    "not-finite": '{"version": 1, "state": NaN, "reason": Infinity, "flows": {}, "channels": {}, "tables": {}}',
    "long-number": f'{{"version": {"9" * 5000}, "state": "complete"}}',
    "state": '{"version": 1, "state": ["complete"], "reason": "", "flows": {}, "channels": {}, "tables": {}}',
    "flows": '{"version": 1, "state": "complete", "reason": "", "flows": [1], "channels": 3, "tables": null}',
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete run."""
    folder = tmp_path_factory.mktemp("runs")
    assert run(TEXT, folder, "inline", name="k").code == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """Three complete runs."""
    import shutil

    for number in (1, 2, 3):
        shutil.copytree(finished / "runs/k_0001", tmp_path / f"runs/k_{number:04d}")
    return tmp_path


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_damaged_summary_hides_no_other_run_and_is_made_again(content: str, folder: Path) -> None:
    (folder / "runs/k_0002/summary.json").write_text(content)
    listed = lima2("runs", cwd=folder)
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[:2] for line in listed.stdout.splitlines()] == [
        ["k_0001", "complete"],
        ["k_0002", "damaged"],
        ["k_0003", "complete"],
    ]
    shown = lima2("runs", "show", "k_0002", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert "lima2 recover" in shown.stdout
    recovered = lima2("recover", "runs/k_0002", cwd=folder)
    assert recovered.returncode == 0, recovered.stderr
    summary = read_run(folder / "runs/k_0002").summary
    assert summary is not None
    assert summary.channels["s"].saved == 4


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("file", ["plan.json", "control.json"])
def test_other_damaged_files_are_refused_with_a_word(file: str, content: str, folder: Path) -> None:
    directory = folder / "runs/k_0002"
    (directory / file).write_text(content)
    (directory / "summary.json").unlink()
    listed = lima2("runs", cwd=folder)
    assert listed.returncode == 0, listed.stderr
    assert len(listed.stdout.splitlines()) == 3
    done = lima2("recover" if file == "plan.json" else "stop", "runs/k_0002", cwd=folder)
    assert done.returncode == 2, done.stderr
    assert file in done.stderr
    assert "bug" not in done.stderr


def test_summaries_with_flipped_bytes_never_hide_a_run(folder: Path) -> None:
    chance = random.Random(7)
    sound = (folder / "runs/k_0001/summary.json").read_bytes()
    for _ in range(200):
        damaged = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (folder / "runs/k_0002/summary.json").write_bytes(damaged)
        for command in (("runs",), ("runs", "show", "k_0002")):
            done = lima2(*command, cwd=folder)
            assert done.returncode == 0, done.stderr + repr(bytes(damaged))


def test_a_sample_of_damaged_files() -> None:
    """More: ``python -m tests.faults.files``."""
    outcome = files.search(1e9, 11, files=6)
    assert (outcome.tried, outcome.failures) == (6, [])


@pytest.mark.parametrize("kind", files.BOMBS)
@pytest.mark.parametrize("node", [*files.NODES, "replay"])
def test_odd_hdf5_files_cost_validate_no_more_than_others(kind: str, node: str, tmp_path: Path) -> None:
    files.bomb(tmp_path / "d.h5", kind, random.Random(1))
    text = files.REPLAY if node == "replay" else files.CALIBRATED.replace("NODE", files.NODES[node])
    (tmp_path / "p.yaml").write_text(text.format(file="d.h5"))
    assert files.problem("validate", files.forked(["validate", "p.yaml"], tmp_path, 20), (0, 1)) is None


REQUESTS = {
    "wide": b'{"do": [' + b"[]," * 1000 + b"[]]}",
    "not-finite": b'{"do": "trigger", "count": NaN}',
    "negative": b'{"do": "trigger", "count": -1}',
    "true": b'{"do": "trigger", "count": true}',
    "fraction": b'{"do": "trigger", "count": 1.5}',
    "nothing": b"",
    "surrogate": b'{"do": "\\ud800"}',
    "escaped": b'{"do": "stop\\u0000"}',
    "deep": b"[" * 2000 + b"]" * 2000,
    "deep-object": b'{"do": ' * 500 + b"1" + b"}" * 500,
    "list": b"[]",
    "long": b"x" * 10_000,
    "binary": bytes(range(9)) + b"\xff",
    "no-name": b'{"do": 7}',
    "unknown": b'{"do": "dance"}',
    "count": b'{"do": "trigger", "count": {"a": []}}',
    "huge-number": b'{"do": "trigger", "count": ' + b"9" * 4000 + b"}",
}


def test_odd_requests_do_not_end_a_run(tmp_path: Path) -> None:
    live = Live(TEXT.replace("frames: 4", "frames: 0, rate: 100 Hz"), tmp_path, "inline")
    live.wait_for_frames()
    name = json.loads((tmp_path / "runs/latest/control.json").read_text())["socket"]
    for request in REQUESTS.values():
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(30)
            caller.connect(f"\0{name}")
            caller.sendall(request + b"\n")
            answer = json.loads(caller.makefile("rb").readline())
        assert answer["ok"] is False
        assert answer["message"]
    stopped = lima2("stop", "runs/latest", cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    ran = live.end()
    assert ran.summary["state"] == "stopped"
    assert sys.getrecursionlimit() <= 100_000  # DEEP is deeper than any parser may go


@pytest.mark.parametrize("key", ["overrun", "rates", "resources", "losses", "latency_s", "acquisition", "channels"])
@pytest.mark.parametrize("value", ["x", 7, [1], {"a": "b"}])
def test_a_summary_with_values_of_other_types_is_shown_or_called_damaged(key: str, value: object, folder: Path) -> None:
    path = folder / "runs/k_0002/summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    for words in (("runs",), ("runs", "show", "k_0002")):
        done = lima2(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
