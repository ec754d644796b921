"""Frames and rows in the files of a run, as readers see them while these grow, and after its end."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.errors import FileProblem
from lima2cli.files.common_file import written_rows_files
from lima2cli.files.compression import load_filters
from lima2cli.files.inspection import detector_of
from lima2cli.files.live_master import grows, is_final
from lima2cli.files.nexus import (
    ENTRY,
    MEASUREMENT,
    ChannelRecord,
    frame_file_names,
    master_file,
    part_names,
    table_file,
)
from lima2cli.files.rows import rows_of
from lima2cli.files.sparse_writer import image_of, is_sparse

CHANGING_S = 1.0
"""Seconds for which files are tried again: they may be renamed, joined or closed just when they are opened."""

UNFINISHED = ".part"
"""End of the name of a common file that receivers write."""

P = ParamSpec("P")
T = TypeVar("T")


def _tried_again(function: Callable[P, T]) -> Callable[P, T]:
    """Call a function again, for a while, where it could not read a file; all other problems are final."""

    @wraps(function)
    def patient(*arguments: P.args, **named: P.kwargs) -> T:
        end = time.monotonic() + CHANGING_S
        while True:
            try:
                return function(*arguments, **named)
            except FileProblem as problem:
                if problem.__cause__ is None or time.monotonic() > end:
                    raise
            time.sleep(0.02)

    return patient


@contextmanager
def reading(path: Path) -> Iterator[Any]:
    """Open an HDF5 file that may still be growing, to read it (SWMR).

    Raises:
        FileProblem: it can't be read, or not before it is complete.
    """
    import h5py

    load_filters()
    # a lock of a common file would keep the end of the run from completing it
    options: dict[str, Any] = {"locking": False} if path.suffix == UNFINISHED else {}
    try:
        try:
            file = h5py.File(path, swmr=True, **options)
        except OSError:  # of a version that knows no SWMR, as common files are
            file = h5py.File(path, **options)
    except OSError as error:
        raise FileProblem(f"{path} can't be read (yet): {error}") from error
    with file:
        yield file


@_tried_again
def frame(directory: Path, name: str, node: str, number: int) -> tuple[int, NDArray[Any]]:
    """Return a frame of a channel, by its number, or by its place from the end (-1: the latest), and its number.

    name, node   of the pipeline and of the node that saves it

    Raises:
        FileProblem: it is not there, or not yet, or the channel has whole frames only after the run.
    """
    found, row, path = _found(directory, name, node, number)
    with reading(path) as file:
        return found, _pixels(file, row)


def _found(directory: Path, name: str, node: str, number: int) -> tuple[int, int, Path]:
    """Return the number of a frame, and the row and the file that it is in. Raises: as `frame`."""
    master = directory / master_file(name, node)
    pattern = frame_file_names(name, node)
    final = is_final(master)
    paths = [master] if final else _matching(directory, pattern)
    if not paths:
        return _found_in_common(directory, name, node, number)
    best: tuple[int, int, Path] | None = None
    behind: list[tuple[int, int, Path]] = []
    for path in paths:
        with reading(path) as file:
            numbers, rows = _numbers(file, final)
        if number >= 0:
            here = rows[numbers == number]
            best = best or ((number, int(here[0]), path) if len(here) else None)
        else:
            behind += [(int(numbers[at]), int(rows[at]), path) for at in range(max(0, len(rows) + number), len(rows))]
    behind.sort()
    if number < 0 and len(behind) >= -number:
        best = behind[number]
    if best is None:
        raise FileProblem(f"{node} has no frame {number}" + ("" if final else " yet"))
    return best


def _found_in_common(directory: Path, name: str, node: str, number: int) -> tuple[int, int, Path]:
    """Return the same as `_found` of a file that all receivers write, as far as they have noted what they wrote."""
    numbers, rows = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for note in written_rows_files(str(directory), name, node):
        with reading(directory / note) as file:
            record, held = ChannelRecord.read(file), file[MEASUREMENT]["frame_number"][()]
        if record is not None and record.role == "written":
            numbers.append(held)
            rows.append(rows_of(held, record.start, record.step))
    known, places = np.concatenate(numbers), np.concatenate(rows)
    order = np.argsort(known)
    found = np.flatnonzero(known == number) if number >= 0 else order[number : len(order) + number + 1]
    if not len(found) or -number > len(order):
        raise FileProblem(f"{node} has no frame {number} yet")
    return int(known[found[0]]), int(places[found[0]]), directory / f"{master_file(name, node)}{UNFINISHED}"


@dataclass(frozen=True, eq=False)
class SavedFrame:
    """A frame of a channel: ``pixels`` (height, width); of sparse ones the whole detector image.

    time_ns  of the detector, ns since the epoch; None where the file does not say
    mask     bool (height, width), True = no measurement in any frame; None = all pixels measure
    """

    number: int
    time_ns: int | None
    pixels: NDArray[Any]
    mask: NDArray[np.bool_] | None


@_tried_again
def saved_frame(directory: Path, name: str, node: str, number: int) -> SavedFrame:
    """Return a frame of a channel, by its number or its place from the end, with all that its file says of it.

    Raises: as `frame`.
    """
    found, row, path = _found(directory, name, node, number)
    with reading(path) as file:
        detector, record = detector_of(file), ChannelRecord.read(file)
        pixels, mask, times = _pixels(file, row), detector.get("pixel_mask"), detector.get("frame_time")
        start_ns = None if record is None else record.start_ns
        time_ns = None if times is None or not start_ns else start_ns + round(float(times[row]) * 1e9)
        if mask is not None and mask.shape != pixels.shape:  # sparse pixels of a part of the detector
            mask = None
        return SavedFrame(found, time_ns, pixels, None if mask is None else np.asarray(mask[()] != 0))


def _matching(directory: Path, pattern: re.Pattern[str]) -> list[Path]:
    return sorted(path for path in directory.iterdir() if pattern.fullmatch(path.name))


def _numbers(file: Any, final: bool) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
    """Return the numbers of the frames in a file, and their rows; of sparse ones only those whose pixels were saved.

    Rows of sparse frames that were lost have no pixels either: they would be images of a dark detector.
    """
    detector = detector_of(file)
    numbers, data = detector["frame_number"][()], detector["data"]
    rows = np.arange(len(numbers))
    if is_sparse(data):
        rows = rows[: len(data["frame_ptr"]) - 1]
        rows = rows[detector["frame_status"][()][: len(rows)] == 0] if final else rows
    return numbers[rows], rows


def _pixels(file: Any, row: int) -> NDArray[Any]:
    """Return a frame (height, width); of a sparse one the whole detector image.

    Raises:
        FileProblem: its pixels are not there yet.
    """
    data = detector_of(file)["data"]
    if not is_sparse(data):
        pixels: NDArray[Any] = data[row]
        return pixels
    try:
        return image_of(data, row)
    except OSError as error:
        raise FileProblem(f"{file.filename}: {error}") from error


@_tried_again
def columns(directory: Path, name: str, node: str, since: int = -1) -> dict[str, NDArray[Any]]:
    """Return the columns of a table as far as they are in its files, in the order of ``frame_number``.

    since  only rows of frames with a greater number

    Shapes: (n,) of each column, (n, length) of those with vectors.

    Raises:
        FileProblem: there is no such table, or not yet.
    """
    whole, pattern = directory / table_file(name, node), part_names(name, node)
    paths = [whole] if whole.exists() else _matching(directory, pattern)
    if not paths:
        raise FileProblem(f"{node} has no rows (yet)")
    parts = []
    for path in paths:
        with reading(path) as file:
            group = file[ENTRY]["measurement"]
            items = {key: item for key, item in group.items() if hasattr(item, "shape") and item.ndim}
            rows = min(map(len, items.values()), default=0)
            later = np.flatnonzero(items["frame_number"][:rows].astype(np.int64) > since)
            first = int(later[0]) if len(later) else rows
            parts.append({key: item[first:rows][later - first] for key, item in items.items()})
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(joined["frame_number"], kind="stable")
    return {key: values[order] for key, values in joined.items()}


def open_master(directory: Path, name: str, node: str) -> Any:
    """Return the dataset (n, height, width) of the frames of a channel, in its master; whoever asks closes its file.

    While the run goes on it has the rows that are final now.

    Raises:
        FileProblem: there is no master, or not yet.
    """
    import h5py

    load_filters()
    path = directory / master_file(name, node)
    try:
        return detector_of(h5py.File(path, swmr=grows(path)))["data"]
    except (OSError, KeyError) as error:
        raise FileProblem(f"{path} can't be read (yet): {error}") from error
