"""A node that failed is left out of the passes of its receiver, and so is what reads from it; all else goes on."""

from collections.abc import Mapping

from lima2cli.runtime.bound import BoundSink
from lima2cli.runtime.chain import BoundChain
from lima2cli.runtime.common import BoundCommon
from lima2cli.runtime.passes import BoundStep, Pass


def leave_out(passes: Mapping[str, Pass], name: str) -> set[str]:
    """Take a node out of all passes, and what needs it; gives their names. Not that of a sink, which still hands its
    frames on."""
    gone = {name}
    for each in passes.values():
        each.steps[:] = [kept for step in each.steps for kept in _without(step, name, gone)]
    return gone


def _without(step: BoundStep, name: str, gone: set[str]) -> list[BoundStep]:
    """What is left of a step once ``name`` is gone; adds it to those that are."""
    if isinstance(step.bound, BoundChain):
        step.bound.reducers.pop(name, None)
    if step.name == name and isinstance(step.bound, BoundSink | BoundCommon):
        gone.discard(name)
        return [BoundStep(name, step.sources, None)]
    if step.name in gone or not gone.isdisjoint((*step.sources, *step.tables)):
        gone.add(step.name)
        return []
    return [step]


def at_work(passes: Mapping[str, Pass]) -> set[str]:
    """Names of the nodes that the passes still have, reductions of fused kernels among them."""
    alive = {step.name for each in passes.values() for step in each.steps if step.bound is not None}
    for each in passes.values():
        alive.update(*(step.bound.reducers for step in each.steps if isinstance(step.bound, BoundChain)))
    return alive


def label(passes: Mapping[str, Pass], name: str) -> str:
    """A node for people: of a fused kernel all its maps."""
    steps = (step for each in passes.values() for step in each.steps)
    maps = (step.bound.maps for step in steps if step.name == name and isinstance(step.bound, BoundChain))
    return ", ".join(next(maps, (name,)))
