"""Check parts of a pipeline: the detector's capabilities, placement, plausible values, the directory's name."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lima2cli.declare import Plausible, Quantity
from lima2cli.declare.reading import Reading
from lima2cli.detectors.base import Capabilities, DetectorConfig
from lima2cli.detectors.modules import operate
from lima2cli.diagnostics import Findings, KeyPath, Poisoned, Related, attempt
from lima2cli.errors import NodeMisuse
from lima2cli.frames import MOST_PIXELS, DetectorInfo
from lima2cli.geometry import Rect
from lima2cli.language.records import Acquisition, Flow, Metadata, Output, ReceiverTable
from lima2cli.units import NUMBER, UNITS, in_units, plain_spelling

AT: KeyPath = ("acquisition",)


def check_description(config: DetectorConfig, info: DetectorInfo, findings: Findings) -> None:
    """Report a detector that is configured beyond what its kind can do.

    Raises: Poisoned, after reporting it, where the image is too large.
    """
    can, at = config.capabilities, ("detector", config.kind)
    if info.width * info.height > MOST_PIXELS:
        message = f"an image of {info.width} x {info.height} pixels is too large: at most {MOST_PIXELS} in all"
        findings.error("image-too-large", message, at)
        raise Poisoned
    if can is None:
        return

    def beyond(message: str, *key: str, help: str | None = None) -> None:
        findings.error("beyond-capabilities", message, (*at, *key), help=help)

    if can.largest is not None and (info.width > can.largest[0] or info.height > can.largest[1]):
        most = f"{can.largest[0]} x {can.largest[1]}"
        beyond(f"an image of {info.width} x {info.height} pixels: {config.kind} has at most {most}", "image")
    for what, count, most_of in (
        ("datasets", len(info.datasets), can.datasets),
        ("modules", len(info.modules), can.modules),
        ("channels", info.channels or 0, can.channels),
    ):
        if most_of is not None and count > most_of:
            beyond(f"{count} {what}: {config.kind} has at most {most_of}", what)
    for dataset in info.datasets:
        if can.dtypes and dataset.dtype not in can.dtypes:
            message = f"{config.kind} has no pixels of {dataset.dtype} (dataset {dataset.name})"
            beyond(message, "datasets", dataset.name, "dtype", help="one of " + ", ".join(can.dtypes))
        elif can.bit_depths and dataset.bits not in can.bit_depths:
            message = f"{config.kind} has no pixels of {dataset.bits} bits (dataset {dataset.name})"
            beyond(message, "datasets", dataset.name, "bits", help="one of " + ", ".join(map(str, can.bit_depths)))


def operated_detector(config: Acquisition, can: Capabilities, info: DetectorInfo, findings: Findings) -> DetectorInfo:
    """Return the detector after the operations that an acquisition asks of it, which are checked.

    Raises: Poisoned, after reporting it, where an operation is refused.
    """
    operations = config.operations
    asked = {
        "binning": operations.binning != (1, 1),
        "roi": operations.roi is not None,
        "flip": operations.flip != "none",
        "accumulate": operations.accumulate > 1,
    }
    refused = [key for key, used in asked.items() if used and NAMES[key] not in can.operations]
    for key in refused:
        message = f"the detector {info.name} does not support {NAMES[key]}"
        findings.error(
            "cannot-operate", message, (*AT, key), on_key=True, help=f"{INSTEAD[key]} does it in the receivers"
        )
    if can.binnings and asked["binning"] and "binning" not in refused and operations.binning not in can.binnings:
        known = ", ".join(f"{x} x {y}" for x, y in can.binnings)
        message = f"the detector {info.name} does not bin {operations.binning[0]} x {operations.binning[1]}"
        findings.error("cannot-operate", message, (*AT, "binning"), help=f"it bins {known}")
    if can.accumulation is not None and can.accumulation < operations.accumulate and "accumulate" not in refused:
        message = f"{operations.accumulate} exposures a frame: the detector {info.name} sums at most {can.accumulation}"
        findings.error("cannot-operate", message, (*AT, "accumulate"))
    if refused:
        raise Poisoned
    try:
        return operate(info, operations)
    except NodeMisuse as misfit:
        findings.error(misfit.rule, misfit.message, (*AT, *misfit.key), help=misfit.help)
    raise Poisoned


NAMES: Mapping[str, str] = {
    "binning": "binning",
    "roi": "roi",
    "flip": "flip",
    "accumulate": "accumulation",
}
"""Names of capabilities by the keys of `acquisition`."""

INSTEAD: Mapping[str, str] = {
    "binning": "the node `roi_flip_rot`",
    "roi": "`source` of a flow",
    "flip": "the node `roi_flip_rot`",
    "accumulate": "the node `accumulate`",
}


def check_synchronisation(acquisition: Acquisition, can: Capabilities, info: DetectorInfo, findings: Findings) -> None:
    """Check triggers and shutter."""
    if acquisition.trigger not in can.triggers:
        message = f"the detector {info.name} has no {acquisition.trigger} trigger"
        findings.error("cannot-trigger", message, (*AT, "trigger"), help="one of " + ", ".join(can.triggers))
    elif acquisition.trigger == "internal" and acquisition.frames_per_trigger > 1:
        message = "with the internal trigger each frame starts by itself"
        help = "trigger: software, external or gate; or leave `frames_per_trigger` out"
        findings.error("frames-per-trigger", message, (*AT, "frames_per_trigger"), on_key=True, help=help)
    elif can.frames_per_trigger is not None and acquisition.frames_per_trigger > can.frames_per_trigger:
        message = f"the detector {info.name} takes at most {can.frames_per_trigger} frames per trigger"
        findings.error("frames-per-trigger", message, (*AT, "frames_per_trigger"))
    if acquisition.shutter != "auto" and not can.shutter:
        message = f"the detector {info.name} has no shutter to hold {acquisition.shutter}"
        findings.error("cannot-shutter", message, (*AT, "shutter"), help="leave `shutter` out")


def check_flows(flows: Mapping[str, Flow], can: Capabilities, info: DetectorInfo, findings: Findings) -> None:
    """Check parts of the image, alignment, and placing of modules in full frames."""
    for name, flow in flows.items():
        at: KeyPath = ("flows", name)
        for check in (_check_extraction, _check_alignment, _check_reconstruction):
            attempt(lambda check=check, flow=flow, at=at: check(flow, can, info, at, findings))  # type: ignore[misc]


def _check_extraction(flow: Flow, can: Capabilities, info: DetectorInfo, at: KeyPath, findings: Findings) -> None:
    source, (x, y) = flow.rect, can.granularity
    if source == info.image:
        return
    if not can.extraction:
        message = f"the detector {info.name} sends whole images only"
        findings.error("cannot-extract", message, (*at, "source"), help="source: full, and the node `roi_flip_rot`")
    elif source.x % x or source.width % x or source.y % y or source.height % y:
        left, top = source.x // x * x, source.y // y * y
        whole = Rect(left, top, -(-source.right // x) * x - left, -(-source.bottom // y) * y - top) & info.image
        findings.error(
            "cannot-extract",
            f"the source of {at[-1]}, {source}, is not aligned to units of {x} x {y} pixels, as the detector requires",
            (*at, "source"),
            help=f"{{x: {whole.x}, y: {whole.y}, width: {whole.width}, height: {whole.height}}} contains it",
        )


def _check_alignment(flow: Flow, can: Capabilities, info: DetectorInfo, at: KeyPath, findings: Findings) -> None:
    if can.alignment is None:
        return
    for key in ("block", "row"):
        if getattr(flow.alignment, key) > can.alignment:
            message = f"the detector {info.name} aligns on at most {can.alignment} bits"
            findings.error("cannot-align", message, (*at, "alignment", key))


def _check_reconstruction(flow: Flow, can: Capabilities, info: DetectorInfo, at: KeyPath, findings: Findings) -> None:
    if can.reconstruction:
        return
    shares = flow.shares or (tuple(range(len(info.modules))),)
    if any(sum((info.modules[module] & flow.rect).area > 0 for module in share) > 1 for share in shares):
        message = f"modules of the detector {info.name} do not place their parts in one frame"
        help = "`dispatch: modules` to one receiver for each module, or a source that lies in one module"
        findings.error("cannot-reconstruct", message, at, on_key=True, help=help)


Users = dict[tuple[str | None, int], str]
"""The receiver that takes a CPU, by host and number."""


def check_placement(receivers: Mapping[str, ReceiverTable], findings: Findings) -> None:
    """Report CPUs that a receiver lists twice, and those that several receivers of a host list."""
    users: Users = {}
    for name, receiver in receivers.items():
        attempt(lambda n=name, table=receiver: _check_receiver(n, table, users, findings))  # type: ignore[misc]


def _check_receiver(name: str, receiver: ReceiverTable, users: Users, findings: Findings) -> None:
    cpus = receiver.cpus or ()
    host = None if receiver.host == "localhost" else receiver.host
    for index, cpu in enumerate(cpus):
        if cpu in cpus[:index]:
            findings.error("repeated-cpu", f"CPU {cpu} is listed twice", ("receivers", name, "cpus", index))
    shared = [cpu for cpu in dict.fromkeys(cpus) if (host, cpu) in users]
    if shared:
        other = users[host, shared[0]]
        listed = f"CPU{'s' * (len(shared) > 1)} {', '.join(map(str, shared))}"
        findings.warning(
            "shared-cpus",
            f"{name} and {other} both run on {listed}{f' of {host}' if host else ''}: they will take turns",
            ("receivers", name, "cpus"),
            related=[Related(("receivers", other, "cpus"), other)],
        )
    for cpu in cpus:
        users.setdefault((host, cpu), name)


def warn_of_implausible(reading: Reading, findings: Findings) -> None:
    """Report quantities that are probably mistaken, where nothing else is."""
    for at, quantity, data in reading.quantities:
        bad = any(at[:end] in reading.bad for end in range(len(at) + 1))
        if quantity.plausible is not None and not bad:
            _check_plausible(at, quantity, data, quantity.plausible, findings)


def _check_plausible(at: KeyPath, quantity: Quantity, data: Any, plausible: Plausible, findings: Findings) -> None:
    value = quantity.parse(data)
    if not value or plausible.least <= value <= plausible.most or (plausible.bare and isinstance(data, str)):
        return
    number, unit = _written(data, quantity.unit)
    proposed = list(_meant(number, unit, quantity.unit, plausible))
    findings.warning(
        "implausible",
        f"`{at[-1]}` is {in_units(value, quantity.unit)}",
        at,
        notes=[
            f"plausible values are {in_units(plausible.least, quantity.unit)} to "
            f"{in_units(plausible.most, quantity.unit)}"
        ],
        help=f"did you mean {', or '.join(f'`{text}`' for text in proposed)}?" if proposed else None,
    )


def _written(value: int | float | str, quantity: str) -> tuple[str, str]:
    """Return the number and the unit of a value, the base unit where there is none."""
    if not isinstance(value, str):
        return f"{value:.15g}", next(unit for unit, factor in UNITS[quantity].items() if factor == 1)
    match = re.fullmatch(rf"\s*({NUMBER})\s*(\S+)\s*", plain_spelling(value))
    assert match is not None, "the value has been parsed"
    return match[1], match[2]


def _meant(number: str, unit: str, quantity: str, plausible: Plausible) -> Iterator[str]:
    """Yield the number with units that make it plausible, the nearest first; factors of 1000 before others."""
    units, written = UNITS[quantity], UNITS[quantity][unit]
    fits = [one for one, factor in units.items() if plausible.least <= float(number) * factor <= plausible.most]
    steps = {one: abs(math.log10(units[one] / written)) / 3 for one in fits}
    thousands = [one for one in fits if abs(steps[one] - round(steps[one])) < 1e-6]
    for one in sorted(thousands or fits, key=lambda one: steps[one])[:2]:
        yield f"{number} {one}"


def warn_of_beam_center(metadata: Metadata, info: DetectorInfo, findings: Findings) -> None:
    """Report a beam centre that lies further from the image than the image is long."""
    center, sensor = metadata.beam_center, info.sensor
    if center is None:
        return
    pitches = sensor.pixel_size or (math.nan, math.nan)
    axes = zip(("x", "y"), (center.x, center.y), (sensor.width, sensor.height), pitches, strict=True)
    for key, value, length, pitch in axes:
        if -length <= value <= 2 * length:
            continue
        findings.warning(
            "implausible",
            f"the beam centre is far outside of the image: {key} is {value:g}, the image has {length} pixels",
            ("metadata", "beam_center", key),
            notes=["the centre is in pixels, from the first one of the detector on"],
            help=_in_pixels(value, length, pitch),
        )


def check_axes(metadata: Metadata, findings: Findings) -> None:
    """Report axes whose vector has no direction."""
    for name, axis in metadata.axes.items():
        if axis.vector is not None and not any((axis.vector.x, axis.vector.y, axis.vector.z)):
            at = ("metadata", "axes", name, "vector")
            findings.error("out-of-range", "the vector has no direction: x, y and z are 0", at)


def _in_pixels(value: float, length: int, pitch: float) -> str | None:
    """Return the place in pixels, where it was probably written in um; None elsewhere."""
    pixels = value * UNITS["metres"]["um"] / pitch
    return f"{value:g} um would be `{pixels:.6g}`" if 1 <= pixels < length else None


LONGEST_NAME = 255
"""Most bytes of the name of a file, on all file systems in use."""

LONGEST_PATH = 4096 - 1024
"""Most bytes of the directory's path; the rest is for the working directory and the files."""


def check_directory_name(name: str, output: Output, findings: Findings) -> None:
    """Report a run directory that no file system takes; a wrong format has been reported before."""
    directory = str(output.directory)
    try:
        path = directory.format(name=name, run=9999, date="2025-01-31", time="12-00-00", uuid=32 * "0")
    except (ValueError, LookupError, AttributeError):
        return
    longest = max(len(part.encode()) for part in path.split("/"))
    if longest <= LONGEST_NAME and len(path.encode()) <= LONGEST_PATH:
        return
    at: KeyPath = ("name",) if "{name" in directory and longest <= LONGEST_NAME + len(name) else ("output", "directory")
    if longest > LONGEST_NAME:
        message = f"the run directory would have a name of {longest} bytes, file systems allow {LONGEST_NAME}"
    else:
        message = f"the path of the run directory would have {len(path.encode())} bytes, more than {LONGEST_PATH}"
    findings.error("name-too-long", message, at, help="a shorter one")
