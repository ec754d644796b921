"""How one plan differs from another, both as plain data."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """A value that is not the same; ``old`` and ``new`` are JSON texts, None where there is nothing.

    ``path`` is a JSON pointer: ``/gdts/FullDet1/slots``.
    """

    path: str
    old: str | None
    new: str | None

    def __str__(self) -> str:
        if self.old is None:
            return f"{self.path}: added, {self.new}"
        return f"{self.path}: removed, {self.old}" if self.new is None else f"{self.path}: {self.old} → {self.new}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Difference, ...]:
    """All of them, in the order of the new plan, what is gone last. Lists are compared item by item."""
    return tuple(_differences("", json.loads(json.dumps(old)), json.loads(json.dumps(new))))


def _differences(path: str, old: Any, new: Any) -> Iterator[Difference]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (*new, *(key for key in old if key not in new)):
            place = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            if key not in old:
                yield Difference(place, None, _text(new[key]))
            elif key not in new:
                yield Difference(place, _text(old[key]), None)
            else:
                yield from _differences(place, old[key], new[key])
    elif isinstance(old, list) and isinstance(new, list):
        yield from _differences(path, _numbered(old), _numbered(new))
    elif _text(old) != _text(new):  # as text: NaN is what it was
        yield Difference(path, _text(old), _text(new))


def _numbered(items: list[Any]) -> dict[str, Any]:
    """Items by name where they have one, so that one more does not shift the others; else by place."""
    named = {str(item["name"]): item for item in items if isinstance(item, dict) and "name" in item}
    if len(named) == len(items):
        return named
    return {str(place): item for place, item in enumerate(items)}


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
