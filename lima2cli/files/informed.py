"""Channels completed by what the detector has said of an acquisition; what the pipeline says wins."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare.plain import to_plain
from lima2cli.facts import FLATFIELD, PIXEL_MASK, Facts
from lima2cli.files.channel import Channel


def informed(channel: Channel, facts: Facts | None) -> Channel:
    """Return a channel with the facts of an acquisition, None where there are none.

    The saturation is taken over only where pixels are saved as the detector sends them.
    """
    if facts is None:
        return channel
    detector, saturation = channel.detector, channel.saturation
    if detector.sensor.pixel_size is None and facts.pixel_size is not None:
        sensor = replace(detector.sensor, pixel_size=facts.pixel_size)
        operated = detector.operated
        detector = sensor if operated is None else replace(detector, operated=replace(operated, sensor=sensor))
    if saturation is None and channel.as_sent:
        saturation = facts.saturation
    metadata = completed(channel.metadata, facts)
    return replace(channel, facts=facts, metadata=metadata, detector=detector, saturation=saturation)


def completed(metadata: Mapping[str, Any], facts: Facts | None) -> dict[str, Any]:
    """Return a pipeline's metadata with what the detector says and the pipeline does not.

    ``wavelength`` (angstrom) is a key where the detector gives it, and the pipeline gives no energy.
    """
    known = dict(metadata)
    if facts is None:
        return known
    if known.get("photon_energy") is None:
        known |= {"photon_energy": facts.photon_energy, "wavelength": facts.wavelength}
    if known.get("distance") is None:
        known["distance"] = facts.distance
    if known.get("beam_center") is None and facts.beam_center is not None:
        known["beam_center"] = dict(zip("xy", facts.beam_center, strict=True))
    sensor = {"material": facts.sensor_material, "thickness": facts.sensor_thickness}
    known["sensor"] = _filled(known.get("sensor"), sensor)
    axes = {name: to_plain(axis) for name, axis in facts.axes.items()}
    own = known.get("axes") or {}
    known["axes"] = {name: _filled(own.get(name), axes.get(name, {})) for name in (*own, *(axes.keys() - own.keys()))}
    return known


def _filled(own: Mapping[str, Any] | None, other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table in which what is None, or not there, is that of another."""
    return {**other, **{key: value for key, value in (own or {}).items() if value is not None}}


def shown_mask(channel: Channel) -> NDArray[np.uint32] | None:
    """Return the mask of a channel (height, width), with the bits of NeXus; None where all pixels are good.

    That of the detector is cut, binned and turned as the frames are, of several datasets all are combined. Pixels that
    the pipeline masks, and that have none of the bits that make them unusable (NeXus: the lower 16), get bit 0.
    """
    bits = np.zeros((channel.height, channel.width), np.uint32)
    for mask in _arrays(channel, PIXEL_MASK):
        bits |= channel.sensor_view.apply(mask, "or")
    if channel.mask is not None:
        bits[channel.mask & (bits & 0xFFFF == 0)] |= 1
    return bits if bits.any() else None


def shown_flatfield(channel: Channel) -> NDArray[np.float32] | None:
    """Return the detector's flat field (height, width) as frames show the detector; None where there is none.

    Nor where pixels are binned, or frames of several datasets were joined: there is no exact one.
    """
    fields, view = list(_arrays(channel, FLATFIELD)), channel.sensor_view
    if len(fields) != 1 or len(channel.detector.datasets) != 1 or view.binning != (1, 1):
        return None
    return view.apply(fields[0], "sum")


def _arrays(channel: Channel, name: str) -> Iterator[NDArray[Any]]:
    """Yield the arrays of the datasets of a channel."""
    arrays = {} if channel.facts is None else channel.facts.arrays.get(name, {})
    for dataset in channel.detector.datasets:
        if dataset.name in arrays:
            yield arrays[dataset.name]
