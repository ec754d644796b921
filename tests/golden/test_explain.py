"""The command `explain`: every rule and every key; names that are wrong."""

import json
import re
import tomllib

import pytest
from typer.testing import CliRunner, Result

from lima2cli.cli import app
from lima2cli.cli.explanations import Entry, everything, explain_rule, find, rules
from lima2cli.declare import Table
from lima2cli.language.records import PipelineTable
from lima2cli.language.schema import PIPELINE
from tests import ROOT
from tests.docs.test_docs import rules as rules_of_the_code

PAGE = ROOT / "docs" / "reference" / "diagnostics.md"
KEYS = list(everything(Entry("", "", PIPELINE)))


def explain(name: str, *options: str) -> Result:
    return CliRunner().invoke(app, ["explain", name, *options])


def test_the_page_of_the_manual_is_the_only_source() -> None:
    packed = ROOT / "lima2cli" / "cli" / "diagnostics.md"
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert packed.is_symlink()
    assert packed.resolve() == PAGE
    assert data["lima2cli.cli"] == [packed.name]


def test_every_rule_is_explained() -> None:
    sections = rules()
    assert set(sections) == rules_of_the_code()
    for name, section in sections.items():
        rule = explain_rule(name, section)
        assert len(rule.text) > 10
        assert "```" not in rule.text
        assert "](" not in rule.text
        severities = {severity for each in rule.examples for severity in re.findall(r"^(\w+)\[", each.printed, re.M)}
        assert not severities or rule.severity in severities


def test_a_rule_with_its_example() -> None:
    text = explain("idle-receiver").stdout
    assert text.startswith("warning[idle-receiver]\n\nA receiver without a local buffer")
    assert "    receivers: 2\n" in text
    assert "\nprints\n\n    warning[idle-receiver]: receiver1 is idle" in text
    found = json.loads(explain("yaml-empty", "--format", "json").stdout)
    assert (found["version"], found["rule"], found["severity"]) == (1, "yaml-empty", "error")
    assert found["examples"][0]["text"] == "# nothing yet\n"
    assert found["examples"][0]["printed"].startswith("error[yaml-empty]")


def test_every_key_is_found_at_its_path() -> None:
    assert len(KEYS) > 500
    for key in KEYS:
        assert find(PIPELINE, key.path).path == key.path
        assert key.value


def test_no_key_is_a_rule() -> None:
    assert not set(Entry("", "", Table(PipelineTable)).below()) & set(rules())


@pytest.mark.parametrize(
    ("short", "path"),
    [
        ("nodes.roi_counters.statistics", "nodes.<name>.roi_counters.statistics"),
        ("nodes.mine.roi_counters.rois.door.rect.x", "nodes.<name>.roi_counters.rois.<name>.rect.x"),
        ("flows.rules.blocks_per_group", "flows.<name>.rules.blocks_per_group"),
        ("flows.FullDet1", "flows.<name>"),
        ("receivers.cpus.0", "receivers.<name>.cpus.<n>"),
        ("nodes.input", "nodes.<name>.input"),
        ("graphs.mine.nodes.sum.accumulate", "graphs.<name>.nodes.<name>.accumulate"),
        ("acquisition.binning.x", "acquisition.binning.x"),
    ],
)
def test_names_of_the_user_may_be_left_out(short: str, path: str) -> None:
    assert find(PIPELINE, short).path == path


def test_a_key_as_text_fits_a_terminal() -> None:
    text = explain("flows.rules.blocks_per_group").stdout
    assert text == (
        "flows.<name>.rules.blocks_per_group\n\n"
        "Consecutive blocks of one group, the unit of dispatch; auto, as without `rules`:\n"
        "the fewest that keep group events of a receiver under 2 kHz, one where no rate\n"
        "is known.\n\n"
        "value    a whole number of at least 1, or auto\n"
        "default  1\n"
    )
    for name in ("acquisition", "receivers", "detector.remu.scene", "nodes"):
        assert max(map(len, explain(name).stdout.splitlines())) <= 80
    assert "units    ns, us, ms, s, min, h; a plain number is in seconds\n" in explain("acquisition.period").stdout


def test_a_key_as_json() -> None:
    found = json.loads(explain("receivers.threads", "--format", "json").stdout)
    assert found == {
        "version": 1,
        "path": "receivers.<name>.threads",
        "doc": "Threads that compute and compress frames.",
        "value": "a whole number from 1 to 256",
        "unit": None,
        "units": [],
        "bounds": {"minimum": 1, "maximum": 256},
        "required": False,
        "default": 1,
        "keys": [],
    }
    period = json.loads(explain("acquisition.period", "--format", "json").stdout)
    assert (period["unit"], period["bounds"]) == ("seconds", {"exclusiveMinimum": 0})
    scenes = json.loads(explain("detector.remu.scene", "--format", "json").stdout)["keys"]
    assert "peaks" in {scene["key"] for scene in scenes}


@pytest.mark.parametrize(
    ("name", "message", "help"),
    [
        ("flows.rulse.blocks_per_group", "no `rulse` below `flows.<name>`", "did you mean `rules`?"),
        ("flows.mine.rulse", "no `rulse` below `flows.<name>`", "did you mean `rules`?"),
        ("nodes.roi_countr", "no `roi_countr` below `nodes.<name>`", "did you mean `roi_counters`?"),
        ("buffer-to-small", "no rule and no key `buffer-to-small`", "did you mean `buffer-too-small`?"),
        ("aquisition", "no rule and no key `aquisition`", "did you mean `acquisition`?"),
        ("roi_counters", "no rule and no key `roi_counters`", "did you mean `nodes.roi_counters`?"),
        ("xyzzy", "no rule and no key `xyzzy`", "keys of a pipeline: lima2, name"),
        ("acquisition.frames.x", "no `x` below `acquisition.frames`", "it has no keys"),
    ],
)
def test_unknown_names(name: str, message: str, help: str) -> None:
    result = explain(name)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"error[unknown-key]: there is {message}\n = help: {help}" in result.stderr
    found = json.loads(explain(name, "--format", "json").stdout)["diagnostics"][0]
    assert found["rule"] == "unknown-key"
