"""The walk over data that checks and reads them: what it finds, in words for users."""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import field
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.declare.scalars import LARGEST, Quantity, Schema, Shape
from lima2cli.declare.wording import Fault, bad_name, diagnose
from lima2cli.diagnostics import POISON, Diagnostic, Findings, KeyPath, Related, did_you_mean, nearest

PIPELINE = "the pipeline"


@dataclass
class Reading:
    """One walk of shapes over data.

    findings    all mistakes are added to it
    bad         paths of which a mistake is known, before the walk or since; their values are `POISON`
    stand_in    function that returns True for values in whose place others will be: these are not checked
    quantities  what was read as a quantity of which implausible values are known: path, shape, data
    secrets     paths of secrets where a value decides or names something
    files       paths of strings that begin with a file's name
    whole       what the data are, in words
    """

    findings: Findings
    bad: set[KeyPath] = field(default_factory=set)
    stand_in: Callable[[Any], bool] | None = None
    quantities: list[tuple[KeyPath, Quantity, Any]] = field(default_factory=list)
    secrets: list[KeyPath] = field(default_factory=list)
    files: list[KeyPath] = field(default_factory=list)
    whole: str = PIPELINE

    def fault(self, keyword: str, data: Any, shape: Shape, at: KeyPath) -> Any:
        """Report data that break a keyword of a shape's schema, unless a mistake is known there; return `POISON`."""
        if at not in self.bad:
            self._add(diagnose(Fault(keyword, data, shape, at)))
        return POISON

    def refuse(self, keyword: str, data: Any, shape: Shape, at: KeyPath) -> Any:
        """Report data that are not walked any further, as `fault` does; return `POISON`."""
        self.look(data, at)
        return self.fault(keyword, data, shape, at)

    def fault_of_name(self, name: str, pattern: str, at: KeyPath) -> None:
        """Report the name of a value, unless a mistake is known there."""
        if at not in self.bad:
            self._add(bad_name(name, pattern, at))

    def check_keys(self, data: Mapping[Any, Any], shape: Shape, at: KeyPath) -> None:
        """Report unknown and missing keys of a mapping, and kinds of which there is not exactly one."""
        diagnostics, bad = check_keys(data, shape.described, at, self.whole)
        self.bad |= bad
        for one in diagnostics:
            self.findings.add(one)

    def misplaced(self, at: KeyPath) -> None:
        """Note a secret where none may be; its value is not read."""
        self.secrets.append(at)
        self.bad.add(at)

    def key(self, key: Any, at: KeyPath) -> KeyPath:
        """Return the path of a value; report characters of its key that no file can hold."""
        below = (*at, key)
        if isinstance(key, str) and (words := unprintable(key, _IN_KEYS)):
            message = f"the key {key!a} has {words}"
            self._add(Diagnostic("control-character", message, below, on_key=True, help="leave it out"))
        return below

    def look(self, data: Any, at: KeyPath) -> None:
        """Report what is wrong anywhere in data: placeholders, characters that no file holds, numbers that are none."""
        if not isinstance(data, dict | list):
            self._look_at_value(data, at)
            return
        for below, value in everything(data):
            path = (*at, *below)
            if below:
                self.key(below[-1], path[:-1])
            self._look_at_value(value, path)

    def look_at_others(self, data: Mapping[Any, Any], known: Collection[str], at: KeyPath) -> bool:
        """Look at values whose keys are unknown; return True if there are any."""
        others = [key for key in data if key not in known]
        for key in others:
            self.look(data[key], self.key(key, at))
        return bool(others)

    def _look_at_value(self, value: Any, at: KeyPath) -> None:
        if isinstance(value, str):
            if "REPLACEME" in value:
                self._add(Diagnostic("replaceme", "a placeholder was left in", at, help="put the real value here"))
            elif words := unprintable(value, _IN_TEXTS):
                self._add(Diagnostic("control-character", f"the text has {words}", at, help="leave it out"))
        elif isinstance(value, float) and not math.isfinite(value):
            self._add(Diagnostic("not-finite", f"expected a finite number, got {value}", at))
        elif isinstance(value, (int, float)) and abs(value) >= LARGEST:
            self._add(Diagnostic("out-of-range", "the number is too large", at))

    def _add(self, diagnostic: Diagnostic) -> None:
        self.findings.add(diagnostic)
        self.bad.add(diagnostic.at)


