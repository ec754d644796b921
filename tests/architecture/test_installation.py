"""Declared needs of the project: Pythons, packages, versions that were tested. For wheels see `wheels`."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
BUILT = ("test-interchange",)
"""Extras of packages that are built from source; no command of README.md installs them."""

CONSTRAINTS = ROOT / "tests" / "constraints.txt"
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


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
    needed = set(installed("lima2cli", ("mpi", "test"), set()))
    assert needed - named == set()
    assert {"numpy", "h5py", "mpi4py", "pytest", "rpds-py"} <= needed


def test_the_ranges_allow_the_constraints() -> None:
    versions = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    tested = {
        name: lines
        for name, lines in EXTRAS.items()
        if name not in (*BUILT, "all", "azimuthal", "bluesky", "docs", "gpu", "pva", "show")
    }
    for line in (*PROJECT["dependencies"], *(line for lines in tested.values() for line in lines)):
        wanted = Requirement(line)
        found = {canonicalize_name(name): version for name, version in versions.items()}
        assert found[canonicalize_name(wanted.name)] in wanted.specifier, line
