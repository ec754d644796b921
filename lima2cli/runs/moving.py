"""Another place for the files of an acquisition that is armed: its directory is renamed, a link stays where it was."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from lima2cli.errors import StateError
from lima2cli.paths import held_in, real
from lima2cli.runs.directory import LATEST
from lima2cli.runs.ownership import MOVED, marked


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
