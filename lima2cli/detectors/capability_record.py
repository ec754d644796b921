"""The capability record of a configured detector, version 1: what it is and can do, as plain data for files.

`lima2 detectors show` writes it, and detectors that describe themselves by such a file read it. Lengths are in metres,
energies in eV, sizes in pixels, alignment in bits; ``null`` means that there is no limit, or that nothing is known.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.declare import Choice, Flag, Integer, ListOf, MapOf, Number, NumberOrNan, Table, Text, param
from lima2cli.declare.reading import Reading
from lima2cli.detectors.base import (
    INVALID,
    OPERATIONS,
    PIXEL_SIZE,
    TRIGGERS,
    Capabilities,
    InvalidLimits,
    PixelSize,
    written,
)
from lima2cli.detectors.modules import LARGEST, Module, check_gap_value, lay_out_modules
from lima2cli.diagnostics import Findings
from lima2cli.errors import NodeMisuse
from lima2cli.frames import DTYPES, DatasetInfo, DetectorInfo, Invalid
from lima2cli.geometry import Rect

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Size:
    """Columns and rows."""

    width: int = param("Columns.", Integer(1, LARGEST))
    height: int = param("Rows.", Integer(1, LARGEST))


@dataclass(frozen=True, kw_only=True)
class PixelStep:
    """A number of pixels each way."""

    x: int = param("Columns.", Integer(1, LARGEST), 1)
    y: int = param("Rows.", Integer(1, LARGEST), 1)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A dataset."""

    dtype: str = param("Type of the pixels.", Choice(DTYPES))
    bits: int | None = param("Significant bits; default: all of the dtype.", Integer(1, 64), None)
    threshold: float | None = param("Photons of less energy are not counted, in eV.", Number(0), None)
    invalid: tuple[float, ...] | InvalidLimits | None = param(
        "Pixels of single frames that are not measurements: a list of values, or limits.", INVALID, None
    )


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Parts of the image that a flow may take."""

    possible: bool = param("Whether a flow may take a part of the image.", Flag(), True)
    granularity: PixelStep = param("Its place and size are multiples of these.", Table(PixelStep), PixelStep())


@dataclass(frozen=True, kw_only=True)
class BufferMemory:
    """Memory that frames are written to."""

    memory: tuple[str, ...] = param("Kinds of memory.", ListOf(Choice(("host", "gpu"))), ("host",))
    owner: str = param("Who allocates it.", Choice(("receiver", "detector")), "receiver")


@dataclass(frozen=True, kw_only=True)
class CapabilityRecord:
    """The capability record."""

    version: int = param("Version of the record.", Choice((VERSION,)))
    name: str = param("Name of the detector.", Text())
    versions: Mapping[str, str] = param("Versions of hardware, firmware and software, by component.", MapOf(Text()), {})
    pixel_size: PixelSize | None = param("Pixel pitch in metres.", PIXEL_SIZE, None)
    image: Size = param("Size of the whole image.", Table(Size))
    modules: tuple[Module, ...] | None = param(
        "Rectangles of the modules in the image; default: one that covers it.", ListOf(Table(Module), minimum=1), None
    )
    datasets: Mapping[str, Stream] = param("Streams of frames, numbered as written.", MapOf(Table(Stream), minimum=1))
    channels: int | None = param("Data channels of a module; default: any number.", Integer(1), None)
    gap_value: float = param("Stored in pixels that no module covers; `nan` in frames of floats.", NumberOrNan(), 0)
    saturation: float | None = param("Pixels at or above this value count as saturated.", Number(), None)
    triggers: tuple[str, ...] = param("What starts frames.", ListOf(Choice(TRIGGERS), minimum=1), ("internal",))
    frames_per_trigger: int | None = param(
        "Largest number of frames per trigger; default: any number.", Integer(1), None
    )
    operations: tuple[str, ...] = param(
        "Operations on frames that the detector does itself.", ListOf(Choice(OPERATIONS)), ()
    )
    binnings: tuple[PixelStep, ...] = param("Binnings that it can do; none: any.", ListOf(Table(PixelStep)), ())
    accumulation: int | None = param("Largest number of exposures of a frame; default: any number.", Integer(1), None)
    shutter: bool = param("Whether it opens and closes a shutter.", Flag(), False)
    extraction: Extraction = param("Parts of the image that a flow may take.", Table(Extraction), Extraction())
    reconstruction: bool = param("Whether modules write to their place in the full frame.", Flag(), True)
    alignment: int | None = param("Largest alignment of blocks and rows, in bits.", Integer(1), None)
    can_wait: bool = param("Whether it can pause until receivers have released memory.", Flag(), False)
    buffers: BufferMemory = param("Memory that frames are written to.", Table(BufferMemory), BufferMemory())


def write_record(info: DetectorInfo, can: Capabilities) -> dict[str, Any]:
    """Return the record as plain data: mappings, lists, strings, numbers; what `read_record` reads."""
    return {
        "version": VERSION,
        "name": info.name,
        "versions": dict(info.versions),
        "pixel_size": None if info.pixel_size is None else {"x": info.pixel_size[0], "y": info.pixel_size[1]},
        "image": {"width": info.width, "height": info.height},
        "modules": [{"x": m.x, "y": m.y, "width": m.width, "height": m.height} for m in info.modules],
        "datasets": {
            dataset.name: {
                "dtype": dataset.dtype,
                "bits": dataset.bits,
                "threshold": dataset.threshold_ev,
                "invalid": _invalid(dataset.invalid),
            }
            for dataset in info.datasets
        },
        "channels": info.channels,
        "gap_value": "nan" if math.isnan(info.gap_value) else info.gap_value,
        "saturation": info.saturation,
        "triggers": list(can.triggers),
        "frames_per_trigger": can.frames_per_trigger,
        "operations": list(can.operations),
        "binnings": [{"x": x, "y": y} for x, y in can.binnings],
        "accumulation": can.accumulation,
        "shutter": can.shutter,
        "extraction": {
            "possible": can.extraction,
            "granularity": {"x": can.granularity[0], "y": can.granularity[1]},
        },
        "reconstruction": can.reconstruction,
        "alignment": can.alignment,
        "can_wait": info.can_wait,
        "buffers": {"memory": list(can.buffers), "owner": can.owner},
    }


def read_record(data: Any, kind: str) -> tuple[DetectorInfo, Capabilities]:
    """Return the detector of a record, and what it can do; ``kind`` is that of the table that names the record.

    Raises:
        NodeMisuse: with the path of the mistake in the record as its key (rules of the schema, as unknown-key and
            bad-value, or module-outside, module-overlap, dataset-bits, gap-value).
    """
    if isinstance(data, dict) and isinstance(data.get("record"), dict):
        data = data["record"]  # what `lima2 detectors show KIND --format json` prints
    record = _checked(data)
    image = Rect(0, 0, record.image.width, record.image.height)
    datasets = tuple(_dataset(index, name, stream) for index, (name, stream) in enumerate(record.datasets.items()))
    check_gap_value(record.gap_value, datasets)
    info = DetectorInfo(
        kind=kind,
        name=record.name,
        width=image.width,
        height=image.height,
        modules=lay_out_modules(record.modules, image),
        datasets=datasets,
        channels=record.channels,
        gap_value=record.gap_value,
        can_wait=record.can_wait,
        pixel_size=None if record.pixel_size is None else (record.pixel_size.x, record.pixel_size.y),
        saturation=record.saturation,
        versions=record.versions,
    )
    return info, _capabilities(record, info)


def _checked(data: Any) -> CapabilityRecord:
    findings = Findings()
    named = ("capability record",)  # in messages
    record: CapabilityRecord = Table(CapabilityRecord).read(_without_nulls(data), named, Reading(findings))
    for finding in findings:
        raise NodeMisuse(finding.rule, finding.message, finding.at[1:], finding.help)
    return record


def _without_nulls(data: Any) -> Any:
    """Return the same without keys whose value is null: they have their defaults."""
    if isinstance(data, Mapping):
        return {key: _without_nulls(value) for key, value in data.items() if value is not None}
    if isinstance(data, Sequence) and not isinstance(data, str):
        return [_without_nulls(item) for item in data]
    return data


def _dataset(index: int, name: str, stream: Stream) -> DatasetInfo:
    whole = DatasetInfo(name, index, stream.dtype, 64)
    available = 8 * whole.pixel_bytes
    if stream.bits is not None and stream.bits > available:
        message = f"dataset {name} has {stream.bits} significant bits, and {stream.dtype} holds {available}"
        raise NodeMisuse("dataset-bits", message, ("datasets", name, "bits"))
    rule = stream.invalid.rule if isinstance(stream.invalid, InvalidLimits) else Invalid(stream.invalid or ())
    return replace(whole, bits=stream.bits or available, threshold_ev=stream.threshold, invalid=rule)


def _invalid(rule: Invalid) -> Any:
    """Return invalid values as a record has them."""
    invalid = written(rule)
    return (
        {"below": invalid.below, "above": invalid.above}
        if isinstance(invalid, InvalidLimits)
        else invalid and list(invalid)
    )


def _capabilities(record: CapabilityRecord, info: DetectorInfo) -> Capabilities:
    promised = Capabilities(
        triggers=record.triggers,
        frames_per_trigger=record.frames_per_trigger,
        operations=record.operations,
        binnings=tuple((binning.x, binning.y) for binning in record.binnings),
        accumulation=record.accumulation,
        shutter=record.shutter,
        extraction=record.extraction.possible,
        granularity=(record.extraction.granularity.x, record.extraction.granularity.y),
        reconstruction=record.reconstruction,
        alignment=record.alignment,
        buffers=record.buffers.memory,
        owner=record.buffers.owner,
    )
    return promised.of(info)
