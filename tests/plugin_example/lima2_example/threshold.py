"""Node `threshold`: sets low pixels to 0.

    out = raw where raw >= below, else 0

``below`` is in the units of the raw pixels. Shape and dtype stay. Masked pixels are treated like all others; NaN pixels
of single frames stay NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lima2cli.declare import Number, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, Files, FrameSpec
from lima2cli.nodes.base import Map


@dataclass(frozen=True, kw_only=True)
class Threshold(Map):
    """Sets low pixels to 0."""

    kind: ClassVar[str] = "threshold"

    below: float = param("Pixels below this value become 0.", Number(0))

    def infer(self, spec: FrameSpec, files: Files) -> FrameSpec:
        """Frames like those that come in."""
        dtype = np.dtype(spec.dtype)
        if dtype.kind in "iu" and self.below > np.iinfo(dtype).max:
            message = f"all pixels of {dtype} are below {self.below:g}"
            raise NodeMisuse("threshold-value", message, ("below",), f"at most {np.iinfo(dtype).max}")
        return spec

    def bind(self, spec: FrameSpec, files: Files) -> Callable[[Array], Array]:
        """The function of a block of frames."""

        def threshold(frames: Array) -> Array:
            out = np.array(frames)
            out[frames < self.below] = 0
            return out

        return threshold
