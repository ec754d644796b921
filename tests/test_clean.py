"""The checkers that every change must pass."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = "from importlinter.cli import lint_imports_command; lint_imports_command()"
"""Imports go downward only: the contract of pyproject.toml."""

ELLIPTIC = re.compile(r"\s*(What|Of|Those|Whether|How|Where|Which)\b")
"""Beginnings of docstrings that lean on the line above."""


@pytest.mark.parametrize(
    "command",
    [("-m", "ruff", "check", "."), ("-m", "ruff", "format", "--check", "."), ("-m", "mypy"), ("-c", LAYERS)],
    ids=["ruff", "format", "mypy", "layers"],
)
def test_checker_passes(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of the docstrings of a module, its classes, functions and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def test_docstrings_begin_in_plain_english() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}: {text.strip().splitlines()[0]}"
        for file in sorted((ROOT / "lima2cli").rglob("*.py"))
        for line, text in docstrings(ast.parse(file.read_text(encoding="utf-8")))
        if ELLIPTIC.match(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", ["What it gives.", "Of a flow: its frames.", "Whether it fits.", "Which rows count."])
def test_elliptic_docstrings_are_found(text: str) -> None:
    source = f'class A:\n    x: int\n    """{text}"""\n\n    def f(self):\n        """{text}"""\n'
    assert [line for line, found in docstrings(ast.parse(source)) if ELLIPTIC.match(found)] == [3, 6]
