"""Profiles: what is laid on a pipeline, and where mistakes in them are reported."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lima2cli as l2
from lima2cli.check import Checked, check_text
from lima2cli.diagnostics import Findings
from lima2cli.document import Document, Profile, load
from lima2cli.document.render import show_concise, show_json
from lima2cli.errors import UnreadableInput
from tests.running import lima2

BASE = """\
lima2: 1
detector: {remu: {image: {width: 16, height: 8}, datasets: {data: {dtype: uint16}}}}
acquisition: {frames: 6}
nodes:
  save: {input: data, io_hdf5: {compression: none}}
  sums: {input: data, roi_counters: {rois: {a: {x: 0, y: 0, width: 2, height: 2}}, statistics: [sum, avg]}}
"""


def laid(base: str, *profiles: str, overrides: tuple[str, ...] = ()) -> tuple[Document, Findings]:
    findings = Findings()
    named = [Profile(f"p{number}.yaml", text) for number, text in enumerate(profiles)]
    document = load(base, "base.yaml", findings, environment={"N": "4"}, overrides=overrides, profiles=named)
    assert document is not None
    return document, findings


def checked(*profiles: str, text: str = BASE) -> Checked:
    named = [Profile(f"p{number}.yaml", one) for number, one in enumerate(profiles)]
    return check_text(text, "base.yaml", Path(), cores=2, environment={"N": "4"}, profiles=named)


def concise(found: Checked) -> list[str]:
    return show_concise(found.source, found.findings).splitlines()


def test_mappings_merge_lists_replace_and_null_deletes() -> None:
    document, findings = laid(
        "a: {b: 1, c: [1, 2], d: {e: 1}}\nf: 2\n", "a: {c: [3], d: {g: '${N}'}, b: null}\nf: {h: 5}\n"
    )
    assert not findings.items
    assert document.data == {"a": {"c": [3], "d": {"e": 1, "g": "4"}}, "f": {"h": 5}}


def test_profiles_are_laid_on_in_order_and_values_are_set_last() -> None:
    document, _ = laid("a: {b: 1}\n", "a: {b: 2, c: 2}\n", "a: {c: 3}\n", overrides=("a.b=9",))
    assert document.data == {"a": {"b": 9, "c": 3}}
    assert document.place(("a", "c")).file == "p1.yaml"
    assert document.place(("a",)).file == "base.yaml"


JSON = st.recursive(
    st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=2),
    lambda it: st.lists(it, max_size=2) | st.dictionaries(st.text("abc", min_size=1, max_size=1), it, max_size=3),
)
MAPPINGS = st.dictionaries(st.text("abc", min_size=1, max_size=1), JSON, min_size=1, max_size=3)


def merge(base: Any, over: Any) -> Any:
    """The rule, in four lines."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return {**base, **{key: merge(base.get(key), value) for key, value in over.items()}}


@given(MAPPINGS, MAPPINGS)
def test_merging_is_the_rule(base: dict[str, Any], over: dict[str, Any]) -> None:
    document, findings = laid(json.dumps(base), json.dumps(over))
    assert not findings.items
    assert document.data == merge(base, over)


@given(MAPPINGS, st.text("abc", min_size=1, max_size=1))
def test_deleting_is_the_rule(base: dict[str, Any], key: str) -> None:
    document, findings = laid(json.dumps(base), json.dumps({key: None}))
    assert [item.rule for item in findings] == ["profile-null"] * (key not in base)
    if key in base:
        assert document.data == {name: value for name, value in base.items() if name != key}


def test_a_pipeline_compiles_with_its_profile() -> None:
    found = checked("acquisition: {frames: 2}\nnodes: {sums: null}\n")
    assert found.plan is not None
    assert (found.plan.frames, list(found.plan.channels), list(found.plan.tables)) == (2, ["save"], [])
    assert [profile.file for profile in found.profiles] == ["p0.yaml"]


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("nodes:\n  save: {io_hdf5: {compresion: none}}\n", "p0.yaml:2:20: error[unknown-key]"),
        ("nodes: {save: {input: dta}}\n", "p0.yaml:1:23: error[unknown-input]"),
        ("acquisition: {frame: null}\n", "p0.yaml:1:15: error[profile-null]"),
        ("nodes: {more: {input: data, io_hdf5: null}}\n", "p0.yaml:1:29: error[profile-null]"),
        ("a: [1\n", "p0.yaml:1:4: error[yaml-syntax]"),
        ("", "p0.yaml:1:1: error[yaml-empty]"),
        ("[1]\n", "p0.yaml:1:1: error[profile-shape]"),
        ("\0", "p0.yaml:1:1: error[yaml-syntax]"),
        ("acquisition: {frames: 1, frames: 2}\n", "p0.yaml:1:26: error[duplicate-key]"),
        ("metadata: {title: '${NONE}'}\n", "p0.yaml:1:19: error[variable-unset]"),
        ("detector: {replay: {file: x.npy}}\n", "p0.yaml:1:12: error[one-kind]"),
    ],
)  # fmt: skip
def test_mistakes_are_reported_in_the_profile(profile: str, said: str) -> None:
    found = checked(profile)
    assert found.plan is None
    (line,) = concise(found)
    assert line.startswith(said)


