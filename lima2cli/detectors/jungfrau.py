"""Detector `jungfrau`: JUNGFRAU of PSI, modules of 1024 x 512 pixels that send raw frames as UDP packets.

Its one dataset is `adc`: uint16, 14 bits of ADC below 2 gain bits, which node `gain` turns into charge or photons. A
frame of a module is 128 packets of 8240 bytes, in the format of slsDetectorPackage (header version 2, one UDP port a
module). Pixels between modules, and those whose packet never arrived, hold 0x8000: they are masked, and node `gain`
makes NaN of them.

Frame 0 is the one that the detector numbers `first_frame`, in all modules. A frame for which more than `tolerate`
packets of any module never arrived is incomplete: no node gets it, and the run counts it as missing. Packets may arrive
in any order within `window` frames; `depth` frames of each module, in addition to those of a group, are kept for a run
that is behind for a while.

With `emulate` the packets are made here and sent to the loopback, paced over the period of the acquisition:

    ADC = pedestal[stage] + photons * photon_energy * gain[stage]        14 bits, rounded

In gain mode `dynamic` each pixel takes the first stage whose ADC is not beyond 0 to 16383, in the others all take that
of the mode. The defaults of `pedestal` and `gain` are typical of a module.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.declare import (
    PHOTON_ENERGY,
    Choice,
    Either,
    Integer,
    ListOf,
    Number,
    OneKind,
    Quantity,
    Table,
    Text,
    pair,
    param,
)
from lima2cli.detectors.base import Capabilities, DetectorConfig
from lima2cli.detectors.experiments import SCENES, Rings
from lima2cli.detectors.jungfrau_packets import ABSENT, COLUMNS, FIXED_STAGE, PACKETS, ROWS, Charge, codes, photon_bits
from lima2cli.detectors.modules import LARGEST, Gap, Module, ModuleGrid, lay_out_modules
from lima2cli.detectors.scenes import Scene
from lima2cli.detectors.sources import PixelSource
from lima2cli.errors import EnvironmentUnfit, NodeMisuse
from lima2cli.frames import DatasetInfo, DetectorInfo, Files, Invalid
from lima2cli.geometry import Rect

if TYPE_CHECKING:
    from lima2cli.detectors.jungfrau_receiver import JungfrauDetector

PITCH_M = 75e-6


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The address that the packets of a module come to."""

    address: str = param("Address of the network interface; 0.0.0.0 is any.", Text(), "0.0.0.0")
    port: int = param("UDP port.", Integer(1, 65535))


@dataclass(frozen=True, kw_only=True)
class JungfrauGap:
    """Pixels between neighbouring modules."""

    x: int = param("Columns between modules.", Integer(0, LARGEST), 8)
    y: int = param("Rows between modules.", Integer(0, LARGEST), 36)


@dataclass(frozen=True, kw_only=True)
class JungfrauGrid:
    """Modules from the top left corner on."""

    columns: int = param("Modules side by side.", Integer(1, 64), 1)
    rows: int = param("Modules one below the other.", Integer(1, 64), 1)
    gap: JungfrauGap = param("Pixels between neighbours.", pair(JungfrauGap, Integer(0, LARGEST)), JungfrauGap())
    order: str = param(
        "How they are numbered: row by row, or column by column, as slsDetectorPackage does.",
        Choice(("rows", "columns")),
        "rows",
    )
    rotation: int = param("How the modules are mounted, in degrees.", Choice((0, 180)), 0)


@dataclass(frozen=True, kw_only=True)
class Mounted:
    """The place of a module of 1024 x 512 pixels in the image."""

    x: int = param("First column.", Integer(0, LARGEST))
    y: int = param("First row.", Integer(0, LARGEST))
    rotation: int = param("How the module is mounted, in degrees.", Choice((0, 180)), 0)


