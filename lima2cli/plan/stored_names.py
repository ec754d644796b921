"""Names and texts that users give are such as the files can hold."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from lima2cli.artefacts.file_names import LONGEST_FILE_NAME, longest_names
from lima2cli.artefacts.link_names import LONGEST, unstorable
from lima2cli.artefacts.tree import OF_ENTRY, OF_INSTRUMENT
from lima2cli.config.pipeline import Pipeline
from lima2cli.diagnostics import Findings, Path
from lima2cli.nodes.base import Reduce, Sink
from lima2cli.plan.records import Step


def check_stored(pipeline: Pipeline, record: Mapping[str, Any], findings: Findings) -> None:
    """The instrument's and the detector's names can be those of groups, and ``record`` can be stored: the parts of the
    pipeline that are, as plain data."""
    for part in ("metadata", "nodes"):
        for at, on_key, text in _texts(record[part], (part,)):
            if (why := unstorable(text)) is not None:
                message = f"`{_shown(text)}` can't be saved: {why}"
                findings.error("not-storable", message, at, on_key=on_key, help="leave it out")
            elif on_key and len(text.encode()) > LONGEST:
                _too_long(f"the key `{_shown(text)}`", at, findings, on_key=True)
    _check_group("instrument", pipeline.metadata.instrument, ("metadata", "instrument"), OF_ENTRY, findings)
    detector = pipeline.config
    if detector.name is not None:
        if (why := unstorable(detector.name)) is not None:
            at = ("detector", detector.kind, "name")
            findings.error("not-storable", f"`{_shown(detector.name)}` can't be saved: {why}", at, help="leave it out")
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


def check_lengths(name: str, steps: Sequence[Step], receivers: int, findings: Findings) -> None:
    """File systems take the names of all files of a run."""
    writers = [step for step in steps if isinstance(step.node, Sink | Reduce)]
    if not writers and len(f"{name}.h5.part") > LONGEST_FILE_NAME:
        findings.error("name-too-long", "files of this name would have names that are too long", ("name",))
    for step in writers:
        file = max(longest_names(name, step.name, receivers), key=len)
        if len(file) > LONGEST_FILE_NAME:
            findings.error(
                "name-too-long",
                f"a file of {_shown(step.name)} would have a name of {len(file)} bytes",
                ("nodes", step.name),
                on_key=True,
                notes=[f"`{{name}}_{{node}}` begins it; file systems take {LONGEST_FILE_NAME} bytes"],
                help=f"a name of the {'pipeline' if len(name) > len(step.name) else 'node'} that is shorter by "
                f"{len(file) - LONGEST_FILE_NAME}",
            )


def _texts(value: Any, at: Path) -> Iterator[tuple[Path, bool, str]]:
    """All texts in plain data, each with its place, and whether it is a key."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield (*at, key), True, str(key)
            yield from _texts(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*at, index))
    elif isinstance(value, str):
        yield at, False, value


def _shown(text: str, most: int = 40) -> str:
    """A text for people: without what can't be printed, and not too long."""
    printed = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return printed if len(printed) <= most else f"{printed[:most]}…"
