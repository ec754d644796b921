"""Fields of NXdetector and NXbeam: what is known of an acquisition, and how its frames show the detector."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lima2cli.facts import FLATFIELD, PIXEL_MASK, Facts
from lima2cli.files.channel import Channel
from lima2cli.files.informed import shown_flatfield, shown_mask
from lima2cli.files.tree import group, link_name, write_plain, write_quantity
from lima2cli.frames import Invalid
from lima2cli.view import View

HC = 12398.419843320026
"""Planck's constant times the speed of light, eV angstrom (CODATA 2018; both are exact)."""

PACKED = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
"""Compression of masks and maps, which every reader has."""


def write_beam(instrument: Any, metadata: Mapping[str, Any]) -> None:
    """Write energy (eV) and wavelength (angstrom) of the beam; the one that is not known follows from the other."""
    energy, wavelength = metadata.get("photon_energy"), metadata.get("wavelength")
    if wavelength is None and energy is not None:
        wavelength = HC / energy
    if wavelength is not None:
        beam = group(instrument, "beam", "NXbeam")
        write_quantity(beam, "incident_energy", HC / wavelength if energy is None else energy, "eV")
        write_quantity(beam, "incident_wavelength", wavelength, "angstrom")


def write_detector(detector: Any, channel: Channel) -> None:
    """Write the fields of NXdetector, and what was done to the image."""
    info = channel.detector.sensor
    view, meta, facts = channel.sensor_view, channel.metadata, channel.facts or Facts()
    if info.pixel_size is not None:
        x_size, y_size = reversed(info.pixel_size) if view.quarter else info.pixel_size
        write_quantity(detector, "x_pixel_size", x_size * view.pixel[0], "m")
        write_quantity(detector, "y_pixel_size", y_size * view.pixel[1], "m")
    exposure = channel.acquisition.get("exposure")
    sensor = meta.get("sensor") or {}
    if sensor.get("material") is not None:
        detector["sensor_material"] = sensor["material"]
    if sensor.get("thickness") is not None:
        write_quantity(detector, "sensor_thickness", sensor["thickness"], "m")
    if (exposure := facts.exposure if exposure is None else exposure) is not None:
        write_quantity(detector, "count_time", exposure, "s")
    if meta.get("distance") is not None:
        write_quantity(detector, "distance", meta["distance"], "m")
    if center := meta.get("beam_center"):
        # relative to the pixels that are saved, as readers take it; the metadata count those of the detector
        column, row = view.point(center["x"], center["y"])
        write_quantity(detector, "beam_center_x", column, "pixel")
        write_quantity(detector, "beam_center_y", row, "pixel")
    _describe_invalid(detector, channel.invalid)
    saturation = channel.invalid.above if channel.saturation is None else channel.saturation
    if saturation is not None:  # NeXus asks for an integer, where pixels are
        whole = np.dtype(channel.dtype).kind in "iu" and float(saturation).is_integer()
        detector["saturation_value"] = int(saturation) if whole else saturation
    _write_facts(detector, channel, facts)
    for name, array in ((PIXEL_MASK, shown_mask(channel)), (FLATFIELD, shown_flatfield(channel))):
        if array is not None:
            detector.create_dataset(name, data=array, **PACKED)
    of_sensor = channel.detector.base.then(channel.view)
    write_plain(group(detector, "image_operation", "NXcollection"), _operation(of_sensor))


def _write_facts(detector: Any, channel: Channel, facts: Facts) -> None:
    """Write what the detector alone knows of itself."""
    for name, text in (("description", facts.description), ("serial_number", facts.serial_number)):
        if text is not None:
            detector[name] = text
    for name, so in facts.applied.items():
        detector[link_name(f"{name}_applied")] = so
    thresholds = [facts.thresholds.get(dataset.name) for dataset in channel.detector.datasets]
    if len(thresholds) == 1 and thresholds[0] is not None:
        write_quantity(detector, "threshold_energy", thresholds[0], "eV")


def _describe_invalid(detector: Any, rule: Invalid) -> None:
    """Write which values of single pixels are not measurements, as attributes; a lower limit as NeXus has it."""
    if values := [value for value in rule.values if np.isfinite(value)]:
        detector.attrs["invalid_values"] = values
    for name, limit in (("invalid_below", rule.below), ("invalid_above", rule.above)):
        if limit is not None:
            detector.attrs[name] = limit
    if rule.below is not None:
        detector["underload_value"] = rule.below


def _operation(view: View) -> dict[str, Any]:
    """Write the way from the sensor to the saved image: cut (detector pixels), bin, flip, rotate clockwise."""
    turned = view.mirrored and view.rotation >= 180  # horizontal and 180 degrees are vertical
    return {
        "origin": {"x": view.area.x, "y": view.area.y},
        "width": view.area.width,
        "height": view.area.height,
        "binning": {"x": view.binning[0], "y": view.binning[1]},
        "flip": "vertical" if turned else "horizontal" if view.mirrored else "none",
        "rotation": view.rotation - 180 if turned else view.rotation,
    }
