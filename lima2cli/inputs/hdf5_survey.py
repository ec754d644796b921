"""Survey the frames of an HDF5 dataset that exist, through all links: HDF5 reads fill values where there are none."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.errors import FileProblem
from lima2cli.inputs.missing import Missing, both, lack_of

HOPS = 64
"""Most links that are followed before they are taken for a cycle."""


@dataclass(frozen=True, eq=False)
class ResolvedObject:
    """An object and its real path, without links, in the file that it is in; ``files`` are those on the way."""

    item: Any
    file: Any
    path: str
    files: tuple[str, ...]

    @property
    def parent(self) -> Any:
        """Return the group that holds it."""
        return self.file[self.path.rpartition("/")[0] or "/"]


def follow(file: Any, path: str) -> ResolvedObject:
    """Return the object at an absolute path.

    Raises: KeyError or OSError where a link leads nowhere.
    """
    import h5py

    ahead = [name for name in path.split("/") if name]
    here, done = file["/"], ""
    files = [file.filename]
    hops = 0
    while ahead:
        name = ahead.pop(0)
        if not isinstance(here, h5py.Group):
            raise KeyError(f"{done} is not a group")
        link = here.get(name, getlink=True)
        if isinstance(link, h5py.HardLink):
            here, done = here[name], f"{done}/{name}"
            continue
        hops += 1
        if link is None or hops > HOPS:
            raise KeyError(f"there is no {done}/{name}")
        target = link.path
        if isinstance(link, h5py.ExternalLink):
            file = here[name].file  # HDF5 itself finds the file
            files.append(file.filename)
            target = f"/{target}"
        base = "" if target.startswith("/") else done
        ahead = [part for part in f"{base}/{target}".split("/") if part and part != "."] + ahead
        here, done = file["/"], ""
    return ResolvedObject(here, file, done or "/", tuple(str(Path(name).absolute()) for name in dict.fromkeys(files)))


MOST = 20_000
"""Most objects that are looked at, of all files together: a file may hold any number of scans."""


def walk(group: Any, seen: set[tuple[int, int]] | None = None) -> Iterator[tuple[str, Any, Any]]:
    """Yield path below ``group``, link and object of all that a group holds, a group before its members.

    The object is None behind soft and external links, which are not followed. Objects that are in ``seen``, by number
    of the file and address, are left out, and others added; at most `MOST` are looked at. Unlike h5py's ``visititems``
    this takes a time that does not grow with the depth of groups, and does not end in loops of links.

    Raises: OSError, RuntimeError, KeyError where the file is damaged.
    """
    import h5py

    found, links = set() if seen is None else seen, 0
    ahead = [("", group, iter(group))] if _first_sight(group, found) else []
    while ahead and len(found) + links < MOST:
        path, here, names = ahead[-1]
        name = next(names, None)
        if name is None:
            ahead.pop()
            continue
        link = here.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            links += 1
            yield f"{path}{name}", link, None
            continue
        item = here[name]
        if not _first_sight(item, found):
            continue
        yield f"{path}{name}", link, item
        if isinstance(item, h5py.Group):
            ahead.append((f"{path}{name}/", item, iter(item)))


def _first_sight(item: Any, found: set[tuple[int, int]]) -> bool:
    """Return whether an object is not in ``found``, and add it."""
    import h5py

    where = h5py.h5o.get_info(item.id)
    new = (where.fileno, where.addr) not in found
    found.add((where.fileno, where.addr))
    return new


DEPTH = 16
"""Most levels of virtual datasets within virtual datasets; more is taken for a cycle."""

MOST_FRAMES = 1 << 25
"""Most frames of a dataset, so that what is kept of each (8 bytes and more) does not outgrow `validate`'s memory."""

STATUS = {1: "lost", 2: "dropped", 3: "incomplete"}
"""Values of ``frame_status`` other than 0."""

Numbers = NDArray[np.int64]


