"""Which frames of a source are due at a receiver: what a node that waits for several sources has to wait for."""

from collections.abc import Mapping
from dataclasses import replace

from lima2cli.nodes.base import Reduce
from lima2cli.plan.numbering import after, of_flow
from lima2cli.plan.records import Numbering
from lima2cli.program.records import ReceiverProgram
from lima2cli.runtime.arrivals import END


class Due:
    """The frames of one numbering, and those of them that are at one receiver."""

    def __init__(self, numbering: Numbering, receiver: int) -> None:
        self._rule, self._selected, self._window = numbering.rule, numbering.selected, numbering.window
        everywhere = numbering.parts or numbering.everywhere
        self._here = [everywhere or numbering.receivers[n] == receiver for n in range(self._rule.buffers)]

    def after(self, last: int) -> int:
        """The first of them with a number above ``last``; END if there is none."""
        rule = self._rule
        index = rule.before(last + 1)
        group = rule.group(index)
        ahead = next((n for n in range(rule.buffers) if self._here[rule.turn(group + n)[0]]), None)
        if ahead is None:
            return END
        if ahead:
            index = (group + ahead) * rule.blocks
        return END if self._selected is not None and index >= self._selected else rule.frame(index)

    def reached(self, last: int, origin: "Due") -> int:
        """Up to where they have come when the frames of ``origin`` that they are made of have come up to ``last``.

        A frame that is made of several has the number of the first, and comes with the last. -1 where none has.
        """
        if last == END or self._window == origin._window:
            return last
        return max(-1, last - (self._rule.step - origin._rule.step)) if self._window else -1


def due_frames(program: ReceiverProgram) -> Mapping[str, Due]:
    """By flow and node."""
    due = {flow.gdt.flow: Due(of_flow([flow.gdt]), program.receiver) for flow in program.flows}
    for step in program.steps:
        together = bool(step.circle) and isinstance(step.node, Reduce)  # whose rows all receivers of the circle get
        due[step.name] = Due(replace(after(step), everywhere=together), program.receiver)
    return due
