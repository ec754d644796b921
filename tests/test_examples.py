"""The small examples, one for each capability: they run, and nothing is lost."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lima2cli.cli import app
from tests.running import EXAMPLES

SMALL = ("minimal", "correct", "counters", "accumulate", "gain", "python", "expression", "profiles", "sparse", "graphs")


@pytest.mark.parametrize("name", SMALL)
def test_an_example_runs_and_loses_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = EXAMPLES / f"{name}.yaml"
    result = CliRunner().invoke(app, ["run", str(file), "--transport", "inline", "--progress", "none"])
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())
    assert summary["state"] == "complete"
    assert not summary["problems"]
    for flow in summary["flows"].values():
        assert flow["expected"] == flow["received"] > 0
    for channel in summary["channels"].values():
        assert channel["expected"] == channel["saved"] > 0


@pytest.mark.parametrize("name", SMALL)
def test_an_example_says_first_what_it_shows(name: str) -> None:
    schema, first, *_ = (EXAMPLES / f"{name}.yaml").read_text().splitlines()
    assert schema == "# yaml-language-server: $schema=../../schemas/pipeline-1.schema.json"
    assert first.startswith("# ")
