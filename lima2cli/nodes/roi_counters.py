"""Node `roi_counters`: statistics of regions of interest, frame by frame.

Columns `<roi>_<statistic>`, over the n pixels x of the ROI that count:

avg        sum(x) / n                          float32, units of the pixels
std        sqrt(sum((x - avg)^2) / n)          float32, units of the pixels; the population's
min, max   least and largest                   the input's dtype
sum        sum(x)                              float64, exact for integers up to 2**53
saturated  how many reach the saturation       uint32, pixels

Pixels of the static mask and NaN pixels of single frames don't count; saturated pixels do. Where no pixel counts: avg
and std are NaN, sum and saturated 0, min and max NaN, in integers 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Choice, ListOf, param
from lima2cli.errors import Misfit
from lima2cli.nodes import statistics
from lima2cli.nodes.base import Partial, Reduce, StripReducer
from lima2cli.nodes.rois import COORDINATES, ROIS, regions, unaligned
from lima2cli.nodes.statistics import RegionSums, Sums
from lima2cli.spec import Array, Block, Files, FrameSpec, TableSpec

STATISTICS = ("avg", "std", "min", "max", "sum", "saturated")

NEEDS = {
    "avg": {"sum"},
    "std": {"sum", "m2"},
    "min": {"min"},
    "max": {"max"},
    "sum": {"sum"},
    "saturated": {"saturated"},
}


@dataclass(frozen=True, kw_only=True)
class RoiCounters(Reduce):
    """Statistics of regions of interest."""

    kind: ClassVar[str] = "roi_counters"
    strips: ClassVar[bool] = True

    rois: Mapping[str, Any] = param("The regions, by name; columns are called <name>_<statistic>.", ROIS)
    coordinates: str = param("(0, 0) is the first pixel of the input, or of the detector.", COORDINATES, "input")
    statistics: tuple[str, ...] = param(
        "Which statistics: avg, std, min, max, sum, saturated.", ListOf(Choice(STATISTICS), 1), STATISTICS[:5]
    )

    def infer(self, spec: FrameSpec, files: Files) -> TableSpec:
        """See `Node.infer`."""
        regions(self.rois, self.coordinates, spec)
        if "saturated" in self.statistics and spec.saturation is None:
            raise Misfit(
                "saturation-unknown",
                "the saturation of these pixels is not known",
                ("statistics",),
                "give the detector its `saturation`, and count before pixels are binned, subtracted from or divided",
            )
        dtypes = {"avg": "float32", "std": "float32", "sum": "float64", "saturated": "uint32"}
        columns = {f"{roi}_{name}": dtypes.get(name, spec.dtype) for roi in self.rois for name in self.statistics}
        first = f"{next(iter(self.rois))}_sum"
        units = {f"{roi}_saturated": "pixels" for roi in self.rois if "saturated" in self.statistics}
        return TableSpec(columns, first if first in columns else next(iter(columns)), units)

    def warnings(self, spec: FrameSpec, files: Files) -> Sequence[Misfit]:
        """See `Node.warnings`: regions of masked pixels only, and rects that cut through binned pixels."""
        found = regions(self.rois, self.coordinates, spec)
        masked = [
            Misfit("roi-masked", f"all pixels of ROI {name} are masked", ("rois", name))
            for name, region in found.items()
            if not region.count
        ]
        x, y = spec.view.binning
        whole = f"its edges cut through bins of {x} x {y} pixels; those wholly inside count"
        return masked + [
            Misfit("roi-unaligned", f"of ROI {name} only {rect} counts", ("rois", name, "rect"), whole)
            for name, rect in unaligned(self.rois, self.coordinates, spec).items()
        ]

    def start(self, spec: FrameSpec, files: Files) -> StripReducer:
        """See `Reduce.start`."""
        keys = frozenset().union(*(NEEDS[name] for name in self.statistics))
        found = regions(self.rois, self.coordinates, spec).values()
        return _Counters([RegionSums(region, spec, keys) for region in found])

    def merge(self, one: Partial, other: Partial) -> Partial:
        """See `Reduce.merge`."""
        return statistics.merge(one, other) | {"frame_number": one["frame_number"]}

    def finish(self, partial: Partial) -> Mapping[str, NDArray[Any]]:
        """See `Reduce.finish`."""
        with np.errstate(all="ignore"):  # NaN without pixels; float64 values beyond float32
            table = {name: _column(name, partial) for name in self.statistics}
        columns = {f"{roi}_{name}": table[name][:, i] for i, roi in enumerate(self.rois) for name in self.statistics}
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

    def strip(self, pixels: Array, frames: slice, rows: slice) -> None:
        """See `StripReducer.strip`."""
        for region in self.regions:
            region.strip(pixels, frames, rows)

    def end(self, block: Block, received_ns: int) -> Partial:
        """See `StripReducer.end`."""
        return _partial(block, [region.end() for region in self.regions])


def _partial(block: Block, sums: Sequence[Sums]) -> Partial:
    partial: Partial = {"frame_number": block.numbers.copy()}
    for i, one in enumerate(sums):
        for key, value in one.items():
            if not i:
                partial[key] = np.empty((len(block.numbers), len(sums)), value.dtype)
            partial[key][:, i] = value
    return partial


def _column(name: str, partial: Partial) -> NDArray[Any]:
    """A statistic, (n, ROIs)."""
    count = partial["count"]
    if name == "avg":
        return np.asarray(partial["sum"] / count, np.float32)
    if name == "std":
        return np.asarray(np.sqrt(partial["m2"] / count), np.float32)
    if name == "sum":
        return partial["sum"]
    if name == "saturated":
        return partial["saturated"].astype(np.uint32)
    values = partial[name]
    return values if values.dtype.kind == "f" or count.all() else np.where(count > 0, values, values.dtype.type(0))
