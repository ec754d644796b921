"""A process of its own that shows a run as process variables of EPICS, where the pipeline asks for that."""

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from lima2cli.errors import EnvironmentUnfit

END_S = 5.0
"""Seconds that it has to end after the run."""


class Publication:
    """Begins with the first event that names the run directory; nothing that becomes of it concerns the run."""

    def __init__(self, prefix: str | None) -> None:
        """Take the prefix of the variables; None: there are none.

        Raises:
            EnvironmentUnfit: the extra is not installed.
        """
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None
        if prefix is not None and importlib.util.find_spec("p4p") is None:
            raise EnvironmentUnfit("output.pva: p4p is not installed: pip install 'lima2cli[pva]'")

    def look(self, event: Mapping[str, Any]) -> None:
        """Look at an event of the run."""
        if self._prefix is None or self._process is not None:
            return
        if "directory" in event and (event["type"] == "start" or event.get("event") == "armed"):
            command = [sys.executable, "-P", "-m", "lima2cli.pva", str(event["directory"]), self._prefix]
            nothing = subprocess.DEVNULL
            self._process = subprocess.Popen(
                command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
            )

    def close(self) -> None:
        """End it, after the run."""
        if self._process is None:
            return
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
