"""Rows of a dataset held against the checksums of the files that they are in, before they are read."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.checksums import Checked
from lima2cli.artefacts.hdf5_links import follow
from lima2cli.artefacts.hdf5_survey import DEPTH, Numbers, mappings, source_path

OPEN = 16
"""Source files that stay open."""


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
        """``parent`` is the group that holds the dataset."""
        self._dataset, self._depth = dataset, depth
        name = str(dataset.name).rpartition("/")[2]
        own = dataset.ndim > 2 and not dataset.is_virtual
        self._checked = Checked.of(dataset, parent, name) if own else None
        self._saved = parent.get("frame_status") if self._checked is not None and not dataset.chunks else None
        self._sources: list[_Source] | None = None if dataset.ndim > 2 and dataset.is_virtual and depth < DEPTH else []
        self._open: OrderedDict[int, tuple[Any, CheckedRows]] = OrderedDict()
        count = 0 if self._checked is None else -(-self._checked.covered // self._checked.rows)
        self._good, self._bad = np.zeros(count, bool), np.zeros(count, bool)

    def damaged(self, rows: Numbers) -> Numbers:
        """Those of some rows (n,) of which a part is not as it was written."""
        if self._checked is not None:
            return self._own(self._checked, rows)
        if self._sources is None:
            self._sources = self._mapped()
        found = [self._of(number, rows) for number in range(len(self._sources))]
        return np.unique(np.concatenate(found)) if found else rows[:0]

    def close(self) -> None:
        """Close the files of sources."""
        while self._open:
            self._close(self._open.popitem()[1])
        self._checked = self._dataset = self._saved = None

    def _own(self, checked: Checked, rows: Numbers) -> Numbers:
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
        """The sources of a virtual dataset, the rows of each together."""
        held: dict[tuple[str, str], list[tuple[Numbers, Numbers]]] = {}
        own = self._dataset.file.filename
        for source in self._dataset.virtual_sources():
            for name, target, _, origin in mappings(own, source, self._dataset.shape[0]):
                origin = np.arange(len(target)) if origin is None else origin
                if len(origin) == len(target) and len(target):
                    key = str(source_path(own, name)), source.dset_name.replace("%%", "%")
                    held.setdefault(key, []).append((target, origin))
        found = []
        for (path, inner), parts in held.items():
            target, origin = (np.concatenate(column) for column in zip(*parts, strict=True))
            order = np.argsort(target, kind="stable")
            found.append(_Source(path, inner, target[order], origin[order]))
        return found

    def _of(self, number: int, rows: Numbers) -> Numbers:
        """Those rows that one source has, and has damaged."""
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
