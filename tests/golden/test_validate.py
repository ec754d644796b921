"""The command `validate`: what is found, where, how it is shown, and how the program ends."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lima2cli.check import check_text
from lima2cli.cli import app
from lima2cli.diagnostics import Findings
from lima2cli.document import load
from tests import ROOT
from tests.golden import FOLDER, agrees

EXAMPLES = sorted((ROOT / "examples" / "pipelines").glob("*.yaml"))
MISTAKES = sorted((ROOT / "tests" / "mistakes").glob("*.yaml"))
MAZE = (ROOT / "examples" / "pipelines" / "maze.yaml").read_text()
MAZE_DATA = load(MAZE, "maze.yaml", Findings(), environment={}).data
SMALL = """\
lima2: 1
detector: {remu: {image: {width: 8, height: 8}, datasets: {data: {dtype: uint16}}}}
acquisition: {frames: 1}
nodes: {save: {input: data, io_hdf5: {}}}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the program in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, given: str | None = None):
        return CliRunner().invoke(app, list(arguments), input=given)

    return call


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_have_no_errors(path: Path, run) -> None:
    result = run("validate", "--format", "json", str(path))
    assert result.exit_code == 0
    assert all(item["severity"] == "warning" for item in json.loads(result.stdout)["diagnostics"])


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: path.stem)
def test_mistakes_are_told_as_before(path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    result = run("validate", path.name)
    assert result.exit_code == (0 if path.stem == "unused" else 1)
    agrees(FOLDER / f"{path.stem}.txt", result.stdout)


def test_ten_kinds_of_mistakes_in_one_pass_each_at_its_line(run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "tests" / "mistakes" / "ten_kinds.yaml"
    result = run("validate", "--format", "json", str(path))
    found = [(item["line"], item["rule"]) for item in json.loads(result.stdout)["diagnostics"]]
    assert found == [
        (2, "out-of-range"),
        (2, "unknown-key"),
        (6, "unknown-value"),
        (8, "bad-quantity"),
        (12, "wrong-type"),
        (15, "wrong-type"),
        (16, "unknown-receiver"),
        (16, "unknown-key"),
        (17, "missing-key"),
        (18, "bad-name"),
        (20, "unknown-input"),
        (21, "unknown-kind"),
        (22, "one-kind"),
        (23, "wrong-type"),
    ]


def test_json_has_all_keys_and_several_files_are_one_object(run, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(SMALL)
    (tmp_path / "bad.yaml").write_text(SMALL.replace("input: data", "input: date"))
    result = run("validate", "--format", "json", "good.yaml", "bad.yaml", "absent.yaml")
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert told["version"] == 1
    wrong, absent = told["diagnostics"]
    assert wrong == {
        "rule": "unknown-input",
        "severity": "error",
        "message": "`save` reads `date`, which is neither a flow nor a node",
        "file": "bad.yaml",
        "line": 4,
        "column": 23,
        "path": "/nodes/save/input",
        "notes": [],
        "help": "did you mean `data`?",
    }
    assert (absent["rule"], absent["file"]) == ("unreadable-input", "absent.yaml")


def test_exit_codes(run, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(SMALL)
    (tmp_path / "warned.yaml").write_text(SMALL.replace("io_hdf5", "background_sub").replace("{}}}", "{image: 1}}}"))
    (tmp_path / "open.yaml").write_text("lima2: [1")
    (tmp_path / "latin1.yaml").write_bytes(b"lima2: \xe9")
    assert run("validate", "good.yaml").exit_code == 0
    assert run("validate", "warned.yaml").exit_code == 0
    assert run("validate", "--strict", "warned.yaml").exit_code == 1
    assert run("validate", "open.yaml").exit_code == 1
    assert run("validate", "latin1.yaml").exit_code == 2
    assert run("validate", str(tmp_path)).exit_code == 2
    assert run("validate", "--format", "xml", "good.yaml").exit_code == 2
    assert run("validate").exit_code == 2


def test_standard_input_and_overrides(run) -> None:
    assert run("validate", "-", given=SMALL).stdout == "-: fine\n"
    result = run("validate", "-", "-s", "nodes.save.input=dta", "--format", "concise", given=SMALL)
    assert result.exit_code == 1
    assert result.stdout.startswith("--set nodes.save.input=dta: error[unknown-input]")
    assert run("validate", "-", "-s", "nodes.save.input=dta", "-s", "nodes.save.input=data", given=SMALL).exit_code == 0


def test_a_bug_of_ours_is_told_without_a_traceback(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("lima2cli.cli.reading.check_text", broken)
    result = run("validate", "--format", "json", "-", given=SMALL)
    assert result.exit_code == 3
    assert json.loads(result.stdout)["diagnostics"][0]["rule"] == "internal-error"
    result = run("validate", "-", given=SMALL)
    assert result.exit_code == 3
    assert "Traceback" not in result.output
    assert "ZeroDivisionError: oops" in result.stderr
    assert isinstance(run("validate", "--debug", "-", given=SMALL).exception, ZeroDivisionError)


def test_validate_imports_nothing_heavy() -> None:
    """Neither MPI, numexpr nor, where no file names HDF5 data, HDF5."""
    command = [sys.executable, "-X", "importtime", "-m", "lima2cli", "validate", str(EXAMPLES[0])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=180, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "yaml" in imported
    assert not imported & {
        "mpi4py", "jsonschema", "numexpr", "h5py", "hdf5plugin", "fabio", "cffi", "pydantic", "rich",
    }  # fmt: skip


@pytest.mark.parametrize("group", [(), ("runs",), ("nodes",), ("detectors",)])
def test_summaries_of_commands_fit_a_terminal(group: tuple[str, ...], run) -> None:
    shown = run(*group, "--help").stdout
    assert shown.count("\n  ") > 3
    lines = shown.splitlines()[1:]
    assert not [line for line in lines if line.endswith("...") or len(line) > 80]


def test_help_imports_no_compiler() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "lima2cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=180, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"numpy", "yaml", "jsonschema", "rich"}


def test_a_reader_that_goes_away_is_no_crash() -> None:
    done = subprocess.run(
        f"{sys.executable} -m lima2cli schema | head -c 10", shell=True, capture_output=True, text=True, cwd=ROOT,
        timeout=180, check=False,
    )  # fmt: skip
    assert done.stdout == '{\n "$schema'[:10]
    assert done.stderr == ""


@pytest.mark.parametrize("format", ["concise", "github", "sarif"])
def test_other_formats_name_rule_and_file(format: str, run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(SMALL.replace("input: data", "input: date"))
    result = run("validate", "--format", format, "one.yaml", "two.yaml")
    assert result.exit_code == 1
    assert result.stdout.count("unknown-input") >= 2
    assert "one.yaml" in result.stdout
    assert "two.yaml" in result.stdout
    if format == "sarif":
        assert len(json.loads(result.stdout)["runs"]) == 2


WORDS = [
    *MAZE.replace(":", " ").replace(",", " ").split(),
    ".nan",
    "-1",
    "1e999",
    "{}",
    "[]",
    "null",
    "true",
    "''",
    "9" * 30,
]


@st.composite
def mutants(draw: st.DrawFn) -> str:
    """maze.yaml with some words replaced, lines dropped or doubled, and characters put in."""
    lines = MAZE.splitlines()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        change = draw(st.sampled_from(["word", "word", "drop", "double", "character"]))
        line = lines[at]
        if change == "drop":
            del lines[at]
        elif change == "double":
            lines.insert(at, line)
        elif change == "character":
            where = draw(st.integers(0, len(line)))
            lines[at] = line[:where] + draw(st.sampled_from("{}[],:#&*!|>'\"%@`-? \\$")) + line[where:]
        elif words := line.replace(":", " ").replace(",", " ").split():
            lines[at] = line.replace(draw(st.sampled_from(words)), draw(st.sampled_from(WORDS)), 1)
    return "\n".join(lines)


VALUES = [
    None, True, 0, 1, -1, 1.5, 64.0, 2**62, 1e300, "", "x", "full", "CTR1", "FullDet1", "receiver0.dataMSpace", "1 ms",
    "16 KiB", "1e18 B", "{name}", "nope.h5::/data", {}, [], [1], {"x": 1}, {"host": None}, {"counter": {}},
]  # fmt: skip


def containers(data: Any) -> Iterator[Any]:
    """All maps and lists that hold anything."""
    if data and isinstance(data, (dict, list)):
        yield data
        for item in data.values() if isinstance(data, dict) else data:
            yield from containers(item)


@st.composite
def grown_wild(draw: st.DrawFn) -> str:
    """maze.yaml with values replaced, moved or dropped, and keys renamed."""
    data = json.loads(json.dumps(MAZE_DATA))
    for _ in range(draw(st.integers(1, 3))):
        holders = list(containers(data))
        holder = draw(st.sampled_from(holders))
        key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        change = draw(st.sampled_from(["value", "value", "copy", "rename", "drop"]))
        if change == "value":
            holder[key] = json.loads(json.dumps(draw(st.sampled_from(VALUES))))  # a later step may change it
        elif change == "copy":
            holder[key] = json.loads(json.dumps(draw(st.sampled_from(holders))))
        else:
            value = holder.pop(key)
            if change == "rename" and isinstance(holder, dict):
                holder[draw(st.sampled_from(WORDS))] = value
    return json.dumps(data)


@settings(max_examples=int(os.environ.get("LIMA2_FUZZ", "150")))
@given(st.one_of(mutants(), grown_wild()))
def test_no_mutant_crashes_the_check(text: str) -> None:
    checked = check_text(text, "maze.yaml", ROOT, cores=2, environment={})
    assert (checked.plan is None) == checked.findings.failed
