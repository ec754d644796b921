"""Names that users give, and the nearest name to one that they mistyped."""

from collections.abc import Iterable
from difflib import get_close_matches

NAME = r"^[A-Za-z][A-Za-z0-9_-]*$"
"""Flows, nodes, receivers, memspaces, datasets, regions of interest and the pipeline."""

MOST, LONGEST = 200, 100
"""Known names, and characters of a word, for which likeness is looked at; its cost grows with the product."""

HOST = r"^[A-Za-z0-9][A-Za-z0-9.-]*$"
"""Machines, by name or address."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that ``word`` was probably meant to be, or None.

    Case is ignored first, so that ``ctr1`` finds ``CTR1``.
    """
    names = list(known)
    folded = {name.casefold(): name for name in reversed(names)}
    if (same := folded.get(word.casefold())) is not None:
        return same
    if len(names) > MOST or len(word) > LONGEST:
        return None
    close = get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Help text for a mistyped name: the nearest one, else all that are known, else None."""
    names = list(known)
    best = nearest(word, names)
    if best is not None and best != word:
        return f"did you mean `{best}`?"
    return f"known: {', '.join(names)}" if names else None
