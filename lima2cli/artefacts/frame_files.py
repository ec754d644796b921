"""Frames of an open file: what readers of all formats have in common, and the readers of numpy and HDF5 files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.checked_rows import CheckedRows
from lima2cli.artefacts.hdf5_dataset import recorded_view
from lima2cli.artefacts.hdf5_declared import Declared, declared
from lima2cli.artefacts.hdf5_filters import load_filters
from lima2cli.artefacts.hdf5_links import follow
from lima2cli.artefacts.hdf5_survey import RULE as INCOMPLETE
from lima2cli.artefacts.hdf5_survey import Survey
from lima2cli.artefacts.lack import Lack, spans
from lima2cli.errors import FileProblem
from lima2cli.spec import DTYPES, Array, Invalid, StackInfo

CHUNK_CACHE_BYTES = 32 << 20
"""HDF5's default of 1 MiB would decompress a chunk of several frames once for each of them."""


class OpenStack:
    """Frames of an open file; a single image is a stack of one, and ``single``. Base of the readers.

    lack   frames that are not all there;  files  absolute paths of all that the stack is made of
    """

    info: StackInfo
    single: bool
    files: tuple[str, ...]

    def __init__(self, name: str, shape: tuple[int, ...] | None, dtype: "np.dtype[Any]") -> None:
        """Raises `FileProblem` (file-shape, file-dtype) for what is no stack of frames."""
        shape = shape or ()  # HDF5 has datasets without a shape
        self.name = name
        self.lack: Lack | None = None
        self.single = len(shape) == 2
        full = (1, *shape) if self.single else tuple(shape)
        if len(full) != 3 or 0 in full:
            shown = " x ".join(str(n) for n in shape) or "a single value"
            help = "one axis of frames: write a part or a reshaped copy of it" if len(full) > 3 else None
            raise FileProblem(f"{name} has the shape {shown}, not (frames, height, width)", "file-shape", help)
        size = (int(full[0]), int(full[1]), int(full[2]))
        self.info = StackInfo(size, pixel_dtype(name, dtype), taken=name)

    def lacks(self, lack: Lack | None) -> None:
        """Note which frames are not all there."""
        self.lack = lack
        if lack is not None:
            self.info = replace(self.info, missing=lack.count, lacking=str(lack))

    def declare(self, invalid: Invalid) -> None:
        """Note which values are no measurement."""
        self.info = replace(self.info, invalid=invalid)

    def read(self, numbers: Sequence[int]) -> Array:
        """Frames (len(numbers), height, width), C-contiguous, native byte order; booleans as uint8.

        Raises `FileProblem` where the file is damaged, IndexError for a frame that does not exist.
        """
        if len(numbers) and not (min(numbers) >= 0 and max(numbers) < self.info.shape[0]):
            raise IndexError(f"{self.name} has frames 0 to {self.info.shape[0] - 1}")
        try:
            return np.ascontiguousarray(self._read(numbers), self.info.dtype)
        except FileProblem:
            raise
        except Exception as error:
            raise unreadable(self.name, error) from error

    def missing(self, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """See `FrameReader`: none, as it is read by those who want all."""
        return None

    def unread(self) -> Sequence[str]:
        """See `FrameReader`."""
        return ()

    def _read(self, numbers: Sequence[int]) -> Array:
        raise NotImplementedError

    def close(self) -> None:
        """Close the file."""
        raise NotImplementedError


def pixel_dtype(name: str, dtype: "np.dtype[Any]") -> str:
    """The numpy name that pixels are read as; `FileProblem` where there is none."""
    found = "uint8" if dtype.kind == "b" else dtype.name
    if found not in DTYPES:
        raise FileProblem(f"{name} holds {found}, which is no type of pixels; known: {', '.join(DTYPES)}", "file-dtype")
    return found


def unreadable(name: str, error: Exception) -> FileProblem:
    """What a library said of a damaged file, in one line."""
    said = " ".join(str(error).split()) or f"it is damaged ({type(error).__name__})"
    return FileProblem(f"{name} cannot be read: {said}")


def open_hdf5(name: str, path: Path) -> Any:
    """The file, for reading. Raises `FileProblem`."""
    import h5py

    load_filters()
    try:
        return h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)
    except OSError as error:
        raise unreadable(name, error) from error


