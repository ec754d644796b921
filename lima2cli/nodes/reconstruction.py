"""Node `reconstruction`: parts of frames to full frames, where receivers hold some modules each (`dispatch: modules`).

gather   each receiver in turn collects the full frame: group g is then on place g % L of the flow's L places. A
         collective of these receivers; a frame of which one of them lost its part is lost. Pixels that no part covers
         hold ``fill`` and are masked. Without ``fill`` they hold what gaps inside a part do: the detector's gap value,
         or NaN after arithmetic that gives floats.
virtual  nothing moves: parts are saved as they are, by an `io_hdf5` that comes next, and the master shows full frames.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lima2cli.declare import Choice, NumberOrNan, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import FrameSpec
from lima2cli.kernels.masked import gap_in
from lima2cli.nodes.base import Gather, node
from lima2cli.nodes.mask import fitting


@node("reconstruction")
class Reconstruction(Gather):
    """Parts of frames to full frames."""

    strategy: str = param(
        "Collect full frames, at each receiver in turn; or show them so in the master only.",
        Choice(("gather", "virtual")),
        "gather",
    )
    fill: float | None = param(
        "Of pixels that no receiver holds, `nan` in frames of floats; default: as gaps.", NumberOrNan(), None
    )

    def infer_parts(self, specs: Sequence[FrameSpec]) -> FrameSpec:
        """See `Gather`."""
        whole = specs[0].whole
        if whole is None:
            help = "only flows with `dispatch: modules` have parts"
            raise NodeMisuse("edge-mismatch", "the frames are full already: there is nothing to reconstruct", (), help)
        if self.fill is not None:
            fitting(self.fill, np.dtype(specs[0].dtype))
        mask = np.ones(whole.shape, bool)
        for spec in specs:
            mask[spec.place] = False if spec.mask is None else spec.mask
        return replace(specs[0], view=whole, whole=None, mask=mask if mask.any() else None)

    def filling(self, spec: FrameSpec) -> float:
        """See `Gather`."""
        hole = spec.hole if self.fill is None else self.fill
        return hole if np.dtype(spec.dtype).kind == "f" else gap_in(hole, spec.dtype)
