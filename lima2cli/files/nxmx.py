"""A second entry of masters, ``/entry``: the same data as NXmx, which programs of crystallography read.

NXmx is an application definition of NeXus (https://manual.nexusformat.org/classes/applications/NXmx.html). It has an
entry of its own since a name means two things: ``frame_time`` is a time for each frame in ours, and one number in NXmx.
All but the geometry are links. The coordinates are those of NeXus: z along the beam, y up, x to the left as one looks
along the beam; pixels are seen from the sample, x to the right and y down.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.files.channel import Channel
from lima2cli.files.fields import PACKED, axes_of, extend_axes, write_axes
from lima2cli.files.nexus import ENTRY, INSTRUMENT, detector_path, utc
from lima2cli.files.rows import windows
from lima2cli.files.tree import fixed, group, soft, write_quantity
from lima2cli.geometry import Rule

NXMX = "entry"
"""Name of the entry."""

NOT_LINKED = ("frame_number", "frame_time", "frame_status", "frame_pixels")
"""Datasets of our NXdetector that NXmx does not know, or by which it means something else."""

ARM = "two_theta"
"""Axis that turns the detector around the sample."""


def lacking(channel: Channel) -> list[str]:
    """Return what NXmx, or a program that reads it, needs of a channel and is not known."""
    known, axes = channel.metadata, axes_of(channel.metadata)
    moving = [axis for axis in axes if axis.step]
    sensor = known.get("sensor") or {}
    there = {
        "metadata.instrument": known.get("instrument", INSTRUMENT) != INSTRUMENT,
        "metadata.source": known.get("source"),
        "metadata.sample": known.get("sample"),
        "metadata.photon_energy": known.get("photon_energy") or known.get("wavelength"),
        "metadata.distance": known.get("distance"),
        "metadata.beam_center": known.get("beam_center"),
        "metadata.sensor.material": sensor.get("material"),
        "metadata.sensor.thickness": sensor.get("thickness"),
        "pixel_size of the detector": channel.detector.sensor.pixel_size,
        **{f"metadata.axes.{axis.name}.vector": axis.vector for axis in moving},
        "dense frames": not channel.sparse,
        "a row for each frame, as an axis moves": not (moving and channel.filtered),
        f"an axis {ARM} at 0": not any(axis.start or axis.step for axis in axes if axis.name == ARM),
    }
    return [what for what, so in there.items() if not so]


def write_nxmx(file: Any, channel: Channel, start_ns: int | None, end_ns: int | None) -> None:
    """Write the entry into a master whose own is complete, where all that it needs is known.

    start_ns, end_ns  times of the first and the last frame, ns since the epoch, None where unknown
    """
    if start_ns is None or end_ns is None or lacking(channel):
        return
    _write_entry(file, channel)
    entry = file[NXMX]
    entry["start_time"] = zulu(start_ns)
    entry["end_time"] = entry["end_time_estimated"] = zulu(end_ns)


def _write_entry(file: Any, channel: Channel) -> None:
    """Write the entry but for its times."""
    own, path = file[ENTRY], detector_path(channel)
    entry = group(file, NXMX, "NXentry")
    entry["definition"] = "NXmx"
    entry["title"] = soft(f"/{ENTRY}/title")
    data = group(entry, "data", "NXdata")
    data.attrs["signal"] = "data"
    data["data"] = soft(f"{path}/data")
    entry.attrs["default"] = "data"
    group(entry, "source", "NXsource")["name"] = str(channel.metadata["source"])
    instrument = group(entry, "instrument", "NXinstrument")
    instrument["name"] = str(channel.metadata["instrument"])
    beam = group(instrument, "beam", "NXbeam")
    for name in own[path].parent["beam"]:
        beam[name] = soft(f"{own[path].parent.name}/beam/{name}")
    _sample(entry, channel)
    _detector(group(instrument, "detector", "NXdetector"), own[path], channel)


def write_late(file: Any, channel: Channel, start_ns: int | None) -> None:
    """Write what is known only when a master has its rows: its end, positions of axes, and the entry for NXmx.

    start_ns  start of the run, ns since the epoch, None where unknown
    """
    detector = file[detector_path(channel)]
    for name in (NXMX, f"{ENTRY}/end_time", f"{ENTRY}/sample/transformations"):
        if name in file:  # a former call was aborted
            del file[name]
    times, last = detector["frame_time"], np.nan
    for first, beyond in windows(len(times)):
        last = float(np.fmax.reduce(times[first:beyond], initial=last))  # NaN: that of a frame in no file
    end_ns = None if start_ns is None or np.isnan(last) else start_ns + round(last * 1e9)
    if end_ns is not None:
        file[ENTRY]["end_time"] = utc(end_ns)
    _write_axes(file[ENTRY], channel, detector["frame_number"])
    write_nxmx(file, channel, start_ns, end_ns)


def prepare_late(file: Any, channel: Channel) -> None:
    """Write the same into a master without rows of a run that goes on, but for times and positions."""
    _write_axes(file[ENTRY], channel, None)
    if not lacking(channel):
        _write_entry(file, channel)


def write_so_far(file: Any, channel: Channel, start_ns: int, last_ns: int, rows: int) -> None:
    """Complete what was prepared, for the first ``rows``: there is no end yet.

    start_ns, last_ns  times of the start and of the last frame that is there, ns since the epoch
    """
    if axes := axes_of(channel.metadata):
        extend_axes(file[ENTRY]["sample"], axes, _Numbers(channel.rule, rows))
    if NXMX in file:
        file[NXMX]["start_time"], file[NXMX]["end_time_estimated"] = zulu(start_ns), zulu(last_ns)


class _Numbers:
    """The frame numbers of the first ``rows`` of a channel that shows each selected frame, as of a dataset."""

    def __init__(self, rule: Rule, rows: int) -> None:
        self._rule, self._rows = rule, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, rows: slice) -> NDArray[np.uint64]:
        return self._rule.frame(np.arange(rows.start, rows.stop)).astype(np.uint64)


def _write_axes(entry: Any, channel: Channel, numbers: Any) -> None:
    """Write the positions of axes in frames of these numbers, where any are known."""
    if axes := axes_of(channel.metadata):
        sample = entry["sample"] if "sample" in entry else group(entry, "sample", "NXsample")
        write_axes(sample, axes, numbers)


def zulu(time_ns: int) -> str:
    """Return a time, ns since the epoch, in UTC with the suffix Z, in microseconds."""
    return utc(time_ns).replace("+00:00", "Z")


def _sample(entry: Any, channel: Channel) -> None:
    sample, axes = group(entry, "sample", "NXsample"), axes_of(channel.metadata)
    sample["name"] = str(channel.metadata["sample"])
    chain = [axis.name for axis in axes if axis.vector is not None]
    sample["depends_on"] = f"{sample.name}/transformations/{chain[-1]}" if chain else "."
    if axes:
        transformations = group(sample, "transformations", "NXtransformations")
        for axis in axes:
            transformations[axis.name] = soft(f"/{ENTRY}/sample/transformations/{axis.name}")


def _detector(detector: Any, own: Any, channel: Channel) -> None:
    """Write the NXdetector: links to our ``own``, and where its pixels are."""
    import h5py

    datasets = {name for name in own if own.get(name, getclass=True) is h5py.Dataset}
    for name in sorted(datasets.union({"data"}).difference(NOT_LINKED)):  # "data" may not be there yet
        detector[name] = soft(f"{own.name}/{name}")
    detector["detector_distance"] = soft(f"{own.name}/distance")
    if "pixel_mask" not in own:  # dxtbx asks for one: no pixel is known to be bad
        good = np.zeros((channel.height, channel.width), np.uint32)
        detector.create_dataset("pixel_mask", data=good, **PACKED)
    if (period := _period(channel)) is not None:
        write_quantity(detector, "frame_time", period, "s")
    if (bits := _marked_bits(channel)) is not None:
        detector["bit_depth_readout"] = bits
    _geometry(detector, channel)


def _period(channel: Channel) -> float | None:
    """Return the seconds from one row to the next, None where they are not known."""
    asked, rate = channel.acquisition.get("period"), channel.acquisition.get("rate")
    period = asked or (1 / rate if rate else None) or (channel.facts.period if channel.facts else None)
    return None if period is None or channel.filtered else period * channel.rule.step


def _marked_bits(channel: Channel) -> int | None:
    """Return the bits of pixels, where the largest value that these can hold marks a pixel without a measurement.

    Programs take the largest values of so many bits for such marks.
    """
    datasets = channel.detector.datasets
    if len(datasets) != 1 or not channel.as_sent or (1 << datasets[0].bits) - 1 not in datasets[0].invalid.values:
        return None
    return datasets[0].bits


def _geometry(detector: Any, channel: Channel) -> None:
    """Write where the pixels are: a flat detector, perpendicular to the beam, each pixel as it is shown."""
    view, size = channel.sensor_view, channel.detector.sensor.pixel_size
    center, distance = channel.metadata["beam_center"], channel.metadata["distance"]
    assert size is not None

    def place(column: float, row: float) -> Any:
        """Return the place (x, y, 0), in metres from the beam, of a place in the shown image."""
        x, y = view.place(column, row)
        return np.array([(center["x"] - x) * size[0], (center["y"] - y) * size[1], 0.0])

    corner = place(-0.5, -0.5)
    moves = group(detector, "transformations", "NXtransformations")
    _axis(moves, "translation", distance, np.array([0.0, 0.0, 1.0]), ".")
    detector["depends_on"] = f"{moves.name}/translation"
    module = group(detector, "module", "NXdetector_module")
    module["data_origin"] = np.zeros(2, np.int64)
    module["data_size"] = np.array([channel.height, channel.width], np.int64)
    offset = float(np.linalg.norm(corner))
    _axis(module, "module_offset", offset, corner / offset if offset else corner, f"{moves.name}/translation")
    for name, pitch, neighbour in (("fast", "x_pixel_size", (0.5, -0.5)), ("slow", "y_pixel_size", (-0.5, 0.5))):
        direction = np.sign(np.round(place(*neighbour) - corner, 12))
        _axis(module, f"{name}_pixel_direction", detector[pitch][()], direction, f"{module.name}/module_offset")


def _axis(parent: Any, name: str, metres: float, vector: Any, depends_on: str) -> None:
    """Write a translation."""
    write_quantity(parent, name, metres, "m")
    attributes = parent[name].attrs
    attributes["transformation_type"] = fixed("translation")
    attributes["vector"] = vector
    attributes["offset"] = np.zeros(3)
    attributes["offset_units"] = fixed("m")
    attributes["depends_on"] = depends_on