class Hdf5Stack(OpenStack):
    """A dataset of an open HDF5 file, which is closed with it; ``name`` is the file's, as the user wrote it.

    ``known`` keeps what is declared of frames of the same kind, so that it is looked for once in a series.
    """

    def __init__(self, name: str, file: Any, inner: str, known: dict[object, Declared] | None = None) -> None:
        self._file = file
        place = follow(file, inner)
        self._dataset = place.item
        super().__init__(f"{name}::{inner}", self._dataset.shape, self._dataset.dtype)
        _check_filters(self.name, self._dataset)
        self._checked = CheckedRows(self._dataset, place.parent)
        survey = Survey()
        self.lacks(survey.lack(self._dataset, place.parent))
        known, kind = {} if known is None else known, (self.info.shape[1:], self.info.dtype)
        if kind not in known:
            known[kind] = declared(name, file, inner, self.info)
        said = known[kind]
        self.info = replace(
            self.info,
            view=recorded_view(self._dataset),
            pixel_mask=said.pixel_mask,
            invalid=said.invalid,
            saturation=said.saturation,
            doubts=said.doubts,
        )
        self.files = tuple(dict.fromkeys((*place.files, *survey.files, *said.files)))

    def _read(self, numbers: Sequence[int]) -> Array:
        self._check(numbers)
        if self.single:
            return np.repeat(self._dataset[()][np.newaxis], len(numbers), 0)
        if isinstance(numbers, range) and len(numbers) and numbers.step > 0:
            frames: Array = self._dataset[numbers.start : numbers[-1] + 1 : numbers.step]
            return frames
        out = np.empty((len(numbers), *self.info.shape[1:]), self.info.dtype)
        for frame, number in zip(out, numbers, strict=True):
            frame[:] = self._dataset[number]
        return out

    def _check(self, numbers: Sequence[int]) -> None:
        """Raise `FileProblem` where frames are not as they were written; what is damaged might crash its filter."""
        damaged = self._checked.damaged(np.asarray(numbers, np.int64))
        if len(damaged):
            which = f"frame{'s' * (len(damaged) != 1)} {spans(damaged)}"
            raise FileProblem(f"{self.name}: the stored bytes of {which} are not those that were written", INCOMPLETE)

    def close(self) -> None:
        """See `OpenStack`; a file that a link led to is closed with its last object."""
        self._checked.close()
        self._dataset = None
        self._file.close()


def _check_filters(name: str, dataset: Any) -> None:
    """Raise `FileProblem` where the HDF5 library lacks what the chunks are compressed with."""
    import h5py

    layout = dataset.id.get_create_plist()
    for index in range(layout.get_nfilters()):
        code, _, _, label = layout.get_filter(index)
        if not h5py.h5z.filter_avail(code):
            known = label.decode(errors="replace").split(";")[0] or "unnamed"
            raise FileProblem(f"{name} cannot be read: this HDF5 library has no filter {code} ({known})")


class NumpyStack(OpenStack):
    """A ``.npy`` file, mapped into memory."""

    def __init__(self, name: str, path: Path) -> None:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise unreadable(name, error) from error
        super().__init__(name, array.shape, array.dtype)
        self._frames: Array = array[np.newaxis] if self.single else array
        self.files = (str(path.absolute()),)

    def _read(self, numbers: Sequence[int]) -> Array:
        return self._frames[np.asarray(numbers, np.intp)]

    def close(self) -> None:
        """See `OpenStack`."""
        del self._frames
