"""Changes of parameters at one receiver: made ready aside, and applied between two frames."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np

from lima2cli.dataclass import dataclass
from lima2cli.errors import StateError
from lima2cli.frames import Block, Files
from lima2cli.graph.protocol import Operator
from lima2cli.messages import Change
from lima2cli.nodes.change import changed
from lima2cli.plan.ir import Step


@dataclass
class _Due:
    """A change that is applied before frame ``frame`` of a pass."""

    frame: int
    origin: str
    apply: Callable[[], None]


class Changes:
    """The changes of one receiver. ``due``: those that wait for their frame.

    origins  the pass that each node belongs to
    """

    def __init__(self, steps: Iterable[Step], origins: Mapping[str, str], files: Files) -> None:
        self._steps = {step.name: step for step in steps}
        self._origins, self._files = origins, files
        self._ready: tuple[Step, Callable[[], None]] | None = None
        self.due: list[_Due] = []

    def prepare(self, change: Change, operators: Iterable[Operator]) -> None:
        """Make ready what a change needs, such as kernels and calibrations; nothing is changed yet.

        Raises:
            StateError: it can't be done.
        """
        self._ready = None
        step = self._steps.get(change.node)
        if step is None:  # the node works on other receivers
            return
        if step.collective or step.workers is not None:
            raise StateError(f"{change.node} works together with other processes: it can't be changed meanwhile")
        given = step.given(self._files)
        new = replace(step, node=changed(step.node, change.parameter, change.value, given, step.after))
        applies = [apply for one in operators if (apply := one.rebind(new, self._files)) is not None]
        if not applies:
            raise StateError(f"{change.node} can't be changed while the run goes on")

        def apply_all() -> None:
            for apply in applies:
                apply()

        self._ready = new, apply_all

    def settle(self, frame: int | None) -> None:
        """Apply what was prepared from a frame on; None: forget it."""
        ready, self._ready = self._ready, None
        if ready is not None and frame is not None:
            step, apply = ready
            self._steps[step.name] = step
            self.due.append(_Due(frame, self._origins[step.name], apply))

    def begin(self) -> None:
        """Begin an acquisition: what was due in the one before is due at its first frame."""
        for one in self.due:
            one.frame = 0

    def apply(self, origin: str, frame: int) -> None:
        """Apply what is due in a pass at a frame."""
        for one in [one for one in self.due if one.origin == origin and one.frame <= frame]:
            self.due.remove(one)
            one.apply()

    def parts(self, origin: str, block: Block) -> list[Block]:
        """Return the parts of a block between which changes are due; the block itself where there are none."""
        frames = sorted({one.frame for one in self.due if one.origin == origin})
        cuts = sorted({*np.searchsorted(block.numbers, np.array(frames, np.uint64)).tolist()} - {0, len(block.numbers)})
        if not cuts:
            return [block]
        edges = [0, *cuts, len(block.numbers)]
        return [block.part(slice(first, last)) for first, last in pairwise(edges)]
