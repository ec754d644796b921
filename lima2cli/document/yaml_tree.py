"""The tree of a YAML text: nodes with the place of each, built from events by an explicit stack.
Plain scalars are read by the YAML 1.2 core schema (https://yaml.org/spec/1.2.2/, section 10.3.2). No input makes the
builder recurse.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import Diagnostic, Findings, KeyPath, Related, did_you_mean
from lima2cli.document.places import Place, Scalar, Source, Span, YamlNode
from lima2cli.document.substitute import substitute
from lima2cli.document.syntax_errors import explain, nested_beyond, trouble_of
from lima2cli.secret import Secret

_WORDS: dict[str, bool | None] = (
    dict.fromkeys(("", "~", "null", "Null", "NULL"))
    | dict.fromkeys(("true", "True", "TRUE"), True)
    | dict.fromkeys(("false", "False", "FALSE"), False)
)
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")

_LONGEST_NUMBER = 400
"""Characters; a longer scalar is a string. Python refuses to read decimal numbers of more than 4300 digits."""


def resolve(text: str) -> Scalar:
    """Return the value of a plain (unquoted) scalar: None, bool, int, float or the string itself."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _LONGEST_NUMBER or text[0] not in "+-.0123456789":
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEXADECIMAL.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if infinity := _INFINITY.fullmatch(text):
        return -math.inf if infinity[1] == "-" else math.inf
    return math.nan if _NAN.fullmatch(text) else text


def kind(value: object) -> str:
    """Return the kind of a value in words: "a number", "a mapping"..."""
    if isinstance(value, bool):
        return "true or false"
    names = {str: "a string", int: "a number", float: "a number", dict: "a mapping", list: "a list", type(None): "null"}
    return names[type(value)]


def put(root: YamlNode, steps: tuple[str, ...], node: YamlNode, key: Place) -> YamlNode:
    """Return a copy of the tree with ``node`` where ``steps`` lead to; missing mappings on the way are created.

    A step into a list is an index; ``key`` is the place of new keys.

    Raises: ValueError, in words for the user, where a step leads nowhere.
    """
    if not steps:
        return node
    step, rest = steps[0], steps[1:]
    content = root.content
    if isinstance(content, list):
        if not step.isdecimal() or int(step) >= len(content):
            raise ValueError(f"`{step}` is not an item of a list of {len(content)} (numbered from 0)")
        index = int(step)
        items = [*content[:index], put(content[index], rest, node, key), *content[index + 1 :]]
        return replace(root, content=items)
    if isinstance(content, dict) or content is None:
        old = (content or {}).get(step)
        made = put(old or YamlNode(None, node.at), rest, node, key)
        made = made if rest and old else replace(made, key=key)
        return replace(root, content={**(content or {}), step: made}, bad=False)
    raise ValueError(f"`{step}` leads into {kind(content)}, which has no keys")


_ESCAPE = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_ESCAPES = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_HALF = re.compile("(?=([0-9a-f]{4}))")
_LONE = re.compile("[\ud800-\udfff]")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_PRIVATE = range(0xE000, 0xF900)


class Surrogates:
    """The escapes of a string, replaced for the parser and put back."""

    def __init__(self, text: str) -> None:
        """Replace the escapes; ``parsed`` is the string for the parser."""
        self.parsed = text
        self._back: Mapping[str, str] = {}
        written = dict.fromkeys(_ESCAPE.findall(text))
        if not written:
            return
        used = {int(match[1], 16) for match in _HALF.finditer(text.lower())} | {ord(char) for char in set(text)}
        free = (code for code in _PRIVATE if code not in used)
        stand_ins = dict(zip(written, free, strict=False))  # more than there are would be refused by the parser
        self.parsed = _ESCAPE.sub(
            lambda half: f"\\u{stand_ins[half[0]]:04x}" if half[0] in stand_ins else half[0], text
        )
        back = {}
        for escape, code in stand_ins.items():
            back[chr(code)] = chr(int(escape[2:], 16))  # where it was an escape
            back[f"\\u{code:04x}"] = escape  # where it was text
        self._back = back
        self._stand_in = re.compile("|".join(map(re.escape, back)))

    def restored(self, value: str) -> str:
        """Return a value of the parser with escapes put back: pairs are characters, a half alone is left as it is."""
        if not self._back:
            return value
        value = self._stand_in.sub(lambda pair: self._back[pair[0]], value)
        return _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), value)


def is_half(value: str) -> bool:
    """Return True if a surrogate is in a restored value."""
    return _LONE.search(value) is not None


def find_half(text: str, first: int, last: int) -> re.Match[str] | None:
    """Find the escape of the first surrogate without its other half between two indices of a double-quoted string."""
    return next((match for match in _ESCAPES.finditer(text, first, last) if match["half"]), None)


DEPTH_LIMIT = 64
NODE_LIMIT = 25_000
"""Most values and collections of a document, aliases expanded: some hundred times a real pipeline, read in a second."""

