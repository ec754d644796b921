"""Run directories: their names, the protection of what is not the run's own, and the runs that are on disk."""

import datetime
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field
from pathlib import Path
from string import Formatter
from typing import Any

from lima2cli.accounting.summary import Summary, read_summary, reserve_summary
from lima2cli.dataclass import dataclass
from lima2cli.errors import EnvironmentUnfit, RunFailed, UnreadableInput
from lima2cli.files.disk import advice
from lima2cli.files.nexus import SUMMARY
from lima2cli.paths import held_in, real
from lima2cli.runs.control_socket import ask, starting, where
from lima2cli.runs.ownership import (
    Ownership,
    RunNames,
    foreign,
    has_saved,
    listed,
    mark,
    marked,
    moved_from,
    names_of,
    remove_run,
    take,
)
from lima2cli.runs.saved_plan import PIPELINE_FILE, PLAN_FILE

LATEST = "latest"


class Claim:
    """A run directory of this process, marked and locked.

    path    of the directory;  before  where the run lies that was there before, None without one
    """

    def __init__(
        self, path: Path, lease: Ownership, before: Path | None = None, before_lease: Ownership | None = None
    ) -> None:
        self.path, self.before = path, before
        self._leases = [lease] if before_lease is None else [lease, before_lease]

    def __str__(self) -> str:
        return str(self.path)

    def keep(self) -> list[str]:
        """Remove the run before, since this one has files; return the names of files of others that stay.

        Files of others that were put there meanwhile stay, and are named.
        """
        before, self.before = self.before, None
        return [] if before is None else remove_run(before)

    def give_back(self) -> Path:
        """Give the run before its place again, since this one has no files.

        Returns where this one's log and summary are then.
        """
        before, self.before = self.before, None
        if before is None:
            return self.path
        failed = _free(self.path.with_name(f"{self.path.name}.failed"), replaces=True)
        self.path.rename(failed)
        before.rename(self.path)
        return failed

    def undo(self) -> None:
        """Remove what is left of a run that was not started, and give the previous run its place back.

        Raises:
            OSError: the system refuses.
        """
        remove_run(self.path)
        if self.before is not None:
            self.before.rename(self.path)
            self.before = None
        self.release()

    def release(self) -> None:
        """Unlock it."""
        for lease in self._leases:
            lease.release()


def make_directory(
    template: str,
    name: str,
    if_exists: str,
    now: datetime.datetime,
    *,
    latest: bool = True,
    names: RunNames | None = None,
    inputs: Sequence[str] = (),
) -> Claim:
    """Make the run's directory and return its claim; with ``latest``, point the link of that name next to it to it.

    ``{run}`` is the next number that is free. ``inputs`` are files that the run reads.

    Raises:
        EnvironmentUnfit: the directory exists and may not be overwritten, or cannot be made; nothing has been changed.
    """
    try:
        claim = _claim(template, name, if_exists, now, names or RunNames(name), inputs)
    except OSError as error:
        help = "; ".join(["", *advice([str(error)], template, whole=True)])
        raise EnvironmentUnfit(f"cannot make the run directory: {error}{help}") from error
    if latest:
        _point_latest(claim.path)
    return claim


def make_another(directory: Path, template: str, names: RunNames, ends: int = 0) -> Claim:
    """Make the directory of the next acquisition of a job and return its claim, with an absolute path.

    It has the files about the origin of its data, as in ``directory``, and disk space for ``ends`` bytes at its end.

    Raises:
        EnvironmentUnfit: it can't be made; nothing is left of it.
    """
    now = datetime.datetime.now().astimezone()
    claim = make_directory(template, names.name, "abort", now, names=names)
    claim.path = claim.path.resolve()
    try:
        for file in (PIPELINE_FILE, PLAN_FILE):
            shutil.copyfile(directory / file, claim.path / file)
        reserve_summary(claim.path, ends)
    except OSError as error:
        with suppress(OSError):
            claim.undo()
        raise EnvironmentUnfit(f"cannot write in {claim}: {error}") from error
    return claim


