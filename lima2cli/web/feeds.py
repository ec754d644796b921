"""Events of runs, sent to any number of listeners in the loop of the server: none holds up the run, or another."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from lima2cli.drive import Run

Event = dict[str, Any]

MOST_KEPT = 200
"""Events, other than of progress, that a listener gets who comes later."""

MOST_WAITING = 100
"""Events that a listener has not taken yet; beyond, reports of progress are left out for it."""

QUIET_S = 10.0
"""Seconds without an event after which a listener is given None: whoever has gone is noticed then."""


class Feed:
    """The events of one run: a thread takes them, the loop hands them on."""

    def __init__(self, run: Run, loop: asyncio.AbstractEventLoop) -> None:
        self.over = False
        self._run, self._loop = run, loop
        self._past: deque[Event] = deque(maxlen=MOST_KEPT)
        self._progress: Event | None = None
        self._queues: set[asyncio.Queue[Event | None]] = set()
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        for event in self._run.follow():
            self._post(event)
        self._post(None)

    def _post(self, event: Event | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._give, event)

    def _give(self, event: Event | None) -> None:
        if event is None:
            self.over = True
        elif event["type"] == "progress":
            self._progress = event
        else:
            self._past.append(event)
        for queue in self._queues:
            if event is None or event["type"] != "progress" or queue.qsize() < MOST_WAITING:
                queue.put_nowait(event)

    async def listen(self) -> AsyncIterator[Event | None]:
        """Yield events to the end of the run, the past ones first; None where there is none for a while."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        for event in (*self._past, *([] if self._progress is None else [self._progress])):
            queue.put_nowait(event)
        if self.over:
            queue.put_nowait(None)
        self._queues.add(queue)
        try:
            while True:
                try:
                    async with asyncio.timeout(QUIET_S):
                        news = await queue.get()
                except TimeoutError:
                    yield None
                    continue
                if news is None:
                    return
                yield news
        finally:
            self._queues.discard(queue)


class Feeds:
    """The feeds of all runs that somebody listens to."""

    def __init__(self) -> None:
        self._feeds: dict[int, Feed] = {}

    def of(self, run: Run) -> Feed:
        """Return the feed of a run. To be called in the loop."""
        self._feeds = {key: feed for key, feed in self._feeds.items() if not feed.over}
        if id(run) not in self._feeds:
            self._feeds[id(run)] = Feed(run, asyncio.get_running_loop())
        return self._feeds[id(run)]
