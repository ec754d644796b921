"""The plans of all examples, whole: what people are shown, and all that programs are told."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from lima2cli.check import check_text
from lima2cli.cli.plan_text import show_plan
from lima2cli.plan.ir import Plan
from lima2cli.runs.saved_plan import plan_contents
from tests import ROOT
from tests.golden import FOLDER, agrees
from tests.running import EXAMPLES

ALL = sorted(file.stem for file in EXAMPLES.glob("*.yaml"))


def plan_of(name: str) -> Plan:
    path = EXAMPLES / f"{name}.yaml"
    plan = check_text(path.read_text(), path.name, EXAMPLES, cores=2, environment={}, overrides=()).plan
    assert plan is not None
    return plan


def in_lines(contents: Mapping[str, Any]) -> Iterator[str]:
    """A line for each item of a map or a list, so that differences are small."""
    for key, value in contents.items():
        yield f"{key}: {'' if isinstance(value, dict | list) else json.dumps(value)}".rstrip()
        if isinstance(value, dict):
            yield from (f"  {name}: {json.dumps(item)}" for name, item in value.items())
        elif isinstance(value, list):
            yield from (f"  - {json.dumps(item)}" for item in value)


@pytest.mark.parametrize("name", ALL)
def test_an_example_has_the_plan_that_it_had(name: str) -> None:
    plan = plan_of(name)
    contents = plan_contents(plan)
    del contents["lima2"]  # the version
    text = show_plan(plan) + "\n" + "\n".join(in_lines(contents)) + "\n"
    assert str(ROOT) not in text
    agrees(FOLDER / "plans" / f"{name}.txt", text)


def test_every_plan_is_of_an_example() -> None:
    assert sorted(file.stem for file in (FOLDER / "plans").iterdir()) == ALL
