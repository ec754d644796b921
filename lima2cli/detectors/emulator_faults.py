"""Faults of an emulated detector, on purpose: the tables that users write, and sources of pixels that have them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.declare import Integer, Number, Quantity, Table, param
from lima2cli.declare.reading import Reading
from lima2cli.detectors.scenes import largest
from lima2cli.detectors.sources import PixelSource, Pool
from lima2cli.diagnostics import Findings, did_you_mean
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, DetectorInfo
from lima2cli.geometry import Rect

MODULE = param("Number of the module that has it; default: all.", Integer(0), None)

RATE = param("Share of the frames.", Number(0, 1), 0.01)


@dataclass(frozen=True, kw_only=True)
class Hot:
    """Pixels that always hold the largest value."""

    kind: ClassVar[str] = "hot"
    pixels: int = param("Number of pixels of the image.", Integer(0), 10)


@dataclass(frozen=True, kw_only=True)
class Dead:
    """Pixels that always hold 0."""

    kind: ClassVar[str] = "dead"
    pixels: int = param("Number of pixels of the image.", Integer(0), 10)


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Frames arrive later than the clock says, each by a time of its own; without a period it does nothing."""

    kind: ClassVar[str] = "jitter"
    by: float = param("Longest delay, limited to a period.", Quantity("seconds", minimum=0))


@dataclass(frozen=True, kw_only=True)
class Late:
    """A module lags behind the others, and so do those that the same rank serves."""

    kind: ClassVar[str] = "late"
    by: float = param("Delay.", Quantity("seconds", minimum=0))
    module: int | None = MODULE


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Frames that no module gives."""

    kind: ClassVar[str] = "dropped"
    rate: float = RATE


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Frames that single modules do not give."""

    kind: ClassVar[str] = "failed"
    rate: float = RATE
    module: int | None = MODULE


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """Frames in which a module gives random bytes instead of pixels, undetected."""

    kind: ClassVar[str] = "corrupted"
    rate: float = RATE
    module: int | None = MODULE


@dataclass(frozen=True, kw_only=True)
class Died:
    """A module gives nothing from some frame on."""

    kind: ClassVar[str] = "died"
    frame: int = param("The first frame that it does not give.", Integer(0))
    module: int = param("Number of the module.", Integer(0), 0)


Fault = Hot | Dead | Jitter | Late | Dropped | Failed | Corrupted | Died

