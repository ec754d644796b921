"""What the frame files of a channel hold, and whether its master shows it."""

import os
from collections.abc import Iterator, Sequence

from lima2cli.artefacts.claims import Claims
from lima2cli.artefacts.flow_record import kept_unmatched
from lima2cli.artefacts.holdings import Claimed, last_listed
from lima2cli.artefacts.inspection import Inspection, Unreadable, detector_of
from lima2cli.artefacts.master import by_receiver, frame_files, receiver_of
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.rows import READ, Rows, rows_of, windows
from lima2cli.artefacts.sparse_files import whole_rows
from lima2cli.artefacts.verification import verify_frames


class Frames(Claimed):
    """A channel: its frame files, and its master held against them."""

    def __init__(self, inspection: Inspection, record: Record) -> None:
        super().__init__(inspection, record)
        self._counts: dict[str, int] = {}
        self._last = -1
        for name in frame_files(inspection.directory, record.name, record.node):
            try:
                self._open(name)
            except Unreadable as error:
                inspection.tell_of(name, error)
        self.files = list(self._counts)
        if record.role == "master":
            self._open_master()
        if self._claims is not None:
            self.dataset, self.expected = self._master, self._claims.expected
            self.vetoed = self._claims.vetoed if record.filtered else 0
            self.unmatched = kept_unmatched(inspection, self._master)
        else:
            inspection.tell(f"{self._master} is missing or unreadable: `lima2 recover` rebuilds it")
            self.expected = max(record.planned, 1 + self._last)

    def _reads(self) -> list[Iterator[Sequence[Rows]]]:
        return [self._read(names) for names in by_receiver(self.files)]

    def _open(self, name: str) -> None:
        """How many frames a file has."""
        with self._inspection.open(name) as file:
            detector = detector_of(file)
            frames, numbers = whole_rows(detector["data"]), len(detector["frame_number"])
            if frames != numbers:
                self._inspection.tell(f"{name}: {frames} frames but {numbers} frame numbers")
            count = min(frames, numbers)
            self._last = max(self._last, last_listed(detector["frame_number"], count, self.record))
            self._counts[name] = count
            if self._inspection.verify:
                verify_frames(self._inspection, self.record.node, name, detector)

    def _open_master(self) -> None:
        """What the master claims; its sources must exist and be long enough."""
        inspection = self._inspection
        try:
            self._claims = claims = Claims(inspection, self.record, self._master)
            if inspection.verify:
                with inspection.open(self._master) as file:
                    verify_frames(inspection, self.record.node, self._master, detector_of(file))
        except Unreadable as error:
            inspection.tell(f"{self._master}: {error}")
            return
        for source in () if claims.sources is None else claims.sources.all:
            held = self._counts.get(source.name)
            if held is not None and not claims.shows_whole(source, receiver_of(source.name)):
                inspection.tell(f"{source.name}: {self._master} does not show its frames where they belong")
            if held is not None and source.origin.last >= held:
                inspection.tell(f"{source.name} is short: it has {held} frames, {self._master} needs more")
            elif held is None and not os.path.exists(os.path.join(inspection.directory, source.name)):
                inspection.tell(f"{source.name} is missing")

    def _read(self, names: Sequence[str]) -> Iterator[Sequence[Rows]]:
        """Rows of the files of one receiver; they must be those that the master shows."""
        for name in names:
            try:
                with self._inspection.open(name) as file:
                    detector = detector_of(file)
                    for first, last in windows(self._counts[name], READ):
                        rows = rows_of(detector["frame_number"][first:last], self.record.start, self.record.step)
                        if self._claims is not None:
                            self._claims.check_files(name, first, last, rows, detector["frame_time"][first:last])
                            if self._claims.sparse:
                                self._check_pixels(name, first, last, self._claims.places(rows))
                        yield (rows,)
            except Unreadable as error:
                self._inspection.tell_of(name, error)

    def _check_pixels(self, name: str, first: int, last: int, rows: Rows) -> None:
        """A file has as many pixels of each frame as the master's copy, where they are rows ``rows``."""
        with self._inspection.open(name) as file, self._inspection.open(self._master) as master:
            held, shown = detector_of(file)["frame_pixels"][first:last], detector_of(master)["frame_pixels"]
            inside = (rows >= 0) & (rows < len(shown))
            if not inside.any():
                return
            low = int(rows[inside].min())
            there = shown[low : int(rows[inside].max()) + 1][rows[inside] - low]
            if (there != held[inside] if self.record.parts == 1 else there < held[inside]).any():
                self._inspection.tell(f"{name}: {self._master} has other numbers of pixels of its frames")
