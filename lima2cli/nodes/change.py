"""Parameters of nodes that users change while a run goes on."""

from typing import Any

import numpy as np

from lima2cli.declare import params
from lima2cli.declare.reading import Reading
from lima2cli.diagnostics import POISON, Findings
from lima2cli.errors import FileProblem, NodeMisuse, StateError
from lima2cli.frames import FrameSpec, Spec
from lima2cli.nodes.base import Inputs, Node


def changed(node: Node, parameter: str, value: Any, inputs: Inputs, after: Spec) -> Node:
    """Return a node with another value of a parameter, as users write it; what leaves it must stay as it is, ``after``.

    Raises:
        StateError: it can't be changed, the value is wrong, or what leaves the node would not be the same.
    """
    new = with_value(node, parameter, value)
    try:
        leaves = new.infer(inputs)
    except NodeMisuse as misuse:
        raise StateError(misuse.message) from misuse
    except FileProblem as problem:
        raise StateError(str(problem)) from problem
    if not _same(leaves, after):
        raise StateError(f"with this {parameter} what leaves the node would not be the same: start another run")
    return new


def with_value(node: Node, parameter: str, value: Any) -> Node:
    """Return a node with another value of a parameter, as users write it.

    Raises:
        StateError: it can't be changed, or the value is wrong.
    """
    if parameter not in type(node).changeable:
        may = ", ".join(type(node).changeable) or "none of its parameters"
        raise StateError(f"{type(node).kind}: {parameter} can't be changed while the run goes on, {may} can")
    reading = Reading(Findings())
    read = params(type(node))[parameter].shape.read(value, (parameter,), reading)
    if read is POISON or reading.bad:
        raise StateError("; ".join(one.message for one in reading.findings) or f"{parameter} can't be {value!r}")
    values = {key: getattr(node, key) for key in params(type(node))} | {parameter: read}
    try:
        return type(node)(**values)
    except NodeMisuse as misuse:
        raise StateError(misuse.message) from misuse


def _same(one: Spec, other: Spec) -> bool:
    """Return whether frames or rows are described by the same words."""
    if not isinstance(one, FrameSpec) or not isinstance(other, FrameSpec):
        return one == other
    same = (one.mask is None) == (other.mask is None)
    if one.mask is not None and other.mask is not None:
        same = bool(np.array_equal(one.mask, other.mask))
    keys = ("dtype", "view", "detector", "saturation", "whole", "invalid", "gap", "base")
    same = same and getattr(one, "background", None) == getattr(other, "background", None)
    return same and type(one) is type(other) and all(getattr(one, key) == getattr(other, key) for key in keys)
