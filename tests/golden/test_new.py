"""The command `new`: what it prints is a pipeline once REPLACEME is filled in, for every kind."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from lima2cli.check import Checked, check_text
from lima2cli.cli import app
from lima2cli.detectors.base import detector_kinds
from lima2cli.diagnostics import Findings
from lima2cli.document import load
from lima2cli.document.writing import flow_text
from lima2cli.nodes.registry import node_kinds
from tests.golden import FOLDER, agrees

VALUES = {
    "width": "32", "height": "16", "x": "0", "y": "0", "file": "frames.h5::/data", "stream": "tcp://127.0.0.1:31001",
    "port": "50001", "image": "dark.npy", "pedestal": "[1, 2, 3]", "gain": "[1, 2, 3]", "function": "mine.py:double",
    "expr": "a + 1", "frames": "10", "above": "100", "masks": "dark.npy", "keep": "roi_counters.first_sum > 0",
    "range": "[0, 100]", "photon_energy": "12.4 keV", "distance": "0.1 m",
}  # fmt: skip
"""Values for REPLACEME, by key."""

RECORD = {
    "version": 1, "name": "mine", "image": {"width": 32, "height": 16}, "datasets": {"counts": {"dtype": "uint16"}},
}  # fmt: skip


def new(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["new", *arguments])


def filled(text: str, **values: str) -> str:
    found = re.sub(
        r"(\w+): (REPLACEME|\[REPLACEME.*?\])", lambda match: f"{match[1]}: {(VALUES | values)[match[1]]}", text
    )
    return re.sub(r"(pixel_size:.*\n +x: )0(.*\n +y: )0", r"\1 75 um\2 75 um", found)


def check(text: str, base: Path) -> Checked:
    return check_text(text, "new.yaml", base, cores=1, environment={})


def errors(text: str, base: Path) -> set[str]:
    return {item.rule for item in check(text, base).findings if item.severity == "error"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with h5py.File(folder / "frames.h5", "w") as file:
        file["data"] = np.zeros((10, 16, 32), np.uint16)
    np.save(folder / "dark.npy", np.ones((16, 32), np.float32))
    (folder / "mine.py").write_text("def double(frames, numbers):\n    return frames\n")
    (folder / "record.json").write_text(json.dumps(RECORD))
    return folder


@pytest.mark.parametrize("kind", node_kinds())
def test_every_node_is_valid_once_it_is_filled_in(kind: str, data: Path) -> None:
    if kind == "azimuthal":
        pytest.importorskip("pyFAI")
    before = {"filter": "roi_counters,"}.get(kind, "")
    text = new(f"remu/{before}{kind},io_hdf5").stdout
    assert errors(text, data) == {"replaceme"}
    assert errors(filled(text), data) == set()


@pytest.mark.parametrize("kind", detector_kinds())
def test_every_detector_is_valid_once_it_is_filled_in(kind: str, data: Path) -> None:
    text = new(f"{kind}/io_hdf5").stdout
    special = {"file": "record.json"} if kind == "rashpa" else {}
    assert errors(filled(text, **special), data) == set()


@pytest.mark.parametrize("kind", [*detector_kinds(), *node_kinds()])
def test_comments_are_parameters_with_their_defaults(kind: str, data: Path) -> None:
    """Each comment with a default becomes a parameter where `# ` is taken away."""
    of_node = kind in node_kinds()
    before = {"filter": "roi_counters,"}.get(kind, "")
    lines = filled(new(f"remu/{before}{kind}" if of_node else kind).stdout).splitlines()
    indent = "      " if of_node else "    "
    if kind == "azimuthal":
        pytest.importorskip("pyFAI")
    begin = lines.index(f"{indent[2:]}{kind}:") + 1
    for number in range(begin, len(lines)):
        if not lines[number].startswith(indent):
            break
        if match := re.fullmatch(rf"{indent}# (\w+): ([^#]*\S)  # .*", lines[number]):
            text = "\n".join([*lines[:number], lines[number].replace("# ", "", 1), *lines[number + 1 :]])
            special = {"file: frames.h5::/data": "file: record.json"} if kind == "rashpa" else {}
            for old, with_ in special.items():
                text = text.replace(old, with_)
            assert errors(text, data) == set(), match[0]


def test_the_scaffold_of_the_manual() -> None:
    text = new("remu/background_sub,roi_counters,io_hdf5").stdout
    agrees(FOLDER / "new.yaml", text)
    nodes = load(text, "new.yaml", Findings(), environment={}).data["nodes"]
    assert [node["input"] for node in nodes.values()] == ["data", "background_sub", "background_sub"]


def test_names_are_used_once() -> None:
    nodes = load(new("remu/io_hdf5,io_hdf5").stdout, "new.yaml", Findings(), environment={}).data["nodes"]
    assert list(nodes) == ["io_hdf5", "io_hdf5_2"]


def test_recorded_frames_are_replayed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    text = new("--from", "frames.h5::/data").stdout
    assert "    file: frames.h5::/data  # 10 frames of 32 x 16, uint16\n" in text
    checked = check(text, data)
    assert not checked.findings.failed
    assert checked.plan is not None
    assert (checked.plan.frames, list(checked.plan.channels)) == (10, ["io_hdf5"])
    file = tmp_path / "sub" / "replay.yaml"
    file.parent.mkdir()
    assert new("--from", "frames.h5", "checkpoint", "-o", str(file)).exit_code == 0
    assert errors(file.read_text(), file.parent) == set()
    result = new("--from", "frames.h5::/dota")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error[dataset-missing]" in result.stderr


def test_odd_names_of_recorded_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = 'a ${b}: #"ü"\nlima2: 2.npy'
    np.save(tmp_path / name, np.zeros((3, 16, 32), np.uint8))
    text = new("--from", name).stdout
    assert errors(text, tmp_path) == set()
    assert "# 3 frames of 32 x 16, uint8" in text


def test_a_run_is_replayed_from_its_directory(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link to the latest run will be that of another run."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "mine_0001"
    folder.mkdir(parents=True)
    (folder / "frames.h5").write_bytes((data / "frames.h5").read_bytes())
    (tmp_path / "runs" / "latest").symlink_to("mine_0001")
    assert "    file: runs/mine_0001/frames.h5  # 10" in new("--from", "runs/latest/frames.h5").stdout
    absolute = tmp_path.resolve() / "runs"
    assert f"file: {absolute}/mine_0001/frames.h5  #" in new("--from", f"{absolute}/latest/frames.h5").stdout
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away")
    assert new("--from", "runs/latest/frames.h5::/data", "-o", "link/new.yaml").exit_code == 0
    text = (tmp_path / "link" / "new.yaml").read_text()
    assert "    file: ../../runs/mine_0001/frames.h5::/data  # 10" in text
    assert errors(text, tmp_path / "link") == set()
    assert new("--from", "runs/latest/frames.h5", "-o", "none/new.yaml").exit_code == 12


def test_files_are_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    assert new("remu/io_hdf5", "-o", str(file)).exit_code == 0
    text = file.read_text()
    result = new("remu/mask", "-o", str(file))
    assert result.exit_code == 12
    assert "error[environment-unfit]" in result.stderr
    assert file.read_text() == text


def test_kinds_are_listed() -> None:
    lines = new("--list").stdout.splitlines()
    named = {line.split()[0] for line in lines}
    assert named >= {"detectors", "nodes", *detector_kinds(), *node_kinds()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["remu/io_hdf"], "error[unknown-kind]: there is no node of kind `io_hdf`\n = help: did you mean `io_hdf5`?"),
        (["remy/io_hdf5"], "there is no detector of kind `remy`\n = help: did you mean `remu`?"),
        (["io_hdf5,mask"], "the detector comes first, such as `lima2 new remu/io_hdf5,mask`"),
        (["remu/io_hdf5", "--from", "frames.h5"], "with --from the detector is `replay`"),
        ([], "`lima2 new --list` lists kinds"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str) -> None:
    result = new(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_plain_data_in_one_line() -> None:
    value = {"a": [1, 2.5, True, None, "x", "a: b", "true", "1e3"], "b": {"c": {}}}
    text = flow_text(value)
    assert text == '{a: [1, 2.5, true, null, x, "a: b", "true", "1e3"], b: {c: {}}}'
    assert load(text, "x.yaml", Findings(), environment={}).data == value
