"""The command `config`: what it prints is the same pipeline, and each value has its origin."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from lima2cli.check import check_text
from lima2cli.cli import app
from lima2cli.cli.config import as_yaml
from lima2cli.cli.reading import Changes, check_file
from lima2cli.declare.reading import everything
from lima2cli.diagnostics import Findings
from lima2cli.document import Document, load
from lima2cli.document.writing import flow_text
from lima2cli.language.resolved import resolve_pipeline
from lima2cli.runs.saved_plan import compare, plan_contents
from tests import ROOT
from tests.faults.texts import mutants

EXAMPLES = ROOT / "examples" / "pipelines"

SHORT = """\
lima2: 1
detector:
  remu:
    image: {width: 64, height: 32}
    pixel_size: 172 um
    modules: {columns: 2, rows: 1, width: 30, height: 32, gap: 4}
acquisition:
  frames: ${FRAMES:-8}
  binning: 2
metadata: {title: "a: $$5 'quoted'", extra: {when: 12:30:45, no: "no", deep: [{a: 1e3}, [~, 2]], empty: {}}}
receivers: 2
flows: {f: {}, g: {slices: {step: 2}, buffers: {at: host}}}
nodes:
  sums: {input: f, roi_counters: {rois: {r: {x: 1, y: 1, width: 4, height: 4}, o: {ring: {x: 9, y: 9, r1: 2, r2: 4}}}}}
  low: {input: f, expression: {expr: f - 1, dtype: float32}}
  save: {input: low, io_hdf5: }
