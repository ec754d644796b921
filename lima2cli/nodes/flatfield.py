"""Node `flatfield`: divides by a flat field.

    out = raw / (image - background)

``image`` and ``background`` are numbers or files (see `calibration`); the background is subtracted from the flat only,
for the frames there is `background_sub`. The flat is not normalised: the result has the units of raw over flat.
Result: float32, also for float64 frames; or ``keep``, the input's dtype, where integers are rounded half to even, then
clipped to their range. Where the difference is 0 or NaN the pixel is masked. Of masked pixels nothing is computed: they
are NaN, with ``keep`` in integers what they held (a warning where a valid result may come out as a value that marks
pixels without a measurement). Saturated pixels are computed like any other; the saturation level moves with a flat that
is one number, and is unknown after an image.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from lima2cli.declare import param
from lima2cli.errors import NodeMisuse
from lima2cli.kernels.strips import Affine
from lima2cli.nodes.base import Inputs, node
from lima2cli.nodes.calibration import IMAGE, calibration, mostly_masked
from lima2cli.nodes.pixelwise import RESULT, Pixelwise, target


@node("flatfield")
class Flatfield(Pixelwise):
    """Divides by a flat field."""

    changeable: ClassVar[tuple[str, ...]] = ("image", "background")

    parts: ClassVar[bool] = True

    image: Any = param("The flat field: a number, or a file; its zeros and NaN mask the pixel.", IMAGE)
    background: Any = param("Subtracted from the flat field: a number, or a file.", IMAGE, None)
    dtype: str = param(
        "Type of the pixels of the result; keep = as the input: rounded half to even, clipped.", RESULT, "float32"
    )

    def stage(self, inputs: Inputs) -> Affine:
        """See `Pixelwise.stage`."""
        spec, flat = inputs.spec, calibration(self.image, inputs, "image", "mean")
        if self.background is not None:
            with np.errstate(invalid="ignore"):  # inf - inf is a NaN like any other
                flat = flat - calibration(self.background, inputs, "background", "mean")
        result = target(self.dtype, spec)
        if not isinstance(flat, np.ndarray):
            if flat == 0:
                raise NodeMisuse("calibration-value", "the flat field is 0 everywhere", ("image",))
            return Affine(source=spec.dtype, target=result, divisor=flat)
        bad = (flat == 0) | np.isnan(flat)
        return Affine(spec.dtype, result, divisor=flat, bad=bad if bad.any() else None)

    def warnings(self, inputs: Inputs) -> Sequence[NodeMisuse]:
        """See `Node.warnings`: a flat field that masks most of the pixels."""
        what = "zeros and NaN of a flat field mask the pixel"
        return [*mostly_masked(self.stage(inputs).bad, what, "image"), *super().warnings(inputs)]
