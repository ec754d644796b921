"""Named graphs: what they expand to, what parameters stand for, whose files they name, and mistakes at their places."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lima2cli.accounting.record import RunRecord
from lima2cli.check import Checked, check_text
from lima2cli.cli import app
from lima2cli.document.render import show_json, show_text
from lima2cli.plan.figures import plan_figures
from lima2cli.runs.saved_plan import Origin
from tests.running import EXAMPLES, run

HEAD = """\
lima2: 1
detector: {remu: {image: {width: 64, height: 48}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 12}
"""
FLOWS = """\
flows:
  left: {dataset: data, source: {x: 0, y: 0, width: 32, height: 48}}
  right: {dataset: data, source: {x: 32, y: 0, width: 32, height: 48}}
"""
CORRECTED = """\
graphs:
  corrected:
    parameters: {dark: null, flat: 2, keep: {x: 0, y: 0, width: 8, height: 8}}
    output: flat
    nodes:
      dark: {input: frames, background_sub: {image: $(dark)}}
      flat: {input: dark, flatfield: {image: $(flat)}}
      count: {input: flat, roi_counters: {rois: {door: {rect: $(keep)}}, statistics: [sum]}}
"""
USED = """\
nodes:
  save_left: {input: a, io_hdf5: {}}
  a: {input: left, graph: {corrected: {dark: 10}}}
  b: {input: right, graph: {corrected: {dark: 20, flat: 4, keep: {x: 2, y: 3, width: 4, height: 5}}}}
  save_right: {input: b, io_hdf5: {}}
"""
FROM_ENVIRONMENT = """\
  a:
    input: left
    graph:
      corrected:
        dark: ${DARK:-3}
"""
BY_HAND = """\
nodes:
  save_left: {input: a, io_hdf5: {}}
  a_dark: {input: left, background_sub: {image: 10}}
  a: {input: a_dark, flatfield: {image: 2}}
  a_count: {input: a, roi_counters: {rois: {door: {rect: {x: 0, y: 0, width: 8, height: 8}}}, statistics: [sum]}}
  b_dark: {input: right, background_sub: {image: 20}}
  b: {input: b_dark, flatfield: {image: 4}}
  b_count: {input: b, roi_counters: {rois: {door: {rect: {x: 2, y: 3, width: 4, height: 5}}}, statistics: [sum]}}
  save_right: {input: b, io_hdf5: {}}
"""


def checked(text: str, base: Path = Path(), **more: Any) -> Checked:
    """Return the compiler's answer to a pipeline."""
    return check_text(text, "pipeline.yaml", base, cores=2, environment=more.pop("environment", {}), **more)


def figures(text: str, base: Path = Path(), **more: Any) -> dict[str, Any]:
    """The plan of a pipeline without mistakes."""
    one = checked(text, base, **more)
    assert one.plan is not None, show_text(one.source, one.findings)
    return plan_figures(one.plan)


def parameters(text: str, base: Path = Path(), **more: Any) -> dict[str, Any]:
    """Return the parameters of each node of a pipeline without mistakes, by name."""
    one = checked(text, base, **more)
    assert one.plan is not None, show_text(one.source, one.findings)
    return {step.name: step.node for step in one.plan.steps}


def told(text: str, base: Path = Path(), **more: Any) -> list[dict[str, Any]]:
    """The diagnostics, as `validate --format json` has them."""
    one = checked(text, base, **more)
    found: list[dict[str, Any]] = json.loads(show_json(one.source, one.findings))["diagnostics"]
    assert (one.plan is None) == any(item["severity"] == "error" for item in found)
    return found


def test_a_graph_used_twice_is_what_would_be_written_by_hand(tmp_path: Path) -> None:
    used, by_hand = HEAD + FLOWS + CORRECTED + USED, HEAD + FLOWS + BY_HAND
    assert figures(used) == figures(by_hand)
    ran = []
    for name, text in (("used", used), ("by_hand", by_hand)):
        (tmp_path / name).mkdir()
        ran.append(run(text, tmp_path / name, "inline"))
        assert ran[-1].code == 0, ran[-1].output
    for node in ("save_left", "save_right"):
        for one, other in zip(ran[0].saved(node), ran[1].saved(node), strict=True):
            np.testing.assert_array_equal(one, other)
    frames, numbers, _ = ran[0].saved("save_right")
    y, x = np.mgrid[:48, 32:64]
    raw = (numbers[:, None, None].astype(int) * 7919 + y * 64 + x) % 2**16
    np.testing.assert_allclose(frames, (raw - 20) / 4, rtol=1e-6)
    recorded = json.loads((ran[0].directory / "plan.json").read_text())
    assert {"a_dark", "a", "a_count", "b_dark", "b", "b_count"} <= {node["name"] for node in recorded["nodes"]}


def test_parameters_keep_their_type_and_are_written_out_within_texts() -> None:
    text = (
        HEAD
        + """\
graphs:
  g:
    parameters: {stats: [min], every: 3, scale: 0.5, name: sum, on: true}
    inputs: [a]
    output: scaled
    nodes:
      scaled: {inputs: {x: a}, expression: {expr: "x * $(scale) + $(scale)"}}
      count: {input: scaled, roi_counters: {rois: {r: {rect: {x: 0, y: 0, width: 2, height: 2}}}, statistics: $(stats)}}
      other: {input: a, roi_counters: {rois: {r: {rect: {x: 0, y: 0, width: 2, height: 2}}}, statistics: [$(name)]}}
      mark: {input: a, checkpoint: {every: "$(every)"}}
      f: {input: a, python: {function: "builtins:len", params: {flag: $(on), text: is $(on)}}}
nodes:
  u: {input: data, graph: {g: {stats: [avg, max], scale: -2}}}
  v: {inputs: {a: u}, graph: {g: }}
"""
    )
    nodes = parameters(text)
    assert nodes["u"].expr == "x * -2 + -2"
    assert nodes["v"].expr == "x * 0.5 + 0.5"
    assert nodes["u_count"].statistics == ("avg", "max")
    assert nodes["v_count"].statistics == ("min",)
    assert nodes["u_other"].statistics == ("sum",)
    assert nodes["u_mark"].every == 3
    assert nodes["u_f"].params == {"flag": True, "text": "is true"}


def test_graphs_use_graphs_and_have_several_inputs() -> None:
    text = (
        HEAD
        + """\
graphs:
  ratio:
    inputs: [signal, reference]
    parameters: {offset: null}
    output: ratio
    nodes:
      below: {input: reference, graph: {shifted: {by: $(offset)}}}
      ratio: {inputs: {a: signal, b: below}, expression: {expr: a / b}}
  shifted:
    parameters: {by: null}
    output: shifted
    nodes:
      shifted: {input: frames, background_sub: {image: $(by)}}
      seen: {input: shifted, checkpoint: {}}
nodes:
  bright: {input: data, background_sub: {image: 1}}
  r: {inputs: {signal: bright, reference: data}, graph: {ratio: {offset: 7}}}
  save: {input: r, io_hdf5: {}}
"""
    )
    one = checked(text)
    assert one.plan is not None, show_text(one.source, one.findings)
    steps = {step.name: step for step in one.plan.steps}
    assert set(steps) == {"bright", "r_below", "r_below_seen", "r", "save"}
    assert dict(steps["r"].inputs) == {"a": "bright", "b": "r_below"}
    assert parameters(text)["r_below"].image == 7
    assert steps["r_below_seen"].source == "r_below"


def test_environment_and_set_reach_graphs() -> None:
    text = (
        HEAD
        + FLOWS
        + CORRECTED
        + USED.replace("  a: {input: left, graph: {corrected: {dark: 10}}}\n", FROM_ENVIRONMENT)
    )
    assert parameters(text)["a_dark"].image == 3
    assert parameters(text, environment={"DARK": "4"})["a_dark"].image == 4
    nodes = parameters(text, overrides=["graphs.corrected.parameters.flat=8", "nodes.a.graph.corrected.dark=5"])
    assert (nodes["a_dark"].image, nodes["a"].image, nodes["b"].image) == (5, 8, 4)
    (wrong,) = told(text, overrides=["nodes.a.graph.corrected.drak=5", "nodes.a.graph.corrected.dark=6"])
    assert (wrong["rule"], wrong["file"]) == ("unknown-parameter", "--set")


@pytest.fixture
def beamline(tmp_path: Path) -> Path:
    """A folder with files of graphs, which name files with data and each other."""
    for name in ("here", "lib/near", "lib/deep/far"):
        (tmp_path / f"{name}.npy").parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / f"{name}.npy", np.full((48, 64), "far" not in name, np.float32))  # a mask of good pixels
    (tmp_path / "lib" / "double.py").write_text("def double(frames, numbers):\n    return frames * 2\n")
    (tmp_path / "lib" / "common.yaml").write_text("""\
lima2: 1
graphs:
  corrected:
    parameters: {dark: null, flat: near.npy, where: deep}
    output: twice
    nodes:
      dark: {input: frames, background_sub: {image: $(dark)}}
      flat: {input: dark, flatfield: {image: $(flat)}}
      fine: {input: flat, mask: {image: $(where)/far.npy}}
      inner: {input: fine, graph: {inner: {image: near.npy}}}
      twice: {input: inner, python: {function: "double.py:double"}}
  inner: {file: deep/inner.yaml, name: sub}
""")
    (tmp_path / "lib" / "deep" / "inner.yaml").write_text("""\
lima2: 1
graphs:
  sub:
    parameters: {image: null}
    output: one
    nodes:
      one: {input: frames, background_sub: {image: $(image)}}
      two: {input: one, mask: {image: far.npy}}
      three: {input: two, io_hdf5: {}}
""")
    return tmp_path


