"""Scenes of experiments of which the truth is known: rings of powders, Bragg peaks of crystals, speckle that decays."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import asin, tan
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.declare import PHOTON_ENERGY, Choice, Either, Integer, ListOf, Number, Quantity, Table, param
from lima2cli.declare.scalars import Plausible
from lima2cli.detectors.scenes import (
    MOST_COUNTS,
    CounterScene,
    Frames,
    Gradient,
    Noise,
    Pattern,
    Poisson,
    Scene,
    cut_out,
    largest,
    nothing,
    photons,
    render,
)
from lima2cli.detectors.sources import BLOCK_BYTES, PixelSource
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, DatasetInfo, DetectorInfo, Files
from lima2cli.geometry import Rect
from lima2cli.units import HC

ANGSTROM = 1e-10

LABELS = tuple(n for n in range(1, 40) if n % 8 != 7 and n not in (28,))
"""Sums of three squares, h*h + k*k + l*l: the rings of a primitive cubic powder such as LaB6."""

FACES = (3, 4, 8, 11, 12, 16, 19, 20, 24, 27, 32, 35, 36, 40, 43, 44, 48, 51, 52, 56, 59)
"""The same of a face-centred lattice: h, k and l are all even, or all odd."""

DIAMOND = tuple(n for n in FACES if n % 8 != 4)
"""The same of the lattice of diamond: all odd, or all even with a sum that four divides."""


def _cubic(edge: float, labels: Sequence[int]) -> tuple[float, ...]:
    return tuple(edge / n**0.5 for n in labels)


MATERIALS: Mapping[str, tuple[float, ...]] = {
    "LaB6": _cubic(4.156826e-10, LABELS),
    "Si": _cubic(5.431144e-10, DIAMOND),
    "CeO2": _cubic(5.411651e-10, FACES),
    "AgBh": tuple(5.8380e-9 / n for n in range(1, 31)),
}
"""Spacings of lattice planes, m, by calibrant: NIST SRM 660c, 640f, 674b; silver behenate (Huang et al. 1993)."""

SPACING = Quantity("metres", above=0, plausible=Plausible(1e-11, 1e-7))


@dataclass(frozen=True, kw_only=True)
class Center:
    """A place on the detector; centres of pixels are whole numbers."""

    x: float = param("Column, to the right.", Number())
    y: float = param("Row, down.", Number())


@dataclass(frozen=True, kw_only=True)
class Powder:
    """Rings by Bragg's law on a flat detector across the beam: ``r = distance * tan(2 * asin(wavelength / 2d))``.

    A ring's strength is proportional to its spacing d, that of the widest is `intensity`.
    """

    material: str | tuple[float, ...] = param(
        "A calibrant, or the spacings d of the lattice planes.",
        Either((Choice(tuple(MATERIALS)), ListOf(SPACING, minimum=1))),
    )
    distance: float = param(
        "From the sample to the detector.", Quantity("metres", above=0, plausible=Plausible(1e-3, 100))
    )
    photon_energy: float = param("Photon energy.", PHOTON_ENERGY)
    center: Center | None = param("Where the beam meets the detector; default: the middle.", Table(Center), None)
    width: float = param("Standard deviation of a ring's profile, horizontal pixels.", Number(0.1, 1e3), 1.5)

    @property
    def spacings(self) -> tuple[float, ...]:
        """The spacings of the lattice planes, m."""
        return MATERIALS[self.material] if isinstance(self.material, str) else self.material

    def rings(self) -> list[tuple[float, float]]:
        """Return radius (m) and strength (1 for the widest spacing) of the rings that a flat detector can see."""
        half, most = HC * ANGSTROM / self.photon_energy / 2, max(self.spacings)
        angles = [(2 * asin(half / d), d / most) for d in self.spacings if half < d]
        return [(self.distance * tan(angle), strength) for angle, strength in angles if angle < np.pi / 2]

    def pattern(self, image: Rect, pixel_m: tuple[float, float]) -> Pattern:
        """Return relative intensities of an image with pixels of this size, (x, y) in m."""
        center = self.center or Center(x=(image.width - 1) / 2, y=(image.height - 1) / 2)
        x = (np.arange(image.width) - center.x) * pixel_m[0]
        ends = np.hypot(np.abs(x).max(), np.abs(np.array([0, image.height - 1]) - center.y).max() * pixel_m[1])
        sigma = self.width * pixel_m[0]
        radii = np.linspace(0, ends, int(8 * ends / min(*pixel_m, sigma)) + 2)
        profile = np.zeros_like(radii)
        for radius, strength in self.rings():
            if radius < ends + 5 * sigma:
                profile += strength * np.exp(-0.5 * ((radii - radius) / sigma) ** 2)
        profile = np.clip(profile, 0, 1)

        def rows(top: int, bottom: int) -> NDArray[np.float64]:
            y = (np.arange(top, bottom)[:, np.newaxis] - center.y) * pixel_m[1]
            intensities: NDArray[np.float64] = np.interp(np.hypot(x, y), radii, profile)
            return intensities

        return rows


@dataclass(frozen=True, kw_only=True)
class Rings(Scene):
    """Powder rings: Poisson counts, repeating after a few frames.

    Without `powder` they are those of a made-up cubic lattice, around the centre of the image, which they fill.
    """

    kind: ClassVar[str] = "rings"

    seed: int = param("Seed of the random numbers.", Integer(0), 1)
    intensity: float = param("Mean counts on the strongest ring.", Number(0, MOST_COUNTS), 100)
    background: float = param("Mean counts between rings.", Number(0, MOST_COUNTS), 2)
    powder: Powder | None = param("A powder; it needs the detector's `pixel_size`.", Table(Powder), None)
    pixel_m: tuple[float, float] | None = None

    def seen_by(self, info: DetectorInfo) -> Scene:
        """See `Scene`."""
        if self.powder is not None and info.pixel_size is None:
            help = "add `pixel_size: 75 um` to the detector"
            raise NodeMisuse("no-pixel-size", "a powder needs the size of the pixels", ("powder",), help)
        return replace(self, pixel_m=info.pixel_size)

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[PixelSource]:
        """See `Scene`."""
        if self.powder is None:
            pattern = _rings(image)
        else:
            assert self.pixel_m is not None
            pattern = self.powder.pattern(image, self.pixel_m)
        return render(dataset, image, modules, photons(self.seed, self.background, self.intensity, pattern, dataset))


def _rings(image: Rect) -> Pattern:
    """Return a powder pattern about the centre of the image.

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
        intensities: NDArray[np.float64] = np.interp(np.hypot(x, y) / corner, radii, profile)
        return intensities

    return rows


