"""Master of a channel while its run goes on: exact as far as it goes, and replaced by a longer one as frames arrive.

Each is a file of its own that takes the name of the one before, and has the role ``live`` until the end of the run
writes the final one. It is marked as being written, so that programs open it as they have to open its frame files, for
SWMR: who opened it in another way would read fill values instead of frames.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.files.appending import CHUNK_CACHE_BYTES, VERSIONS, set_marks, written
from lima2cli.files.channel import Channel
from lima2cli.files.compression import load_filters
from lima2cli.files.disk import disk_errors
from lima2cli.files.frame_writer import frame_file
from lima2cli.files.master_rows import COLUMNS, RowMapping, SourceFile, write_columns, write_rows, write_virtual
from lima2cli.files.nexus import ChannelRecord, detector_path, master_file, write_nexus, write_params, write_start
from lima2cli.files.nxmx import prepare_late, write_so_far
from lima2cli.files.rows import READ, InOrder, rows_of, windows

LIVE = "live"
"""Role of a master whose run goes on, or was killed."""


def is_final(master: str | os.PathLike[str]) -> bool:
    """Return whether a master is there that the end of a run, or its recovery, has written."""
    return _role(master) not in (None, LIVE)


def grows(master: str | os.PathLike[str]) -> bool:
    """Return whether a master is there that the control rank of a run has written, and no end of it has replaced."""
    return _role(master) == LIVE


def discard_live(master: str | os.PathLike[str]) -> None:
    """Remove a master that is live, where there is one.

    Raises:
        OSError: the system refuses.
    """
    if grows(master):
        os.remove(master)


def _role(master: str | os.PathLike[str]) -> str | None:
    """Return the role in the record of a file, None where it can't be read."""
    import h5py

    for swmr in (False, True):
        try:
            with h5py.File(master, swmr=swmr, locking="best-effort") as file:
                record = ChannelRecord.read(file)
                return None if record is None else record.role
        except (OSError, RuntimeError, KeyError):
            pass
    return None


@dataclass
class _Part:
    """The part of a frame file that the master shows so far: its first ``rows``, at their places."""

    name: str
    rows: int = 0
    mapping: RowMapping = field(default_factory=RowMapping)


@dataclass(frozen=True)
class Template:
    """Masters of a channel as they begin: without rows, and prepared to be given some."""

    empty: bytes
    prepared: bytes


