"""Intensity correlation of the sparse frames that xpcs.yaml saves: python xpcs_g2.py [RUN DIRECTORY].

g2(t) = <I(t') I(t' + t)> / (<I(t')> <I(t' + t)>), averaged over frames and pixels, by the multi-tau scheme: 16 delays
of single frames, then 8 each of frames summed in pairs, fours, … (Schaetzel, Drewel, Stimac, J. Mod. Opt. 35, 711).
"""

import sys
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401
import numpy as np


def frames_of(master: Path) -> np.ndarray:
    """Return the frames of a sparse channel, float32 (frames, pixels)."""
    with h5py.File(master) as file:
        data = file["entry_0000/measurement/data"]
        pointers, index, intensity = (data[name][()] for name in ("frame_ptr", "index", "intensity"))
    rows = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers).astype(int))
    dense = np.zeros((len(pointers) - 1, int(index.max()) + 1), np.float32)
    dense[rows, index] = intensity
    return dense


def multi_tau(frames: np.ndarray, channels: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Return delays, in frames, and g2 of frames (n, pixels)."""
    delays, g2, step = [], [], 1
    while len(frames) > 2 * channels:
        for delay in range(1 if step == 1 else channels // 2, channels):
            early, late = frames[:-delay], frames[delay:]
            products = np.vdot(early, late) / early.size
            delays.append(delay * step)
            g2.append(products / (early.mean(dtype=float) * late.mean(dtype=float)))
        even = frames[: len(frames) // 2 * 2]
        frames, step = even[::2] + even[1::2], 2 * step
    return np.array(delays), np.array(g2)


def main() -> None:
    """Print delays and g2 of a run."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/latest")
    delays, g2 = multi_tau(frames_of(run / "xpcs_save_master.h5"))
    for delay, value in zip(delays, g2, strict=True):
        print(f"{delay:6d} {value:8.4f}")


if __name__ == "__main__":
    main()
