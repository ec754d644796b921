"""Show diagnostics to people and programs, without those that comments ``# lima2: ignore[rule]`` silence."""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from unicodedata import east_asian_width

from lima2cli.diagnostics import Diagnostic, Findings, KeyPath, Related
from lima2cli.document.places import START, Document, Place, Source, Span

_WIDTH = 120
"""Number of characters shown of a source line; of a longer one, those around the place."""

LONGEST_OVERRIDE = 80
"""Number of characters of a value of ``--set`` up to which it is shown whole."""

_NOWHERE = Source("-", "")
_COLORS = {"error": "1;31", "warning": "1;33", "gutter": "34", "bold": "1"}

Paint = Callable[[str, str], str]


class _Shown(NamedTuple):
    """A diagnostic and its place."""

    item: Diagnostic
    place: Place


def show_text(source: Source | None, diagnostics: Iterable[Diagnostic], color: bool = False) -> str:
    """Return text for people: each diagnostic with its source lines, then the count; empty where there is none.

    ``source``: the document, or the text from which none could be read.
    """
    source = source or _NOWHERE
    shown = _arrange(source, diagnostics)
    if not shown:
        return ""

    def paint(text: str, style: str) -> str:
        return f"\x1b[{_COLORS[style]}m{text}\x1b[0m" if color else text

    blocks = ["\n".join(_block(source, one, paint)) for one in shown]
    return "\n\n".join([*blocks, _summary(source, shown)]) + "\n"


def show_concise(source: Source | None, diagnostics: Iterable[Diagnostic]) -> str:
    """Return one line for each diagnostic: ``file:line:column: error[rule]: message``."""
    lines = []
    for item, place in _arrange(source or _NOWHERE, diagnostics):
        where = named(place)
        lines.append(f"{_clean(where)}: {item.severity}[{item.rule}]: {_clean(item.message)}\n")
    return "".join(lines)


def show_json(source: Source | None, diagnostics: Iterable[Diagnostic]) -> str:
    """Return ``{"version": 1, "diagnostics": [...]}``; lines and columns from 1, paths as JSON pointers (RFC 6901).

    A diagnostic from the command line has the file ``--set``, and its column counts within the override.
    """
    return json.dumps({"version": 1, "diagnostics": _entries(source, diagnostics)}, indent=2)


def show_events(source: Source | None, diagnostics: Iterable[Diagnostic]) -> str:
    """Return the diagnostics as events of a run, one JSON object a line; ``type`` is error, or event if it goes on."""
    lines = []
    for item in _entries(source, diagnostics):
        if item["severity"] == "error":
            event = {"type": "error", **item}
        else:
            event = {"type": "event", "event": "warning", **item, "message": f"warning: {item['message']}"}
        lines.append(json.dumps(event) + "\n")
    return "".join(lines)


def _entries(source: Source | None, diagnostics: Iterable[Diagnostic]) -> list[dict[str, Any]]:
    source = source or _NOWHERE
    entries = []
    for item, place in _arrange(source, diagnostics):
        related = []
        for other in _all_related(source, item):
            there = _related(source, other.at)
            related.append(f"{other.label}: {there.file}:{there.span.line}:{there.span.column}")
        override = [] if place.override is None else [f"from --set {place.override}"]
        entries.append(
            {
                "rule": item.rule,
                "severity": item.severity,
                "message": item.message,
                "file": place.file,
                "line": place.span.line,
                "column": place.span.column,
                "path": pointer(source, item),
                "notes": [*item.notes, *related, *override],
                "help": item.help,
            }
        )
    return entries


def show_github(source: Source | None, diagnostics: Iterable[Diagnostic]) -> str:
    """Return workflow commands of GitHub Actions, which annotate the lines of a change."""
    lines = []
    for item, place in _arrange(source or _NOWHERE, diagnostics):
        span, message = place.span, _message(item, place)
        text = "\n".join([message, *item.notes, *([f"help: {item.help}"] if item.help else [])])
        where = {"file": place.file, "line": span.line, "col": span.column, "endLine": span.end_line,
                 "endColumn": span.end_column, "title": item.rule}  # fmt: skip
        properties = ",".join(f"{key}={_escape(str(value), ':,')}" for key, value in where.items())
        lines.append(f"::{item.severity} {properties}::{_escape(text)}\n")
    return "".join(lines)


