"""Number, time and status of the rows of a master, window by window, from what the frame files hold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lima2cli.artefacts.appending import Columns
from lima2cli.artefacts.channel import Channel
from lima2cli.artefacts.checksums import cover
from lima2cli.artefacts.mapping import Mapping as RowMapping
from lima2cli.artefacts.rows import WINDOW, InOrder, windows
from lima2cli.artefacts.status import INCOMPLETE, LOST, SAVED, Statuses, told
from lima2cli.artefacts.tree import fixed, group, write_plain

TOLD = ("frame_number", "frame_time", "frame_status", "frame_pixels")
"""Datasets with a value for each row."""


def write_rows(
    detector: Any, channel: Channel, receivers: Sequence[InOrder], count: int, statuses: Statuses | None
) -> None:
    """A row for each of ``count`` selected frames, saved or not.

    receivers   of each the frames in its files: index among the selected ones, time (seconds since the start)
    """
    number, time, state = _datasets(detector, count)
    rule = channel.rule
    for first, last in windows(count):
        status, times = told(statuses, first, last), np.full(last - first, np.nan)
        status[status == SAVED] = LOST  # unless it is found
        parts = np.zeros(last - first, np.intp)
        for receiver in receivers:
            for rows, taken, *_ in receiver.take(last):
                parts[rows - first] += 1
                times[rows - first] = taken
        status[parts > 0] = INCOMPLETE
        status[parts >= channel.parts] = SAVED
        number[first:last] = np.arange(first, last, dtype=np.uint64) * np.uint64(rule.step) + np.uint64(rule.start)
        time[first:last] = times
        state[first:last] = status


def write_kept_rows(
    detector: Any, channel: Channel, receivers: Sequence[InOrder], files: int, limit: int
) -> tuple[int, list[RowMapping]]:
    """A row for each frame below ``limit`` that is in files; how many there are, and how each of the files maps.

    receivers   as of `write_rows`, and of each frame its row in its file, and the index of that file
    """
    columns = Columns(detector, {"frame_number": "uint64", "frame_time": "float64", "frame_status": "uint8"})
    detector["frame_time"].attrs["units"] = fixed("s")
    maps = [RowMapping() for _ in range(files)]
    rule = channel.rule
    for first, last in windows(limit):
        parts, times = np.zeros(last - first, np.intp), np.full(last - first, np.nan)
        taken = [piece for receiver in receivers for piece in receiver.take(last)]
        for rows, time, *_ in taken:
            parts[rows - first] += 1
            times[rows - first] = time
        place = columns.rows + np.cumsum(parts > 0) - 1
        for rows, _, source, file in taken:
            maps[int(file[0])].add(place[rows - first], source)
        kept = np.flatnonzero(parts)
        status = np.where(parts[kept] >= channel.parts, SAVED, INCOMPLETE)
        columns.append(((kept + first) * rule.step + rule.start, times[kept], status))
        columns.write()
    return columns.rows, maps


def cover_rows(detector: Any) -> None:
    """Checksums of what a master that is complete tells of its rows."""
    cover(detector, {name: detector[name] for name in TOLD if name in detector})


def write_flow(
    detector: Any, channel: Channel, count: int, statuses: Statuses | None, totals: Mapping[str, Any] | None
) -> None:
    """The account of the channel's flow; where the rows can't tell it, also what became of each selected frame."""
    flow = group(detector, "flow", "NXcollection")
    flow.attrs["told"] = statuses is not None  # else rows that are in no file are so for reasons that nobody knows
    write_plain(flow, {"name": channel.flow, **(totals or {})})
    if channel.filtered or channel.places:
        chunks = (min(WINDOW, count),) if count else None
        made = flow.create_dataset(
            "frame_status", (count,), "uint8", chunks=chunks, compression="gzip" if chunks else None
        )
        for first, last in windows(count):
            made[first:last] = told(statuses, first, last)


def _datasets(detector: Any, count: int) -> tuple[Any, Any, Any]:
    number = detector.create_dataset("frame_number", (count,), "uint64")
    time = detector.create_dataset("frame_time", (count,), "float64")
    time.attrs["units"] = fixed("s")
    return number, time, detector.create_dataset("frame_status", (count,), "uint8")