_IN_TEXTS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters except tabs and line ends, and surrogate halves, which UTF-8 cannot encode."""

_IN_KEYS = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")


def unprintable(text: str, which: "re.Pattern[str]") -> str | None:
    """Return in words the first character of a string that files and terminals cannot take; None without one."""
    match = which.search(text)
    if match is None:
        return None
    what = "half a character" if match[0] >= "\ud800" else "the control character"
    return f"{what} U+{ord(match[0]):04X} at position {match.start() + 1}"


def everything(data: Any) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every value of plain data with its path, mappings and lists before their members."""
    stack: list[tuple[KeyPath, Any]] = [((), data)]
    while stack:
        path, value = stack.pop()
        yield path, value
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        stack.extend(((*path, key), item) for key, item in reversed(list(items)))


def check_keys(
    data: Mapping[Any, Any], schema: Schema, at: KeyPath, whole: str = PIPELINE
) -> tuple[list[Diagnostic], set[KeyPath]]:
    """Return diagnostics, and the paths whose values must not be read.

    A key that was meant to be another one is reported once: the other is then neither missing nor default.
    """
    keys, place = _Keys(schema, data), f"`{at[-1]}`" if at else whole
    diagnostics: list[Diagnostic] = []
    bad: set[KeyPath] = set()
    missing = dict.fromkeys(key for key in [*schema.get("required", ()), *keys.wanted] if key not in data)
    unknown = [key for key in data if key not in schema.get("properties", {})]
    for key in unknown:
        intended = nearest(str(key), missing) or (None if key in keys.later else keys.intended(str(key)))
        bad.add((*at, key))
        if intended is not None:
            missing.pop(intended, None)
            bad.add((*at, intended))
        diagnostics.append(_later(key, at) if key in keys.later else _unknown(key, intended, keys, at, place))
    for key in keys.unwanted:
        bad.add((*at, key))
        bad.update((*at, wanted) for wanted in keys.wanted)
        missing = {name: None for name in missing if name not in keys.wanted}
        diagnostics.append(_unwanted(key, keys, at))
    for key in missing:
        bad.add((*at, key))
        diagnostics.append(_missing(key, schema, at, place))
    kind_is_unknown = any(item.rule in ("unknown-kind", "not-available") for item in diagnostics)
    if len(keys.present) > 1:
        bad.update((*at, kind) for kind in keys.present)
        diagnostics.append(_several(keys, at, place))
    elif keys.kinds and not keys.present and not kind_is_unknown:
        diagnostics.append(_none(keys, at, place))
    return diagnostics, bad


class _Keys:
    """The keys of one mapping: kinds, those of them present, and allowed ones that are absent."""

    def __init__(self, schema: Schema, data: Mapping[Any, Any]) -> None:
        self.allowed: Mapping[str, Schema] = schema.get("properties", {})
        allowed = list(self.allowed)
        self.data = data
        self.what: str | None = schema.get("x-kind")
        self.later = schema.get("x-later", [])
        self.kinds = [key for key in allowed if key not in schema.get("x-beside", [])] if self.what else []
        self.present = [key for key in data if key in self.kinds]
        self.wanted, self.unwanted = self._neighbours(schema, data)
        absent = [key for key in allowed if key not in data]
        self.free = [key for key in absent if key not in self.kinds] if self.present else absent

    def intended(self, key: str) -> str | None:
        """Return the absent key that a wrong one was meant to be; None where a key that is there is as near."""
        return None if self.there(key) else nearest(key, self.free)

    def there(self, key: str) -> str | None:
        """Return the key, of those that are there, that a wrong one was meant to be."""
        near = nearest(key, self.allowed)
        return near if near in self.data else None

    def _neighbours(self, schema: Schema, data: Mapping[Any, Any]) -> tuple[list[str], list[str]]:
        """Return the missing keys next to a kind, and those there that it does not take; one of any without kind."""
        neighbours = schema.get("x-beside", [])
        wanted = [key for kind in self.present for key in schema.get("dependentRequired", {}).get(kind, ())]
        joins = any(kind in schema.get("x-joins", ()) for kind in self.present)
        if not wanted and joins and all(key in data for key in neighbours):
            wanted = ["inputs"]
        if not wanted:
            return neighbours[: not any(key in data for key in neighbours)], []
        return wanted, [key for key in neighbours if key in data and key not in wanted]