def show_sarif(source: Source | None, diagnostics: Iterable[Diagnostic]) -> str:
    """Return SARIF 2.1.0 (OASIS), for code-scanning services."""
    from urllib.parse import quote  # costs milliseconds of every start otherwise

    shown = _arrange(source or _NOWHERE, diagnostics)
    results = []
    for item, place in shown:
        span, text = place.span, _message(item, place)
        region = {"startLine": span.line, "startColumn": span.column, "endLine": span.end_line,
                  "endColumn": span.end_column}  # fmt: skip
        location = {"artifactLocation": {"uri": quote(place.file)}, "region": region}
        results.append(
            {
                "ruleId": item.rule,
                "level": item.severity,
                "message": {"text": "\n".join([text, *item.notes, *([f"help: {item.help}"] if item.help else [])])},
                "locations": [{"physicalLocation": location}],
            }
        )
    driver = {"name": "lima2", "rules": [{"id": rule} for rule in sorted({one.item.rule for one in shown})]}
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    log = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2)


def named(place: Place) -> str:
    """Return a place in words."""
    override = place.override
    if override is not None:
        return f"--set {override if len(override) <= LONGEST_OVERRIDE else override[: LONGEST_OVERRIDE - 1] + '…'}"
    return f"{place.file}:{place.span.line}:{place.span.column}"


def _message(item: Diagnostic, place: Place) -> str:
    return item.message if place.override is None else f"{item.message} (--set {place.override})"


def _escape(text: str, more: str = "") -> str:
    return "".join(f"%{ord(char):02X}" if char in "%\r\n" + more else char for char in text)


def _arrange(source: Source, diagnostics: Iterable[Diagnostic]) -> list[_Shown]:
    """Return the diagnostics in file order, those of the command line last; each mistake once despite aliases."""
    shown: dict[tuple[object, ...], _Shown] = {}
    for item in diagnostics:
        place = _locate(source, item)
        shown.setdefault((item.rule, item.severity, item.message, place), _Shown(item, place))
    files = {source.file: 0}
    for one in shown.values():
        files.setdefault(one.place.file, len(files))
    return sorted(
        shown.values(),
        key=lambda one: (one.place.override is not None, files[one.place.file], one.place.span[:2]),
    )


def _locate(source: Source, item: Diagnostic) -> Place:
    if isinstance(source, Document):
        return source.locate(item)
    return Place(source, START if item.span is None else Span(*item.span))


def pointer(source: Source, item: Diagnostic) -> str:
    """Return the path as a JSON pointer; empty for the whole document, and for an override that was not applied."""
    at = source.written(item.at, item.on_key) if isinstance(source, Document) else item.at
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in at)


def _all_related(source: Source, item: Diagnostic) -> tuple[Related, ...]:
    return source.related(item) if isinstance(source, Document) else item.related


def _related(source: Source, path: KeyPath) -> Place:
    return source.second_place(path) if isinstance(source, Document) else Place(source, START)


def _block(source: Source, shown: _Shown, paint: Paint) -> list[str]:
    """Return the lines of one diagnostic."""
    item, place = shown
    others = [(_related(source, other.at), other.label) for other in _all_related(source, item)]
    numbers = [there.span.line for there in (place, *(there for there, _ in others)) if there.override is None]
    margin = " " * len(str(max(numbers, default=1)))
    path = _clean(pointer(source, item))
    lines = [
        paint(f"{item.severity}[{item.rule}]", item.severity) + paint(f": {_clean(item.message)}", "bold"),
        f"{margin}{paint('-->', 'gutter')} {_clean(named(place))}" + (f"  at {path}" if path else ""),
    ]
    bar = f"{margin} {paint('|', 'gutter')}"
    if place.override is None and place.span.line <= len(place.source.lines) and place.source.text:
        lines += [bar, *_excerpt(place, "^", "", item.severity, margin, paint)]
    for there, label in others:
        elsewhere = there.override is None and there.file != place.file
        where = f" {_clean(there.file)}:{there.span.line}:{there.span.column}" if elsewhere else ""
        lines.append(f"{margin} {paint(':' * (3 if elsewhere else 1), 'gutter')}{where}")
        if there.override is None:
            lines += _excerpt(there, "-", f" {_clean(label)}", "gutter", margin, paint)
        else:
            lines.append(f"{margin} {paint('=', 'gutter')} {_clean(label)}: --set {_clean(there.override)}")
    lines += [f"{margin} {paint('=', 'gutter')} {paint('note', 'bold')}: {_clean(note)}" for note in item.notes]
    if item.help:
        lines.append(f"{margin} {paint('=', 'gutter')} {paint('help', 'bold')}: {_clean(item.help)}")
    return lines


