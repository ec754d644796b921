"""The commands of README install from wheels alone, on every Python that is supported."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONSTRAINTS = ROOT / "tests" / "constraints.txt"
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]

PATIENCE_S = 120


def resolved(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Ask pip for wheels of requirements and of all that they need; nothing is installed."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary=:all:"]
    options = ["--quiet", "--retries", "0", "--timeout", "15", "--disable-pip-version-check", "--no-input"]
    try:
        return subprocess.run(
            [*command, *options, "--target", str(folder), *arguments],
            capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=folder, env=dict(os.environ),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip(f"the package index has not answered within {PATIENCE_S} s")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where no package index is reached, or there is no pip."""
    done = resolved(tmp_path_factory.mktemp("index"), "--no-deps", "pyyaml")
    if done.returncode != 0:
        pytest.skip(f"no package index is reached: {done.stderr.strip().splitlines()[-1:]}")


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.usefixtures("index")
def test_there_are_wheels_of_everything(version: str, tmp_path: Path) -> None:
    """With the ranges of pyproject.toml. Markers are those of this Python, whatever the version asked for."""
    wanted = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    done = resolved(tmp_path, "--python-version", version, *wanted)
    assert done.returncode == 0, done.stderr


def test_supported_pythons_are_named() -> None:
    named = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)}
    assert named == set(PYTHONS)
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"


def installed(package: str, extras: tuple[str, ...], seen: set[str]) -> Iterator[str]:
    """The packages that a package needs, those too that these need."""
    for line in requires(package) or ():
        wanted = Requirement(line)
        if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        name = canonicalize_name(wanted.name)
        if (key := f"{name}[{','.join(sorted(wanted.extras))}]") in seen:
            continue
        seen.add(key)
        yield name
        yield from installed(name, tuple(wanted.extras), seen)


def test_the_constraints_name_every_dependency() -> None:
    """Names only: versions are those of the last time that they were written down."""
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if line and not line.startswith("#")]
    named = {canonicalize_name(line.partition("==")[0]) for line in lines}
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+", line) for line in lines)
    try:
        needed = set(installed("lima2cli", ("mpi", "test"), set()))
    except PackageNotFoundError as error:
        pytest.skip(f"this environment is not that of README's test command: no {error.name}")
    assert needed - named == set()
    assert {"numpy", "h5py", "mpi4py", "pytest", "rpds-py"} <= needed


def test_the_ranges_allow_the_constraints() -> None:
    versions = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    for line in (*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)):
        wanted = Requirement(line)
        found = {canonicalize_name(name): version for name, version in versions.items()}
        assert found[canonicalize_name(wanted.name)] in wanted.specifier, line
