"""Directories of the acquisitions of a job, which may be moved or removed, and the live masters in them."""

import errno
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lima2cli.accounting.acquisitions import LiveAcquisition
from lima2cli.dataclass import dataclass
from lima2cli.errors import StateError
from lima2cli.facts import Facts
from lima2cli.files.disk import library_is_broken
from lima2cli.files.fields import informed
from lima2cli.files.live_master import LiveMaster, Template
from lima2cli.paths import held_in, real
from lima2cli.plan.ir import Plan
from lima2cli.runs.directory import LATEST
from lima2cli.runs.ownership import MOVED, marked
from lima2cli.runs.processes import HeldDirectory


def move_run(directory: Path, target: Any) -> tuple[Path, bool]:
    """Rename a run directory to ``target``, an absolute path where there is nothing, or an empty directory.

    Returns where it is now, links followed, and whether a link to it stays in its place: by that it is still found
    under the name that it had.

    Raises:
        StateError: it can't be there; all is as it was.
    """
    place = _place(directory, target)
    if place == directory:
        return directory, True
    made: list[Path] = []
    try:
        for folder in reversed([each for each in (place, *place.parents) if not each.exists()]):
            folder.mkdir(exist_ok=folder != place)  # others may make the same parents
            made.append(folder)
        directory.rename(place)  # over an empty directory; in one step, so that others come too late, or first
    except OSError as error:
        for folder in reversed(made):
            with suppress(OSError):  # others use it already
                folder.rmdir()
        raise StateError(_why(error, directory, place)) from error
    try:
        (place / MOVED).write_text(f"{directory}\n", encoding="utf-8")
        directory.symlink_to(os.path.relpath(place, directory.parent))
    except OSError:  # a file system without links, or another run was faster
        return place, False
    return place, True


def _place(directory: Path, target: Any) -> Path:
    """Return where a directory is to be. Raises: as `move_run`."""
    if not isinstance(target, str) or not os.path.isabs(target) or "\0" in target:
        raise StateError("a directory is named by an absolute path")
    place = real(Path(target))
    if place == directory:
        return place
    if place.name == LATEST:
        raise StateError(f"{place}: `{LATEST}` is the name of the link to the newest run")
    try:
        if run := next((each for each in place.parents if marked(each)), None):
            raise StateError(f"{place} lies in the run directory {run}: choose another one")
        if place.exists() and not place.is_dir():
            raise StateError(f"{place} is not a directory")
        if place.exists() and os.listdir(place):
            raise StateError(f"{place} is not empty: what others have there stays, choose another directory")
    except OSError as error:
        raise StateError(_why(error, directory, place)) from error
    if held_in(place, [Path.cwd()]):
        raise StateError(f"{place} is the working directory of the run: choose another one")
    return place


def _why(error: OSError, directory: Path, place: Path) -> str:
    if error.errno == errno.EXDEV:
        return (
            f"{place} is on another file system than {directory.parent}, where the run was made ready: files are not "
            "copied; let `output.directory` of the pipeline be there"
        )
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return f"{place} is not empty: what others have there stays, choose another directory"
    return f"{place} can't be the directory of the run: {error.strerror}"


CHECK_S = 0.5
"""Seconds from one check of a directory to the next."""


