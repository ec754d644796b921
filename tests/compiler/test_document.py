"""YAML with places: what is read, what is refused and where, and that nothing makes it crash."""

import json
import math
import time
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lima2cli.declare.reading import everything
from lima2cli.diagnostics import Diagnostic, Findings, KeyPath
from lima2cli.document import Document, Source, Span, load, plain, yaml_tree
from lima2cli.document.render import show_text, suppress
from lima2cli.document.yaml_tree import resolve

MAZE = """\
# a comment
lima2: 1
name: maze
metadata: {instrument: ID00, photon_energy: 12.4 keV, beam_center: {x: 250, y: 250}}
detector:
  remu:
    image: {width: 500, height: 500}
    datasets:
      CTR1: {dtype: uint16}
      CTR2: {dtype: uint16}
    scene: {rings: {seed: 1}}   # or gradient
acquisition: {frames: 114, period: 1 ms}
receivers:
  receiver0: {memspaces: {dataMSpace: {host: {size: 48 MiB}}}}
flows:
  FullDet1: &full
    dataset: CTR1
    slices: {start: 0, count: 12, step: 10}
    events: {group: 1, end: false}
    buffers: {size: 16 MiB, at: [receiver0.dataMSpace, 'receiver1.dataMSpace']}
  FullDet2: *full
nodes:
  dark: {input: FullDet1, background_sub: {image: -1.5e1}}
  save:
    input: dark
    io_hdf5:
  text: |
    several
    lines
output:
  directory: "runs/{name}_{run:04d}"
  list:
  - 0x1F
  - ~
  - .inf
  -
    - nested
"""

LOADERS = [yaml.CSafeLoader, yaml.SafeLoader]


def read(
    text: str, *overrides: str, environment: dict[str, str] | None = None
) -> tuple[Document | None, list[Diagnostic]]:
    findings = Findings()
    document = load(text, "x.yaml", findings, environment=environment or {}, overrides=overrides)
    return document, findings.items


def data(text: str, *overrides: str, environment: dict[str, str] | None = None) -> Any:
    document, problems = read(text, *overrides, environment=environment)
    assert problems == []
    assert document is not None
    return document.data


def rules(text: str) -> list[tuple[str, tuple[int, int]]]:
    """Rule and place of each diagnostic."""
    document, problems = read(text)
    return [(item.rule, _at(document, item)) for item in problems]


def _at(document: Document | None, item: Diagnostic) -> tuple[int, int]:
    span = item.span if document is None else document.locate(item).span
    assert span is not None
    return span[0], span[1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"),
        ("true", True), ("True", True), ("FALSE", False), ("tRue", "tRue"),
        ("~", None), ("null", None), ("Null", None), ("NULL", None), ("nULL", "nULL"),
        ("010", 10), ("0o10", 8), ("0x1F", 31), ("0b11", "0b11"), ("-12", -12), ("+3", 3), ("1_000", "1_000"),
        ("1e3", 1000.0), ("1.", 1.0), (".5", 0.5), ("-1.5E-2", -0.015), ("1.2.3", "1.2.3"), (".", "."), ("-", "-"),
        ("12:30:45", "12:30:45"), ("2024-01-01", "2024-01-01"), ("16 KiB", "16 KiB"), ("1e", "1e"),
        (".inf", math.inf), ("-.INF", -math.inf), ("+.Inf", math.inf), ("inf", "inf"), ("nan", "nan"),
        ("=", "="), ("0o8", "0o8"), ("-0x1", "-0x1"), ("\u0661", "\u0661"), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_yaml_12_scalars(text: str, value: object) -> None:
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)
    if text != "-":
        assert data(f"a: {text}") == {"a": value}
        assert data(f"[{text}]") == [value]
    assert data(f"a: '{text}'") == {"a": text}
    assert data(f'a: "{text}"') == {"a": text}


def test_nan_and_empty() -> None:
    assert math.isnan(data("a: .nan")["a"])
    assert data("{a: , b: '', c: \"\"}") == {"a": None, "b": "", "c": ""}