def test_a_deleted_key_that_is_needed_is_missed_where_it_should_be() -> None:
    (line,) = concise(checked("nodes: {save: {input: null}}\n"))
    assert line.startswith("base.yaml:5:3: error[missing-key]")


def test_paths_and_cures_are_those_of_the_profile() -> None:
    entry = json.loads(show_json(*_shown(checked("nodes: {sume: null}\n"))))["diagnostics"][0]
    assert (entry["file"], entry["path"], entry["help"]) == ("p0.yaml", "/nodes/sume", "did you mean `sums`?")
    entry = json.loads(show_json(*_shown(checked("detector: {replay: {file: x.npy}}\n"))))["diagnostics"][0]
    assert entry["help"] == "the profile can delete the other: `remu: null`"


def _shown(found: Checked) -> tuple[Any, Any]:
    return found.source, found.findings


def test_comments_of_a_profile_silence_its_warnings() -> None:
    loud = "receivers: 2\nflows: {data: {buffers: {at: [receiver0.host]}}}\n"
    assert [item.rule for item in checked(loud).findings] == ["idle-receiver"]
    assert not checked(loud.replace("2\n", "2  # lima2: ignore[idle-receiver]\n", 1)).findings.items
    text = BASE + "description: 'x  # not a comment'  # lima2: ignore[idle-receiver]\n"
    assert "unused-ignore" in {item.rule for item in checked(loud, text=text).findings}


GRAPHS = """\
lima2: 1
graphs: {g: {nodes: {low: {input: frames, background_sub: {image: 1}}}, output: low}}
detector: {remu: {image: {width: 16, height: 8}}}
acquisition: {frames: 6}
nodes:
  one: {input: data, graph: {g: {}}}
  save: {input: one, io_hdf5: {}}
"""


def test_graphs_are_expanded_after_profiles() -> None:
    found = checked(
        "graphs: {g: {nodes: {low: {background_sub: {image: 3}}}}}\nnodes: {two: {input: one, graph: {g: {}}}}\n",
        text=GRAPHS,
    )
    assert found.plan is not None
    assert found.plan.record["nodes"]["two"]["background_sub"]["image"] == 3
    (line,) = concise(checked("graphs: {g: {nodes: {low: {background_sub: {imag: 3}}}}}\n", text=GRAPHS))
    assert line.startswith("p0.yaml:1:45: error[unknown-key]")


def test_every_command_takes_profiles_and_the_run_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "lab.yaml").write_text("acquisition: {frames: 3}\nnodes: {sums: null}\n")
    for command in ("validate", "plan", "graph", "config"):
        done = lima2(command, "base.yaml", "-p", "lab.yaml", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "sums" not in done.stdout
    done = lima2(
        "run", "base.yaml", "--profile", "lab.yaml", "--transport", "inline", "--progress", "none", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    latest = tmp_path / "runs" / "latest"
    assert json.loads((latest / "summary.json").read_text())["flows"]["data"]["received"] == 3
    kept = json.loads((latest / "plan.json").read_text())["source"]["profiles"]
    assert kept == [{"file": str((tmp_path / "lab.yaml").resolve()), "text": (tmp_path / "lab.yaml").read_text()}]
    again = lima2("run", "runs/latest/plan.json", "--transport", "inline", "--progress", "none", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    (tmp_path / "lab.yaml").write_text("acquisition: {frames: 5}\nnodes: {sums: null}\n")
    stale = lima2("run", "runs/latest/plan.json", cwd=tmp_path)
    assert (stale.returncode, "/frames: 3 → 5" in stale.stderr) == (1, True)
    refused = lima2("run", "runs/latest/plan.json", "-p", "lab.yaml", cwd=tmp_path)
    assert (refused.returncode, "a saved plan" in refused.stderr) == (2, True)


def test_the_number_of_frames_in_a_word(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    done = lima2(
        "run", "base.yaml", "--frames", "2", "-s", "acquisition.frames=5", "--transport", "inline", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    latest = tmp_path / "runs" / "latest"
    assert json.loads((latest / "summary.json").read_text())["flows"]["data"]["received"] == 2
    assert lima2("run", "base.yaml", "--frames", "-1", cwd=tmp_path).returncode == 2


def test_profiles_that_cannot_be_read_or_are_written_over(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    for name in ("none.yaml", "-", "."):
        done = lima2("validate", "base.yaml", "-p", name, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
    (tmp_path / "lab").write_text("acquisition: {frames: 3}\n")
    done = lima2("plan", "base.yaml", "-p", "lab", "-o", "lab", cwd=tmp_path)
    assert (done.returncode, "is an input of the pipeline" in done.stderr) == (12, True)


def test_programs_lay_profiles_on_pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lab, broken = tmp_path / "lab.yaml", tmp_path / "broken.yaml"
    lab.write_text("acquisition: {frames: 3}\n")
    broken.write_text("acquisition: {frame: 3}\n")
    assert l2.compile(BASE, profiles=[lab]).frames == 3
    assert [one.rule for one in l2.validate(BASE, profiles=[broken])] == ["unknown-key"]
    with pytest.raises(UnreadableInput):
        l2.validate(BASE, profiles=["none.yaml"])
    with l2.run(BASE, transport="inline", profiles=[lab]) as run:
        assert run.wait(60).frames == 3
