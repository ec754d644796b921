"""Node `roi_counters`: statistics of regions of interest, frame by frame.

Columns `<roi>_<statistic>`, over the n pixels x of the ROI that count:

avg        sum(x) / n                          float32, units of the pixels
std        sqrt(sum((x - avg)^2) / n)          float32, units of the pixels; the population's
min, max   least and largest                   the input's dtype
sum        sum(x)                              float64, exact for integers up to 2**53
saturated  how many reach the saturation       uint32, pixels
valid      n                                   uint32, pixels
above      how many are greater than a level   uint32, pixels
com_x      sum(x * column) / sum(x)            float64, pixels: the centre of mass, in the `coordinates` of the ROIs
com_y      sum(x * row) / sum(x)               float64, pixels

The level is written in the list: `statistics: [sum, above: 100]`. Of integers the sums of the centre of mass are exact
up to 2**53; it is NaN where sum(x) is 0, and may lie outside the ROI where pixels are negative.

Masked pixels don't count: those of the static mask, and of single frames NaN and invalid values. Saturated pixels do.
The attribute `pixels` of the columns is the size of the ROI, masked pixels included: `valid` by it is the share that
counts. Where no pixel counts: avg, std and centre of mass are NaN, sum and counts 0, min and max NaN, in integers 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, Block, FrameSpec, TableSpec
from lima2cli.geometry import Rect
from lima2cli.kernels import statistics
from lima2cli.kernels import statistics as statistic_columns
from lima2cli.kernels.regions import COORDINATES, ROIS, axes, looked_at, outlines, regions, sizes
from lima2cli.kernels.statistics import Above, RegionSums, Sums, column, named
from lima2cli.nodes.base import Inputs, Partial, Reduce, StripReducer, node
from lima2cli.view import Outline


@node("roi_counters")
class RoiCounters(Reduce):
    """Statistics of regions of interest."""

    changeable: ClassVar[tuple[str, ...]] = ("rois",)

    strips: ClassVar[bool] = True
    summed: ClassVar[bool] = True
    parts: ClassVar[bool] = True

    rois: Mapping[str, Any] = param("The regions, by name; columns are called <name>_<statistic>.", ROIS)
    coordinates: str = param("(0, 0) is the first pixel of the input, or of the detector.", COORDINATES, "input")
    statistics: tuple[str | Above, ...] = param("Which statistics.", statistic_columns.SHAPE, statistic_columns.DEFAULT)

    def looked_at(self, inputs: Inputs) -> int:
        """See `Node.looked_at`."""
        return looked_at(self.rois, self.coordinates, inputs.spec)

    def infer(self, inputs: Inputs) -> TableSpec:
        """See `Node.infer`."""
        spec = inputs.spec
        pixels = sizes(self.rois, self.coordinates, spec)
        regions(self.rois, self.coordinates, spec)
        rois, (names, level) = list(self.rois), named(self.statistics)
        return TableSpec(
            statistic_columns.columns(rois, names, spec),
            statistic_columns.default(rois, names),
            statistic_columns.units(rois, names),
            labels=statistic_columns.labels(rois, names, level),
            others=statistic_columns.others(rois, names),
            facts={f"{roi}_{name}": {"pixels": pixels[roi]} for roi in rois for name in names},
        )

    def warnings(self, inputs: Inputs) -> Sequence[NodeMisuse]:
        """See `Node.warnings`: regions of masked pixels only, and rects that cut through binned pixels."""
        return statistic_columns.doubtful(self.rois, self.coordinates, inputs.spec)

    def outlines(self, spec: FrameSpec) -> Mapping[str, Outline]:
        """See `Node.outlines`."""
        return outlines(self.rois, self.coordinates, spec)

    def reads(self, spec: FrameSpec) -> Sequence[Rect]:
        """See `Reduce.reads`."""
        return [region.box for region in regions(self.rois, self.coordinates, spec).values()]

    def costs_as(self, spec: FrameSpec) -> str:
        """See `Reduce.costs_as`."""
        adds = set(statistic_columns.needs(named(self.statistics)[0])) <= {"sum"}
        return "sum" if adds and np.dtype(spec.dtype).kind in "ui" else "statistics"

    def bind(self, inputs: Inputs) -> StripReducer:
        """See `Reduce.bind`."""
        spec = inputs.spec
        names, level = named(self.statistics)
        keys = statistic_columns.needs(names)
        places = {key: axis for key, axis in zip("xy", axes(self.coordinates, spec), strict=True) if key in keys}
        found = regions(self.rois, self.coordinates, spec).values()
        return _Counters([RegionSums(region, spec, keys, places, level) for region in found])

    def merge(self, one: Partial, other: Partial) -> Partial:
        """See `Reduce.merge`."""
        return statistics.merge(one, other) | {"frame_number": one["frame_number"]}

    def finish(self, partial: Partial) -> Mapping[str, NDArray[Any]]:
        """See `Reduce.finish`."""
        with np.errstate(all="ignore"):  # NaN without pixels; float64 values beyond float32
            table = {name: column(name, partial) for name in named(self.statistics)[0]}
        columns = {f"{roi}_{name}": values[:, i] for i, roi in enumerate(self.rois) for name, values in table.items()}
        return columns | {"frame_number": partial["frame_number"]}


class _Counters:
    """See `StripReducer`."""

    def __init__(self, regions: Sequence[RegionSums]) -> None:
        self.regions = regions

    def step(self, block: Block, received_ns: int) -> Partial:
        """Partial: the keys of `statistics`, each (n, ROIs), and ``frame_number``."""
        return _partial(block, [region(block.frames) for region in self.regions])

    def begin(self, frames: int) -> None:
        """See `StripReducer.begin`."""
        for region in self.regions:
            region.begin(frames)

    def strip(self, pixels: Array, frames: slice, rows: slice, columns: slice) -> None:
        """See `StripReducer.strip`."""
        for region in self.regions:
            region.strip(pixels, frames, rows, columns)

    def end(self, block: Block, received_ns: int) -> Partial:
        """See `StripReducer.end`."""
        return _partial(block, [region.end() for region in self.regions])

    def of_sums(self, block: Block, sums: Sequence[Sums]) -> Partial:
        """See `RegionReducer.of_sums`."""
        return _partial(block, sums)


def _partial(block: Block, sums: Sequence[Sums]) -> Partial:
    partial: Partial = {"frame_number": block.numbers.copy()}
    for i, one in enumerate(sums):
        for key, value in one.items():
            if not i:
                partial[key] = np.empty((len(block.numbers), len(sums)), value.dtype)
            partial[key][:, i] = value
    return partial
