"""The architecture, checked: imports go downward only, and each outside library has its owners."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lima2cli
from lima2cli.nodes.registry import BUILT_IN
from tests import ROOT
from tests.architecture.sources import parsed, statements

PACKAGE = Path(lima2cli.__file__).parent

OWNERS = {
    "yaml": {"document"},
    "jsonschema": {"testing", "web"},
    "h5py": {"files", "inputs", "accounting"},
    "hdf5plugin": {"files"},
    "xxhash": {"files"},
    "fabio": {"inputs"},
    "numexpr": {"nodes"},
    "mpi4py": {"transport", "job", "doctor"},  # job, doctor: the main program of a rank needs the world
    "cffi": {"detectors"},
    "tornado": {"web"},
    "bokeh": {"web"},
    "prometheus_client": {"web"},
    "p4p": {"pva"},
    "pyopencl": {"gpu"},
    "pyFAI": {"nodes"},
    "scipy": {"nodes"},
    "typer": {"cli"},
    "rich": {"cli"},
    "matplotlib": {"cli"},
    "pytest": {"testing"},
}


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, wherever in it."""
    for node in statements(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def test_each_library_has_its_owners() -> None:
    used = {
        (module.split(".")[0], path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
        for path in sorted(PACKAGE.rglob("*.py"))
        for module in imports(path)
    }
    wrong = [(library, room) for library, room in used if room not in OWNERS.get(library, {room})]
    assert not wrong
    assert set(OWNERS) <= {library for library, _ in used}, "an owner of what nobody uses"


def test_imports_go_downward_only() -> None:
    """The contract of pyproject.toml, by import-linter."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


CONTRACT = {"base", "change", "registry", "user_function"}
"""Modules of `nodes` that are no kind."""

WITHOUT_KINDS = sorted({path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - {"nodes", "cli", "__init__"})
"""Rooms that know roles only. The commands give a kind as an example."""

CLASSIC = ("background_sub", "flatfield", "accumulate", "io_hdf5", "roi_counters", "roi_profiles", "checkpoint")
"""Kinds that parameters of Lima2's classic processing become: `web.conductor.mapping` writes a pipeline."""

CALIBRATING = ("background_sub", "accumulate", "expression", "io_hdf5")
"""Kinds of the pipelines that `calibrate` writes."""

OTHER_WORDS = {
    ("detectors", "accumulate"),  # an operation of a detector
    ("detectors", "gain"),  # a parameter
    ("detectors", "peaks"),  # a scene
    ("detectors", "reconstruction"),  # a capability
    ("facts", "flatfield"),  # an array of the detector
    ("doctor", "mpi"),  # an extra of the distribution
    ("doctor", "python"),  # its version
    ("files", "filter"),  # a field of HDF5's struct
    ("files", "mask"),  # a dataset, by fabio's name
    ("job", "mpi"),  # a transport
    ("job", "python"),  # a program
    ("language", "accumulate"),
    ("testing", "mask"),  # a field of `FrameSpec`
    ("plan", "mask"),
    ("web", "mask"),  # a variable of the page's scripts
    ("web", "mpi"),  # a transport
    *(("web", kind) for kind in CLASSIC),
    *(("calibrate", kind) for kind in CALIBRATING),
    ("runs", "mask"),  # a request for the pixels that hold no measurement
    ("ranks", "mask"),
    ("drive", "mask"),
}
"""Strings that are a kind, too, and mean something else."""


def named_kinds(tree: ast.Module) -> Iterator[str]:
    """Kinds that code names: as a string, or by importing their module."""
    kinds = set(BUILT_IN)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in kinds:
            yield str(node.value)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lima2cli.nodes"):
            module = (node.module or "").removeprefix("lima2cli.nodes").removeprefix(".")
            yield from {module or alias.name for alias in node.names} - CONTRACT
        elif isinstance(node, ast.Import):
            found = [alias.name.removeprefix("lima2cli.nodes.") for alias in node.names if "nodes." in alias.name]
            yield from set(found) - CONTRACT


def test_no_kind_of_node_is_named_outside_its_own_room() -> None:
    found = {
        (room, kind)
        for room in WITHOUT_KINDS
        for path in sorted([*(PACKAGE / room).rglob("*.py"), *PACKAGE.glob(f"{room}.py")])
        for kind in named_kinds(parsed(path))
    }
    assert found == OTHER_WORDS


@pytest.mark.parametrize(
    ("source", "kinds"),
    [
        ("from lima2cli.nodes.sparsify import Sparsify", ["sparsify"]),
        ("from lima2cli.nodes import checkpoint", ["checkpoint"]),
        ("import lima2cli.nodes.mask as m", ["mask"]),
        ("if node.kind == 'io_hdf5': pass", ["io_hdf5"]),
        ("from lima2cli.nodes.base import Map", []),
    ],
)
def test_named_kinds_are_found(source: str, kinds: list[str]) -> None:
    assert list(named_kinds(ast.parse(source))) == kinds
