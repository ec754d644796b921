"""Open files of frames by the reference that a pipeline gives: the reader of each, opened once, kept, and closed."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from lima2cli.diagnostics import nearest
from lima2cli.errors import FileProblem
from lima2cli.frames import Array, FrameReader, StackInfo
from lima2cli.inputs.hdf5_declared import Declared, planned_frames
from lima2cli.inputs.hdf5_survey import MOST, walk
from lima2cli.inputs.images import FabioStack, TiffStack
from lima2cli.inputs.open_stack import (
    Hdf5Stack,
    Member,
    NumpyStack,
    OpenStack,
    SeriesStack,
    Skipping,
    open_hdf5,
    unreadable,
)
from lima2cli.inputs.references import files_of, find_frames, is_pattern
from lima2cli.units import size_text

SIGNATURE = b"\x89HDF\r\n\x1a\n"

SUFFIXES = (".h5", ".hdf5", ".nxs", ".cxi")


def backing_files(path: Path, *inner: str) -> frozenset[Path]:
    """Return the file and all that the objects ``inner`` in it need, links of the file system followed.

    A file that cannot be opened is named too, as far as it is known; nothing is raised.
    """
    todo: dict[Path, list[str]] = {path.absolute(): list(inner)}
    visited: set[tuple[Path, str]] = set()
    seen: set[tuple[int, int]] = set()
    files: set[Path] = set()
    while todo:
        here, paths = todo.popitem()
        files.add(Path(os.path.realpath(here)))
        fresh = [one for one in paths if (here, one) not in visited][: MOST - len(visited)]
        visited.update((here, one) for one in fresh)
        for file, one in _needs(here, fresh, seen) if fresh else ():
            todo.setdefault(file.absolute(), []).append(one)
    return frozenset(files)


def _needs(path: Path, inner: list[str], seen: set[tuple[int, int]]) -> list[tuple[Path, str]]:
    """Return the files that objects need, each with the path in it."""
    if not _is_hdf5(path):
        return []
    import h5py

    needs: list[tuple[Path, str]] = []
    with suppress(OSError, RuntimeError), h5py.File(path, "r", locking="best-effort") as file:
        for one in inner:
            with suppress(OSError, RuntimeError, KeyError, ValueError, TypeError):
                needs += _followed(file, path, one, seen)
    return needs


def _named(path: Path, name: str) -> Iterator[Path]:
    """Yield the places where HDF5 looks for a file that another one names: next to that, as it was opened and without
    links of the file system, and from the working directory; next to it where it is nowhere.
    """
    places = dict.fromkeys((path.parent / name, Path(os.path.realpath(path)).parent / name, Path(name)))
    yield from [place for place in places if os.path.lexists(place)] or [path.parent / name]


def _followed(file: Any, path: Path, inner: str, seen: set[tuple[int, int]]) -> Iterator[tuple[Path, str]]:
    """Yield the targets of a path, step by step: the first link that leads elsewhere takes the rest with it."""
    import h5py

    here, steps = file["/"], [step for step in inner.split("/") if step]
    for index, step in enumerate(steps):
        link = here.get(step, getlink=True) if isinstance(here, h5py.Group) else None
        rest = "/".join(steps[index + 1 :])
        if link is None:
            return
        if not isinstance(link, h5py.HardLink):
            yield from _linked(link, path, "/".join(["", *steps[:index]]), rest)
            return
        here = here[step]
    if isinstance(here, h5py.Group):
        base = f"/{'/'.join(steps)}"
        for where, link, item in walk(here, seen):
            holder = f"{base}/{where}".rpartition("/")[0]
            if isinstance(link, h5py.HardLink):
                yield from _of_dataset(item, path) if isinstance(item, h5py.Dataset) else ()
            else:
                yield from _linked(link, path, holder, "")
    elif isinstance(here, h5py.Dataset):
        yield from _of_dataset(here, path)


def _linked(link: Any, path: Path, holder: str, rest: str) -> Iterator[tuple[Path, str]]:
    """Yield the target of a soft or external link in the group ``holder`` of a file, and the ``rest`` of the path."""
    import h5py

    if isinstance(link, h5py.ExternalLink):
        yield from ((file, f"{link.path}/{rest}") for file in _named(path, link.filename))
    else:
        yield path, f"{'' if link.path.startswith('/') else holder}/{link.path}/{rest}"


def _of_dataset(dataset: Any, path: Path) -> Iterator[tuple[Path, str]]:
    for name, _, _ in dataset.external or ():
        yield from ((file, "/") for file in _named(path, os.fsdecode(name)))
    if dataset.is_virtual:
        for source in dataset.virtual_sources():
            for file in _expanded(path, source.file_name):
                yield file, source.dset_name


def _expanded(path: Path, name: str) -> Iterator[Path]:
    """Yield the file of a source, or those of a series without a fixed end (``%b``: a number)."""
    if name == ".":
        yield path
    elif "%" in name.replace("%%", ""):
        start, _, end = name.partition("%b")
        yield from sorted((path.parent / start).parent.glob(f"{Path(start).name}*{end}"))
    else:
        yield from _named(path, name.replace("%%", "%"))


def _is_hdf5(path: Path) -> bool:
    """Return True if a file is HDF5 by its first bytes, or by its name where it has a user block.

    Only regular files are opened.
    """
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(8) == SIGNATURE or path.suffix.lower() in SUFFIXES
    return False


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
"""Most files of a series, smaller than the first, that are opened to see if they are whole."""


def open_stack(name: str, path: Path, inner: str | None) -> OpenStack:
    """Open a file, or a series of files; ``name`` is the user's reference to it, for messages."""
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
    """Return the format of a file, as its suffixes.

    Raises: FileProblem where the file cannot be read, or is of no known format.
    """
    suffix = "".join(path.suffixes[-2:]) if path.suffix.lower() in (".gz", ".bz2") else path.suffix
    for kind in (HDF5, NUMPY, TIFF, FABIO):
        if suffix.lower() in kind:
            return kind
    try:
        with path.open("rb") as file:
            head = file.read(16)
            for at in (0, 512, 1024, 2048):  # HDF5 may follow a user block
                file.seek(at)
                if file.read(8) == b"\x89HDF\r\n\x1a\n":
                    return HDF5
    except OSError as error:
        raise FileProblem(f"{name} cannot be read: {error.strerror}") from error
    for magic, suffixes in MAGIC.items():
        if head.startswith(magic):
            return suffixes
    known = " ".join((*HDF5[:5], *NUMPY, *TIFF, *FABIO))
    packed = " (unpack it first)" if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"PK")) else ""
    raise FileProblem(
        f"{name} has no suffix of a known format, and does not begin as one{packed}: {known}", "file-format"
    )


