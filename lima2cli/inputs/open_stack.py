"""Frames of open files: the common part of readers of all formats, of single files and of series of them."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.errors import FileProblem
from lima2cli.files.compression import load_filters
from lima2cli.frames import DTYPES, Array, Invalid, StackInfo
from lima2cli.inputs.hdf5_declared import CheckedRows, Declared, declared
from lima2cli.inputs.hdf5_survey import RULE as INCOMPLETE
from lima2cli.inputs.hdf5_survey import Survey, follow
from lima2cli.inputs.missing import Missing, both, chained, lack_of, spans
from lima2cli.inputs.references import recorded_view

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
        """Take name, shape and dtype.

        Raises: FileProblem (file-shape, file-dtype) for anything that is not a stack of frames.
        """
        shape = shape or ()  # HDF5 has datasets without a shape
        self.name = name
        self.lack: Missing | None = None
        self.single = len(shape) == 2
        full = (1, *shape) if self.single else tuple(shape)
        if len(full) != 3 or 0 in full:
            shown = " x ".join(str(n) for n in shape) or "a single value"
            help = "one axis of frames: write a part or a reshaped copy of it" if len(full) > 3 else None
            raise FileProblem(f"{name} has the shape {shown}, not (frames, height, width)", "file-shape", help)
        size = (int(full[0]), int(full[1]), int(full[2]))
        self.info = StackInfo(size, pixel_dtype(name, dtype), taken=name)

    def lacks(self, lack: Missing | None) -> None:
        """Note the frames that are not all there."""
        self.lack = lack
        if lack is not None:
            self.info = replace(self.info, missing=lack.count, lacking=str(lack))

    def declare(self, invalid: Invalid) -> None:
        """Note the values that are not measurements."""
        self.info = replace(self.info, invalid=invalid)

    def read(self, numbers: Sequence[int]) -> Array:
        """Return frames (len(numbers), height, width), C-contiguous, native byte order; booleans as uint8.

        Raises: FileProblem where the file is damaged, IndexError for a frame that does not exist.
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
        """Return None: the reader is for those who want all frames, see `FrameReader`."""
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
    """Return the numpy name that pixels are read as.

    Raises: FileProblem where there is none.
    """
    name_read = "uint8" if dtype.kind == "b" else dtype.name
    if name_read not in DTYPES:
        raise FileProblem(
            f"{name} holds {name_read}, which is not a type of pixels; known: {', '.join(DTYPES)}", "file-dtype"
        )
    return name_read


def unreadable(name: str, error: Exception) -> FileProblem:
    """Return a library's error of a damaged file as a problem, in one line."""
    reason = " ".join(str(error).split()) or f"it is damaged ({type(error).__name__})"
    return FileProblem(f"{name} cannot be read: {reason}")


def open_hdf5(name: str, path: Path) -> Any:
    """Open the file, for reading.

    Raises: FileProblem.
    """
    import h5py

    load_filters()
    try:
        return h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)
    except OSError as error:
        raise unreadable(name, error) from error