"""


def config(*options: object, **environment: str) -> Result:
    return CliRunner().invoke(app, ["config", *map(str, options)], env=environment)


def contents(path: Path, **changes: Any) -> dict[str, Any]:
    """The plan of a file, as it is saved."""
    checked = check_file(str(path), Changes.of(changes.get("overrides"), changes.get("profiles")))
    assert checked.plan is not None, list(checked.findings)
    return plan_contents(checked.plan)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_resolved_compile_to_the_same_plan(path: Path, tmp_path: Path) -> None:
    for file in EXAMPLES.iterdir():
        (tmp_path / file.name).symlink_to(file)
    plain, again = config(path), tmp_path / f"{path.stem}.resolved.yaml"
    assert plain.exit_code == 0
    again.write_text(plain.stdout)
    assert compare(contents(path), contents(again)) == ()
    assert config(again).stdout == plain.stdout
    with_origins = config(path, "--origin")
    again.write_text(with_origins.stdout)
    assert compare(contents(path), contents(again)) == ()


def test_short_forms_are_written_long(tmp_path: Path) -> None:
    file, again = tmp_path / "short.yaml", tmp_path / "long.yaml"
    file.write_text(SHORT)
    again.write_text(config(file).stdout)
    assert compare(contents(file), contents(again)) == ()
    data = json.loads(config(file, "--format", "json").stdout)["pipeline"]
    assert data["name"] == "short"
    assert data["detector"]["remu"]["pixel_size"] == {"x": "172 um", "y": "172 um"}
    assert data["detector"]["remu"]["modules"]["gap"] == {"x": 4, "y": 4}
    assert data["acquisition"]["binning"] == {"x": 2, "y": 2}
    assert list(data["receivers"]) == ["receiver0", "receiver1"]
    assert data["receivers"]["receiver1"]["memspaces"] == {"host": {"host": {}}}
    assert data["flows"]["g"]["buffers"]["at"] == ["receiver0.host", "receiver1.host"]
    assert data["flows"]["f"]["dataset"] == "data"
    rois = data["nodes"]["sums"]["roi_counters"]["rois"]
    assert rois["r"] == {"rect": {"x": 1, "y": 1, "width": 4, "height": 4}}
    assert rois["o"] == {"arc": {"x": 9, "y": 9, "r1": 2, "r2": 4, "a1": 0.0, "a2": 360.0}}
    assert data["nodes"]["low"]["inputs"] == {"f": "f"}
    assert data["metadata"]["title"] == "a: $5 'quoted'"
    extra = data["metadata"]["extra"]
    assert (extra["when"], extra["no"], extra["empty"]) == ("12:30:45", "no", {})


def test_each_value_has_its_origin(tmp_path: Path) -> None:
    file, profile = tmp_path / "p.yaml", tmp_path / "lab.yaml"
    file.write_text(
        "lima2: 1\ndetector: {remu: {image: {width: 8, height: 4}}}\nnodes: {save: {input: data, io_hdf5: {}}}\n"
    )
    profile.write_text("detector:\n  remu: {image: {height: 6}}\n")
    options = ("-p", profile, "-s", "acquisition.frames=3")
    origins = json.loads(config(file, "--origin", "--format", "json", *options).stdout)["origins"]
    assert origins["/detector/remu/image/width"] == {"from": "file", "file": str(file), "line": 2, "column": 34}
    assert origins["/detector/remu/image/height"] == {"from": "profile", "file": str(profile), "line": 2, "column": 26}
    assert origins["/acquisition/frames"] == {"from": "set", "set": "acquisition.frames=3"}
    assert origins["/nodes/save/io_hdf5/layout"] == {"from": "default"}
    assert origins["/flows/data/dataset"] == {"from": "resolved"}
    assert origins["/receivers/receiver0/threads"] == {"from": "default"}
    data = json.loads(config(file, "--format", "json", *options).stdout)
    assert set(data) == {"version", "pipeline"}
    scalars = {
        "".join(f"/{step}" for step in at)
        for at, value in everything(data["pipeline"])
        if not value or not isinstance(value, dict | list)
    }
    assert scalars == set(origins)
    lines = {line.split(":")[0].strip(): line for line in config(file, "--origin", *options).stdout.splitlines()}
    assert lines["width"].endswith(f"  # {file}:2:34")
    assert lines["frames"].endswith("  # --set acquisition.frames=3")


def test_values_of_graphs_have_the_place_in_their_file() -> None:
    text = config(EXAMPLES / "graphs.yaml", "--origin").stdout
    assert "graphs:" not in text
    assert "graphs/" in text


def test_secrets_stay_references(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "lima2: 1\ndetector: {remu: {image: {width: 8, height: 4}}}\nacquisition: {frames: 1}\n"
        'metadata: {title: "for $$5 ${TOKEN!} at ${PLACE}", extra: {t: "${TOKEN!}"}}\n'
        "nodes: {save: {input: data, io_hdf5: {}}}\n"
    )
    done = config(file, TOKEN="sesame-open", PLACE="home$1")
    assert done.exit_code == 0
    assert "sesame" not in done.output
    assert '  title: "for $$5 ${TOKEN!} at home$$1"\n' in done.stdout
    assert '    t: "${TOKEN!}"\n' in done.stdout
    as_json = config(file, "--format", "json", "--origin", TOKEN="sesame-open", PLACE="x").stdout
    assert "sesame" not in as_json
    assert json.loads(as_json)["pipeline"]["metadata"]["extra"]["t"] == "***"


def test_mistakes_and_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("lima2: 1\n")
    done = config(broken)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "error[missing-key]" in done.stderr
    as_json = config(broken, "--format", "json")
    assert json.loads(as_json.stdout)["diagnostics"][0]["rule"] == "missing-key"
    assert config(tmp_path / "none.yaml").exit_code == 2
    out = tmp_path / "new.yaml"
    assert config(EXAMPLES / "minimal.yaml", "-o", out).stdout == ""
    assert check_file(str(out)).plan is not None
    assert config(EXAMPLES / "minimal.yaml", "-o", out).exit_code == 12


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8),
        st.recursive(
            SCALARS,
            lambda it: st.lists(it, max_size=3) | st.dictionaries(st.text("ab:# -", max_size=4), it, max_size=3),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_plain_data_are_read_back_as_they_are(data: dict[str, Any]) -> None:
    findings = Findings()
    dollars = json.loads(json.dumps(data).replace("$", "$$")) if "$" in json.dumps(data) else data
    keys_kept = dict(zip(data, dollars.values(), strict=True))
    read = load(flow_text(keys_kept), "x.yaml", findings, environment={})
    assert read is not None, list(findings)
    assert read.data == data


def test_mutants_of_examples_resolved_compile_to_the_same_plan() -> None:
    """Whatever values they have; most do not compile at all."""
    base, same = EXAMPLES, 0
    for text in islice(mutants(3), 250):
        checked = check_text(text, "mutant.yaml", base, cores=2, environment={}, here=None)
        if checked.plan is None:
            continue
        assert isinstance(checked.source, Document)
        assert checked.pipeline is not None
        again = as_yaml(resolve_pipeline(checked.source, checked.pipeline), origin=bool(same % 2))
        other = check_text(again, "mutant.yaml", base, cores=2, environment={}, here=None)
        assert other.plan is not None, again
        assert compare(plan_contents(checked.plan), plan_contents(other.plan)) == (), again
        same += 1
    assert same > 40
