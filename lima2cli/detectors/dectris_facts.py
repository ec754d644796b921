"""Facts of a series in the start message of a DECTRIS detector (Stream V2, by the names of its documentation)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.errors import StreamProblem
from lima2cli.facts import ARRAYS, FLATFIELD, PIXEL_MASK, AxisFacts, Facts
from lima2cli.frames import DetectorInfo
from lima2cli.stream.stream2 import channels_of

CORRECTIONS = (FLATFIELD, PIXEL_MASK, "countrate_correction", "virtual_pixel_interpolation")
"""Fields `{name}_enabled`."""


def facts_of(fields: Mapping[str, Any], info: DetectorInfo) -> tuple[Facts, list[str]]:
    """Return what a start message says, arrays of the detector's datasets only.

    Also what in it can't be used, a sentence each.

    Values that the detector has while nothing was set say nothing: energies, lengths and times that are 0, the beam in
    the corner (0, 0), axes at 0. The distance is the length of ``detector_translation`` along the beam, which
    some firmware gives with a minus.
    """
    translation = fields.get("detector_translation")
    along = translation[2] if isinstance(translation, Sequence) and len(translation) == 3 else None
    center = _pair(_finite, fields.get("beam_center_x"), fields.get("beam_center_y"))
    arrays, doubts = _arrays(fields, info)
    thresholds = {name: _positive(energy) for name, energy in _items(fields, "threshold_energy")}
    facts = Facts(
        photon_energy=_positive(fields.get("incident_energy")),
        wavelength=_positive(fields.get("incident_wavelength")),
        distance=abs(_finite(along) or 0) or None,
        beam_center=None if center == (0, 0) else center,
        exposure=_positive(fields.get("count_time")),
        period=_positive(fields.get("frame_time")),
        saturation=_positive(fields.get("saturation_value")),
        sensor_material=_text(fields.get("sensor_material")),
        sensor_thickness=_positive(fields.get("sensor_thickness")),
        pixel_size=_pair(_positive, fields.get("pixel_size_x"), fields.get("pixel_size_y")),
        description=_text(fields.get("detector_description")),
        serial_number=_text(fields.get("detector_serial_number")),
        thresholds={name: energy for name, energy in thresholds.items() if energy is not None},
        axes=dict(_axes(fields)),
        applied={name: so for name in CORRECTIONS if isinstance(so := fields.get(f"{name}_enabled"), bool)},
        arrays=arrays,
    )
    return facts, doubts


def _finite(value: Any) -> float | None:
    """Return a number, None where it is none, or not finite."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def _positive(value: Any) -> float | None:
    number = _finite(value)
    return number if number is not None and number > 0 else None


def _pair(kind: Callable[[Any], float | None], x: Any, y: Any) -> tuple[float, float] | None:
    across, down = kind(x), kind(y)
    return None if across is None or down is None else (across, down)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() and "\0" not in value else None


def _items(fields: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    """Yield the items of a field that is a mapping by names; of any other none."""
    held = fields.get(key)
    for name, value in held.items() if isinstance(held, Mapping) else ():
        if isinstance(name, str):
            yield name, value


def _axes(fields: Mapping[str, Any]) -> Iterator[tuple[str, AxisFacts]]:
    for name, axis in _items(fields, "goniometer"):
        if isinstance(axis, Mapping) and _text(name):
            start, step = _finite(axis.get("start")), _finite(axis.get("increment"))
            if start is not None and step is not None and (start or step):
                yield name, AxisFacts(start=start, step=step)


def _arrays(fields: Mapping[str, Any], info: DetectorInfo) -> tuple[dict[str, dict[str, NDArray[Any]]], list[str]]:
    """Return the arrays that are there by name, then by dataset, and why others are not, a sentence each."""
    arrays: dict[str, dict[str, NDArray[Any]]] = {}
    datasets = {dataset.name for dataset in info.datasets}
    doubts = []
    for name in ARRAYS:
        for dataset, held in _items(fields, name):
            if dataset not in datasets:
                continue
            try:
                ((_, pixels),) = channels_of({dataset: held})
                if pixels.shape != (info.height, info.width):
                    raise StreamProblem(f"it is {pixels}")
                array = np.empty(pixels.shape, pixels.dtype.newbyteorder("="))
                pixels.read(array)
            except StreamProblem as error:
                doubts.append(f"{name} of {dataset} in the start message can't be used: {error}")
            else:
                arrays.setdefault(name, {})[dataset] = array
    return arrays, doubts