TAKEN = (
    HEAD
    + """\
graphs: {corrected: {file: lib/common.yaml}}
nodes:
  u: {input: data, graph: {corrected: {dark: here.npy}}}
  save: {input: u, io_hdf5: {}}
"""
)


def test_names_of_files_are_relative_to_where_they_are_written(beamline: Path) -> None:
    nodes = parameters(TAKEN.replace("where", "x"), beamline)
    assert nodes["u_dark"].image == "here.npy"
    assert nodes["u_flat"].image == "lib/near.npy"
    assert nodes["u_fine"].image == "lib/deep/far.npy"
    assert nodes["u_inner"].image == "lib/near.npy"
    assert nodes["u_inner_two"].image == "lib/deep/far.npy"
    assert nodes["u"].function == "lib/double.py:double"


def test_a_run_keeps_the_files_of_graphs(beamline: Path) -> None:
    one = checked(TAKEN, beamline)
    assert set(one.texts) == {"lib/common.yaml", "lib/deep/inner.yaml"}
    assert one.plan is not None
    (beamline / "run").mkdir()
    origin = Origin(TAKEN, "pipeline.yaml", beamline, texts=one.texts)
    origin.write(beamline / "run", plan_figures(one.plan), RunRecord.of(one.plan))
    for file in one.texts:
        (beamline / file).unlink()
    kept, text = json.loads((beamline / "run/plan.json").read_text()), (beamline / "run/pipeline.yaml").read_text()
    origin = Origin.known(text, kept["source"])
    again = json.loads(json.dumps(figures(origin.text, origin.base, texts=origin.texts)))
    assert again == {key: value for key, value in kept.items() if key in again}
    assert [item["rule"] for item in told(TAKEN, beamline)] == ["file-missing"]


