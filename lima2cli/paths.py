"""Paths by what they lead to: one file or directory may have several, through links, mounts and other names."""

import os
from collections.abc import Iterable
from pathlib import Path


def real(path: Path) -> Path:
    """The path with all links followed, of what need not exist."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):  # no name that a file can have
        return path.absolute()


def is_file(path: Path) -> bool:
    """Whether there is such a file; of no name that a file can have there is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file or directory, links followed."""
    try:
        return one == other or os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def held_in(directory: Path, paths: Iterable[str | Path]) -> list[Path]:
    """Those of some paths that are a directory, or lead to what lies in it, links followed. A directory that is mounted
    elsewhere, too, is the same there."""
    folder = real(directory)
    known: dict[Path, bool] = {}

    def inside(path: Path) -> bool:
        if path not in known:
            known[path] = same(path, folder) or (path.parent != path and inside(path.parent))
        return known[path]

    return [path for path in map(Path, paths) if inside(real(path))]


__all__ = ["held_in", "is_file", "real", "same"]
