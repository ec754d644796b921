"""What goes wrong with an emulated detector, on purpose: the tables that users write, and the draws behind them.

Everything is drawn from the seed, the module and the number of the frame alone, so that it is the same whatever the
timing, the flows and the number of ranks. Draws are a hash: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014,
doi:10.1145/2660193.2660195).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Bad, Integer, Number, Quantity, Table, param
from lima2cli.diagnostics import Findings
from lima2cli.document.scalars import resolve
from lima2cli.errors import Misfit
from lima2cli.names import did_you_mean
from lima2cli.schema.check import check

MODULE = param("Number of the module that has it; default: all.", Integer(0), None)

RATE = param("Share of the frames.", Number(0, 1), 0.01)


@dataclass(frozen=True, kw_only=True)
class Hot:
    """Pixels that always hold the largest value."""

    kind: ClassVar[str] = "hot"
    pixels: int = param("How many pixels of the image.", Integer(0), 10)


@dataclass(frozen=True, kw_only=True)
class Dead:
    """Pixels that always hold 0."""

    kind: ClassVar[str] = "dead"
    pixels: int = param("How many pixels of the image.", Integer(0), 10)


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Frames come later than the clock says, each by a time of its own; without a period it does nothing."""

    kind: ClassVar[str] = "jitter"
    by: float = param("The longest, cut at a period.", Quantity("seconds", minimum=0))


@dataclass(frozen=True, kw_only=True)
class Late:
    """A module lags behind the others, and so do those that the same rank serves."""

    kind: ClassVar[str] = "late"
    by: float = param("By how much.", Quantity("seconds", minimum=0))
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
    """Frames in which a module gives bytes at random instead of pixels, and does not know it."""

    kind: ClassVar[str] = "corrupted"
    rate: float = RATE
    module: int | None = MODULE


@dataclass(frozen=True, kw_only=True)
class Died:
    """A module gives nothing from some frame on."""

    kind: ClassVar[str] = "died"
    frame: int = param("The first that it does not give.", Integer(0))
    module: int = param("Number of the module.", Integer(0), 0)


Fault = Hot | Dead | Jitter | Late | Dropped | Failed | Corrupted | Died

KINDS: Mapping[str, type[Fault]] = {it.kind: it for it in (Hot, Dead, Jitter, Late, Dropped, Failed, Corrupted, Died)}


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong, on purpose."""

    seed: int = param("Seed of all that is drawn: the same seed makes the same faults.", Integer(0), 1)
    hot: Hot | None = param("Pixels that always hold the largest value.", Table(Hot), None)
    dead: Dead | None = param("Pixels that always hold 0.", Table(Dead), None)
    jitter: Jitter | None = param("Frames come later than the clock says.", Table(Jitter), None)
    late: Late | None = param("A module lags behind the others.", Table(Late), None)
    dropped: Dropped | None = param("Frames that no module gives.", Table(Dropped), None)
    failed: Failed | None = param("Frames that single modules do not give.", Table(Failed), None)
    corrupted: Corrupted | None = param("Frames with bytes at random instead of pixels.", Table(Corrupted), None)
    died: Died | None = param("A module that gives nothing from some frame on.", Table(Died), None)

    def plus(self, fault: Fault) -> "Faults":
        """The same with one more, instead of one of its kind."""
        return dataclasses.replace(self, **{fault.kind: fault})  # type: ignore[arg-type]

    @property
    def lose_frames(self) -> bool:
        """Whether modules may fail to give a frame."""
        return not (self.dropped is None and self.failed is None and self.died is None)

    def check(self, modules: int) -> None:
        """Raise `Misfit` (unknown-module) where a fault is that of a module that there is not."""
        for kind in KINDS:
            module = getattr(getattr(self, kind), "module", None)
            if module is not None and module >= modules:
                message = f"there is no module {module}: they are numbered from 0 to {modules - 1}"
                raise Misfit("unknown-module", message, (kind, "module"))

    def missing(self, module: int, numbers: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Which of the frames the module does not give, (n,) bool; None where it gives all."""
        lost = np.zeros(len(numbers), bool)
        if self.dropped is not None:
            lost |= self._draw("dropped", 0, numbers) < self.dropped.rate
        if self.failed is not None and self.failed.module in (None, module):
            lost |= self._draw("failed", module, numbers) < self.failed.rate
        if self.died is not None and self.died.module == module:
            lost |= numbers >= self.died.frame
        return lost if lost.any() else None

    def corrupts(self, module: int, numbers: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Which of the frames the module gives as bytes at random; None where there are none."""
        if self.corrupted is None or self.corrupted.module not in (None, module):
            return None
        struck: NDArray[np.bool_] = self._draw("corrupted", module, numbers) < self.corrupted.rate
        return struck if struck.any() else None

    def noise(self, dataset: int, module: int, number: int, nbytes: int) -> NDArray[np.uint8]:
        """The bytes at random of one frame, (nbytes,)."""
        return np.random.default_rng((self.seed, dataset, module, number)).integers(0, 256, nbytes, np.uint8)

    def pixels(self, fault: Hot | Dead, pixels: int) -> NDArray[np.int64]:
        """Flat indices of the pixels of the whole image that have the fault, each once."""
        stream = np.random.default_rng((self.seed, list(KINDS).index(fault.kind)))
        return stream.choice(pixels, min(fault.pixels, pixels), replace=False)

    def delays(self, numbers: NDArray[np.int64], period_ns: float) -> NDArray[np.float64]:
        """How much later than the clock says frames are, (n,) ns."""
        longest = 0.0 if self.jitter is None else min(self.jitter.by * 1e9, period_ns)
        return self._draw("jitter", 0, numbers) * longest

    def lag_ns(self, modules: Sequence[int]) -> int:
        """By how much the last of these modules lags behind, ns."""
        late = self.late is not None and (self.late.module is None or self.late.module in modules)
        return round(self.late.by * 1e9) if late and self.late is not None else 0

    def _draw(self, kind: str, module: int, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """A number from 0 to below 1 for each frame, (n,)."""
        first = _mixed(np.array([self.seed % 2**64], np.uint64))
        stream = _mixed(first + np.uint64(list(KINDS).index(kind) * 65536 + module))
        drawn = _mixed(stream ^ _mixed(numbers.astype(np.uint64))) >> np.uint64(11)
        return drawn.astype(np.float64) * 2.0**-53


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of SplitMix64, (n,)."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def parse_fault(text: str) -> Fault:
    """A fault as it is written on command lines: ``KIND`` or ``KIND:key=value,key=value``, values as in YAML.

    Raises `Misfit` (fault-syntax, unknown-fault, or a rule of the schema such as unknown-key or missing-key), with the
    key in question as its key.
    """
    kind, _, rest = text.partition(":")
    kind = kind.strip()
    if kind not in KINDS:
        raise Misfit("unknown-fault", f"there is no fault of kind `{kind}`", (), did_you_mean(kind, KINDS))
    values = {}
    for item in filter(str.strip, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            help = f"write `{kind}:key=value,key=value`"
            raise Misfit("fault-syntax", f"`{item.strip()}` does not say `key=value`", (), help)
        values[key.strip()] = resolve(value.strip())
    shape, findings = Table(KINDS[kind]), Findings()
    check({kind: values}, {"type": "object", "properties": {kind: shape.schema()}}, findings)
    for found in findings:
        raise Misfit(found.rule, found.message, found.at[1:], found.help)
    fault: Fault = shape.read(values, (), Bad())
    return fault
