"""Scenes that emulated detectors see: the tables that users write, and how each is rendered."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import erfc, sqrt
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.declare import (
    PHOTON_ENERGY,
    Choice,
    Either,
    FileReference,
    Flag,
    Integer,
    ListOf,
    Number,
    Quantity,
    Table,
    param,
)
from lima2cli.detectors.sources import Counter, PixelSource, Pool, Recording, RecordingPart
from lima2cli.errors import FileProblem, NodeMisuse
from lima2cli.frames import Array, DatasetInfo, DetectorInfo, Files, StackInfo
from lima2cli.geometry import Rect

POOL_BYTES = 64 << 20
"""Bytes of the rendered frames of one dataset of a whole image: as many frames as fit, at least 2, at most `MOST`."""

MOST = 16

BAND = 64
"""Number of rows of a band."""

LEVELS, SAMPLES = 256, 4096
"""Levels, and samples of each, of the table that counts are taken from."""

MOST_COUNTS = 1e9
"""Largest mean number of photons of a pixel."""

INCOMPLETE = Choice(("error", "skip"))

INCOMPLETE_DOC = "Frames that are not all there, or cannot be read: an error, or they count as missing."

Pattern = Callable[[int, int], NDArray[np.float64]]
"""A function from rows from, to (exclusive) to relative intensities, 0 to 1: (rows, image width)."""

Painter = Callable[[int, int, int], Array]
"""A function from rows from, to (exclusive) to pixels of a frame: (rows, image width)."""


def period(dataset: DatasetInfo, image: Rect) -> int:
    """Return after how many frames a rendered scene repeats: those of the whole image that fit in 64 MiB, 2 to 16."""
    return max(2, min(MOST, POOL_BYTES // (image.area * dataset.pixel_bytes)))


def largest(dataset: DatasetInfo) -> int:
    """Return the largest pixel value of a scene: ``2**bits - 1``, and no more than the dtype holds exactly."""
    dtype = np.dtype(dataset.dtype)
    held: int = 2 ** (int(np.finfo(dtype).nmant) + 1) if dtype.kind == "f" else int(np.iinfo(dtype).max)
    return min(held, int(2**dataset.bits) - 1, 2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Base of all scenes. ``kind`` is the key that users write."""

    kind: ClassVar[str]

    def check(self, dataset: DatasetInfo, image: Rect, files: Files) -> int | None:
        """Return how many frames there are, None without end.

        Raises:
            NodeMisuse, FileProblem: the scene can't be made.
        """
        return None

    def seen_by(self, info: DetectorInfo) -> "Scene":
        """Return the scene as this detector sees it, where that depends on its pixels or on its other datasets.

        Raises:
            NodeMisuse: it must know something of the detector that is not known.
        """
        return self

    @property
    def lossy(self) -> bool:
        """Return whether frames may be missing."""
        return False

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[PixelSource]:
        """Return the pixels of each of these modules, ready."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Gradient(Scene):
    """A moving ramp: pixel (x, y) of frame f of dataset d is ``(x + y + 16*(f mod period) + 257*d) mod 2**bits``.

    The period is the number of frames of the whole image that fit in 64 MiB, at least 2, at most 16.
    """

    kind: ClassVar[str] = "gradient"

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[PixelSource]:
        """See `Scene`."""
        columns = np.arange(image.width)

        def paint(top: int, bottom: int, frame: int) -> Array:
            rows = np.arange(top, bottom)[:, np.newaxis]
            return (columns + rows + (16 * frame + 257 * dataset.index)) % min(2**62, largest(dataset) + 1)

        return render(dataset, image, modules, paint)


@dataclass(frozen=True, kw_only=True)
class Noise(Scene):
    """Poisson counts of the same mean everywhere, repeating after a few frames."""

    kind: ClassVar[str] = "noise"

    seed: int = param("Seed of the random numbers.", Integer(0), 1)
    mean: float = param("Mean counts of a pixel.", Number(0, MOST_COUNTS), 10)

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[PixelSource]:
        """See `Scene`."""
        return render(dataset, image, modules, photons(self.seed, self.mean, 0, nothing(image), dataset))


@dataclass(frozen=True, kw_only=True)
class CounterScene(Scene):
    """For checks: pixel (x, y) of frame f of dataset d is ``(7919*f + 104729*d + y*width + x) mod 2**bits``.

    Unsigned dtypes only; ``width`` is the image's.
    """

    kind: ClassVar[str] = "counter"

    def check(self, dataset: DatasetInfo, image: Rect, files: Files) -> int | None:
        """See `Scene`."""
        if np.dtype(dataset.dtype).kind != "u":
            raise NodeMisuse(
                "scene-dtype",
                f"a counter needs an unsigned dtype, and dataset {dataset.name} is {dataset.dtype}",
                help="`gradient` works with any dtype",
            )
        return None

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[PixelSource]:
        """See `Scene`."""
        return [Counter(dataset, image, module) for module in modules]


@dataclass(frozen=True, kw_only=True)
class Frames(Scene):
    """Frames of a file, of the image's shape; values beyond the dataset's bits are cut."""

    kind: ClassVar[str] = "frames"

    file: str = param("The stack of frames.", FileReference())
    loop: bool = param("Begin again after the last frame; otherwise the acquisition ends there.", Flag(), True)

    incomplete: str = param(INCOMPLETE_DOC, INCOMPLETE, "error")

    @property
    def lossy(self) -> bool:
        """See `Scene`."""
        return self.incomplete == "skip"

    def check(self, dataset: DatasetInfo, image: Rect, files: Files) -> int | None:
        """See `Scene`."""
        stack = recorded(files, self.file, skip=self.lossy)
        count, height, width = stack.shape
        if (width, height) != (image.width, image.height):
            raise NodeMisuse(
                "file-shape",
                f"frames of {self.file} have {width} x {height} pixels, and the image {image.width} x {image.height}",
                ("file",),
            )
        if not np.can_cast(stack.dtype, dataset.dtype, "safe"):
            raise NodeMisuse(
                "file-dtype",
                f"{self.file} holds {stack.dtype}, which dataset {dataset.name} ({dataset.dtype}) cannot hold",
                ("file",),
                help=f"give the dataset the dtype {stack.dtype}",
            )
        return None if self.loop else count

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[PixelSource]:
        """See `Scene`."""
        reader = files.frames(self.file, skip=self.lossy)
        count = reader.info.shape[0]
        cut = largest(dataset) if dataset.bits < 8 * dataset.pixel_bytes else None
        recording = Recording(reader, dataset.dtype, cut, self.loop)
        if self.loop and count * image.area * dataset.pixel_bytes <= POOL_BYTES:

            def frame(number: int) -> Array:
                whole: Array = recording.get(range(number, number + 1))[0]
                return whole

            return cut_out(frame, count, dataset, image, modules, recording.missing(range(count)))
        return [RecordingPart(recording, image, module) for module in modules]


def recorded(files: Files, reference: str, *, skip: bool) -> StackInfo:
    """Return the stack to be played.

    Raises:
        FileProblem: none of its frames is there, whether they are skipped or not.
    """
    stack = files.stack(reference, skip=skip)
    if stack.missing == stack.shape[0]:
        raise FileProblem(f"{reference} {stack.lacking}; no frame is left", "file-incomplete", "give another file")
    return stack


def render(dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], paint: Painter) -> list[PixelSource]:
    """Return pools of the modules, painted band by band; bands that no module touches are left out."""
    pools = [np.empty((period(dataset, image), m.height, m.width), dataset.dtype) for m in modules]
    for top in range(0, image.height, BAND):
        band = Rect(0, top, image.width, min(BAND, image.height - top))
        touched = [(pool, m, band & m) for pool, m in zip(pools, modules, strict=True) if (band & m).area]
        for frame in range(period(dataset, image) if touched else 0):
            painted = paint(band.y, band.bottom, frame)
            for pool, module, common in touched:
                pool[frame][common.within(module)] = painted[common.within(band)]
    return [Pool(pool) for pool in pools]


def cut_out(
    frame: Callable[[int], Array],
    count: int,
    dataset: DatasetInfo,
    image: Rect,
    modules: Sequence[Rect],
    absent: NDArray[np.bool_] | None = None,
) -> list[PixelSource]:
    """Return pools of the modules, cut from ``count`` frames (height, width) of the whole image, asked for in order.

    ``absent`` is as `Pool` has it. Raises what ``frame`` raises.
    """
    pools = [np.empty((count, module.height, module.width), dataset.dtype) for module in modules]
    for number in range(count):
        whole = frame(number)
        for pool, module in zip(pools, modules, strict=True):
            pool[number] = whole[module.within(image)]
    return [Pool(pool, absent) for pool in pools]


def nothing(image: Rect) -> Pattern:
    """Return a pattern that is 0 everywhere."""

    def rows(top: int, bottom: int) -> NDArray[np.float64]:
        return np.zeros((bottom - top, image.width))

    return rows


def photons(seed: int, background: float, intensity: float, pattern: Pattern, dataset: DatasetInfo) -> Painter:
    """Return Poisson counts of mean ``background + intensity * pattern``, cut at the largest value.

    Each pixel takes one of `SAMPLES` counts drawn for the nearest of `LEVELS` means, several times as fast as a
    draw for each pixel; the mean of a level is off by about a 64th of its standard deviation.
    """
    means = background + intensity * np.linspace(0, 1, LEVELS) ** 2  # fine where counts are few
    draws = np.random.default_rng((seed, dataset.index)).poisson(means[:, np.newaxis], (LEVELS, SAMPLES))
    table = np.minimum(draws, largest(dataset)).astype(dataset.dtype).ravel()
    kept: dict[int, NDArray[np.int32]] = {}

    def paint(top: int, bottom: int, frame: int) -> Array:
        if top not in kept:
            kept.clear()  # bands come one after another, each with all its frames
            levels = np.rint(np.sqrt(pattern(top, bottom)) * (LEVELS - 1))
            kept[top] = levels.astype(np.int32) * SAMPLES
        random = np.random.default_rng((seed, dataset.index, frame, top))
        counts: Array = table[kept[top] + random.integers(SAMPLES, size=kept[top].shape, dtype=np.int32)]
        return counts

    return paint


@dataclass(frozen=True, kw_only=True)
class EmissionLine:
    """Photons of one energy."""

    energy: float = param("Energy of the photons.", PHOTON_ENERGY)
    share: float = param("Number of photons, relative to other lines.", Number(0), 1)


@dataclass(frozen=True, kw_only=True)
class Poisson(Scene):
    """Photons with the statistics of counting, above the threshold of each dataset, repeating after a few frames."""

    kind: ClassVar[str] = "poisson"
    mean: float | str = param(
        "Mean photons of a pixel, all energies together: a number, or an image (of a stack its average).",
        Either((Number(0, MOST_COUNTS), FileReference())),
        10,
    )
    lines: tuple[EmissionLine, ...] = param(
        "Energies of the photons.", ListOf(Table(EmissionLine), minimum=1), (EmissionLine(energy=12400.0, share=1),)
    )
    resolution: float = param("Standard deviation of an energy as a pixel sees it.", Quantity("eV", above=0), 500.0)
    seed: int = param("Seed of the random numbers.", Integer(0), 1)
    thresholds_ev: tuple[float, ...] = ()  # of all datasets that see it, ascending

    def check(self, dataset: DatasetInfo, image: Rect, files: Files) -> int | None:
        """See `Scene`."""
        if not any(line.share for line in self.lines):
            raise NodeMisuse("no-photons", "all lines have a share of 0", ("lines",))
        if isinstance(self.mean, str):
            _, height, width = files.stack(self.mean).shape
            if (width, height) != (image.width, image.height):
                size = f"{image.width} x {image.height}"
                message = f"{self.mean} has {width} x {height} pixels, and the image {size}"
                raise NodeMisuse("file-shape", message, ("mean",))
        return None

    def seen_by(self, info: DetectorInfo) -> Scene:
        """See `Scene`."""
        return replace(self, thresholds_ev=tuple(sorted({dataset.threshold_ev or 0.0 for dataset in info.datasets})))

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[PixelSource]:
        """See `Scene`."""
        own = dataset.threshold_ev or 0.0
        counted = {threshold: self.above(threshold) for threshold in {*self.thresholds_ev, own} if threshold >= own}
        from_top = sorted(counted, reverse=True)
        parts = [counted[index] - (counted[from_top[i - 1]] if i else 0.0) for i, index in enumerate(from_top)]
        mean = self._mean(image, files)

        def paint(top: int, bottom: int, frame: int) -> Array:
            counts = np.zeros((bottom - top, image.width), np.int64)
            for threshold, part in zip(from_top, parts, strict=True):
                stream = np.random.default_rng((self.seed, frame, top, round(threshold)))
                counts += stream.poisson(mean[top:bottom] * part, counts.shape)
            return np.minimum(counts, largest(dataset))

        return render(dataset, image, modules, paint)

    def _mean(self, image: Rect, files: Files) -> NDArray[np.float64]:
        """Return mean photons, (image height, 1 or image width).

        Raises:
            FileProblem: the values are not counts.
        """
        if not isinstance(self.mean, str):
            return np.full((image.height, 1), float(self.mean))
        mean: NDArray[np.float64]
        mean = np.asarray(files.image(self.mean), np.float64).reshape(-1, image.height, image.width).mean(axis=0)
        if not ((mean >= 0) & (mean <= MOST_COUNTS)).all():
            raise FileProblem(f"{self.mean} has values that are not mean counts: negative, NaN, or above 1e9")
        return mean

    def above(self, threshold_ev: float) -> float:
        """Return which part of all photons is counted above a threshold."""
        whole = sum(line.share for line in self.lines)
        return sum(line.share * _seen(threshold_ev - line.energy, self.resolution) for line in self.lines) / whole


def _seen(beyond_ev: float, resolution_ev: float) -> float:
    return erfc(beyond_ev / (sqrt(2) * resolution_ev)) / 2
