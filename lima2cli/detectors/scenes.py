"""What an emulated detector sees: the tables that users write, and how each is rendered.

A frame's content depends on the dataset, its number and the pixel alone, so that it is the same whatever part of
it is rendered where. Counts of random scenes are drawn in bands of rows with a seed each for that reason.
Scenes other than `counter` repeat after a few frames (`period`), which are rendered once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Choice, FileReference, Flag, Integer, Number, param
from lima2cli.detectors.sources import Counter, Part, Pool, Recording, Source
from lima2cli.errors import FileProblem, Misfit
from lima2cli.geometry import Rect
from lima2cli.spec import Array, DatasetInfo, Files, StackInfo

POOL_BYTES = 64 << 20
"""Rendered frames of one dataset of a whole image: as many as fit, at least 2, at most `MOST`."""

MOST = 16

BAND = 64
"""Rows of a band."""

LABELS = tuple(n for n in range(1, 40) if n % 8 != 7 and n not in (28,))
"""Sums of three squares, h*h + k*k + l*l: the rings of a primitive cubic powder such as LaB6."""

LEVELS, SAMPLES = 256, 4096
"""Of the table that counts are taken from."""

INCOMPLETE = Choice(("error", "skip"))

INCOMPLETE_DOC = "Frames that are not all there, or cannot be read: an error, or they count as missing."

Pattern = Callable[[int, int], NDArray[np.float64]]
"""Relative intensity, 0 to 1, of rows from, to (exclusive): (rows, image width)."""

Paint = Callable[[int, int, int], Array]
"""Pixels of rows from, to (exclusive) of a frame: (rows, image width)."""


def period(dataset: DatasetInfo, image: Rect) -> int:
    """After how many frames a rendered scene repeats: those of the whole image that fit in 64 MiB, 2 to 16."""
    return max(2, min(MOST, POOL_BYTES // (image.area * dataset.pixel_bytes)))


def largest(dataset: DatasetInfo) -> int:
    """The largest pixel value of a scene: ``2**bits - 1``, and no more than the dtype holds exactly."""
    dtype = np.dtype(dataset.dtype)
    held: int = 2 ** (int(np.finfo(dtype).nmant) + 1) if dtype.kind == "f" else int(np.iinfo(dtype).max)
    return min(held, int(2**dataset.bits) - 1, 2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Base of all scenes. ``kind`` is the key that users write."""

    kind: ClassVar[str]

    def check(self, dataset: DatasetInfo, image: Rect, files: Files) -> int | None:
        """How many frames there are, None without end. Raises `Misfit` or `FileProblem`."""
        return None

    def among(self, datasets: Sequence[DatasetInfo]) -> "Scene":
        """The scene as all these datasets see it, where that depends on the others."""
        return self

    @property
    def lossy(self) -> bool:
        """Whether frames may be missing."""
        return False

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[Source]:
        """The pixels of each of these modules, ready."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Rings(Scene):
    """Powder rings around the centre of the image: Poisson counts, repeating after a few frames."""

    kind: ClassVar[str] = "rings"

    seed: int = param("Seed of the random numbers.", Integer(0), 1)
    intensity: float = param("Mean counts on the strongest ring.", Number(0, 1e9), 100)
    background: float = param("Mean counts between rings.", Number(0, 1e9), 2)

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[Source]:
        """See `Scene`."""

        paint = _poisson(self.seed, self.background, self.intensity, _rings(image), dataset)
        return render(dataset, image, modules, paint)


@dataclass(frozen=True, kw_only=True)
class Gradient(Scene):
    """A moving ramp: pixel (x, y) of frame f of dataset d is ``(x + y + 16*(f mod period) + 257*d) mod 2**bits``.

    The period is the number of frames of the whole image that fit in 64 MiB, at least 2, at most 16.
    """

    kind: ClassVar[str] = "gradient"

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[Source]:
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
    mean: float = param("Mean counts of a pixel.", Number(0, 1e9), 10)

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[Source]:
        """See `Scene`."""

        def everywhere(top: int, bottom: int) -> NDArray[np.float64]:
            return np.zeros((bottom - top, image.width))

        return render(dataset, image, modules, _poisson(self.seed, self.mean, 0, everywhere, dataset))


@dataclass(frozen=True, kw_only=True)
class CounterScene(Scene):
    """For checks: pixel (x, y) of frame f of dataset d is ``(7919*f + 104729*d + y*width + x) mod 2**bits``.

    Unsigned dtypes only; ``width`` is the image's.
    """

    kind: ClassVar[str] = "counter"

    def check(self, dataset: DatasetInfo, image: Rect, files: Files) -> int | None:
        """See `Scene`."""
        if np.dtype(dataset.dtype).kind != "u":
            raise Misfit(
                "scene-dtype",
                f"a counter needs an unsigned dtype, and dataset {dataset.name} is {dataset.dtype}",
                help="`gradient` goes with any dtype",
            )
        return None

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[Source]:
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
            raise Misfit(
                "file-shape",
                f"frames of {self.file} have {width} x {height} pixels, and the image {image.width} x {image.height}",
                ("file",),
            )
        if not np.can_cast(stack.dtype, dataset.dtype, "safe"):
            raise Misfit(
                "file-dtype",
                f"{self.file} holds {stack.dtype}, which dataset {dataset.name} ({dataset.dtype}) cannot hold",
                ("file",),
                help=f"give the dataset the dtype {stack.dtype}",
            )
        return None if self.loop else count

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[Source]:
        """See `Scene`."""
        reader = files.frames(self.file, skip=self.lossy)
        count = reader.info.shape[0]
        cut = largest(dataset) if dataset.bits < 8 * dataset.pixel_bytes else None
        recording = Recording(reader, dataset.dtype, cut, self.loop)
        if self.loop and count * image.area * dataset.pixel_bytes <= POOL_BYTES:
            pools = [np.empty((count, module.height, module.width), dataset.dtype) for module in modules]
            for number in range(count):
                for pool, module in zip(pools, modules, strict=True):
                    pool[number] = recording.get(range(number, number + 1))[0][module.within(image)]
            absent = recording.missing(range(count))
            return [Pool(pool, absent) for pool in pools]
        return [Part(recording, image, module) for module in modules]


def recorded(files: Files, reference: str, *, skip: bool) -> StackInfo:
    """The stack to be played. Raises `FileProblem` where no frame of it is there, whether they are skipped or not."""
    stack = files.stack(reference, skip=skip)
    if stack.missing == stack.shape[0]:
        raise FileProblem(f"{reference} {stack.lacking}; no frame is left", "file-incomplete", "give another file")
    return stack


def render(dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], paint: Paint) -> list[Source]:
    """Pools of the modules, painted band by band; bands that no module touches are left out."""
    pools = [np.empty((period(dataset, image), m.height, m.width), dataset.dtype) for m in modules]
    for top in range(0, image.height, BAND):
        band = Rect(0, top, image.width, min(BAND, image.height - top))
        touched = [(pool, m, band & m) for pool, m in zip(pools, modules, strict=True) if (band & m).area]
        for frame in range(period(dataset, image) if touched else 0):
            painted = paint(band.y, band.bottom, frame)
            for pool, module, common in touched:
                pool[frame][common.within(module)] = painted[common.within(band)]
    return [Pool(pool) for pool in pools]


def _poisson(seed: int, background: float, intensity: float, pattern: Pattern, dataset: DatasetInfo) -> Paint:
    """Poisson counts of mean ``background + intensity * pattern``, cut at the largest value.

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


