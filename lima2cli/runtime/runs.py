"""Runs on disk, those that have ended and those that go on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lima2cli.errors import RunFailed, UnreadableInput
from lima2cli.runtime.announcement import starting, where
from lima2cli.runtime.directory import LATEST, SUMMARY
from lima2cli.runtime.origin import PLAN_FILE
from lima2cli.runtime.requests import ask
from lima2cli.runtime.summary import read_summary

RUNS = "runs"


@dataclass(frozen=True)
class Run:
    """A run directory. ``state``: ``starting``, ``live``, ``broken off``, ``damaged`` (its summary, or where it is
    controlled, is none), or what its summary says. ``told`` is its summary, or of a live run what it answers to
    ``status``; empty where nothing is known."""

    directory: Path
    state: str
    told: dict[str, Any]


def find_run(name: str) -> Path:
    """A run directory by its path, or by its name below ``runs``. Raises `UnreadableInput` where there is none."""
    for directory in (Path(name), Path(RUNS) / name):
        if (directory / PLAN_FILE).is_file():
            return directory
    raise UnreadableInput(f"there is no run {name}: neither {name}/{PLAN_FILE} nor {RUNS}/{name}/{PLAN_FILE}")


def look(directory: Path) -> Run:
    """A run as it stands."""
    summary = read_summary(directory)
    if summary is not None:
        return Run(directory, str(summary["state"]), summary)
    if (directory / SUMMARY).exists():
        return Run(directory, "damaged", {})
    try:
        told = where(directory)
    except UnreadableInput:
        return Run(directory, "damaged", {})
    if told is not None and starting(told):
        return Run(directory, "starting", {})
    try:
        answer = ask(directory, {"do": "status"}) if told is not None else {}
    except RunFailed:
        answer = {}
    if answer.get("ok"):
        return Run(directory, "live", answer)
    return Run(directory, "broken off", {})


def runs_in(folder: Path) -> Iterator[Run]:
    """All runs below a folder, by name. Raises `UnreadableInput` where there is no such folder."""
    if not folder.is_dir():
        raise UnreadableInput(f"there is no folder {folder}")
    for entry in sorted(folder.iterdir()):
        if entry.name != LATEST and (entry / PLAN_FILE).is_file():
            yield look(entry)
