"""Title, sample, and whatever else users say of one acquisition at its start, kept in its directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lima2cli.paths import read_json_object

DESCRIPTION_FILE = "metadata.json"

WORDS = ("title", "sample")
"""Keys that have a string; `extra` has a mapping, and there are no others: the rest is the pipeline's."""


def wrong_description(metadata: Any) -> str | None:
    """Return why this can't be said of an acquisition; None where it can."""
    if not isinstance(metadata, Mapping) or not metadata.keys() <= {*WORDS, "extra"}:
        return f"metadata of an acquisition are {', '.join(WORDS)} and extra"
    if not all(isinstance(metadata[key], str) for key in WORDS if key in metadata):
        return f"{' and '.join(WORDS)} are strings"
    extra = metadata.get("extra", {})
    return None if isinstance(extra, Mapping) and all(isinstance(key, str) for key in extra) else "extra is a mapping"


def keep_description(directory: Path, metadata: Mapping[str, Any]) -> None:
    """Keep what is said of an acquisition in its directory: masters get it when they are completed.

    Raises:
        OSError: the disk refuses.
    """
    part = directory / f"{DESCRIPTION_FILE}.part"
    part.write_text(json.dumps(metadata) + "\n", encoding="utf-8")
    part.replace(directory / DESCRIPTION_FILE)


CHANGES_FILE = "changes.json"


def keep_change(directory: Path, change: Mapping[str, Any]) -> None:
    """Add a change of a parameter to those of an acquisition: node, parameter, value, and the frame it is applied at.

    Raises:
        OSError: the disk refuses.
    """
    part = directory / f"{CHANGES_FILE}.part"
    part.write_text(json.dumps({"changes": [*changes_of(directory), change]}) + "\n", encoding="utf-8")
    part.replace(directory / CHANGES_FILE)


def changes_of(directory: Path) -> list[Any]:
    """Return the changes of an acquisition, oldest first; none where nothing was changed."""
    try:
        changes = read_json_object(directory / CHANGES_FILE).get("changes")
    except (OSError, ValueError):
        return []
    return changes if isinstance(changes, list) else []


def described(directory: Path, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the pipeline's metadata with what was said of the acquisition in a directory, if anything was."""
    try:
        said = read_json_object(directory / DESCRIPTION_FILE)
    except (OSError, ValueError):  # nothing was said, or the file is damaged: what the pipeline says stays true
        return metadata
    if wrong_description(said) is not None:
        return metadata
    extra = {**(metadata.get("extra") or {}), **said.get("extra", {})}
    return {**metadata, **said} | ({"extra": extra} if extra else {})
