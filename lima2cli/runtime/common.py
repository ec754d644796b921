"""A saving node whose receivers write one file together: a sink, and a node that waits for the other receivers."""

from typing import TYPE_CHECKING, Any, cast

from lima2cli.artefacts.channel import Channel
from lima2cli.nodes.io_hdf5 import IoHdf5
from lima2cli.plan.records import Step
from lima2cli.runtime.arrivals import END, Arrival, Result
from lima2cli.runtime.writing import Writing
from lima2cli.transport.base import Circle

if TYPE_CHECKING:
    from lima2cli.artefacts.common_writer import CommonWriter


class BoundCommon(Writing):
    """See `Waiting`, and `BoundSink` in `lima2cli.runtime.bound`. ``frames`` is the end of the acquisition, once known.

    After an error it saves nothing more and goes on to take part.
    """

    _writer: "CommonWriter | None"

    def __init__(self, step: Step, channel: Channel, receiver: int, circle: Circle) -> None:
        super().__init__()
        self.frames: int | None = None
        self._node, self._channel, self._receiver, self._circle = cast(IoHdf5, step.node), channel, receiver, circle
        self._rule = channel.rule
        self._directory = ""

    def ready(self, directory: str) -> None:
        """See `BoundSink.ready`. The file itself, which they make together, holds the time of the start."""
        self._directory = directory

    def begin(self, start_ns: int) -> None:
        """See `BoundSink.begin`."""
        self.begin_count()
        self.frames = None
        self._writer = self._node.open_common(self._channel, self._directory, self._receiver, start_ns, self._circle)

    def arrive(self, source: str, what: Arrival) -> None:
        """How far the frames are; they themselves came before."""
        what.done()
        if self._writer is None:
            return
        if what.last < END:
            self._writer.advance(what.last + 1)
        else:
            self._writer.finish(self._rule.selected(self.frames) or 0)

    def commit(self, staged: Any) -> None:
        """See `Writer.commit`; they are saved when their round is in the file."""
        assert self._writer is not None
        self._writer.commit(staged)

    def flush(self) -> None:
        """See `Writer.flush`."""
        if self._writer is not None:
            self._writer.flush()
            self.saved = self._writer.saved

    def close(self) -> None:
        """End the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            self.saved = writer.saved

    def poll(self) -> Result | None:
        """See `Waiting`; OSError once."""
        if self._writer is not None:
            self._writer.poll()
        return None

    @property
    def idle(self) -> bool:
        """See `Waiting`."""
        return self._writer is None or self._writer.done

    @property
    def full(self) -> bool:
        """See `Waiting`."""
        return self._writer is not None and self._writer.full
