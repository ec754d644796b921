"""What was found in several files, as one output."""

import json
import os
import sys
from collections.abc import Sequence

from lima2cli.check import Checked
from lima2cli.cli.options import Format
from lima2cli.document import show_concise, show_events, show_github, show_json, show_sarif, show_text
from lima2cli.secret import hide


def show_all(checked: Sequence[Checked], format: Format) -> str:
    """All findings, secrets hidden; in text a line for each file without any, in JSON and SARIF one object."""
    return hide(_show_all(checked, format))


def _show_all(checked: Sequence[Checked], format: Format) -> str:
    if format is Format.JSON:
        return _joined([show_json(one.source, one.findings) for one in checked], "diagnostics")
    if format is Format.SARIF:
        return _joined([show_sarif(one.source, one.findings) for one in checked], "runs")
    if format is Format.TEXT:
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        texts = [show_text(one.source, one.findings, color) or f"{one.source.file}: fine\n" for one in checked]
        return "\n".join(texts)
    show = show_concise if format is Format.CONCISE else show_github
    return "".join(show(one.source, one.findings) for one in checked)


def _joined(texts: Sequence[str], key: str) -> str:
    """JSON objects that differ in the list at one key, as one object with all their items."""
    parts = [json.loads(text) for text in texts]
    return json.dumps(parts[0] | {key: [item for part in parts for item in part[key]]}, indent=2) + "\n"


def show_as_events(checked: Checked) -> str:
    """All findings as events of a run, an object a line, secrets hidden."""
    return hide(show_events(checked.source, checked.findings))
