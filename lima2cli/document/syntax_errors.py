"""Explain a YAML parser's error to users, at the place where the mistake is.

A parser notices an unclosed bracket or quote lines later; it is reported here at the bracket or quote. Both parsers of
PyYAML are understood: they agree on the marks, and on the few words that are looked at.
"""

import re
from collections.abc import Callable, Iterator

import yaml

from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import Diagnostic
from lima2cli.document.places import Source, Span

CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Pattern of characters that YAML does not allow."""

_DELIMITER = re.compile(
    r"""(?<![^\s,\[{:(-])"(?:\\.|[^"\\])*"?"""  # double-quoted text, perhaps unclosed
    r"""|(?<![^\s,\[{:(-])'(?:''|[^'])*'?"""
    r"""|(?<!\S)\#[^\n]*"""
    r"""|[\[\]{}]""",
    re.DOTALL,
)
_CLOSERS = {"[": "]", "{": "}"}


@dataclass(frozen=True)
class Trouble:
    """An error of the parser: its message, its place (``at``) and where its context began (``since``), as indices."""

    text: str
    problem: str
    context: str
    at: int
    since: int | None

    @property
    def char(self) -> str:
        """Return the character at which the parser gave up; empty at the end."""
        return self.text[self.at : self.at + 1]

    @property
    def opener(self) -> str:
        """Return the character that began what could not be read; empty if unknown."""
        return "" if self.since is None else self.text[self.since : self.since + 1]


_Finding = tuple[str, int, int, str | None]
"""Message, first character, number of characters, help."""


def explain(source: Source, error: yaml.YAMLError) -> Diagnostic:
    """Return the one diagnostic ``yaml-syntax`` for an error of the parser."""
    trouble = trouble_of(source, error)
    finding = next(answer for look in _LOOKS if (answer := look(trouble)) is not None)
    message, first, count, help = finding
    noticed = source.position(trouble.at)[0]
    notes = (f"the parser stopped in line {noticed}",) if noticed > source.position(first)[0] else ()
    return syntax_error(source, message, first, count, notes=notes, help=help)


def trouble_of(source: Source, error: yaml.YAMLError) -> Trouble:
    """Return an error of the parser with its places as indices in the string."""

    def index(mark: yaml.Mark | None) -> int | None:
        return None if mark is None else source.index(mark.line + 1, mark.column + 1)

    if not isinstance(error, yaml.MarkedYAMLError):
        return Trouble(source.text, str(error), "", 0, None)
    at, since = index(error.problem_mark) or 0, index(error.context_mark)
    return Trouble(source.text, error.problem or "", error.context or "", at, since)


def nested_beyond(text: str, first: int, last: int, limit: int, *, in_flow: bool) -> int | None:
    """Return the index of the bracket that opens more than ``limit`` levels between two indices; None where none does.

    ``in_flow``: True if ``first`` is within brackets. Outside of them a bracket opens only where a value begins.
    """
    levels = 0
    for match in _DELIMITER.finditer(text, first, last):
        bracket, before = match[0], text[max(match.start() - 1, 0) : match.start()]
        if bracket in _CLOSERS and (in_flow or levels > 0 or not before.strip()):
            levels += 1
            if levels > limit:
                return match.start()
        elif bracket in ("]", "}") and (in_flow or levels > 0):
            levels -= 1
    return None


def syntax_error(
    source: Source, message: str, first: int, count: int = 1, *, notes: tuple[str, ...] = (), help: str | None = None
) -> Diagnostic:
    """Return a diagnostic ``yaml-syntax`` at ``count`` characters from the ``first``."""
    line, column = source.position(first)
    end = min(column + count, len(source.lines[line - 1]) + 1)
    span = Span(line, column, line, max(column, end))
    return Diagnostic("yaml-syntax", message, notes=notes, help=help, span=span)


def _tab(trouble: Trouble) -> _Finding | None:
    start = trouble.text.rfind("\n", 0, trouble.at) + 1
    indentation = re.match(r"[ \t]*", trouble.text[start:])
    assert indentation is not None
    if "\t" not in indentation[0] or trouble.at > start + len(indentation[0]):
        return None
    first = start + indentation[0].index("\t")
    return "a tab cannot indent in YAML", first, 1, "indent with spaces"


def _quote(trouble: Trouble) -> _Finding | None:
    """Find a quote that is never closed, or closed by one that was meant to open, lines below."""
    if trouble.opener in ("'", '"') and "quoted scalar" in trouble.context and "escape" not in trouble.problem:
        assert trouble.since is not None
        return f"this `{trouble.opener}` is not closed", trouble.since, 1, f"close it with `{trouble.opener}`"
    for match in _delimiters(trouble.text, trouble.at):
        quoted = match[0]
        if quoted[0] in "'\"" and "\n" in quoted and trouble.text.find("\n", match.end(), trouble.at) < 0:
            return f"this `{quoted[0]}` is not closed on its line", match.start(), 1, f"close it with `{quoted[0]}`"
    return None


def _variable(trouble: Trouble) -> _Finding | None:
    if trouble.char != "{" or trouble.text[trouble.at - 1 : trouble.at] != "$":
        return None
    end = trouble.text.find("}", trouble.at)
    count = end - trouble.at + 2 if end >= 0 else 2
    return "within brackets, `${...}` must be quoted", trouble.at - 1, count, 'write "${...}"'


