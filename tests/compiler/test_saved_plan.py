"""Plans in files: what differs between two, and runs of exactly one."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2cli.errors import UnreadableInput
from lima2cli.runs.saved_plan import differences, looks_saved, read_plan
from tests.running import EXAMPLES, lima2

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
VALUES = st.recursive(
    LEAVES, lambda it: st.lists(it, max_size=3) | st.dictionaries(st.text(max_size=3), it, max_size=3)
)
MAPS = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)


@given(MAPS)
def test_a_plan_is_what_it_is(plan: dict[str, Any]) -> None:
    assert differences(plan, plan) == ()  # NaN, too


@given(MAPS, MAPS)
def test_differences_are_there_both_ways(old: dict[str, Any], new: dict[str, Any]) -> None:
    there, back = differences(old, new), differences(new, old)
    assert {(it.path, it.old, it.new) for it in there} == {(it.path, it.new, it.old) for it in back}
    if json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
        assert there


def test_differences_have_places() -> None:
    old = {"a": {"b": 1, "gone": [1]}, "nodes": [{"name": "x", "k": 1}, {"name": "y", "k": 2}], "l": [1, 2]}
    new = {"a": {"b": 2, "m/n": "é"}, "nodes": [{"name": "y", "k": 3}], "l": [1, 2, 3]}
    assert [str(it) for it in differences(old, new)] == [
        "/a/b: 1 → 2",
        '/a/m~1n: added, "é"',
        "/a/gone: removed, [1]",
        "/nodes/y/k: 2 → 3",
        '/nodes/x: removed, {"name": "x", "k": 1}',
        "/l/2: added, 3",
    ]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a pipeline and its plan, of another value and a variable."""
    text = (EXAMPLES / "minimal.yaml").read_text() + "metadata: {title: '${TITLE:-none}'}\n"
    (tmp_path / "minimal.yaml").write_text(text)
    done = lima2(
        "plan", "minimal.yaml", "-s", "acquisition.frames=7", "--format", "json", "-o", "plan.json", cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return tmp_path


def test_a_saved_plan_runs_as_it_was_compiled(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = json.loads((saved / "plan.json").read_text())
    assert plan["source"]["overrides"] == ["acquisition.frames=7"]
    elsewhere = saved / "elsewhere"
    elsewhere.mkdir()
    done = lima2("run", "../plan.json", "--transport", "inline", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    directory = elsewhere / "runs" / "latest"
    assert json.loads((directory / "summary.json").read_text())["flows"]["data"]["received"] == 7
    kept = json.loads((directory / "plan.json").read_text())
    left_out = ("source", "warnings", "recovery")
    assert {k: v for k, v in kept.items() if k not in left_out} == {k: v for k, v in plan.items() if k not in left_out}
    again = lima2("run", "runs/latest/plan.json", "--transport", "inline", cwd=elsewhere)
    assert again.returncode == 0, again.stderr
    refused = lima2("run", "../plan.json", "-s", "acquisition.frames=8", cwd=elsewhere)
    assert refused.returncode == 2
    assert "--set cannot change" in refused.stderr


def test_a_stale_plan_is_refused_with_what_differs(saved: Path) -> None:
    path = saved / "minimal.yaml"
    path.write_text(path.read_text().replace("width: 256", "width: 128").replace("io_hdf5: {}", "checkpoint: {}"))
    done = lima2("run", "plan.json", cwd=saved)
    assert done.returncode == 1
    assert "error[stale-plan]: plan.json is stale" in done.stderr
    assert "/gdts/data/pitch: 512 → 256" in done.stderr
    assert "/channels/save: removed" in done.stderr or "more" in done.stderr
    assert not (saved / "runs").exists()
    path.unlink()
    assert lima2("run", "plan.json", cwd=saved).returncode == 2


def test_what_differs_from_a_saved_plan(saved: Path) -> None:
    same = lima2("plan", "minimal.yaml", "-s", "acquisition.frames=7", "--diff", "plan.json", cwd=saved)
    assert (same.returncode, same.stdout) == (0, "the same plan as plan.json\n")
    other = lima2("plan", "minimal.yaml", "--diff", "plan.json", "--format", "json", cwd=saved)
    found = {it["path"]: (it["old"], it["new"]) for it in json.loads(other.stdout)["differences"]}
    assert found["/frames"] == ("7", "100")
    assert found["/parameters/acquisition/frames"] == ("7", "100")
    assert "/source" not in found


@pytest.mark.parametrize("text", ["{", "[]", '{"gdts": 1}', '{"gdts": {}, "source": {"file": "x"}}'])
def test_what_is_no_saved_plan(tmp_path: Path, text: str) -> None:
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(UnreadableInput, match=r"old\.json is not a saved plan"):
        read_plan(str(tmp_path / "old.json"))
    assert looks_saved(str(tmp_path / "old.json")) == ("gdts" in text)
    assert not looks_saved(str(tmp_path / "none.json"))
    assert not looks_saved(str(EXAMPLES / "minimal.yaml"))