class Hdf5Stack(OpenStack):
    """A dataset of an open HDF5 file, which is closed with it; ``name`` is the file's, as the user wrote it.

    ``known`` keeps the declarations about frames of the same kind, so that they are read once in a series.
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
        declaration = known[kind]
        self.info = replace(
            self.info,
            view=recorded_view(self._dataset),
            pixel_mask=declaration.pixel_mask,
            invalid=declaration.invalid,
            saturation=declaration.saturation,
            doubts=declaration.doubts,
        )
        self.files = tuple(dict.fromkeys((*place.files, *survey.files, *declaration.files)))

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
        """Check that frames are as they were written; damaged chunks might crash their filter.

        Raises: FileProblem.
        """
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
    """Check that the HDF5 library has the filters of the chunks.

    Raises: FileProblem.
    """
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
        except Exception as error:  # headers are text for Python's own parser, which raises anything
            raise unreadable(name, error) from error
        super().__init__(name, array.shape, array.dtype)
        self._frames: Array = array[np.newaxis] if self.single else array
        self.files = (str(path.absolute()),)

    def _read(self, numbers: Sequence[int]) -> Array:
        return self._frames[np.asarray(numbers, np.intp)]

    def close(self) -> None:
        """See `OpenStack`."""
        del self._frames


OPEN = 4
"""Most files of a series that stay open."""

KEPT_REASONS = 8
"""Most frames for which the reason of a failed read is kept."""


@dataclass(frozen=True)
class Member:
    """A member of a series, in its file. ``open`` is None where it is missing; ``frames`` is its count of frames, None
    where it must be opened first.
    """

    name: str
    file: str
    open: Callable[[], OpenStack] | None
    frames: int | None = None


class SeriesStack(OpenStack):
    """Frames of all members in their order. A missing member has as many frames as the first that exists."""

    def __init__(self, name: str, members: Sequence[Member], holes: str, total: int | None = None) -> None:
        """Chain the members; ``holes`` names the missing ones; ``total`` frames were to be there, None: not known."""
        self._members = members
        self._kept: OrderedDict[int, OpenStack] = OrderedDict()
        self.name = name
        first, stack = self._first(name)
        counts, lacks, files = self._counted(stack, first, holes)
        self._ends = np.cumsum(counts)
        held = int(self._ends[-1])
        count = max(held, total or 0)
        super().__init__(name, (count, *stack.info.shape[1:]), np.dtype(stack.info.dtype))
        whole = chained(zip(counts, lacks, ("" for _ in counts), strict=True), count)
        beyond = lack_of(np.arange(count) >= held, f"{count} were expected, but {held} are in the files")
        self.info = replace(stack.info, shape=self.info.shape, taken=name, missing=0, lacking=None)
        self.lacks(both(whole, beyond))
        self.files = tuple(dict.fromkeys(files))

    def _first(self, name: str) -> tuple[int, OpenStack]:
        """Return the first member that can be read: the pattern of all frames.

        Raises: FileProblem where none can be read.
        """
        problem: FileProblem | None = None
        for number, member in enumerate(self._members):
            if member.open is not None:
                try:
                    return number, self._opened(number)
                except FileProblem as error:
                    problem = problem or error
                    if number > OPEN:
                        break
        if problem is None:
            raise FileProblem(f"{name}: none of its files exist", "file-missing")
        raise FileProblem(f"{name}: {problem}", problem.rule, problem.help)

    def _counted(self, example: OpenStack, first: int, holes: str) -> tuple[list[int], list[Missing | None], list[str]]:
        """Return the count of frames of each member, their lacks, and all files."""
        counts: list[int] = []
        lacks: list[Missing | None] = []
        files: list[str] = list(example.files)
        nominal = example.info.shape[0]
        for number, member in enumerate(self._members):
            count, lack = nominal, None
            if member.open is None:
                lack = lack_of(np.ones(nominal, bool), f"{holes} missing")
            elif member.frames is not None and number != first:
                count = member.frames
                files.append(member.file)
            else:
                try:
                    stack = self._opened(number)
                    count, lack = stack.info.shape[0], stack.lack
                    lack = None if lack is None else lack_of(lack.rows, f"{member.name} {lack}")
                    files += stack.files
                except FileProblem as error:
                    lack = lack_of(np.ones(nominal, bool), str(error))
                    files.append(member.file)
            counts.append(count)
            lacks.append(lack)
        return counts, lacks, files

    def _opened(self, number: int) -> OpenStack:
        """Return a member, open.

        Raises: FileProblem, also where its frames are not like the first's.
        """
        stack = self._kept.pop(number, None)
        if stack is None:
            member = self._members[number]
            assert member.open is not None
            stack = member.open()
        self._kept[number] = stack
        reference = next(iter(self._kept.values())) if not hasattr(self, "_like") else None
        if reference is not None:
            self._like = (stack.info.shape[1:], stack.info.dtype)
        elif (stack.info.shape[1:], stack.info.dtype) != self._like:
            self._kept.pop(number).close()
            (height, width), dtype = self._like
            message = f"{stack.name} differs from the others of its series, which are {height} x {width} {dtype}"
            raise FileProblem(message, "file-shape")
        while len(self._kept) > OPEN:
            self._kept.popitem(last=False)[1].close()
        return stack

    def _read(self, numbers: Sequence[int]) -> Array:
        asked = np.asarray(numbers, np.int64)
        out = np.empty((len(asked), *self.info.shape[1:]), self.info.dtype)
        owners = np.searchsorted(self._ends, asked, "right")
        edges = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(asked)]
        for begin, end in pairwise(edges):
            if begin == end:
                continue
            owner = int(owners[begin])
            first = int(self._ends[owner - 1]) if owner else 0
            part = asked[begin:end] - first
            stack = self._opened(owner)
            if stack.lack is not None and stack.lack.rows[part].any():
                raise FileProblem(f"{stack.name} {stack.lack}", "file-incomplete")
            if int(part.max()) >= stack.info.shape[0]:
                raise FileProblem(f"{stack.name} has only {stack.info.shape[0]} frames", "file-incomplete")
            out[begin:end] = stack.read(_sequence(part))
        return out

    def close(self) -> None:
        """See `OpenStack`."""
        while self._kept:
            self._kept.popitem()[1].close()


def _sequence(numbers: NDArray[np.int64]) -> Sequence[int]:
    """Return the same numbers, as a range where they go in equal steps: such frames are read at once."""
    steps = np.diff(numbers)
    step = int(steps[0]) if len(steps) else 1
    if len(numbers) and step > 0 and (steps == step).all():
        return range(int(numbers[0]), int(numbers[-1]) + 1, step)
    return [int(number) for number in numbers]


class Skipping:
    """A `FrameReader` for those who skip frames that are not all there, and those that cannot be read."""

    def __init__(self, stack: OpenStack) -> None:
        self._stack = stack
        self.info: StackInfo = stack.info
        self._unread: list[str] = []
        count = stack.info.shape[0]
        self._absent = np.zeros(count, bool) if stack.lack is None else stack.lack.rows.copy()

    def read(self, numbers: Sequence[int]) -> Array:
        """See `FrameReader`."""
        asked = np.asarray(numbers, np.int64)
        there = np.flatnonzero(~self._absent[asked])
        if len(there) == len(asked):
            frames = self._together(numbers)
            if frames is not None:
                return frames
        out = np.zeros((len(asked), *self.info.shape[1:]), self.info.dtype)
        for places in np.split(there, np.flatnonzero(np.diff(there) != 1) + 1):
            part = _sequence(asked[places])
            frames = self._together(part) if len(part) else out[:0]
            out[places] = self._one_by_one(part) if frames is None else frames
        return out

    def _together(self, numbers: Sequence[int]) -> Array | None:
        """Return frames that should be there; None where one cannot be read."""
        try:
            return self._stack.read(numbers)
        except FileProblem:
            return None  # which one, and why, `_one_by_one` finds

    def _one_by_one(self, numbers: Sequence[int]) -> Array:
        """Return frames, with zeros for unreadable ones, which are missing from now on."""
        out = np.zeros((len(numbers), *self.info.shape[1:]), self.info.dtype)
        for frame, number in zip(out, numbers, strict=True):
            try:
                frame[:] = self._stack.read(range(number, number + 1))[0]
            except FileProblem as problem:
                self._absent[number] = True
                if len(self._unread) < KEPT_REASONS:
                    self._unread.append(f"frame {number} counts as missing: {problem}")
        return out

    def unread(self) -> Sequence[str]:
        """See `FrameReader`."""
        return self._unread

    def missing(self, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """See `FrameReader`."""
        absent: NDArray[np.bool_] = self._absent[np.asarray(numbers, np.int64)]
        return absent if absent.any() else None