def _claim(
    template: str, name: str, if_exists: str, now: datetime.datetime, names: RunNames, inputs: Sequence[str]
) -> Claim:
    fields = {"name": name, "date": f"{now:%Y-%m-%d}", "time": f"{now:%H%M%S}", "uuid": str(uuid.uuid4())}
    if not any(field == "run" for _, field, _, _ in Formatter().parse(template)):
        directory = Path(template.format(**fields))
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(directory.parent):
            if not os.path.lexists(directory):
                return _fresh(directory, names)
            if if_exists != "overwrite":
                help = "give output.directory a {run} number, or if_exists: overwrite"
                raise EnvironmentUnfit(f"{directory} exists; {help}")
            return _overwrite(directory, names, inputs)
    run = _last_run(template, fields) + 1
    while True:
        directory = Path(template.format(run=run, **fields))
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _fresh(directory, names)
        except FileExistsError:
            run += 1  # another run was faster


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep other runs from moving directories of a folder aside, or to their place, meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fresh(directory: Path, names: RunNames) -> Claim:
    """Make a new directory and return its claim.

    Raises:
        FileExistsError: another run was faster.
    """
    directory.mkdir()
    return Claim(directory, mark(directory, names))


def _last_run(template: str, fields: dict[str, str]) -> int:
    """Return the highest number in use, 0 if none."""
    parsed = Formatter().parse(template)
    shown = Path(
        "".join(text + ("\0" if field == "run" else fields.get(field or "", "")) for text, field, _, _ in parsed)
    )
    part = next((i for i, piece in enumerate(shown.parts) if "\0" in piece), len(shown.parts) - 1)
    parent = Path(*shown.parts[:part]) if part else Path()
    pattern = re.compile(re.escape(shown.parts[part]).replace("\0", r"(\d+)") + "$")
    if not parent.is_dir():
        return 0
    matches = (pattern.match(entry.name) for entry in parent.iterdir())
    return max((int(match[1]) for match in matches if match), default=0)


def _overwrite(directory: Path, names: RunNames, inputs: Sequence[str]) -> Claim:
    """Return the claim of an existing directory, once it is known to be a run of ours that has ended."""
    if directory.is_symlink():
        if moved_from(directory) != real(directory.parent) / directory.name:
            raise EnvironmentUnfit(f"{directory} is a link to {os.readlink(directory)}; it is left unchanged")
        take(directory).release()
        directory.unlink()  # the run that it leads to was moved, and stays
        return _fresh(directory, names)
    if not directory.is_dir():
        raise EnvironmentUnfit(f"{directory} is not a directory; it is left unchanged")
    if not os.listdir(directory):
        try:
            return Claim(directory, mark(directory, names))
        except FileExistsError:  # another was faster
            raise EnvironmentUnfit(f"a run is active in {directory}; it is left unchanged") from None
    lease = take(directory)
    try:
        _check_removable(directory, lease, inputs)
        return _exchange(directory, names, lease)
    except BaseException:
        lease.release()
        raise


def _exchange(directory: Path, names: RunNames, lease: Ownership) -> Claim:
    """Return the claim of a new directory, marked already, put in the place of the old one, which is moved aside."""
    fresh = directory.with_name(f".{directory.name}-{uuid.uuid4().hex}")
    fresh.mkdir()
    own = mark(fresh, names)
    aside = _free(directory.with_name(f"{directory.name}.old"))
    try:
        directory.rename(aside)
        try:
            fresh.rename(directory)
        except OSError:
            aside.rename(directory)
            raise
    except OSError:
        remove_run(fresh)
        own.release()
        raise
    return Claim(directory, own, aside, lease)


def _check_removable(directory: Path, lease: Ownership, inputs: Sequence[str]) -> None:
    """Raise `EnvironmentUnfit` where something would be lost that is not the run's, or is still needed."""
    if others := foreign(directory, lease.names):
        raise EnvironmentUnfit(
            f"{directory} contains files that its run has not written ({listed(others)}); "
            "move them away, or remove the directory"
        )
    if read := held_in(directory, inputs):
        raise EnvironmentUnfit(
            f"{directory} contains inputs of the pipeline ({listed(read)}): choose another directory"
        )
    if held_in(directory, [Path.cwd()]):
        raise EnvironmentUnfit(f"{directory} is the working directory; it is left unchanged")


