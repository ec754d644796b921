"""YAML text to plain data with the place of every key and value; and diagnostics shown at those places."""

from lima2cli.document.ignores import suppress
from lima2cli.document.load import load
from lima2cli.document.places import AS_WRITTEN, Document, Place, Source, Span
from lima2cli.document.repeats import once
from lima2cli.document.show import show_concise, show_events, show_github, show_json, show_sarif, show_text

__all__ = [
    "AS_WRITTEN", "Document", "Place", "Source", "Span", "load", "once", "show_concise", "show_events", "show_github",
    "show_json", "show_sarif", "show_text", "suppress",
]  # fmt: skip
