"""Axes that move during an acquisition, such as those of a goniometer: their position in each row of a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.files.fields import PACKED
from lima2cli.files.rows import windows
from lima2cli.files.tree import fixed, group, link_names

ANGLES = ("deg", "rad")


@dataclass(frozen=True)
class KnownAxis:
    """An axis that stands at ``start + step * k`` in frame k, in ``unit``.

    name    as files have it
    vector  that it turns around, right-handed, or moves along: NeXus coordinates, of length 1; None = not known
    """

    name: str
    start: float
    step: float
    unit: str
    vector: tuple[float, float, float] | None = None

    def positions(self, numbers: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Return the position (n,) in frames of these numbers (n,)."""
        return self.start + self.step * numbers.astype(np.float64)


def axes_of(metadata: Mapping[str, Any]) -> list[KnownAxis]:
    """Return the axes of which start and step are known, in the order of the metadata (plain data)."""
    axes, known = [], metadata.get("axes") or {}
    for key, name in link_names(known).items():
        axis = known[key]
        if axis.get("start") is not None and axis.get("step") is not None:
            vector = None if axis.get("vector") is None else tuple(axis["vector"][part] for part in "xyz")
            axes.append(KnownAxis(name, axis["start"], axis["step"], axis.get("unit") or "deg", _normal(vector)))
    return axes


def _normal(vector: tuple[float, ...] | None) -> tuple[float, float, float] | None:
    if vector is None:
        return None
    x, y, z = (np.asarray(vector) / np.linalg.norm(vector)).tolist()
    return x, y, z


GROWING: Mapping[str, Any] = {"maxshape": (None,), "chunks": (4096,)}
"""How datasets are made that get longer."""


def write_axis(parent: Any, name: str, axis: KnownAxis, numbers: Any) -> Any:
    """Write and return the dataset (n,) of an axis, for rows of the frames ``numbers`` (n,); None: it grows."""
    if numbers is None:
        made = parent.create_dataset(name, (0,), "float64", **GROWING)
    else:
        made = parent.create_dataset(name, (len(numbers),), "float64", **(PACKED if len(numbers) else {}))
        _fill(made, axis, numbers)
    made.attrs["units"] = fixed(axis.unit)
    return made


def _fill(made: Any, axis: KnownAxis, numbers: Any) -> None:
    for first, last in windows(len(numbers)):
        made[first:last] = axis.positions(numbers[first:last])


def extend_axes(sample: Any, axes: list[KnownAxis], numbers: Any) -> None:
    """Give growing axes of `write_axes` the rows of the frames ``numbers`` (n,)."""
    for axis in axes:
        made = sample["transformations"][axis.name]
        made.resize((len(numbers),))
        _fill(made, axis, numbers)


def write_axes(sample: Any, axes: list[KnownAxis], numbers: Any) -> None:
    """Write the axes of a sample as ``transformations``: each of those with a vector carries the next.

    There is a position for each row, of the frames ``numbers`` (n,); None: they grow. The first stands on the ground,
    the last carries the sample; those without are positions only.
    """
    transformations = group(sample, "transformations", "NXtransformations")
    below = "."
    for axis in axes:
        made = write_axis(transformations, axis.name, axis, numbers)
        if axis.vector is None:
            continue
        made.attrs["transformation_type"] = fixed("rotation" if axis.unit in ANGLES else "translation")
        made.attrs["vector"] = axis.vector
        made.attrs["depends_on"] = fixed(below)
        below = axis.name
