"""Recipes for packaging ask for what the project asks for, in its version."""

import re
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lima2cli
from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

FORGE = {"python-xxhash": "xxhash"}
"""Names of conda-forge that differ."""


def test_there_is_one_version() -> None:
    recipe = (ROOT / "docs" / "deploy" / "meta.yaml").read_text()
    citation = yaml.safe_load((ROOT / ".citation.cff").read_text())
    assert PROJECT["version"] == lima2cli.__version__ == citation["version"]
    assert f'set version = "{PROJECT["version"]}"' in recipe
    assert citation["license"] == PROJECT["license"]


def test_the_recipe_asks_for_what_the_project_does() -> None:
    text = (ROOT / "docs" / "deploy" / "meta.yaml").read_text()
    plain = re.sub(r"\{\{.*?\}\}", "x", re.sub(r"\{%.*?%\}", "", text))
    asked = [Requirement(line) for line in yaml.safe_load(plain)["requirements"]["run"]]
    found = {FORGE.get(each.name, canonicalize_name(each.name)): each.specifier for each in asked}
    wanted = [Requirement(line) for line in (*PROJECT["dependencies"], *EXTRAS["mpi"])]
    assert str(found.pop("python")) == PROJECT["requires-python"]
    assert found == {canonicalize_name(each.name): each.specifier for each in wanted}


def test_the_image_copies_what_is_there_and_takes_extras_that_are() -> None:
    text = (ROOT / "docs" / "deploy" / "Dockerfile").read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY")]
    assert all((ROOT / name).exists() for names in copied for name in names)
    extras = re.search(r"/source\[([\w,]+)\]", text)
    assert extras is not None
    assert set(extras[1].split(",")) <= EXTRAS.keys()


def test_all_is_every_extra_for_users() -> None:
    (line,) = EXTRAS["all"]
    assert Requirement(line).extras == EXTRAS.keys() - {"all", "docs", "test", "test-interchange"}


def test_hooks_of_commits_are_those_of_the_linters() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {hook["entry"].split()[0] for hook in repo["hooks"]} == {
        f".venv/bin/{name}" for name in ("ruff", "mypy", "pytest")
    }
