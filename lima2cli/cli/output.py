"""Files that options name for what is printed: never one that the pipeline reads, nor one of another kind."""

from collections.abc import Iterable
from pathlib import Path

from lima2cli.errors import EnvironmentUnfit
from lima2cli.paths import same

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
    target = file.resolve()
    if any(same(file, Path(one)) for one in inputs):
        raise EnvironmentUnfit(f"{path} is read by the pipeline; it is left alone")
    if target.suffix.lower() in OTHERS:
        raise EnvironmentUnfit(f"{path} exists, and {target.suffix} files are not replaced by what is printed here")
    names = names_of(target.parent)
    if names is not None and names.owns(target.name):
        raise EnvironmentUnfit(f"{path} is a file of a run; it is left alone")


def write_output(path: str, text: str, inputs: Iterable[str]) -> None:
    """Write a text. Raises `EnvironmentUnfit`, see `check_output`, or where the system refuses."""
    check_output(path, inputs)
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise EnvironmentUnfit(f"cannot write {path}: {error.strerror or error}") from error
