"""Kinds of other packages: installed for real and used; broken ones told of, and no trouble to others."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from lima2cli.check import Checked, check_text
from lima2cli.cli import app
from lima2cli.detectors.base import DETECTORS, DetectorConfig
from lima2cli.diagnostics import Diagnostic
from lima2cli.language.schema import schema_text
from lima2cli.nodes.base import Inputs, Node
from lima2cli.nodes.registry import NODES
from lima2cli.testing import NoFiles, frame_spec
from tests import ROOT
from tests.running import TRANSPORTS, lima2, run

EXAMPLE = ROOT / "tests" / "plugin_example"

PIPELINE = """
lima2: 1
detector: {bars: {size: 60, bar: 7}}
acquisition: {frames: 40}
receivers: 2
nodes:
  high: {input: data, threshold: {below: 500}}
  counts: {input: high, roi_counters: {rois: {left: {rect: {x: 0, y: 0, width: 20, height: 60}}}}}
  save: {input: high, io_hdf5: {}}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the example is installed, as pip does it."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, "--target", str(folder / "site"), str(folder / "source")], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"pip cannot install here without a network: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "site"


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example, here and for programs that are started."""
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.syspath_prepend(site)


@pytest.mark.launch  # ranks that stay have started without the package
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_pipeline_of_plugins_runs(transport: str, tmp_path: Path) -> None:
    ran = run(PIPELINE, tmp_path, transport)
    assert ran.code == 0, ran.output
    frames, numbers, status = ran.saved("save")
    assert numbers.tolist() == list(range(40))
    assert not status.any()
    x = np.arange(60) + np.arange(40)[:, None]
    expected = np.where(x // 7 % 2, 1000, 0).astype(np.uint16)
    np.testing.assert_array_equal(frames, np.repeat(expected[:, None, :], 60, axis=1))
    assert expected.any(axis=1).all()


@pytest.mark.usefixtures("installed")
def test_mistakes_in_plugins_are_told_like_all_others(tmp_path: Path) -> None:
    def told(old: str, new: str) -> dict[str, Any]:
        assert old in PIPELINE
        (tmp_path / "p.yaml").write_text(PIPELINE.replace(old, new))
        done = lima2("validate", "--format", "json", "p.yaml", cwd=tmp_path)
        assert done.returncode == 1, done.stderr
        (found,) = json.loads(done.stdout)["diagnostics"]
        return dict(found)

    found = told("threshold:", "treshold:")
    assert (found["rule"], found["help"]) == ("unknown-kind", "did you mean `threshold`?")
    found = told("{bars:", "{bar:")
    assert (found["rule"], found["help"]) == ("unknown-kind", "did you mean `bars`?")
    found = told("below: 500", "belwo: 500")
    assert (found["rule"], found["help"]) == ("unknown-key", "did you mean `below`?")
    found = told("size: 60", "size: 5000")
    assert (found["rule"], found["message"]) == ("out-of-range", "expected a whole number from 2 to 4096, got 5000")
    found = told("below: 500", "below: 70000")
    assert (found["rule"], found["line"], found["path"]) == ("threshold-value", 7, "/nodes/high/threshold/below")


@pytest.mark.usefixtures("installed")
def test_the_schema_of_an_installation_has_its_plugins(tmp_path: Path) -> None:
    import yaml

    done = lima2("schema", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    schema = json.loads(done.stdout)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert validator.is_valid(yaml.safe_load(PIPELINE))
    assert not validator.is_valid(yaml.safe_load(PIPELINE.replace("below: 500", "below: high")))
    published = json.loads(schema_text())
    assert not Draft202012Validator(published).is_valid(yaml.safe_load(PIPELINE))
    del schema["properties"]["detector"]["properties"]["bars"]
    graphs = schema["properties"]["graphs"]["additionalProperties"]
    for holder in (schema, graphs):
        entry = holder["properties"]["nodes"]["additionalProperties"]
        for kind in ("threshold", "power"):
            del entry["properties"][kind], entry["dependentRequired"][kind]
    assert schema == published


@pytest.mark.usefixtures("installed")
def test_lists_say_who_brings_what(tmp_path: Path) -> None:
    nodes = lima2("nodes", "list", cwd=tmp_path).stdout.splitlines()
    assert [re.split("  +", line) for line in nodes if line.startswith(("threshold", "mask"))] == [
        ["mask", "map", "built in", "Marks and fills defective pixels."],
        ["threshold", "map", "lima2-example 0.3", "Set pixels below a level to zero."],
    ]
    detectors = json.loads(lima2("detectors", "list", "--format", "json", cwd=tmp_path).stdout)
    assert detectors["detectors"][-1] == {
        "kind": "bars",
        "role": "source",
        "origin": "lima2-example 0.3",
        "doc": "Vertical bars that move.",
    }
    assert detectors["warnings"] == []
    shown = lima2("nodes", "show", "threshold", cwd=tmp_path).stdout
    assert shown.startswith("threshold: map, lima2-example 0.3\n\nSets low pixels to 0.\n\n    out = raw where raw >=")
    assert "  below: a number of at least 0; required\n      Pixels below this value become 0." in shown
    shown = json.loads(lima2("detectors", "show", "bars", "--format", "json", cwd=tmp_path).stdout)
    assert shown["capabilities"]["largest"] == [4096, 4096]
    assert {parameter["key"]: parameter["default"] for parameter in shown["parameters"]}["bar"] == 16
    assert shown["schema"]["properties"]["size"]["maximum"] == 4096


@pytest.mark.usefixtures("installed")
def test_the_package_passes_the_tests_that_it_inherits(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "tests" / "test_conformance.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_conformance.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > 30


def test_the_guide_shows_the_example() -> None:
    page = (ROOT / "docs" / "how-to" / "write-a-node.md").read_text()
    blocks = re.findall(r"^```(?:python|toml)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    files = ("lima2_example/threshold.py", "lima2_example/power.py", "pyproject.toml", "tests/test_conformance.py")
    assert blocks[1:] == [(EXAMPLE / file).read_text() for file in files]
    smallest: dict[str, Any] = {"__name__": "smallest"}
    exec(blocks[0], smallest)
    six = [line for line in blocks[0].partition("@node")[2].splitlines() if line]
    assert len(six) == 6
    made = smallest["Threshold"](below=5).bind(Inputs.of(frame_spec("uint8", 1, 3), NoFiles()))(
        np.array([[[4, 5, 6]]], np.uint8)
    )
    assert (made.tolist(), made.dtype) == ([[[0, 5, 6]]], np.uint8)


@pytest.mark.usefixtures("installed")
def test_the_pipeline_of_the_guide_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "write-a-node.md").read_text()
    (pipeline,) = re.findall(r"^```yaml[^\n]*\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    ran = run(pipeline, tmp_path, "inline")
    assert ran.code == 0, ran.output
    frames, _, _ = ran.saved("save")
    assert set(np.unique(frames[frames < 1000])) == {0}
    assert (frames >= 1000).any()


FUSED = """
lima2: 1
detector: {bars: {size: 60, bar: 7}}
acquisition: {frames: 40}
nodes:
  dark: {input: data, background_sub: {image: -4}}
  root: {input: dark, power: {exponent: 0.5}}
  half: {input: root, flatfield: {image: 2}}
  cut: {input: half, roi_flip_rot: {roi: {x: 7, y: 10, width: 30, height: 20}, flip: horizontal}}
  counts: {input: cut, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 30, height: 20}}}, statistics: [sum]}}
