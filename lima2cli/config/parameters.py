"""Parameters of graphs: ``$(name)`` replaced by values, each of which keeps the place where it was written.

A text that is nothing but ``$(name)`` becomes the value itself, be it a number, a list or a map; within a longer text
the value is written out. Values are not looked through again.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lima2cli.config.templates import REFERENCE
from lima2cli.diagnostics import Path
from lima2cli.schema.keys import everything

_REFERENCE = re.compile(REFERENCE)


@dataclass(frozen=True)
class Copy:
    """A value that is put at another place.

    written  where its parts were written, by their paths below it: full paths of documents; the longest leading part
             of a path counts, so that ``()`` is always there
    bad      paths below it at which a mistake has been reported
    """

    value: Any
    written: Mapping[Path, Path]
    bad: frozenset[Path] = frozenset()


@dataclass
class Unfit:
    """Values that cannot stand within a text: where that text was written, and the name of the parameter."""

    found: list[tuple[Path, str]] = field(default_factory=list)


def references(value: Any) -> Iterator[tuple[Path, str]]:
    """The parameters named in the texts of a value, with the paths of these texts below it."""
    for at, text in everything(value):
        if isinstance(text, str) and "$(" in text:
            yield from ((at, name) for name in _REFERENCE.findall(text))


def fill(value: Any, at: Path, given: Mapping[str, Copy] | None, bad: Collection[Path], unfit: Unfit) -> Copy:
    """The value written at ``at``, with parameters replaced by what was given for them.

    Those not in ``given`` have been reported; where it is None there are none. ``bad`` are full paths of which a
    mistake is known.
    """
    written: dict[Path, Path] = {(): at}
    reported = {path[len(at) :] for path in bad if path[: len(at)] == at}

    def filled(part: Any, path: Path) -> Any:
        if isinstance(part, dict):
            return {key: filled(item, (*path, key)) for key, item in part.items()}
        if isinstance(part, list):
            return [filled(item, (*path, i)) for i, item in enumerate(part)]
        if not isinstance(part, str) or "$(" not in part or given is None:
            return part
        whole = _REFERENCE.fullmatch(part)
        if whole is not None and whole[1] in given:
            copy = given[whole[1]]
            written.update({(*path, *below): source for below, source in copy.written.items()})
            reported.update((*path, *below) for below in copy.bad)
            return copy.value
        return within(part, path)

    def within(text: str, path: Path) -> str:
        assert given is not None
        pieces, end = [], 0
        for found in _REFERENCE.finditer(text):
            copy = given.get(found[1])
            pieces.append(text[end : found.start()])
            end = found.end()
            if copy is None or copy.bad:
                reported.add(path)
            elif copy.value is None or isinstance(copy.value, (dict, list)):
                unfit.found.append(((*at, *path), found[1]))
                reported.add(path)
            else:
                pieces.append(_text(copy.value))
        return "".join([*pieces, text[end:]])

    return Copy(filled(value, ()), written, frozenset(reported))


def _text(value: Any) -> str:
    """A scalar as YAML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def size_of(value: Any, limit: int) -> int:
    """Number of values and characters in a value, counted up to ``limit``."""
    size = 0
    for _, part in everything(value):
        size += 1 + (len(part) if isinstance(part, str) else 0)
        if size > limit:
            break
    return size
