"""What all sinks have in common, while they are at work on one receiver."""

from typing import Any

from lima2cli.nodes.base import Writer
from lima2cli.spec import Block


class Writing:
    """A writer for each acquisition; ``saved`` counts the frames of the one that is on, as of the last flush: those
    that are in the files, whatever comes."""

    def __init__(self) -> None:
        self.saved = self._committed = 0
        self._writer: Writer | None = None

    def stage(self, block: Block, received_ns: int) -> tuple[Block, Any]:
        """See `Writer.stage`; the block goes on as it is."""
        assert self._writer is not None
        return block, self._writer.stage(block)

    def commit(self, staged: Any) -> None:
        """See `Writer.commit`. A writer that fails is used no more, but to be closed."""
        assert self._writer is not None
        committed, self._committed = self._committed, self.saved  # should this fail
        self._committed = committed + self._writer.commit(staged)

    def flush(self) -> None:
        """See `Writer.flush`."""
        if self._writer is not None:
            committed, self._committed = self._committed, self.saved
            self._writer.flush()
            self.saved = self._committed = committed

    def close(self) -> None:
        """End the files of this acquisition, if it has any."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            self.saved = self._committed

    def begin_count(self) -> None:
        """An acquisition begins."""
        self.saved = self._committed = 0
