"""Statistics that users ask for by name, as columns made of the sums that `statistics` keeps.

What they are, and what they are where no pixel counts, is told in `roi_counters`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Choice, ListOf
from lima2cli.errors import Misfit
from lima2cli.nodes.rois import regions, unaligned
from lima2cli.nodes.statistics import Sums
from lima2cli.spec import FrameSpec

STATISTICS = ("avg", "std", "min", "max", "sum", "saturated")

DEFAULT = STATISTICS[:5]

SHAPE = ListOf(Choice(STATISTICS), 1)
"""Shape of the parameter ``statistics``."""

_NEEDS = {
    "avg": {"sum"},
    "std": {"sum", "m2"},
    "min": {"min"},
    "max": {"max"},
    "sum": {"sum"},
    "saturated": {"saturated"},
}

_DTYPES = {"avg": "float32", "std": "float32", "sum": "float64", "saturated": "uint32"}


def needs(names: Sequence[str]) -> frozenset[str]:
    """The keys of `statistics` that these are made of, beside count."""
    return frozenset().union(*(_NEEDS[name] for name in names))


def columns(rois: Sequence[str], names: Sequence[str], spec: FrameSpec) -> dict[str, str]:
    """Columns ``<roi>_<statistic>`` and their dtypes. Raises `Misfit`: ``saturation-unknown``."""
    if "saturated" in names and spec.saturation is None:
        raise Misfit(
            "saturation-unknown",
            "the saturation of these pixels is not known",
            ("statistics",),
            "give the detector its `saturation`, and count before pixels are binned, subtracted from or divided",
        )
    return {f"{roi}_{name}": _DTYPES.get(name, spec.dtype) for roi in rois for name in names}


def units(rois: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Units of the columns, where they are known."""
    return {f"{roi}_saturated": "pixels" for roi in rois if "saturated" in names}


def default(rois: Sequence[str], names: Sequence[str]) -> str:
    """The column to plot first: the first ROI's sum, or what there is."""
    return f"{rois[0]}_{'sum' if 'sum' in names else names[0]}"


def column(name: str, sums: Sums) -> NDArray[Any]:
    """A statistic, of the shape of the sums."""
    count = sums["count"]
    if name == "avg":
        return np.asarray(sums["sum"] / count, np.float32)
    if name == "std":
        return np.asarray(np.sqrt(sums["m2"] / count), np.float32)
    if name == "sum":
        return sums["sum"]
    if name == "saturated":
        return sums["saturated"].astype(np.uint32)
    values = sums[name]
    return values if values.dtype.kind == "f" or count.all() else np.where(count > 0, values, values.dtype.type(0))


def doubtful(rois: Mapping[str, Any], coordinates: str, spec: FrameSpec) -> Sequence[Misfit]:
    """Regions of masked pixels only (a part of frames does not tell), and rects that cut through binned pixels."""
    masked = [
        Misfit("roi-masked", f"all pixels of ROI {name} are masked", ("rois", name))
        for name, region in regions(rois, coordinates, spec).items()
        if not region.count and spec.whole is None
    ]
    x, y = spec.view.binning
    whole = f"its edges cut through bins of {x} x {y} pixels; those wholly inside count"
    return masked + [
        Misfit("roi-unaligned", f"of ROI {name} only {rect} counts", ("rois", name, "rect"), whole)
        for name, rect in unaligned(rois, coordinates, spec).items()
    ]