"""


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("saved", [True, False])
def test_a_plugin_is_fused_with_built_in_nodes(saved: bool, tmp_path: Path) -> None:
    text = FUSED + "  save: {input: cut, io_hdf5: {}}\n" * saved
    checked = check_text(text, "p.yaml", tmp_path, cores=2, environment={})
    assert checked.plan is not None, list(checked.findings)
    kernel = checked.plan.kernels[0]
    assert (kernel.maps, kernel.ends) == (("dark", "root", "half", "cut"), ("counts",))
    assert kernel.makes == (("cut",) if saved else ()), "frames that only counters read are not made"
    ran = run(text, tmp_path, "inline")
    assert ran.code == 0, ran.output
    x = np.arange(60) + np.arange(40)[:, None]
    row = (np.sqrt(np.where(x // 7 % 2, 1004, 4).astype(np.float32)) / np.float32(2))[:, 7:37][:, ::-1]
    with h5py.File(ran.directory / ran.summary["tables"]["counts"]["file"]) as file:
        sums = file["/entry_0000/measurement/all_sum"][()]
    np.testing.assert_allclose(sums, 20 * row.astype(float).sum(axis=1))
    if saved:
        frames, _, _ = ran.saved("save")
        np.testing.assert_array_equal(frames, np.repeat(row[:, None, :], 20, axis=1))


# Packages with mistakes, made as pip leaves them

NODE = """
from dataclasses import dataclass
from typing import ClassVar
from lima2cli.declare import Number, param
from lima2cli.nodes.base import Map, Node

