"""Static facts of what a run saves: one record per saving node, decided by the plan."""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.facts import Facts
from lima2cli.frames import DetectorInfo, Experiment, Invalid, TableAxis
from lima2cli.geometry import Rect, Rule
from lima2cli.view import View

RowSource = tuple[int, int, int | None]
"""First frame, step and number of the frames that a flow selects."""


@dataclass(frozen=True, eq=False)
class Channel:
    """Frames of one sink, as they are saved.

    name        of the pipeline;  node, flow   the saving node and the flow that feeds it
    flows       all flows that feed it, where it saves what was joined
    sources     of each of these flows first frame, step, and number of the frames that it selects (None: endless);
                empty: those of ``rule``
    dtype       numpy name; height, width of a frame
    rule        addressing of the flow, ``selected`` its number of frames (None: endless)
    receivers   index of the receiver of each local buffer, in rotation order
    view        which part of the detector frames show, and how
    mask        bool (height, width), True = masked (gaps too), or None; saved as NeXus pixel_mask
    saturation  in the units of the pixels, None if unknown or no longer meaningful
    invalid     values of pixels of single frames that are not measurements
    checksum    whether stored data have checksums
    hole        value of pixels that were not written; None: the detector's gap value
    metadata    the pipeline's ``metadata`` (plain data, base units)
    acquisition, processing   parameters saved for the record (plain data)
    window      frames of the flow that make one of these, 0 = all of them; ``rule`` and ``selected`` count these
    upstream    nodes on the way that may drop frames
    unmatched   nodes on the way whose dropped frames were not in all inputs of a join
    sparse      frames are sparse; ``height`` and ``width`` are those of the frames that they were chosen from
    layout      files (each receiver its own), common (one file of all), virtual (partial frames, put together by the
                master)
    places      of partial frames, for each of ``receivers`` the rectangle that its frames show, in pixels of the whole
                frame, of ``height`` and ``width``; every receiver then has its part of all selected frames, and
                ``rule`` has one buffer. Empty: whole frames
    filtered    behind a `filter` node: which of the selected frames reach the channel is not known before
    packed      frames come compressed by the detector as ``compression`` says, and chunks are what it has sent
    facts       what the detector has said of the acquisition; None: nothing so far
    rings       of sparse frames that come with the background of rings about the beam: where these are; else None
    """

    name: str
    node: str
    flow: str
    dtype: str
    height: int
    width: int
    rule: Rule
    selected: int | None
    receivers: tuple[int, ...]
    view: View
    detector: DetectorInfo
    compression: str = "bslz4"
    frames_per_file: int = 0
    frames_per_chunk: int = 1
    checksum: bool = True
    mask: NDArray[np.bool_] | None = None
    saturation: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    acquisition: Mapping[str, Any] = field(default_factory=dict)
    processing: Mapping[str, Any] = field(default_factory=dict)
    window: int = 1
    upstream: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    sparse: bool = False
    flows: tuple[str, ...] = ()
    sources: tuple[RowSource, ...] = ()
    layout: str = "files"
    places: tuple[Rect, ...] = ()
    filtered: bool = False
    invalid: Invalid = Invalid()
    hole: float | None = None
    packed: bool = False
    facts: Facts | None = field(default=None, metadata={"none": "absent"})
    rings: Experiment | None = field(default=None, metadata={"none": "absent"})

    @property
    def sensor_view(self) -> View:
        """Return how frames show the detector without its own operations."""
        operated = self.detector.operated
        return self.view if operated is None else operated.view.then(self.view)

    @property
    def as_sent(self) -> bool:
        """Return whether pixels are saved as the detector sends them: no node has been before, nothing is summed."""
        return len(self.processing) <= 1 and self.window == 1 and self.sensor_view.binning == (1, 1)

    @property
    def parts(self) -> int:
        """Number of receivers whose frames make a whole frame."""
        return len(self.places) or 1

    @property
    def complete(self) -> bool:
        """Return whether each frame that its flow receives should be a row of it."""
        one = self.window == 1 and len(self.flows) <= 1
        return one and not (self.filtered or self.upstream or self.unmatched)

    @property
    def live(self) -> bool:
        """Return whether its master is there, and grows, while the run goes on."""
        return not (self.sparse or self.filtered) and self.layout != "common"

    def place(self, receiver: int) -> Rect:
        """Return the rectangle of the whole frame, in pixels, that the frames of a receiver show."""
        return self.places[self.receivers.index(receiver)] if self.places else Rect(0, 0, self.width, self.height)

    def part(self, receiver: int) -> "Channel":
        """Return the channel as the files of one receiver describe it: its part of the frames, the same ``places``.

        It is made for writers, and must not be divided again.
        """
        if not self.places:
            return self
        place = self.place(receiver)
        mask = None if self.mask is None else self.mask[place.within(Rect(0, 0, self.width, self.height))]
        return replace(self, view=self.view.cut(place), height=place.height, width=place.width, mask=mask)


@dataclass(frozen=True)
class TableChannel:
    """Rows of one node that makes a table, one per frame.

    columns     numpy dtype name of each column; ``frame_number`` uint64 comes with every row
    default     the column that viewers plot first
    unmatched   as of `Channel`
    lengths     values per row, of columns that have a vector (n, length) instead of one value (n,)
    flows, sources, window   as of `Channel`
    complete    each frame that its flow receives should have a row
    metadata    as of `Channel`
    labels, others, axes, errors, facts   of columns, for viewers; see `TableSpec`
    """

    name: str
    node: str
    flow: str
    columns: Mapping[str, str]
    default: str | None
    rule: Rule
    selected: int | None
    receivers: tuple[int, ...]
    units: Mapping[str, str] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    lengths: Mapping[str, int] = field(default_factory=dict)
    flows: tuple[str, ...] = ()
    sources: tuple[RowSource, ...] = ()
    window: int = 1
    complete: bool = True
    metadata: Mapping[str, Any] | None = field(default=None, metadata={"none": "absent"})
    labels: Mapping[str, str] | None = field(default=None, metadata={"none": "absent"})
    others: tuple[str, ...] | None = field(default=None, metadata={"none": "absent"})
    axes: tuple[TableAxis, ...] | None = field(default=None, metadata={"none": "absent"})
    errors: str | None = field(default=None, metadata={"none": "absent"})
    facts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
