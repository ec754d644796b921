"""The events of a run as they come, for threads that wait for them."""

import threading
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

MOST_PROGRESS = 1000
"""Reports of progress that are kept, those of the last minutes; all other events are kept for good."""

Event = dict[str, Any]


class GivenUp(Exception):
    """A wait for events that was ended by a `GiveUp`."""


class GiveUp:
    """Ends the waits for events of a thread, one at a time, from another: now, or as soon as they begin."""

    def __init__(self) -> None:
        self.asked = False
        self.news: threading.Condition | None = None

    def __call__(self) -> None:
        """End them."""
        self.asked = True
        if (news := self.news) is not None:
            with news:
                news.notify_all()


GIVE_UP: ContextVar[GiveUp | None] = ContextVar("GIVE_UP", default=None)
"""The object that ends the waits of this thread, if there is one."""


class EventLog:
    """Events, numbered from 0 on. ``ended``: no more will come."""

    def __init__(self) -> None:
        self._kept: dict[int, Event] = {}
        self._progress: deque[int] = deque()
        self._news = threading.Condition()
        self.ended = False
        self.count = 0

    def add(self, event: Event) -> None:
        """Add an event, and wake those that wait for it."""
        with self._news:
            self._kept[self.count] = event
            if event.get("type") == "progress":
                self._progress.append(self.count)
                if len(self._progress) > MOST_PROGRESS:
                    del self._kept[self._progress.popleft()]
            self.count += 1
            self._news.notify_all()

    def end(self) -> None:
        """Note that no more events will come."""
        with self._news:
            self.ended = True
            self._news.notify_all()

    def all(self) -> list[Event]:
        """Return the events that are kept, oldest first."""
        with self._news:
            return list(self._kept.values())

    def next(self, number: int) -> tuple[int, Event] | None:
        """Wait for the event of that number, or the next one that is kept; return it with its own number.

        None where the run ended before it.
        """
        with self._news:
            self._wait_for(lambda: self.count > number or self.ended)
            while number < self.count:
                if number in self._kept:
                    return number, self._kept[number]
                number += 1
            return None

    def wait_for_end(self, timeout: float | None) -> bool:
        """Wait until no more events will come; return False where there may be more after ``timeout`` seconds."""
        with self._news:
            return self._wait_for(lambda: self.ended, timeout)

    def _wait_for(self, there: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until something is there; return False where it is not after ``timeout`` seconds.

        Raises:
            GivenUp: the thread is to wait no longer.
        """
        give_up = GIVE_UP.get()
        if give_up is None:
            return self._news.wait_for(there, timeout)
        give_up.news = self._news
        found = self._news.wait_for(lambda: there() or give_up.asked, timeout)
        if give_up.asked:
            raise GivenUp
        return found
