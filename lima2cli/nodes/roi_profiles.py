"""Node `roi_profiles`: statistics along one axis of regions of interest, frame by frame.

`horizontal` profiles run from left to right and have a value per column, over the rows of the ROI; `vertical` ones run
from top to bottom and have a value per row, over its columns:

      1 2 0 │ 3
      4 0 1 │ 5      vertical sum: 3, 5, 1
      0 0 1 │ 1
      ──────┘
      5 2 2          horizontal sum: 5, 2, 2

Left and right, columns and rows are those of the frames that enter the node, also with ``coordinates: detector``; the
first value is that of the ROI's first column or row there.

Columns `<roi>_<statistic>` of the table hold a vector per frame, (frames, length). Statistics, their dtypes, and what
counts are as for `roi_counters`, line by line: masked pixels (of the static mask, NaN, invalid values) don't count; of
a line without any pixel that counts avg and std are NaN, sum and saturated 0, min and max NaN, in integers 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Choice, param
from lima2cli.errors import Misfit
from lima2cli.nodes import statistic_columns, statistics
from lima2cli.nodes.base import Partial, Reduce, StripReducer
from lima2cli.nodes.line_sums import LineSums
from lima2cli.nodes.rois import COORDINATES, RECTS, looked_at, regions
from lima2cli.nodes.statistic_columns import column
from lima2cli.nodes.statistics import Sums
from lima2cli.spec import Array, Block, Files, FrameSpec, TableSpec


@dataclass(frozen=True, kw_only=True)
class RoiProfiles(Reduce):
    """Statistics along one axis of regions of interest."""

    kind: ClassVar[str] = "roi_profiles"
    strips: ClassVar[bool] = True
    parts: ClassVar[bool] = True

    rois: Mapping[str, Any] = param("The regions, by name; columns are called <name>_<statistic>.", RECTS)
    coordinates: str = param("(0, 0) is the first pixel of the input, or of the detector.", COORDINATES, "input")
    direction: str = param(
        "horizontal = a value per column; vertical = a value per row.", Choice(("horizontal", "vertical")), "horizontal"
    )
    statistics: tuple[str, ...] = param(
        "Which statistics: avg, std, min, max, sum, saturated.", statistic_columns.SHAPE, statistic_columns.DEFAULT
    )

    def looked_at(self, spec: FrameSpec) -> int:
        """See `Node.looked_at`."""
        return looked_at(self.rois, self.coordinates, spec)

    def infer(self, spec: FrameSpec, files: Files) -> TableSpec:
        """See `Node.infer`."""
        rois, names = list(self.rois), self.statistics
        found = zip(rois, self._lengths(spec), strict=True)
        return TableSpec(
            statistic_columns.columns(rois, names, spec),
            statistic_columns.default(rois, names),
            statistic_columns.units(rois, names),
            {f"{roi}_{name}": length for roi, length in found for name in names},
        )

    def warnings(self, spec: FrameSpec, files: Files) -> Sequence[Misfit]:
        """See `Node.warnings`: regions of masked pixels only, and rects that cut through binned pixels."""
        return statistic_columns.doubtful(self.rois, self.coordinates, spec)

    def start(self, spec: FrameSpec, files: Files) -> StripReducer:
        """See `Reduce.start`."""
        keys, across = statistic_columns.needs(self.statistics), self.direction == "horizontal"
        found = regions(self.rois, self.coordinates, spec).values()
        return _Profiles([LineSums(region, spec, keys, across=across) for region in found])

    def merge(self, one: Partial, other: Partial) -> Partial:
        """See `Reduce.merge`."""
        numbers = one["frame_number"]
        parts = zip(_by_roi(one), _by_roi(other), strict=True)
        return _partial(numbers, [statistics.merge(mine, yours) for mine, yours in parts])

    def finish(self, partial: Partial) -> Mapping[str, NDArray[Any]]:
        """See `Reduce.finish`."""
        with np.errstate(all="ignore"):  # NaN without pixels; float64 values beyond float32
            columns = {
                f"{roi}_{name}": column(name, sums)
                for roi, sums in zip(self.rois, _by_roi(partial), strict=True)
                for name in self.statistics
            }
        return columns | {"frame_number": partial["frame_number"]}

    def _lengths(self, spec: FrameSpec) -> list[int]:
        """Of each ROI's profile."""
        boxes = [region.whole for region in regions(self.rois, self.coordinates, spec).values()]
        return [box.width if self.direction == "horizontal" else box.height for box in boxes]


class _Profiles:
    """See `StripReducer`."""

    def __init__(self, regions: Sequence[LineSums]) -> None:
        self.regions = regions

    def step(self, block: Block, received_ns: int) -> Partial:
        """Partial: the keys of `statistics` for each ROI, "<n> <key>", each (n, length), and ``frame_number``."""
        return _partial(block.numbers.copy(), [region(block.frames) for region in self.regions])

    def begin(self, frames: int) -> None:
        """See `StripReducer.begin`."""
        for region in self.regions:
            region.begin(frames)

    def strip(self, pixels: Array, frames: slice, rows: slice) -> None:
        """See `StripReducer.strip`."""
        for region in self.regions:
            region.strip(pixels, frames, rows)

    def end(self, block: Block, received_ns: int) -> Partial:
        """See `StripReducer.end`."""
        return _partial(block.numbers.copy(), [region.end() for region in self.regions])


def _partial(numbers: NDArray[np.uint64], sums: Sequence[Sums]) -> Partial:
    named = {f"{i} {key}": values for i, one in enumerate(sums) for key, values in one.items()}
    return {"frame_number": numbers} | named


def _by_roi(partial: Partial) -> list[Sums]:
    """The sums of each ROI, in their order."""
    found: dict[str, Sums] = {}
    for name, values in partial.items():
        number, _, key = name.partition(" ")
        if key:
            found.setdefault(number, {})[key] = values
    return list(found.values())