def test_a_mistake_in_another_file_is_told_there_once(beamline: Path) -> None:
    path = beamline / "lib" / "common.yaml"
    path.write_text(path.read_text().replace("$(where)/far.npy}", "$(where)/farr.npy, fil: 3}"))
    twice = TAKEN + "  v: {input: data, graph: {corrected: {dark: 1}}}\n  keep: {input: v, io_hdf5: {}}\n"
    (key,) = told(twice, beamline)
    assert (key["rule"], key["file"], key["line"]) == ("unknown-key", "lib/common.yaml", 9)
    assert key["path"] == "/graphs/corrected/nodes/fine/mask/fil"
    path.write_text(path.read_text().replace(", fil: 3", ""))
    (file,) = told(twice, beamline)
    assert (file["rule"], file["file"], file["line"], file["column"]) == ("file-missing", "lib/common.yaml", 9, 41)
    assert file["notes"] == ["used here: pipeline.yaml:6:3"]
    assert "lib/deep/farr.npy" in file["message"]


def test_what_a_use_gives_is_told_at_the_use(beamline: Path) -> None:
    (item,) = told(TAKEN.replace("here.npy", "nowhere.npy"), beamline)
    assert (item["rule"], item["file"], item["path"]) == (
        "file-missing",
        "pipeline.yaml",
        "/nodes/u/graph/corrected/dark",
    )
    assert item["notes"] == ["it is written here: lib/common.yaml:7:53"]
    (item,) = told(TAKEN.replace("input: data", "input: dat"), beamline)
    assert (item["rule"], item["path"], item["help"]) == ("unknown-input", "/nodes/u/input", "did you mean `data`?")