def _rings(image: Rect) -> Pattern:
    """A powder pattern about the centre of the image.

    Bragg's law for a primitive cubic lattice on a flat detector: ``sin(theta) = c * sqrt(N)``, radius
    ``tan(2 theta)``, with c such that 2 theta is 45 degrees for N = 36 and in the corners of the image. Rings
    fade with the angle, those of even N are weaker.
    """
    corner = np.hypot(image.width, image.height) / 2
    sigma = max(1 / corner, 0.005)
    radii = np.linspace(0, 1.01, 4 * int(corner) + 4)
    profile = np.zeros_like(radii)
    for n in LABELS:
        ring = np.tan(2 * np.arcsin(np.sin(np.pi / 8) * np.sqrt(n / 36)))
        profile += (1 if n % 2 else 0.6) * np.exp((1 - n) / 12 - 0.5 * ((radii - ring) / sigma) ** 2)
    profile = np.clip(profile, 0, 1)
    x = np.arange(image.width) - (image.width - 1) / 2

    def rows(top: int, bottom: int) -> NDArray[np.float64]:
        y = np.arange(top, bottom)[:, np.newaxis] - (image.height - 1) / 2
        found: NDArray[np.float64] = np.interp(np.hypot(x, y) / corner, radii, profile)
        return found

    return rows
