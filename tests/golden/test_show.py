"""Diagnostics as they are shown."""

import json
import re

import pytest

from lima2cli.diagnostics import Diagnostic, Findings, KeyPath, Related
from lima2cli.document import Document, Source, load
from lima2cli.document.render import show_concise, show_github, show_json, show_sarif, show_text

_LINES = {
    1: "lima2: 1",
    6: "detector:",
    7: "  remu:",
    9: "    image: {width: 500, height: 500}",
    40: "flows:",
    41: "  FullDet1:",
    42: "    dataset: CTR1",
    43: "    buffers: {size: 16 KiB, at: [receiver0.dataMSpace]}",
}
MAZE = "".join(_LINES.get(number, "") + "\n" for number in range(1, 44))
SIZE: KeyPath = ("flows", "FullDet1", "buffers", "size")

TOO_SMALL = Diagnostic(
    "buffer-too-small",
    "a block of FullDet1 needs 500 000 bytes, its local buffer has 16 KiB",
    SIZE,
    notes=("500 x 500 px x 2 bytes (uint16), aligned on 256 bits",),
    help="at least 500 000 bytes; 16 MiB holds 33 frames",
    related=(Related(("detector", "remu", "image"), "full image"),),
)

GOLDEN = """\
error[buffer-too-small]: a block of FullDet1 needs 500 000 bytes, its local buffer has 16 KiB
  --> maze.yaml:43:21  at /flows/FullDet1/buffers/size
   |
43 |     buffers: {size: 16 KiB, at: [receiver0.dataMSpace]}
   |                     ^^^^^^
   :
 9 |     image: {width: 500, height: 500}
   |     ------ full image
   = note: 500 x 500 px x 2 bytes (uint16), aligned on 256 bits
   = help: at least 500 000 bytes; 16 MiB holds 33 frames

1 error in maze.yaml
"""


def read(text: str = MAZE, *overrides: str) -> Document:
    findings = Findings()
    document = load(text, "maze.yaml", findings, environment={}, overrides=overrides)
    assert document is not None
    assert not findings.items
    return document


def warning(at: KeyPath, rule: str = "odd", message: str = "odd") -> Diagnostic:
    return Diagnostic(rule, message, at, "warning")


def test_text_is_the_example_of_the_manual() -> None:
    assert show_text(read(), [TOO_SMALL], color=False) == GOLDEN


def test_nothing_to_show() -> None:
    assert show_text(read(), []) == ""
    assert show_concise(read(), []) == ""
    assert json.loads(show_json(read(), [])) == {"version": 1, "diagnostics": []}


def test_file_order_overrides_last_and_each_once() -> None:
    document = read(MAZE, "flows.FullDet1.dataset=CTR9")
    items = [warning(("flows", "FullDet1", "dataset")), TOO_SMALL, warning(("lima2",)), warning(("lima2",))]
    assert show_concise(document, items).splitlines() == [
        "maze.yaml:1:8: warning[odd]: odd",
        f"maze.yaml:43:21: error[buffer-too-small]: {TOO_SMALL.message}",
        "--set flows.FullDet1.dataset=CTR9: warning[odd]: odd",
    ]
    text = show_text(document, items)
    assert " --> --set flows.FullDet1.dataset=CTR9  at /flows/FullDet1/dataset\n" in text
    assert text.endswith("\n\n1 error, 2 warnings in maze.yaml\n")


def test_json_contract() -> None:
    (entry,) = json.loads(show_json(read(), [TOO_SMALL]))["diagnostics"]
    assert entry == {
        "rule": "buffer-too-small",
        "severity": "error",
        "message": TOO_SMALL.message,
        "file": "maze.yaml",
        "line": 43,
        "column": 21,
        "path": "/flows/FullDet1/buffers/size",
        "notes": [*TOO_SMALL.notes, "full image: maze.yaml:9:5"],
        "help": TOO_SMALL.help,
    }


