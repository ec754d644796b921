"""The guide on reading data: its examples are run on the files of its pipeline."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.running import run

PAGE = (ROOT / "docs/how-to/read-data.md").read_text(encoding="utf-8")
PIPELINE = re.search(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
EXAMPLES = dict(re.findall(r"^## ([\w ,]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
"""The examples in Python, by their headings."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the pipeline has been run."""
    assert PIPELINE is not None
    folder = tmp_path_factory.mktemp("read")
    run(PIPELINE[1], folder, "inline")
    return folder


def modules(code: str) -> set[str]:
    """Return the packages that a text of Python imports."""
    nodes = list(ast.walk(ast.parse(code)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("heading", EXAMPLES)
def test_examples(
    heading: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in modules(EXAMPLES[heading]):
        pytest.importorskip(module)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(EXAMPLES[heading], heading, "exec"), names)
    match heading:
        case "silx":
            assert (names["image"].shape, names["image"].dtype) == ((407, 487), "uint16")
        case "h5py":
            assert names["saved"].all()
            assert names["mask"] is None
        case "pandas":
            assert list(names["table"].index) == list(range(20))
        case "pyFAI":
            assert names["q"][names["intensity"].argmax()] == pytest.approx(20.1, abs=0.2)  # CeO2 111: 0.3124 nm
        case "DIALS, and all that reads NXmx":
            assert len(names["entry"].instruments[0].beams) == 1
        case "fabio":
            assert capsys.readouterr().out.startswith("20 ")


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 6
