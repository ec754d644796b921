"""The interface of detectors: configuration, information, operations, monitoring, acquisition; and their kinds."""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.declare import Either, ListOf, Number, Plausible, Quantity, Shape, Table, Text, pair, param
from lima2cli.errors import NodeMisuse
from lima2cli.facts import Facts
from lima2cli.frames import Array, DetectorInfo, Files, Invalid
from lima2cli.geometry import Rect
from lima2cli.kernels.masked import fits, words
from lima2cli.plugins import Kinds

if TYPE_CHECKING:
    from lima2cli.detectors.librashpa import GdtCalls
    from lima2cli.detectors.scenes import Scene


class State(enum.Enum):
    """States of a detector.

    prepare: IDLE, STOPPED → PREPARED; start: PREPARED → RUNNING; stop: RUNNING → STOPPED; reset: any → IDLE. A detector
    that fails goes to FAULT, which only reset leaves. All else raises StateError.
    """

    IDLE = "idle"
    PREPARED = "prepared"
    RUNNING = "running"
    STOPPED = "stopped"
    FAULT = "fault"


TRIGGERS = ("internal", "software", "external", "gate")
"""Events that start frames.

internal: the detector's clock, one a period. software: `Detector.trigger`, external: a pulse, gate: a level; each of
the last three starts ``frames_per_trigger`` frames, a period apart.
"""

SHUTTERS = ("auto", "open", "closed")

OPERATIONS = ("binning", "roi", "flip", "accumulation")


@dataclass(frozen=True)
class Operations:
    """Operations that the detector itself applies to frames, in this order.

    accumulate  exposures that are summed to a frame
    binning     (x, y) pixels that are summed to one; trailing columns and rows are cut
    roi         the part that is kept, in binned pixels; None = all
    flip        left and right, top and bottom changed
    """

    accumulate: int = 1
    binning: tuple[int, int] = (1, 1)
    roi: Rect | None = None
    flip: str = "none"


@dataclass(frozen=True)
class AcqParams:
    """Parameters of an acquisition: frames (None = until stopped) and the period in seconds (None = as fast as asked).

    trigger             one of `TRIGGERS`;  frames_per_trigger  frames that each trigger starts
    exposure_s          of a frame, None = the detector's choice
    shutter             one of `SHUTTERS`; auto: open while frames are acquired
    operations          what the detector does to frames
    """

    frames: int | None
    period_s: float | None
    trigger: str = "internal"
    frames_per_trigger: int = 1
    exposure_s: float | None = None
    shutter: str = "auto"
    operations: Operations = Operations()


@dataclass(frozen=True)
class XferParams:
    """Frames that will be asked for: (dataset, module) index pairs that this rank serves.

    setup  of detectors that write to memory by themselves: the calls that set up all data flows
    span   frames from the first to the last that may be asked for together: those of a group
    packed  pairs whose frames will be asked for as they come (`SendsPacked`); in ``routes`` only if also otherwise
    """

    routes: tuple[tuple[int, int], ...]
    setup: "tuple[GdtCalls, ...]" = ()
    span: int = 1
    packed: tuple[tuple[int, int], ...] = ()


PITCH = Quantity("metres", above=0, plausible=Plausible(1e-7, 5e-3))


@dataclass(frozen=True, kw_only=True)
class PixelSize:
    """Pixel pitch."""

    x: float = param("Horizontal pitch.", PITCH)
    y: float = param("Vertical pitch.", PITCH)


PIXEL_SIZE: Shape = pair(PixelSize, PITCH)


@dataclass(frozen=True, kw_only=True)
class InvalidLimits:
    """Pixels below or above are not measurements."""

    below: float | None = param("Pixels less than this are not measurements.", Number(), None)
    above: float | None = param("Pixels greater than this are not measurements.", Number(), None)

    @property
    def rule(self) -> Invalid:
        """Return the same as a rule."""
        return Invalid((), self.below, self.above)


def written(rule: Invalid) -> tuple[float, ...] | InvalidLimits | None:
    """Return a rule as users write it; of both values and limits, which no table has together, the limits."""
    if rule.below is not None or rule.above is not None:
        return InvalidLimits(below=rule.below, above=rule.above)
    return tuple(value for value in rule.values if math.isfinite(value)) or None


INVALID: Shape = Either((ListOf(Number()), Table(InvalidLimits)))
"""Shape of the parameter ``invalid``."""


