"""What is wrong with the keys of a map: unknown, missing, not of this version, no kind or two of them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lima2cli.declare import Schema
from lima2cli.diagnostics import Diagnostic, Path, Related
from lima2cli.names import did_you_mean, nearest


def check_keys(data: Mapping[Any, Any], schema: Schema, at: Path) -> tuple[list[Diagnostic], set[Path]]:
    """Diagnostics, and the paths whose values must not be read.

    A key that was meant to be another one is reported once: the other is then neither missing nor default.
    """
    keys = _Keys(schema, data)
    found: list[Diagnostic] = []
    bad: set[Path] = set()
    missing = dict.fromkeys(key for key in [*schema.get("required", ()), *keys.wanted] if key not in data)
    unknown = [key for key in data if key not in schema.get("properties", {})]
    for key in unknown:
        meant = nearest(str(key), missing) or (None if key in keys.later else nearest(str(key), keys.free))
        bad.add((*at, key))
        if meant is not None:
            missing.pop(meant, None)
            bad.add((*at, meant))
        found.append(_later(key, at) if key in keys.later else _unknown(key, meant, keys, at))
    for key in keys.unwanted:
        bad.add((*at, key))
        bad.update((*at, wanted) for wanted in keys.wanted)
        missing = {name: None for name in missing if name not in keys.wanted}
        found.append(_unwanted(key, keys, at))
    for key in missing:
        bad.add((*at, key))
        found.append(_missing(key, schema, at))
    kind_is_unknown = any(item.rule in ("unknown-kind", "not-available") for item in found)
    if len(keys.present) > 1:
        bad.update((*at, kind) for kind in keys.present)
        found.append(_several(keys, at))
    elif keys.kinds and not keys.present and not kind_is_unknown:
        found.append(_none(keys, at))
    return found, bad


class _Keys:
    """The keys of one map: which are kinds, which of those are present, which allowed ones are absent."""

    def __init__(self, schema: Schema, data: Mapping[Any, Any]) -> None:
        self.allowed: Mapping[str, Schema] = schema.get("properties", {})
        allowed = list(self.allowed)
        self.data = data
        self.what: str | None = schema.get("x-kind")
        self.later = schema.get("x-later", [])
        self.kinds = [key for key in allowed if key not in schema.get("x-beside", [])] if self.what else []
        self.present = [key for key in data if key in self.kinds]
        self.wanted, self.unwanted = self._beside(schema, data)
        absent = [key for key in allowed if key not in data]
        self.free = [key for key in absent if key not in self.kinds] if self.present else absent

    def _beside(self, schema: Schema, data: Mapping[Any, Any]) -> tuple[list[str], list[str]]:
        """Of the keys beside a kind those that it needs, and those there that it does not take; one of any without."""
        beside = schema.get("x-beside", [])
        wanted = [key for kind in self.present for key in schema.get("dependentRequired", {}).get(kind, ())]
        joins = any(kind in schema.get("x-joins", ()) for kind in self.present)
        if not wanted and joins and all(key in data for key in beside):
            wanted = ["inputs"]
        if not wanted:
            return beside[: not any(key in data for key in beside)], []
        return wanted, [key for key in beside if key in data and key not in wanted]


def _unwanted(key: str, keys: _Keys, at: Path) -> Diagnostic:
    kind, wanted = keys.present[0], keys.wanted[0]
    message = f"`{kind}` takes `{wanted}`, not `{key}`"
    return Diagnostic("wrong-input", message, (*at, key), on_key=True, help=_WIRED.get(wanted))


_WIRED = {"input": "it reads one flow or node", "inputs": "it reads flows or nodes by name: `inputs: {a: …, b: …}`"}


def _unknown(key: Any, meant: str | None, keys: _Keys, at: Path) -> Diagnostic:
    slip = _slip(key, keys)
    if keys.what and not keys.present and (meant is None or meant in keys.kinds):
        message = f"there is no {keys.what} of kind `{key}`"
        help = slip or did_you_mean(str(key), [meant] if meant else keys.kinds)
        return Diagnostic("unknown-kind", message, (*at, key), on_key=True, help=help)
    help = slip or did_you_mean(str(key), [meant] if meant else keys.free)
    return Diagnostic("unknown-key", f"`{key}` is not a key of {_place(at)}", (*at, key), on_key=True, help=help)


def _slip(key: Any, keys: _Keys) -> str | None:
    """The typical mistakes behind a key that is not known."""
    value, name, colon, rest = keys.data[key], *str(key).partition(":")
    if value is None and re.fullmatch(r"[0-9]+\s*(%|[^\W\d_]*)", str(key)):
        return "a comma ends the value before it: write decimals with a point"
    if value is None and colon and name in keys.allowed:
        return f"a space is missing: `{name}: {rest.strip()}`"
    if key == "type" and isinstance(value, str) and value in keys.kinds:
        return f"the kind is the key: `{value}: {{…}}`"
    inside = [kind for kind in keys.present if key in keys.allowed[kind].get("properties", {})]
    return f"it is a key of `{inside[0]}`: `{inside[0]}: {{{key}: …}}`" if inside else None


def _later(key: str, at: Path) -> Diagnostic:
    message = f"`{key}` is part of the language, but not of this version"
    return Diagnostic("not-available", message, (*at, key), on_key=True)


def _missing(key: str, schema: Schema, at: Path) -> Diagnostic:
    wanted = schema["properties"][key]
    help = f"add `{key}: {wanted['enum'][0]}`" if "enum" in wanted else f"{key}: {wanted['description']}"
    return Diagnostic("missing-key", f"{_place(at)} lacks the key `{key}`", at, on_key=True, help=help)


def _several(keys: _Keys, at: Path) -> Diagnostic:
    first, *others = keys.present
    named = " and ".join(f"`{kind}`" for kind in keys.present)
    message = f"{_place(at)} has {len(keys.present)} kinds, {named}; exactly one is needed"
    related = (Related((*at, first), "the first"),)
    return Diagnostic("one-kind", message, (*at, others[0]), on_key=True, related=related)


def _none(keys: _Keys, at: Path) -> Diagnostic:
    help = f"one of: {', '.join(keys.kinds)}"
    return Diagnostic("one-kind", f"{_place(at)} has no kind of {keys.what}", at, on_key=True, help=help)


def _place(at: Path) -> str:
    """The map in words: `track` in /nodes/track."""
    return f"`{at[-1]}`" if at else "the pipeline"


def everything(data: Any) -> Iterator[tuple[Path, Any]]:
    """Every value of plain data with its path, maps and lists before what they hold."""
    stack: list[tuple[Path, Any]] = [((), data)]
    while stack:
        path, value = stack.pop()
        yield path, value
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        stack.extend(((*path, key), item) for key, item in reversed(list(items)))
