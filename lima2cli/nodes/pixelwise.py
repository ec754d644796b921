"""Maps that compute each pixel from the same pixel of the raw frame: one description, one kernel.

The description, a `Stage`, is pure, so that a compiler can put neighbours together (see `chain`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lima2cli.declare import Choice
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, FrameSpec, Invalid
from lima2cli.kernels.chain import Chain, settle
from lima2cli.kernels.masked import collision, may_collide, valid_range
from lima2cli.kernels.strips import Affine, Stage
from lima2cli.nodes.base import Inputs, Map

RESULT = Choice(("float32", "keep"))
"""Shape of the parameter ``dtype``: float32, or the dtype of the input."""


class Pixelwise(Map):
    """A map that does the same to frames as its `Stage` says, whose ``bad`` pixels are masked from there on."""

    def stage(self, inputs: Inputs) -> Stage:
        """Return what is done to the frames; ``bad`` are pixels that it masks itself. Raises as `infer`."""
        raise NotImplementedError

    def in_strips(self, inputs: int) -> bool:
        """See `Map.in_strips`."""
        return True

    def stage_of(self, inputs: Inputs) -> Stage:
        """See `Map.stage_of`: with all that is masked, before and by this map."""
        return self.stage(inputs).of(inputs.spec)

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Node.infer`. The saturation goes through the same arithmetic where it is one value for all pixels."""
        spec, stage = inputs.spec, self.stage_of(inputs)
        return replace(
            spec,
            dtype=stage.target,
            saturation=level(stage, spec.saturation),
            mask=stage.bad,
            invalid=stage.leaves,
            holds=spec.holds if stage.holds is None else stage.holds,
        )

    def bind(self, inputs: Inputs) -> Callable[[Array], Array]:
        """See `Map.bind`."""
        return Chain(settle([self.stage_of(inputs)], inputs.spec.dtype, *inputs.spec.shape))

    def warnings(self, inputs: Inputs) -> Sequence[NodeMisuse]:
        """See `Node.warnings`: what could be mistaken for a measurement, or for none."""
        return doubtful(self.stage_of(inputs))


def level(stage: Stage, saturation: float | None) -> float | None:
    """Return what a pixel of value ``saturation`` becomes; None where that differs between pixels or is unknown."""
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
    return float(Chain(settle([stage.unmasked()], stage.source, 1, 1))(pixel)[0, 0, 0])


def target(dtype: str, spec: FrameSpec) -> str:
    """Return the dtype of the result, from the parameter declared as `RESULT`."""
    return spec.dtype if dtype == "keep" else dtype


def doubtful(stage: Stage) -> Sequence[NodeMisuse]:
    """Warnings: ``invalid-collision`` where valid results may be values that mean that nothing was measured."""
    rule = stage.leaves
    if np.dtype(stage.target).kind == "f" or stage.fill is not None or rule == Invalid():
        return ()
    low, high = reach(stage) if isinstance(stage, Affine) else (-math.inf, math.inf)
    return [collision(rule, ("dtype",))] if may_collide(rule, stage.target, low, high) else ()


def reach(stage: Affine) -> tuple[float, float]:
    """Return the least and the largest that valid pixels of integers can become, rounded."""
    if np.dtype(stage.source).kind == "f":
        return -math.inf, math.inf
    low, high = valid_range(stage.invalid, stage.source)
    if stage.copies:
        return low, high
    offset, divisor = np.asarray(stage.offset, np.float64), np.asarray(stage.divisor, np.float64)
    good = np.ones((), np.bool_) if stage.bad is None else ~stage.bad
    with np.errstate(all="ignore"):
        ends = np.stack(np.broadcast_arrays((low - offset) / divisor, (high - offset) / divisor, good))
    first, last = (end[ends[2] > 0] for end in ends[:2])
    if not len(first):
        return 0.0, 0.0
    return float(np.rint(min(first.min(), last.min()))), float(np.rint(max(first.max(), last.max())))