def _open_hdf5(name: str, path: Path, inner: str | None) -> OpenStack:
    """Open a dataset, or the datasets of a group that follow one another."""
    reference = name if inner is None else f"{name}::{inner}"
    file = open_hdf5(reference, path)
    with _closed_on_error(reference, file):
        series = find_frames(file, reference, inner)
        if not series.group:
            assert series.paths[0] is not None
            return Hdf5Stack(name, file, series.paths[0])
        total = planned_frames(file, series.group)
    file.close()
    known: dict[object, Declared] = {}
    members = [
        Member(part or "", str(path.absolute()), None if part is None else partial(_member, name, path, part, known))
        for part in series.paths
    ]
    return SeriesStack(f"{name}::{series.text}", members, series.holes, total)


def _member(name: str, path: Path, inner: str, known: dict[object, Declared]) -> OpenStack:
    """Open a dataset of a file that holds several of a series; the first one's declarations are ``known`` of all."""
    file = open_hdf5(name, path)
    with _closed_on_error(name, file):
        find_frames(file, f"{name}::{inner}", inner)  # raises for a broken link
        return Hdf5Stack(name, file, inner, known)


@contextmanager
def _closed_on_error(name: str, file: Any) -> Iterator[None]:
    """Close the file where an error is raised; the HDF5 library's errors of a damaged one become `FileProblem`."""
    try:
        yield
    except BaseException as error:
        file.close()
        if isinstance(error, OSError | RuntimeError | KeyError):
            raise unreadable(name, error) from error
        raise


