"""Resolve references: datasets of an HDF5 file, and files or members that are numbered."""

import os
import re
from collections.abc import Iterable
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import nearest
from lima2cli.errors import FileProblem
from lima2cli.geometry import Rect
from lima2cli.inputs.hdf5_survey import follow, walk
from lima2cli.inputs.missing import spans
from lima2cli.view import View

COUNTED = re.compile(r"%(0?\d*)d")
"""Pattern of the number in the name of a series, as in ``c_%05d.cbf``."""

MOST = 10_000_000
"""Most numbers from the first to the last of a series; more is a mistake."""


@dataclass(frozen=True)
class Series:
    """Members that follow one another, in their order: paths, None where a number is missing.

    holes  missing numbers in words, as they are written;  group  that holds all, where they are members of one
    """

    paths: tuple[str | None, ...]
    holes: str = ""
    group: str = ""

    @property
    def text(self) -> str:
        """Return a string for messages: ``/entry/data/data_000001 to data_000003``."""
        there = [path for path in self.paths if path is not None]
        return there[0] if len(there) == 1 else f"{there[0]} to {there[-1].rpartition('/')[2]}"


def is_pattern(path: Path) -> bool:
    """Return True if a name means several files; a file that has this very name is meant itself."""
    return bool(COUNTED.search(path.name) or re.search(r"[*?]", path.name)) and not path.exists()


def files_of(reference: str, path: Path) -> Series:
    """Return the files that ``c_%05d.cbf`` or ``c_*.cbf`` means, by number.

    Raises: FileProblem where there are none, or where they are not one series.
    """
    try:
        entries = [entry.name for entry in os.scandir(path.parent) if entry.is_file()]
    except OSError as error:
        raise FileProblem(f"{reference}: {path.parent} cannot be read: {error.strerror}", "file-missing") from error
    counted = COUNTED.search(path.name)
    pattern = re.compile(_expression(path.name))
    names = [name for name in entries if pattern.fullmatch(name)]
    if not names:
        raise FileProblem(f"there is no file {reference} in {path.parent}", "file-missing")
    try:
        return series_of(names, "", step=1 if counted else None)
    except FileProblem as problem:
        raise FileProblem(f"{reference} matches files that are not one series: {problem}", problem.rule) from None


def _expression(name: str) -> str:
    """Return a regular expression for the names that a pattern means."""
    pieces = []
    for piece in re.split(r"(%0?\d*d|[*?])", name):
        if COUNTED.fullmatch(piece):
            width = int(piece[1:-1] or 0)
            pieces.append(r"\d+" if width < 2 else rf"(?:\d{{{width}}}|[1-9]\d{{{width},}})")
        else:
            pieces.append({"*": ".*", "?": "."}.get(piece, re.escape(piece)))
    return "".join(pieces)


def series_of(names: Iterable[str], where: str, first: int | None = None, step: int | None = None) -> Series:
    """Return names by their number, with None where one is missing.

    ``first`` is the number that they begin with, None: any; ``step`` from one to the next, None: the common one of all.

    Raises: FileProblem (file-series) where names differ in more than one number.
    """
    split = [(re.split(r"(\d+)", name), name) for name in names]
    texts = {tuple(parts[::2]) for parts, _ in split}
    if len(texts) > 1:
        one, other = (next(name for parts, name in split if tuple(parts[::2]) == text) for text in sorted(texts)[:2])
        raise FileProblem(f"{one} and {other} differ in more than a number", "file-series")
    columns = list(zip(*(parts[1::2] for parts, _ in split), strict=True))
    varying = [i for i, column in enumerate(columns) if len({int(text) for text in column}) > 1]
    if len(varying) > 1:
        raise FileProblem(f"{split[0][1]} and others differ in {len(varying)} numbers", "file-series")
    if not columns:
        return Series(tuple(name for _, name in split))
    at = varying[0] if varying else len(columns) - 1
    by_number: dict[int, str] = {}
    for parts, name in split:
        number = int(parts[2 * at + 1])
        if number in by_number:
            raise FileProblem(f"{by_number[number]} and {name} have the same number", "file-series")
        by_number[number] = name
    numbers = sorted(by_number)
    low = numbers[0] if first is None else min(first, numbers[0])
    step = step or (1 if first is not None else gcd(*(number - numbers[0] for number in numbers))) or 1
    if (numbers[-1] - low) // step > MOST:
        raise FileProblem(f"numbers go from {low} to {numbers[-1]}", "file-series")
    paths = tuple(by_number.get(number) for number in range(low, numbers[-1] + 1, step))
    missing = np.array([low + step * i for i, path in enumerate(paths) if path is None], np.intp)
    if not len(missing):
        return Series(paths)
    parts = re.split(r"(\d+)", by_number[numbers[0]])
    width = len(parts[2 * at + 1])

    def name_of(number: int) -> str:
        return "".join([*parts[: 2 * at + 1], f"{number:0{width}d}", *parts[2 * at + 2 :]])

    return Series(paths, spans(missing, name_of))


