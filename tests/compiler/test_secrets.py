"""Values of variables: those used are kept, those marked as secret are in no file and no message."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lima2cli.check import Checked, check_text
from lima2cli.cli import app
from lima2cli.job.launch import find_mpiexec
from lima2cli.secret import HIDDEN, Secret, hide
from tests.running import Done, copied

TOKEN = "hunter2-of-the-beamline"
CODE = """\
import sys
def f(frames, numbers, token):
    assert token == "-".join(["hunter2", "of", "the", "beamline"]), token  # in no constant, which Python would keep
    print("printed", token, file=sys.stderr, flush=True)
    if len(frames) and numbers[-1] >= FAILS:
        raise ValueError("no such token: " + token)
    return frames
"""
TEXT = """\
lima2: 1
# not used: ${COMMENTED}; escaped: $${ESCAPED}
metadata: {title: "by ${LOGIN} with ${TOKEN!}", extra: {note: "costs $${ESCAPED}", list: ["${TOKEN!}"]}}
detector: {remu: {image: {width: 8, height: 8}}}
acquisition: {frames: 4}
nodes:
  p: {input: data, python: {function: "u.py:f", params: {token: "${TOKEN!}"}}}
  s: {input: p, io_hdf5: {}}
"""
VARIABLES = {"COMMENTED": "left-out-1", "ESCAPED": "left-out-2", "LOGIN": "joe", "TOKEN": TOKEN}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "in.yaml").write_text(TEXT)
    return tmp_path


def program(*words: str) -> Done:
    """Call the program in a process of its own: this one must not know the secrets."""
    return copied(*words, cwd=Path.cwd())


def leaks(folder: Path) -> list[str]:
    words = [value.encode() for value in (TOKEN, "left-out-1", "left-out-2")]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if any(word in path.read_bytes() for word in words)]


TRANSPORTS = ["inline", pytest.param("mpi", marks=pytest.mark.skipif(find_mpiexec() is None, reason="no MPI"))]


@pytest.mark.launch
@pytest.mark.parametrize("fails", [100, 2])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_secrets_are_in_no_file_of_a_run(transport: str, fails: int, folder: Path) -> None:
    (folder / "u.py").write_text(CODE.replace("FAILS", str(fails)))
    done = program("run", "in.yaml", "--transport", transport, "--progress", "plain")
    assert done.returncode == (10 if fails == 2 else 0), done.stdout
    assert leaks(folder) == []
    kept = json.loads((folder / "runs/latest/plan.json").read_text())
    assert kept["source"]["environment"] == {"LOGIN": "joe"}
    assert kept["source"]["secrets"] == ["TOKEN"]
    assert kept["parameters"]["metadata"]["title"] == f"by joe with {HIDDEN}"
    if fails == 2:
        assert f"no such token: {HIDDEN}" in done.stdout
        assert f"no such token: {TOKEN}" not in done.stdout
    if transport == "mpi":
        assert TOKEN not in done.stdout
        assert f"printed {HIDDEN}" in (folder / "runs/latest/lima2.log").read_text()


def test_recover_needs_no_secret_and_a_saved_plan_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "u.py").write_text(CODE.replace("FAILS", "100"))
    assert program("run", "in.yaml", "--transport", "inline").returncode == 0
    assert program("plan", "in.yaml", "--format", "json", "-o", "plan.json").returncode == 0
    assert leaks(folder) == []
    again = program("run", "plan.json", "--transport", "inline", "--progress", "none")
    assert again.returncode == 0, again.stdout
    monkeypatch.delenv("TOKEN")
    refused = program("run", "plan.json", "--transport", "inline")
    assert refused.returncode == 1
    assert "the environment variable TOKEN is not set; its value is secret" in refused.stdout
    (folder / "runs/latest/summary.json").unlink()
    recovered = program("recover", "runs/latest")
    assert recovered.returncode == 0, recovered.stdout
    assert leaks(folder) == []


def check(text: str, **variables: str) -> Checked:
    return check_text(text, "t.yaml", Path(), cores=1, environment=variables)


HEAD = "lima2: 1\ndetector: {remu: {image: {width: 8, height: 8}MORE}}\nnodes: {s: {input: data, io_hdf5: {}}}\n"


@pytest.mark.parametrize(
    "text",
    [
        HEAD.replace("MORE", ', name: "${X!}"'),
        HEAD.replace("MORE", "") + "name: ${X!}\n",
        HEAD.replace("MORE", "") + 'output: {directory: "${X!}"}\n',
        HEAD.replace("MORE", "") + 'metadata: {instrument: "${X!}"}\n',
        HEAD.replace("MORE", "") + 'metadata: {photon_energy: "${X!} keV"}\n',
        HEAD.replace("MORE", "") + 'receivers: {r: {memspaces: {m: {file: {path: "${X!}"}}}}}\n',
        HEAD.replace("MORE", "").replace("input: data", 'input: "${X!}"'),
    ],
)
def test_secrets_stand_where_texts_are_handed_on(text: str) -> None:
    found = check(text.replace("keV", "keV"), X="secret12")
    assert found.findings.failed
    assert "secret12" not in hide(" ".join(item.message for item in found.findings))


def test_secrets_that_are_short_or_not_set() -> None:
    text = HEAD.replace("MORE", "") + 'metadata: {title: "${X!}"}\n'
    assert [item.rule for item in check(text, X="abc").findings] == ["secret-too-short"]
    assert [item.rule for item in check(text).findings] == ["variable-unset"]
    given = check(text.replace("!}", "!:-none}"))
    assert not given.findings.failed
    assert given.plan is not None
    assert given.plan.record["metadata"]["title"] == HIDDEN
    assert given.variables.open == {}


def test_only_what_is_used_is_kept(tmp_path: Path) -> None:
    text = HEAD.replace("MORE", "") + 'metadata: {title: "${A} ${B:-b} $${C}", sample: "${D!}"}  # ${E}\n'
    found = check(text, A="aa", B="", C="cc", D="dddd", E="ee")
    assert found.variables.open == {"A": "aa"}
    assert found.variables.secret == {"D"}


def test_a_secret_is_hidden_in_each_process_that_has_it() -> None:
    code = (
        "import pickle, sys; from lima2cli.secret import hide;"
        "value = pickle.loads(bytes.fromhex(sys.argv[1])); print(value.shown, hide('a ' + str(value)))"
    )
    import pickle

    sent = pickle.dumps(Secret("user:passw0rd", "user:***", ("passw0rd",))).hex()
    done = subprocess.run([sys.executable, "-c", code, sent], capture_output=True, text=True, check=True)
    assert done.stdout == "user:*** a user:***\n"


def test_messages_hide_secrets(folder: Path) -> None:
    text = TEXT.replace("u.py:f", "u.py:${TOKEN!}")
    for command in (
        ["validate", "-"],
        ["validate", "--format", "json", "-"],
        ["plan", "-"],
        ["plan", "--format", "json", "-"],
    ):
        result = CliRunner().invoke(app, command, input=text)
        assert result.exit_code == 1
        assert TOKEN not in result.output


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_permissions_of_the_umask(umask: int, mode: int, folder: Path) -> None:
    (folder / "u.py").write_text(CODE.replace("FAILS", "100"))
    before = os.umask(umask)
    try:
        assert program("run", "in.yaml", "--transport", "inline").returncode == 0
    finally:
        os.umask(before)
    files = [path for path in (folder / "runs/latest/").iterdir() if path.is_file()]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {path.name: oct(mode) for path in files}