LETTERS = 256
"""Number of characters of a string that count as much as a value."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = re.compile(r"!\S*")
_NO_KEY = "?"
"""Step in paths for a key that is not a string."""


class _Stop(Exception):
    """Raised where no tree can be made; the reason has been reported."""


@dataclass(slots=True)
class _Open:
    """A collection that is being read."""

    node: YamlNode
    path: KeyPath
    anchor: str | None
    block: bool
    is_key: bool
    key: str | None = None  # of the value that comes next
    key_at: Span | None = None
    keep: bool = True  # whether that value is wanted


def build(
    source: Source, findings: Findings, environment: Mapping[str, str], shown: Source | None = None
) -> YamlNode | None:
    """Return the tree of the one document in a string; None where there is none, which has been reported.

    ``shown``: the text that places are in, where it is not the one that is read.
    """
    builder = _Builder(source, findings, environment, shown or source)
    try:
        for event in yaml.parse(builder.surrogates.parsed, Loader=_LOADER):
            if isinstance(event, yaml.DocumentStartEvent) and builder.root is not None:
                builder.error(
                    "yaml-documents", "a second YAML document begins here", span_of(event), help="only one is allowed"
                )
                break
            builder.take(event)
    except yaml.YAMLError as error:
        if not builder.too_deep_ahead(error):
            findings.add(explain(source, error))
        return None
    except _Stop:
        return None
    if builder.root is None or (builder.root.content is None and builder.root.at.span[:2] == builder.root.at.span[2:]):
        findings.add(Diagnostic("yaml-empty", "the file is empty", span=(1, 1, 1, 1)))
        return None
    return builder.root


def span_of(event: Any) -> Span:
    """Return the place where an event is written."""
    start, end = event.start_mark, event.end_mark
    return Span(start.line + 1, start.column + 1, end.line + 1, end.column + 1)


class _Builder:
    """Builder of the tree, event by event. ``root`` is the tree once the document has ended."""

    def __init__(self, source: Source, findings: Findings, environment: Mapping[str, str], shown: Source) -> None:
        self.root: YamlNode | None = None
        self.surrogates = Surrogates(source.text)
        self._source, self._shown = source, shown
        self._findings = findings
        self._environment = environment
        self._stack: list[_Open] = []
        self._anchors: dict[str, YamlNode] = {}
        self._size = 0
        self._read = Span(1, 1, 1, 1)

    def error(
        self, rule: str, message: str, span: Span, *, help: str | None = None, related: tuple[Related, ...] = ()
    ) -> None:
        """Report a mistake at the node that comes next."""
        self._findings.add(Diagnostic(rule, message, self._path(), help=help, related=related, span=span))

    def take(self, event: yaml.Event) -> None:
        """Handle one event of the parser."""
        self._read = span_of(event)
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._start(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._end(event)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)

    def too_deep_ahead(self, error: yaml.YAMLError) -> bool:
        """Return True, after reporting it, if brackets up to the parser's error are nested too deep.

        A parser looks a thousand characters ahead for the `:` of a key, and may refuse there, by a limit of its own or
        for another reason, events that have not been handled yet.
        """
        first = self._source.index(*self._read[2:])
        in_flow = bool(self._stack) and not self._stack[-1].block
        last = trouble_of(self._source, error).at
        index = nested_beyond(self._source.text, first, last, DEPTH_LIMIT - len(self._stack), in_flow=in_flow)
        if index is None:
            return False
        self._too_deep(Span(*self._source.position(index), *self._source.position(index + 1)))
        return True

    def _too_deep(self, span: Span) -> None:
        self.error("yaml-too-deep", f"mappings and lists are nested more than {DEPTH_LIMIT} deep", span)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        span, plain = span_of(event), not event.style
        bad = self._tagged(event, span)
        value = self.surrogates.restored(event.value)
        if is_half(value):
            bad, value = True, value.encode(errors="backslashreplace").decode()
            self._half(span)
        if self._expects_key():
            self._key(value, plain, span)
            return
        reported = len(self._findings.items)
        if "$" in value:
            value = substitute(value, self._environment, lambda *what: self.error(what[0], what[1], span, help=what[2]))
        bad = bad or len(self._findings.items) > reported
        node = YamlNode(
            value if isinstance(value, Secret) or not plain else resolve(value),
            self._place(span),
            size=1 + len(value) // LETTERS,
            bad=bad,
        )
        self._charge(node.size, span)
        self._remember(event.anchor, node)
        self._add(node)

    def _half(self, span: Span) -> None:
        """Report the first surrogate without its other half in a scalar."""
        source = self._source
        match = find_half(source.text, source.index(*span[:2]), source.index(*span[2:]))
        assert match is not None
        place = Span(*source.position(match.start()), *source.position(match.end()))
        help = "JSON writes a character beyond U+FFFF as two such escapes, one after the other"
        self.error("yaml-syntax", f"`{match[0]}` is half of a character", place, help=help)

    def _start(self, event: yaml.CollectionStartEvent) -> None:
        span = span_of(event)
        self._charge(1, span)
        if len(self._stack) >= DEPTH_LIMIT:
            self._too_deep(span)
            raise _Stop
        bad = self._tagged(event, span)
        node = YamlNode({} if isinstance(event, yaml.MappingStartEvent) else [], self._place(span), bad=bad, height=1)
        is_key = self._expects_key()
        self._stack.append(_Open(node, self._path(), event.anchor, not event.flow_style, is_key))

    def _end(self, event: yaml.CollectionEndEvent) -> None:
        done = self._stack.pop()
        node, end = done.node, span_of(event)
        if not done.block:
            node.at = self._place(Span(*node.at.span[:2], *end[2:]))
        self._remember(done.anchor, node)
        if done.is_key:
            self._bad_key(node.at.span, f"{kind(node.content)} cannot be a key")
        else:
            self._add(node)

    def _alias(self, event: Any) -> None:
        span, name = span_of(event), event.anchor
        if self._expects_key():
            self._bad_key(span, "an alias cannot be a key")
            return
        target = self._anchors.get(name)
        if any(open_.anchor == name for open_ in self._stack):
            self.error("yaml-alias", f"`*{name}` is used inside the value that it names", span)
        elif target is None:
            help = did_you_mean(name, self._anchors) or f"`&{name}` before a value names it; quote a string with a `*`"
            self.error("yaml-alias", f"nothing is named `&{name}` before this", span, help=help)
        elif len(self._stack) + target.height > DEPTH_LIMIT:
            self.error("yaml-too-deep", f"with `*{name}` expanded, nesting is more than {DEPTH_LIMIT} deep", span)
        elif self._size + target.size > NODE_LIMIT:
            self.error("alias-bomb", f"with its aliases expanded, the document has over {NODE_LIMIT} values", span)
            raise _Stop
        else:
            self._size += target.size
            self._add(replace(target, at=self._place(span), key=None))
            return
        self._add(YamlNode(None, self._place(span), bad=True))

    def _place(self, span: Span) -> Place:
        return Place(self._shown, span)

    def _expects_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].node.content, dict) and self._stack[-1].key is None

    def _path(self) -> KeyPath:
        """Return the path of the node that comes next."""
        if not self._stack:
            return ()
        top = self._stack[-1]
        if isinstance(top.node.content, list):
            return (*top.path, len(top.node.content))
        return top.path if top.key is None else (*top.path, top.key)

    def _key(self, text: str, plain: bool, span: Span) -> None:
        top, content = self._stack[-1], self._stack[-1].node.content
        assert isinstance(content, dict)
        value = resolve(text) if plain else text
        top.key, top.keep = text, True
        if plain and text == "<<":
            self.error(
                "yaml-merge", "merge keys (`<<`) are not supported", span, help="write the keys out, or use `*name`"
            )
            top.keep, top.node.bad = False, True
        elif text in content:
            first = Related(self._path(), "first written here")
            self.error("duplicate-key", f"`{text}` is written twice in this mapping", span, related=(first,))
            top.keep = False
        elif not isinstance(value, str):
            what = f"`{text}` is {kind(value)}" if text else "this is empty"
            self.error("key-not-text", f"{what}, and a key must be a string", span, help=f'quote it: "{text}"')
        top.key_at = span

    def _bad_key(self, span: Span, message: str) -> None:
        self.error("key-not-text", message, span, help="quote it if it is meant as a string")
        self._stack[-1].key, self._stack[-1].keep = _NO_KEY, False
        self._stack[-1].node.bad = True

    def _tagged(self, event: Any, span: Span) -> bool:
        """Return True, after reporting it, if a node has a tag."""
        if event.tag is None:
            return False
        match = _TAG.search(self._source.lines[span.line - 1], span.column - 1)
        if match is not None:
            span = Span(span.line, match.start() + 1, span.line, match.end() + 1)
        self.error(
            "yaml-tag", f"tags ({event.tag} ) are not supported", span, help="leave it out; quote a string with a `!`"
        )
        return True

    def _charge(self, size: int, span: Span) -> None:
        self._size += size
        if self._size > NODE_LIMIT:
            self.error("yaml-too-large", f"the document has over {NODE_LIMIT} values", span)
            raise _Stop

    def _remember(self, anchor: str | None, node: YamlNode) -> None:
        if anchor is not None:
            self._anchors[anchor] = node

    def _add(self, node: YamlNode) -> None:
        """Add a complete node to the collection that it is in."""
        if not self._stack:
            self.root = node
            return
        top = self._stack[-1]
        parent, keep = top.node, True
        if isinstance(parent.content, list):
            parent.content.append(node)
        elif isinstance(parent.content, dict):
            assert top.key is not None
            keep = top.keep
            if keep:
                assert top.key_at is not None
                node.key = self._place(top.key_at)
                parent.content[top.key] = node
            top.key = None
        if keep:
            parent.size += node.size
            parent.height = max(parent.height, node.height + 1)
        if top.block and node.at.span[2:] > parent.at.span[2:]:
            parent.at = self._place(Span(*parent.at.span[:2], *node.at.span[2:]))
