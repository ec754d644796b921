"""Background of frames: mean and spread about the beam, ring by ring, or about each pixel.

radial   Pixels are in rings about the direct beam. rho is the distance of the centre of a pixel from it, in units of
         the shorter side of a pixel (of a bin, where frames are binned); ring r has r <= rho < r + 1. Mean
         and standard deviation (the population's) of a ring are those of its pixels after clipping: up to `CYCLES`
         times pixels further from the mean than `CLIP` standard deviations are left out, and both are computed again,
         from those that were not. That is the sigma clipping of pyFAI's `sigma_clip`, `sparsify` and peak finder, with
         their numbers of cycles and deviations, over pixels that are not split.
local    Mean and standard deviation of the pixels in a square of 3 x 3 patches about a pixel, but for the patch in the
         middle, whose centre it is. Nothing is clipped.

Pixels that hold no measurement count in neither: those of the static mask, NaN, invalid values. A ring, or a square,
without any pixel that counts has NaN.
"""

import numpy as np
from numpy.typing import NDArray

from lima2cli.frames import Array, Experiment
from lima2cli.kernels.strips import TILE_PIXELS
from lima2cli.view import View

CYCLES, CLIP = 5, 5.0
"""Most times that pixels are left out, and the standard deviations beyond which they are."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def rings(shown: View, known: Experiment) -> NDArray[np.int32]:
    """Return the ring of each pixel of frames that show the sensor so; there is a beam centre."""
    assert known.beam_center is not None
    pitch_x, pitch_y = known.pixel_size or (1.0, 1.0)
    (width, height), (x, y), area = shown.bins, shown.binning, shown.area
    side = min(pitch_x * x, pitch_y * y)
    columns = (area.x + (np.arange(width) + 0.5) * x - 0.5 - known.beam_center[0]) * pitch_x / side
    rows = (area.y + (np.arange(height) + 0.5) * y - 0.5 - known.beam_center[1]) * pitch_y / side
    return np.ascontiguousarray(shown.turn(np.hypot(columns, rows[:, np.newaxis]).astype(np.int32)))


class RadialBackground:
    """Mean and standard deviation of the rings of frames.

    ring  (height, width), see `rings`;  good  bool (height, width), pixels of the static mask are False
    """

    def __init__(self, ring: NDArray[np.int32], good: Bools) -> None:
        self.count = int(ring.max()) + 1
        pixels = np.flatnonzero(good)
        flat = ring.reshape(-1)[pixels]
        self._order = pixels[np.argsort(flat, kind="stable")]
        self._present, self._ring, self._sizes = np.unique(
            ring.reshape(-1)[self._order], return_inverse=True, return_counts=True
        )

    def __call__(self, frames: Array, valid: Bools | None) -> tuple[Floats, Floats]:
        """Return mean and standard deviation, each (n, rings), of frames (n, height, width).

        valid  bool of the same shape, pixels that count; None = all that are good
        """
        flat = frames.reshape(len(frames), -1)
        means, sigmas = (np.full((len(frames), self.count), np.nan) for _ in range(2))
        if not len(self._present):
            return means, sigmas
        with np.errstate(all="ignore"):  # 0 / 0; inf - inf
            for i, frame in enumerate(flat):
                values = frame[self._order].astype(np.float64)
                kept = None if valid is None else valid.reshape(len(frames), -1)[i][self._order]
                mean, sigma = self._clipped(values, kept)
                means[i, self._present], sigmas[i, self._present] = mean, sigma
        return means, sigmas

    def _clipped(self, values: Floats, kept: Bools | None) -> tuple[Floats, Floats]:
        """Return both of the rings that are there; ``values`` (pixels,) are in the order of the rings."""
        ring, sizes, changed = self._ring, self._sizes, np.arange(len(self._sizes))
        if kept is not None and not kept.all():
            values, ring = values[kept], ring[kept]
            sizes = np.bincount(ring, minlength=len(changed))
        mean, sigma = np.empty(len(changed)), np.empty(len(changed))
        for cycle in range(CYCLES + 1):
            mean[changed] = _sums(values, sizes) / sizes
            distance = values - np.repeat(mean[changed], sizes)
            sigma[changed] = np.sqrt(_sums(np.square(distance), sizes) / sizes)
            np.abs(distance, out=distance)
            far = np.flatnonzero(distance > np.repeat(CLIP * sigma[changed], sizes))
            if cycle == CYCLES or not len(far):
                break
            lost = np.zeros(len(changed), bool)
            lost[ring[far]] = True
            again = np.repeat(lost, sizes)
            again[far] = False
            values, ring, changed = values[again], (np.cumsum(lost) - 1)[ring[again]], changed[lost]
            sizes = np.bincount(ring, minlength=len(changed))
        return mean, sigma


def _sums(values: Floats, sizes: NDArray[np.intp]) -> Floats:
    """Return the sums of groups of ``values``; 0 of an empty one."""
    sums = np.zeros(len(sizes))
    some = sizes > 0
    if some.any():
        sums[some] = np.add.reduceat(values, (np.cumsum(sizes) - sizes)[some])
    return sums


class LocalBackground:
    """Mean and standard deviation about each pixel.

    patch  side of the patch, odd;  good  bool (height, width), pixels of the static mask are False
    """

    def __init__(self, patch: int, good: Bools) -> None:
        self._patch, self._good = patch, good
        self._count = self._around(good[np.newaxis].astype(np.float64))

    def __call__(self, frames: Array, valid: Bools | None) -> tuple[Floats, Floats]:
        """Return both, (n, height, width), of frames of that shape; ``valid`` as of `RadialBackground`."""
        number, height, width = frames.shape
        mean, sigma = np.empty(frames.shape), np.empty(frames.shape)
        reach = self._patch + self._patch // 2
        tall = max(reach, TILE_PIXELS // width)
        for i in range(number):
            for top in range(0, height, tall):
                bottom = min(top + tall, height)
                rows = slice(max(0, top - reach), min(height, bottom + reach))
                counts = self._good[np.newaxis, rows] if valid is None else valid[i : i + 1, rows]
                own = slice(top - rows.start, bottom - rows.start)
                values = np.where(counts, frames[i : i + 1, rows], 0).astype(np.float64)
                count = self._count[:, top:bottom] if valid is None else self._around(counts.astype(float))[:, own]
                with np.errstate(all="ignore"):  # 0 / 0
                    average = self._around(values)[:, own] / count
                    variance = self._around(np.square(values))[:, own] / count - np.square(average)
                    mean[i, top:bottom] = average[0]
                    np.sqrt(np.maximum(variance[0], 0.0), out=sigma[i, top:bottom])
        return mean, sigma

    def _around(self, values: Floats) -> Floats:
        """Return the sums over the eight patches about the patch around each pixel, none subtracted from another."""
        patch, (_, height, width) = self._patch, values.shape
        edge = patch + patch // 2
        padded = np.pad(values, ((0, 0), (edge, edge), (edge, edge)))
        across = running(padded, patch, axis=2)  # at c: columns c to c + patch - 1 of the padded frame
        left, middle, right = (across[:, :, i * patch : i * patch + width] for i in range(3))
        sides = left + right
        lines = running(sides + middle, patch, axis=1)
        above, below = lines[:, :height], lines[:, 2 * patch : 2 * patch + height]
        return above + running(sides, patch, axis=1)[:, patch : patch + height] + below


def running(values: Floats, length: int, axis: int) -> Floats:
    """Return the sums of ``length`` neighbours along an axis, which gets shorter by ``length - 1``."""
    moved = np.moveaxis(values, axis, -1)
    size = moved.shape[-1] - length + 1
    total = moved[..., :size].copy()
    for shift in range(1, length):
        total += moved[..., shift : shift + size]
    return np.moveaxis(total, -1, axis)
