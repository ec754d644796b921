"""Node `background_sub`: subtracts a background.

    out = raw - image

``image`` is a number or a file (see `calibration`), in the units of the raw pixels. Result: float32, also for float64
frames; or ``keep``, the input's dtype, where integers are rounded half to even, then clipped to their range. A NaN of
the background masks the pixel. Of masked pixels nothing is computed: they are NaN, with ``keep`` in integers what they
held (a warning where a valid result may come out as a value that marks pixels without a measurement). Saturated pixels
are computed like any other; the saturation level moves with a background that is one number, and is unknown after an
image.
"""

from typing import Any, ClassVar

import numpy as np

from lima2cli.declare import param
from lima2cli.kernels.strips import Affine
from lima2cli.nodes.base import Inputs, node
from lima2cli.nodes.calibration import IMAGE, calibration
from lima2cli.nodes.pixelwise import RESULT, Pixelwise, target


@node("background_sub")
class BackgroundSub(Pixelwise):
    """Subtracts a background."""

    changeable: ClassVar[tuple[str, ...]] = ("image",)

    parts: ClassVar[bool] = True

    image: Any = param("The background: a number, or a file.", IMAGE)
    dtype: str = param(
        "Type of the pixels of the result; keep = as the input: rounded half to even, clipped.", RESULT, "float32"
    )

    def stage(self, inputs: Inputs) -> Affine:
        """See `Pixelwise.stage`."""
        spec, image = inputs.spec, calibration(self.image, inputs, "image", "sum")
        nan = np.isnan(image) if isinstance(image, np.ndarray) else None
        bad = nan if nan is not None and nan.any() else None
        return Affine(source=spec.dtype, target=target(self.dtype, spec), offset=image, bad=bad)
