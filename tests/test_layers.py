"""The architecture, checked: imports go downward only, and each outside library has one owner."""

import ast
from collections.abc import Iterator
from pathlib import Path

import lima2cli

PACKAGE = Path(lima2cli.__file__).parent

LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli", "__main__", "testing", "worker", "processing"),
    ("runtime",),
    ("check",),
    ("program",),
    ("plan",),
    ("config",),
    ("nodes", "detectors"),
    ("schema", "document", "transport", "artefacts", "plugins"),
    (
        "declare",
        "spec",
        "invalid",
        "view",
        "geometry",
        "names",
        "paths",
        "diagnostics",
        "plain",
        "poison",
        "secret",
        "threads",
        "foreign",
        "human",
        "lingering",
        "watch",
        "units",
    ),
    ("errors", "exit_codes"),
)
"""From the top down; what stands in one row may import each other."""

OWNERS = {
    "yaml": {"document"},
    "jsonschema": {"schema"},
    "h5py": {"artefacts"},
    "hdf5plugin": {"artefacts"},
    "fabio": {"artefacts"},
    "mpi4py": {"transport", "runtime"},  # runtime: the main program of a rank needs the world
    "cffi": {"detectors"},
    "typer": {"cli"},
    "pytest": {"testing"},
}

LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            if node.module == "lima2cli":
                yield from (f"lima2cli.{alias.name}" for alias in node.names)


def files() -> Iterator[tuple[str, Path]]:
    """Every file, with the layer it belongs to."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def test_every_file_has_a_layer() -> None:
    assert {layer for layer, _ in files()} - {"__init__"} <= set(LEVEL)


def test_imports_go_downward_only() -> None:
    wrong = []
    for layer, path in files():
        for module in imports(path):
            parts = module.split(".")
            if (
                parts[0] == "lima2cli"
                and len(parts) > 1
                and parts[1] in LEVEL
                and LEVEL[parts[1]] < LEVEL.get(layer, 99)
            ):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong


def test_each_library_has_one_owner() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for layer, path in files()
        for module in imports(path)
        if layer not in OWNERS.get(module.split(".")[0], {layer})
    ]
    assert not wrong