def _open_series(name: str, path: Path, inner: str | None) -> OpenStack:
    """Open files one after another.

    HDF5 files are opened, all of them. Of others the first and the last are, those that are empty, and some that are
    smaller than the first (of numpy files all of another size); the rest is expected to be like the first, which is
    checked when it is read.
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
        reference = part if shown == "." else f"{shown}/{part}"
        opener = partial(_open_file, reference, folder / part, inner)
        members.append(Member(reference, str((folder / part).absolute()), opener, None if part in look else one))
    return SeriesStack(name if inner is None else f"{name}::{inner}", members, series.holes)


def _frames_of(folder: Path, names: Sequence[str]) -> int:
    """Return the count of frames of the first file that can be read."""
    for part in names[:8]:
        try:
            stack = _open_file(part, folder / part, None)
        except FileProblem:
            continue
        stack.close()
        return stack.info.shape[0]
    return 1


def _suspects(folder: Path, names: Sequence[str], *, others: bool) -> list[str]:
    """Return files that may have been cut: empty ones, and the smallest of those that are smaller than the first; or
    all ``others`` than the first by their size.
    """
    sizes = {part: os.stat(folder / part).st_size for part in names}
    if others:
        return [part for part, size in sizes.items() if size != sizes[names[0]]]
    smaller = sorted((size, part) for part, size in sizes.items() if size < sizes[names[0]])
    empty = [part for size, part in smaller if not size]
    return empty + [part for _, part in smaller[len(empty) : len(empty) + SUSPECTS]]


LARGEST_IMAGE = 512 << 20
"""Most bytes of a file's images that are held in memory: calibrations, masks."""