@dataclass(frozen=True, kw_only=True)
class Good(Map):
    '''Does nothing.'''
    kind: ClassVar[str] = "KIND"
    n: float = param("A number.", Number(), 0)
    def infer(self, inputs):
        return inputs.spec

@dataclass(frozen=True, kw_only=True)
class Roleless(Node):
    kind: ClassVar[str] = "KIND"

class Undecorated(Good):
    pass

@dataclass(frozen=True, kw_only=True)
class Undeclared(Good):
    more: int = 3

@dataclass(frozen=True, kw_only=True)
class Unreadable(Good):
    n: float = param("A number.", None, 0)

thing = 3
"""


class Site:
    """A folder of packages, on the path of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        name: str,
        kind: str,
        value: str = "Good",
        *,
        code: str = NODE,
        version: str = "1.0",
        group: str = "lima2cli.nodes",
    ) -> None:
        """A package with one module, and one entry point."""
        module = name.replace("-", "_")
        (self.folder / f"{module}.py").write_text(code.replace("KIND", kind))
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{kind} = {module}:{value}\n")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder to which packages are added; their modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def check(*kinds: str) -> Checked:
    """A pipeline with a node of each kind."""
    nodes = ", ".join(f"{kind}_{i}: {{input: data, {kind}: {{}}}}" for i, kind in enumerate(kinds))
    detector = "{remu: {image: {width: 8, height: 4}, datasets: {data: {dtype: uint8}}}}"
    nodes = f"{{save: {{input: data, io_hdf5: {{}}}}, {nodes}}}"
    text = f"lima2: 1\ndetector: {detector}\nacquisition: {{frames: 1}}\nnodes: {nodes}\n"
    return check_text(text, "p.yaml", Path(), cores=2, environment={})


def error(checked: Checked) -> Diagnostic:
    (found,) = [item for item in checked.findings if item.severity == "error"]
    return found


def test_a_kind_of_another_package_is_used(packages: Site) -> None:
    packages.add("good-one", "good")
    checked = check("good")
    assert not checked.findings.failed
    assert checked.plan is not None
    assert check("goood").findings.items[0].help == "did you mean `good`?"
    assert check("goood").plan is None


