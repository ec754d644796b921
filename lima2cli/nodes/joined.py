"""What frames of several inputs have in common once they are paired."""

from collections.abc import Mapping
from dataclasses import replace

from lima2cli.errors import Misfit
from lima2cli.spec import FrameSpec


def joined(specs: Mapping[str, FrameSpec]) -> FrameSpec:
    """The first, masked where any is; the saturation level is that of none. Raises `Misfit` where they do not show the
    same part of the detector the same way."""
    (first, spec), *others = specs.items()
    whole = replace(spec, saturation=None)
    for name, other in others:
        if other.shape != spec.shape:
            message = f"`{first}` is {spec}, but `{name}` is {other}"
            raise Misfit("edge-mismatch", message, ("inputs", name), "joined frames have one shape")
        if (other.view, other.detector) != (spec.view, spec.detector):
            message = f"`{first}` and `{name}` do not show the same part of the detector the same way"
            raise Misfit("edge-mismatch", message, ("inputs", name), "cut, bin and turn both alike")
        whole = whole.masked(other.mask)
    return whole
