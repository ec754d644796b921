"""Node `gain`: charge of pixels that switch their gain, as those of JUNGFRAU.

A raw pixel is uint16: the two top bits choose the stage (0, 1, 3 → stage 0, 1, 2; 2: none), the low 14 are ADU.

    out = (low 14 bits - pedestal[stage]) / gain[stage]                      float32, units of 1 / gain
    out = (low 14 bits - pedestal[stage]) / gain[stage] / photon_energy      photons, where gain is ADU per keV

``pedestal`` (ADU) and ``gain`` are files (3, height, width), see `calibration`, or three numbers. A pixel without a
stage (also 0x8000, a missing packet) is NaN in that frame, and so is one whose stage has a pedestal or gain of NaN or a
gain of 0. Pixels for which that is so in stage 0 are masked in all frames. Masked pixels are NaN, those of single
frames too (invalid values). The saturation level is not known afterwards.

Computed in float32 where that holds the pedestals exactly, else in float64 and rounded once. Pixels beyond stage 0 are
few, and are computed one by one in numpy.
"""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import PHOTON_ENERGY, Either, FileReference, ListOf, Number, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, FrameSpec
from lima2cli.kernels.strips import DeviceText, Formula
from lima2cli.nodes.base import Inputs, node
from lima2cli.nodes.calibration import stages
from lima2cli.nodes.pixelwise import Pixelwise
from lima2cli.view import How

STAGES = 3
ADU = np.uint16(0x3FFF)
NO_STAGE = 0x8000
"""A pixel of no stage, which marks those whose packet is missing."""
NO_STAGE_BITS = 2

IMAGES = Either((ListOf(Number(), STAGES), FileReference()))


OF_PIXEL = (
    "({raw} >> 14) == 0 ? ({raw} - {image0}[p]) / {image1}[p] : ({raw} >> 14) == 2 ? NAN : "
    "(({raw} & 0x3FFF) - {image2}[({raw} >> 15) * {pixels} + p].x) / {image2}[({raw} >> 15) * {pixels} + p].y"
)
"""The formula of `_Charge`, for devices; the images of stages 1 and 2 lie one after the other."""


@node("gain")
class Gain(Pixelwise):
    """Turns gain-switched raw pixels into charge or photons."""

    parts: ClassVar[bool] = True

    pedestal: str | tuple[float, ...] = param("Pedestals in ADU: a file (3, height, width), or three numbers.", IMAGES)
    gain: str | tuple[float, ...] = param(
        "Gains: a file (3, height, width), or three numbers; in ADU per keV where `photon_energy` is given.", IMAGES
    )
    photon_energy: float | None = param("Energy of a photon; the output is then photons.", PHOTON_ENERGY, None)

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Node.infer`."""
        spec = inputs.spec
        if spec.dtype != "uint16":
            raise NodeMisuse("edge-mismatch", f"gain-switched pixels are uint16, these are {spec.dtype}")
        if spec.view.binning != (1, 1):
            raise NodeMisuse("edge-mismatch", "gain-switched pixels can't be binned before their gain is known")
        return super().infer(inputs)

    def stage(self, inputs: Inputs) -> Formula:
        """See `Pixelwise.stage`."""
        spec, (pedestal, divisor) = inputs.spec, self._images(inputs)
        bad, maps = np.isnan(divisor[0]), _maps(pedestal, divisor)
        return Formula(
            spec.dtype,
            "float32",
            bad=np.broadcast_to(bad, spec.shape) if bad.any() else None,
            make=_Charge,
            images=tuple(np.broadcast_to(each, (*each.shape[:-2], *spec.shape)) for each in maps),
            nan_of=(NO_STAGE,),
            c=DeviceText(OF_PIXEL, maps[0].dtype.name),
        )

    def _images(self, inputs: Inputs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pedestal and divisor of each stage, of pixels or of all (3, 1, 1); the divisor is NaN where one has none."""
        pedestal = _of_stages(self.pedestal, inputs, "pedestal", "sum")
        divisor = _of_stages(self.gain, inputs, "gain", "mean")
        unusable = np.isnan(pedestal) | (divisor == 0)
        divisor = np.where(unusable, np.nan, divisor * ((self.photon_energy or 1e3) / 1e3))
        return pedestal, divisor


def _of_stages(reference: str | tuple[float, ...], inputs: Inputs, key: str, binning: How) -> NDArray[np.float64]:
    """float64 (3, height, width) of a file, or (3, 1, 1) of a number for each stage."""
    if isinstance(reference, str):
        return stages(reference, STAGES, inputs, key, binning)
    if len(reference) != STAGES:
        raise NodeMisuse(
            "calibration-shape", f"{len(reference)} numbers, {STAGES} are needed: one for each stage", (key,)
        )
    return np.array(reference, np.float64)[:, np.newaxis, np.newaxis]


def _maps(pedestal: NDArray[np.float64], divisor: NDArray[np.float64]) -> tuple[Array, Array, Array]:
    """Return pedestal and divisor of stage 0 (height, width), and of the others (2, height, width) both as one complex
    number, so that they are fetched together; in float32 where that holds the pedestals exactly.
    """
    with np.errstate(all="ignore"):  # values beyond float32
        exact = bool(np.all((pedestal.astype(np.float32) == pedestal) | np.isnan(pedestal)))
        work = np.dtype(np.float32 if exact else np.float64)
        others = np.empty(
            np.broadcast_shapes(pedestal[1:].shape, divisor[1:].shape), np.result_type(work, np.complex64)
        )
        others.real, others.imag = pedestal[1:], divisor[1:]
        return pedestal[0].astype(work), divisor[0].astype(work), others


class _Charge:
    """Strips (n, rows, width) uint16 to float32; for the images see `_maps`, which threads share."""

    def __init__(self, pedestal: Array, divisor: Array, others: Array) -> None:
        self._pedestal, self._divisor, self._others = pedestal, divisor, others.reshape(-1)
        self._work = np.empty(0, pedestal.dtype)
        self._starts = np.array([0, 0, 0, pedestal.size])

    def __call__(self, raw: Array, out: Array, rows: slice) -> None:
        """Compute all pixels as of stage 0, then those of other stages again."""
        here = out.dtype == self._work.dtype and out.flags.c_contiguous
        work = out if here else self._scratch(raw.size).reshape(raw.shape)
        np.copyto(work, raw)
        np.subtract(work, self._pedestal[rows], out=work)
        np.divide(work, self._divisor[rows], out=work)
        other = np.flatnonzero(raw > ADU)
        if len(other):
            work.reshape(-1)[other] = self._of_others(raw, other, rows)
        if work is not out:
            np.copyto(out, work, casting="unsafe")

    def _of_others(self, raw: Array, other: NDArray[np.intp], rows: slice) -> Array:
        """Return the charge of pixels of a strip that are not of stage 0, by flat index."""
        bits, width = raw.reshape(-1)[other], raw.shape[2]
        high = bits >> 14
        pixel = other if len(raw) == 1 else other % (raw.shape[1] * width)
        index = pixel + rows.start * width + self._starts[high]
        both = self._others[index]
        charge = np.asarray(((bits & ADU) - both.real) / both.imag)
        charge[high == NO_STAGE_BITS] = np.nan
        return charge

    def _scratch(self, size: int) -> Array:
        if size > self._work.size:
            self._work = np.empty(size, self._work.dtype)
        return self._work[:size]
