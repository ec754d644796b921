"""What was found in several files, as one output."""

import json
import os
import sys
from collections.abc import Sequence

from lima2cli.check import Checked
from lima2cli.cli.options import Format
from lima2cli.document import show_concise, show_github, show_json, show_text


def show_all(checked: Sequence[Checked], format: Format) -> str:
    """All findings; in text a line for each file without any, in JSON one object."""
    if format is Format.JSON:
        parts = [json.loads(show_json(one.source, one.findings)) for one in checked]
        merged = [entry for part in parts for entry in part["diagnostics"]]
        return json.dumps({"version": 1, "diagnostics": merged}, indent=2) + "\n"
    if format is Format.TEXT:
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        texts = [show_text(one.source, one.findings, color) or f"{one.source.file}: fine\n" for one in checked]
        return "\n".join(texts)
    show = show_concise if format is Format.CONCISE else show_github
    return "".join(show(one.source, one.findings) for one in checked)
