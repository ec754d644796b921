"""Files with data in them, by the reference that a pipeline gives: found, opened once, kept, closed together."""

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from lima2cli.artefacts.backing import backing_files
from lima2cli.artefacts.formats import open_stack
from lima2cli.artefacts.frame_files import OpenStack
from lima2cli.artefacts.series import is_pattern
from lima2cli.artefacts.series_files import Skipping
from lima2cli.errors import FileProblem
from lima2cli.human import size_text
from lima2cli.names import nearest
from lima2cli.spec import Array, FrameReader, StackInfo

LARGEST_IMAGE = 512 << 20
"""Bytes of a file's images that are held in memory: calibrations, masks."""


class FileStore:
    """Reads ``path.h5::/path/in/file``, ``path.h5``, ``path.npy``, ``c_%05d.cbf``… relative to ``base``.

    Which dataset an HDF5 file without a path in it means: see `find_frames`. Infos and images are kept; files of
    `frames` stay open until `close`. Raises `FileProblem` with the rules file-missing, file-unreadable, file-format,
    file-shape, file-dtype, file-series, file-incomplete, dataset-missing, dataset-ambiguous.
    """

    def __init__(self, base: Path, texts: Mapping[str, str] | None = None) -> None:
        """``texts`` by reference are not read again."""
        self.texts = dict(texts or {})
        self._base = Path(base)
        self._infos: dict[str, StackInfo] = {}
        self._images: dict[str, Array] = {}
        self._open: dict[str, OpenStack] = {}
        self._read: dict[str, Callable[[], frozenset[Path]]] = {}

    @property
    def base(self) -> Path:
        """Directory that references are relative to."""
        return self._base

    def inputs(self) -> dict[str, frozenset[Path]]:
        """The files that stand behind each reference that was asked for (`backing_files`)."""
        return {reference: files() for reference, files in self._read.items()}

    def stack(self, reference: str, *, skip: bool = False) -> StackInfo:
        """Shape (n, height, width) and dtype, without reading the frames; a single image is a stack of one."""
        if reference not in self._infos:
            stack = self._opened(reference)
            if reference not in self._open:
                stack.close()
        info = self._infos[reference]
        return info if skip else _whole(reference, info)

    def image(self, reference: str) -> Array:
        """(height, width) for a single image, else (n, height, width): whole, read-only, kept."""
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
        """A reader that holds no more than the frames it is asked for; valid until `close`."""
        if reference not in self._open:
            self._open[reference] = self._opened(reference)
        stack = self._open[reference]
        if skip:
            return Skipping(stack)
        _whole(reference, stack.info)
        return stack

    def path(self, reference: str) -> str:
        """Absolute path of a file; `FileProblem` where there is none."""
        path = self._base / reference
        _check_file(reference, path)
        self._read[reference] = partial(backing_files, path)
        return str(path.resolve())

    def text(self, reference: str) -> str:
        """A text in UTF-8; kept. `FileProblem` where there is none."""
        path = self._base / reference
        self._read[reference] = partial(backing_files, path)
        if reference not in self.texts:
            _check_file(reference, path)
            try:
                self.texts[reference] = path.read_bytes().decode("utf-8")
            except OSError as error:
                raise FileProblem(f"{reference} cannot be read: {error.strerror}") from error
            except ValueError as error:
                raise FileProblem(f"{reference} is no text in UTF-8: {error}") from error
        return self.texts[reference]

    def close(self) -> None:
        """Close all files; what was read remains."""
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
    """The same; `FileProblem` where frames are not all there."""
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
        if not path.parent.is_dir():
            raise FileProblem(f"there is no file {name}: no directory {path.parent}", "file-missing")
        best = nearest(path.name, (entry.name for entry in path.parent.iterdir() if entry.is_file()))
    except OSError as error:  # no permission, a name that is too long
        raise FileProblem(f"{name} cannot be read: {error.strerror}") from error
    hint = f"; did you mean {best}?" if best else ""
    raise FileProblem(f"there is no file {name} in {path.parent}{hint}", "file-missing")
