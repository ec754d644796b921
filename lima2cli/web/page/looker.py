"""Frames for one page: taken in a thread, of which the page shows the last that has come."""

import threading

from lima2cli.drive import LiveFrame, Run
from lima2cli.errors import Lima2Error
from lima2cli.runs.control_socket import HangUp

PERIOD_S = 0.2
"""Least seconds from one frame to the next."""


class Looker:
    """Looks at a flow or node of a run: live, or at a saved frame, by its place from the end.

    number   of a saved frame, None: live frames as they come
    count    ends after so many, None: at the end of the run, or when it is told to `stop`
    problem  why there is no frame, in words
    """

    def __init__(self, run: Run, node: str, *, number: int | None = None, count: int | None = None) -> None:
        self.node, self.problem = node, ""
        self.over = False
        self._run, self._number, self._count = run, number, count
        self._hang_up = HangUp()
        self._frame: LiveFrame | None = None
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        try:
            if self._number is not None:
                self._frame = self._run.saved(self.node, self._number)
                return
            for frame in self._run.tap(self.node, every=PERIOD_S, count=self._count, hang_up=self._hang_up):
                self._frame = frame
        except Lima2Error as error:
            self.problem = str(error)
        finally:
            self.over = True

    def take(self) -> LiveFrame | None:
        """Return the last frame that has come since it was asked; None without one."""
        frame, self._frame = self._frame, None
        return frame

    def stop(self) -> None:
        """Look no longer."""
        self._hang_up()
