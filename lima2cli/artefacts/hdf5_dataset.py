"""Which dataset of an HDF5 file is meant, and whether all of a virtual dataset exists."""

import math
from pathlib import Path
from typing import Any

from lima2cli.errors import FileProblem
from lima2cli.geometry import Rect
from lima2cli.names import nearest
from lima2cli.view import View

SHOWN = 8
"""Names listed in a message."""


def find_dataset(file: Any, name: str, inner: str | None) -> Any:
    """The h5py dataset at ``inner``; for a group or None what viewers would plot, else the only stack or image.

    Raises `FileProblem` (dataset-missing, dataset-ambiguous) that names what there is.
    """
    import h5py

    path = f"/{(inner or '').strip('/')}"
    try:
        found = file[path]
    except (KeyError, OSError) as error:
        raise _not_there(file, name, path) from error
    if isinstance(found, h5py.Dataset):
        return found
    if not isinstance(found, h5py.Group):
        raise FileProblem(f"{name}: {path} is a datatype, not a dataset", "dataset-missing")
    plotted = _plotted(found)
    if plotted is not None and plotted.ndim in (2, 3):
        return plotted
    images = _images(found)
    for ndim in (3, 2):
        candidates = [path for path, item in images.items() if item.ndim == ndim]
        if len(candidates) == 1:
            return file[candidates[0]]
        if candidates:
            raise FileProblem(
                f"{name} does not say which dataset: {_listed(candidates)}; write it as `path::{candidates[0]}`",
                "dataset-ambiguous",
            )
    raise FileProblem(f"{name} has no dataset of images in {path}", "dataset-missing")


def _not_there(file: Any, name: str, path: str) -> FileProblem:
    import h5py

    try:
        link = file.get(path, getlink=True)
    except (KeyError, OSError):
        link = None
    if isinstance(link, h5py.ExternalLink):
        return FileProblem(f"{name} is a link to {link.filename}::{link.path}, which cannot be opened", "file-missing")
    if isinstance(link, h5py.SoftLink):
        return FileProblem(f"{name} is a link to {link.path}, which does not exist", "dataset-missing")
    known = list(_images(file))
    best = nearest(path, known)
    hint = f"did you mean {best}?" if best else f"it has {_listed(known)}" if known else "it has no images at all"
    return FileProblem(f"{name.partition('::')[0]} has no dataset {path}; {hint}", "dataset-missing")


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(paths[:SHOWN]) + more


def _images(group: Any) -> dict[str, Any]:
    """Numeric datasets of two or three dimensions, by path, in the order of the file."""
    import h5py

    found: dict[str, Any] = {}

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim in (2, 3) and item.dtype.kind in "uifb":
            found[item.name] = item

    group.visititems(visit)
    return found


def _plotted(group: Any) -> Any:
    """What NeXus says to plot: ``@default`` followed to a group with ``@signal``; None where it says nothing."""
    import h5py

    for _ in range(16):  # links may form a cycle
        step = group.attrs.get("signal", group.attrs.get("default"))
        if step is None:
            return None
        found = group.get(step.decode() if isinstance(step, bytes) else str(step))
        if isinstance(found, h5py.Dataset):
            return found
        if not isinstance(found, h5py.Group):
            return None
        group = found
    return None


def recorded_view(dataset: Any) -> View | None:
    """How frames that lima2 saved show the detector, by the ``image_operation`` beside them; None where none is."""
    import h5py

    name, file = dataset.name, dataset.file
    for _ in range(16):  # links may form a cycle
        link = file.get(name, getlink=True) if name else None
        if not isinstance(link, h5py.SoftLink):
            break
        name = link.path if link.path.startswith("/") else f"{name.rpartition('/')[0]}/{link.path}"
    group = file.get(f"{(name or '').rpartition('/')[0]}/image_operation")
    if not isinstance(group, h5py.Group):
        return None
    try:
        origin, binning = (tuple(int(group[key][axis][()]) for axis in "xy") for key in ("origin", "binning"))
        area = Rect(origin[0], origin[1], int(group["width"][()]), int(group["height"][()]))
        flip, rotation = group["flip"].asstr()[()], int(group["rotation"][()])
    except (KeyError, TypeError, ValueError):
        return None  # another program's group of that name
    if min(binning) < 1 or rotation not in (0, 90, 180, 270) or not area.area:
        return None
    view = View(area, (binning[0], binning[1]))
    return view.flip(horizontal=flip == "horizontal", vertical=flip == "vertical").rotate(rotation)


def missing_sources(dataset: Any) -> str | None:
    """What is missing of a virtual dataset, in words; HDF5 itself would silently read fill values there."""
    import h5py

    if not dataset.is_virtual:
        return None
    own = Path(dataset.file.filename)
    for source in dataset.virtual_sources():
        if "%" in source.file_name:
            continue  # a series of files without a fixed end
        path = own if source.file_name == "." else own.parent / source.file_name
        if not path.is_file():
            return f"its source {source.file_name} does not exist"
        try:
            with h5py.File(path, "r") as file:
                has = file[source.dset_name].shape
        except (KeyError, OSError):
            return f"{source.dset_name} cannot be read in its source {source.file_name}"
        if not _holds(has, source):
            return f"its source {source.file_name} has the shape {has}, which is too small"
    return None


def _holds(has: tuple[int, ...], source: Any) -> bool:
    """Whether a source dataset of shape ``has`` has all pixels that a virtual dataset takes from it."""
    import h5py

    space = source.src_space
    if space.get_select_type() == h5py.h5s.SEL_ALL:  # this one does not know the shape
        return bool(math.prod(has) >= source.vspace.get_select_npoints())
    if space.is_regular_hyperslab() and any(h5py.h5s.UNLIMITED in sizes for sizes in space.get_regular_hyperslab()[2:]):
        return True  # it is as long as its source
    last = space.get_select_bounds()[1]
    return len(last) == len(has) and all(n < h for n, h in zip(last, has, strict=True))