def test_json_of_an_override() -> None:
    document = read(MAZE, "flows.FullDet1.buffers.size=1 KiB")
    (entry,) = json.loads(show_json(document, [TOO_SMALL]))["diagnostics"]
    assert (entry["file"], entry["line"], entry["column"]) == ("--set", 1, 29)
    assert "from --set flows.FullDet1.buffers.size=1 KiB" in entry["notes"]


def test_pointer_escapes() -> None:
    (entry,) = json.loads(show_json(read("{'a/b~c': 1}"), [warning(("a/b~c", 0))]))["diagnostics"]
    assert entry["path"] == "/a~1b~0c/0"


def test_github_escapes() -> None:
    item = Diagnostic("odd", "50 %\nof it", ("lima2",), notes=("so",), help="less")
    assert show_github(Source("a,b.yaml", "x"), [item]) == (
        "::error file=a%2Cb.yaml,line=1,col=1,endLine=1,endColumn=1,title=odd::50 %25%0Aof it%0Aso%0Ahelp: less\n"
    )


def test_sarif() -> None:
    log = json.loads(show_sarif(read(), [TOO_SMALL]))
    (run,) = log["runs"]
    (result,) = run["results"]
    assert (log["version"], run["tool"]["driver"]["rules"]) == ("2.1.0", [{"id": "buffer-too-small"}])
    assert (result["ruleId"], result["level"]) == ("buffer-too-small", "error")
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "maze.yaml"}
    assert place["region"] == {"startLine": 43, "startColumn": 21, "endLine": 43, "endColumn": 27}


def test_without_a_document() -> None:
    item = Diagnostic("yaml-syntax", "this `[` is not closed", span=(2, 4, 2, 5))
    assert show_text(Source("x.yaml", "a: 1\nb: [\n"), [item]) == (
        "error[yaml-syntax]: this `[` is not closed\n --> x.yaml:2:4\n  |\n2 | b: [\n  |    ^\n\n1 error in x.yaml\n"
    )
    assert show_text(None, [item]).startswith("error[yaml-syntax]: this `[` is not closed\n --> -:2:4\n")


@pytest.mark.parametrize(
    ("text", "path", "line", "marks"),
    [
        ("a:\n  b: 1\n  c: 2\n", ("a",), "1 | a:", "^"),  # a map that spans lines, by its key
        ("a: {b: 1}\n", ("a",), "1 | a: {b: 1}", "   ^^^^^^"),
        ("a: 'x\n  y'\n", ("a",), "1 | a: 'x", "   ^^"),  # several lines: the first
        ("a:\nb: 1\n", ("a",), "1 | a:", "  ^"),
        ("a: {b: 1}\n", ("a", "c"), "1 | a: {b: 1}", "^"),  # absent: the key of the nearest ancestor
        ("a: {b: 1}\n", ("c", "d"), "1 | a: {b: 1}", "^"),
        ("a: [1, [2]]\n", ("a", 1, 0), "1 | a: [1, [2]]", "        ^"),
        ("a: ['\u65e5\u672c', b]\n", ("a", 1), "1 | a: ['\u65e5\u672c', b]", "            ^"),  # wide characters
        ("a:\t b\n", ("a",), "1 | a:  b", "    ^"),
    ],
)
def test_marks(text: str, path: KeyPath, line: str, marks: str) -> None:
    lines = show_text(read(text), [warning(path)]).splitlines()
    assert lines[3:5] == [line, f"  | {marks}"]


def test_long_lines_are_cut_around_the_place() -> None:
    text = "a: [" + ", ".join(f"n{i}" for i in range(10_000)) + "]\n"
    line, marks = show_text(read(text), [warning(("a", 5000))]).splitlines()[3:5]
    assert len(line) < 130
    assert line[marks.index("^") : marks.rindex("^") + 1] == "n5000"
    assert line[4] == line[-1] == "…"


def test_terminals_are_not_steered() -> None:
    document = read('{"\\e[31m": 1}')
    text = show_text(document, [Diagnostic("odd", "\x1b[2J \u202e", ("\x1b[31m",))])
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_color_changes_nothing_else() -> None:
    colored = show_text(read(), [TOO_SMALL], color=True)
    assert "\x1b[1;31m" in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == GOLDEN