def splitmix64(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a number that looks random for each of these: Steele, Lea, Flood, OOPSLA 2014, table of SplitMix64."""
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


@dataclass(frozen=True, kw_only=True)
class Peaks(Scene):
    """Bragg peaks of a crystal that comes and goes: in some frames, the hits, peaks at places that change.

    Frame f of all frames is a hit where ``splitmix64(f + splitmix64(seed)) < hit_rate * 2**64``, with arithmetic
    modulo 2**64. A hit has `peaks` of them (fewer in a small image), none closer to another than eight of its widths,
    with mean counts of half to one and a half `intensity`. The background repeats after a few frames, hits don't.
    """

    kind: ClassVar[str] = "peaks"

    seed: int = param("Seed of the random numbers.", Integer(0, 2**63 - 1), 1)
    hit_rate: float = param("Which part of the frames are hits.", Number(0, 1), 0.1)
    peaks: int = param("Number of peaks of a hit.", Integer(1, 10000), 30)
    intensity: float = param("Mean counts of a peak, all its pixels together.", Number(0, MOST_COUNTS), 500)
    width: float = param("Standard deviation of a peak's profile, pixels.", Number(0.3, 20), 1)
    background: float = param("Mean counts of other pixels.", Number(0, MOST_COUNTS), 1)

    def hits(self, numbers: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which of these frames are hits, bool (n,)."""
        if self.hit_rate == 1:
            return np.ones(len(numbers), np.bool_)
        mixed = splitmix64(numbers + splitmix64(np.array([self.seed], np.uint64)))
        hits: NDArray[np.bool_] = mixed < np.uint64(int(self.hit_rate * 2**64))
        return hits

    def spots(self, number: int, image: Rect) -> NDArray[np.float64]:
        """Return the peaks of a hit, (n, 3): x, y (pixels) and mean counts. The same for all datasets."""
        return self._draw(np.random.default_rng((self.seed, number)), image)

    def _draw(self, random: np.random.Generator, image: Rect) -> NDArray[np.float64]:
        reach = self.reach
        cell = 2 * reach + 1 + 6  # a peak moves by up to three pixels about the middle of its cell
        across, down = image.width // cell, image.height // cell
        cells = random.permutation(across * down)[: self.peaks]
        moved = random.uniform(-3, 3, (len(cells), 2)) + cell / 2
        spots = np.empty((len(cells), 3))
        spots[:, 0] = cells % max(1, across) * cell + moved[:, 0]
        spots[:, 1] = cells // max(1, across) * cell + moved[:, 1]
        spots[:, 2] = self.intensity * random.uniform(0.5, 1.5, len(cells))
        return spots

    @property
    def reach(self) -> int:
        """The distance that a peak reaches from the pixel of its middle, pixels."""
        return int(np.ceil(4 * self.width))

    def check(self, dataset: DatasetInfo, image: Rect, files: Files) -> int | None:
        """See `Scene`."""
        cell = 2 * self.reach + 7
        if min(image.width, image.height) < cell:
            message = f"a peak needs {cell} x {cell} pixels, and the image has {image.width} x {image.height}"
            raise NodeMisuse("scene-size", message, ("width",))
        return None

    def counts(self, number: int, image: Rect) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return rows (n, d, 1), columns (n, 1, d) and counts (n, d, d) of the peaks of a hit, above the background."""
        random = np.random.default_rng((self.seed, number))
        x, y, mean = self._draw(random, image).T[..., np.newaxis]
        about = np.arange(-self.reach, self.reach + 1)
        columns, rows = np.rint(x).astype(np.int64) + about, np.rint(y).astype(np.int64) + about
        across, down = (np.exp(-0.5 * ((at - middle) / self.width) ** 2) for at, middle in ((columns, x), (rows, y)))
        profile = down[:, :, np.newaxis] * across[:, np.newaxis, :]
        profile *= (mean / profile.sum(axis=(1, 2))[:, np.newaxis])[..., np.newaxis]
        return rows[:, :, np.newaxis], columns[:, np.newaxis, :], random.poisson(profile)

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[PixelSource]:
        """See `Scene`."""
        between = render(dataset, image, modules, photons(self.seed, self.background, 0, nothing(image), dataset))
        return [_Hits(self, it, dataset, image, module) for it, module in zip(between, modules, strict=True)]


class _Hits(PixelSource):
    """Frames of one module: a background, and the peaks of those that are hits."""

    def __init__(self, scene: Peaks, background: PixelSource, dataset: DatasetInfo, image: Rect, module: Rect) -> None:
        self._scene, self._background, self._image, self._module = scene, background, image, module
        self._largest = largest(dataset)
        frame = np.dtype(dataset.dtype).itemsize * module.area
        shape = (max(1, min(256, BLOCK_BYTES // frame)), module.height, module.width)
        self._out: Array = np.empty(shape, dataset.dtype)

    def get(self, numbers: Sequence[int]) -> Array:
        """See `PixelSource`."""
        background = self._background.get(numbers)[: len(self._out)]
        asked = np.asarray(numbers[: len(background)], np.uint64)
        hits = np.flatnonzero(self._scene.hits(asked))
        if not len(hits):
            return background
        out = self._out[: len(background)]
        out[...] = background
        for hit in hits.tolist():
            rows, columns, counts = self._scene.counts(int(asked[hit]), self._image)
            rows, columns = np.broadcast_arrays(rows - self._module.y, columns - self._module.x)
            seen = (rows >= 0) & (rows < self._module.height) & (columns >= 0) & (columns < self._module.width)
            at = (hit, rows[seen], columns[seen])
            out[at] = np.minimum(out[at] + counts[seen], self._largest)
        return out


FIELD_BYTES = 32 << 20
"""Bytes of the complex64 field of one dataset: as many frames as fit, at least 2, at most `LONGEST`."""

LONGEST = 4096


@dataclass(frozen=True, kw_only=True)
class Speckle(Scene):
    """Speckle of partially moving scatterers: ``g2(n) - 1 = contrast * exp(-2 * decay * n)`` between frames n apart.

    The field is complex Gaussian noise whose correlation in time is ``exp(-decay * n)`` (Siegert relation: Goodman,
    Speckle Phenomena in Optics), counts are Poisson. It repeats after as many frames as fit in 32 MiB of eight bytes a
    pixel, at most 4096, without a jump; the decay must be fast against that.
    """

    kind: ClassVar[str] = "speckle"

    seed: int = param("Seed of the random numbers.", Integer(0), 1)
    mean: float = param("Mean counts of a pixel.", Number(0, MOST_COUNTS), 5)
    decay: float = param("Decay rate of the field's correlation, per frame.", Number(1e-4, 10), 0.1)
    size: float = param("Standard deviation of a speckle of the field, pixels.", Number(0.3, 50), 1.5)

    @staticmethod
    def frames(image: Rect) -> int:
        """Return after how many frames it repeats."""
        return max(2, min(LONGEST, FIELD_BYTES // (8 * image.area)))

    def check(self, dataset: DatasetInfo, image: Rect, files: Files) -> int | None:
        """See `Scene`."""
        frames = self.frames(image)
        if self.decay * frames < 8:
            message = f"it repeats after {frames} frames of {image.width} x {image.height} pixels"
            help = f"give at least {8 / frames:.2g}, or a smaller image"
            raise NodeMisuse("slow-decay", f"{message}, in which it hardly decays", ("decay",), help)
        return None

    def field(self, index: int, image: Rect) -> NDArray[np.complex64]:
        """Return the field of a dataset, (frames, height, width), of mean intensity 1.

        White noise in frequencies and wave vectors, times the root of the spectrum of the correlation in time (a
        periodic sum of exponentials) and of a Gaussian in space, is turned back.
        """
        frames = self.frames(image)
        random = np.random.default_rng((self.seed, index))
        white = random.standard_normal((frames, image.height, image.width, 2), np.float32).view(np.complex64)[..., 0]
        apart = np.arange(frames)
        correlation = np.exp(-self.decay * np.minimum(apart, frames - apart))
        spectrum = np.maximum(np.fft.fft(correlation).real, 0)
        white *= np.sqrt(spectrum).astype(np.float32)[:, np.newaxis, np.newaxis]
        for axis, pixels in ((1, image.height), (2, image.width)):
            blur = np.exp(-2 * (np.pi * self.size * np.fft.fftfreq(pixels)) ** 2).astype(np.float32)
            white *= blur[:, np.newaxis] if axis == 1 else blur
        field = np.fft.ifftn(white).astype(np.complex64, copy=False)
        field /= np.sqrt(np.mean(np.abs(field) ** 2, dtype=np.float64)).astype(np.float32)
        made: NDArray[np.complex64] = field
        return made

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[PixelSource]:
        """See `Scene`."""
        field = self.field(dataset.index, image)
        mean = self.mean * (field.real**2 + field.imag**2)
        random = np.random.default_rng((self.seed, dataset.index, 1))
        most = largest(dataset)

        def frame(number: int) -> Array:
            counts: Array = np.minimum(random.poisson(mean[number]), most).astype(dataset.dtype)
            return counts

        return cut_out(frame, len(field), dataset, image, modules)


SCENES: Mapping[str, type[Scene]] = {
    it.kind: it for it in (Rings, Gradient, Noise, Poisson, Peaks, Speckle, CounterScene, Frames)
}
"""Tables of scenes by kind."""
