"""Detector `smartpix`: An emulated SmartPix: modules of photon-counting chips with two counters per pixel.

A RASHPA-compliant detector, of which REMU plays the modules: 8 data channels, extraction (a flow takes a part of the
image) and reconstruction (modules write to their place in the full frame). What a pixel counts above the first
threshold is the dataset `CTR1`, above the second `CTR2`. Counters have 6 or 12 bits; with a depth of 24 they make one
counter together, and there is one threshold. (As in Medipix3RX, whose pixels are 55 um wide. The size of a module,
512 x 512 pixels with 4 pixels between them, is an assumption.)

The hardware never waits for receivers. The emulated one can: `overrun: wait` is possible for `run`, and the default;
write `overrun: stop` or `continue` to see what the hardware would do.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from lima2cli.dataclass import dataclass
from lima2cli.declare import THRESHOLD, Choice, Integer, ListOf, Table, param
from lima2cli.detectors.base import TRIGGERS, Capabilities, DetectorConfig, PixelSize
from lima2cli.detectors.emulated import EmulatedDetector
from lima2cli.detectors.emulator_faults import Faults
from lima2cli.detectors.modules import Gap, ImageSize, ModuleGrid
from lima2cli.detectors.remu import SCENE, Dataset, Remu
from lima2cli.detectors.scenes import Poisson, Scene
from lima2cli.errors import NodeMisuse
from lima2cli.frames import DetectorInfo, Files

MODULE = 512
"""Columns and rows of pixels of a module."""

GAP = 4
"""Pixels between modules."""

DTYPES = {6: "uint8", 12: "uint16", 24: "uint32"}
"""Dtype of frames, by the depth of the counters in bits."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Modules side by side and one below the other."""

    columns: int = param("Modules side by side.", Integer(1, 64), 2)
    rows: int = param("Modules one below the other.", Integer(1, 64), 2)


@dataclass(frozen=True, kw_only=True)
class SmartPix(DetectorConfig):
    """An emulated SmartPix: photon counting, two counters per pixel, 8 data channels."""

    kind: ClassVar[str] = "smartpix"
    capabilities: ClassVar[Capabilities] = Capabilities(
        dtypes=tuple(DTYPES.values()),
        bit_depths=tuple(DTYPES),
        datasets=2,
        channels=8,
        can_wait=True,
        triggers=TRIGGERS,
        shutter=True,
    )

    modules: Layout = param("How many modules there are.", Table(Layout), Layout())
    thresholds: tuple[float, ...] = param(
        "Energies above which the counters count.",
        ListOf(THRESHOLD, minimum=1),
        (6000.0, 9000.0),
    )
    depth: int = param("Bits of a counter; with 24 there is one, of both.", Choice((12, 6, 24)), 12)
    scene: Scene = param("What the detector sees.", SCENE, Poisson())
    faults: Faults | None = param("Faults to inject; default: none.", Table(Faults), None)

    def describe(self, files: Files) -> DetectorInfo:
        """See `DetectorConfig`."""
        return replace(self._emulator().describe(files), kind=self.kind, name=self.name or self.kind)

    def open(self, info: DetectorInfo, files: Files) -> EmulatedDetector:
        """See `DetectorConfig`."""
        return self._emulator().open(info, files)

    def scenes_for(self, info: DetectorInfo) -> Mapping[str, Scene]:
        """See `DetectorConfig`."""
        return {dataset.name: self.scene for dataset in info.datasets}

    def _emulator(self) -> Remu:
        """Return REMU with the modules and counters of a SmartPix."""
        counters = 1 if self.depth == 24 else 2
        if len(self.thresholds) > counters:
            of = f"a depth of {self.depth} bits has {counters} counter{'s' * (counters > 1)}"
            help = "leave the others out" if counters == 2 else "give one threshold, or `depth: 12`"
            raise NodeMisuse(
                "too-many-thresholds", f"{len(self.thresholds)} thresholds, and {of}", ("thresholds",), help
            )
        grid, gap = self.modules, Gap(x=GAP, y=GAP)
        return Remu(
            pixel_size=self.pixel_size or PixelSize(x=55e-6, y=55e-6),
            saturation=self.saturation,
            image=ImageSize(width=_extent(grid.columns), height=_extent(grid.rows)),
            datasets={
                f"CTR{number}": Dataset(dtype=DTYPES[self.depth], bits=self.depth, threshold=threshold)
                for number, threshold in enumerate(self.thresholds, 1)
            },
            modules=ModuleGrid(columns=grid.columns, rows=grid.rows, width=MODULE, height=MODULE, gap=gap),
            channels=8,
            faults=self.faults,
            scene=self.scene,
        )


def _extent(modules: int) -> int:
    """Return the pixels of so many modules and the gaps between them."""
    return modules * MODULE + (modules - 1) * GAP
