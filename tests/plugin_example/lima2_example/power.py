"""Node `power`: raises pixels to a power.

    out = raw ** exponent                                                                                float32

Computed in float32. Masked pixels are NaN, and so are pixels below 0 of which there is no such power. The saturation
level is not known afterwards.
"""

from typing import ClassVar

import numpy as np

from lima2cli import Array, Formula, Inputs, Number, Pixelwise, node, param


@node("power")
class Power(Pixelwise):
    """Raise pixels to a power."""

    parts: ClassVar[bool] = True

    exponent: float = param("The exponent.", Number())

    def stage(self, inputs: Inputs) -> Formula:
        """Return what is done to strips of frames, from the dtype that enters to float32."""
        return Formula(inputs.spec.dtype, "float32", make=lambda: self._strip)

    def _strip(self, raw: Array, out: Array, rows: slice) -> None:
        """Compute ``out`` for a strip (n, rows, width) of frames."""
        np.copyto(out, raw, casting="unsafe")
        np.power(out, np.float32(self.exponent), out=out)