@pytest.mark.parametrize("loader", LOADERS)
def test_places(loader: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_tree, "_LOADER", loader)
    document, problems = read(MAZE)
    assert document is not None
    assert problems == []

    def value(*path: str | int) -> Span:
        return document.node(path).at.span

    assert value("lima2") == (2, 8, 2, 9)
    assert _key(document, "lima2") == (2, 1, 2, 6)
    assert value("detector", "remu", "image") == (7, 12, 7, 37)
    assert value("flows", "FullDet1", "buffers", "at", 1) == (20, 56, 20, 78)
    assert value("flows", "FullDet2") == (21, 13, 21, 18)
    assert value("flows", "FullDet2", "dataset") == value("flows", "FullDet1", "dataset")
    assert document.data["flows"]["FullDet2"] == document.data["flows"]["FullDet1"]
    assert document.data["flows"]["FullDet2"] is not document.data["flows"]["FullDet1"]
    assert document.data["output"]["list"] == [31, None, math.inf, ["nested"]]
    assert document.data["nodes"]["text"] == "several\nlines\n"
    assert document.place(("flows",)).span == _key(document, "flows")
    assert document.place(("flows", "nope", 3)).span == _key(document, "flows")
    assert document.place(("name",), on_key=True).span == (3, 1, 3, 5)
    assert document.place(("nope",)).span == Span(2, 1, 2, 1)
    assert document.place(("output", "list", 3, 0, "x")).span == value("output", "list", 3, 0)


def _key(document: Document, *path: str | int) -> Span | None:
    key = document.node(path).key
    return None if key is None else key.span


@pytest.mark.parametrize("loader", LOADERS)
def test_spans_hold_what_was_read(loader: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_tree, "_LOADER", loader)
    document, _ = read(MAZE)
    assert document is not None
    checked = 0
    for path, value in everything(document.data):
        span = document.node(path).at.span
        written = _cut(document, span)
        if path:
            key = _key(document, *path)
            assert key is None or _cut(document, key) == path[-1]
        if isinstance(value, (dict, list)) or span.line != span.end_line:
            continue
        checked += 1
        assert data(f"[{written}]") == ([value] if written else [])
    assert checked > 40


def _cut(document: Document, span: Span) -> str:
    lines = document.lines[span.line - 1 : span.end_line]
    lines[-1] = lines[-1][: span.end_column - 1]
    lines[0] = lines[0][span.column - 1 :]
    return "\n".join(lines)


@pytest.mark.parametrize("ending", ["\r\n", "\r", "\u2028", "\x85"])
def test_line_endings(ending: str) -> None:
    document, _ = read("\ufeff" + "a: 1\nb: [x, y]\n".replace("\n", ending))
    assert document is not None
    assert document.node(("b", 1)).at.span == (2, 8, 2, 9)
    assert document.lines[1] == "b: [x, y]"


REFUSED = [
    ("a: 1\nb: 2\na: 3\n", [("duplicate-key", (3, 1))]),
    ("a: {b: 1, 'b': 2}\n", [("duplicate-key", (1, 11))]),
    ("a: !!str 1\n", [("yaml-tag", (1, 4))]),
    ("a: !x {b: !y c}\n", [("yaml-tag", (1, 4)), ("yaml-tag", (1, 11))]),
    ("a: &x !t 1\n", [("yaml-tag", (1, 7))]),
    ("a: &x {b: 1}\nc: {<<: *x, d: 2}\n", [("yaml-merge", (2, 5))]),
    ("a: &x [1, *x]\n", [("yaml-alias", (1, 11))]),
    ("a: *x\n", [("yaml-alias", (1, 4))]),
    ("1: a\n", [("key-not-text", (1, 1))]),
    ("true: a\n~: b\n1.5: c\n", [("key-not-text", (1, 1)), ("key-not-text", (2, 1)), ("key-not-text", (3, 1))]),
    ("? [a]\n: b\n", [("key-not-text", (1, 3))]),
    ("&x a: 1\n*x : 2\n", [("key-not-text", (2, 1))]),
    ("{{name}: 1}\n", [("key-not-text", (1, 2))]),
    ("a: 1\n---\nb: 2\n", [("yaml-documents", (2, 1))]),
    ("", [("yaml-empty", (1, 1))]),
    ("# nothing\n---\n", [("yaml-empty", (1, 1))]),
    ("a: ${HOMEX}\n", [("variable-unset", (1, 4))]),
    ("a: [1, 'x${}']\n", [("variable-syntax", (1, 8))]),
    ("a: 'x${B'\n", [("variable-syntax", (1, 4))]),
    ("[" * 50_000, [("yaml-too-deep", (1, 65))]),
    ("{a: " * 50_000, [("yaml-too-deep", (1, 257))]),
    ("- " * 50_000, [("yaml-too-deep", (1, 129))]),
    ("a: " + "x" * (4 * 2**20), [("yaml-too-large", (1, 1))]),
    ("[" + "1," * 200_000 + "]", [("yaml-too-large", (1, 50_000))]),
]