@pytest.mark.parametrize(
    ("kind", "value", "code", "words"),
    [
        ("bad", "Good", "import no_such_module", "cannot be imported: ModuleNotFoundError: No module named 'no_such_m"),
        ("bad", "Good", "raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("bad", "Good", "1/0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("bad", "Absent", NODE, "cannot be imported: AttributeError: module 'bad_one' has no attribute 'Absent'"),
        ("bad", "thing", NODE, "bad_one:thing is not a lima2cli.nodes.base.Node"),
        ("bad", "dataclass", NODE, "bad_one:dataclass is not a lima2cli.nodes.base.Node"),
        (
            "bad",
            "Roleless",
            NODE,
            "bad_one:Roleless is not one of Map, Transform, Select, Reduce, Exchange, Sink",
        ),
        ("bad", "Undecorated", NODE, "bad_one:Undecorated is not a dataclass"),
        ("bad", "Undeclared", NODE, "bad_one:Undeclared has a field that is not made by `param`: more"),
        ("bad", "Unreadable", NODE, "the parameters of bad_one:Unreadable cannot be read: AttributeError"),
        ("bad", "Good", NODE.replace("KIND", "worse"), "has the kind `worse`: name and kind must be the same"),
        ("Bad", "Good", NODE, "has a kind that cannot be written"),
    ],
)
def test_what_is_wrong_with_a_package_is_said_where_its_kind_is_used(
    packages: Site, kind: str, value: str, code: str, words: str
) -> None:
    packages.add("bad-one", kind, value, code=code)
    packages.add("good-one", "good")
    found = error(check(kind, "good"))
    assert (found.rule, found.at, found.on_key) == ("plugin-broken", ("nodes", f"{kind}_0", kind), True)
    assert found.message.startswith(f"the node `{kind}` of bad-one 1.0 cannot be used: ")
    assert words in found.message
    assert found.help == "fix, update or uninstall bad-one"
    assert not check("good").findings.failed


def test_a_detector_that_cannot_be_used_is_the_only_mistake(packages: Site) -> None:
    packages.add("bad-one", "bad", group="lima2cli.detectors")
    text = "lima2: 1\ndetector: {bad: {}}\nnodes: {save: {input: data, io_hdf5: {}}}\n"
    found = error(check_text(text, "p.yaml", Path(), cores=2, environment={}))
    assert (found.rule, found.at) == ("plugin-broken", ("detector", "bad"))
    assert found.message == (
        "the detector `bad` of bad-one 1.0 cannot be used: bad_one:Good is not a lima2cli.detectors.base.DetectorConfig"
    )


def test_a_package_may_bring_what_this_version_lacks(packages: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(NODES.built_in, "filter")
    assert error(check("filter")).rule == "not-available"
    packages.add("good-one", "filter")
    assert not check("filter").findings.failed


def test_packages_without_a_name_are_no_part_of_lima2(packages: Site) -> None:
    packages.add("bad-one", "checkpoint")
    packages.add("good-one", "good")
    (packages.folder / "bad_one-1.0.dist-info" / "METADATA").unlink()
    assert error(check("checkpoint", "good")).message == (
        "the node `checkpoint` is claimed by lima2 itself and an unnamed package"
    )


def test_a_broken_package_is_not_imported_where_it_is_not_used(packages: Site) -> None:
    packages.add("bad-one", "bad", code="raise BaseException")
    packages.add("good-one", "good")
    assert not check("good").findings.failed
    assert error(check("bda", "good")).help == "did you mean `bad`?"


@pytest.mark.parametrize("kind", ["input", "inputs"])
def test_keys_of_the_language_cannot_be_claimed(packages: Site, kind: str) -> None:
    packages.add("bad-one", kind)
    packages.add("good-one", "good")
    assert not check("good").findings.failed
    text = check("good").source.text
    several = check_text(text.replace("good: {}", "good: {}, inputs: {}"), "p.yaml", Path(), cores=2, environment={})
    assert error(several).rule == "wrong-input"
    number = check_text(text.replace("data, good", "3, good"), "p.yaml", Path(), cores=2, environment={})
    assert error(number).rule == "wrong-type"
    result = CliRunner().invoke(app, ["nodes", "list"])
    assert f"the node `{kind}` of bad-one 1.0 cannot be used" in result.stderr
    assert CliRunner().invoke(app, ["schema"]).exit_code == 0


def test_a_kind_that_two_claim_names_both(packages: Site) -> None:
    packages.add("one-lab", "twice")
    packages.add("other-lab", "twice", version="2.5")
    packages.add("good-one", "good")
    found = error(check("twice", "good"))
    assert (found.rule, found.at) == ("kind-claimed-twice", ("nodes", "twice_0", "twice"))
    assert found.message == "the node `twice` is claimed by one-lab 1.0 and other-lab 2.5"
    assert not check("good").findings.failed


def test_a_built_in_kind_that_a_package_claims_too(packages: Site) -> None:
    packages.add("my-lab", "checkpoint")
    packages.add("good-one", "good")
    assert not check("checkpoint").findings.failed
    assert not check("good").findings.failed
    assert error(check("checkpoint", "good")).message == (
        "the node `checkpoint` is claimed by lima2 itself and my-lab 1.0"
    )
    result = CliRunner().invoke(app, ["nodes", "list", "--format", "json"])
    listed = json.loads(result.stdout)
    assert {"checkpoint": "built in", "good": "good-one 1.0"}.items() <= {
        row["kind"]: row["origin"] for row in listed["nodes"]
    }.items()
    assert [item["rule"] for item in listed["warnings"]] == ["kind-claimed-twice"]


def test_lists_warn_of_broken_packages_and_show_fails(packages: Site) -> None:
    packages.add("bad-one", "bad", code="import no_such_module")
    result = CliRunner().invoke(app, ["nodes", "list"])
    assert result.exit_code == 0
    assert "bad-one" not in result.stdout
    assert "warning[plugin-broken]: the node `bad` of bad-one 1.0 cannot be used" in result.stderr
    result = CliRunner().invoke(app, ["schema"])
    assert (result.exit_code, result.stdout) == (0, schema_text())
    assert "warning[plugin-broken]" in result.stderr
    result = CliRunner().invoke(app, ["nodes", "show", "bad"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "No module named 'no_such_module'" in result.stderr
    result = CliRunner().invoke(app, ["nodes", "show", "bda", "--format", "json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["diagnostics"][0]["help"] == "did you mean `bad`?"


def test_every_built_in_kind_can_be_shown() -> None:
    for group in ("nodes", "detectors"):
        listed = json.loads(CliRunner().invoke(app, [group, "list", "--format", "json"]).stdout)[group]
        assert listed
        for row in listed:
            text = CliRunner().invoke(app, [group, "show", row["kind"]])
            assert text.stdout.startswith(f"{row['kind']}: {row['role']}, built in\n\n")
            shown = json.loads(CliRunner().invoke(app, [group, "show", row["kind"], "--format", "json"]).stdout)
            assert list(shown["schema"]["properties"]) == [
                parameter["key"] for parameter in shown["parameters"] if "." not in parameter["key"]
            ]
            assert all(f"\n  {parameter['key']}: " in text.stdout for parameter in shown["parameters"])
    roles = {
        row["kind"]: row["role"]
        for row in json.loads(CliRunner().invoke(app, ["nodes", "list", "--format", "json"]).stdout)["nodes"]
    }
    assert (roles["mask"], roles["roi_counters"], roles["io_hdf5"]) == ("map", "table", "sink")


def test_packages_are_not_looked_at_where_all_kinds_are_built_in() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "lima2cli", "validate", "examples/pipelines/maze.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=180, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "lima2cli.plugins" in imported
    assert "importlib.metadata" not in imported


def test_built_in_kinds_are_where_they_are_said_to_be() -> None:
    for kinds, base in ((NODES, Node), (DETECTORS, DetectorConfig)):
        for name, table in kinds.tables().items():
            assert issubclass(table, base)
            assert table.kind == name


def test_only_the_kinds_that_a_file_names_are_imported() -> None:
    """Only the file names a kind of detector; of nodes the compiler knows that which saves."""
    script = (
        "import sys; from lima2cli.cli.reading import check_file\n"
        "check_file('tests/mistakes/ten_kinds.yaml'); print(*sys.modules)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=180, check=True)
    imported = set(done.stdout.split())
    places = {**DETECTORS.built_in, **NODES.built_in}
    found = {kind for kind, place in places.items() if place.partition(":")[0] in imported}
    assert found == {"remu", "checkpoint", "io_hdf5"}
    assert not imported & {
        "lima2cli.files.master",
        "lima2cli.program",
        "lima2cli.graph",
        "lima2cli.ranks",
        "lima2cli.job",
    }


@pytest.mark.usefixtures("installed")
def test_plugins_are_explained_and_begun_with(tmp_path: Path) -> None:
    explained = json.loads(lima2("explain", "nodes.threshold.below", "--format", "json", cwd=tmp_path).stdout)
    assert (explained["path"], explained["required"]) == ("nodes.<name>.threshold.below", True)
    wrong = lima2("explain", "nodes.treshold.below", cwd=tmp_path)
    assert (wrong.returncode, "did you mean `threshold`?" in wrong.stderr) == (2, True)
    text = lima2("new", "bars/threshold,io_hdf5", cwd=tmp_path).stdout
    assert "      below: REPLACEME  # " in text
    (tmp_path / "p.yaml").write_text(re.sub("REPLACEME", "20", text))
    done = lima2("validate", "p.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
