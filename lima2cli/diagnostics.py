"""Mistakes in an input: one record for every check, similar names, and values that are known to be bad."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field
from difflib import get_close_matches
from typing import Any, Literal, NoReturn, TypedDict, TypeVar, Unpack

from lima2cli.dataclass import dataclass

KeyPath = tuple[str | int, ...]
Severity = Literal["error", "warning"]


LONGEST_TEXT = 800
"""Most characters of a message; a longer one, which quotes a huge value, keeps its beginning and end."""

MOST_MISTAKES = 1000
"""Most findings of each severity that are kept; more would be unused, and cost time to show."""


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT // 2]} … {text[-LONGEST_TEXT // 2 :]}"


@dataclass(frozen=True)
class Related:
    """A second place that explains the first, with a short label."""

    at: KeyPath
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
    at: KeyPath = ()
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
    """Fields that a check may give in addition to rule, message and place; see `Diagnostic`."""

    notes: Sequence[str]
    help: str | None
    related: Sequence[Related]
    on_key: bool


def _finding(severity: Severity, rule: str, message: str, at: KeyPath, more: More) -> Diagnostic:
    notes, related = tuple(more.get("notes", ())), tuple(more.get("related", ()))
    return Diagnostic(rule, message, at, severity, more.get("on_key", False), notes, more.get("help"), related)


@dataclass
class Findings:
    """Collector of diagnostics; stages add to it instead of raising, so that one pass finds all mistakes."""

    items: list[Diagnostic] = field(default_factory=list)
    _counts: Counter[str] = field(default_factory=Counter, init=False, repr=False, compare=False)

    def error(self, rule: str, message: str, at: KeyPath, **more: Unpack[More]) -> None:
        """Add an error at a path of the document."""
        self.add(_finding("error", rule, message, at, more))

    def warning(self, rule: str, message: str, at: KeyPath, **more: Unpack[More]) -> None:
        """Add a warning at a path of the document."""
        self.add(_finding("warning", rule, message, at, more))

    def add(self, diagnostic: Diagnostic) -> None:
        """Add a finding made elsewhere; of very many the rest is left out, and the last error says so."""
        count = self._counts[diagnostic.severity] = self._counts[diagnostic.severity] + 1
        if count == MOST_MISTAKES and diagnostic.severity == "error":
            message = f"there are {MOST_MISTAKES} mistakes: what follows is not shown"
            diagnostic = Diagnostic("too-many-mistakes", message, diagnostic.at, span=diagnostic.span)
        if count <= MOST_MISTAKES:
            self.items.append(diagnostic)

    @property
    def failed(self) -> bool:
        """Return True if any error was added."""
        return any(item.severity == "error" for item in self.items)

    def __iter__(self) -> Iterator[Diagnostic]:
        return iter(self.items)


NAME = r"^[A-Za-z][A-Za-z0-9_-]*$"
"""Pattern of names of flows, nodes, receivers, memspaces, datasets, regions of interest and the pipeline."""

TITLE = r"^[^\s:/]([^:/\n]*[^\s:/])?$"
"""Pattern of names of tests, which follow the name of a file."""

KNOWN_NAMES, LONGEST_WORD = 200, 100
"""Known names, and characters of a word, for which likeness is looked at; its cost grows with the product."""

HOST = r"^[A-Za-z0-9][A-Za-z0-9.-]*$"
"""Pattern of machines, by name or address."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name that ``word`` was probably meant to be, or None.

    Case is ignored first, so that ``ctr1`` finds ``CTR1``.
    """
    names = list(known)
    folded = {name.casefold(): name for name in reversed(names)}
    if (same := folded.get(word.casefold())) is not None:
        return same
    if len(names) > KNOWN_NAMES or len(word) > LONGEST_WORD:
        return None
    close = get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return help for a mistyped name: the nearest one, else all that are known, else None."""
    names = list(known)
    best = nearest(word, names)
    if best is not None and best != word:
        return f"did you mean `{best}`?"
    return f"known: {', '.join(names)}" if names else None


T = TypeVar("T")


class Poisoned(Exception):
    """Raised by a check that read a value reported before."""


class _Poison:
    """Stand-in for a value reported as wrong; raises on every use except identity."""

    def _raise(self, *_: object) -> NoReturn:
        raise Poisoned

    def __repr__(self) -> str:
        return "POISON"

    __getattr__ = __getitem__ = __call__ = __iter__ = __len__ = __contains__ = __bool__ = _raise
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __rfloordiv__ = _raise
    __truediv__ = __rtruediv__ = __mod__ = __rmod__ = __neg__ = __pos__ = __abs__ = _raise
    __pow__ = __rpow__ = __divmod__ = __rdivmod__ = __matmul__ = __rmatmul__ = __invert__ = _raise
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = (
        _raise
    )
    __round__ = __int__ = __float__ = __index__ = _raise
    __lt__ = __le__ = __gt__ = __ge__ = __str__ = __format__ = _raise
    __eq__ = __ne__ = _raise
    __hash__ = _raise


POISON: Any = _Poison()


def attempt(compute: Callable[[], T]) -> T:
    """Return ``compute()``, or ``POISON`` where it read a poisoned value."""
    try:
        return compute()
    except Poisoned:
        return POISON  # type: ignore[no-any-return]
