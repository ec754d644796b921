"""Read declarations of an HDF5 file about its pixels, and compare its rows with checksums before they are used."""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.files.checksums import SummedDataset
from lima2cli.frames import Invalid, StackInfo
from lima2cli.inputs.hdf5_survey import DEPTH, Numbers, ResolvedObject, Survey, follow, mappings, source_path

PILATUS = (-2.0, -1.0)
"""Values of defective pixels, and of gaps between modules."""


@dataclass(frozen=True)
class Declared:
    """See `StackInfo`; ``files`` are those of the mask."""

    pixel_mask: str | None = None
    invalid: Invalid = Invalid()
    saturation: float | None = None
    doubts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def declared(name: str, file: Any, inner: str, info: StackInfo) -> Declared:
    """Return the declarations about the frames at ``inner``; ``name`` is the file's."""
    detector = _detector(file, inner)
    if isinstance(detector, str):
        return Declared(doubts=(detector,))
    if detector is None:
        return Declared()
    mask, doubts, files = _mask(name, file, detector, info)
    specific = _member(detector.item, "detectorSpecific")
    return Declared(
        pixel_mask=mask,
        invalid=_invalid(detector.item, specific, np.dtype(info.dtype)),
        saturation=_number(detector.item, "saturation_value"),
        doubts=doubts,
        files=files,
    )


def planned_frames(file: Any, group: str) -> int | None:
    """Return the frames that a DECTRIS detector was to take, whose master links to them in a group; None if unknown."""
    detectors = [place.item for place in _detectors(file, f"{group}/data")]
    specific = _member(detectors[0], "detectorSpecific") if len(detectors) == 1 else None
    images, triggers = (_number(specific, key) if specific else None for key in ("nimages", "ntrigger"))
    return None if images is None or triggers is None else int(images * triggers)


def _detector(file: Any, inner: str) -> "ResolvedObject | str | None":
    """Return the NXdetector of the frames; in words the reason why none of several is."""
    place = follow(file, inner)
    parent = place.path.rpartition("/")[0]
    if parent and _is_detector(place.file[parent]):
        return ResolvedObject(place.file[parent], place.file, parent, place.files)
    for holder, path in ((place.file, place.path), (file, inner)):
        detectors = list(_detectors(holder, path))
        own = [each for each in detectors if "data" in each.item and _same(each.item, place.item)]
        detectors = own or detectors
        if len(detectors) == 1:
            return detectors[0]
        if detectors and any(_masked(each.item) for each in detectors):
            names = ", ".join(each.path for each in detectors[:3])
            return f"the file has several detectors ({names}), and does not say which took the frames: no pixel mask"
    return None


def _detectors(file: Any, path: str) -> Iterator[ResolvedObject]:
    """Yield the detectors of the entry that a path begins with, one or two levels below it."""
    entry = file.get(path.split("/")[1]) if path.count("/") > 1 else None
    for first in _groups(entry):
        within = [first] if _is_detector(first) else [second for second in _groups(first) if _is_detector(second)]
        yield from (ResolvedObject(group, file, group.name, (file.filename,)) for group in within)


def _groups(parent: Any) -> Iterator[Any]:
    """Yield groups of a group of this file; links are not followed: each may lead to another file."""
    import h5py

    for name in parent if isinstance(parent, h5py.Group) else ():
        if isinstance(parent.get(name, getlink=True), h5py.HardLink):
            member = parent[name]
            if isinstance(member, h5py.Group):
                yield member


def _is_detector(group: Any) -> bool:
    kind = group.attrs.get("NX_class", "")
    return (kind.decode() if isinstance(kind, bytes) else str(kind)) == "NXdetector" or _masked(group)


def _masked(group: Any) -> bool:
    return group.get("pixel_mask", getlink=True) is not None or group.get("detectorSpecific", getlink=True) is not None


def _same(group: Any, item: Any) -> bool:
    data = group.get("data")
    return data is not None and bool(data == item)


def _mask(
    name: str, file: Any, detector: ResolvedObject, info: StackInfo
) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    """Return the reference of the mask, its problems, and its files."""
    import h5py

    for path in (f"{detector.path}/pixel_mask", f"{detector.path}/detectorSpecific/pixel_mask"):
        holder = detector.file.get(path.rpartition("/")[0])
        if not isinstance(holder, h5py.Group) or holder.get("pixel_mask", getlink=True) is None:
            continue
        where = f"{name if detector.file == file else Path(detector.file.filename).absolute()}::{path}"
        try:
            place = follow(detector.file, path)
            shape = place.item.shape
        except (KeyError, OSError, AttributeError) as error:
            return None, (f"the pixel mask {where} is a link that leads nowhere: {error}",), ()
        if shape not in (info.shape[1:], (1, *info.shape[1:])) or place.item.dtype.kind not in "biuf":
            size = " x ".join(map(str, shape))
            frames = " x ".join(map(str, info.shape[1:]))
            return None, (f"the pixel mask {where} is {size}, and frames are {frames}: it is not taken",), ()
        lack = Survey().lack(place.item, place.parent)
        if lack is not None:
            return None, (f"the pixel mask {where} {lack}: it is not taken",), place.files
        return where, (), place.files
    return None, (), ()


def _invalid(detector: Any, specific: Any, dtype: "np.dtype[Any]") -> Invalid:
    values: list[float] = []
    bits = _number(detector, "bit_depth_image") or (_number(specific, "bit_depth_image") if specific else None)
    if bits is not None and dtype.kind == "u":
        values.append(float(2 ** min(int(bits), 8 * dtype.itemsize) - 1))
    if dtype.kind == "i" and "PILATUS" in _text(detector, "description").upper():
        values += PILATUS
    return Invalid(tuple(values), below=_number(detector, "underload_value"))


