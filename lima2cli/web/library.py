"""The pipelines and the runs that a server shows, by name: those named when it was started, those of one folder."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lima2cli.drive import Run, open_run, run
from lima2cli.errors import Lima2Error, UnreadableInput
from lima2cli.runs.directory import LATEST, SUMMARY, ListedRun, directories_in, read_run
from lima2cli.runs.saved_plan import PLAN_FILE

MOST_OPENED = 32
"""Runs that have ended which are kept open."""

Version = tuple[int, int]
"""Time and inode of a summary: they tell it from that of another run in the same place."""


class Library:
    """Pipelines and runs. Its methods wait for files and runs: they are called in threads.

    pipelines  paths of files, by name;  folder  that of the runs
    """

    def __init__(self, files: Sequence[str], folder: str) -> None:
        """Name the pipelines by their files.

        Raises:
            UnreadableInput: two have the same name, or there is no such file.
        """
        self.folder = Path(folder)
        self.pipelines: dict[str, str] = {}
        self._opened: dict[str, tuple[Version | None, Run]] = {}
        self._elsewhere: dict[str, Path] = {}
        self._ended: dict[str, tuple[Version, ListedRun]] = {}
        self._lock = threading.Lock()
        for file in files:
            name = Path(file).stem
            if name in self.pipelines:
                raise UnreadableInput(f"{self.pipelines[name]} and {file} have the same name, {name}")
            if not Path(file).is_file():
                raise UnreadableInput(f"there is no file {file}")
            self.pipelines[name] = file

    def names(self) -> list[str]:
        """Return the names of all runs, the newest last."""
        return list(self._directories())

    def _directories(self) -> dict[str, Path]:
        """Return the run directories by name: those in the folder, and of runs started here those elsewhere."""
        here = directories_in(self.folder) if self.folder.is_dir() else ()
        found = self._elsewhere | {entry.name: entry for entry in here}
        return dict(sorted(found.items(), key=lambda item: (_made(item[1]), item[0])))

    def latest(self) -> str | None:
        """Return the name of the newest run; None where there is none."""
        names = self.names()
        return names[-1] if names else None

    def listed(self) -> list[ListedRun]:
        """Return all runs as they stand, the newest last."""
        return [self.look(name) for name in self.names()]

    def look(self, name: str) -> ListedRun:
        """Return a run as it stands; those that have ended are read once.

        Raises:
            UnreadableInput: there is none of that name.
        """
        directory = self.directory(name)
        version = _version(directory)
        if version is not None and name in self._ended and self._ended[name][0] == version:
            return self._ended[name][1]
        found = read_run(directory)
        if version is not None and found.summary is not None:
            self._ended[name] = version, found
        return found

    def directory(self, name: str) -> Path:
        """Return the directory of a run by its name: one of `names`, ``latest``, or that which it had before a move.

        Raises:
            UnreadableInput: there is none.
        """
        found = self._directories()
        if name == LATEST and found:
            name = list(found)[-1]
        if name not in found and (self.folder / Path(name).name).is_symlink():
            name = (self.folder / name).resolve().name
        if name not in found:
            raise UnreadableInput(f"there is no run {name}")
        return found[name]

    def open(self, name: str) -> Run:
        """Return a run, to be watched and driven where it goes on.

        Raises:
            UnreadableInput: there is none of that name.
        """
        directory = self.directory(name)
        name = directory.name
        with self._lock:
            version = _version(directory)
            before, opened = self._opened.pop(name, (None, None))
            if opened is not None and before == version and (opened.live or version is not None):
                self._opened[name] = version, opened
                return opened
            if opened is not None:
                opened.leave()
            found = open_run(directory.resolve(), watched=version is None)
            self._opened[name] = version, found
            ended = [other for other, (summary, _) in self._opened.items() if summary is not None]
            for other in ended[:-MOST_OPENED]:
                del self._opened[other]
            return found

    def start(self, pipeline: str, text: str | None, *, armed: bool, transport: str, overrides: Sequence[str]) -> Run:
        """Start a run of a pipeline by its name, or of a text, which goes on without the server.

        Raises: as `lima2cli.drive.run`.
        """
        what = Path(self.file(pipeline)) if text is None else text + "\n"
        started = run(what, armed=armed, transport=transport, overrides=overrides, apart=True)
        threading.Thread(target=_attend, args=(started,), daemon=True).start()
        if started.directory.parent != self.folder.resolve():
            self._elsewhere[started.directory.name] = started.directory
        return started

    def file(self, pipeline: str) -> str:
        """Return the path of a pipeline.

        Raises:
            UnreadableInput: none of that name was named.
        """
        if pipeline not in self.pipelines:
            raise UnreadableInput(f"there is no pipeline {pipeline}")
        return self.pipelines[pipeline]

    def close(self) -> None:
        """Watch no run any longer; they go on."""
        with self._lock:
            for _, opened in self._opened.values():
                opened.leave()
            self._opened.clear()


def _attend(started: Run) -> None:
    """Wait for the end of the process of a run; what became of the run is in its summary."""
    with suppress(Lima2Error):
        started.wait()


def _version(directory: Path) -> Version | None:
    """Return the version of a run that has ended; None before its end."""
    try:
        state = (directory / SUMMARY).stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_ino


def _made(directory: Path) -> float:
    try:
        return (directory / PLAN_FILE).stat().st_mtime
    except OSError:  # it has been removed meanwhile
        return 0.0
