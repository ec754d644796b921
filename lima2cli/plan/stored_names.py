"""Names that users give and files have as names of groups."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lima2cli.artefacts.link_names import LONGEST
from lima2cli.artefacts.tree import OF_ENTRY, OF_INSTRUMENT
from lima2cli.config.pipeline import Pipeline
from lima2cli.diagnostics import Findings, Path


def check_stored(pipeline: Pipeline, record: Mapping[str, Any], findings: Findings) -> None:
    """Report names of the instrument and the detector that can't be those of groups, and keys of ``record`` (the stored
    parts of the pipeline, as plain data) that are too long for names."""
    for part in ("metadata", "nodes"):
        for at in _keys(record[part], (part,)):
            if len(str(at[-1]).encode()) > LONGEST:
                _too_long(f"the key `{_shown(str(at[-1]))}`", at, findings, on_key=True)
    _check_group("instrument", pipeline.metadata.instrument, ("metadata", "instrument"), OF_ENTRY, findings)
    detector = pipeline.config
    if detector.name is not None:
        _check_group("detector", detector.name, ("detector", detector.kind, "name"), OF_INSTRUMENT, findings)


def _check_group(what: str, name: str, at: Path, taken: Collection[str], findings: Findings) -> None:
    """Files have a group of this name beside those ``taken``."""
    if name in taken:
        findings.error(
            "reserved-name",
            f"the {what} can't be named `{name}`: files have something else of that name at the same place",
            at,
            notes=[f"reserved there: {', '.join(taken)}"],
            help=f"another name, such as `{name}-1`",
        )
    elif not name.strip("."):
        message = f"the {what} can't be named `{name}`: files have a group of its name, and this is none"
        findings.error("reserved-name", message, at, help="leave it out, or a name with a letter or a digit")
    elif len(name.encode(errors="replace")) > LONGEST:
        _too_long(f"the {what}'s name", at, findings)


def _too_long(what: str, at: Path, findings: Findings, *, on_key: bool = False) -> None:
    message = f"{what} is too long for a name in a file"
    findings.error("name-too-long", message, at, on_key=on_key, help=f"at most {LONGEST} bytes")


def _keys(value: Any, at: Path) -> Iterator[Path]:
    """Places of all keys in plain data."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield (*at, key)
            yield from _keys(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _keys(item, (*at, index))


def _shown(text: str, most: int = 40) -> str:
    """A text for people: without what can't be printed, and not too long."""
    printed = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return printed if len(printed) <= most else f"{printed[:most]}…"
