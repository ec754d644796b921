"""Acquisitions are completed on disk by a thread of the control rank, one after the other, while the run goes on."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from lima2cli.runtime.acquisition import Acquisition, Outcome


class Completion:
    """``close`` writes what ends an acquisition in its directory."""

    def __init__(self, close: Callable[[Outcome, str], None]) -> None:
        self._close = close
        self._thread = ThreadPoolExecutor(1, "closing")
        self._under_way: list[tuple[Acquisition, Future[None]]] = []

    def begin(self, acquisition: Acquisition) -> None:
        """Complete an acquisition of which all receivers have reported."""
        self._under_way.append(
            (acquisition, self._thread.submit(self._close, acquisition.outcome, acquisition.directory))
        )

    @property
    def idle(self) -> bool:
        """Whether all that were begun are done."""
        return not self._under_way

    def done(self) -> Iterator[Acquisition]:
        """Those that have been completed since the last call. Raises what ``close`` raised."""
        while self._under_way and self._under_way[0][1].done():
            acquisition, future = self._under_way.pop(0)
            future.result()
            yield acquisition

    def shutdown(self) -> None:
        """Wait for what is under way."""
        self._thread.shutdown()