KINDS: Mapping[str, type[Fault]] = {it.kind: it for it in (Hot, Dead, Jitter, Late, Dropped, Failed, Corrupted, Died)}


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Injected faults of the detector."""

    seed: int = param("Seed of the random numbers: the same seed makes the same faults.", Integer(0), 1)
    hot: Hot | None = param("Pixels that always hold the largest value.", Table(Hot), None)
    dead: Dead | None = param("Pixels that always hold 0.", Table(Dead), None)
    jitter: Jitter | None = param("Frames arrive later than the clock says.", Table(Jitter), None)
    late: Late | None = param("A module lags behind the others.", Table(Late), None)
    dropped: Dropped | None = param("Frames that no module gives.", Table(Dropped), None)
    failed: Failed | None = param("Frames that single modules do not give.", Table(Failed), None)
    corrupted: Corrupted | None = param("Frames with bytes at random instead of pixels.", Table(Corrupted), None)
    died: Died | None = param("A module that gives nothing from some frame on.", Table(Died), None)

    def plus(self, fault: Fault) -> "Faults":
        """Return the same with one more, instead of one of its kind."""
        return dataclasses.replace(self, **{fault.kind: fault})  # type: ignore[arg-type]

    @property
    def lose_frames(self) -> bool:
        """Return whether modules may fail to give a frame."""
        return not (self.dropped is None and self.failed is None and self.died is None)

    def check(self, modules: int) -> None:
        """Raise `NodeMisuse` (unknown-module) where a fault is that of a module that does not exist."""
        for kind in KINDS:
            module = getattr(getattr(self, kind), "module", None)
            if module is not None and module >= modules:
                message = f"there is no module {module}: they are numbered from 0 to {modules - 1}"
                raise NodeMisuse("unknown-module", message, (kind, "module"))

    def missing(self, module: int, numbers: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Return which of the frames the module does not give, (n,) bool; None where it gives all."""
        lost = np.zeros(len(numbers), bool)
        if self.dropped is not None:
            lost |= self._draw("dropped", 0, numbers) < self.dropped.rate
        if self.failed is not None and self.failed.module in (None, module):
            lost |= self._draw("failed", module, numbers) < self.failed.rate
        if self.died is not None and self.died.module == module:
            lost |= numbers >= self.died.frame
        return lost if lost.any() else None

    def corrupts(self, module: int, numbers: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Return which of the frames the module gives as bytes at random; None where there are none."""
        if self.corrupted is None or self.corrupted.module not in (None, module):
            return None
        struck: NDArray[np.bool_] = self._draw("corrupted", module, numbers) < self.corrupted.rate
        return struck if struck.any() else None

    def noise(self, dataset: int, module: int, number: int, nbytes: int) -> NDArray[np.uint8]:
        """Return the bytes at random of one frame, (nbytes,) uint8."""
        return np.random.default_rng((self.seed, dataset, module, number)).integers(0, 256, nbytes, np.uint8)

    def pixels(self, fault: Hot | Dead, pixels: int) -> NDArray[np.int64]:
        """Return the flat indices of the pixels of the whole image that have the fault, each once."""
        stream = np.random.default_rng((self.seed, list(KINDS).index(fault.kind)))
        return stream.choice(pixels, min(fault.pixels, pixels), replace=False)

    def delays(self, numbers: NDArray[np.int64], period_ns: float) -> NDArray[np.float64]:
        """Return by how much frames are later than the clock, (n,) ns."""
        longest = 0.0 if self.jitter is None else min(self.jitter.by * 1e9, period_ns)
        return self._draw("jitter", 0, numbers) * longest

    def lag_ns(self, modules: Sequence[int]) -> int:
        """Return by how much the last of these modules lags behind, ns."""
        late = self.late is not None and (self.late.module is None or self.late.module in modules)
        return round(self.late.by * 1e9) if late and self.late is not None else 0

    def _draw(self, kind: str, module: int, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return a number from 0 to below 1 for each frame, (n,)."""
        first = _mixed(np.array([self.seed % 2**64], np.uint64))
        stream = _mixed(first + np.uint64(list(KINDS).index(kind) * 65536 + module))
        drawn = _mixed(stream ^ _mixed(numbers.astype(np.uint64))) >> np.uint64(11)
        return drawn.astype(np.float64) * 2.0**-53


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return one step of SplitMix64, (n,) uint64."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def parse_fault(text: str) -> Fault:
    """Return a fault as it is written on command lines: ``KIND`` or ``KIND:key=value,key=value``, values as in YAML.

    Raises:
        NodeMisuse: (fault-syntax, unknown-fault, or a rule of the schema: unknown-key, missing-key), with the key in
            question as its key.
    """
    from lima2cli.document.yaml_tree import resolve  # ranks read no YAML

    kind, _, rest = text.partition(":")
    kind = kind.strip()
    if kind not in KINDS:
        raise NodeMisuse("unknown-fault", f"there is no fault of kind `{kind}`", (), did_you_mean(kind, KINDS))
    values = {}
    for item in filter(str.strip, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            help = f"write `{kind}:key=value,key=value`"
            raise NodeMisuse("fault-syntax", f"`{item.strip()}` does not say `key=value`", (), help)
        values[key.strip()] = resolve(value.strip())
    findings = Findings()
    fault: Fault = Table(KINDS[kind]).read(values, (kind,), Reading(findings))
    for finding in findings:
        raise NodeMisuse(finding.rule, finding.message, finding.at[1:], finding.help)
    return fault


BadPixels = tuple[NDArray[np.int64], NDArray[np.int64], Array]
"""Rows, columns and values of the bad pixels of a module, (n,) each."""


def with_bad_pixels(
    sources: Mapping[tuple[int, int], PixelSource], info: DetectorInfo, faults: Faults
) -> Mapping[tuple[int, int], PixelSource]:
    """Return the same sources, by (dataset, module), with the hot and dead pixels of the detector."""
    if faults.hot is None and faults.dead is None:
        return sources
    struck: dict[tuple[int, int], PixelSource] = {}
    for (dataset, module), source in sources.items():
        bad = _bad_pixels(info, faults, dataset, info.modules[module])
        if isinstance(source, Pool):
            frames = source.frames.copy()
            frames[:, bad[0], bad[1]] = bad[2]
            struck[dataset, module] = Pool(frames, source.absent)
        else:
            struck[dataset, module] = _WithBadPixels(source, bad)
    return struck


def _bad_pixels(info: DetectorInfo, faults: Faults, dataset: int, module: Rect) -> BadPixels:
    pixels: list[tuple[NDArray[np.int64], int]] = []
    if faults.hot is not None:
        pixels.append((faults.pixels(faults.hot, info.image.area), largest(info.datasets[dataset])))
    if faults.dead is not None:
        pixels.append((faults.pixels(faults.dead, info.image.area), 0))
    places = np.concatenate([places for places, _ in pixels])
    values = np.concatenate([np.full(len(places), value, info.datasets[dataset].dtype) for places, value in pixels])
    rows, columns = places // info.width - module.y, places % info.width - module.x
    inside = (rows >= 0) & (rows < module.height) & (columns >= 0) & (columns < module.width)
    return rows[inside], columns[inside], values[inside]


class _WithBadPixels(PixelSource):
    """A source of frames that are made or read as they are asked for, with bad pixels."""

    def __init__(self, source: PixelSource, bad: BadPixels) -> None:
        self._source, self._bad = source, bad

    def get(self, numbers: Sequence[int]) -> Array:
        """See `PixelSource`."""
        frames, (rows, columns, values) = self._source.get(numbers), self._bad
        if not len(rows):
            return frames
        frames = frames.copy()
        frames[:, rows, columns] = values
        return frames

    def missing(self, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """See `PixelSource`."""
        return self._source.missing(numbers)


class Struck(PixelSource):
    """A source of frames of a module of ``info`` with faults: some are bytes at random, some are missing."""

    def __init__(self, source: PixelSource, faults: Faults, info: DetectorInfo, dataset: int, module: int) -> None:
        self._source, self._faults = source, faults
        self._dataset, self._module, self._gap = dataset, module, info.gap_value

    def get(self, numbers: Sequence[int]) -> Array:
        """See `PixelSource`."""
        frames = self._source.get(numbers)
        asked = np.asarray(numbers[: len(frames)], np.int64)
        corrupted = self._faults.corrupts(self._module, asked)
        missing = self._faults.missing(self._module, asked)
        if corrupted is None and missing is None:
            return frames
        frames = frames.copy()
        if corrupted is not None:
            for place in np.flatnonzero(corrupted):
                noise = self._faults.noise(self._dataset, self._module, int(asked[place]), frames[place].nbytes)
                frames[place] = noise.view(frames.dtype).reshape(frames[place].shape)
        if missing is not None:
            frames[missing] = self._gap
        return frames

    def missing(self, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """See `PixelSource`."""
        failed = self._faults.missing(self._module, np.asarray(numbers, np.int64))
        absent = self._source.missing(numbers)
        if failed is None or absent is None:
            return absent if failed is None else failed
        return failed | absent
