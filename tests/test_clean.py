"""The checkers that every change must pass."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = "from importlinter.cli import lint_imports_command; lint_imports_command()"
"""Imports go downward only: the contract of pyproject.toml."""


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
