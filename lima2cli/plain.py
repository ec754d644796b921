"""Plain data that others may have written, or damaged: JSON objects."""

import json
from pathlib import Path
from typing import Any

LARGEST = 64 << 20
"""Bytes of a file that is read; those of lima2 are far smaller."""


def json_object(text: str | bytes) -> dict[str, Any]:
    """Read a JSON object. ValueError where it is none, one that is nested too deep, or no UTF-8."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError(f"it is no object but {type(found).__name__}")
    return found


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object. OSError where it can't be read, ValueError as of `json_object`."""
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
    return json_object(data)
