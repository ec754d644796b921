"""How a pixel of JUNGFRAU says its charge.

It integrates with one of three gains, and says which in the two top bits (0, 1, 3: stage 0, 1, 2):

    ADC = pedestal[stage] + photons * photon_energy * gain[stage]        14 bits, rounded to the nearest

In gain mode ``dynamic`` it takes the first stage whose ADC does not leave 0 to 16383, else the last, cut there.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STAGE_BITS = np.array((0x0000, 0x4000, 0xC000), np.uint16)
"""Of stages 0, 1, 2."""

LARGEST_ADC = 0x3FFF

FIXED_STAGE = {"dynamic": None, "forceswitchg1": 1, "forceswitchg2": 2, "fixg1": 1, "fixg2": 2, "fixg0": 0}
"""The stage that all pixels take in the gain modes of slsDetectorPackage; None: each pixel its own."""

PHOTONS = 1 << 16
"""Numbers of photons that are coded: 0 to this - 1."""


def codes(pedestal: Sequence[float], gain: Sequence[float], photon_energy: float, gain_mode: str) -> NDArray[np.uint16]:
    """What a pixel sends for 0, 1, 2… photons, (65536,) uint16.

    ``pedestal`` in ADU and ``gain`` in ADU per keV, of the three stages; ``photon_energy`` in eV.
    """
    kev = np.arange(PHOTONS) * photon_energy * 1e-3
    adc = np.rint(np.asarray(pedestal)[:, np.newaxis] + np.asarray(gain)[:, np.newaxis] * kev)
    fits = (adc >= 0) & (adc <= LARGEST_ADC)
    fixed = FIXED_STAGE[gain_mode]
    stage = np.where(fits.any(axis=0), fits.argmax(axis=0), 2) if fixed is None else np.full(PHOTONS, fixed)
    chosen = np.take_along_axis(np.clip(adc, 0, LARGEST_ADC).astype(np.uint16), stage[np.newaxis], 0)[0]
    coded: NDArray[np.uint16] = chosen | STAGE_BITS[stage]
    return coded


def photon_bits(coded: NDArray[np.uint16]) -> int:
    """Bits of the numbers of photons that are below where ``coded`` (see `codes`) stays the same, at least 1."""
    changes = np.flatnonzero(coded[1:] != coded[:-1])
    return max(1, (int(changes[-1]) + 2).bit_length() - 1) if len(changes) else 1
