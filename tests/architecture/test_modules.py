"""A module earns its file: one that a single other module imports is part of it, but for few reasons."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import lima2cli
from lima2cli.detectors.base import BUILT_IN as DETECTORS
from lima2cli.nodes.registry import BUILT_IN as NODES
from tests.architecture.sources import parsed
from tests.architecture.test_layers import OWNERS

PACKAGE = Path(lima2cli.__file__).parent

LONGEST = 450
"""Lines of a file: two modules that have more together are two files, even where one only serves the other."""


def modules(package: Path) -> dict[str, Path]:
    """Return the files of a package by the names of their modules, `__init__` by the name of its package."""
    names = {path: (package.name, *path.relative_to(package).with_suffix("").parts) for path in package.rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in sorted(names.items())}


def imports(tree: ast.AST, *, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield what a file imports, names of modules in modules too, and whether only when a function is called.

    Imports for checkers of types are lazy.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, lazy
            yield from ((f"{node.module}.{alias.name}", lazy) for alias in node.names)
        else:
            late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
                isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            )
            yield from imports(node, lazy=lazy or late)


class Modules:
    """The modules of a package, and who imports them.

    kinds    modules that are kinds of node or detector
    public   modules whose names are public
    owners   rooms of libraries, by library
    """

    def __init__(
        self, package: Path, kinds: frozenset[str], public: frozenset[str], owners: Mapping[str, set[str]]
    ) -> None:
        self._files, self._kinds, self._public, self._owners = modules(package), kinds, public, owners
        self._imports = {name: list(imports(parsed(file))) for name, file in self._files.items()}
        self.importers: dict[str, dict[str, bool]] = {name: {} for name in self._files}
        """For each module those that import it, and whether all of that is lazy."""
        for name, found in self._imports.items():
            for other, lazy in found:
                if other in self._files and other != name and not self._is_a_parent(other, found):
                    self.importers[other][name] = self.importers[other].get(name, True) and lazy

    def _is_a_parent(self, name: str, found: list[tuple[str, bool]]) -> bool:
        """Return whether only modules of a package are imported from it: `from lima2cli.web import data, runs`."""
        return self._files[name].name == "__init__.py" and all(
            other in self._files for other, _ in found if other.rpartition(".")[0] == name
        )

    def lines(self, name: str) -> int:
        """Return the lines of a module."""
        return len(self._files[name].read_text(encoding="utf-8").splitlines())

    def _main(self, name: str) -> bool:
        return any(
            isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
            for node in parsed(self._files[name]).body
        )

    def _libraries(self, name: str) -> set[str]:
        return {other.partition(".")[0] for other, _ in self._imports[name]} & self._owners.keys()

    def reason(self, name: str) -> str | None:
        """Return why a module is a file of its own; None where it should not be."""
        if self._files[name].name == "__init__.py":
            return "package"
        if len(self.importers[name]) > 1:
            return "shared"
        if self._main(name):
            return "main program"
        if name in self._kinds:
            return "kind"
        if name in self._public:
            return "public"
        if not self.importers[name]:
            return None
        ((importer, lazy),) = self.importers[name].items()
        room, other = (one.split(".")[1] for one in (name, importer))
        if lazy:
            return "lazy"
        if self._libraries(name) - self._libraries(importer):
            return "library"
        if room != other:
            return "entrance"
        if importer == name.rpartition(".")[0]:
            return "offered"
        return "long" if self.lines(name) + self.lines(importer) > LONGEST else None

    def reasons(self) -> dict[str, str | None]:
        """Return the reason of each module."""
        return {name: self.reason(name) for name in self._files}


@cache
def ours() -> Modules:
    """Return the modules of the package."""
    kinds = frozenset(place.partition(":")[0] for place in (*NODES.values(), *DETECTORS.values()))
    return Modules(PACKAGE, kinds, frozenset({*lima2cli._PLACES, "lima2cli.bluesky"}), OWNERS)


def test_a_module_with_one_importer_has_a_reason() -> None:
    """Else it is to be merged with what imports it, or to be deleted."""
    wrong = [
        f"{name} ({ours().lines(name)} lines): {', '.join(ours().importers[name]) or 'nothing'} imports it"
        for name, reason in ours().reasons().items()
        if reason is None
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("job.guard", "shared"),
        ("job.rank_main", "shared"),
        ("files.reading_apart", "main program"),
        ("nodes.mask", "kind"),
        ("drive.asynchronous", "public"),
        ("cli.plan_text", "shared"),
        ("inputs.images", "library"),
        ("accounting.account", "entrance"),
        ("cli.learn", "offered"),
        ("language.template_checks", "long"),
    ],
)
def test_each_reason(module: str, reason: str) -> None:
    assert ours().reason(f"lima2cli.{module}") == reason


def test_modules_without_a_reason_are_found(tmp_path: Path) -> None:
    package = tmp_path / "p"
    for path, text in {
        "__init__.py": "",
        "a/__init__.py": "",
        "a/small.py": "x = 1\n",
        "a/user.py": "from p.a.small import x\nfrom p.a import heavy, long\n",
        "a/long.py": "\n" * LONGEST,
        "a/heavy.py": "import yaml\n",
        "a/unused.py": "",
        "a/late.py": "",
        "b.py": "from p.a.user import x\ndef f():\n    from p.a import late\n",
    }.items():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text(text)
    assert Modules(package, frozenset(), frozenset({"p.b"}), {"yaml": {"a"}}).reasons() == {
        "p": "package",
        "p.a": "package",
        "p.a.heavy": "library",
        "p.a.late": "lazy",
        "p.a.long": "long",
        "p.a.small": None,
        "p.a.unused": None,
        "p.a.user": "entrance",
        "p.b": "public",
    }