@dataclass(frozen=True)
class Capabilities:
    """Capabilities of a detector.

    As ``DetectorConfig.capabilities`` it is a promise about every detector of a kind; for one that is configured see
    `DetectorConfig.retrieve`.

    largest     most columns and rows of the image, None = not known
    dtypes      of pixels, numpy names; empty = not known
    bit_depths  significant bits of pixels; empty = any
    datasets    most of them; modules: most of them; channels: most per module; None = any number
    can_wait    whether the source stands still until receivers have released memory
    triggers    what starts a frame, of `TRIGGERS`;  frames_per_trigger  most of them, None = any number
    operations  on frames that the detector itself does, of `OPERATIONS`
    binnings    (x, y) that there are; empty = any;  accumulation  most exposures of a frame, None = any number
    shutter     whether it opens and closes one
    extraction  whether a flow may take a part of the image;  granularity  (x, y) that its place and size are a
                multiple of
    reconstruction  whether modules write to their place in the full frame
    alignment   most bits that blocks and rows can be aligned on, None = any number
    buffers     memory that frames can be written to, of host, gpu;  owner  who allocates it, receiver or detector
    """

    largest: tuple[int, int] | None = None
    dtypes: tuple[str, ...] = ()
    datasets: int | None = None
    modules: int | None = None
    channels: int | None = None
    can_wait: bool = False
    triggers: tuple[str, ...] = ("internal",)
    operations: tuple[str, ...] = ()
    shutter: bool = False
    buffers: tuple[str, ...] = ("host",)
    bit_depths: tuple[int, ...] = ()
    frames_per_trigger: int | None = None
    binnings: tuple[tuple[int, int], ...] = ()
    accumulation: int | None = None
    extraction: bool = True
    granularity: tuple[int, int] = (1, 1)
    reconstruction: bool = True
    alignment: int | None = None
    owner: str = "receiver"

    def of(self, info: DetectorInfo) -> "Capabilities":
        """Return the capabilities of one detector.

        They have its image, dtypes, bit depths, numbers of datasets, modules and channels.
        """
        return replace(
            self,
            largest=(info.width, info.height),
            dtypes=tuple(dict.fromkeys(dataset.dtype for dataset in info.datasets)),
            bit_depths=tuple(dict.fromkeys(dataset.bits for dataset in info.datasets)),
            datasets=len(info.datasets),
            modules=len(info.modules),
            channels=info.channels,
            can_wait=info.can_wait,
        )


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Base of the configurations of all detectors.

    ``capabilities`` is None where a detector does not report any.

    ``writes_itself``: its hardware writes frames to the receivers' memory (RASHPA); lima2 moves none of them.
    """

    kind: ClassVar[str]
    capabilities: ClassVar[Capabilities | None] = None
    writes_itself: ClassVar[bool] = False

    name: str | None = param("Name in the files; default: the kind.", Text(), None)
    pixel_size: PixelSize | None = param("Pixel pitch, saved with the data.", PIXEL_SIZE, None)
    saturation: float | None = param("Pixels at or above this value count as saturated.", Number(), None)
    invalid: tuple[float, ...] | InvalidLimits | None = param(
        "Values of pixels of single frames that are not measurements: a list of them, or limits `{below, above}`; "
        "default: those that the file or the protocol declares.",
        INVALID,
        None,
    )

    def described(self, files: Files) -> DetectorInfo:
        """Return what `describe` gives, with the invalid values that users give.

        Raises:
            FileProblem: as `describe`.
            NodeMisuse: as `describe`, and (``invalid-value``).
        """
        info = self.describe(files)
        if self.invalid is None:
            return info
        rule = self.invalid.rule if isinstance(self.invalid, InvalidLimits) else Invalid(self.invalid)
        if not any(fits(rule, dataset.dtype) for dataset in info.datasets):
            dtypes = ", ".join(dict.fromkeys(dataset.dtype for dataset in info.datasets))
            message = f"`{words(rule)}` does not distinguish pixels of {dtypes}"
            raise NodeMisuse(
                "invalid-value", message, ("invalid",), "values that the pixels can have, and not all of these"
            )
        return replace(info, datasets=tuple(replace(dataset, invalid=rule) for dataset in info.datasets))

    def describe(self, files: Files) -> DetectorInfo:
        """Return static information and capabilities.

        Raises:
            FileProblem: they come from a file that is unfit.
            NodeMisuse: parameters contradict each other.
        """
        raise NotImplementedError

    def retrieve(self, info: DetectorInfo) -> Capabilities:
        """Return what the detector can do as it is configured.

        ``info`` is what `describe` gave.

        For a kind that promises nothing it is what its description has, an internal trigger, no operations.
        """
        return (self.capabilities or Capabilities()).of(info)

    def scenes_for(self, info: DetectorInfo) -> "Mapping[str, Scene]":
        """Return the scenes of REMU, by dataset, where it plays this detector; REMU's default where a dataset has none.

        ``info`` is what `describe` gave. Frames like the detector's own make compression and counters as slow as they
        will be.
        """
        return {}

    def check_machine(self) -> None:
        """Raise `EnvironmentUnfit` where this machine lacks what the detector needs, such as a library.

        Asked before anything is started; nothing is opened by it.
        """

    def open(self, info: DetectorInfo, files: Files) -> "Detector":
        """Return the detector, IDLE, as one rank sees it. ``info`` is what `describe` gave."""
        raise NotImplementedError


class Detector(Protocol):
    """A detector as one detector rank sees it."""

    def prepare(self, acq_params: AcqParams, xfer_params: XferParams) -> None:
        """Get ready: allocate, render, open files.

        From here on frames and modules are those that the operations of ``acq_params`` leave.
        """
        ...

    def start(self, start_ns: int) -> None:
        """Begin to acquire; frame 0 is due at ``start_ns`` (ns since the epoch)."""
        ...

    def trigger(self) -> None:
        """Start the next ``frames_per_trigger`` frames, or let them follow those that are being acquired.

        Frames of trigger k are numbered from ``k * frames_per_trigger``.

        Raises:
            StateError: the state is not RUNNING, or the trigger is not ``software``.
        """
        ...

    def stop(self) -> None:
        """End the acquisition; frames acquired so far can still be asked for."""
        ...

    def reset(self) -> None:
        """Go back to IDLE from any state."""
        ...

    def status(self) -> State:
        """Return the present state."""
        ...

    def nb_acq_frames(self) -> int:
        """Return how many frames have been acquired (frames 0 to this - 1 can be asked for).

        A source without a period has acquired all frames that it was prepared for (2**62 if endless).
        """
        ...

    def get_frames(self, dataset: int, module: int, numbers: Sequence[int]) -> Array:
        """Return frames of one module, (n, height, width), rows contiguous, of the leading n numbers, n >= 1.

        ``numbers`` is a range. A view where that needs no copy; valid until the next call for the same
        (dataset, module). The frames of a number are the same whatever is asked, whenever. A frame that the module
        has failed to give holds the gap value.
        """
        ...

    def missing(self, dataset: int, module: int, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """Return which of these frames the module has failed to give, (len(numbers),) bool; None = none of them.

        Asked after `get_frames` of them, and only where `DetectorInfo.can_fail`. Such frames are incomplete: no node
        gets them, and they are counted as missing.
        """
        ...

    def times(self, numbers: Sequence[int]) -> NDArray[np.uint64]:
        """Return the detector's time of frames, (n,) uint64 ns since the epoch."""
        ...