@dataclass(frozen=True, kw_only=True)
class Emulation:
    """An emulated detector: photons of a scene, as packets on the loopback."""

    scene: Scene = param("Photons that the detector sees.", OneKind("scene", lambda: SCENES), Rings())
    photon_energy: float = param("Energy of a photon.", PHOTON_ENERGY, 12.4e3)
    pedestal: tuple[float, ...] = param(
        "ADU without light, of the three stages.", ListOf(Number(), 3), (3000.0, 15000.0, 15000.0)
    )
    gain: tuple[float, ...] = param("ADU per keV, of the three stages.", ListOf(Number(), 3), (41.0, -1.44, -0.1))
    period: float = param(
        "From frame to frame, where the acquisition does not say.", Quantity("seconds", above=0), 10e-3
    )
    loss: float = param("Share of the packets that is not sent.", Number(0, 1), 0.0)
    seed: int = param("Seed of the loss.", Integer(0), 1)

    def codes(self, gain_mode: str) -> NDArray[np.uint16]:
        """Return what a pixel sends for 0, 1, 2… photons, (65536,) uint16."""
        return codes(self.pedestal, self.gain, self.photon_energy, gain_mode)

    def lost(self, module: int, frame: int) -> NDArray[np.bool_]:
        """Return which packets of a frame of a module are not sent, (128,) bool."""
        return np.random.default_rng((self.seed, module, frame)).random(PACKETS) < self.loss


