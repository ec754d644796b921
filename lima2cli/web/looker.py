"""Frames of a flow or node of a run, taken in a thread; the last that has come is kept."""

import threading

from lima2cli.drive import LiveFrame, Run
from lima2cli.errors import Lima2Error
from lima2cli.runs.control_socket import HangUp


class Looker:
    """Looks at a flow or node of a run: live, whether it is saved or not, or at a saved frame.

    every    least seconds from one frame to the next
    number   of a saved frame, by its place from the end; None: live frames as they come
    count    ends after so many, None: at the end of the run, or when it is asked to `stop`
    problem  why there is no frame, in words
    """

    def __init__(
        self, run: Run, node: str, every: float, *, number: int | None = None, count: int | None = None
    ) -> None:
        self.node, self.problem = node, ""
        self.over = False
        self._run, self._every, self._number, self._count = run, every, number, count
        self._hang_up = HangUp()
        self._news = threading.Condition()
        self._last: LiveFrame | None = None
        self._fresh = False
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        try:
            if self._number is not None:
                self._show(self._run.saved(self.node, self._number))
                return
            for frame in self._run.tap(self.node, every=self._every, count=self._count, hang_up=self._hang_up):
                self._show(frame)
        except Lima2Error as error:
            self.problem = str(error)
        finally:
            self.over = True

    def _show(self, frame: LiveFrame) -> None:
        with self._news:
            self._last, self._fresh = frame, True
            self._news.notify_all()

    def take(self) -> LiveFrame | None:
        """Return the last frame if it has come since it was asked for; None without one."""
        with self._news:
            fresh, self._fresh = self._fresh, False
            return self._last if fresh else None

    def last(self, timeout: float) -> LiveFrame | None:
        """Return the last frame; where there is none yet, the first that comes within ``timeout`` seconds, or None."""
        with self._news:
            self._news.wait_for(lambda: self._last is not None, timeout)
            return self._last

    def stop(self) -> None:
        """Look no longer."""
        self._hang_up()
