"""Files that options name for what is printed: never one that the pipeline reads, nor one of another kind."""

from collections.abc import Iterable
from pathlib import Path

from lima2cli.errors import EnvironmentUnfit

OTHERS = (
    ".yaml", ".yml", ".py", ".h5", ".hdf5", ".nxs", ".cxi", ".npy", ".npz", ".edf", ".cbf", ".tif", ".tiff", ".gz",
    ".bz2", ".zip", ".tar", ".poni",
)  # fmt: skip
"""Suffixes of pipelines, programs, data and archives: what is there of these is not replaced by a listing."""


def check_output(path: str, inputs: Iterable[str]) -> None:
    """Raise `EnvironmentUnfit` where a file is there that must not be replaced. ``inputs`` are absolute paths, links
    followed."""
    from lima2cli.runtime.ownership import names_of

    file = Path(path)
    if not file.exists():
        return
    real = file.resolve()
    if any(_same(real, Path(one)) for one in inputs):
        raise EnvironmentUnfit(f"{path} is read by the pipeline; it is left alone")
    if real.suffix.lower() in OTHERS:
        raise EnvironmentUnfit(f"{path} exists, and {real.suffix} files are not replaced by what is printed here")
    names = names_of(real.parent)
    if names is not None and names.owns(real.name):
        raise EnvironmentUnfit(f"{path} is a file of a run; it is left alone")


def write_output(path: str, text: str, inputs: Iterable[str]) -> None:
    """Write a text. Raises `EnvironmentUnfit`, see `check_output`, or where the system refuses."""
    check_output(path, inputs)
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise EnvironmentUnfit(f"cannot write {path}: {error.strerror or error}") from error


def _same(one: Path, other: Path) -> bool:
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False
