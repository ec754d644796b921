"""Comments ``# lima2: ignore[rule, rule]``, which silence warnings of their line."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from lima2cli.diagnostics import Diagnostic, Findings
from lima2cli.document.places import Document, Span

_IGNORE = re.compile(r"(?<!\S)#\s*lima2:\s*ignore\[([^\]]*)\]")
_RULE = re.compile(r"[^\s,]+")


class _Ignore(NamedTuple):
    """A rule named by a comment, and where."""

    rule: str
    span: Span


def suppress(document: Document, findings: Findings) -> Findings:
    """The findings without the warnings that comments silence, and with a warning for each comment without effect.

    To be called once all checks are done. Errors cannot be silenced.
    """
    ignores = list(_ignores(document))
    if not ignores:
        return findings
    used: set[_Ignore] = set()
    left = Findings()
    for item in findings:
        place = document.locate(item)
        silenced = [
            ignore
            for ignore in ignores
            if item.severity == "warning" and place.override is None and ignore[0] == item.rule
            and ignore.span.line == place.span.line
        ]  # fmt: skip
        used.update(silenced)
        if not silenced:
            left.add(item)
    errors = {item.rule for item in findings if item.severity == "error"}
    for ignore in ignores:
        if ignore not in used:
            left.add(_unused(ignore, ignore.rule in errors))
    return left


def _unused(ignore: _Ignore, is_error: bool) -> Diagnostic:
    message = f"no warning `{ignore.rule}` is in this line" if ignore.rule else "this names no rule"
    notes = ("errors cannot be silenced",) if is_error else ()
    return Diagnostic("unused-ignore", message, severity="warning", notes=notes, help="remove it", span=ignore.span)


def _ignores(document: Document) -> Iterator[_Ignore]:
    for number, line in enumerate(document.lines, 1):
        if "lima2:" not in line:
            continue
        for comment in _IGNORE.finditer(line):
            if _in_text(document, number, comment.start() + 1):
                continue
            start = comment.start(1) + 1
            names = list(_RULE.finditer(comment[1]))
            for name in names:
                yield _Ignore(name[0], Span(number, start + name.start(), number, start + name.end()))
            if not names:
                yield _Ignore("", Span(number, comment.start() + 1, number, comment.end() + 1))


def _in_text(document: Document, line: int, column: int) -> bool:
    """Whether a place is within a text, where a ``#`` begins no comment."""
    for path, span in document.values.items():
        if path in document.overridden or isinstance(document.value(path), (dict, list)):
            continue
        head = document.lines[span.line - 1][span.column - 1 : span.column]
        in_head = head in ("|", ">") and span.line == line
        if span[:2] <= (line, column) < span[2:] and not in_head:
            return True
    return False