def test_a_use_that_left_no_node_of_its_name_keeps_its_place() -> None:
    """Its graph has no output: the expanded tree has only nodes of longer names."""
    graph = "graphs:\n  g: {nodes: {c: {input: frames, checkpoint: {}}}}\n"
    twice = "nodes:\n  u: {input: data, graph: {g: {}}}\n  u: {input: data, graph: {g: {}}}\n"
    (item,) = told(HEAD + graph + twice)
    assert (item["rule"], item["line"], item["path"]) == ("duplicate-key", 8, "/nodes/u")
    assert item["notes"] == ["first written here: pipeline.yaml:7:3"]


def test_a_comment_in_a_file_of_graphs_silences_a_warning_there(beamline: Path) -> None:
    path = beamline / "lib" / "common.yaml"
    text = path.read_text().replace("where: deep}", "where: deep, more: 1}")
    path.write_text(text)
    assert [(item["rule"], item["file"]) for item in told(TAKEN, beamline)] == [("unused-parameter", "lib/common.yaml")]
    path.write_text(text.replace("more: 1}", "more: 1}  # lima2: ignore[unused-parameter]"))
    assert told(TAKEN, beamline) == []


def test_columns_are_those_of_the_nodes_of_the_graph() -> None:
    text = HEAD + CORRECTED.replace("    output: flat\n", "    output: bright\n").replace(
        "nodes:\n", 'nodes:\n      bright: {input: flat, filter: {keep: "count.door_sum > $(flat)"}}\n', 1
    )
    text += "nodes:\n  a: {input: data, graph: {corrected: {dark: 1}}}\n  save: {input: a, io_hdf5: {}}\n"
    assert parameters(text)["a"].keep == "a_count.door_sum > 2"


@pytest.mark.parametrize(
    ("graphs", "nodes", "rule", "path"),
    [
        (
            "g: {nodes: {c: {input: frames, checkpoint: {}}}}",
            "c: {input: data, checkpoint: {}}",
            "unused-graph",
            "/graphs/g",
        ),
        (
            "g: {parameters: {a: 1}, nodes: {c: {input: frames, checkpoint: {}}}}",
            "u: {input: data, graph: {g: {}}}",
            "unused-parameter",
            "/graphs/g/parameters/a",
        ),
        (
            "g: {inputs: [a, b], nodes: {c: {input: a, checkpoint: {}}}}",
            "u: {inputs: {a: data, b: data}, graph: {g: {}}}",
            "unused-input",
            "/graphs/g/inputs/1",
        ),
        (
            "g: {nodes: {frames: {input: frames, checkpoint: {}}}}",
            "u: {input: data, graph: {g: {}}}",
            "name-taken",
            "/graphs/g/nodes/frames",
        ),
        (
            "g: {nodes: {c: {input: frames, checkpoint: {}}}}",
            "u: {input: data, inputs: {frames: data}, graph: {g: {}}}",
            "wrong-input",
            "/nodes/u/inputs",
        ),
        (
            "g: {nodes: {c: {input: frames, checkpoint: {}}}}",
            "u: {input: data, graph: {g: {}}, checkpoint: {}}",
            "one-kind",
            "/nodes/u/checkpoint",
        ),
        (
            "g: {parameters: {a: null}, nodes: {c: {input: frames, checkpoint: {every: $(a)}}}}",
            "u: {input: data, graph: {g: {a: often}}}",
            "wrong-type",
            "/nodes/u/graph/g/a",
        ),
        (
            "g: {parameters: {a: often}, nodes: {c: {input: frames, checkpoint: {every: $(a)}}}}",
            "u: {input: data, graph: {g: {}}}",
            "wrong-type",
            "/graphs/g/parameters/a",
        ),
        (
            "g: {name: h, nodes: {c: {input: frames, checkpoint: {}}}}",
            "u: {input: data, graph: {g: {}}}",
            "file-or-nodes",
            "/graphs/g/name",
        ),
        ("{}", "u: {input: data, graph: {g: {}}}", "unknown-graph", "/nodes/u/graph/g"),
    ],
)  # fmt: skip
def test_one_mistake_is_told_once_at_its_place(graphs: str, nodes: str, rule: str, path: str) -> None:
    graphs = "graphs: {}" if graphs == "{}" else f"graphs:\n  {graphs}"
    assert [(item["rule"], item["path"]) for item in told(f"{HEAD}{graphs}\nnodes:\n  {nodes}\n")] == [(rule, path)]


