"""Contents of a run: its frames and tables, in files or while they come, and its files."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.errors import FileProblem
from lima2cli.files import live
from lima2cli.runs.control_socket import HangUp, tap
from lima2cli.runs.ending import record_of


class Counters:
    """Tables of a run, by node: ``run.counters["roi"]["sum"]``, as far as their rows are in files now."""

    def __init__(self, run: "Contents") -> None:
        self._run = run

    def __getitem__(self, node: str) -> dict[str, NDArray[Any]]:
        """Return the columns of a node, ``frame_number`` among them, in its order. Raises `FileProblem`."""
        return live.columns(self._run.directory, self._run.name, node)


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """A frame of a run, of a flow or node: ``pixels`` (height, width).

    number    of the frame
    time_ns, acquisition, receiver   the detector's time, ns since the epoch, which acquisition of the run, from 1, and
              the receiver that it came from; None where it was read from a file
    mask      bool (height, width), True = no measurement in any frame; None = all pixels measure
    """

    node: str
    number: int
    time_ns: int | None
    acquisition: int | None
    receiver: str | None
    pixels: NDArray[Any]
    mask: NDArray[np.bool_] | None = None


class Contents(ABC):
    """The frames and tables of a run that goes on, or that has ended."""

    @property
    @abstractmethod
    def directory(self) -> Path:
        """The run directory."""

    @property
    @abstractmethod
    def live(self) -> bool:
        """True while the run goes on."""

    @property
    def name(self) -> str:
        """Name of the pipeline."""
        return record_of(self.directory).name

    @property
    def files(self) -> list[Path]:
        """Its HDF5 files."""
        return sorted(self.directory.glob("*.h5"))

    @property
    def counters(self) -> Counters:
        """Tables, by node, as far as they are in files: ``run.counters["roi"]["sum"]``."""
        return Counters(self)

    def frame(self, node: str, number: int = -1) -> NDArray[Any]:
        """Return a saved frame (height, width) by its number, or counted from the latest (-1). Raises `FileProblem`.

        A sparse one is the whole detector image that it stands for, 0 where no pixel was chosen.
        """
        return live.frame(self.directory, self.name, node, number)[1]

    def tap(
        self, node: str, *, every: float = 0.0, count: int | None = None, hang_up: HangUp | None = None
    ) -> Generator[LiveFrame]:
        """Yield frames of a flow or node, saved or not, while the run goes on; it never waits for whoever looks.

        every   the least seconds from one frame to the next; those between are left out
        count   ends after so many, None at the end of the run
        hang_up ends it at once, when another thread calls it, though no frame comes

        Raises:
            StateError: the run does not go on, or has no such frames.
        """
        mask: NDArray[np.bool_] | None = None
        seen = 0
        for head, data in tap(self.directory, node, every, hang_up):
            pixels = np.frombuffer(data, np.dtype(head["dtype"])).reshape(head["shape"])
            if head["type"] == "mask":
                mask = pixels != 0
                continue
            yield LiveFrame(node, head["frame_number"], head["time_ns"], head["acquisition"], head["receiver"],
                            pixels, mask)  # fmt: skip
            seen += 1
            if seen == count:
                return

    def last(self, node: str) -> LiveFrame:
        """Return the last frame that a node has saved, as far as it is in files. Raises `FileProblem`."""
        if node not in record_of(self.directory).channels:
            raise FileProblem(f"{'the run has ended, and ' if not self.live else ''}{node} is not saved")
        return self.saved(node, -1)

    def saved(self, node: str, number: int = -1) -> LiveFrame:
        """Return a saved frame as `frame` does, with its time and mask. Raises `FileProblem`."""
        if node not in record_of(self.directory).channels:
            raise FileProblem(f"{'the run has ended, and ' if not self.live else ''}{node} is not saved")
        saved = live.saved_frame(self.directory, self.name, node, number)
        return LiveFrame(node, saved.number, saved.time_ns, None, None, saved.pixels, saved.mask)

    def rows(self, node: str, since: int = -1) -> dict[str, NDArray[Any]]:
        """Return the columns of a table as `counters` does, of frames with a greater number than ``since``.

        Raises `FileProblem`.
        """
        return live.columns(self.directory, self.name, node, since)

    @property
    def tables(self) -> list[str]:
        """Names of the nodes whose rows are saved."""
        return list(record_of(self.directory).tables)

    def open(self, node: str) -> Any:
        """Return the h5py dataset (n, height, width) of the master of a channel; close it by its ``file``.

        While the run goes on it has the rows that are final now: ask again for more.

        Raises:
            FileProblem: there is no master (yet).
        """
        return live.open_master(self.directory, self.name, node)
