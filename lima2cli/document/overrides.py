"""``--set a.b.c=value``: values from the command line put into the tree."""

from collections.abc import Mapping
from dataclasses import replace

from lima2cli.diagnostics import Diagnostic, Findings, Path
from lima2cli.document.events import DEPTH_LIMIT, build
from lima2cli.document.places import Source, Span
from lima2cli.document.scalars import resolve
from lima2cli.document.substitute import substitute
from lima2cli.document.tree import Node, put
from lima2cli.secret import Secret


def failed_at(override: str) -> Path:
    """The path of the diagnostics of an override that cannot be applied; no document has it."""
    return (f"--set {override}",)


def apply(root: Node, override: str, findings: Findings, environment: Mapping[str, str]) -> Node | None:
    """The tree with one override applied; None where it cannot be, which has been reported.

    Steps are separated by dots; a step into a list is an index, from 0. Maps that miss on the way are made, so that
    a misspelt key is found, and told at the override, where all keys are checked.
    """
    at = failed_at(override)
    key, equals, _ = override.partition("=")
    steps = tuple(key.strip().split("."))
    if not equals or not all(steps) or len(steps) > DEPTH_LIMIT:
        message = f"`{override}` does not say what to set"
        findings.add(Diagnostic("set-syntax", message, at, help="write `key.path=value`", span=_span(override)))
        return None
    node = _value(override, len(key) + 1, findings, environment)
    if node is None:
        return None
    if len(steps) + node.height > DEPTH_LIMIT:
        message = f"with what this sets, maps and lists are nested more than {DEPTH_LIMIT} deep"
        findings.add(Diagnostic("yaml-too-deep", message, at, span=_span(override)))
        return None
    node.override = override
    try:
        return put(root, steps, node, Span(1, 1, 1, len(key) + 1))
    except ValueError as error:
        findings.add(Diagnostic("set-path", str(error), at, span=_span(override)))
        return None


def _value(override: str, start: int, findings: Findings, environment: Mapping[str, str]) -> Node | None:
    """What an override sets: a map, list or quoted text of YAML, else a plain scalar, taken whole."""
    text = override[start:]
    span = Span(1, start + 1, 1, len(override) + 1)
    own = Findings()
    if text.lstrip().startswith(("[", "{", '"', "'")):
        # Blanks in place of the key keep the places those within the override.
        node = build(Source("--set", " " * start + text), own, environment)
    else:
        plain = text.strip()
        if "$" in plain:
            plain = substitute(plain, environment, lambda *what: own.add(Diagnostic(what[0], what[1], help=what[2])))
        node = Node(plain if isinstance(plain, Secret) else resolve(plain), span)
    for item in own:
        findings.add(replace(item, at=failed_at(override), related=(), span=item.span or span))
    return None if own.failed else node


def _span(override: str) -> Span:
    return Span(1, 1, 1, len(override) + 1)
