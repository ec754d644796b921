"""What a pipeline asks of the detector, against what the detector says that it can do."""

from collections.abc import Mapping

from lima2cli.config.pipeline import DataFlow
from lima2cli.config.records import Acquisition
from lima2cli.detectors.base import Capabilities, DetectorConfig
from lima2cli.detectors.operations import operate
from lima2cli.diagnostics import Findings, Path
from lima2cli.errors import Misfit
from lima2cli.geometry import Rect
from lima2cli.poison import Poisoned, attempt
from lima2cli.spec import MOST_PIXELS, DetectorInfo

AT: Path = ("acquisition",)


def check_description(config: DetectorConfig, info: DetectorInfo, findings: Findings) -> None:
    """A detector that is configured beyond what its kind can do."""
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


def operated_detector(said: Acquisition, can: Capabilities, info: DetectorInfo, findings: Findings) -> DetectorInfo:
    """The detector after the operations that an acquisition asks of it, which are checked."""
    operations = said.operations
    asked = {
        "binning": operations.binning != (1, 1),
        "roi": operations.roi is not None,
        "flip": operations.flip != "none",
        "accumulate": operations.accumulate > 1,
    }
    refused = [key for key, used in asked.items() if used and NAMES[key] not in can.operations]
    for key in refused:
        message = f"the detector {info.name} does no {NAMES[key]}"
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
    except Misfit as misfit:
        findings.error(misfit.rule, misfit.message, (*AT, *misfit.key), help=misfit.help)
    raise Poisoned


NAMES: Mapping[str, str] = {"binning": "binning", "roi": "roi", "flip": "flip", "accumulate": "accumulation"}
"""Capabilities by the keys of `acquisition`."""

INSTEAD: Mapping[str, str] = {
    "binning": "the node `roi_flip_rot`",
    "roi": "`source` of a flow",
    "flip": "the node `roi_flip_rot`",
    "accumulate": "the node `accumulate`",
}


def check_synchronisation(said: Acquisition, can: Capabilities, info: DetectorInfo, findings: Findings) -> None:
    """Triggers and shutter."""
    if said.trigger not in can.triggers:
        message = f"the detector {info.name} has no {said.trigger} trigger"
        findings.error("cannot-trigger", message, (*AT, "trigger"), help="one of " + ", ".join(can.triggers))
    elif said.trigger == "internal" and said.frames_per_trigger > 1:
        message = "with the internal trigger each frame starts by itself"
        help = "trigger: software, external or gate; or leave `frames_per_trigger` out"
        findings.error("frames-per-trigger", message, (*AT, "frames_per_trigger"), on_key=True, help=help)
    elif can.frames_per_trigger is not None and said.frames_per_trigger > can.frames_per_trigger:
        message = f"the detector {info.name} takes at most {can.frames_per_trigger} frames per trigger"
        findings.error("frames-per-trigger", message, (*AT, "frames_per_trigger"))
    if said.shutter != "auto" and not can.shutter:
        message = f"the detector {info.name} has no shutter to hold {said.shutter}"
        findings.error("cannot-shutter", message, (*AT, "shutter"), help="leave `shutter` out")


def check_flows(flows: Mapping[str, DataFlow], can: Capabilities, info: DetectorInfo, findings: Findings) -> None:
    """Parts of the image, alignment, and placing of modules in full frames."""
    for name, flow in flows.items():
        at: Path = ("flows", name)
        for check in (_check_extraction, _check_alignment, _check_reconstruction):
            attempt(lambda check=check, flow=flow, at=at: check(flow, can, info, at, findings))  # type: ignore[misc]


def _check_extraction(flow: DataFlow, can: Capabilities, info: DetectorInfo, at: Path, findings: Findings) -> None:
    source, (x, y) = flow.source, can.granularity
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
            f"the source of {at[-1]}, {source}, is not made of units of {x} x {y} pixels, as the detector needs it",
            (*at, "source"),
            help=f"{{x: {whole.x}, y: {whole.y}, width: {whole.width}, height: {whole.height}}} holds it",
        )


def _check_alignment(flow: DataFlow, can: Capabilities, info: DetectorInfo, at: Path, findings: Findings) -> None:
    if can.alignment is None:
        return
    for key in ("block", "row"):
        if getattr(flow.said.alignment, key) > can.alignment:
            message = f"the detector {info.name} aligns on at most {can.alignment} bits"
            findings.error("cannot-align", message, (*at, "alignment", key))


def _check_reconstruction(flow: DataFlow, can: Capabilities, info: DetectorInfo, at: Path, findings: Findings) -> None:
    if can.reconstruction:
        return
    shares = getattr(flow, "shares", None) or (tuple(range(len(info.modules))),)
    if any(sum((info.modules[module] & flow.source).area > 0 for module in share) > 1 for share in shares):
        message = f"modules of the detector {info.name} do not place their parts in one frame"
        help = "`dispatch: modules` to one receiver for each module, or a source that lies in one module"
        findings.error("cannot-reconstruct", message, at, on_key=True, help=help)