class LiveMaster:
    """The master of a channel in one directory, made without rows; `write` gives it more.

    ``rows`` of it are there now.

    Raises:
        OSError: it can't be written.
    """

    def __init__(self, channel: Channel, directory: str, template: Template | None = None) -> None:
        self._channel = channel
        self.move(directory)
        self._parts: dict[int, list[_Part]] = {receiver: [] for receiver in dict.fromkeys(channel.receivers)}
        self.rows = 0
        self._last_s = -1.0
        """Time of the last frame that it shows, in s since the start; negative without one."""
        self.template = self._made() if template is None else template
        """Begin of the masters of other acquisitions of the channel, too."""
        self._replace(0, None)

    def move(self, directory: str) -> None:
        """Note that it is in this directory, with all that it shows."""
        self._directory = directory
        self.path = os.path.join(directory, master_file(self._channel.name, self._channel.node))

    def describe(self, channel: Channel) -> None:
        """Describe the channel in another way, from the next writing on.

        Raises:
            OSError: the disk refuses.
        """
        self._channel = channel
        self.template = self._made()

    def write(self, rows: int, saved: Mapping[int, int], start_ns: int) -> bool:
        """Replace it by one of so many rows, whose frames are in files or will never be; return whether that was done.

        It is not where the files do not show yet, on this machine, all that receivers have reported.

        saved     frames that each receiver has written and flushed, by index
        start_ns  start of the acquisition, ns since the epoch

        Raises:
            OSError: it can't be written, or a frame file can't be read; the one before is still there.
            ValueError: a file holds a frame that the flow does not select.
        """
        if not all(self._follow(receiver, rows, saved.get(receiver, 0)) for receiver in self._parts):
            return False
        self._replace(rows, start_ns)
        self.rows = rows
        return True

    def _made(self) -> Template:
        part = f"{self.path}.part"
        with written(part, libver=VERSIONS) as file:
            write_params(write_nexus(file, self._channel, None), self._channel)
            ChannelRecord.of(self._channel, LIVE).write(file)
        empty = _content(part)
        with written(part, "r+", libver=VERSIONS) as file:
            prepare_late(file, self._channel)
        return Template(empty, _content(part))

    def _replace(self, rows: int, start_ns: int | None) -> None:
        channel, part, shows = self._channel, f"{self.path}.part", self._last_s >= 0
        try:
            with open(part, "wb") as begun:
                begun.write(self.template.prepared if shows else self.template.empty)
            with written(part, "r+", libver=VERSIONS) as file:
                if start_ns is not None:
                    write_start(file, start_ns)
                    ChannelRecord.write_start(file, start_ns)
                self._add_rows(file[detector_path(channel)], rows)
                if start_ns is not None and shows:
                    write_so_far(file, channel, start_ns, start_ns + round(self._last_s * 1e9), rows)
            set_marks(part)
            os.replace(part, self.path)
        except BaseException:
            with suppress(OSError):
                os.remove(part)
            raise

    def _add_rows(self, detector: Any, rows: int) -> None:
        files = [
            SourceFile(part.name, receiver, part.rows, -1, deepcopy(part.mapping).finish(), None)
            for receiver, parts in self._parts.items()
            for part in parts
        ]
        write_virtual(detector, self._channel, files, rows)
        if sum(file.rows for file in files) == rows * self._channel.parts:
            whole = [file for file in files if file.receiver == files[0].receiver] if self._channel.places else files
            write_columns(detector, whole, rows)
        else:
            receivers = [InOrder(self._times(parts)) for parts in self._parts.values()]
            write_rows(detector, self._channel, receivers, rows, None)

    def _follow(self, receiver: int, rows: int, saved: int) -> bool:
        """Map what the files of a receiver have below row ``rows``; return whether they show all that it has saved."""
        parts, per_file, shown = self._parts[receiver], self._channel.frames_per_file, 0
        while True:
            if not parts or (per_file and parts[-1].rows == per_file):
                part = _Part(frame_file(self._channel, receiver, len(parts)))
                if not os.path.exists(os.path.join(self._directory, part.name)):
                    return sum(one.rows for one in parts) >= saved
                parts.append(part)
            shown, beyond = self._map(parts[-1], rows)
            if beyond or not per_file or parts[-1].rows < per_file:
                return beyond or sum(one.rows for one in parts[:-1]) + shown >= saved

    def _map(self, part: _Part, rows: int) -> tuple[int, bool]:
        """Map what a file has below row ``rows``; return how many frames it shows, and whether some are not below."""
        channel = self._channel
        rule, several = channel.rule, len(set(channel.receivers)) < len(channel.receivers)
        with _reading(os.path.join(self._directory, part.name)) as file:
            detector = file[detector_path(channel)]
            shown = min(len(detector[name]) for name in ("data", *COLUMNS))
            for first, last in windows(shown - part.rows, READ):
                numbers = detector["frame_number"][part.rows : part.rows + last - first]
                target = rows_of(numbers, rule.start, rule.step)
                target = target[target < rows]
                buffer = rule.turn(rule.group(target))[0] if several else None
                part.mapping.add(target, part.rows + np.arange(len(target)), buffer)
                if len(target):
                    times = detector["frame_time"][part.rows : part.rows + len(target)]
                    self._last_s = max(self._last_s, float(times.max()))
                part.rows += len(target)
                if len(target) < len(numbers):
                    return shown, True
        return shown, False

    def _times(self, parts: Sequence[_Part]) -> Iterator[list[NDArray[Any]]]:
        """Yield, piece by piece, the rows of the master and the times of the frames of one receiver."""
        rule = self._channel.rule
        for part in parts:
            for first, last in windows(part.rows, READ):
                with _reading(os.path.join(self._directory, part.name)) as file:
                    detector = file[detector_path(self._channel)]
                    numbers, times = detector["frame_number"][first:last], detector["frame_time"][first:last]
                yield [rows_of(numbers, rule.start, rule.step), times]


def _content(path: str) -> bytes:
    with open(path, "rb") as held:
        return held.read()


@contextmanager
def _reading(path: str) -> Iterator[Any]:
    """Open a frame file that is being written. Raises OSError where that fails."""
    import h5py

    load_filters()
    with disk_errors(path), h5py.File(path, swmr=True, rdcc_nbytes=CHUNK_CACHE_BYTES) as file:
        yield file
