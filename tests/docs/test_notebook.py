"""The notebook of the manual, cell by cell, and a run as notebooks show it."""

import ast
import base64
import json
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import lima2cli as l2
from lima2cli.accounting.summary import read_summary
from lima2cli.notebook import LONGEST_SIDE, Picture, ended_rows, run_html
from tests import ROOT
from tests.running import run as finished

NOTEBOOK = ROOT / "docs/how-to/notebook.ipynb"
KINDS = {"markdown": {"cell_type", "id", "metadata", "source"}}
KINDS["code"] = KINDS["markdown"] | {"execution_count", "outputs"}


def execute(source: str, names: dict[str, Any]) -> Any:
    """Run a cell, and return what it shows: the value of its last line, where that is an expression."""
    tree, names["shown"] = ast.parse(source), None
    last = tree.body[-1]
    if isinstance(last, ast.Expr):
        tree.body[-1] = ast.Assign([ast.Name("shown", ast.Store())], last.value)
    exec(compile(ast.fix_missing_locations(tree), "cell", "exec"), names)
    return names["shown"]


def html(run: l2.Run) -> ElementTree.Element:
    """A run as it is shown; that it is well-formed is checked by parsing it as XML."""
    return ElementTree.fromstring(run._repr_html_().replace("<br>", "<br/>").replace('pixelated">', 'pixelated"/>'))


def tables(shown: ElementTree.Element) -> list[dict[str, list[str]]]:
    """The rows of the tables, by their first cell."""
    rows = [[[cell.text or "" for cell in row] for row in table] for table in shown.iter("table")]
    return [{row[0]: row[1:] for row in table} for table in rows]


def image(shown: ElementTree.Element) -> tuple[int, int]:
    """Width and height of the picture."""
    source = next(shown.iter("img")).attrib["src"]
    png = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    width, height = int.from_bytes(png[16:20]), int.from_bytes(png[20:24])
    data = png[png.index(b"IDAT") + 4 :]
    assert len(zlib.decompressobj().decompress(data)) == height * (3 * width + 1)
    return width, height


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one by the format 4.5, has no results in it, and its cells do what they say, in their order."""
    monkeypatch.chdir(tmp_path)
    book = json.loads(NOTEBOOK.read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    names: dict[str, Any] = {}
    shown = []
    for cell in book["cells"]:
        assert set(cell) == KINDS[cell["cell_type"]]
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            value = execute("".join(cell["source"]), names)
            shown.append(html(value) if isinstance(value, l2.Run) else value)
    diagnostics, armed, running, frame, sums, means, summary, ended = [each for each in shown if each is not None]
    assert diagnostics == []
    assert "armed" in "".join(armed.itertext())
    assert tables(armed)[0]["raw"] == ["0", "0"]
    assert not list(armed.iter("img"))
    assert "waiting for trigger 2 of 3" in "".join(running.itertext())
    assert tables(running)[1]["save"] == ["20", "20"]
    assert image(running) == (256, 192)
    assert frame[:2] == ((192, 256), np.dtype("uint16"))
    assert len(sums) == len(means) == 20
    assert summary == ("complete", 60)
    assert tables(ended)[0]["raw"] == ["60", "60", "0", "0", "0"]
    assert tables(ended)[1]["save"] == ["60", "0", "notebook_save_master.h5"]
    assert "save, frame 59, 256 x 192" in "".join(ended.itertext())


UNSAVED = """
lima2: 1
name: k
detector: {remu: {image: {width: 16, height: 12}, datasets: {raw: {dtype: uint16}}}}
acquisition: {frames: 0, period: 5 ms}
nodes: {dark: {input: raw, background_sub: {image: 1}}, log: {input: dark, checkpoint: {}}}
"""


def test_a_run_that_saves_no_frames_shows_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = l2.run(UNSAVED, transport="inline")
    next(event for event in run.progress if event["flows"]["raw"]["received"])
    assert image(html(run)) == (16, 12)
    run.stop()
    assert run.wait(60).state == "stopped"
    ended = html(run)
    assert not list(ended.iter("img"))
    assert "stopped by the user" in "".join(ended.itertext())


def test_all_words_are_escaped() -> None:
    odd = "<script>alert('&')</script>"
    frame = Picture(odd, 3, np.arange(6).reshape(2, 3))
    page = run_html(odd, odd, frame, [("flow", odd), (odd, odd)], [("node",), (odd,)], odd)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 9


def test_large_frames_are_shown_in_part() -> None:
    frame = Picture("n", 0, np.zeros((3, 4 * LONGEST_SIDE), np.uint16), np.zeros((3, 4 * LONGEST_SIDE), bool))
    shown = run_html("k", "live", frame, [], [])
    assert f"n, frame 0, {4 * LONGEST_SIDE} x 3, one pixel of 4 x 4" in shown
    assert "<table" not in shown


def test_a_run_that_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that cannot be read are left out."""
    text = UNSAVED.replace("frames: 0", "frames: 3").replace("checkpoint: {}", "io_hdf5: {}")
    ran = finished(text, tmp_path, "inline")
    run = l2.open(ran.directory)
    assert image(html(run)) == (16, 12)
    summary = read_summary(ran.directory)
    assert summary is not None
    assert ended_rows(summary)[0][1][:3] == ("raw", "3", "3")
    for path in ran.directory.glob("*.h5"):
        path.write_bytes(b"damaged")
    assert tables(html(run))[0]["raw"][:2] == ["3", "3"]
    for path in ran.directory.iterdir():
        path.unlink()
    assert "aborted" in "".join(html(run).itertext())
