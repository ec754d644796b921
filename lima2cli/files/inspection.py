"""Files of a run directory opened one by one, and the findings: what is wrong with them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from functools import cached_property
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.files.appending import CHUNK_CACHE_BYTES
from lima2cli.files.nexus import ENTRY, ChannelRecord
from lima2cli.files.reading_apart import ReaderApart

Unreadable = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)
"""Exceptions that damaged files cause: errors of the HDF5 library, and objects that are not what they should be."""


@dataclass
class Inspection:
    """Findings so far about the files of one directory; ``verify`` reads every frame.

    unchecked   by node, how many frames have no checksum;  reader   for data that may be damaged, to be ended
    """

    directory: str
    verify: bool
    problems: list[str] = field(default_factory=list)
    unchecked: dict[str, int] = field(default_factory=dict)
    reader: ReaderApart = field(default_factory=ReaderApart)

    def tell(self, problem: str) -> None:
        """Add a problem, once."""
        if problem not in self.problems:
            self.problems.append(problem)

    def tell_of(self, name: str, problem: object) -> None:
        """Add a problem of a file of which no other is known."""
        if not any(known.startswith(name) for known in self.problems):
            self.problems.append(f"{name}: {problem}")

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """Return the open file; a file whose writer was interrupted is reported and read as far as it goes."""
        import h5py

        path = os.path.join(self.directory, name)
        try:
            file = h5py.File(path, locking="best-effort", rdcc_nbytes=CHUNK_CACHE_BYTES)
        except OSError as error:
            if "already open for write" not in str(error):
                raise
            self.tell(f"{name} was not closed (or is still being written): `lima2 recover` makes it readable")
            file = h5py.File(path, swmr=True, locking="best-effort", rdcc_nbytes=CHUNK_CACHE_BYTES)
        with file:
            yield file

    def records(self, roles: Sequence[str]) -> list[ChannelRecord]:
        """Return one record of each node that has files of these roles, the first role preferred."""
        known: dict[str, ChannelRecord] = {}
        for record in self._records.values():
            if record is not None and record.role in roles and (record.node not in known or record.role == roles[0]):
                known[record.node] = record
        return list(known.values())

    @property
    def ends(self) -> list[str]:
        """Return the names of the files that the end of a run makes: masters, tables, the linking file."""
        return [name for name, record in self._records.items() if record is None or record.role in ("master", "table")]

    @property
    def files(self) -> list[str]:
        """Return the names of all HDF5 files that can be opened."""
        return [name for name, record in self._records.items() if record is not None]

    @cached_property
    def _records(self) -> dict[str, ChannelRecord | None]:
        """Return the record in each HDF5 file, by name; None where it has none."""
        known: dict[str, ChannelRecord | None] = {}
        for name in sorted(os.listdir(self.directory)):
            if not name.endswith(".h5"):
                continue
            try:
                with Inspection(self.directory, False).open(name) as file:
                    known[name] = ChannelRecord.read(file)
            except Unreadable as error:
                self.tell(f"{name} can't be read: {error}")
        return known


def detector_of(file: Any) -> Any:
    """Return the NXdetector group, by the default plot of the entry.

    Raises:
        KeyError: there is none.
    """
    entry = file[ENTRY]
    return entry[str(entry.attrs["default"]).rpartition("/")[0]]