def _bracket(trouble: Trouble) -> _Finding | None:
    if trouble.opener not in _CLOSERS or not trouble.context.startswith("while parsing a flow "):
        return None
    assert trouble.since is not None
    closer = _CLOSERS[trouble.opener]
    if trouble.char in ("]", "}") and trouble.char != closer:
        return f"this `{trouble.opener}` is not closed before the `{trouble.char}`", trouble.since, 1, f"add `{closer}`"
    if not _balanced(trouble.text):
        return f"this `{trouble.opener}` is not closed", trouble.since, 1, f"close it with `{closer}`"
    if trouble.char == ",":
        return "there is nothing before this `,`", trouble.at, 1, None
    return (
        f"`,` or `{closer}` is expected before this",
        trouble.at,
        1,
        "quote a string that contains `: `, `,` or brackets",
    )


def _stray_closer(trouble: Trouble) -> _Finding | None:
    if trouble.char not in ("]", "}") or not trouble.char:
        return None
    return f"this `{trouble.char}` has no matching opening bracket", trouble.at, 1, "remove it, or quote the string"


def _colon(trouble: Trouble) -> _Finding | None:
    if "could not find expected ':'" in trouble.problem and trouble.since is not None:
        line = re.compile(r"[^\n\r#]*").match(trouble.text, trouble.since)
        assert line is not None
        return "a `:` is missing after this key", trouble.since, len(line[0].rstrip()), "`key: value`"
    if "mapping values are not allowed" not in trouble.problem:
        return None
    before = trouble.text[: trouble.at].rstrip().splitlines()[-2:]
    glued = next((found for line in before[:-1] if (found := re.match(r"\s*[\w-]+:(?=[^\s/:])", line))), None)
    help = "quote a string that contains `: `; indent all keys of a mapping alike"
    if glued is not None:
        help = f"a space is missing after `{glued[0].strip()}` in the line above"
    return "a `:` cannot stand here", trouble.at, 1, help


def _first_character(trouble: Trouble) -> _Finding | None:
    if "alphabetic or numeric" in trouble.problem and trouble.since is not None:
        what = "an alias" if trouble.opener == "*" else "an anchor"
        return f"`{trouble.opener}` begins {what}, and no name follows", trouble.since, 1, "quote it if it is a string"
    if "cannot start any token" in trouble.problem:
        char = "a backtick" if trouble.char == "`" else f"`{trouble.char}`"
        return f"a string cannot begin with {char}", trouble.at, 1, "quote it"
    if "escape" in trouble.problem:
        backslash = trouble.text.find("\\", max(trouble.at - 1, 0))
        help = "write `\\\\` for a backslash, or use single quotes"
        return f"`{trouble.text[backslash : backslash + 2]}` is not an escape sequence", backslash, 2, help
    return None


def _block(trouble: Trouble) -> _Finding | None:
    """Find lines that do not fit the lines above."""
    if "entries are not allowed" in trouble.problem:
        return "a list item cannot begin here", trouble.at, 1, "begin it on a line of its own, or write `[a, b]`"
    if "node content" in trouble.problem:
        return "a value is expected before this", trouble.at, 1, "remove it, or quote it if it is a string"
    if trouble.context.startswith("while parsing a block "):
        start = trouble.text.rfind("\n", 0, trouble.at) + 1
        if trouble.text[start : trouble.at].strip():
            help = "quote the whole string; a `'` within single quotes is written `''`"
            return "this follows a value that has ended", trouble.at, 1, help
        if trouble.char == "-" and "mapping" in trouble.context:
            return (
                "this list item is in the middle of a mapping",
                trouble.at,
                1,
                "a mapping has keys only: check the indentation",
            )
        if "collection" in trouble.context:
            return "a `-` is expected here, for the next item of the list", trouble.at, 1, "check the indentation"
        return "the indentation matches no mapping above", trouble.at, 1, "indent all keys of a mapping alike"
    if "<document start>" in trouble.problem:
        return "the document has ended before this", trouble.at, 1, "a pipeline is one mapping at the top level"
    return None


def _other(trouble: Trouble) -> _Finding:
    return f"this is not YAML ({trouble.problem.splitlines()[0]})", trouble.at, 1, None


_LOOKS: tuple[Callable[[Trouble], _Finding | None], ...] = (
    _tab, _quote, _variable, _bracket, _stray_closer, _colon, _first_character, _block, _other,
)  # fmt: skip


def _delimiters(text: str, end: int | None = None) -> Iterator[re.Match[str]]:
    """Yield quoted strings, comments and brackets."""
    return _DELIMITER.finditer(text, 0, len(text) if end is None else end)


def _balanced(text: str) -> bool:
    """Return True if every bracket of a string is closed, by one of its kind."""
    stack: list[str] = []
    for match in _delimiters(text):
        bracket = match[0]
        if bracket in _CLOSERS:
            stack.append(_CLOSERS[bracket])
        elif bracket in ("]", "}") and (not stack or stack.pop() != bracket):
            return False
    return not stack