class FileStore:
    """Reader of ``path.h5::/path/in/file``, ``path.h5``, ``path.npy``, ``c_%05d.cbf``… relative to ``base``.

    The dataset of an HDF5 file without a path in it: see `find_frames`. Infos and images are kept; files of `frames`
    stay open until `close`.

    Raises: FileProblem with the rules file-missing, file-unreadable, file-format, file-shape, file-dtype, file-series,
    file-incomplete, dataset-missing, dataset-ambiguous.
    """

    def __init__(self, base: Path, texts: Mapping[str, str] | None = None) -> None:
        """Keep ``base``; ``texts`` by reference are not read again."""
        self.texts = dict(texts or {})
        self._base = Path(base)
        self._infos: dict[str, StackInfo] = {}
        self._images: dict[str, Array] = {}
        self._open: dict[str, OpenStack] = {}
        self._read: dict[str, Callable[[], frozenset[Path]]] = {}

    @property
    def base(self) -> Path:
        """Return the directory that references are relative to."""
        return self._base

    def inputs(self) -> dict[str, frozenset[Path]]:
        """Return the files behind each reference that was asked for (`backing_files`)."""
        return {reference: files() for reference, files in self._read.items()}

    def stack(self, reference: str, *, skip: bool = False) -> StackInfo:
        """Return shape (n, height, width) and dtype, without reading the frames; a single image is a stack of one."""
        if reference not in self._infos:
            stack = self._opened(reference)
            if reference not in self._open:
                stack.close()
        info = self._infos[reference]
        return info if skip else _whole(reference, info)

    def image(self, reference: str) -> Array:
        """Return (height, width) for a single image, else (n, height, width): whole, read-only, kept."""
        if reference not in self._images:
            stack = self._opened(reference)
            try:
                _whole(reference, stack.info)
                _check_size(reference, stack.info)
                frames = stack.read(range(stack.info.shape[0]))
            finally:
                if reference not in self._open:
                    stack.close()
            frames = frames[0] if stack.single else frames
            frames.setflags(write=False)
            self._images[reference] = frames
        return self._images[reference]

    def frames(self, reference: str, *, skip: bool = False) -> FrameReader:
        """Return a reader that holds no more than the frames it is asked for; valid until `close`."""
        if reference not in self._open:
            self._open[reference] = self._opened(reference)
        stack = self._open[reference]
        if skip:
            return Skipping(stack)
        _whole(reference, stack.info)
        return stack

    def path(self, reference: str) -> str:
        """Return the absolute path of a file.

        Raises: FileProblem where there is none.
        """
        path = self._base / reference
        _check_file(reference, path)
        self._read[reference] = partial(backing_files, path)
        return str(path.resolve())

    def text(self, reference: str) -> str:
        """Return a UTF-8 text; kept.

        Raises: FileProblem where there is none.
        """
        path = self._base / reference
        self._read[reference] = partial(backing_files, path)
        if reference not in self.texts:
            _check_file(reference, path)
            try:
                self.texts[reference] = path.read_bytes().decode("utf-8")
            except OSError as error:
                raise FileProblem(f"{reference} cannot be read: {error.strerror}") from error
            except ValueError as error:
                raise FileProblem(f"{reference} is not text in UTF-8: {error}") from error
        return self.texts[reference]

    def close(self) -> None:
        """Close all files; data that were read remain."""
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self, reference: str) -> OpenStack:
        if reference in self._open:
            return self._open[reference]
        name, _, inner = reference.partition("::")
        path = self._base / name
        if inner and not path.exists() and (self._base / reference).is_file():
            raise FileProblem(f"{reference}: the name of a file ends at `::`; give it another", "file-missing")
        self._read[reference] = partial(backing_files, path, inner or "/")
        if not is_pattern(path):
            _check_file(name, path)
        stack = open_stack(name, path, inner or None)
        self._infos[reference] = stack.info
        files = frozenset(Path(os.path.realpath(file)) for file in stack.files)
        self._read[reference] = lambda: files | (frozenset() if is_pattern(path) else backing_files(path, inner or "/"))
        return stack


def _whole(reference: str, info: StackInfo) -> StackInfo:
    """Return the info of frames that are all there.

    Raises: FileProblem where some are not.
    """
    if info.missing:
        raise FileProblem(f"{reference} {info.lacking}", "file-incomplete")
    return info


def _check_size(reference: str, info: StackInfo) -> None:
    size = math.prod(info.shape) * np.dtype(info.dtype).itemsize
    if size > LARGEST_IMAGE:
        message = f"{reference} has {size_text(size)} of images, more than {size_text(LARGEST_IMAGE)}"
        raise FileProblem(message, "file-too-large")


def _check_file(name: str, path: Path) -> None:
    try:
        if path.is_file():
            return
        if path.is_dir():
            raise FileProblem(f"{name or path} is a directory, not a file")
        file, colon, inside = str(path).rpartition(":/")
        if colon and Path(file).is_file():
            meant = f"{name.partition(':/')[0]}::/{inside}"
            raise FileProblem(f"there is no file {name}; did you mean {meant}?", "file-missing")
        if not path.parent.is_dir():
            raise FileProblem(f"there is no file {name}: no directory {path.parent}", "file-missing")
        best = nearest(path.name, (entry.name for entry in path.parent.iterdir() if entry.is_file()))
    except OSError as error:  # no permission, a name that is too long
        raise FileProblem(f"{name} cannot be read: {error.strerror}") from error
    hint = f"; did you mean {best}?" if best else ""
    raise FileProblem(f"there is no file {name} in {path.parent}{hint}", "file-missing")
