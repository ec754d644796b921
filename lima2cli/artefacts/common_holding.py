"""What the one file of a channel of common layout holds."""

from lima2cli.artefacts.claims import Claims
from lima2cli.artefacts.common_file import written_rows_files
from lima2cli.artefacts.holdings import Holding, read_all
from lima2cli.artefacts.inspection import Inspection, Unreadable, detector_of
from lima2cli.artefacts.master import master_file
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.rows import InOrder
from lima2cli.artefacts.status import Status


class Common(Holding):
    """A channel whose receivers write one file: that file, or, where it is not complete, what they told of it."""

    def __init__(self, inspection: Inspection, record: Record) -> None:
        super().__init__(inspection, record)
        self._master = master_file(record.name, record.node)
        self._claims: Claims | None = None
        if record.role == "master":
            self._open()
        if self._claims is not None:
            self.dataset, self.files, self.expected = self._master, [self._master], self._claims.expected
            self._streams.append(InOrder(self._claims.saved()))
        else:
            inspection.tell(f"{self._master} is missing or unreadable: `lima2 recover` rebuilds it")
            told = written_rows_files(inspection.directory, record.name, record.node)
            self.expected = max(record.selected, 1 + self._list_rows(told))

    def _open(self) -> None:
        try:
            if self._inspection.verify:
                with self._inspection.open(self._master) as file:
                    read_all(self._inspection, self._master, detector_of(file)["data"])
            self._claims = Claims(self._inspection, self.record, self._master)
        except Unreadable as error:
            self._inspection.tell(f"{self._master}: {error}")

    def _claimed(self, first: int, last: int) -> tuple[Status, Status]:
        return super()._claimed(first, last) if self._claims is None else self._claims.window(first, last)
