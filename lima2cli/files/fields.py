"""Facts of the detector and metadata of the pipeline in files: kept, completing each other, as fields of NeXus.

What the pipeline says wins. Fields are those of NXdetector and NXbeam, as frames show the detector, and of axes that
move during an acquisition, such as those of a goniometer.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.declare.plain import Misshapen, from_plain, to_plain
from lima2cli.facts import ARRAYS, FLATFIELD, PIXEL_MASK, Facts
from lima2cli.files.appending import VERSIONS, written
from lima2cli.files.channel import Channel
from lima2cli.files.disk import disk_errors
from lima2cli.files.rows import windows
from lima2cli.files.tree import fixed, group, link_name, link_names, write_plain, write_quantity
from lima2cli.frames import Invalid
from lima2cli.units import HC
from lima2cli.view import View


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


FACTS_FILE = "detector.hdf5"
"""No file of a pipeline, whatever its name, has this name: these end with .h5."""


def keep_facts(directory: Path, facts: Facts) -> None:
    """Keep the facts of an acquisition in its directory: values as JSON in the dataset ``facts``, arrays as datasets.

    Raises:
        OSError: the disk refuses.
    """
    path = str(directory / FACTS_FILE)
    with disk_errors(path), written(f"{path}.part", libver=VERSIONS) as file:
        file["facts"] = json.dumps(to_plain(replace(facts, arrays={})))
        for name, arrays in facts.arrays.items():
            of_all, packed = file.create_group(name), PACKED if name == PIXEL_MASK else {}
            for dataset, link in link_names(arrays).items():
                of_all.create_dataset(link, data=arrays[dataset], **packed).attrs["dataset"] = dataset
    os.replace(f"{path}.part", path)


def kept_facts(directory: Path) -> Facts | None:
    """Return the facts that are kept in a directory; None where the detector has given none.

    Raises:
        OSError: they can't be read, or are damaged.
    """
    import h5py

    path = directory / FACTS_FILE
    if not path.exists():
        return None
    try:
        with h5py.File(path) as file:
            facts = from_plain(Facts, json.loads(file["facts"][()]))
            arrays = {
                name: {str(one.attrs["dataset"]): np.asarray(one[()], dtype) for one in file[name].values()}
                for name, dtype in ARRAYS.items()
                if name in file
            }
    except (RuntimeError, KeyError, ValueError, TypeError, Misshapen) as error:
        raise OSError(f"{FACTS_FILE} is damaged: {error}") from error
    return replace(facts, arrays=arrays)


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
"""Options of datasets that get longer."""


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
