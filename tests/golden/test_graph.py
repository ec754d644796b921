"""The command `graph`: two examples as they are drawn, and names that the languages of drawings would misread."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lima2cli.cli import app
from lima2cli.cli.drawing import Arrow, Box, Drawing, as_dot, as_mermaid, as_tree, dot_text, draw, mermaid_text
from lima2cli.cli.reading import check_file
from tests import ROOT
from tests.golden import FOLDER, agrees

EXAMPLES = ROOT / "examples" / "pipelines"
ALL = sorted(path for path in EXAMPLES.glob("*.yaml"))
FORMATS = {"text": "txt", "mermaid": "mmd", "dot": "dot"}
ODD = 'a"b]<c>\\#;&|'


def graph(name: str | Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["graph", str(name), *options])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["maze", "filter"])
def test_examples_are_drawn_as_before(name: str, format: str) -> None:
    result = graph(EXAMPLES / f"{name}.yaml", "--format", format)
    assert result.exit_code == 0
    agrees(FOLDER / "drawings" / f"{name}.{FORMATS[format]}", result.stdout)
    assert graph(EXAMPLES / f"{name}.yaml", "--format", format).stdout == result.stdout


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_example_fits_a_terminal_and_shows_every_node(path: Path) -> None:
    plan = check_file(str(path)).plan
    assert plan is not None
    text = as_tree(draw(plan))
    assert max(map(len, text.splitlines())) <= 80
    for name in [*(gdt.flow for gdt in plan.gdts), *(step.name for step in plan.steps)]:
        assert re.search(rf"─ (\w+: )?{name}\b", text)
    for node in [*plan.channels, *plan.tables]:
        assert f"─ {plan.name}_{node}" in text


def test_nodes_are_alone_without_fusion() -> None:
    assert "fused" in graph(EXAMPLES / "maze.yaml").stdout
    assert "fused" not in graph(EXAMPLES / "maze.yaml", "--no-fuse").stdout


def test_a_join_stands_at_its_first_input() -> None:
    drawing = Drawing(
        "t",
        (Box("one", "dataset", ()), Box("two", "dataset", ()), Box("sum", "node", ("expression",))),
        (Arrow(0, 2, "a"), Arrow(1, 2, "rows")),
        (),
    )
    assert as_tree(drawing) == "t\n\none\n└─ a: sum  expression\n\ntwo\n└─ rows: → sum\n"
    assert "style=dashed" not in as_dot(drawing)


def test_names_are_escaped() -> None:
    drawing = Drawing(ODD, (Box(ODD, "dataset", (ODD,)), Box(ODD, "node", ())), (Arrow(0, 1, ODD),), ())
    assert mermaid_text(ODD) == "a#34;b#93;#60;c#62;#92;#35;#59;#38;#124;"
    lines = as_mermaid(drawing).splitlines()
    assert json.loads(lines[1].removeprefix("title: ")) == ODD
    assert lines[4:] == [
        f'  b0[("{mermaid_text(ODD)}<br/>{mermaid_text(ODD)}")]',
        f'  b1("{mermaid_text(ODD)}")',
        f'  b0 -->|"{mermaid_text(ODD)}"| b1',
    ]
    assert dot_text('a"b\\\n') == '"a\\"b\\\\\\n"'
    assert as_dot(drawing).count(dot_text(ODD)) == 3


@pytest.mark.skipif(shutil.which("dot") is None, reason="no Graphviz")
def test_graphviz_draws_it() -> None:
    text = graph(EXAMPLES / "maze.yaml", "--format", "dot").stdout
    drawn = subprocess.run(["dot", "-Tsvg"], input=text, capture_output=True, text=True, timeout=60, check=True)
    assert drawn.stdout.count("<g ") > 20


def test_mistakes_and_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("lima2: 1\n")
    result = graph(broken)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error[missing-key]" in result.stderr
    assert graph(tmp_path / "none.yaml").exit_code == 2
    file = tmp_path / "maze.dot"
    assert graph(EXAMPLES / "maze.yaml", "--format", "dot", "-o", str(file)).stdout == ""
    assert file.read_text().startswith("digraph {\n")