SHOWN = 8
"""Most names listed in a message."""

PARTS = re.compile(r"data_\d{6}")
"""Pattern of links that a DECTRIS master has in its group ``data``: to the files of frames, in order, from 1."""

NUMBERED = re.compile(r".*?\d{4,}")
"""Pattern of user-named members of a group that follow one another; not `detector1` and `detector2`."""

NO_FRAMES = re.compile(r"mask|flat|dark|background|pedestal|gain|corrections?$", re.IGNORECASE)
"""Pattern of names of images that stand next to frames."""

ABOUT = frozenset(("detector_information", "params"))
"""Groups in lima2's files whose arrays, such as the layout of modules, are not images."""


def find_frames(file: Any, name: str, inner: str | None) -> Series:
    """Return paths of the datasets whose frames follow one another: mostly one.

    Of a group, or of the whole file where ``inner`` is None: the data that NeXus declares to plot (``@default``,
    ``@signal``); else the numbered links of a DECTRIS master; else the only dataset of images, where stacks come before
    single images.

    Raises: FileProblem (dataset-missing, dataset-ambiguous, file-missing) that names what there is.
    """
    import h5py

    path = f"/{(inner or '').strip('/')}"
    try:
        target = follow(file, path).item
    except (KeyError, OSError) as error:
        raise _not_there(file, name, path) from error
    if isinstance(target, h5py.Dataset):
        return Series((path,))
    if not isinstance(target, h5py.Group):
        raise FileProblem(f"{name}: {path} is a datatype, not a dataset", "dataset-missing")
    images = _images(target, path)
    stacks = {where: item for where, item in images.items() if item.ndim > 2}
    plotted = _plotted(target, path)
    if isinstance(plotted, Series):
        return plotted
    if plotted is not None and _fits(file[plotted], stacks):
        return Series((plotted,))
    if inner is not None and (numbered := _numbered(target, path, NUMBERED)) is not None:
        return numbered
    if len(groups := _masters(target, path)) == 1 and not _others_than(stacks, groups[0]):
        return groups[0]
    candidates = stacks or images
    real = {where: item for where, item in candidates.items() if not NO_FRAMES.search(where.rpartition("/")[2])}
    if len(candidates) == 1 and not groups and (real or "detectorSpecific" not in next(iter(candidates))):
        return Series(tuple(candidates))
    if not candidates and not groups:
        sparse = "; it holds sparse frames, which cannot be replayed" if _is_sparse(target) else ""
        raise FileProblem(f"{name} has no dataset of images in {path}{sparse}", "dataset-missing")
    listed = {each.text: None for each in groups} | (images if len(candidates) == 1 else candidates)
    first = groups[0].group if groups else next(iter(real or candidates))
    raise FileProblem(
        f"{name} does not say which dataset: {_listed(listed)}; write it as `{name.partition('::')[0]}::{first}`",
        "dataset-ambiguous",
    )


def _fits(item: Any, stacks: dict[str, Any]) -> bool:
    """Return True if the item to be plotted may be meant: an image only where there are no stacks."""
    return bool(item.ndim > 2 or (item.ndim == 2 and not stacks))


def _others_than(stacks: dict[str, Any], series: Series) -> bool:
    """Return True if there are stacks other than those of a series."""
    return bool(stacks.keys() - set(series.paths))


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
    known = list(_images(file, ""))
    best = nearest(path, known)
    hint = f"did you mean {best}?" if best else f"it has {', '.join(known[:SHOWN])}" if known else "it has no images"
    return FileProblem(f"{name.partition('::')[0]} has no dataset {path}; {hint}", "dataset-missing")


