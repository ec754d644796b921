"""Which reader a file needs: by its suffix, else by its first bytes; and series of files."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lima2cli.artefacts.fabio_files import FabioStack
from lima2cli.artefacts.frame_files import Hdf5Stack, NumpyStack, OpenStack, open_hdf5, unreadable
from lima2cli.artefacts.hdf5_dataset import find_frames
from lima2cli.artefacts.hdf5_declared import Declared, planned_frames
from lima2cli.artefacts.series import files_of, is_pattern
from lima2cli.artefacts.series_files import Member, SeriesStack
from lima2cli.artefacts.tiff_files import TiffStack
from lima2cli.errors import FileProblem

HDF5: Sequence[str] = (".h5", ".hdf5", ".nxs", ".cxi", ".hdf", ".he5", ".nx5")
NUMPY: Sequence[str] = (".npy",)
TIFF: Sequence[str] = (".tif", ".tiff")
FABIO: Sequence[str] = (".edf", ".edf.gz", ".edf.bz2", ".cbf", ".cbf.gz", ".cbf.bz2")

MAGIC: dict[bytes, Sequence[str]] = {
    b"\x89HDF\r\n\x1a\n": HDF5,
    b"\x93NUMPY": NUMPY,
    b"II*\0": TIFF,
    b"MM\0*": TIFF,
    b"II+\0": TIFF,
    b"MM\0+": TIFF,
    b"###CBF": FABIO,
    b"{\n": FABIO,
    b"{\r": FABIO,
}
"""First bytes by format."""

SUSPECTS = 64
"""Files of a series that are smaller than the first, opened to see whether they are whole."""


def open_stack(name: str, path: Path, inner: str | None) -> OpenStack:
    """Open a file, or a series of files; ``name`` is what the user wrote for it, for messages."""
    if is_pattern(path):
        return _open_series(name, path, inner)
    return _open_file(name, path, inner)


def _open_file(name: str, path: Path, inner: str | None) -> OpenStack:
    kind = _kind(name, path)
    if not path.stat().st_size:
        raise FileProblem(f"{name} cannot be read: it is empty")
    if kind is HDF5:
        return _open_hdf5(name, path, inner)
    if inner is not None:
        raise FileProblem(f"{name}: only HDF5 files ({' '.join(HDF5)}) have datasets inside", "dataset-missing")
    if kind is NUMPY:
        return NumpyStack(name, path)
    if kind is TIFF:
        return TiffStack(name, path)
    return FabioStack(name, path)


def _kind(name: str, path: Path) -> Sequence[str]:
    """The format of a file, as its suffixes."""
    suffix = "".join(path.suffixes[-2:]) if path.suffix.lower() in (".gz", ".bz2") else path.suffix
    for kind in (HDF5, NUMPY, TIFF, FABIO):
        if suffix.lower() in kind:
            return kind
    try:
        with path.open("rb") as file:
            head = file.read(16)
            for at in (0, 512, 1024, 2048):  # HDF5 may stand behind a block of the user's
                file.seek(at)
                if file.read(8) == b"\x89HDF\r\n\x1a\n":
                    return HDF5
    except OSError as error:
        raise FileProblem(f"{name} cannot be read: {error.strerror}") from error
    for magic, meant in MAGIC.items():
        if head.startswith(magic):
            return meant
    known = " ".join((*HDF5[:5], *NUMPY, *TIFF, *FABIO))
    packed = " (unpack it first)" if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"PK")) else ""
    raise FileProblem(
        f"{name} has no suffix of a known format, and does not begin as one{packed}: {known}", "file-format"
    )


def _open_hdf5(name: str, path: Path, inner: str | None) -> OpenStack:
    """A dataset, or the datasets of a group that follow one another."""
    said = name if inner is None else f"{name}::{inner}"
    file = open_hdf5(said, path)
    with _closed_on_error(said, file):
        found = find_frames(file, said, inner)
        if not found.group:
            assert found.paths[0] is not None
            return Hdf5Stack(name, file, found.paths[0])
        total = planned_frames(file, found.group)
    file.close()
    known: dict[object, Declared] = {}
    members = [
        Member(part or "", str(path.absolute()), None if part is None else partial(_member, name, path, part, known))
        for part in found.paths
    ]
    return SeriesStack(f"{name}::{found.text}", members, found.holes, total)


def _member(name: str, path: Path, inner: str, known: dict[object, Declared]) -> OpenStack:
    """A dataset of a file that holds several of a series; what is declared of the first is ``known`` of all."""
    file = open_hdf5(name, path)
    with _closed_on_error(name, file):
        find_frames(file, f"{name}::{inner}", inner)  # which says what is wrong with a link
        return Hdf5Stack(name, file, inner, known)


@contextmanager
def _closed_on_error(name: str, file: Any) -> Iterator[None]:
    """Close the file where something is raised; what the HDF5 library raises of a damaged one becomes `FileProblem`."""
    try:
        yield
    except BaseException as error:
        file.close()
        if isinstance(error, OSError | RuntimeError | KeyError):
            raise unreadable(name, error) from error
        raise


def _open_series(name: str, path: Path, inner: str | None) -> OpenStack:
    """Files one after another.

    HDF5 files are opened, all of them. Of others the first and the last are, those that are empty, and some that are
    smaller than the first (of numpy files all of another size); the rest is expected to be like the first, which is
    looked at when it is read.
    """
    series = files_of(name, path)
    folder = path.parent
    names = [part for part in series.paths if part is not None]
    kind = _kind(names[0], folder / names[0])
    look = set(names) if kind is HDF5 else {names[0], names[-1], *_suspects(folder, names, others=kind is NUMPY)}
    one = None if kind is HDF5 else _frames_of(folder, names)
    shown = str(Path(name).parent)
    members = []
    for part in series.paths:
        if part is None:
            members.append(Member("", "", None))
            continue
        said = part if shown == "." else f"{shown}/{part}"
        opener = partial(_open_file, said, folder / part, inner)
        members.append(Member(said, str((folder / part).absolute()), opener, None if part in look else one))
    return SeriesStack(name if inner is None else f"{name}::{inner}", members, series.holes)


def _frames_of(folder: Path, names: Sequence[str]) -> int:
    """Frames of the first file that can be read."""
    for part in names[:8]:
        try:
            stack = _open_file(part, folder / part, None)
        except FileProblem:
            continue
        stack.close()
        return stack.info.shape[0]
    return 1


def _suspects(folder: Path, names: Sequence[str], *, others: bool) -> list[str]:
    """Files that may have been cut: empty ones, and the smallest of those that are smaller than the first; or all
    ``others`` than the first by their size."""
    sizes = {part: os.stat(folder / part).st_size for part in names}
    if others:
        return [part for part, size in sizes.items() if size != sizes[names[0]]]
    smaller = sorted((size, part) for part, size in sizes.items() if size < sizes[names[0]])
    empty = [part for size, part in smaller if not size]
    return empty + [part for _, part in smaller[len(empty) : len(empty) + SUSPECTS]]