def _excerpt(place: Place, mark: str, label: str, style: str, margin: str, paint: Paint) -> list[str]:
    """Return a source line, and marks under the part of the place that is in it."""
    span = place.span
    line = place.source.lines[span.line - 1]
    start = min(span.column - 1, len(line))
    end = span.end_column - 1 if span.end_line == span.line else len(line.rstrip())
    end = max(min(end, len(line)), start)
    if len(line) > _WIDTH:
        line, start, end = _window(line, start, end)
    number = paint(f"{span.line:>{len(margin)}}", "gutter")
    marks = mark * max(1, _columns(line[start:end]))
    under = " " * _columns(line[:start]) + paint(marks + label, style)
    bar = paint("|", "gutter")
    return [f"{number} {bar} {_clean(line)}".rstrip(), f"{margin} {bar} {under}"]


def _window(line: str, start: int, end: int) -> tuple[str, int, int]:
    """Return a piece of a long line around a place, and the place within the piece."""
    first = max(0, min(start - _WIDTH // 4, len(line) - _WIDTH))
    last = min(len(line), first + _WIDTH)
    before, after = "…" * (first > 0), "…" * (last < len(line))
    shift = first - len(before)
    return before + line[first:last] + after, start - shift, min(end, last) - shift


def _clean(text: str) -> str:
    """Remove characters that move a terminal's cursor, change its colours or its direction of writing."""
    return "".join(
        char if char.isprintable() else " " if char in "\t\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def _columns(text: str) -> int:
    """Return the number of terminal columns that a string takes."""
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)


def _summary(source: Source, shown: list[_Shown]) -> str:
    """Return the counts and files, ``2 errors, 1 warning in maze.yaml``."""
    counts = []
    for severity in ("error", "warning"):
        count = sum(one.item.severity == severity for one in shown)
        if count:
            counts.append(f"{count} {severity}{'s' * (count > 1)}")
    files = dict.fromkeys(one.place.file for one in shown if one.place.override is None) or {source.file: None}
    *others, last = map(_clean, files)
    return f"{', '.join(counts)} in {', '.join(others)}{' and ' * bool(others)}{last}"


_IGNORE = re.compile(r"(?<!\S)#\s*lima2:\s*ignore\[([^\]]*)\]")
_RULE = re.compile(r"[^\s,]+")


class _Ignore(NamedTuple):
    """A rule named by a comment, and the place of the comment."""

    rule: str
    span: Span


def suppress(document: Document, findings: Findings) -> Findings:
    """Return the findings without the warnings that comments silence, and with a warning for each unused comment.

    To be called once all checks are done. Errors cannot be silenced. In documents that parts were taken from, unused
    comments are not reported: they may silence a warning of another use.
    """
    ignores = list(_ignores(document))
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
    message = f"this line has no warning `{ignore.rule}`" if ignore.rule else "no rule is named"
    notes = ("errors cannot be silenced",) if is_error else ()
    return Diagnostic("unused-ignore", message, severity="warning", notes=notes, help="remove it", span=ignore.span)


def _ignores(document: Document) -> Iterator[_Ignore]:
    if "lima2:" not in document.text:
        return
    scalars = document.scalars()
    for number, line in enumerate(document.lines, 1):
        for comment in _IGNORE.finditer(line):
            if _within(document, scalars, number, comment.start() + 1):
                continue
            names = list(_RULE.finditer(comment[1]))
            for name in names:
                column = comment.start(1) + name.start() + 1
                yield _Ignore(name[0], Span(number, column, number, column + len(name[0])))
            if not names:
                yield _Ignore("", Span(number, comment.start() + 1, number, comment.end() + 1))


def _within(document: Document, scalars: list[Span], line: int, column: int) -> bool:
    """Return True if a place is within a scalar, where a ``#`` begins no comment."""
    before = bisect_right(scalars, (line, column, 1 << 62, 0)) - 1
    if before < 0:
        return False
    span = scalars[before]
    head = document.lines[span.line - 1][span.column - 1 : span.column]
    in_head = head in ("|", ">") and span.line == line  # of a block scalar, where comments may be
    return (line, column) < span[2:] and not in_head
