"""The architecture, checked: each outside library has its owners. Layers are checked by import-linter (pyproject)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import lima2cli

PACKAGE = Path(lima2cli.__file__).parent

OWNERS = {
    "yaml": {"document"},
    "jsonschema": {"declare"},
    "h5py": {"files", "inputs", "accounting"},
    "hdf5plugin": {"files"},
    "xxhash": {"files"},
    "fabio": {"inputs"},
    "numexpr": {"nodes"},
    "mpi4py": {"transport", "job", "doctor"},  # job, doctor: the main program of a rank needs the world
    "cffi": {"detectors"},
    "typer": {"cli"},
    "pytest": {"testing"},
}


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
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
