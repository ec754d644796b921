"""What is wrong with an input, where, and how to mend it: one record for every check.

A diagnostic names a place by its path in the document (``("flows", "FullDet1", "buffers", "size")``).
Lines and columns are looked up when it is shown, so that checks need not carry them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict, Unpack

Path = tuple[str | int, ...]
Severity = Literal["error", "warning"]


LONGEST = 800
"""Characters of a message; of a longer one, which quotes a huge value, beginning and end are kept."""

MOST = 1000
"""Findings of each severity that are kept; more would be read by nobody, and cost time to show."""


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


@dataclass(frozen=True)
class Related:
    """A second place that explains the first, with a short label."""

    at: Path
    label: str


@dataclass(frozen=True)
class Diagnostic:
    """One finding.

    rule      kebab-case name, stable
    at        path in the document; the nearest existing ancestor is shown where it is absent (a default)
    on_key    the place is the key rather than its value
    notes     facts that explain, one sentence each
    help      the cure, if we know one
    span      (line, column, end_line, end_column), from 1, where the document has no path (syntax errors)
    """

    rule: str
    message: str
    at: Path = ()
    severity: Severity = "error"
    on_key: bool = False
    notes: tuple[str, ...] = ()
    help: str | None = None
    related: tuple[Related, ...] = ()
    span: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", _short(self.message))
        object.__setattr__(self, "notes", tuple(_short(note) for note in self.notes))
        object.__setattr__(self, "help", None if self.help is None else _short(self.help))


class More(TypedDict, total=False):
    """What a check may add to rule, message and place; see `Diagnostic`."""

    notes: Sequence[str]
    help: str | None
    related: Sequence[Related]
    on_key: bool


def _finding(severity: Severity, rule: str, message: str, at: Path, more: More) -> Diagnostic:
    notes, related = tuple(more.get("notes", ())), tuple(more.get("related", ()))
    return Diagnostic(rule, message, at, severity, more.get("on_key", False), notes, more.get("help"), related)


@dataclass
class Findings:
    """Collects diagnostics; stages add to it instead of raising, so that one pass finds all mistakes."""

    items: list[Diagnostic] = field(default_factory=list)
    _counts: Counter[str] = field(default_factory=Counter, init=False, repr=False, compare=False)

    def error(self, rule: str, message: str, at: Path, **more: Unpack[More]) -> None:
        """Add an error at a path of the document."""
        self.add(_finding("error", rule, message, at, more))

    def warning(self, rule: str, message: str, at: Path, **more: Unpack[More]) -> None:
        """Add a warning at a path of the document."""
        self.add(_finding("warning", rule, message, at, more))

    def add(self, diagnostic: Diagnostic) -> None:
        """Add a finding made elsewhere; of very many the rest is left out, and the last error says so."""
        count = self._counts[diagnostic.severity] = self._counts[diagnostic.severity] + 1
        if count == MOST and diagnostic.severity == "error":
            message = f"there are {MOST} mistakes: what follows is not shown"
            diagnostic = Diagnostic("too-many-mistakes", message, diagnostic.at, span=diagnostic.span)
        if count <= MOST:
            self.items.append(diagnostic)

    @property
    def failed(self) -> bool:
        """Whether any error was found."""
        return any(item.severity == "error" for item in self.items)

    def __iter__(self) -> Iterator[Diagnostic]:
        return iter(self.items)