def test_graphs_that_grow_without_bound_are_refused() -> None:
    use = "{{input: frames, graph: {{g{}: {{}}}}}}"
    levels = "".join(f"  g{i}: {{nodes: {{a: {use.format(i + 1)}, b: {use.format(i + 1)}}}}}\n" for i in range(25))
    text = f"{HEAD}graphs:\n{levels}  g25: {{nodes: {{c: {{input: frames, checkpoint: {{}}}}}}}}\n"
    assert [item["rule"] for item in told(text + "nodes: {u: {input: data, graph: {g0: {}}}}\n")] == ["graph-too-large"]


def test_texts_that_grow_without_bound_are_refused() -> None:
    levels = "".join(
        f"  g{i}: {{parameters: {{t: x}}, nodes: {{a: {{input: frames, graph: {{g{i + 1}: {{t: $(t)$(t)}}}}}}}}}}\n"
        for i in range(25)
    )
    last = '  g25: {parameters: {t: x}, nodes: {c: {input: frames, python: {function: "a:$(t)"}}}}\n'
    text = f"{HEAD}graphs:\n{levels}{last}nodes: {{u: {{input: data, graph: {{g0: {{}}}}}}}}\n"
    assert [item["rule"] for item in told(text)] == ["graph-too-large"]


WHOLE = HEAD + FLOWS + CORRECTED + """\
  taken: {file: graphs/watched.yaml, name: watched}
  twice:
    inputs: [a, b]
    parameters: {d: 1}
    output: sum
    nodes:
      first: {input: a, graph: {corrected: {dark: $(d)}}}
      sum: {inputs: {x: first, y: b}, expression: {expr: x + $(d) * y}}
""" + USED + """\
  w: {input: right, graph: {taken: {size: 4}}}
  t: {inputs: {a: left, b: left}, graph: {twice: {d: 3}}}
  save_t: {input: t, io_hdf5: {}}
"""  # fmt: skip
WORDS = [*WHOLE.replace(":", " ").replace(",", " ").split(), "$(dark)", "$(", "null", "{}", "[]", "graph", "-1", "a: 1"]


@st.composite
def mutants(draw: st.DrawFn) -> str:
    """The pipeline with some words replaced, and lines dropped or doubled."""
    lines = WHOLE.splitlines()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        change = draw(st.sampled_from(["word", "word", "word", "drop", "double"]))
        if change == "drop":
            del lines[at]
        elif change == "double":
            lines.insert(at, lines[at])
        elif words := lines[at].replace(":", " ").replace(",", " ").replace("{", " ").replace("}", " ").split():
            lines[at] = lines[at].replace(draw(st.sampled_from(words)), draw(st.sampled_from(WORDS)), 1)
    return "\n".join(lines)


@settings(max_examples=int(os.environ.get("LIMA2_FUZZ", "150")))
@given(mutants())
@example(WHOLE.replace("inputs: [a, b]", "inputs: $(dark), b]"))
def test_no_mutant_crashes_the_check_or_loses_a_node(text: str) -> None:
    one = checked(text, EXAMPLES)
    assert (one.plan is None) == one.findings.failed
    assert show_text(one.source, one.findings) or not one.findings.items
    if one.plan is not None:
        assert one.pipeline is not None
        assert {step.name for step in one.plan.steps} == set(one.pipeline.nodes)
        assert all(node.node is not None for node in one.pipeline.nodes.values())


def test_a_file_of_graphs_is_checked_by_itself(beamline: Path) -> None:
    file = beamline / "lib" / "common.yaml"
    run_program = CliRunner().invoke
    assert run_program(app, ["validate", str(file)]).stdout == f"{file}: fine\n"
    assert run_program(app, ["plan", str(file)]).exit_code == 2
    file.write_text(
        file.read_text().replace("lima2: 1", "").replace("$(dark)", "$(drak)").replace("{input: flat", "{inpt: x")
    )
    found = json.loads(run_program(app, ["validate", "--format", "json", str(file)]).stdout)["diagnostics"]
    rules = ["missing-key", "unused-parameter", "unknown-parameter", "unknown-key"]
    assert sorted(item["rule"] for item in found) == sorted(set(rules) - {"unused-parameter"})
