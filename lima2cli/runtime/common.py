"""A saving node whose receivers write one file together: a sink, and a node that waits for the other receivers."""

from typing import cast

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.channel import Channel
from lima2cli.nodes.io_hdf5 import IoHdf5
from lima2cli.plan.records import Step
from lima2cli.runtime.arrivals import END, Arrival, Result
from lima2cli.spec import Block
from lima2cli.transport.base import Circle


class BoundCommon:
    """See `Waiting`, and `BoundSink` in `lima2cli.runtime.bound`. ``frames`` is the end of the acquisition, once known.

    After an error it saves nothing more and goes on to take part.
    """

    def __init__(
        self, step: Step, channel: Channel, directory: str, receiver: int, start_ns: int, circle: Circle
    ) -> None:
        self.saved = 0
        self.frames: int | None = None
        self._rule = channel.rule
        node = cast(IoHdf5, step.node)
        self._writer = node.open_common(channel, directory, receiver, start_ns, circle)

    def stage(self, block: Block, received_ns: int) -> tuple[Block, NDArray[np.int64]]:
        return block, self._writer.stage(block)

    def commit(self, staged: NDArray[np.int64]) -> None:
        self.saved += self._writer.commit(staged)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def arrive(self, source: str, what: Arrival) -> None:
        """How far the frames are; they themselves came before."""
        what.done()
        if what.last < END:
            self._writer.advance(what.last + 1)
        else:
            self._writer.finish(self._rule.selected(self.frames) or 0)

    def poll(self) -> Result | None:
        """See `Waiting`; OSError once."""
        self._writer.poll()
        return None

    @property
    def idle(self) -> bool:
        """See `Waiting`."""
        return self._writer.done

    @property
    def full(self) -> bool:
        """See `Waiting`."""
        return self._writer.full
