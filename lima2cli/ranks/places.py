"""The directories of the acquisitions of a job, held open by the control rank: they may be moved, or be removed."""

import time
from typing import Any

from lima2cli.errors import StateError
from lima2cli.runs.moving import move_run
from lima2cli.runs.processes import HeldDirectory

PERIOD_S = 0.5
"""Seconds from one check of a directory to the next."""


class Places:
    """The directories, each held from its announcement on, in the order of the acquisitions.

    Raises:
        OSError: the first can't be opened.
    """

    def __init__(self, first: str) -> None:
        self._held = [HeldDirectory(first)]
        self._looked = 0.0

    def add(self, directory: str) -> None:
        """Hold that of the next acquisition. Raises OSError."""
        self._held.append(HeldDirectory(directory))

    def gone(self, *, now: bool = False) -> str | None:
        """Return a sentence where the last is no longer where it was; looks from time to time, or ``now``."""
        if not now and time.monotonic() - self._looked <= PERIOD_S:
            return None
        self._looked = time.monotonic()
        return self._held[-1].gone()

    def found(self, number: int) -> str:
        """Return where that of an acquisition, from 0, is now.

        Raises:
            RunFailed: it was removed.
        """
        return str(self._held[number].found())

    def move(self, target: Any) -> tuple[str, bool]:
        """Move the last to another place, see `move_run`; return where it is, and whether a link to it stays.

        Raises:
            StateError: it can't be there.
        """
        last = self._held[-1]
        if gone := last.gone():
            raise StateError(gone)
        last.path, linked = move_run(last.path, target)
        return str(last.path), linked

    def close(self) -> None:
        """Release them."""
        for one in self._held:
            one.close()
        self._held.clear()
