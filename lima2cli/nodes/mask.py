"""Node `mask`: marks and fills defective pixels.

    out = fill where image != 0, else raw

``image`` is a number or a file (see `calibration`), 0 = good, as the pixel_mask of NeXus; NaN counts as bad, and of a
stack of images a pixel is bad if any is. The dtype stays. ``fill`` goes to all pixels that are masked so far: those of
this image, those masked before (gaps, zeros of a flat), and those of single frames that hold an invalid value or NaN.
It is in the units of the raw pixels and must fit their dtype; ``nan`` is possible in float frames only. Saturated
pixels stay.

Pixels of single frames are marked only by their values: from here on they count, with the value ``fill``, unless
that is NaN or an invalid value itself. A warning says so.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from lima2cli.declare import NumberOrNan, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Invalid
from lima2cli.kernels.masked import carried, words
from lima2cli.kernels.strips import Affine
from lima2cli.nodes.base import Inputs, node
from lima2cli.nodes.calibration import IMAGE, bad_pixels, mostly_masked
from lima2cli.nodes.pixelwise import Pixelwise


@node("mask")
class Mask(Pixelwise):
    """Marks and fills defective pixels."""

    parts: ClassVar[bool] = True

    image: Any = param("The defective pixels: a number, or a file; 0 = good.", IMAGE)
    fill: float = param("Value stored in all masked pixels; `nan` in frames of floats.", NumberOrNan(), 0)

    def stage(self, inputs: Inputs) -> Affine:
        """See `Pixelwise.stage`."""
        dtype = inputs.spec.dtype
        fill = fitting(self.fill, np.dtype(dtype))
        return Affine(dtype, dtype, bad=bad_pixels(self.image, inputs, "image"), fill=fill)

    def warnings(self, inputs: Inputs) -> Sequence[NodeMisuse]:
        """See `Node.warnings`: a mask that was probably meant the other way round; filled pixels that then count."""
        found = list(mostly_masked(bad_pixels(self.image, inputs, "image"), "in a mask 0 means good", "image"))
        spec, rule = inputs.spec, inputs.spec.invalid
        if carried(rule, spec.dtype, spec.dtype) != Invalid() and self.stage_of(inputs).leaves == Invalid():
            message = (
                f"pixels of single frames that hold {words(rule)} become {self.fill:g}, and count as measurements from "
                "here on"
            )
            help = (
                "`fill: nan` keeps them distinct" if spec.dtype[0] == "f" else f"`fill: {words(rule).split(', ')[0]}`"
            )
            found.append(NodeMisuse("invalid-unmarked", message, ("fill",), help))
        return found


def fitting(value: float, dtype: np.dtype[Any]) -> float:
    """Return the fill value. Raises `NodeMisuse` where the dtype can't hold it."""
    if dtype.kind == "f":
        if math.isfinite(value) and abs(value) > float(np.finfo(dtype).max):
            raise NodeMisuse("mask-fill", f"{value} is beyond the range of {dtype}", ("fill",))
        return value
    if not math.isfinite(value):
        raise NodeMisuse("mask-fill", f"{dtype} has no {value}", ("fill",), "nan is possible in float frames only")
    limits = np.iinfo(dtype)
    if value != int(value) or not limits.min <= value <= limits.max:
        raise NodeMisuse(
            "mask-fill", f"{value:g} is not a valid {dtype}", ("fill",), f"from {limits.min} to {limits.max}"
        )
    return int(value)
