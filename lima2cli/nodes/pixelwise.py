"""Maps that compute each pixel from the same pixel of the raw frame: one description, one kernel.

The description, a `Stage`, is pure, so that a compiler can put neighbours together (see `chain`).
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lima2cli.declare import Choice
from lima2cli.nodes.base import Map
from lima2cli.nodes.chain import Chain, settle
from lima2cli.nodes.stages import Affine, Stage
from lima2cli.spec import Array, Files, FrameSpec

RESULT = Choice(("float32", "keep"))
"""Shape of the parameter ``dtype``: float32, or the dtype of the input."""


class Pixelwise(Map):
    """A map that does the same to frames as its `Stage` says, whose ``bad`` pixels are masked from there on."""

    def stage(self, spec: FrameSpec, files: Files) -> Stage:
        """What is done to frames of ``spec``. Raises as `infer`."""
        raise NotImplementedError

    def in_strips(self, inputs: int) -> bool:
        """See `Node.in_strips`."""
        return True

    def infer(self, spec: FrameSpec, files: Files) -> FrameSpec:
        """See `Node.infer`. The saturation goes through the same arithmetic where it is one value for all pixels."""
        stage = self.stage(spec, files)
        return replace(spec, dtype=stage.target, saturation=level(stage, spec.saturation)).masked(stage.bad)

    def bind(self, spec: FrameSpec, files: Files) -> Callable[[Array], Array]:
        """See `Map.bind`."""
        return Chain(settle([self.stage(spec, files)], spec.dtype, *spec.shape))


def level(stage: Stage, saturation: float | None) -> float | None:
    """What a pixel of value ``saturation`` becomes; None where that differs from pixel to pixel or is not known."""
    if not isinstance(stage, Affine):
        return None
    if saturation is None or stage.copies:
        return saturation
    if isinstance(stage.offset, np.ndarray) or isinstance(stage.divisor, np.ndarray) or stage.divisor < 0:
        return None
    source = np.dtype(stage.source)
    if source.kind != "f":
        saturation = math.ceil(saturation)
        if not np.iinfo(source).min <= saturation <= np.iinfo(source).max:
            return None
    pixel = np.full((1, 1, 1), saturation, source)
    return float(Chain(settle([replace(stage, bad=None)], stage.source, 1, 1))(pixel)[0, 0, 0])


def target(dtype: str, spec: FrameSpec) -> str:
    """The dtype of the result, from the parameter declared as `RESULT`."""
    return spec.dtype if dtype == "keep" else dtype


def hole(dtype: str) -> float:
    """What is stored in a pixel that has no value: NaN, or 0 in integers."""
    return math.nan if np.dtype(dtype).kind == "f" else 0.0
