"""The latest frame of a flow or node of a run, whether it is saved or not."""

import threading
from contextlib import suppress

from lima2cli.drive import LiveFrame, Run
from lima2cli.errors import RunFailed, StateError, UnreadableInput
from lima2cli.runs.control_socket import HangUp

PERIOD_S = 0.02
"""The least seconds from one frame that is looked at to the next."""


class Latest:
    """Looks at the frames of a flow or node in a thread, and keeps the last one."""

    def __init__(self, run: Run, node: str) -> None:
        self._run, self._node = run, node
        self._hang_up = HangUp()
        self._news = threading.Condition()
        self._frame: LiveFrame | None = None
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        with suppress(StateError, RunFailed, UnreadableInput):  # it has ended, or has no such frames
            for frame in self._run.tap(self._node, every=PERIOD_S, hang_up=self._hang_up):
                with self._news:
                    self._frame = frame
                    self._news.notify_all()

    def frame(self, timeout: float) -> LiveFrame | None:
        """Return the last frame; where there is none yet, the first that comes within ``timeout`` seconds, or None."""
        with self._news:
            self._news.wait_for(lambda: self._frame is not None, timeout)
            return self._frame

    def end(self) -> None:
        """Look no longer."""
        self._hang_up()
