"""Facts that a detector knows of an acquisition only when it is ready for it: energy, geometry, masks."""

import math
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.declare.plain import to_plain
from lima2cli.frames import DetectorInfo

MOST_BYTES = 1 << 28
"""Maximal bytes of all arrays of an acquisition: they travel in one message, and the control rank writes them."""

PIXEL_MASK, FLATFIELD = "pixel_mask", "flatfield"

ARRAYS: Mapping[str, str] = {PIXEL_MASK: "uint32", FLATFIELD: "float32"}
"""Arrays that a detector may have for each dataset, with their dtypes; the most important first."""


AXIS_UNITS = ("deg", "rad", "mm", "um", "m")


@dataclass(frozen=True, kw_only=True)
class AxisFacts:
    """Position of an axis by frame: ``start + step * k`` in frame k, in ``unit``, one of `AXIS_UNITS`.

    Raises:
        ValueError: a number is not finite, or the unit another.
    """

    start: float
    step: float
    unit: str = "deg"

    def __post_init__(self) -> None:
        if self.unit not in AXIS_UNITS or not (math.isfinite(self.start) and math.isfinite(self.step)):
            raise ValueError(f"an axis is not at {self.start} + {self.step} * k {self.unit}")


POSITIVE = ("photon_energy", "wavelength", "distance", "exposure", "period", "saturation", "sensor_thickness")
"""Fields of `Facts` that are numbers above 0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """Facts of an acquisition, as the detector has them; what is None, or not there, it does not say.

    Pixels are those of the whole detector, before its own operations.

    photon_energy     eV;  wavelength  angstrom;  distance  from the sample, m
    beam_center       (x, y) of the direct beam, pixels
    exposure, period  of a frame, s
    saturation        largest value that is a measurement, of pixels as the detector sends them
    sensor_material   such as Si;  sensor_thickness  m;  pixel_size  (x, y) m
    thresholds        photons of less energy are not counted, eV, by dataset
    axes              of the goniometer, by name
    applied           whether the detector has applied a correction, by name: flatfield, pixel_mask,
                      countrate_correction, virtual_pixel_interpolation
    arrays            by name, see `ARRAYS`, then by dataset, each (height, width): pixel_mask uint32 with the bits of
                      NeXus, flatfield float32

    Raises:
        ValueError: a value can't be one.
    """

    photon_energy: float | None = None
    wavelength: float | None = None
    distance: float | None = None
    beam_center: tuple[float, float] | None = None
    exposure: float | None = None
    period: float | None = None
    saturation: float | None = None
    sensor_material: str | None = None
    sensor_thickness: float | None = None
    pixel_size: tuple[float, float] | None = None
    description: str | None = None
    serial_number: str | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    axes: Mapping[str, AxisFacts] = field(default_factory=dict)
    applied: Mapping[str, bool] = field(default_factory=dict)
    arrays: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers: dict[str, tuple[float, ...]] = {}
        numbers |= {name: (value,) for name in POSITIVE if (value := getattr(self, name)) is not None}
        numbers |= {"pixel_size": self.pixel_size or (), "thresholds": tuple(self.thresholds.values())}
        for name, values in numbers.items():
            if not all(math.isfinite(value) and value > 0 for value in values):
                raise ValueError(f"{name} is not above 0: {values}")
        if not all(map(math.isfinite, self.beam_center or ())):
            raise ValueError(f"beam_center is not finite: {self.beam_center}")
        for text in (self.sensor_material, self.description, self.serial_number, *self.axes, *self.applied):
            if text is not None and ("\0" in text or not text.strip()):
                raise ValueError(f"{text!r} is not a name or a description")

    def values(self) -> dict[str, Any]:
        """Return all but the arrays as plain data, without what the detector does not say."""
        plain: dict[str, Any] = to_plain(replace(self, arrays={}))
        return {name: value for name, value in plain.items() if value not in (None, {})}

    def without_flatfields(self) -> "Facts":
        """Return the facts without flat fields, which are costly to write again and again."""
        return replace(self, arrays={name: arrays for name, arrays in self.arrays.items() if name != FLATFIELD})

    def fitting(self, info: DetectorInfo) -> tuple["Facts", list[str]]:
        """Return the facts with those arrays that are of the detector's size, and are not too large together.

        Also why others are left out, a sentence each.
        """
        shape, room = (info.sensor.height, info.sensor.width), MOST_BYTES
        kept: dict[str, dict[str, NDArray[Any]]] = {}
        doubts = []
        for name, dtype in ARRAYS.items():
            for dataset, array in self.arrays.get(name, {}).items():
                if array.shape != shape or not np.can_cast(array.dtype, dtype, "same_kind"):
                    doubts.append(f"{name} of {dataset} is left out: it is {array.dtype} {array.shape}")
                elif np.dtype(dtype).itemsize * array.size > room:
                    doubts.append(f"{name} of {dataset} is left out: arrays may have {MOST_BYTES >> 20} MiB together")
                else:
                    kept.setdefault(name, {})[dataset] = np.ascontiguousarray(array, dtype)
                    room -= kept[name][dataset].nbytes
        return replace(self, arrays=kept), doubts