def _unwanted(key: str, keys: _Keys, at: KeyPath) -> Diagnostic:
    kind, wanted = keys.present[0], keys.wanted[0]
    message = f"`{kind}` takes `{wanted}`, not `{key}`"
    return Diagnostic("wrong-input", message, (*at, key), on_key=True, help=_WIRED.get(wanted))


_WIRED = {"input": "it reads one flow or node", "inputs": "it reads flows or nodes by name: `inputs: {a: …, b: …}`"}


def _unknown(key: Any, intended: str | None, keys: _Keys, at: KeyPath, place: str) -> Diagnostic:
    slip, near = _slip(key, keys), intended or keys.there(str(key))
    if keys.what and not keys.present and (near is None or near in keys.kinds):
        message = f"there is no {keys.what} of kind `{key}`"
        help = slip or did_you_mean(str(key), [near] if near else keys.kinds)
        return Diagnostic("unknown-kind", message, (*at, key), on_key=True, help=help)
    help = slip or did_you_mean(str(key), [near] if near else keys.free)
    return Diagnostic("unknown-key", f"`{key}` is not a key of {place}", (*at, key), on_key=True, help=help)


_SHORT = {"w": "width", "h": "height"}


def _slip(key: Any, keys: _Keys) -> str | None:
    """Return help for the typical mistakes behind an unknown key."""
    value, name, colon, rest = keys.data[key], *str(key).partition(":")
    if _SHORT.get(str(key)) in keys.allowed:
        return f"did you mean `{_SHORT[str(key)]}`?"
    if value is None and re.fullmatch(r"[0-9]+\s*(%|[^\W\d_]*)", str(key)):
        return "a comma ends the value before it: write decimals with a point"
    if value is None and colon and name in keys.allowed:
        return f"a space is missing: `{name}: {rest.strip()}`"
    if key == "type" and isinstance(value, str) and value in keys.kinds:
        return f"the kind is the key: `{value}: {{…}}`"
    inside = [kind for kind in keys.present if key in keys.allowed[kind].get("properties", {})]
    return f"it is a key of `{inside[0]}`: `{inside[0]}: {{{key}: …}}`" if inside else None


def _later(key: str, at: KeyPath) -> Diagnostic:
    message = f"`{key}` is part of the language, but not available in this version"
    return Diagnostic("not-available", message, (*at, key), on_key=True)


def _missing(key: str, schema: Schema, at: KeyPath, place: str) -> Diagnostic:
    wanted = schema["properties"][key]
    help = f"add `{key}: {wanted['enum'][0]}`" if "enum" in wanted else f"{key}: {wanted['description']}"
    return Diagnostic("missing-key", f"{place} lacks the key `{key}`", at, on_key=True, help=help)


def _several(keys: _Keys, at: KeyPath, place: str) -> Diagnostic:
    first, *others = keys.present
    named = " and ".join(f"`{kind}`" for kind in keys.present)
    message = f"{place} has {len(keys.present)} kinds, {named}; exactly one is needed"
    related = (Related((*at, first), "the first"),)
    return Diagnostic("one-kind", message, (*at, others[0]), on_key=True, related=related)


def _none(keys: _Keys, at: KeyPath, place: str) -> Diagnostic:
    help = f"one of: {', '.join(keys.kinds)}"
    return Diagnostic("one-kind", f"{place} has no kind of {keys.what}", at, on_key=True, help=help)
