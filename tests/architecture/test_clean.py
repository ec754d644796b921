"""Docstrings begin in plain English. ruff and mypy are run next to the tests: see ``.ci/run``."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests import ROOT
from tests.architecture.sources import parsed, statements

ELLIPTIC = re.compile(r"\s*(What|Of|Those|Whether|How|Where|Which)\b")
"""Beginnings of docstrings that lean on the line above."""


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of the docstrings of a module, its classes, functions and attributes."""
    for node in statements(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


@cache
def all_docstrings() -> list[tuple[str, str]]:
    """Return place and text of all docstrings of the package and its tests."""
    return [
        (f"{file.relative_to(ROOT)}:{line}", text)
        for folder in ("lima2cli", "tests")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line, text in docstrings(ast.parse(file.read_text(encoding="utf-8")))
    ]


def test_docstrings_begin_in_plain_english() -> None:
    found = [f"{place}: {text.strip().splitlines()[0]}" for place, text in all_docstrings() if ELLIPTIC.match(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", ["What it gives.", "Of a flow: its frames.", "Whether it fits.", "Which rows count."])
def test_elliptic_docstrings_are_found(text: str) -> None:
    source = f'class A:\n    x: int\n    """{text}"""\n\n    def f(self):\n        """{text}"""\n'
    assert [line for line, found in docstrings(ast.parse(source)) if ELLIPTIC.match(found)] == [3, 6]


def repeated(text: str) -> list[str]:
    """Paragraphs that stand twice."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return sorted({each for each in paragraphs if each and paragraphs.count(each) > 1})


def test_docstrings_say_nothing_twice() -> None:
    found = [f"{place}: {text}" for place, docstring in all_docstrings() for text in repeated(docstring)]
    assert not found, "\n".join(found)
    assert repeated("Return it.\n\n    Raises: none.\n\nRaises:   none.\n") == ["Raises: none."]


OLD = re.compile(
    r"\b(mend(s|ed|ing)?|broken off|nobody|beside|told|tells? of|for ever|anew|left alone|is none of|"
    r"(?<![Tt]here )(is|are) no (?!longer\b|more\b|such\b)\w+)\b"
)
"""Words that messages, help and pages do not use."""

CODES = re.compile(r"\[?[\w/]*(-told|told-)[\w-]*|`[^`]*`|\$\{[^}]*\}")
"""Names of rules and of other things, which stay as they are."""


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of the strings with spaces in a module, but not of its docstrings."""
    docstring_places = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in docstring_places:
            continue
        if isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def written() -> Iterator[tuple[str, str]]:
    """Yield place and text of all that users read: messages, docstrings of commands (their help), pages."""
    for file in sorted((ROOT / "lima2cli").rglob("*.py")):
        tree = parsed(file)
        texts = [*messages(tree), *(docstrings(tree) if file.parent.name == "cli" else ())]
        yield from ((f"{file.relative_to(ROOT)}:{line}", text) for line, text in texts)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            yield f"{page.relative_to(ROOT)}:{number}", line


def old_words(text: str) -> list[str]:
    """Return the words in a text that are not to be used, outside of code."""
    return [match[0] for match in OLD.finditer(CODES.sub("", text))]


def test_users_read_plain_english() -> None:
    found = [f"{place}: {word}" for place, text in written() for word in old_words(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("it is none of lima2's", ["is none of"]),
        ("x.h5 is no master", ["is no master"]),
        ("there is no file x; [never-told] `told`", []),
        ("it is no longer open", []),
        ("mended by nobody", ["mended", "nobody"]),
    ],
)
def test_old_words_are_found(text: str, words: list[str]) -> None:
    assert old_words(text) == words
