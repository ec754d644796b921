"""Scene `poisson`: photons counted above the threshold of each dataset, with the statistics of counting.

A photon of a line at energy E is counted above a threshold T with probability ``erfc((T - E) / (sqrt(2) * s)) / 2``,
where s is the resolution: the s-curve of a counting pixel without charge sharing. All datasets see the same photons;
one above the higher of two thresholds is above the lower one too. So counts between neighbouring thresholds are drawn,
which are independent, and summed from the highest threshold down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import erfc, sqrt
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import PHOTON_ENERGY, Either, FileReference, Integer, ListOf, Number, Quantity, Table, param
from lima2cli.detectors.scenes import Scene, largest, render
from lima2cli.detectors.sources import Source
from lima2cli.errors import FileProblem, Misfit
from lima2cli.geometry import Rect
from lima2cli.spec import Array, DatasetInfo, Files

MOST_COUNTS = 1e9
"""Of a pixel, on average."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Photons of one energy."""

    energy: float = param("Energy of the photons.", PHOTON_ENERGY)
    share: float = param("How many of them, relative to other lines.", Number(0), 1)


@dataclass(frozen=True, kw_only=True)
class Poisson(Scene):
    """Photons with the statistics of counting, above the threshold of each dataset, repeating after a few frames."""

    kind: ClassVar[str] = "poisson"
    mean: float | str = param(
        "Mean photons of a pixel, all energies together: a number, or an image (of a stack its average).",
        Either((Number(0, MOST_COUNTS), FileReference())),
        10,
    )
    lines: tuple[Line, ...] = param(
        "Energies of the photons.", ListOf(Table(Line), minimum=1), (Line(energy=12400.0, share=1),)
    )
    resolution: float = param("Standard deviation of an energy as a pixel sees it.", Quantity("eV", above=0), 500.0)
    seed: int = param("Seed of the random numbers.", Integer(0), 1)
    thresholds_ev: tuple[float, ...] = ()  # of all datasets that see it, ascending

    def check(self, dataset: DatasetInfo, image: Rect, files: Files) -> int | None:
        """See `Scene`."""
        if not any(line.share for line in self.lines):
            raise Misfit("no-photons", "all lines have a share of 0", ("lines",))
        if isinstance(self.mean, str):
            _, height, width = files.stack(self.mean).shape
            if (width, height) != (image.width, image.height):
                size = f"{image.width} x {image.height}"
                message = f"{self.mean} has {width} x {height} pixels, and the image {size}"
                raise Misfit("file-shape", message, ("mean",))
        return None

    def among(self, datasets: Sequence[DatasetInfo]) -> Scene:
        """See `Scene`."""
        return replace(self, thresholds_ev=tuple(sorted({dataset.threshold_ev or 0.0 for dataset in datasets})))

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[Source]:
        """See `Scene`."""
        own = dataset.threshold_ev or 0.0
        counted = {threshold: self.above(threshold) for threshold in {*self.thresholds_ev, own} if threshold >= own}
        from_top = sorted(counted, reverse=True)
        parts = [counted[it] - (counted[from_top[i - 1]] if i else 0.0) for i, it in enumerate(from_top)]
        mean = self._mean(image, files)

        def paint(top: int, bottom: int, frame: int) -> Array:
            counts = np.zeros((bottom - top, image.width), np.int64)
            for threshold, part in zip(from_top, parts, strict=True):
                stream = np.random.default_rng((self.seed, frame, top, round(threshold)))
                counts += stream.poisson(mean[top:bottom] * part, counts.shape)
            return np.minimum(counts, largest(dataset))

        return render(dataset, image, modules, paint)

    def _mean(self, image: Rect, files: Files) -> NDArray[np.float64]:
        """Mean photons, (image height, 1 or image width). Raises `FileProblem` where they are no counts."""
        if not isinstance(self.mean, str):
            return np.full((image.height, 1), float(self.mean))
        mean: NDArray[np.float64]
        mean = np.asarray(files.image(self.mean), np.float64).reshape(-1, image.height, image.width).mean(axis=0)
        if not ((mean >= 0) & (mean <= MOST_COUNTS)).all():
            raise FileProblem(f"{self.mean} has values that are no mean counts: negative, NaN, or above 1e9")
        return mean

    def above(self, threshold_ev: float) -> float:
        """Which part of all photons is counted above a threshold."""
        whole = sum(line.share for line in self.lines)
        return sum(line.share * _seen(threshold_ev - line.energy, self.resolution) for line in self.lines) / whole


def _seen(beyond_ev: float, resolution_ev: float) -> float:
    return erfc(beyond_ev / (sqrt(2) * resolution_ev)) / 2