def _free(path: Path, *, replaces: bool = False) -> Path:
    """Return a path of that name, or with a number, where there is nothing.

    replaces  a run there that is ours and saved nothing is removed, where nothing else lies next to its files
    """
    number, free = 1, path
    while os.path.lexists(free):
        if replaces and not free.is_symlink() and _removed(free):
            break
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _removed(directory: Path) -> bool:
    try:
        lease = take(directory)
    except EnvironmentUnfit:
        return False
    try:
        return has_saved(directory) is False and not foreign(directory, lease.names) and not remove_run(directory)
    finally:
        lease.release()


def remove_unused(directory: Path, before: Path) -> bool:
    """Remove the directory of an acquisition of this job that saved nothing; return whether it is gone.

    It stays where anything else lies there. The link to the newest run then leads to the one ``before``.
    """
    names = names_of(directory)
    try:
        if names is None or has_saved(directory) is not False or foreign(directory, names) or remove_run(directory):
            return False
    except OSError:
        return False
    if (link := directory.parent / LATEST).is_symlink() and os.readlink(link) == directory.name:
        with suppress(OSError):
            _point_latest(_found_in(directory.parent, before))
    return True


def _found_in(folder: Path, run: Path) -> Path:
    """Return a run by its name in a folder: where it was moved from there, that of the link to it."""
    links = (entry for entry in folder.iterdir() if entry.is_symlink() and entry.name != LATEST)
    return next((link for link in links if run.parent != folder and link.resolve() == run.resolve()), run)


def _point_latest(directory: Path) -> None:
    """Make a relative link, replaced in one step.

    Only where it leads to a run next to it, or to one that is gone; where the file system has no links there is none.
    """
    link = directory.parent / LATEST
    if os.path.lexists(link) and not _ours(link):
        return
    fresh = link.with_name(f".{LATEST}-{uuid.uuid4().hex}")
    try:
        fresh.symlink_to(directory.name)
        fresh.replace(link)
    except OSError:
        fresh.unlink(missing_ok=True)


def _ours(link: Path) -> bool:
    if not link.is_symlink():
        return False
    target = os.readlink(link)
    run = link.parent / target
    return Path(target).name == target and (not os.path.lexists(run) or marked(run) or (run / PLAN_FILE).is_file())


RUNS = "runs"


@dataclass(frozen=True)
class ListedRun:
    """A run directory.

    state    ``starting``, ``live``, ``aborted``, ``damaged`` (its summary, or where it is controlled, is none), or
             what its summary has
    summary  None of a run that has none
    answer   of a live run to ``status``; else empty
    """

    directory: Path
    state: str
    summary: Summary | None = None
    answer: Mapping[str, Any] = field(default_factory=dict)


def find_run(name: str) -> Path:
    """Return a run directory by its path, or by its name below ``runs``.

    Raises:
        UnreadableInput: there is none.
    """
    for directory in (Path(name), Path(RUNS) / name):
        if (directory / PLAN_FILE).is_file():
            return directory
    raise UnreadableInput(f"there is no run {name}: neither {name}/{PLAN_FILE} nor {RUNS}/{name}/{PLAN_FILE}")


def read_run(directory: Path) -> ListedRun:
    """Return a run as it stands."""
    summary = read_summary(directory)
    if summary is not None:
        return ListedRun(directory, summary.state, summary)
    if (directory / SUMMARY).exists():
        return ListedRun(directory, "damaged")
    try:
        place = where(directory)
    except UnreadableInput:
        return ListedRun(directory, "damaged")
    if place is not None and starting(place):
        return ListedRun(directory, "starting")
    try:
        answer = ask(directory, {"do": "status"}) if place is not None else {}
    except RunFailed:
        answer = {}
    if answer.get("ok"):
        return ListedRun(directory, "live", answer=answer)
    return ListedRun(directory, "aborted")


def runs_in(folder: Path) -> Iterator[ListedRun]:
    """Yield all runs below a folder, by name.

    Raises:
        UnreadableInput: there is no such folder.
    """
    if not folder.is_dir():
        raise UnreadableInput(f"there is no folder {folder}")
    yield from map(read_run, sorted(directories_in(folder)))


def directories_in(folder: Path) -> Iterator[Path]:
    """Yield the run directories in a folder, and the links to those that were moved out of it, each run once."""
    for entry in folder.iterdir():
        twice = entry.is_symlink() and (entry.name == LATEST or entry.resolve().parent == folder.resolve())
        if not twice and (entry / PLAN_FILE).is_file():
            yield entry


__all__ = ["LATEST", "SUMMARY", "Claim", "make_another", "make_directory"]
