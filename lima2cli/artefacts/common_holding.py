"""What the one file of a channel of common layout holds."""

from collections.abc import Iterator, Sequence

from lima2cli.artefacts.claims import Claims
from lima2cli.artefacts.common_file import written_rows_files
from lima2cli.artefacts.flow_record import kept_unmatched
from lima2cli.artefacts.holdings import Claimed
from lima2cli.artefacts.inspection import Inspection, Unreadable, detector_of
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.rows import Rows
from lima2cli.artefacts.verification import verify_common


class Common(Claimed):
    """A channel whose receivers write one file: that file, or, where it is not complete, what they told of it."""

    def __init__(self, inspection: Inspection, record: Record) -> None:
        super().__init__(inspection, record)
        self._written: list[str] = []
        if record.role == "master":
            self._open()
        if self._claims is not None:
            self.dataset, self.files, self.expected = self._master, [self._master], self._claims.expected
            self.unmatched = kept_unmatched(inspection, self._master)
        else:
            inspection.tell(f"{self._master} is missing or unreadable: `lima2 recover` rebuilds it")
            self._written = written_rows_files(inspection.directory, record.name, record.node)
            self.expected = max(record.planned, 1 + self._last_listed(self._written))

    def _reads(self) -> list[Iterator[Sequence[Rows]]]:
        if self._claims is not None:
            return [self._claims.saved()]
        return [self._listed(name) for name in self._written]

    def _open(self) -> None:
        try:
            if self._inspection.verify:
                with self._inspection.open(self._master) as file:
                    verify_common(self._inspection, self.record.node, self._master, detector_of(file))
            self._claims = Claims(self._inspection, self.record, self._master)
        except Unreadable as error:
            self._inspection.tell(f"{self._master}: {error}")
