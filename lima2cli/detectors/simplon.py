"""The REST interface of detectors of DECTRIS (SIMPLON API): what a run needs of it."""

import json
import urllib.request
from typing import Any

from lima2cli.detectors.base import AcqParams
from lima2cli.errors import EnvironmentUnfit

PATIENCE_S = 30.0
"""Seconds that the detector has to answer: arming takes some."""

TRIGGER_MODES = {"internal": "ints", "software": "ints", "external": "exts", "gate": "exte"}
"""Its names of what starts exposures."""


class Simplon:
    """The detector at an address, ``http://HOST``."""

    def __init__(self, address: str, version: str, header: str) -> None:
        self._address, self._version, self._header = address.rstrip("/"), version, header
        self.armed = False

    def configure(self, acquisition: AcqParams) -> None:
        """Configure the detector for an acquisition: from now on it has a stream.

        Raises:
            EnvironmentUnfit: it does not answer, or refuses; or the acquisition has no end.
        """
        frames, per_trigger = acquisition.frames, acquisition.frames_per_trigger
        if frames is None:
            raise EnvironmentUnfit("a detector that is armed by the run must know its frames: `acquisition.frames`")
        if self.armed:
            self.disarm()
        for key, value in {"mode": "enabled", "format": "cbor", "header_detail": self._header}.items():
            self._config("stream", key, value)
        each = per_trigger if acquisition.trigger == "software" else 1 if acquisition.trigger == "gate" else frames
        self._config("detector", "trigger_mode", TRIGGER_MODES[acquisition.trigger])
        self._config("detector", "nimages", each)
        self._config("detector", "ntrigger", -(-frames // each))
        if acquisition.period_s is not None:
            self._config("detector", "frame_time", acquisition.period_s)
        exposure = acquisition.exposure_s or acquisition.period_s
        if exposure is not None:
            self._config("detector", "count_time", exposure)

    def arm(self) -> None:
        """Arm the detector: it then sends its start message. Raises `EnvironmentUnfit`."""
        self._command("arm")
        self.armed = True

    def trigger(self) -> None:
        """Trigger. Raises `EnvironmentUnfit`."""
        self._command("trigger")

    def disarm(self) -> None:
        """Disarm; it then sends its end message. Raises `EnvironmentUnfit`."""
        self.armed = False
        self._command("disarm")

    def _config(self, module: str, key: str, value: object) -> None:
        self._put(f"{module}/api/{self._version}/config/{key}", json.dumps({"value": value}).encode())

    def _command(self, name: str) -> None:
        self._put(f"detector/api/{self._version}/command/{name}", None)

    def _put(self, path: str, body: bytes | None) -> Any:
        request = urllib.request.Request(f"{self._address}/{path}", body, method="PUT")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return json.loads(answer.read() or b"null")
        except (OSError, ValueError) as error:  # an HTTPError is an OSError, too
            raise EnvironmentUnfit(f"the detector at {self._address} refused {path}: {error}") from error
