"""What the nodes of a receiver have to tell: frames that they wrote, gave up or did not let pass, and of workers."""

from lima2cli.runtime.bound import BoundTransform
from lima2cli.runtime.delegation import Delegation
from lima2cli.runtime.pairing import BoundJoin, BoundSelect
from lima2cli.runtime.passes import Passes


class NodeCounts:
    """Counts by node name, of the acquisition that is processed; those of nodes that failed stay."""

    def __init__(self, bound: Passes) -> None:
        steps = [step for each in bound.passes.values() for step in each.steps]
        self._ends = dict(bound.ends)
        self._transforms = {step.name: step.bound for step in steps if isinstance(step.bound, BoundTransform)}
        self._delegations = {name: one for name, one in bound.waiting.items() if isinstance(one, Delegation)}
        self._joins = {name: one for name, one in bound.paired.items() if isinstance(one, BoundJoin)}
        self._selects = {name: one for name, one in bound.paired.items() if isinstance(one, BoundSelect)}

    @property
    def saved(self) -> dict[str, int]:
        """Frames and rows that each sink and table has written."""
        return {name: bound.saved for name, bound in self._ends.items()}

    @property
    def dropped(self) -> dict[str, list[tuple[int, int]]]:
        """(first, last) numbers of consecutive frames that each transform has given up, or no join could pair."""
        nodes: dict[str, BoundTransform | BoundJoin | Delegation]
        nodes = {**self._transforms, **self._delegations, **self._joins}
        return {name: bound.dropped for name, bound in nodes.items()}

    @property
    def beside(self) -> dict[str, int]:
        """Frames that came to each join and are of one of its flows only."""
        return {name: bound.beside for name, bound in self._joins.items()}

    @property
    def vetoed(self) -> dict[str, int]:
        """Frames that did not pass each selection."""
        return {name: bound.vetoed for name, bound in self._selects.items()}

    def warnings(self) -> list[str]:
        """What users should know of code of theirs, since the last call."""
        nodes: list[BoundTransform | Delegation] = [*self._transforms.values(), *self._delegations.values()]
        told = [text for each in nodes for text in each.warnings]
        for each in nodes:
            each.warnings.clear()
        return told

    def silent(self) -> list[int]:
        """Ranks of workers that did not reply in time, since the last call."""
        told = [rank for each in self._delegations.values() for rank in each.silent]
        for each in self._delegations.values():
            each.silent.clear()
        return told
