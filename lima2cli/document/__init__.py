"""Turn YAML text into plain data with the place of every key and value, and show diagnostics at those places."""

from lima2cli.document.load import load
from lima2cli.document.places import AS_WRITTEN, Document, Place, Source, Span, once
from lima2cli.document.render import show_concise, show_events, show_github, show_json, show_sarif, show_text, suppress

__all__ = [
    "AS_WRITTEN", "Document", "Place", "Source", "Span", "load", "once", "show_concise", "show_events", "show_github",
    "show_json", "show_sarif", "show_text", "suppress",
]  # fmt: skip
