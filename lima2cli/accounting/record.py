"""Accounting of a run that its directory keeps: all that it needs of the plan, and ledgers, for receivers that die."""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lima2cli import __version__
from lima2cli.dataclass import dataclass
from lima2cli.declare.plain import Misshapen, from_plain, to_plain
from lima2cli.files.channel import Channel, TableChannel
from lima2cli.files.nexus import ledger_file
from lima2cli.geometry import Rule
from lima2cli.messages import Counts, FlowCount
from lima2cli.plan.ir import Plan

VERSION = 1


@dataclass(frozen=True)
class GdtRecord:
    """A data flow, or the part of one place where it is dispatched by modules.

    name, flow  its own, unique, and that of the data flow
    selected    number of frames it takes, None without end
    receivers   index of the receiver of each local buffer, in rotation order
    """

    name: str
    flow: str
    rule: Rule
    selected: int | None
    receivers: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class RunRecord:
    """Facts of a plan that the end of a run and its accounting need.

    frames     of each acquisition, None = until stopped
    channels, tables   what is saved, by node
    filters    by channel, the selections that its frames have been through
    divided    nodes whose receivers each have a part of every frame
    """

    name: str
    frames: int | None
    gdts: tuple[GdtRecord, ...]
    channels: Mapping[str, Channel]
    tables: Mapping[str, TableChannel]
    filters: Mapping[str, tuple[str, ...]]
    divided: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan) -> "RunRecord":
        """Return the record of a plan."""
        numberings = {step.name: step.numbering for step in plan.steps}
        return cls(
            plan.name,
            plan.frames,
            tuple(
                GdtRecord(gdt.name, gdt.flow, gdt.rule, gdt.selected, tuple(buffer.receiver for buffer in gdt.buffers))
                for gdt in plan.gdts
            ),
            plan.channels,
            plan.tables,
            {name: numberings[channel.node].filters for name, channel in plan.channels.items()},
            tuple(name for name, numbering in numberings.items() if numbering.parts),
        )

    @property
    def nodes(self) -> Mapping[str, Channel | TableChannel]:
        """Nodes that save, by name."""
        return {**self.channels, **self.tables}

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Return the pipeline's metadata."""
        return next((node.metadata for node in self.nodes.values() if node.metadata is not None), {})

    @property
    def flows(self) -> tuple[str, ...]:
        """Names of the data flows."""
        return tuple(dict.fromkeys(gdt.flow for gdt in self.gdts))

    def gdts_of(self, flow: str) -> tuple[GdtRecord, ...]:
        """Return the GDT of a data flow; for one that is dispatched by modules those of its places."""
        return tuple(gdt for gdt in self.gdts if gdt.flow == flow)


def seal(record: RunRecord) -> dict[str, Any]:
    """Return a record as plain data, with its version and a digest by which damage is found."""
    content = to_plain(record)
    return {"version": VERSION, "lima2": __version__, "sha256": _digest(content), "record": content}


def unseal(sealed: Mapping[str, Any]) -> RunRecord:
    """Return the record that `seal` wrote.

    Raises:
        ValueError: it is of another version, or damaged.
    """
    try:
        if sealed["version"] != VERSION:
            raise ValueError(f"it is of version {sealed['version']}, made by lima2 {sealed['lima2']}, not {VERSION}")
        if sealed["sha256"] != _digest(sealed["record"]):
            raise ValueError("it is damaged: its digest is not that of its content")
        return from_plain(RunRecord, sealed["record"])
    except (KeyError, TypeError, Misshapen) as error:
        raise ValueError(f"it is damaged: {error!r}") from error


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


RANGES = ("lost", "missing", "incomplete")
"""Lists of a `FlowCount` that are written."""


@dataclass(frozen=True)
class Line:
    """A line of a ledger: its text, and how many ranges of each kind it knows of, by (name, kind)."""

    text: bytes
    known: Mapping[tuple[str, str], int]


class Ledger:
    """The ledger of a receiver in a run directory, a new file: what it alone knows, written as a run goes.

    It is a text file, with a line for each flush of the receiver's files: the CRC-32 of what follows (8 hexadecimal
    digits), a space, and a JSON object. Ranges only grow at their end, so that a line has ``[k, ranges]``: those from
    the k-th on.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self, directory: str, name: str, receiver: int) -> None:
        path = os.path.join(directory, ledger_file(name, receiver))
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._end, self._last = 0, b""
        self._known: dict[tuple[str, str], int] = {}

    def line(self, counts: Counts, frames: int | None) -> Line:
        """Return a line that says these counts, to be written before another is asked for, or never.

        ``frames``: the end of the acquisition, where it is known.
        """
        known: dict[tuple[str, str], int] = {}

        def more(name: str, kind: str, ranges: Sequence[tuple[int, ...]]) -> tuple[int, Sequence[tuple[int, ...]]]:
            """Return what is new of ranges, of which the last that was written may have grown."""
            first = max(0, self._known.get((name, kind), 0) - 1)
            known[name, kind] = len(ranges)
            return first, ranges[first:]

        text = _sealed(
            {
                "frames": frames,
                "flows": {
                    name: {"done": flow.done} | {kind: more(name, kind, getattr(flow, kind)) for kind in RANGES}
                    for name, flow in counts.flows.items()
                },
                "dropped": {name: more(name, "dropped", ranges) for name, ranges in counts.dropped.items()},
                "vetoed": counts.vetoed,
                "beside": counts.beside,
            }
        )
        return Line(text, known)

    def write(self, line: Line) -> None:
        """Add a line, if it says anything new. What it says has to be in files already.

        Raises:
            OSError: the disk refuses; the next line says all of it.
        """
        self._known |= line.known
        if line.text == self._last:
            return
        try:
            at = self._end
            while line.text[at - self._end :]:
                at += os.pwrite(self._file, line.text[at - self._end :], at)
        except OSError:
            self._known.clear()
            raise
        self._end, self._last = at, line.text

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


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
