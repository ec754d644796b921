"""How frames lie in files of each format: one reader per format, which decodes only the frames asked for.

HDF5 (h5py, with the filters of hdf5plugin), numpy ``.npy``, and EDF, CBF and TIFF by fabio where it is installed.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lima2cli.artefacts.hdf5_dataset import find_dataset, missing_sources, recorded_view
from lima2cli.errors import FileProblem
from lima2cli.spec import DTYPES, Array, StackInfo

HDF5 = (".h5", ".hdf5", ".nxs", ".cxi")
FABIO = (".edf", ".edf.gz", ".cbf", ".tif", ".tiff")
NUMPY = (".npy",)

CHUNK_CACHE_BYTES = 32 << 20
"""HDF5's default of 1 MiB would decompress a chunk of several frames once for each of them."""


class OpenStack:
    """Frames of an open file; a single image is a stack of one, and ``single``. Base of the readers."""

    info: StackInfo
    single: bool

    def __init__(self, name: str, shape: tuple[int, ...] | None, dtype: "np.dtype[Any]") -> None:
        """Raises `FileProblem` (file-shape, file-dtype) for what is no stack of frames."""
        shape = shape or ()  # HDF5 has datasets without a shape
        self._name = name
        self.single = len(shape) == 2
        full = (1, *shape) if self.single else tuple(shape)
        if len(full) != 3 or 0 in full:
            shown = " x ".join(str(n) for n in shape) or "a single value"
            raise FileProblem(f"{name} has the shape {shown}, not (frames, height, width)", "file-shape")
        self.info = StackInfo((int(full[0]), int(full[1]), int(full[2])), pixel_dtype(name, dtype))

    def read(self, numbers: Sequence[int]) -> Array:
        """Frames (len(numbers), height, width), C-contiguous, native byte order; booleans as uint8.

        Raises `FileProblem` where the file is damaged, IndexError for a frame that does not exist.
        """
        if len(numbers) and not (min(numbers) >= 0 and max(numbers) < self.info.shape[0]):
            raise IndexError(f"{self._name} has frames 0 to {self.info.shape[0] - 1}")
        try:
            return np.ascontiguousarray(self._read(numbers), self.info.dtype)
        except FileProblem:
            raise
        except Exception as error:
            raise unreadable(self._name, error) from error

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
    return FileProblem(f"{name} cannot be read: {' '.join(str(error).split()) or type(error).__name__}")


class Hdf5Stack(OpenStack):
    """A dataset of an HDF5 file, its default one where ``inner`` is None."""

    def __init__(self, name: str, path: Path, inner: str | None) -> None:
        import h5py
        import hdf5plugin  # noqa: F401  registers the compression filters

        try:
            self._file = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)
        except OSError as error:
            raise unreadable(name, error) from error
        try:
            self._dataset = find_dataset(self._file, name, inner)
            found = f"{name.partition('::')[0]}::{self._dataset.name}"
            super().__init__(found, self._dataset.shape, self._dataset.dtype)
            self.info = replace(self.info, view=recorded_view(self._dataset))
            if (gap := missing_sources(self._dataset)) is not None:
                raise FileProblem(f"{name} is a virtual dataset, and {gap}", "file-missing")
        except BaseException:
            self._file.close()
            raise

    def _read(self, numbers: Sequence[int]) -> Array:
        if self.single:
            return np.repeat(self._dataset[()][np.newaxis], len(numbers), 0)
        if isinstance(numbers, range) and len(numbers) and numbers.step > 0:
            frames: Array = self._dataset[numbers.start : numbers[-1] + 1 : numbers.step]
            return frames
        out = np.empty((len(numbers), *self.info.shape[1:]), self.info.dtype)
        for frame, number in zip(out, numbers, strict=True):
            frame[:] = self._dataset[number]
        return out

    def close(self) -> None:
        self._file.close()


class NumpyStack(OpenStack):
    """A ``.npy`` file, mapped into memory."""

    def __init__(self, name: str, path: Path) -> None:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise unreadable(name, error) from error
        super().__init__(name, array.shape, array.dtype)
        self._frames: Array = array[np.newaxis] if self.single else array

    def _read(self, numbers: Sequence[int]) -> Array:
        return self._frames[np.asarray(numbers, np.intp)]

    def close(self) -> None:
        del self._frames


class FabioStack(OpenStack):
    """An image file that fabio reads, with one or several frames of the same shape."""

    def __init__(self, name: str, path: Path) -> None:
        try:
            import fabio
        except ImportError:
            raise FileProblem(f"{name}: reading {path.suffix} files needs fabio: `pip install fabio`") from None
        logging.getLogger("fabio").addHandler(logging.NullHandler())  # it prints what it also raises
        try:
            self._image = fabio.open(str(path))
            first: Array = np.asarray(self._image.get_frame(0).data)
            count = int(self._image.nframes)
        except Exception as error:
            raise unreadable(name, error) from error
        single = count == 1 and first.ndim == 2  # colours would make a third axis
        super().__init__(name, first.shape if single else (count, *first.shape), first.dtype)

    def _read(self, numbers: Sequence[int]) -> Array:
        out = np.empty((len(numbers), *self.info.shape[1:]), self.info.dtype)
        for frame, number in zip(out, numbers, strict=True):
            data = self._image.get_frame(int(number)).data
            if data.shape != frame.shape or data.dtype != out.dtype:
                raise FileProblem(f"{self._name}: frame {number} differs from frame 0 in shape or dtype", "file-shape")
            frame[:] = data
        return out

    def close(self) -> None:
        self._image.close()


def open_stack(name: str, path: Path, inner: str | None) -> OpenStack:
    """Open a file by its suffix; ``name`` is the reference as the user wrote it, for messages."""
    suffix = "".join(path.suffixes[-2:]).lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if suffix in HDF5:
        return Hdf5Stack(name, path, inner)
    if inner is not None:
        raise FileProblem(f"{name}: only HDF5 files ({' '.join(HDF5)}) have datasets inside", "dataset-missing")
    if suffix in NUMPY:
        return NumpyStack(name, path)
    if suffix in FABIO:
        return FabioStack(name, path)
    known = " ".join((*HDF5, *NUMPY, *FABIO))
    raise FileProblem(f"{name} has no suffix of a known format: {known}", "file-format")