@dataclass(frozen=True, kw_only=True)
class Jungfrau(DetectorConfig):
    """JUNGFRAU of PSI: modules of 1024 x 512 pixels that send raw frames (14 bits of ADC below 2 gain bits) by UDP."""

    kind: ClassVar[str] = "jungfrau"
    capabilities: ClassVar[Capabilities] = Capabilities(
        dtypes=("uint16",), bit_depths=(16,), datasets=1, triggers=("internal", "external"), extraction=False
    )

    udp: tuple[Endpoint, ...] = param(
        "Where the packets of each module arrive; may be left out with `emulate`.", ListOf(Table(Endpoint)), ()
    )
    modules: JungfrauGrid | tuple[Mounted, ...] = param(
        "A grid, or a list of places.",
        Either((Table(JungfrauGrid), ListOf(Table(Mounted), minimum=1))),
        JungfrauGrid(),
    )
    gain_mode: str = param(
        "How pixels choose their gain, as in slsDetectorPackage.", Choice(tuple(FIXED_STAGE)), "dynamic"
    )
    first_frame: int = param("The detector's number of the first frame of an acquisition.", Integer(0), 1)
    buffer: int = param("Size of the kernel's buffer for each module's packets.", Quantity("bytes", minimum=1), 4 << 20)
    depth: int = param(
        "Number of frames of each module that are kept, in addition to those of a group.", Integer(16, 65536), 64
    )
    window: int = param("A frame is given up when packets of one this many frames later arrive.", Integer(1, 15), 4)
    patience: float = param(
        "A frame is given up when no packet arrives for this long.", Quantity("seconds", above=0), 0.5
    )
    tolerate: int = param(
        "Number of packets of a module that a frame may lack without being incomplete.", Integer(0, 127), 0
    )
    emulate: Emulation | None = param("Do without a detector.", Table(Emulation), None)

    def describe(self, files: Files) -> DetectorInfo:
        """See `DetectorConfig`."""
        rects = self._rects()
        self._check_ports(len(rects))
        image = Rect(0, 0, max(rect.right for rect in rects), max(rect.bottom for rect in rects))
        return DetectorInfo(
            kind=self.kind,
            name=self.name or self.kind,
            width=image.width,
            height=image.height,
            modules=lay_out_modules(tuple(_module(rect) for rect in rects), image),
            datasets=(self._dataset(image, files),),
            gap_value=ABSENT,
            pixel_size=(PITCH_M, PITCH_M) if self.pixel_size is None else (self.pixel_size.x, self.pixel_size.y),
            saturation=self.saturation,
            can_fail=True,
        )

    def _dataset(self, image: Rect, files: Files) -> DatasetInfo:
        frames = self._emulated_frames(image, files)
        return DatasetInfo("adc", 0, "uint16", 16, frames, invalid=Invalid((ABSENT,)))

    def check_machine(self) -> None:
        """See `DetectorConfig`."""
        if not sys.platform.startswith("linux"):
            raise EnvironmentUnfit("detector jungfrau reads its packets by recvmmsg, which Linux alone has")

    def open(self, info: DetectorInfo, files: Files) -> "JungfrauDetector":
        """See `DetectorConfig`."""
        from lima2cli.detectors.jungfrau_receiver import JungfrauDetector  # ctypes and sockets: not for validate

        return JungfrauDetector(self, info, files)

    def scenes_for(self, info: DetectorInfo) -> Mapping[str, Scene]:
        """See `DetectorConfig`: photons of the scene of `emulate`, as charge."""
        its = self.emulate or Emulation()
        charge = Charge(
            scene=its.scene, pedestal=its.pedestal, gain=its.gain,
            photon_energy=its.photon_energy, gain_mode=self.gain_mode,
        )  # fmt: skip
        return {"adc": charge}

    def rotated(self, module: int) -> bool:
        """Return whether a module is mounted upside down."""
        turned = self.modules if isinstance(self.modules, JungfrauGrid) else self.modules[module]
        return turned.rotation == 180

    def photons(self, info: DetectorInfo, modules: Sequence[int], files: Files) -> Mapping[int, PixelSource]:
        """Return what modules see, where they are emulated: frames (n, 512, 1024) uint16 of each."""
        if self.emulate is None:
            return {}
        rects = [info.modules[module] for module in modules]
        scene = self.emulate.scene.seen_by(info)
        sources = scene.sources(self._photon_dataset(self.emulate), info.image, rects, files)
        return dict(zip(modules, sources, strict=True))

    def _photon_dataset(self, emulate: Emulation) -> DatasetInfo:
        return DatasetInfo("adc", 0, "uint16", photon_bits(emulate.codes(self.gain_mode)))

    def _emulated_frames(self, image: Rect, files: Files) -> int | None:
        """Return how many frames there are, None without end."""
        if self.emulate is None:
            return None
        for key in ("pedestal", "gain"):
            if (count := len(getattr(self.emulate, key))) != 3:
                raise NodeMisuse("calibration-shape", f"three stages have three values, not {count}", ("emulate", key))
        scene = self.emulate.scene
        try:
            return scene.check(self._photon_dataset(self.emulate), image, files)
        except NodeMisuse as misfit:
            place = ("emulate", "scene", scene.kind, *misfit.key)
            raise NodeMisuse(misfit.rule, misfit.message, place, misfit.help) from None

    def _rects(self) -> list[Rect]:
        if isinstance(self.modules, JungfrauGrid):
            grid, gap = self.modules, Gap(x=self.modules.gap.x, y=self.modules.gap.y)
            rects = ModuleGrid(columns=grid.columns, rows=grid.rows, width=COLUMNS, height=ROWS, gap=gap).rects()
            return sorted(rects, key=lambda rect: rect.x) if grid.order == "columns" else rects
        return [Rect(module.x, module.y, COLUMNS, ROWS) for module in self.modules]

    def places(self) -> list[tuple[int, int]] | None:
        """Return row and column of each module among the others, as its packets should have.

        None where the modules form no grid.
        """
        rects = self._rects()
        columns, rows = sorted({rect.x for rect in rects}), sorted({rect.y for rect in rects})
        if len(columns) * len(rows) != len(rects):
            return None
        return [(rows.index(rect.y), columns.index(rect.x)) for rect in rects]

    def _check_ports(self, modules: int) -> None:
        if not self.udp and self.emulate is not None:
            return
        if len(self.udp) != modules:
            raise NodeMisuse(
                "udp-ports",
                f"there are {modules} modules, but ports for {len(self.udp)}",
                ("udp",) if self.udp else (),
                "one {address, port} for each module, or `emulate: {}` to do without a detector",
            )
        places = [(end.address, end.port) for end in self.udp]
        for i, place in enumerate(places):
            if place in places[:i]:
                raise NodeMisuse(
                    "udp-ports", f"modules {places.index(place)} and {i} have the same port, {place[1]}", ("udp", i)
                )


def _module(rect: Rect) -> Module:
    return Module(x=rect.x, y=rect.y, width=rect.width, height=rect.height)
