"""Ownership of a run directory.

The first file of a run directory is its marker: it lists which files the run may write there, and is locked while the
run goes on. A directory without marker is not ours and is left unchanged. Of what is ours only the files of the run are
ever removed, by name, never a folder with all that is in it.
"""

import errno
import json
import os
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lima2cli import __version__
from lima2cli.accounting.summary import read_summary
from lima2cli.dataclass import dataclass
from lima2cli.errors import EnvironmentUnfit, Lima2Error
from lima2cli.files.common_file import KEPT
from lima2cli.files.fields import FACTS_FILE
from lima2cli.files.nexus import SUMMARY, frame_file_names, master_file, part_names, table_file
from lima2cli.paths import lock
from lima2cli.plan.ir import Plan
from lima2cli.runs.control_socket import FILE, ask, elsewhere, starting, where
from lima2cli.runs.description import CHANGES_FILE, DESCRIPTION_FILE
from lima2cli.runs.saved_plan import PIPELINE_FILE, PLAN_FILE

MARKER = ".lima2-run"
MOVED = ".lima2-moved"
"""File in a run directory that was moved, with the path of the link to it that stays where it was."""

VERSION = 1
LOG = "lima2.log"

FILES = frozenset(
    (
        MARKER,
        MOVED,
        PIPELINE_FILE,
        PLAN_FILE,
        SUMMARY,
        f".{SUMMARY}.part",
        FILE,
        f".{FILE}.part",
        LOG,
        DESCRIPTION_FILE,
        CHANGES_FILE,
        FACTS_FILE,
    )
)
"""Names of files that every run may write."""

UNFINISHED = (".new", KEPT, ".part")
"""Suffixes of the names of files that are being made."""

SHOWN = 5
"""Maximal number of names in a message."""


@dataclass(frozen=True)
class RunNames:
    """Names after which the files of a run are named: of the pipeline, its channels and its tables."""

    name: str
    channels: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()

    @classmethod
    def of(cls, plan: Plan) -> "RunNames":
        """Return the names of a plan."""
        return cls(plan.name, tuple(plan.channels), tuple(plan.tables))

    def owns(self, file: str) -> bool:
        """Return whether a run of these names may write a file of that name."""
        if file in FILES:
            return True
        for suffix in UNFINISHED:
            file = file.removesuffix(suffix)
        if file in (DESCRIPTION_FILE, CHANGES_FILE, FACTS_FILE):
            return True
        whole = {f"{self.name}.h5", *(master_file(self.name, node) for node in self.channels)}
        whole |= {table_file(self.name, node) for node in self.tables}
        numbered = [re.compile(re.escape(f"{self.name}_") + r"\d+\.ledger")]
        numbered += [frame_file_names(self.name, node) for node in self.channels]
        numbered += [part_names(self.name, node) for node in (*self.channels, *self.tables)]
        return file in whole or any(pattern.fullmatch(file) for pattern in numbered)

    def as_plain(self) -> dict[str, Any]:
        """Return the contents of the marker, as plain data."""
        names = {"name": self.name, "channels": list(self.channels), "tables": list(self.tables)}
        return {"version": VERSION, "lima2": __version__, "run": str(uuid.uuid4()), **names}


class Ownership:
    """A marker that this process has locked, until `release` or its end."""

    def __init__(self, file: IO[bytes], names: RunNames) -> None:
        self._file, self.names = file, names

    def release(self) -> None:
        """Unlock it."""
        self._file.close()


def mark(directory: Path, names: RunNames) -> Ownership:
    """Mark a directory, empty so far, as one of this run, and return the locked marker.

    Raises:
        FileExistsError: another run was faster.
        OSError: the marker can't be made.
    """
    file = (directory / MARKER).open("x+b")
    try:
        lock(file.fileno(), wait=True)  # it is never held for long: what is not yet written is not a marker
        file.write(json.dumps(names.as_plain()).encode() + b"\n")
        file.flush()
    except BaseException:
        file.close()
        raise
    return Ownership(file, names)


def take(directory: Path) -> Ownership:
    """Lock the marker of a run that has ended, and return it.

    Raises:
        EnvironmentUnfit: there is no marker, or the run has not ended.
    """
    path = directory / MARKER
    try:
        file = _opened(directory, os.O_RDWR)
    except OSError as error:
        message = f"{directory} is not a run directory of lima2 (no {MARKER}); it is left unchanged"
        raise EnvironmentUnfit(message) from error
    try:
        if not lock(file.fileno()) or not _same(path, file.fileno()) or answers(directory):
            raise EnvironmentUnfit(f"a run is active in {directory}; it is left unchanged")
        if unreachable(directory):
            raise EnvironmentUnfit(
                f"a run of another machine has not ended in {directory}; it is left unchanged (`lima2 recover` ends it)"
            )
        names = _read(file)
        if names is None:
            raise EnvironmentUnfit(f"{path} is not a marker of lima2: {directory} is left unchanged")
    except BaseException:
        file.close()
        raise
    return Ownership(file, names)