@runtime_checkable
class SendsPacked(Protocol):
    """A `Detector` of which frames can be had as the hardware has compressed them (`DatasetInfo.packed`)."""

    def packed(self, dataset: int, module: int, numbers: Sequence[int]) -> Sequence[tuple[str, bytes]]:
        """Return of each of these frames its compression and its bytes, see `Packed`; of one that is missing no bytes.

        As `get_frames`, but of all ``numbers``, and bytes that stay.
        """
        ...


@runtime_checkable
class Wakes(Protocol):
    """A `Detector` that says when there are frames, so that it need not be asked again and again."""

    def wait(self, seconds: float) -> None:
        """Return as soon as `Detector.nb_acq_frames` may have grown since it was asked, at latest after ``seconds``."""
        ...


@runtime_checkable
class Foresees(Protocol):
    """A `Detector` that knows when frames will be there."""

    def due_ns(self, number: int) -> int | None:
        """Return when a frame will have been acquired, ns since the epoch; None where that is not known."""
        ...


@runtime_checkable
class Warns(Protocol):
    """A `Detector` that also has warnings."""

    def warnings(self) -> Sequence[str]:
        """Return what users should know, one sentence each; all that there is so far.

        Asked after `Detector.prepare` and after the last frame; shown while the run goes on, and in its summary.
        """
        ...


@runtime_checkable
class Informs(Protocol):
    """A `Detector` that knows more of an acquisition once it is ready: energy, geometry, masks."""

    def facts(self) -> Facts | None:
        """Return the facts of the acquisition that was prepared last, None as long as they are not there.

        Asked again and again after `Detector.prepare`, until they are there or the last frame was served; they are
        saved with the frames. One rank of a detector has them: of several that do the last counts.
        """
        ...


BUILT_IN: Mapping[str, str] = {
    "remu": "lima2cli.detectors.remu:Remu",
    "replay": "lima2cli.detectors.replay:Replay",
    "smartpix": "lima2cli.detectors.smartpix:SmartPix",
    "rashpa": "lima2cli.detectors.rashpa:Rashpa",
    "jungfrau": "lima2cli.detectors.jungfrau:Jungfrau",
    "dectris": "lima2cli.detectors.dectris:Dectris",
}
"""Modules of the tables of the built-in detectors, by kind; one is imported where it is asked for."""

DETECTORS: Kinds[DetectorConfig] = Kinds("detector", "lima2cli.detectors", DetectorConfig, BUILT_IN)
"""All kinds of detector, those of installed packages among them."""


def detector_kinds() -> Mapping[str, type[DetectorConfig]]:
    """Return the tables of the built-in detectors by kind; all are imported."""
    return DETECTORS.tables()
