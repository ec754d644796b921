"""Ledgers: what each receiver alone knows of the frames, written as a run goes, for the case that the receiver dies.

A ledger is a text file, with a line for each flush of the receiver's files: the CRC-32 of what follows (8 hexadecimal
digits), a space, and a JSON object. Ranges only grow at their end, so that a line has ``[k, ranges]``: those from the
k-th on.
"""

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.files.nexus import ledger_file
from lima2cli.messages import Counts, FlowCount

RANGES = ("lost", "missing", "incomplete")
"""Lists of a `FlowCount` that are written."""


class Ledger:
    """The ledger of a receiver in a run directory, a new file.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self, directory: str, name: str, receiver: int) -> None:
        path = os.path.join(directory, ledger_file(name, receiver))
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._end, self._last = 0, b""
        self._known: dict[tuple[str, str], int] = {}

    def write(self, counts: Counts, frames: int | None) -> None:
        """Add a line, if it says anything new. ``frames``: the end of the acquisition, where it is known.

        What it says has to be in files already.

        Raises:
            OSError: the disk refuses; the next line says all of it.
        """
        line = _sealed(
            {
                "frames": frames,
                "flows": {
                    name: {"done": flow.done} | {kind: self._more(name, kind, getattr(flow, kind)) for kind in RANGES}
                    for name, flow in counts.flows.items()
                },
                "dropped": {name: self._more(name, "dropped", ranges) for name, ranges in counts.dropped.items()},
                "vetoed": counts.vetoed,
                "beside": counts.beside,
            }
        )
        if line == self._last:
            return
        try:
            at = self._end
            while line[at - self._end :]:
                at += os.pwrite(self._file, line[at - self._end :], at)
        except OSError:
            self._known.clear()
            raise
        self._end, self._last = at, line

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _more(self, name: str, kind: str, ranges: Sequence[tuple[int, ...]]) -> tuple[int, Sequence[tuple[int, ...]]]:
        """Return what is new of ranges, of which the last that was written may have grown."""
        first = max(0, self._known.get((name, kind), 0) - 1)
        self._known[name, kind] = len(ranges)
        return first, ranges[first:]


@dataclass(frozen=True)
class Kept:
    """Content of a ledger.

    counts   as of its last sound line;  frames  the end of the acquisition, None where the receiver did not know it
    damaged  number of the first line that is not as it was written, from 1; None where all are. A last line that was
             not written to its end is none
    """

    counts: Counts
    frames: int | None = None
    damaged: int | None = None


def read_ledger(path: Path) -> Kept:
    """Return what a ledger holds.

    Raises:
        OSError: it can't be read.
    """
    counts, frames = Counts(), None
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        entry = _opened(line)
        if entry is None:
            return Kept(counts, frames, number)
        frames = entry["frames"]
        for name, flow in entry["flows"].items():
            own = counts.flows.setdefault(name, FlowCount())
            own.done = {int(buffer): visit for buffer, visit in flow["done"].items()}
            for kind in RANGES:
                _extend(getattr(own, kind), *flow[kind])
        for name, more in entry["dropped"].items():
            _extend(counts.dropped.setdefault(name, []), *more)
        counts.vetoed.update(entry["vetoed"])
        counts.beside.update(entry["beside"])
    return Kept(counts, frames)


def _extend(ranges: list[Any], first: int, more: Sequence[Sequence[int]]) -> None:
    ranges[first:] = map(tuple, more)


def _sealed(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _opened(line: bytes) -> dict[str, Any] | None:
    """Return the object of a line; None where it is not as it was written."""
    digest, _, text = line.partition(b" ")
    if digest != b"%08x" % zlib.crc32(text):
        return None
    entry: dict[str, Any] = json.loads(text)
    return entry
