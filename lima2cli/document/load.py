"""Text to `Document`, in one pass that reports every mistake."""

from collections.abc import Mapping, Sequence

from lima2cli.diagnostics import Diagnostic, Findings, Path
from lima2cli.document.events import build
from lima2cli.document.overrides import apply, failed_at
from lima2cli.document.places import START, Document, Source
from lima2cli.document.syntax import CONTROL, syntax_error
from lima2cli.document.tree import to_document

SIZE_LIMIT = 2**20
"""Characters of a document."""


def load(
    text: str, file: str, findings: Findings, *, environment: Mapping[str, str], overrides: Sequence[str] = ()
) -> Document | None:
    """Read a YAML document, replace variables, apply ``--set`` overrides in order.

    ``file`` is the name to show, ``-`` for standard input. Mistakes go to ``findings``; None only where nothing can
    be read at all (syntax, empty, too large, too deep).
    """
    source = Source(file, text.removeprefix("\ufeff"))
    if len(source.text) > SIZE_LIMIT:
        findings.add(Diagnostic("yaml-too-large", f"{len(text)} characters; at most {SIZE_LIMIT} are read", span=START))
        return None
    if (control := CONTROL.search(source.text)) is not None:
        message = f"the character U+{ord(control[0]):04X} is not allowed in YAML"
        findings.add(syntax_error(source, message, control.start(), help='write it as an escape in "double quotes"'))
        return None
    root = build(source, findings, environment)
    if root is None:
        return None
    failed: dict[Path, str] = {}
    for override in overrides:
        changed = apply(root, override, findings, environment)
        if changed is None:
            failed[failed_at(override)] = override
        else:
            root = changed
    return to_document(source, root, failed)
