"""The static facts of what a run saves: one record per saving node, decided by the plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.geometry import Rect, Rule
from lima2cli.spec import DetectorInfo


@dataclass(frozen=True, eq=False)
class Channel:
    """Frames of one `io_hdf5` node.

    name        of the pipeline;  node, flow   the saving node and the flow that feeds it
    dtype       numpy name; height, width of a frame
    rule        addressing of the flow, ``selected`` its number of frames (None: endless)
    receivers   index of the receiver of each local buffer, in rotation order
    area        rectangle of the detector that frames show
    mask        bool (height, width), True = masked, or None; saved as NeXus pixel_mask
    metadata    the pipeline's ``metadata`` (plain data, base units)
    acquisition, processing   parameters saved for the record (plain data)
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
    area: Rect
    detector: DetectorInfo
    compression: str = "bslz4"
    frames_per_file: int = 0
    frames_per_chunk: int = 1
    mask: NDArray[np.bool_] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    acquisition: Mapping[str, Any] = field(default_factory=dict)
    processing: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TableChannel:
    """Rows of one table node (checkpoint, roi_counters), one per frame.

    columns     numpy dtype name of each column; ``frame_number`` uint64 comes with every row
    default     the column that viewers plot first
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
