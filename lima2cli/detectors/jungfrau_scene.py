"""What pixels of JUNGFRAU send where REMU plays the detector: photons of a scene, coded as charge."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.detectors.jungfrau_charge import codes, photon_bits
from lima2cli.detectors.scenes import Scene
from lima2cli.detectors.sources import Pool, Source
from lima2cli.geometry import Rect
from lima2cli.spec import Array, DatasetInfo, Files


@dataclass(frozen=True, kw_only=True)
class Charge(Scene):
    """Photons of ``scene`` as raw frames; the other fields are those of `jungfrau_charge.codes`. Users write none."""

    kind: ClassVar[str] = "charge"

    scene: Scene
    pedestal: tuple[float, ...]
    gain: tuple[float, ...]
    photon_energy: float
    gain_mode: str

    @property
    def lossy(self) -> bool:
        """See `Scene`."""
        return self.scene.lossy

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[Source]:
        """See `Scene`."""
        table = codes(self.pedestal, self.gain, self.photon_energy, self.gain_mode)
        photons = DatasetInfo(dataset.name, dataset.index, "uint16", photon_bits(table))
        made = self.scene.sources(photons, image, modules, files)
        return [Pool(table[it.frames], it.absent) if isinstance(it, Pool) else _Coded(it, table) for it in made]


class _Coded(Source):
    """Frames of a source that are coded as they are asked for."""

    def __init__(self, photons: Source, table: NDArray[np.uint16]) -> None:
        self._photons, self._table = photons, table

    def get(self, numbers: Sequence[int]) -> Array:
        """See `Source`."""
        coded: Array = self._table[self._photons.get(numbers)]
        return coded

    def missing(self, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """See `Source`."""
        return self._photons.missing(numbers)
