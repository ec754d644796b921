"""Node `reconstruction`: parts of frames to full frames, where receivers hold some modules each (`dispatch: modules`).

gather   each receiver in turn collects the full frame: group g is then on place g % L of the flow's L places. A
         collective of these receivers; a frame of which one of them lost its part is lost. Pixels that no part covers
         hold ``fill`` and are masked. Without ``fill`` they hold what gaps inside a part do: the detector's gap value,
         or NaN after arithmetic that gives floats.
virtual  nothing moves: parts are saved as they are, by an `io_hdf5` that comes next, and the master shows full frames.
"""

from dataclasses import replace
from typing import ClassVar

import numpy as np

from lima2cli.declare import Choice, NumberOrNan, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import FrameSpec
from lima2cli.kernels.masked import gap_in
from lima2cli.nodes.base import Exchange, Inputs, node
from lima2cli.nodes.mask import fitting


@node("reconstruction")
class Reconstruction(Exchange):
    """Parts of frames to full frames."""

    parts: ClassVar[bool] = True

    strategy: str = param(
        "Collect full frames, at each receiver in turn; or show them so in the master only.",
        Choice(("gather", "virtual")),
        "gather",
    )
    fill: float | None = param(
        "Value of pixels that no receiver has, `nan` in frames of floats; default: that of gaps.", NumberOrNan(), None
    )

    @property
    def gathers(self) -> bool:
        """See `Exchange.gathers`."""
        return self.strategy == "gather"

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Node.infer`."""
        spec = inputs.parts[0]
        whole = spec.whole
        if whole is None:
            help = "only flows with `dispatch: modules` have parts"
            raise NodeMisuse("edge-mismatch", "the frames are full already: there is nothing to reconstruct", (), help)
        if self.fill is not None:
            fitting(self.fill, np.dtype(spec.dtype))
        if not self.gathers:
            return inputs.spec
        mask = np.ones(whole.shape, bool)
        for part in inputs.parts:
            mask[part.place] = False if part.mask is None else part.mask
        return replace(spec, view=whole, whole=None, mask=mask if mask.any() else None)

    def filling(self, spec: FrameSpec) -> float:
        """See `Exchange.filling`."""
        hole = spec.hole if self.fill is None else self.fill
        return hole if np.dtype(spec.dtype).kind == "f" else gap_in(hole, spec.dtype)