class Survey:
    """Survey of datasets and of all their sources, each once; ``files`` are the absolute paths of all files."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}
        self._known: dict[tuple[str, str], tuple[tuple[int, ...], Missing | None] | str] = {}

    def lack(self, dataset: Any, parent: Any, depth: int = 0) -> Missing | None:
        """Return the frames that are not all there, None where all are; ``parent`` is the group that holds the dataset.

        Frames lie along the first axis; an image (height, width) is one frame.

        Raises:
            FileProblem: they are too many to look at each.
        """
        count = _frames(dataset)
        if count > MOST_FRAMES:
            name = f"{Path(dataset.file.filename).name}::{dataset.name}"
            raise FileProblem(f"{name} has {count} frames, and at most {MOST_FRAMES} can be looked at")
        self.files[str(Path(dataset.file.filename).absolute())] = None
        if not count or 0 in dataset.shape:
            return None
        if dataset.is_virtual:
            stored = self._virtual(dataset, count, depth)
        elif dataset.chunks is not None:
            stored = _chunked(dataset, count)
        elif dataset.external:
            stored = self._external(dataset, count)
        else:
            stored = _contiguous(dataset, count)
        return both(self._status(dataset, parent, count, depth), stored)

    def _status(self, dataset: Any, parent: Any, count: int, depth: int) -> Missing | None:
        """Return the frames that are not all there by the statuses that lima2 wrote when it saved them."""
        import h5py

        status = parent.get("frame_status") if dataset.ndim > 2 else None
        if not isinstance(status, h5py.Dataset) or status.ndim != 1 or status.dtype != np.uint8:
            return None
        values = status[:count]
        rows = np.zeros(count, bool)
        rows[: len(values)] = values != 0
        kinds = [STATUS.get(int(value), str(value)) for value in np.unique(values[values != 0])]
        reported = lack_of(rows, f"their frame_status says {' or '.join(kinds)}")
        rest = np.arange(count) >= len(values)
        sources = self._virtual(status, count, depth) if status.is_virtual else None  # zeros need not be written
        return both(reported, lack_of(rest, "they have no frame_status"), sources)

    def _virtual(self, dataset: Any, count: int, depth: int) -> Missing | None:
        single = dataset.ndim == 2
        length = dataset.shape[0]
        mapped, lacking, reasons = np.zeros(length, np.int64), np.zeros(length, bool), []
        for source in dataset.virtual_sources():
            for name, target, pixels, origin in mappings(dataset.file.filename, source, length):
                np.add.at(mapped, target, pixels)
                rows, reason = self._source(dataset, name, source, target, origin, depth)
                lacking[rows] = True
                reasons += [reason] if len(rows) else []
        part = mapped == 0 if single else mapped < mapped.max(initial=1)
        unmapped = part.all() if single else part
        if single:
            return both(
                lack_of(np.array([lacking.any()]), *reasons),
                lack_of(np.array([bool(unmapped)]), "no source is mapped to it"),
            )
        return both(lack_of(lacking, *reasons), lack_of(part & ~lacking, "no source is mapped to them, or to parts"))

    def _source(
        self, dataset: Any, name: str, source: Any, target: Numbers, origin: "Numbers | None", depth: int
    ) -> tuple[Numbers, str]:
        """Return the ``target`` rows that lack something of their source, and the reason; ``origin`` None: all rows."""
        nothing = target[:0]
        inner = source.dset_name.replace("%%", "%")
        result = self._look(dataset.file.filename, name, inner, depth)
        if isinstance(result, str):
            return target, result
        shape, lack = result
        if not _wide_enough(shape, source):
            return target, f"its source {name} has the shape {shape}, which is too small"
        if origin is None:
            origin = np.arange(shape[0] if len(shape) > 2 else 1)
        if len(origin) != len(target):  # such as an image for each row
            whole = lack is not None or (len(shape) > 2 and len(origin) < len(target))
            reason = f"its source {name} {lack if lack is not None else f'has the shape {shape}, which is too small'}"
            return (target, reason) if whole else (nothing, "")
        short = origin >= shape[0]
        if short.any():
            return target[short], f"its source {name} has the shape {shape}, which is too small"
        if lack is None:
            return nothing, ""
        within = lack.rows[origin] if len(lack.rows) == shape[0] else np.ones(len(origin), bool)
        return target[within], f"its source {name} {lack}"

    def _look(self, own: str, name: str, inner: str, depth: int) -> "tuple[tuple[int, ...], Missing | None] | str":
        """Return shape and lack of a source dataset; in words the fault of one that is wrong as a whole."""
        import h5py

        path = source_path(own, name)
        self.files[str(path.absolute())] = None
        key = (str(path), inner)
        if key in self._known:
            return self._known[key]
        if depth >= DEPTH:
            return f"its sources are nested more than {DEPTH} deep"
        self._known[key] = f"its source {name} is made of itself"
        if not path.is_file():
            self._known.pop(key)
            return self._known.setdefault(key, f"its source {name} does not exist")
        try:
            with h5py.File(path, "r") as file:
                place = follow(file, inner)
                self.files.update(dict.fromkeys(place.files))
                lack = self.lack(place.item, place.parent, depth + 1)
                result: tuple[tuple[int, ...], Missing | None] | str = (tuple(place.item.shape), lack)
        except (KeyError, OSError, AttributeError, TypeError):
            result = f"{inner} cannot be read in its source {name}"
        self._known[key] = result
        return result

    def _external(self, dataset: Any, count: int) -> Missing | None:
        """Return the lack of raw files; HDF5 looks for them from the working directory, and reads zeros behind."""
        needed, frame = dataset.dtype.itemsize * math.prod(dataset.shape), _frame_bytes(dataset)
        rows, reasons, first = np.zeros(count, bool), [], 0
        for name, offset, size in dataset.external:
            path = Path(os.fsdecode(name))
            self.files[str(path.absolute())] = None
            held = max(0, path.stat().st_size - offset) if path.is_file() else 0
            size = min(size, needed - first)
            if held < size:
                rows[(first + held) // frame : -(-(first + size) // frame)] = True
                reasons.append(f"the raw file {path} {'is too short' if path.is_file() else 'does not exist'}")
            first += size
        rows[first // frame :] |= first < needed
        return lack_of(rows, *(reasons or ["no raw file holds them"]))


def _frames(dataset: Any) -> int:
    return 1 if dataset.ndim == 2 else int(dataset.shape[0])


def _frame_bytes(dataset: Any) -> int:
    rows = dataset.shape if dataset.ndim == 2 else dataset.shape[1:]
    return max(1, int(dataset.dtype.itemsize) * int(math.prod(rows)))


def _contiguous(dataset: Any, count: int) -> Missing | None:
    import h5py

    nothing = dataset.id.get_space_status() == h5py.h5d.SPACE_STATUS_NOT_ALLOCATED
    return lack_of(np.full(count, nothing), "nothing was ever written to it")


def _chunked(dataset: Any, count: int) -> Missing | None:
    """Return the lack of chunks, counted first, which is cheap, and looked at one by one where some are missing."""
    across = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape[1:], dataset.chunks[1:], strict=True))
    layers = -(-dataset.shape[0] // dataset.chunks[0])
    if dataset.id.get_num_chunks() >= across * layers:
        return None
    height = dataset.chunks[0]
    there = np.zeros(layers, np.int64)

    def note(chunk: Any) -> None:
        there[chunk.chunk_offset[0] // height] += 1

    dataset.id.chunk_iter(note)
    absent = there < across
    if dataset.ndim == 2:
        return lack_of(np.array([absent.any()]), "chunks of it were never written")
    return lack_of(np.repeat(absent, height)[:count], "chunks of them were never written")


def source_path(own: str, name: str) -> Path:
    """Return the file of a virtual dataset's source, as HDF5 looks for it; the likeliest place where there is none."""
    if name == ".":
        return Path(own)
    given, folder = Path(name), Path(own).parent
    prefix = os.environ.get("HDF5_VDS_PREFIX", "").replace("${ORIGIN}", str(folder))
    tried = [given] if given.is_absolute() else []
    relative = Path(given.name) if given.is_absolute() else given
    tried += [Path(prefix) / relative] if prefix else []
    tried += [folder / relative, relative, Path(own).resolve().parent / relative]
    return next((path for path in tried if path.is_file()), folder / given)


