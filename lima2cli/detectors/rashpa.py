"""Detector `rashpa`: The generic plugin of RASHPA-compliant detectors, whose modules write frames to the receivers'
memory by themselves.

What the detector can do comes from a file, in the form of `lima2 detectors show KIND --format json`. The data flows
are set up by calls of librashpa, those of `lima2 plan --format c`. Where the library is not installed, `validate` and
`plan` work, and `run` starts nothing.

**In this version no frame is received from such a detector**: what is known of librashpa sets up data flows, and does
not show how memory is given to it, nor how its events are received. See the guide on RASHPA detectors.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.declare import Text, param
from lima2cli.detectors.base import AcqParams, Capabilities, DetectorConfig, State, XferParams
from lima2cli.detectors.capability_record import read_record
from lima2cli.detectors.librashpa import LIBRARY, Manager, load
from lima2cli.detectors.lifecycle import Lifecycle
from lima2cli.errors import FileProblem, NodeMisuse, StateError
from lima2cli.frames import Array, DetectorInfo, Files
from lima2cli.paths import read_json_object


@dataclass(frozen=True)
class RashpaInfo(DetectorInfo):
    """The description of a RASHPA detector, with the capabilities of its record."""

    can: Capabilities = Capabilities()


@dataclass(frozen=True, kw_only=True)
class Rashpa(DetectorConfig):
    """A RASHPA-compliant detector, described by its capability record and set up by calls of librashpa."""

    kind: ClassVar[str] = "rashpa"
    writes_itself: ClassVar[bool] = True

    file: str = param(
        "The capability record of the detector: JSON, as `lima2 detectors show KIND --format json` prints it.", Text()
    )
    library: str = param(
        "The library: a name that the dynamic loader looks for, or a path (relative to the working directory).",
        Text(),
        LIBRARY,
    )

    def describe(self, files: Files) -> RashpaInfo:
        """See `DetectorConfig`. Such hardware never waits for a receiver, whatever the record has."""
        try:
            info, can = read_record(_read(files.path(self.file), self.file), self.kind)
        except NodeMisuse as misfit:
            where = "/".join(map(str, ("", *misfit.key)))
            message = f"{self.file}: {misfit.message} (at {where or '/'})"
            raise NodeMisuse(misfit.rule, message, ("file",), misfit.help) from None
        description = {field.name: getattr(info, field.name) for field in fields(info)} | {"can_wait": False}
        description["name"] = self.name or info.name
        if self.pixel_size is not None:
            description["pixel_size"] = (self.pixel_size.x, self.pixel_size.y)
        if self.saturation is not None:
            description["saturation"] = self.saturation
        return RashpaInfo(**description, can=_set_up_by_lima2(can))

    def retrieve(self, info: DetectorInfo) -> Capabilities:
        """See `DetectorConfig`."""
        assert isinstance(info, RashpaInfo)
        return info.can

    def check_machine(self) -> None:
        """See `DetectorConfig`: cffi and the library."""
        load(self.library)

    def open(self, info: DetectorInfo, files: Files) -> "RashpaDetector":
        """See `DetectorConfig`."""
        return RashpaDetector(self.library, info.name)


def _set_up_by_lima2(can: Capabilities) -> Capabilities:
    """Return what is left of the capabilities where only the known calls are made.

    None sets operations, shutter or triggers.

    External triggers and gates may be set by the detector's own control software.
    """
    triggers = tuple(trigger for trigger in can.triggers if trigger != "software") or ("internal",)
    return replace(can, can_wait=False, operations=(), binnings=(), accumulation=None, shutter=False, triggers=triggers)


def _read(path: str, name: str) -> Any:
    try:
        return read_json_object(Path(path))
    except OSError as error:
        raise FileProblem(f"{name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise FileProblem(f"{name} is not a capability record in JSON: {error}", "file-format") from error


class RashpaDetector:
    """The implementation of `Detector`.

    No known call counts frames: they are taken to arrive by the clock.
    """

    def __init__(self, library: str, name: str) -> None:
        self._library, self._name = library, name
        self._life = Lifecycle()
        self._manager: Manager | None = None

    def prepare(self, acq_params: AcqParams, xfer_params: XferParams) -> None:
        """Make a manager and set up all data flows.

        Raises:
            EnvironmentUnfit: the library is missing.
            RunFailed: a call fails.
        """
        self._life.require("prepare", State.IDLE, State.STOPPED)
        self._close()
        try:
            self._manager = Manager(self._library, self._name)
            self._manager.set_up(xfer_params.setup)
        except BaseException:
            self._life.fail()
            raise
        self._life.prepared(acq_params, None)

    def start(self, start_ns: int) -> None:
        """See `Detector`; it starts now, whatever ``start_ns`` is."""
        self._life.require("start", State.PREPARED)
        assert self._manager is not None
        self._manager.start()
        self._life.start(start_ns)

    def stop(self) -> None:
        """See `Detector`."""
        self._life.stop()
        assert self._manager is not None
        self._manager.stop()

    def reset(self) -> None:
        """See `Detector`; releases the manager."""
        if self._life.state is State.RUNNING:
            self.stop()
        self._close()
        self._life.reset()

    def status(self) -> State:
        """See `Detector`."""
        return self._life.state

    def nb_acq_frames(self) -> int:
        """See `Detector`; frames that are due."""
        return self._life.acquired()

    def get_frames(self, dataset: int, module: int, numbers: Sequence[int]) -> Array:
        """Raise `StateError`: frames go from the modules to memory, and never through this process."""
        raise StateError("cannot ask a RASHPA detector for frames: its modules write them to memory by themselves")

    def times(self, numbers: Sequence[int]) -> NDArray[np.uint64]:
        """Return when frames were due; see `Detector`."""
        return self._life.times(numbers)

    def missing(self, dataset: int, module: int, numbers: Sequence[int]) -> None:
        """See `Detector`: nothing is known of it here."""

    def trigger(self) -> None:
        """Raise `StateError`: there is no known call for it."""
        raise StateError("cannot trigger a RASHPA detector by software: no known call of librashpa does it")

    def _close(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()
