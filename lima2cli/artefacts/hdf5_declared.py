"""What an HDF5 file declares of the pixels of its frames: the mask, values that are no measurement, saturation.

It is looked for in the NXdetector that the frames lie in, else in the only one of their entry (NXmx, DECTRIS masters
and lima2's own). `pixel_mask` is taken where it has the frames' shape. Invalid are values below `underload_value`; the
largest of the bits that a DECTRIS detector says it used (`bit_depth_image`); -1 and -2 of a PILATUS. `saturation_value`
is no such limit: pixels there were measured, too high to be true.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lima2cli.artefacts.hdf5_links import Place, follow
from lima2cli.artefacts.hdf5_survey import Survey
from lima2cli.spec import Invalid, StackInfo

PILATUS = (-2.0, -1.0)
"""Pixels that are defective, and gaps between modules."""


@dataclass(frozen=True)
class Declared:
    """See `StackInfo`; ``files`` are those of the mask."""

    pixel_mask: str | None = None
    invalid: Invalid = Invalid()
    saturation: float | None = None
    doubts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def declared(name: str, file: Any, inner: str, info: StackInfo) -> Declared:
    """What is said of the frames at ``inner``; ``name`` is the file's."""
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
    """How many frames a DECTRIS detector was to take, whose master has links to them in a group; None if unknown."""
    detectors = [it.item for it in _detectors(file, f"{group}/data")]
    specific = _member(detectors[0], "detectorSpecific") if len(detectors) == 1 else None
    images, triggers = (_number(specific, key) if specific else None for key in ("nimages", "ntrigger"))
    return None if images is None or triggers is None else int(images * triggers)


def _detector(file: Any, inner: str) -> "Place | str | None":
    """The NXdetector of the frames; in words why none of several is."""
    place = follow(file, inner)
    parent = place.path.rpartition("/")[0]
    if parent and _is_detector(place.file[parent]):
        return Place(place.file[parent], place.file, parent, place.files)
    for holder, path in ((place.file, place.path), (file, inner)):
        found = list(_detectors(holder, path))
        own = [it for it in found if "data" in it.item and _same(it.item, place.item)]
        found = own or found
        if len(found) == 1:
            return found[0]
        if found and any(_masked(it.item) for it in found):
            names = ", ".join(it.path for it in found[:3])
            return f"the file has several detectors ({names}), and does not say which took the frames: no pixel mask"
    return None


def _detectors(file: Any, path: str) -> Iterator[Place]:
    """Those of the entry that a path begins with, one or two levels below it."""
    entry = file.get(path.split("/")[1]) if path.count("/") > 1 else None
    for first in _groups(entry):
        within = [first] if _is_detector(first) else [second for second in _groups(first) if _is_detector(second)]
        yield from (Place(group, file, group.name, (file.filename,)) for group in within)


def _groups(parent: Any) -> Iterator[Any]:
    """Groups of a group of this file; links are not followed: each may lead to another file."""
    import h5py

    for name in parent if isinstance(parent, h5py.Group) else ():
        if isinstance(parent.get(name, getlink=True), h5py.HardLink):
            found = parent[name]
            if isinstance(found, h5py.Group):
                yield found


def _is_detector(group: Any) -> bool:
    kind = group.attrs.get("NX_class", "")
    return (kind.decode() if isinstance(kind, bytes) else str(kind)) == "NXdetector" or _masked(group)


def _masked(group: Any) -> bool:
    return group.get("pixel_mask", getlink=True) is not None or group.get("detectorSpecific", getlink=True) is not None


def _same(group: Any, item: Any) -> bool:
    data = group.get("data")
    return data is not None and bool(data == item)


def _mask(
    name: str, file: Any, detector: Place, info: StackInfo
) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    """Its reference; or what is wrong with it; and its files."""
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
    """A group below; None where there is none."""
    import h5py

    found = group.get(name)
    return found if isinstance(found, h5py.Group) else None


def _number(group: Any, name: str) -> float | None:
    """A finite number, of one value; None where it is none."""
    import h5py

    found = group.get(name)
    if not isinstance(found, h5py.Dataset) or found.size != 1 or found.dtype.kind not in "iuf":
        return None
    value = float(np.asarray(found[()]).reshape(-1)[0])
    return value if np.isfinite(value) else None


def _text(group: Any, name: str) -> str:
    import h5py

    found = group.get(name)
    if not isinstance(found, h5py.Dataset) or found.size != 1:
        return ""
    value = np.asarray(found[()]).reshape(-1)[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
