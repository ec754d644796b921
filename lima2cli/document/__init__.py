"""Turn YAML text into a tree in which every value knows its place, and show diagnostics at those places.

One pass reports every mistake of syntax; profiles are then laid on the tree, and ``--set`` overrides put into it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import Diagnostic, Findings, KeyPath
from lima2cli.document.places import (
    AS_WRITTEN,
    START,
    Document,
    Override,
    Place,
    Source,
    Span,
    YamlNode,
    plain,
    without_repeats,
)
from lima2cli.document.profiles import Profile, explain_kinds, lay, read_source
from lima2cli.document.substitute import substitute
from lima2cli.document.yaml_tree import DEPTH_LIMIT, build, put, resolve
from lima2cli.secret import Secret

__all__ = [
    "AS_WRITTEN", "START", "Document", "Edit", "Override", "Place", "Profile", "Source", "Span", "YamlNode",
    "explain_kinds", "load", "plain", "without_repeats",
]  # fmt: skip


def failed_at(override: str) -> KeyPath:
    """Return the path of diagnostics of an override that cannot be applied; no document has it."""
    return (f"--set {override}",)


def apply(root: YamlNode, override: str, findings: Findings, environment: Mapping[str, str]) -> YamlNode | None:
    """Return the tree with one override applied; None where it cannot be applied, which has been reported.

    Steps are separated by dots; a step into a list is an index, from 0. Missing mappings on the way are created, so
    that a misspelt key is reported at the override, where all keys are checked.
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
        message = f"with this value, mappings and lists are nested more than {DEPTH_LIMIT} deep"
        findings.add(Diagnostic("yaml-too-deep", message, at, span=_span(override)))
        return None
    try:
        return put(root, steps, node, Place(node.at.source, Span(1, 1, 1, len(key) + 1)))
    except ValueError as error:
        findings.add(Diagnostic("set-path", str(error), at, span=_span(override)))
        return None


def _value(override: str, start: int, findings: Findings, environment: Mapping[str, str]) -> YamlNode | None:
    """Read the value that an override sets: a mapping, list or quoted string, else a plain scalar, taken whole."""
    text = override[start:]
    span = Span(1, start + 1, 1, len(override) + 1)
    own, source = Findings(), Override("--set", override)
    if text.lstrip().startswith(("[", "{", '"', "'")):
        # Blanks in place of the key keep the places those within the override.
        node = build(Source("--set", " " * start + text), own, environment, source)
    else:
        plain = text.strip()
        if "$" in plain:
            plain = substitute(plain, environment, lambda *what: own.add(Diagnostic(what[0], what[1], help=what[2])))
        node = YamlNode(plain if isinstance(plain, Secret) else resolve(plain), Place(source, span))
    for item in own:
        findings.add(replace(item, at=failed_at(override), related=(), span=item.span or span))
    return None if own.failed else node


def _span(override: str) -> Span:
    return Span(1, 1, 1, len(override) + 1)


SIZE_LIMIT = 2**20
"""Largest number of characters of a document."""


@dataclass(frozen=True)
class Edit:
    """A value that is put into a document, with its place in another one.

    steps  where, mappings on the way are made;  node  the value;  key  the place that named it
    document, at  where it was written, for mistakes of ``steps``
    """

    steps: tuple[str, ...]
    node: YamlNode
    key: Place
    document: Document
    at: KeyPath

    @property
    def home(self) -> str:
        """Return the first step of paths into its document; no key of a pipeline is like it."""
        return f"--from {self.document.file}"

    def apply(self, root: YamlNode, findings: Findings) -> YamlNode:
        """Return the tree with the value; the same one, after reporting it, where the steps lead nowhere."""
        try:
            return put(root, self.steps, replace(self.node, key=self.key), self.key)
        except ValueError as error:
            findings.add(Diagnostic("set-path", str(error), (self.home, *self.at), on_key=True))
            return root


def load(
    text: str,
    file: str,
    findings: Findings,
    *,
    environment: Mapping[str, str],
    overrides: Sequence[str] = (),
    profiles: Sequence[Profile] = (),
    edits: Sequence[Edit] = (),
) -> Document | None:
    """Read a YAML document, replace variables, lay profiles on it, make edits, apply ``--set``, each in order.

    ``file`` is the name to show, ``-`` for standard input. Mistakes go to ``findings``; the result is None only where
    nothing can be read at all (syntax error, empty, too large, too deep).
    """
    source = Source(file, text.removeprefix("\ufeff"))
    root = read_source(source, SIZE_LIMIT, findings, environment)
    if root is None:
        return None
    others: dict[str, Document] = {}
    for profile in profiles:
        root, others[profile.home] = lay(root, profile, SIZE_LIMIT, findings, environment)
    for edit in edits:
        root, others[edit.home] = edit.apply(root, findings), edit.document
    failed: dict[KeyPath, Override] = {}
    for override in overrides:
        changed = apply(root, override, findings, environment)
        if changed is None:
            failed[failed_at(override)] = Override("--set", override)
        else:
            root = changed
    return Document(source.file, source.text, root, failed, others=others)