def _listed(items: dict[str, Any]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    texts = [
        path if item is None else f"{path} ({' x '.join(map(str, item.shape))} {item.dtype})"
        for path, item in list(items.items())[:SHOWN]
    ]
    return ", ".join(texts) + more


def _images(group: Any, path: str) -> dict[str, Any]:
    """Return numeric datasets of two or more dimensions, by path, in file order; links to other files too."""
    import h5py

    images: dict[str, Any] = {}
    linked: dict[tuple[str, str], str] = {}
    base = path.rstrip("/")

    def is_images(item: Any) -> bool:
        return isinstance(item, h5py.Dataset) and item.ndim >= 2 and item.dtype.kind in "uifb"

    for where, link, item in walk(group):
        if is_images(item):
            images[f"{base}/{where}"] = item
        elif isinstance(link, h5py.ExternalLink) and not PARTS.fullmatch(where.rpartition("/")[2]):
            linked.setdefault((link.filename, link.path), where)
    for where in linked.values():
        if is_images(item := _opened(group, where)):
            images[f"{base}/{where}"] = item
    return {where: item for where, item in images.items() if ABOUT.isdisjoint(where[len(base) :].split("/"))}


def _is_sparse(group: Any) -> bool:
    """Return True if a group has sparse frames, as lima2 saves them, somewhere."""
    import h5py

    def holds(item: Any) -> bool:
        return isinstance(item, h5py.Group) and {"frame_ptr", "index", "intensity"} <= item.keys()

    return holds(group) or any(
        holds(_opened(group, where) if isinstance(link, h5py.ExternalLink) else item)
        for where, link, item in walk(group)
    )


def _opened(group: Any, where: str) -> Any:
    """Return what is behind a link, None where it leads nowhere."""
    try:
        return group.get(where)
    except (OSError, RuntimeError, KeyError):
        return None


def _masters(group: Any, path: str) -> list[Series]:
    """Return series of the groups that have the parts of a DECTRIS master, mostly as links."""
    base, holders = path.rstrip("/"), {}

    for where, _, _ in walk(group):
        holder, _, last = where.rpartition("/")
        if PARTS.fullmatch(last):
            holders[holder] = f"{base}/{holder}" if holder else path
    numbered = [_numbered(group[holder] if holder else group, full, PARTS) for holder, full in holders.items()]
    return [series for series in numbered if series is not None]


def _numbered(group: Any, path: str, pattern: "re.Pattern[str]") -> Series | None:
    """Return the members of a group that are numbered, where all of its images are; links that lead nowhere count."""
    import h5py

    names = []
    for name in group:
        if pattern.fullmatch(name) and not isinstance(group.get(name, getlink=True), h5py.HardLink):
            names.append(name)  # not opened here: there may be many, and some may lead nowhere
        elif isinstance(item := group.get(name), h5py.Dataset) and item.ndim >= 2:
            names.append(name)
    if not names or not all(pattern.fullmatch(name) for name in names):
        return None
    try:
        series = series_of(names, path, first=1 if all(PARTS.fullmatch(name) for name in names) else None)
    except FileProblem:
        return None  # numbers in several places: not one series
    base = path.rstrip("/")
    paths = tuple(None if name is None else f"{base}/{name}" for name in series.paths)
    return Series(paths, series.holes, path)


def _plotted(group: Any, path: str) -> "str | Series | None":
    """Return the data that NeXus declares to plot: ``@default`` followed to a group with ``@signal``; None without."""
    import h5py

    for _ in range(16):  # links may form a cycle
        step = group.attrs.get("signal", group.attrs.get("default"))
        if step is None:
            return None
        target = step.decode() if isinstance(step, bytes) else str(step)
        item = group.get(target)
        where = target if target.startswith("/") else f"{path.rstrip('/')}/{target}"
        if "signal" in group.attrs and (PARTS.fullmatch(target) or item is None):
            return _numbered(group, path, PARTS)
        if isinstance(item, h5py.Dataset):
            return where
        if not isinstance(item, h5py.Group):
            return None
        group, path = item, where
    return None


def recorded_view(dataset: Any) -> View | None:
    """Return the view of frames that lima2 saved, by the ``image_operation`` next to them; None without one."""
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
