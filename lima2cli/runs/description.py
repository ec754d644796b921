"""Title, sample, and whatever else users say of one acquisition, kept in its directory; and what comes of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.facts import Facts
from lima2cli.files.channel import Channel, TableChannel
from lima2cli.files.fields import completed, informed, kept_facts
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


@dataclass(frozen=True)
class Description:
    """Additions to the pipeline's account of one acquisition, as they are kept in its directory.

    said      what users have said of it;  facts  what the detector has;  changes  of parameters, oldest first
    problems  sentences: what can't be read
    """

    said: Mapping[str, Any]
    facts: Facts | None
    changes: Sequence[Any]
    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, directory: Path) -> "Description":
        """Return the description of the acquisition in a directory."""
        try:
            said = read_json_object(directory / DESCRIPTION_FILE)
        except (OSError, ValueError):  # nothing was said, or the file is damaged: what the pipeline says stays true
            said = {}
        if wrong_description(said) is not None:
            said = {}
        changes = changes_of(directory)
        try:
            return cls(said, kept_facts(directory), changes)
        except OSError as error:
            return cls(said, None, changes, (f"masters lack what the detector said: {error}",))

    def metadata(self, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the pipeline's metadata with what users and the detector have said."""
        extra = {**(metadata.get("extra") or {}), **self.said.get("extra", {})}
        return completed({**metadata, **self.said} | ({"extra": extra} if extra else {}), self.facts)

    def table(self, table: TableChannel) -> TableChannel:
        """Return a table with all that is known of the acquisition."""
        return replace(table, metadata=self.metadata(table.metadata or {}))

    def channel(self, channel: Channel) -> Channel:
        """Return a channel with all that is known of the acquisition; the same where that is no more than before."""
        if self.said or self.facts is not None:
            channel = informed(replace(channel, metadata=self.metadata(channel.metadata)), self.facts)
        if self.changes:
            channel = replace(channel, processing={**channel.processing, "changes": self.changes})
        return channel
