"""The files that stand behind a reference: what must survive for its data to be read again.

A dataset of an HDF5 file may lie in another file (an external link), have its rows in others (a virtual dataset), or
its bytes (external storage); these may do the same. A group stands for all that it holds.

Readers of other kinds of references (a series of files) name the files of each with `backing_files`.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

SIGNATURE = b"\x89HDF\r\n\x1a\n"

SUFFIXES = (".h5", ".hdf5", ".nxs", ".cxi")

MOST = 20_000
"""Objects that are looked at, of all files together: a file may hold any number of scans."""


def backing_files(path: Path, *inner: str) -> frozenset[Path]:
    """The file and all that the objects ``inner`` in it need, links of the file system followed.

    What cannot be opened is named too, as far as it is known; nothing is raised.
    """
    todo: dict[Path, list[str]] = {path.absolute(): list(inner)}
    seen: set[tuple[Path, str]] = set()
    found: set[Path] = set()
    while todo:
        here, paths = todo.popitem()
        found.add(Path(os.path.realpath(here)))
        fresh = [one for one in paths if (here, one) not in seen][: MOST - len(seen)]
        seen.update((here, one) for one in fresh)
        for file, one in _needs(here, fresh) if fresh else ():
            todo.setdefault(file.absolute(), []).append(one)
    return frozenset(found)


def _needs(path: Path, inner: list[str]) -> list[tuple[Path, str]]:
    """What objects need, each file with the path in it."""
    if not _is_hdf5(path):
        return []
    import h5py

    needs: list[tuple[Path, str]] = []
    with suppress(OSError, RuntimeError), h5py.File(path, "r", locking="best-effort") as file:
        for one in inner:
            with suppress(OSError, RuntimeError, KeyError, ValueError):
                needs += _followed(file, path, one)
    return needs


def _named(path: Path, name: str) -> Iterator[Path]:
    """Where HDF5 looks for a file that another one names: beside that, as it was opened and as it is without links of
    the file system, and from the working directory; where it is nowhere, beside."""
    places = dict.fromkeys((path.parent / name, Path(os.path.realpath(path)).parent / name, Path(name)))
    yield from [place for place in places if os.path.lexists(place)] or [path.parent / name]


def _followed(file: Any, path: Path, inner: str) -> Iterator[tuple[Path, str]]:
    """Step by step: the first link that leads elsewhere takes the rest of the path with it."""
    import h5py

    here, steps = file["/"], [step for step in inner.split("/") if step]
    for index, step in enumerate(steps):
        link = here.get(step, getlink=True) if isinstance(here, h5py.Group) else None
        rest = "/".join(steps[index + 1 :])
        if isinstance(link, h5py.ExternalLink):
            yield from ((file, f"{link.path}/{rest}") for file in _named(path, link.filename))
            return
        if isinstance(link, h5py.SoftLink):
            base = "" if link.path.startswith("/") else here.name
            yield path, f"{base}/{link.path}/{rest}"
            return
        if link is None:
            return
        here = here[step]
    if isinstance(here, h5py.Group):
        for name in here:
            yield path, f"{here.name}/{name}"
    elif isinstance(here, h5py.Dataset):
        yield from _of_dataset(here, path)


def _of_dataset(dataset: Any, path: Path) -> Iterator[tuple[Path, str]]:
    for name, _, _ in dataset.external or ():
        yield from ((file, "/") for file in _named(path, os.fsdecode(name)))
    if dataset.is_virtual:
        for source in dataset.virtual_sources():
            for file in _expanded(path, source.file_name):
                yield file, source.dset_name


def _expanded(path: Path, name: str) -> Iterator[Path]:
    """The file of a source, or those of a series without a fixed end (``%b``: a number)."""
    if name == ".":
        yield path
    elif "%" in name.replace("%%", ""):
        start, _, end = name.partition("%b")
        yield from sorted((path.parent / start).parent.glob(f"{Path(start).name}*{end}"))
    else:
        yield from _named(path, name.replace("%%", "%"))


def _is_hdf5(path: Path) -> bool:
    """By its first bytes, or by its name where it has a user block. Nothing but regular files is opened."""
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(8) == SIGNATURE or path.suffix.lower() in SUFFIXES
    return False
