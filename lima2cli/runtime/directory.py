"""The run directory: its name, and that no run ever writes into another's."""

import datetime
import re
import shutil
import uuid
from pathlib import Path

from lima2cli.errors import EnvironmentUnfit
from lima2cli.runtime.origin import PIPELINE_FILE, PLAN_FILE

SUMMARY = "summary.json"
LATEST = "latest"


def make_directory(template: str, name: str, if_exists: str, now: datetime.datetime, *, latest: bool = True) -> Path:
    """Make the run's directory and, with ``latest``, point the link of that name beside it to it.

    ``{run}`` is the next number that is free. Raises `EnvironmentUnfit` where the directory exists and may not be
    overwritten, is not a run directory, or cannot be made.
    """
    try:
        directory = _claim(template, name, if_exists, now)
    except OSError as error:
        raise EnvironmentUnfit(f"cannot make the run directory: {error}") from error
    if latest:
        _point_latest(directory)
    return directory


def make_another(directory: Path, template: str, name: str) -> Path:
    """The directory of the next acquisition of a job, with the files that tell where its data come from, as in
    ``directory``. Its absolute path. Raises `EnvironmentUnfit`."""
    made = make_directory(template, name, "abort", datetime.datetime.now().astimezone()).resolve()
    try:
        for file in (PIPELINE_FILE, PLAN_FILE):
            shutil.copyfile(directory / file, made / file)
    except OSError as error:
        raise EnvironmentUnfit(f"cannot write in {made}: {error}") from error
    return made


def _claim(template: str, name: str, if_exists: str, now: datetime.datetime) -> Path:
    fields = {"name": name, "date": f"{now:%Y-%m-%d}", "time": f"{now:%H%M%S}", "uuid": str(uuid.uuid4())}
    if not re.search(r"\{run\b", template):
        return _claim_exactly(Path(template.format(**fields)), if_exists)
    run = _last_run(template, fields) + 1
    while True:
        directory = Path(template.format(run=run, **fields))
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            run += 1  # another run was faster
        else:
            return directory


def _last_run(template: str, fields: dict[str, str]) -> int:
    """The highest number in use, 0 if none."""
    shown = Path(re.sub(r"\{run[^}]*\}", "\0", template).format(**fields))
    part = next((i for i, piece in enumerate(shown.parts) if "\0" in piece), len(shown.parts) - 1)
    parent = Path(*shown.parts[:part]) if part else Path()
    pattern = re.compile(re.escape(shown.parts[part]).replace("\0", r"(\d+)") + "$")
    if not parent.is_dir():
        return 0
    found = (pattern.match(entry.name) for entry in parent.iterdir())
    return max((int(match[1]) for match in found if match), default=0)


def _claim_exactly(directory: Path, if_exists: str) -> Path:
    if directory.exists():
        if if_exists != "overwrite":
            raise EnvironmentUnfit(
                f"{directory} exists; give output.directory a {{run}} number, or if_exists: overwrite"
            )
        if any(directory.iterdir()) and not (directory / SUMMARY).exists():
            raise EnvironmentUnfit(f"{directory} is not a run directory (no {SUMMARY}); it is left alone")
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    return directory


def _point_latest(directory: Path) -> None:
    """A relative link, replaced in one step; where the file system has no links there is none."""
    link = directory.parent / LATEST
    if link.exists() and not link.is_symlink():
        return
    fresh = link.with_name(f".{LATEST}-{uuid.uuid4().hex}")
    try:
        fresh.symlink_to(directory.name)
        fresh.replace(link)
    except OSError:
        fresh.unlink(missing_ok=True)
