"""The NeXus tree of frame files and masters, in which silx, fabio and nexusformat find the image by themselves."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lima2cli
from lima2cli.artefacts.channel import Channel
from lima2cli.artefacts.link_names import link_name, link_names
from lima2cli.spec import Invalid
from lima2cli.view import View

ENTRY = "entry_0000"
MEASUREMENT = f"{ENTRY}/measurement"

CREATOR = f"LIMA2-{lima2cli.__version__}"
"""fabio recognises files by a root ``@creator`` that begins with LIMA."""


OF_ENTRY = ("title", "start_time", "measurement", "sample", "extra", "channel", "flows")
"""What files have in their entry, beside the instrument or the nodes, which users name."""

INSTRUMENT = "instrument"
"""Name of the NXinstrument group where nobody names the instrument."""

OF_INSTRUMENT = ("name", "beam")
"""What the instrument has beside the detector, which users name."""

KEY = "key"
"""Attribute of what could not have the name that a user gave it: that name."""


def instrument_name(channel: Channel) -> str:
    """Name of the NXinstrument group."""
    return link_name(str(channel.metadata.get("instrument") or INSTRUMENT))


def detector_path(channel: Channel) -> str:
    """Path of the NXdetector group, which holds ``data``."""
    return f"/{ENTRY}/{instrument_name(channel)}/{link_name(channel.detector.name)}"


def group(parent: Any, name: str, nx_class: str) -> Any:
    """A new group with its NX_class."""
    made = parent.create_group(name)
    made.attrs["NX_class"] = fixed(nx_class)
    return made


def fixed(text: str) -> Any:
    """The value of an attribute, ASCII of a fixed length: readers in C take no other.

    With room for a NUL at the end: read as a string of C, a text without loses its last letter.
    """
    return np.array(text.encode("ascii"), f"S{len(text) + 1}")


def plant_root(file: Any, title: str | None, start_ns: int | None) -> Any:
    """Attributes of the root, and the entry: ``/entry_0000`` with title and start_time (ISO 8601, UTC)."""
    file.attrs["NX_class"] = fixed("NXroot")
    file.attrs["creator"] = CREATOR
    file.attrs["default"] = ENTRY
    file.attrs["file_name"] = file.filename.rpartition("/")[2].removesuffix(".part").removesuffix(".new")
    file.attrs["file_time"] = datetime.now(UTC).isoformat()
    entry = group(file, ENTRY, "NXentry")
    if title:
        entry["title"] = title
    if start_ns is not None:
        plant_start(file, start_ns)
    return entry


def plant_start(file: Any, start_ns: int) -> None:
    """The start, ns since the epoch, in a file that was planted before it was known."""
    file[ENTRY]["start_time"] = datetime.fromtimestamp(start_ns / 1e9, UTC).isoformat()


def plant(file: Any, channel: Channel, start_ns: int | None) -> Any:
    """The tree of a channel, all but the data; returns the NXdetector group that wants ``data``, sparse
    frames also a dataset ``frame_pixels``, which is what is plotted of them.

    start_ns   start of the run, ns since the epoch, None where unknown
    """
    meta = channel.metadata
    entry = plant_root(file, meta.get("title") or channel.name, start_ns)
    instrument = group(entry, instrument_name(channel), "NXinstrument")
    if meta.get("instrument", INSTRUMENT) != INSTRUMENT:
        instrument["name"] = str(meta["instrument"])
    detector = group(instrument, link_name(channel.detector.name), "NXdetector")
    path = detector.name
    plot = group(detector, "plot", "NXdata")
    shown = "frame_pixels" if channel.sparse else "data"
    plot.attrs["signal"] = shown
    plot[shown] = _soft(f"{path}/{shown}")
    if channel.sparse:
        plot.attrs["axes"] = ["frame_number"]
        plot["frame_number"] = _soft(f"{path}/frame_number")
    group(entry, "measurement", "NXcollection")["data"] = _soft(f"{path}/data")
    entry.attrs["default"] = f"{path.removeprefix(entry.name + '/')}/plot"
    instrument.attrs["default"] = f"{path.rpartition('/')[2]}/plot"
    detector.attrs["default"] = "plot"
    if meta.get("photon_energy") is not None:
        _quantity(group(instrument, "beam", "NXbeam"), "incident_energy", meta["photon_energy"], "eV")
    if meta.get("sample"):
        group(entry, "sample", "NXsample")["name"] = str(meta["sample"])
    if meta.get("extra"):
        write_plain(group(entry, "extra", "NXcollection"), meta["extra"])
    _describe(detector, channel)
    return detector


def plant_params(detector: Any, channel: Channel) -> None:
    """What a master has beside: parameters and static information, for the record."""
    params = group(detector, "params", "NXcollection")
    write_plain(group(params, "acquisition", "NXcollection"), channel.acquisition)
    write_plain(group(params, "processing", "NXcollection"), channel.processing)
    info = channel.detector
    facts = {
        "kind": info.kind,
        "name": info.name,
        "width": info.width,
        "height": info.height,
        "modules": [[m.x, m.y, m.width, m.height] for m in info.modules],
        "datasets": {d.name: {"dtype": d.dtype, "bits": d.bits, "threshold": d.threshold_ev} for d in info.datasets},
        "channels_per_module": info.channels,
        "gap_value": info.gap_value,
        "saturation": info.saturation,
        "versions": dict(info.versions),
    }
    write_plain(group(detector, "detector_information", "NXcollection"), facts)


def write_plain(parent: Any, data: Mapping[str, Any]) -> None:
    """Plain data as datasets: maps become groups, lists of numbers arrays, other lists JSON; None is left out.

    Whole numbers of more than 64 bits become their digits.
    """
    held = {str(key): value for key, value in data.items() if value is not None}
    for key, name in link_names(held).items():
        value = held[key]
        if isinstance(value, Mapping):
            write_plain(group(parent, name, "NXcollection"), value)
        elif isinstance(value, list | tuple):
            parent[name] = _array_or_json(value)
        else:
            parent[name] = str(value) if _beyond(value) else value
        if name != key:
            parent[name].attrs[KEY] = key


def fill_value(channel: Channel) -> Any:
    """What pixels hold that nobody wrote: what gaps hold, 0 where the frames' dtype can't hold it."""
    dtype, gap = np.dtype(channel.dtype), channel.detector.gap_value if channel.hole is None else channel.hole
    if dtype.kind == "f":
        return dtype.type(gap)
    limits = np.iinfo(dtype)
    return dtype.type(int(gap)) if np.isfinite(gap) and limits.min <= gap <= limits.max else dtype.type(0)


def pixel_mask(channel: Channel) -> NDArray[np.uint32] | None:
    """uint32 (height, width), 1 where a pixel is masked; None where all are good."""
    return None if channel.mask is None or not channel.mask.any() else channel.mask.astype(np.uint32)


def _describe(detector: Any, channel: Channel) -> None:
    """Fields of NXdetector, and what was done to the image."""
    info = channel.detector.sensor
    view = channel.view if channel.detector.operated is None else channel.detector.operated.view.then(channel.view)
    meta = channel.metadata
    if info.pixel_size is not None:
        x_size, y_size = reversed(info.pixel_size) if view.quarter else info.pixel_size
        _quantity(detector, "x_pixel_size", x_size * view.pixel[0], "m")
        _quantity(detector, "y_pixel_size", y_size * view.pixel[1], "m")
    if (exposure := channel.acquisition.get("exposure")) is not None:
        _quantity(detector, "count_time", exposure, "s")
    if meta.get("distance") is not None:
        _quantity(detector, "distance", meta["distance"], "m")
    if center := meta.get("beam_center"):
        # relative to the pixels that are saved, as readers take it; the metadata count those of the detector
        column, row = view.point(center["x"], center["y"])
        _quantity(detector, "beam_center_x", column, "pixel")
        _quantity(detector, "beam_center_y", row, "pixel")
    _describe_invalid(detector, channel.invalid)
    if channel.saturation is not None:
        detector["saturation_value"] = channel.saturation
    elif channel.invalid.above is not None:
        detector["saturation_value"] = channel.invalid.above
    if (mask := pixel_mask(channel)) is not None:
        detector.create_dataset("pixel_mask", data=mask, compression="gzip", compression_opts=1, shuffle=True)
    of_sensor = channel.detector.base.then(channel.view)
    write_plain(group(detector, "image_operation", "NXcollection"), _operation(of_sensor))


def _describe_invalid(detector: Any, rule: Invalid) -> None:
    """Which values of single pixels are no measurement: attributes of the detector; a lower limit as NeXus has it."""
    if values := [value for value in rule.values if np.isfinite(value)]:
        detector.attrs["invalid_values"] = values
    for name, limit in (("invalid_below", rule.below), ("invalid_above", rule.above)):
        if limit is not None:
            detector.attrs[name] = limit
    if rule.below is not None:
        detector["underload_value"] = rule.below


def _operation(view: View) -> dict[str, Any]:
    """What leads from the detector's sensor to the saved image: cut (detector pixels), bin, flip, rotate clockwise."""
    turned = view.mirrored and view.rotation >= 180  # horizontal and 180 degrees are vertical
    return {
        "origin": {"x": view.area.x, "y": view.area.y},
        "width": view.area.width,
        "height": view.area.height,
        "binning": {"x": view.binning[0], "y": view.binning[1]},
        "flip": "vertical" if turned else "horizontal" if view.mirrored else "none",
        "rotation": view.rotation - 180 if turned else view.rotation,
    }


def _quantity(parent: Any, name: str, value: float, units: str) -> None:
    parent[name] = float(value)
    parent[name].attrs["units"] = fixed(units)


def _beyond(value: Any) -> bool:
    """Whether no integer of HDF5 holds a number."""
    return isinstance(value, int) and not -(2**63) <= value < 2**64


def _array_or_json(value: Any) -> Any:
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        return json.dumps(value, default=str)
    return array if array.size and array.dtype.kind in "biuf" else json.dumps(value, default=str)


def _soft(path: str) -> Any:
    import h5py

    return h5py.SoftLink(path)
