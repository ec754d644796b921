"""The web site of the documentation, as mkdocs builds it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT


def test_the_site_is_built_without_warnings(tmp_path: Path) -> None:
    """All links lead somewhere, also those to files outside of the documentation, which get pages of their own."""
    pytest.importorskip("material", reason="mkdocs-material, of the extra docs, is not installed")
    build = ["build", "--strict", "--quiet", "-f", ".mkdocs.yml", "--site-dir", str(tmp_path)]
    command = [sys.executable, "-m", "mkdocs", *build]
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    for section in ("Tutorial", "How-to guides", "Recipes", "Reference", "Explanation"):
        assert f"{section}\n" in index
    flows = (tmp_path / "explanation/data-flows/index.html").read_text(encoding="utf-8")
    assert 'href="../../source/examples/pipelines/maze.yaml/"' in flows
    assert "FullDet1" in (tmp_path / "source/examples/pipelines/maze.yaml/index.html").read_text(encoding="utf-8")
