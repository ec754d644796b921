"""Node `threshold`: sets low pixels to 0.

    out = raw where raw >= below, else 0

``below`` is in the units of the raw pixels. Shape and dtype stay. Masked pixels keep what they hold, in frames of
floats they are NaN; NaN pixels of single frames stay NaN.
"""

import numpy as np

from lima2cli import Array, FrameSpec, Inputs, Map, NodeMisuse, Number, node, param


@node("threshold")
class Threshold(Map):
    """Set pixels below a level to zero."""

    below: float = param("Pixels below this value become 0.", Number(0))

    def apply(self, frames: Array) -> Array:
        """Return as many frames, of the same shape and dtype."""
        return np.where(frames < self.below, 0, frames)

    def infer(self, inputs: Inputs) -> FrameSpec:
        """Refuse a level that is above all pixels."""
        dtype = np.dtype(inputs.spec.dtype)
        if dtype.kind in "iu" and self.below > np.iinfo(dtype).max:
            message = f"all pixels of {dtype} are below {self.below:g}"
            raise NodeMisuse("threshold-value", message, ("below",), f"at most {np.iinfo(dtype).max}")
        return super().infer(inputs)
