"""Frames that users look at while a run goes on: one of each flow or node that was asked for, and nothing else.

Nothing is done, and nothing kept, while nobody looks.
"""

from collections.abc import Iterable

import numpy as np

from lima2cli.errors import StreamProblem
from lima2cli.frames import Array, Block, SparseBlock, SparseSpec, dense_image
from lima2cli.messages import Tapped
from lima2cli.plan.ir import Step


class Taps:
    """The frames that were asked for at one receiver.

    wanted   flows and nodes, each until there is a frame of it
    """

    def __init__(self, steps: Iterable[Step]) -> None:
        self.wanted: set[str] = set()
        self._detectors = {step.name: step.after.detector for step in steps if isinstance(step.after, SparseSpec)}
        self._staged: list[Tapped] = []
        self._taken: list[Tapped] = []

    def ask(self, name: str) -> None:
        """Ask for the next frame of a flow or node."""
        self.wanted.add(name)

    def stage(self, name: str, block: Block, frame: Array | None = None) -> None:
        """Stage the last frame of a block: ``frame`` (height, width), or a copy of what is in the block."""
        if len(block.numbers):
            try:
                frame = self._last(name, block) if frame is None else frame
            except StreamProblem:  # a frame that no node unpacks, so that it is not known yet to be damaged
                return
            self._staged.append(Tapped(name, int(block.numbers[-1]), int(block.times[-1]), frame))

    def discard(self) -> None:
        """Discard what was staged: what it was copied from may have been torn."""
        self._staged.clear()

    def keep(self) -> None:
        """Keep what was staged."""
        self._taken += self._staged
        self.wanted.difference_update(one.node for one in self._staged)
        self._staged.clear()

    def taken(self) -> list[Tapped]:
        """Return what was kept since the last call."""
        taken = self._taken.copy()
        self._taken.clear()
        return taken

    def _last(self, name: str, block: Block) -> Array:
        """Return a copy of the last frame (height, width) of a block; of sparse ones the whole detector image."""
        if not isinstance(block, SparseBlock):
            return np.array(block.frames[-1], order="C")
        width, height = self._detectors[name]
        last = slice(int(block.frame_ptr[-2]), int(block.frame_ptr[-1]))
        return dense_image((height, width), block.index[last], block.frames[last])
