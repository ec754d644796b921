"""Comments ``# lima2: ignore[rule, rule]``, which silence warnings of their line."""

import re
from bisect import bisect_right
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

    To be called once all checks are done. Errors cannot be silenced. Of documents that parts were taken from, comments
    without effect are not told: what they silence may come of another use.
    """
    ignores = list(_ignores(document.original or document))
    others = [(other.file, ignore) for other in document.others.values() for ignore in _ignores(other)]
    if not ignores and not others:
        return findings
    named = {(file, ignore.rule, ignore.span.line) for file, ignore in others}
    named |= {(document.file, ignore.rule, ignore.span.line) for ignore in ignores}
    used: set[tuple[str, str, int]] = set()
    left = Findings()
    for item in findings:
        place = document.locate(item)
        here = (place.file, item.rule, place.span.line)
        if item.severity == "warning" and place.override is None and here in named:
            used.add(here)
        else:
            left.add(item)
    errors = {item.rule for item in findings if item.severity == "error"}
    for ignore in ignores:
        if (document.file, ignore.rule, ignore.span.line) not in used:
            left.add(_unused(ignore, ignore.rule in errors))
    return left


def _unused(ignore: _Ignore, is_error: bool) -> Diagnostic:
    message = f"no warning `{ignore.rule}` is in this line" if ignore.rule else "this names no rule"
    notes = ("errors cannot be silenced",) if is_error else ()
    return Diagnostic("unused-ignore", message, severity="warning", notes=notes, help="remove it", span=ignore.span)


def _ignores(document: Document) -> Iterator[_Ignore]:
    if "lima2:" not in document.text:
        return
    texts = _texts(document)
    for number, line in enumerate(document.lines, 1):
        for comment in _IGNORE.finditer(line):
            if _within(document, texts, number, comment.start() + 1):
                continue
            names = list(_RULE.finditer(comment[1]))
            for name in names:
                column = comment.start(1) + name.start() + 1
                yield _Ignore(name[0], Span(number, column, number, column + len(name[0])))
            if not names:
                yield _Ignore("", Span(number, comment.start() + 1, number, comment.end() + 1))


def _texts(document: Document) -> list[Span]:
    """Places of keys and scalars, in order; they do not overlap."""
    scalars = {
        span
        for path, span in document.values.items()
        if path not in document.overridden and not isinstance(document.value(path), (dict, list))
    }
    return sorted(scalars | {span for path, span in document.keys.items() if path not in document.overridden})


def _within(document: Document, texts: list[Span], line: int, column: int) -> bool:
    """Whether a place is within a text, where a ``#`` begins no comment."""
    before = bisect_right(texts, (line, column, 1 << 62, 0)) - 1
    if before < 0:
        return False
    span = texts[before]
    head = document.lines[span.line - 1][span.column - 1 : span.column]
    in_head = head in ("|", ">") and span.line == line  # of a block scalar, where comments may be
    return (line, column) < span[2:] and not in_head