def moved_from(directory: Path) -> Path | None:
    """Return the path of the link to a run directory that was moved; None where it was not."""
    try:
        return Path((directory / MOVED).read_text(encoding="utf-8").rstrip("\n"))
    except (OSError, ValueError):
        return None


def marked(directory: Path) -> bool:
    """Return whether a directory is a run directory of lima2."""
    return names_of(directory) is not None


def names_of(directory: Path) -> RunNames | None:
    """Return the names after which the files of a run directory are named, None where it has no marker."""
    try:
        with _opened(directory, os.O_RDONLY) as file:
            return _read(file)
    except OSError:
        return None


def is_live(directory: Path) -> bool:
    """Return whether a run goes on in a directory, as far as this machine can see."""
    try:
        with _opened(directory, os.O_RDWR) as file:
            if not lock(file.fileno()):
                return True
    except OSError:
        pass  # a run of an older version; one that no user here may write to
    return answers(directory)


def answers(directory: Path) -> bool:
    """Return whether ``control.json`` is of a run that is being started, or that answers."""
    try:
        place = where(directory)
        return place is not None and (starting(place) or bool(ask(directory, {"do": "status"}).get("ok")))
    except Lima2Error:
        return False


def unreachable(directory: Path) -> bool:
    """Return whether ``control.json`` is of a run of another machine, which cannot be asked and has no summary."""
    try:
        place = where(directory)
    except Lima2Error:
        return False
    return place is not None and elsewhere(place) and not (directory / SUMMARY).exists()


def foreign(directory: Path, names: RunNames) -> list[str]:
    """Return what lies in a run directory and is not of the run: other names, and what is not a regular file."""
    with os.scandir(directory) as entries:
        return sorted(
            entry.name for entry in entries if not (entry.is_file(follow_symlinks=False) and names.owns(entry.name))
        )


def own_files(directory: Path) -> frozenset[str]:
    """Return the names of the regular files in a directory that are of its run.

    All of them where it has no marker, as runs of older versions have not.
    """
    names = names_of(directory)
    with os.scandir(directory) as entries:
        files = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    return frozenset(file for file in files if names is None or names.owns(file))


def remove_run(directory: Path) -> list[str]:
    """Remove the files of a run, the marker last, and the directory; return the names of files of others, which stay.

    Raises:
        OSError: the system refuses.
    """
    names = names_of(directory)
    if names is None:
        return sorted(os.listdir(directory))
    others = foreign(directory, names)
    for file in sorted(set(os.listdir(directory)).difference(others, (MARKER,))):
        (directory / file).unlink()
    if others:  # the marker stays, too
        return others
    (directory / MARKER).unlink()
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return sorted(os.listdir(directory))
    return []


def has_saved(directory: Path) -> bool | None:
    """Return whether the run in a directory, which has ended, has saved anything.

    It has frames or rows in its files, or is complete without any. None where its summary and its files do not agree,
    or there is none.
    """
    names, summary = names_of(directory), read_summary(directory)
    if summary is None:
        return None
    saved = any(channel.saved for channel in summary.channels.values())
    if saved or summary.state == "complete" or any(table.rows for table in summary.tables.values()):
        return True
    try:
        files = os.listdir(directory)
    except OSError:
        return None
    patterns = [frame_file_names(names.name, node) for node in names.channels] if names else []
    return None if names is None or any(pattern.fullmatch(file) for pattern in patterns for file in files) else False


def listed(names: Sequence[object]) -> str:
    """Return names for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


def _opened(directory: Path, flags: int) -> IO[bytes]:
    """Return the marker of a directory, opened; never through a link, and without waiting for what is not a file.

    Raises:
        OSError: it can't be opened.
    """
    descriptor = os.open(directory / MARKER, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.fdopen(descriptor, "rb", buffering=0)


def _read(file: IO[bytes]) -> RunNames | None:
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        content = json.loads(file.read(1 << 20))
        if content["version"] == VERSION and isinstance(content["name"], str):
            return RunNames(content["name"], tuple(map(str, content["channels"])), tuple(map(str, content["tables"])))
    return None


def _same(path: Path, descriptor: int) -> bool:
    """Return whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except OSError:
        return False