class Places:
    """The directories, each held open from its announcement on, in the order of the acquisitions.

    Files of an acquisition that is armed may get another place: its directory is renamed, a link stays where it was.

    Raises:
        OSError: the first can't be opened.
    """

    def __init__(self, first: str) -> None:
        self._held = [HeldDirectory(first)]
        self._looked = 0.0

    def add(self, directory: str) -> None:
        """Hold that of the next acquisition. Raises OSError."""
        self._held.append(HeldDirectory(directory))

    def gone(self, *, now: bool = False) -> str | None:
        """Return a sentence where the last is no longer where it was; looks from time to time, or ``now``."""
        if not now and time.monotonic() - self._looked <= CHECK_S:
            return None
        self._looked = time.monotonic()
        return self._held[-1].gone()

    def found(self, number: int) -> str:
        """Return where that of an acquisition, from 0, is now.

        Raises:
            RunFailed: it was removed.
        """
        return str(self._held[number].found())

    def move(self, target: Any) -> tuple[str, bool]:
        """Move the last to another place, see `move_run`; return where it is, and whether a link to it stays.

        Raises:
            StateError: it can't be there.
        """
        last = self._held[-1]
        if gone := last.gone():
            raise StateError(gone)
        last.path, linked = move_run(last.path, target)
        return str(last.path), linked

    def close(self) -> None:
        """Release them."""
        for one in self._held:
            one.close()
        self._held.clear()


WRITE_S = 0.5
"""Seconds from one writing of a master to the next; after a trigger it is written at once."""

SHARE = 20
"""Time from one writing to the next, in times of what it takes: on a slow disk it is done less often."""


@dataclass
class _Written:
    """A master, and from when on (`time.monotonic`) it may be written again."""

    master: LiveMaster
    due: float = 0.0


class LiveMasters:
    """Masters of the channels of a plan whose rows are known while it runs, kept as long as these.

    warn  is told of one that can't be written: the run goes on without it
    """

    def __init__(self, plan: Plan, warn: Callable[[str], None]) -> None:
        self._plan, self._warn = plan, warn
        self._templates: dict[str, Template] = {}
        self._masters: dict[str, _Written] = {}
        self._number = 0

    def begin(self, acquisition: LiveAcquisition) -> None:
        """Make the masters of an acquisition that was announced; they have no rows."""
        self._masters, self._number = {}, acquisition.outcome.number
        for name, channel in self._plan.channels.items():
            if not channel.live or library_is_broken():
                continue
            try:
                master = LiveMaster(channel, os.path.abspath(acquisition.directory), self._templates.get(name))
            except OSError as error:
                self._give_up(name, error)
            else:
                self._templates[name] = master.template
                self._masters[name] = _Written(master)

    def move(self, directory: str) -> None:
        """Note that the directory of the acquisition that was announced last has been moved."""
        for written in self._masters.values():
            written.master.move(directory)

    def inform(self, acquisition: LiveAcquisition, facts: Facts) -> None:
        """Take what the detector knows of the acquisition into the next writing, but for its flat fields."""
        if acquisition.outcome.number != self._number or library_is_broken():
            return
        few = facts.without_flatfields()
        for name, written in list(self._masters.items()):
            try:
                written.master.describe(informed(self._plan.channels[name], few))
            except (OSError, ValueError) as error:
                self._give_up(name, error)

    def follow(self, acquisition: LiveAcquisition, rows: Mapping[str, int], *, now: bool) -> None:
        """Write the masters that have more rows, those that are due or, where ``now``, all."""
        if acquisition.outcome.number != self._number or library_is_broken():
            return
        for name, written in list(self._masters.items()):
            began = time.monotonic()
            if rows.get(name, 0) <= written.master.rows or (began < written.due and not now):
                continue
            try:
                written.master.write(rows[name], self._saved(acquisition, name), acquisition.outcome.start_ns)
            except (OSError, ValueError, KeyError) as error:
                self._give_up(name, error)
            ended = time.monotonic()
            written.due = ended + max(WRITE_S, SHARE * (ended - began))

    def _saved(self, acquisition: LiveAcquisition, name: str) -> dict[int, int]:
        """Return the frames that each receiver, by index, has saved of a channel."""
        roles = {role.rank: role.receiver for role in self._plan.ranks if role.receiver is not None}
        return {roles[rank]: stats.saved.get(name, 0) for rank, stats in acquisition.stats.items() if rank in roles}

    def _give_up(self, name: str, error: Exception) -> None:
        """Leave a master as it is, until the end of the run writes the final one."""
        self._masters.pop(name, None)
        self._warn(f"the master of {name} does not grow during the run: {error}")