@pytest.mark.parametrize(("text", "expected"), REFUSED, ids=lambda value: repr(value)[:30])
def test_refused(text: str, expected: list[tuple[str, tuple[int, int]]]) -> None:
    assert rules(text) == expected


DEEP = [  # what is repeated, and the column of the 65th collection after nothing, after `a: `, after `- - `
    ("[", 65, 67, 67), ("{", 65, 67, 67), ("[{", 65, 67, 67), ("[ ", 129, 130, 129), ("{a: ", 257, 256, 253),
    ("{? ", 193, 193, 191), ("[x, ", 257, 256, 253), ("{a: [", 161, 163, 160), ('["a", {"b": ', 385, 382, 377),
    ("- ", 129, None, 129), ("? ", 129, None, 129), ("- ? ", 129, None, 129), ("? - ", 129, None, 129),
]  # fmt: skip


@pytest.mark.parametrize(
    ("loader", "count", "end"),
    [
        *[(loader, 70, end) for loader in LOADERS for end in ("", "1", "'", "@", "]]]")],
        (yaml.CSafeLoader, 30_000, ""),
        (yaml.CSafeLoader, 30_000, "@"),
        (yaml.SafeLoader, 3000, "@"),  # beyond its recursion, and its look-ahead of 1024, which takes it long
    ],
)
@pytest.mark.parametrize(("piece", "alone", "in_map", "in_lists"), DEEP, ids=[repr(piece) for piece, *_ in DEEP])
def test_depth_is_judged_here(
    piece: str, alone: int, in_map: int | None, in_lists: int, end: str, count: int, loader: type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whatever limits and look-ahead a parser has, and whatever is wrong behind the place."""
    monkeypatch.setattr(yaml_tree, "_LOADER", loader)
    assert rules(piece * count + end) == [("yaml-too-deep", (1, alone))]
    assert rules("- - " + piece * count + end) == [("yaml-too-deep", (1, in_lists))]
    if in_map is not None:  # what begins a line only is a mistake there
        assert rules("a: " + piece * count + end) == [("yaml-too-deep", (1, in_map))]


@pytest.mark.parametrize("loader", LOADERS)
def test_depth_by_lines(loader: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_tree, "_LOADER", loader)
    assert rules("".join(f"{' ' * i}a:\n" for i in range(1200))) == [("yaml-too-deep", (65, 65))]
    assert rules("[\n" * 2000) == [("yaml-too-deep", (65, 1))]
    assert data("[" * 64 + "]" * 64) is not None


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "text",
    [
        "a: |\n  {}\nb: @x\n",
        "a: '{}'\nb: @x\n",
        "# {}\na: @x\n",
        "a: x{}\nb: @x\n",
        "{{'{}': 1, a: @x}}\n",
        "[x, '{}' @]",
    ],
)
def test_brackets_in_texts_are_not_nested(text: str, loader: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_tree, "_LOADER", loader)
    assert [rule for rule, _ in rules(text.format("[" * 100))] == ["yaml-syntax"]


def test_depth_by_overrides() -> None:
    """A value that is set counts from where it is put."""
    assert data("a: 1", "a=" + "[" * 63 + "]" * 63) is not None
    for override in ("a=" + "[" * 64 + "]" * 64, "a." * 40 + "b=" + "[" * 40 + "]" * 40):
        _, problems = read("a: 1" if override.startswith("a=") else "{}", override)
        assert [item.rule for item in problems] == ["yaml-too-deep"]


def test_first_of_duplicates_is_kept_and_all_is_read() -> None:
    document, problems = read("a: 1\na: !t 2\nb: !t 3\nc: 4\n1: 5\n")
    assert document is not None
    assert document.data == {"a": 1, "b": 3, "c": 4, "1": 5}
    assert [item.rule for item in problems] == ["duplicate-key", "yaml-tag", "yaml-tag", "key-not-text"]
    assert document.bad == {("b",)}
    assert "1 | a: 1\n  |    - first written here" in show_text(document, problems)


def test_alias_bomb() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    document, problems = read("\n".join(lines))
    assert document is None
    assert [item.rule for item in problems] == ["alias-bomb"]


def test_depth_by_aliases() -> None:
    text = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 100))
    assert rules(text)[0] == ("yaml-too-deep", (64, 12))


SYNTAX = [
    ("a: {x: 1, y: [1, 2]\nb: {c: 1}\n", (1, 4), "this `{` is not closed"),
    ("a: [1, 2\nb: 3\n", (1, 4), "this `[` is not closed"),
    ("a: {b: [1, 2}\n", (1, 8), "this `[` is not closed before the `}`"),
    ("n: {\n  a: {i: x, m: {k: 0}\n  b: {i: y}\n}\n", (2, 6), "this `{` is not closed"),
    ("n: {\n  a: 'x]'\n  b: {i: y}\n}\n", (3, 3), "`,` or `}` is expected before this"),
    ('d: "runs/x\ne: 1\n', (1, 4), 'this `"` is not closed'),
    ('d: "runs/x\ne: "abort"\nf: 2\n', (1, 4), 'this `"` is not closed on its line'),
    ("a: [1, 2]]\n", (1, 10), "this `]` has no matching opening bracket"),
    ("a:\n\tb: 1\n", (2, 1), "a tab cannot indent in YAML"),
    ("a:\n  b: 1\n\tc: 2\n", (3, 1), "a tab cannot indent in YAML"),
    ("a: b: c\n", (1, 5), "a `:` cannot stand here"),
    ("a: 1\nb\nc: 2\n", (2, 1), "a `:` is missing after this key"),
    ("a:\n   b: 1\n  c: 2\n", (3, 3), "the indentation matches no mapping above"),
    ("a: @x\n", (1, 4), "a string cannot begin with `@`"),
    ("a: *.h5\n", (1, 4), "`*` begins an alias, and no name follows"),
    ("a: {size: ${SIZE}}\n", (1, 11), "within brackets, `${...}` must be quoted"),
    ('a: "\\d"\n', (1, 5), "`\\d` is not an escape sequence"),
    ("a: 'it's'\n", (1, 8), "this follows a value that has ended"),
    ("a: - 1\n", (1, 4), "a list item cannot begin here"),
    ("b: 2\n- 1\n", (2, 1), "this list item is in the middle of a mapping"),
    ("- 1\nb: 2\n", (2, 1), "a `-` is expected here, for the next item of the list"),
    ("a: {,}\n", (1, 5), "a value is expected before this"),
    ("a: \x07\n", (1, 4), "the character U+0007 is not allowed in YAML"),
    ("a: \ud800\n", (1, 4), "the character U+D800 is not allowed in YAML"),
]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("text", "place", "message"), SYNTAX, ids=lambda value: repr(value)[:30])
def test_syntax(loader: type, text: str, place: tuple[int, int], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_tree, "_LOADER", loader)
    document, problems = read(text)
    assert document is None
    (problem,) = problems
    assert problem.span is not None
    assert (problem.rule, problem.message, problem.span[:2]) == ("yaml-syntax", message, place)


def test_variables() -> None:
    environment = {"N": "12", "EMPTY": "", "HOME": "/h", "YES": "true"}

    def value(text: str) -> Any:
        return data(f"a: {text}", environment=environment)["a"]

    assert value("${N}") == 12
    assert value("'${N}'") == "12"
    assert value('"${N}0"') == "120"
    assert value("${N}0") == 120
    assert value("|\n  ${N}") == "12"
    assert value("${YES}") is True
    assert value("${EMPTY}") is None
    assert value("${EMPTY:-x}") == value("${NOPE:-x}") == "x"
    assert value("${NOPE:-1.5}") == 1.5
    assert value("${NOPE:-}/x") == "/x"
    assert value("${HOME}/$$N/$N/$") == "/h/$N/$N/$"
    assert data("${N}: ${N}", environment=environment) == {"${N}": 12}


def test_unset_variable_is_reported_once_with_a_guess() -> None:
    document, problems = read("a: &x ${HOMEX}\nb: *x\n", environment={"HOME": "/h"})
    assert document is not None
    assert document.bad == {("a",), ("b",)}
    (problem,) = problems
    assert problem.help is not None
    assert "did you mean `HOME`?" in problem.help


def test_overrides() -> None:
    text = "a: &x {b: 1, l: [1, 2]}\nc: *x\nn:\n"
    assert data(text, "a.b=010")["a"]["b"] == 10
    assert data(text, "a.b=010")["c"]["b"] == 1  # an alias is a value of its own
    assert data(text, "a.b='010'")["a"]["b"] == "010"
    assert data(text, "a.b=")["a"]["b"] is None
    assert data(text, "a.l.1=[x, {y: 2}]")["a"]["l"] == [1, ["x", {"y": 2}]]
    assert data(text, "n.x.y=a: b # c")["n"] == {"x": {"y": "a: b # c"}}
    assert data(text, "p.q=1", "p.r=*.h5")["p"] == {"q": 1, "r": "*.h5"}
    assert data(text, "n=${N}", environment={"N": "3"})["n"] == 3
    assert data(text, "n=a=b")["n"] == "a=b"
    document, _ = read(text, "a.l.1={y: 2}")
    assert document is not None
    overridden = {path: place.override for path, _ in everything(document.data)
                  if (place := document.node(path).at).override is not None}  # fmt: skip
    assert overridden == {("a", "l", 1): "a.l.1={y: 2}", ("a", "l", 1, "y"): "a.l.1={y: 2}"}
    assert document.node(("a", "l", 1, "y")).at.span == (1, 11, 1, 12)


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("a", "set-syntax"), ("=1", "set-syntax"), ("a..b=1", "set-syntax"), ("a." * 5000 + "b=1", "set-syntax"),
        ("l.2=1", "set-path"), ("l.x=1", "set-path"), ("l.-1=1", "set-path"), ("a.x=1", "set-path"),
        ("a={x", "yaml-syntax"), ("a={x: 1, x: 2}", "duplicate-key"), ("a=${NOPE}", "variable-unset"),
    ],
)  # fmt: skip
def test_overrides_refused(override: str, rule: str) -> None:
    document, problems = read("a: 1\nl: [1, 2]\n", override)
    assert document is not None
    assert document.data == {"a": 1, "l": [1, 2]}
    assert [item.rule for item in problems] == [rule]
    shown = override if len(override) <= 80 else f"{override[:79]}…"
    assert f" --> --set {shown}\n" in show_text(document, problems)


def test_suppress() -> None:
    text = (
        "a: 1  # lima2: ignore[odd]\n"
        "b: '# lima2: ignore[odd]'\n"
        "c: |  # lima2: ignore[odd, even]\n"
        "  # lima2: ignore[odd]\n"
        "d: 1  #lima2: ignore[bad]\n"
        "e: 1  # lima2: ignore[]\n"
    )
    document, _ = read(text)
    assert document is not None
    findings = Findings()
    for key in ("a", "b", "c"):
        findings.warning("odd", "odd", (key,))
    findings.warning("even", "even", ("a",))
    findings.error("bad", "bad", ("d",))
    left = [(item.rule, item.severity, _at(document, item)) for item in suppress(document, findings)]
    assert left == [
        ("odd", "warning", (2, 4)),
        ("even", "warning", (1, 4)),
        ("bad", "error", (5, 4)),
        ("unused-ignore", "warning", (3, 28)),
        ("unused-ignore", "warning", (5, 22)),
        ("unused-ignore", "warning", (6, 7)),
    ]


_PIECES = [
    "{", "}", "[", "]", ":", ": ", ",", "- ", "\t", "\n", "'", '"', "&x ", "*x", "!t ", "<<: ", "${A", "$", "|", ">",
    "?", "# lima2: ignore[a]", "\\", "%", "---\n", "...", "0x", "\ufeff", "\x00", "\u2028", "\U0001f600",
]  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(0, len(MAZE)), st.integers(0, 5), st.sampled_from(_PIECES)), min_size=1, max_size=6)
)
def test_mutants_never_raise(edits: list[tuple[int, int, str]]) -> None:
    text = MAZE
    for start, count, piece in edits:
        text = text[:start] + piece + text[start + count :]
    document, problems = read(text, "a.b={c: 1}", "flows.FullDet1.dataset=x")
    assert document is not None or [item for item in problems if item.severity == "error"]
    if document is not None:
        findings = suppress(document, Findings(list(problems)))
        assert all(plain(document.node(path)) == value or value != value for path, value in everything(document.data))
        problems = findings.items
    shown = show_text(document or Source("x.yaml", text), problems)
    assert bool(shown) == bool(problems)


@given(st.text(max_size=200), st.text(max_size=20))
def test_any_text_never_raises(text: str, override: str) -> None:
    document, problems = read(text, override)
    assert show_text(document or Source("x.yaml", text), problems) or document is not None


_TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cn", "Co", "Cs", "Zl", "Zp"], exclude_characters="$"))


def _json(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
        # PyYAML takes no key of more than 1024 characters, and an escape has up to 12
        lambda below: (
            st.lists(below, max_size=4) | st.dictionaries(texts.filter(lambda it: len(it) < 80), below, max_size=4)
        ),
        max_leaves=12,
    )


@given(_json(_TEXTS))
def test_json_is_read_as_it_is(value: Any) -> None:
    """JSON is YAML 1.2 (but for line separators and control characters within texts, if they are not escaped)."""
    assert data(json.dumps(value, ensure_ascii=False)) == value


_ALL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="$"))


@pytest.mark.parametrize("loader", LOADERS)
@given(value=_json(_ALL), indent=st.sampled_from([None, 0, 2]))
def test_json_as_python_writes_it(loader: type, value: Any, indent: int | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_tree, "_LOADER", loader)
        assert data(json.dumps(value, indent=indent)) == value


@given(value=_json(_ALL))
def test_json_with_tabs_and_other_lines(value: Any) -> None:
    text = json.dumps(value, indent="\t", separators=(",\t", ":\t")).replace("\n", "\r\n").replace("/", "\\/")
    assert data("\ufeff" + text) == value


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'"\ud83d\ude00"', "\U0001f600"),
        (r'"\uD83D\uDE00\n\udbff\udfff"', "\U0001f600\n\U0010ffff"),
        (r'"\\ud83d\ude00"', None),
        (r'"\\ud83d\\ude00 \ud83d\ude00"', r"\ud83d\ude00 " + "\U0001f600"),
        (r"'\ud83d\ude00'", r"\ud83d\ude00"),
        (r"\uD83d", r"\uD83d"),
        ('"\ue000\ue001\\uE002 \\ud83d\\ude00"', "\ue000\ue001\ue002 \U0001f600"),
        ("|\n  \\ud83d \\ue000\n", "\\ud83d \\ue000\n"),
        ('"\\ud83d\\\n  \\ude00" # \\ud83d', "\U0001f600"),
    ],
)  # fmt: skip
def test_surrogates(loader: type, text: str, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Escapes are some only in double quotes."""
    monkeypatch.setattr(yaml_tree, "_LOADER", loader)
    if value is None:
        assert rules(f"a: {text}") == [("yaml-syntax", (1, 12))]
    else:
        assert data(f"a: {text}") == {"a": value}


@pytest.mark.parametrize("loader", LOADERS)
def test_half_of_a_surrogate(loader: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_tree, "_LOADER", loader)
    text = '{"a": "\\ud83d\\ude00 \\uDE00",\n "\\ud83d": 1, "b": "\\ud83d\\ude00", "c": *x}'
    document, problems = read(text)
    assert document is not None
    assert [(item.rule, item.message, _at(document, item)) for item in problems[:2]] == [
        ("yaml-syntax", "`\\uDE00` is half of a character", (1, 21)),
        ("yaml-syntax", "`\\ud83d` is half of a character", (2, 3)),
    ]
    assert [(item.rule, _at(document, item)) for item in problems[2:]] == [("yaml-alias", (2, 41))]
    assert ("a",) in document.bad
    assert document.data["b"] == "\U0001f600"


def test_load_time(capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        MAZE
        + "more:\n"
        + "".join(f"  flow{i}: {{dataset: CTR1, slices: {{start: 0, step: {i}}}}}\n" for i in range(165))
    )
    assert text.count("\n") > 200
    begin = time.perf_counter()
    assert len(data(text)["more"]) == 165
    with capsys.disabled():
        print(f" {1e3 * (time.perf_counter() - begin):.1f} ms for 200 lines ", end="")


def test_paths_of_lists_are_indices() -> None:
    document, _ = read("a: [[1], {b: 2}]")
    assert document is not None
    paths: list[KeyPath] = [(), ("a",), ("a", 0), ("a", 0, 0), ("a", 1), ("a", 1, "b")]
    assert [path for path, _ in everything(document.data)] == paths
    assert [document.node(path).at.span.column for path in paths] == [1, 4, 5, 6, 10, 14]
