"""Write plain data as YAML 1.2 that is read back as the same: scalars, and values in one line."""

import json
import math
import re
from typing import Any

from lima2cli.document.yaml_tree import resolve
from lima2cli.secret import Secret

_PLAIN = re.compile(r"[A-Za-z_/.0-9][\w/.+%-]*(?:(?: |::?)[\w/.+%-]+)*", re.ASCII)
"""Strings that need no quotes wherever they stand, unless they would be read as another value."""

_MISREAD = re.compile(r"(?i:yes|no|on|off)|[-+]?[0-9][0-9_:.]*|[0-9]{4}-[0-9].*")
"""Strings that readers of YAML 1.1 take for another value: words, numbers, times and dates."""


def escaped(text: str) -> str:
    """Return a string as a pipeline has it, in which ``$`` begins a variable; of a secret, the reference to it."""
    return text.written if isinstance(text, Secret) else text.replace("$", "$$")


def flow_text(value: Any) -> str:
    """Return plain data as YAML in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow_text(key)}: {flow_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow_text, value)) + "]"
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and resolve(value) == value and not _MISREAD.fullmatch(value)
        return value if plain else json.dumps(value, ensure_ascii=not value.isprintable())
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return json.dumps(value)
