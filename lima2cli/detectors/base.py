"""The interface of detectors: configuration, static information, operations, monitoring, acquisition.

Names and groups are those of the Lima2 detector interface. A detector plugin is two things: a
`DetectorConfig`, the table that users write under ``detector:``, which describes the detector to the compiler;
and a `Detector`, which runs in the detector ranks, one object per rank for the modules that the rank serves.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Number, Quantity, Shape, Table, Text, param
from lima2cli.spec import Array, DetectorInfo, Files


class State(enum.Enum):
    """States of a detector. prepare: IDLE, STOPPED → PREPARED; start: PREPARED → RUNNING; stop: RUNNING → STOPPED;
    reset: any → IDLE. A detector that fails goes to FAULT, which only reset leaves. All else raises StateError."""

    IDLE = "idle"
    PREPARED = "prepared"
    RUNNING = "running"
    STOPPED = "stopped"
    FAULT = "fault"


@dataclass(frozen=True)
class AcqParams:
    """What to acquire: frames (None = until stopped) and the period in seconds (None = as fast as asked)."""

    frames: int | None
    period_s: float | None


@dataclass(frozen=True)
class XferParams:
    """What will be asked for: (dataset, module) index pairs that this rank serves."""

    routes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class PixelSize:
    """Pixel pitch."""

    x: float = param("Horizontal pitch.", Quantity("metres", above=0))
    y: float = param("Vertical pitch.", Quantity("metres", above=0))


PIXEL_SIZE: Shape = Table(PixelSize)


@dataclass(frozen=True)
class Capabilities:
    """What a kind of detector can do whatever its parameters are: a promise about every `DetectorConfig.describe`.

    largest     most columns and rows of the image, None = not known
    dtypes      of pixels, numpy names; empty = not known
    datasets    most of them; modules: most of them; channels: most per module; None = any number
    can_wait    whether the source stands still until receivers have released memory
    triggers    what starts a frame, of internal, software, external, gate
    operations  on frames that the detector itself does, of binning, roi, flip, accumulation
    shutter     whether it opens and closes one
    buffers     where frames lie that it hands out, of host, gpu
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


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """What every detector has. ``capabilities`` is None where a detector does not tell."""

    kind: ClassVar[str]
    capabilities: ClassVar[Capabilities | None] = None

    name: str | None = param("Name in the files; default: the kind.", Text(), None)
    pixel_size: PixelSize | None = param("Pixel pitch, saved with the data.", PIXEL_SIZE, None)
    saturation: float | None = param("Pixels at or above this value count as saturated.", Number(), None)

    def describe(self, files: Files) -> DetectorInfo:
        """Static information and capabilities. Raises `FileProblem` where they come from a file that is unfit,
        `Misfit` where parameters contradict each other."""
        raise NotImplementedError

    def open(self, info: DetectorInfo, files: Files) -> "Detector":
        """The detector, IDLE, as one rank sees it. ``info`` is what `describe` gave."""
        raise NotImplementedError


class Detector(Protocol):
    """A detector as one detector rank sees it."""

    def prepare(self, acq_params: AcqParams, xfer_params: XferParams) -> None:
        """Get ready: allocate, render, open files."""
        ...

    def start(self, start_ns: int) -> None:
        """Begin to acquire; frame 0 is due at ``start_ns`` (ns since the epoch)."""
        ...

    def stop(self) -> None:
        """End the acquisition; frames acquired so far can still be asked for."""
        ...

    def reset(self) -> None:
        """Back to IDLE from any state."""
        ...

    def status(self) -> State:
        """The state now."""
        ...

    def nb_acq_frames(self) -> int:
        """How many frames have been acquired (frames 0 to this - 1 can be asked for).

        A source without a period has acquired all frames that it was prepared for (2**62 if endless).
        """
        ...

    def get_frames(self, dataset: int, module: int, numbers: Sequence[int]) -> Array:
        """Frames of one module, (n, height, width), rows contiguous, for the leading 1 <= n <= len(numbers) numbers.

        ``numbers`` is a range. A view where that needs no copy; valid until the next call for the same
        (dataset, module). The frames of a number are the same whatever is asked, whenever.
        """
        ...

    def times(self, numbers: Sequence[int]) -> NDArray[np.uint64]:
        """The detector's time of frames, (n,) uint64 ns since the epoch."""
        ...