AHEAD = 100
"""Files looked for behind the end of a virtual dataset that counts them: HDF5 ends it at the first that is missing."""

RULE = "file-incomplete"


def _counted(name: str, number: int) -> str:
    return name.replace("%b", str(number)).replace("%%", "%")


def mappings(own: str, source: Any, length: int) -> "Iterator[tuple[str, Numbers, Numbers, Numbers | None]]":
    """Yield files of one mapping: name, rows of the virtual dataset with their pixels, and rows of the file.

    Names may count files, ``part_%b.h5``: such a mapping stands for as many as fit.

    Raises: FileProblem where a counted file is missing between others.
    """
    target, pixels = _rows(source.vspace, length)
    name = source.file_name
    if re.search(r"(?<!%)(%%)*%b", name):
        block = int(source.vspace.get_regular_hyperslab()[3][0])
        count = -(-len(target) // block)
        for number in range(count):
            part = slice(number * block, (number + 1) * block)
            yield _counted(name, number), target[part], pixels[part], None
        for number in range(count, count + AHEAD):
            if source_path(own, _counted(name, number)).is_file():
                gap, next_name = _counted(name, count), _counted(name, number)
                raise FileProblem(f"{Path(own).name} ends at {gap}, which does not exist, and {next_name} does", RULE)
        return
    import h5py

    whole = source.src_space.get_select_type() == h5py.h5s.SEL_ALL
    origin = None if whole else _rows(source.src_space, None)[0]
    if origin is not None and _endless(source.vspace):
        origin = origin[: len(target)]
    yield name.replace("%%", "%"), target, pixels, origin


def _endless(space: Any) -> bool:
    import h5py

    if space.get_select_type() == h5py.h5s.SEL_ALL or not space.is_regular_hyperslab():
        return False
    return any(h5py.h5s.UNLIMITED in sizes for sizes in space.get_regular_hyperslab()[2:])


MOST = 1 << 40
"""Most rows of a selection without an end."""


def _rows(space: Any, length: int | None) -> tuple[Numbers, Numbers]:
    """Return rows along the first axis that a selection takes, in order, and the pixels of each; up to ``length``.

    For an image the rows are its lines.
    """
    import h5py

    if space.get_select_type() == h5py.h5s.SEL_ALL:
        rows = np.arange(space.shape[0])
        return rows, np.full(len(rows), math.prod(space.shape[1:]))
    if not space.is_regular_hyperslab():
        blocks = space.get_select_hyper_blocklist().astype(np.int64)
        blocks = blocks[np.argsort(blocks[:, 0, 0], kind="stable")]
        sizes = blocks[:, 1] - blocks[:, 0] + 1
        firsts, counts = blocks[:, 0, 0], sizes[:, 0]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(firsts, counts) + within, np.repeat(np.prod(sizes[:, 1:], axis=1), counts)
    start, stride, count, block = space.get_regular_hyperslab()
    limit = min(length if length is not None else MOST, int(space.shape[0]))
    times, height = int(count[0]), int(block[0])
    if times == h5py.h5s.UNLIMITED or times < 0:
        times = max(0, -(-(limit - int(start[0])) // int(stride[0])))
    if height == h5py.h5s.UNLIMITED or height < 0:
        height = max(0, limit - int(start[0]))
    rows = (int(start[0]) + int(stride[0]) * np.arange(times)[:, np.newaxis] + np.arange(height)).ravel()
    rows = rows[rows < limit] if length is not None else rows
    across = math.prod(int(c) * int(b) for c, b in zip(count[1:], block[1:], strict=True))
    return rows, np.full(len(rows), across)


def _wide_enough(shape: tuple[int, ...], source: Any) -> bool:
    """Return True if a source dataset of this shape has all columns and lines that a virtual dataset takes from it."""
    import h5py

    space = source.src_space
    if space.get_select_type() == h5py.h5s.SEL_ALL:  # this one does not know the shape
        return _endless(source.vspace) or bool(math.prod(shape) >= source.vspace.get_select_npoints())
    if len(space.shape) != len(shape):
        return False
    if _endless(space):
        return True  # the dataset is as long as its source
    last = space.get_select_bounds()[1]
    return all(n < h for n, h in zip(last[1:], shape[1:], strict=True))
