"""Hide secret values in files and messages: those of variables that a pipeline marks as secret (``${NAME!}``).

A secret is known to each process that has it: where one is made, and where a plan that holds one is unpickled. All text
that is written or printed passes `hide` or `hidden`, which put ``***`` in the place of all of them.
"""

from typing import Any, Self

HIDDEN = "***"

SHORTEST = 4
"""Fewest characters of a secret: a shorter one could not be distinguished from other text."""

_known: set[str] = set()


class Secret(str):
    """A string with secret values in it.

    shown    the string with ``***`` for these;  values   the secrets
    written  the string as a pipeline has it, with references to variables for these
    """

    shown: str
    values: tuple[str, ...]
    written: str

    def __new__(cls, text: str, shown: str, values: tuple[str, ...], written: str = "") -> Self:
        """Make it, and remember its values in this process."""
        made = super().__new__(cls, text)
        made.shown, made.values, made.written = shown, values, written or shown
        _known.update(value for value in values if len(value) >= SHORTEST)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the values with the string, so that other ranks hide them, too."""
        return (type(self), (str(self), self.shown, self.values, self.written))


def known() -> bool:
    """Return True if this process has any secret."""
    return bool(_known)


def hide(text: str) -> str:
    """Return a string with ``***`` for all secrets that this process has."""
    if isinstance(text, Secret):
        text = text.shown
    for value in sorted(_known, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def hidden(data: Any) -> Any:
    """Return plain data with `hide` applied to all strings but keys."""
    if not _known and not isinstance(data, Secret):
        return data
    if isinstance(data, str):
        return hide(data)
    if isinstance(data, dict):
        return {key: hidden(value) for key, value in data.items()}
    return [hidden(value) for value in data] if isinstance(data, list | tuple) else data