def _member(group: Any, name: str) -> Any:
    """Return a group below; None where there is none."""
    import h5py

    member = group.get(name)
    return member if isinstance(member, h5py.Group) else None


def _number(group: Any, name: str) -> float | None:
    """Return a finite number, of one value; None where it is none."""
    import h5py

    dataset = group.get(name)
    if not isinstance(dataset, h5py.Dataset) or dataset.size != 1 or dataset.dtype.kind not in "iuf":
        return None
    value = float(np.asarray(dataset[()]).reshape(-1)[0])
    return value if np.isfinite(value) else None


def _text(group: Any, name: str) -> str:
    import h5py

    dataset = group.get(name)
    if not isinstance(dataset, h5py.Dataset) or dataset.size != 1:
        return ""
    value = np.asarray(dataset[()]).reshape(-1)[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


OPEN = 16
"""Most source files that stay open."""


@dataclass(frozen=True)
class _Source:
    """A dataset of a file: rows ``origin`` of it are rows ``target``, which increase."""

    path: str
    inner: str
    target: Numbers
    origin: Numbers


class CheckedRows:
    """The rows of a dataset, by its own checksums or, where it is virtual, by those of its sources at any depth.

    Each stored piece is looked at once, and then known. Memory: some 20 bytes a row, once rows were asked for.
    """

    def __init__(self, dataset: Any, parent: Any, depth: int = 0) -> None:
        """Check the rows of a dataset; ``parent`` is the group that holds it."""
        self._dataset, self._depth = dataset, depth
        name = str(dataset.name).rpartition("/")[2]
        own = dataset.ndim > 2 and not dataset.is_virtual
        self._checked = SummedDataset.of(dataset, parent, name) if own else None
        self._saved = parent.get("frame_status") if self._checked is not None and not dataset.chunks else None
        self._sources: list[_Source] | None = None if dataset.ndim > 2 and dataset.is_virtual and depth < DEPTH else []
        self._open: OrderedDict[int, tuple[Any, CheckedRows]] = OrderedDict()
        count = 0 if self._checked is None else -(-self._checked.covered // self._checked.rows)
        self._good, self._bad = np.zeros(count, bool), np.zeros(count, bool)

    def damaged(self, rows: Numbers) -> Numbers:
        """Return the rows, of some (n,), that are partly not as they were written."""
        if self._checked is not None:
            return self._own(self._checked, rows)
        if self._sources is None:
            self._sources = self._mapped()
        damaged = [self._of(number, rows) for number in range(len(self._sources))]
        return np.unique(np.concatenate(damaged)) if damaged else rows[:0]

    def close(self) -> None:
        """Close the files of sources."""
        while self._open:
            self._close(self._open.popitem()[1])
        self._checked = self._dataset = self._saved = None

    def _own(self, checked: SummedDataset, rows: Numbers) -> Numbers:
        rows = rows[rows < checked.covered]
        if self._saved is not None and len(rows):  # of rows that were not saved there is none
            rows = rows[self._saved[int(rows.min()) : int(rows.max()) + 1][rows - rows.min()] == 0]
        pieces = rows // checked.rows
        for piece in np.unique(pieces[~self._good[pieces] & ~self._bad[pieces]]).tolist():
            first = piece * checked.rows
            self._bad[piece] = any(True for _ in checked.damaged(first, first + 1))
            self._good[piece] = not self._bad[piece]
        return rows[self._bad[pieces]]

    def _mapped(self) -> list[_Source]:
        """Return the sources of a virtual dataset, the rows of each together."""
        held: dict[tuple[str, str], list[tuple[Numbers, Numbers]]] = {}
        own = self._dataset.file.filename
        for source in self._dataset.virtual_sources():
            for name, target, _, origin in mappings(own, source, self._dataset.shape[0]):
                origin = np.arange(len(target)) if origin is None else origin
                if len(origin) == len(target) and len(target):
                    key = str(source_path(own, name)), source.dset_name.replace("%%", "%")
                    held.setdefault(key, []).append((target, origin))
        sources = []
        for (path, inner), parts in held.items():
            target, origin = (np.concatenate(column) for column in zip(*parts, strict=True))
            order = np.argsort(target, kind="stable")
            sources.append(_Source(path, inner, target[order], origin[order]))
        return sources

    def _of(self, number: int, rows: Numbers) -> Numbers:
        """Return the rows that one source has, and has damaged."""
        assert self._sources is not None
        source = self._sources[number]
        place: NDArray[Any] = np.searchsorted(source.target, rows)
        there = place < len(source.target)
        there[there] = source.target[place[there]] == rows[there]
        if not there.any():
            return rows[:0]
        origin = source.origin[place[there]]
        bad = self._opened(number, source).damaged(origin)
        return rows[there][np.isin(origin, bad)]

    def _opened(self, number: int, source: _Source) -> "CheckedRows":
        import h5py

        held = self._open.pop(number, None)
        if held is None:
            file = h5py.File(source.path, "r", locking="best-effort")
            place = follow(file, source.inner)
            held = file, CheckedRows(place.item, place.parent, self._depth + 1)
        self._open[number] = held
        while len(self._open) > OPEN:
            self._close(self._open.popitem(last=False)[1])
        return held[1]

    @staticmethod
    def _close(held: "tuple[Any, CheckedRows]") -> None:
        held[1].close()
        held[0].close()
