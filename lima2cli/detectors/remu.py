"""REMU, the RASHPA emulator: any number of modules and datasets, with frames of a scene."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

import numpy as np

from lima2cli import __version__
from lima2cli.dataclass import dataclass
from lima2cli.declare import THRESHOLD, Choice, Integer, MapOf, NumberOrNan, OneKind, Table, param
from lima2cli.detectors.base import OPERATIONS, TRIGGERS, Capabilities, DetectorConfig
from lima2cli.detectors.emulated import EmulatedDetector, PartKey
from lima2cli.detectors.emulator_faults import Faults
from lima2cli.detectors.experiments import SCENES, Rings
from lima2cli.detectors.modules import LARGEST, MODULES, ImageSize, Modules, check_gap_value, lay_out_modules
from lima2cli.detectors.scenes import Scene
from lima2cli.detectors.sources import PixelSource
from lima2cli.diagnostics import did_you_mean
from lima2cli.errors import NodeMisuse
from lima2cli.frames import DTYPES, DatasetInfo, DetectorInfo, Files
from lima2cli.geometry import Rect

SCENE = OneKind("scene", lambda: SCENES)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An independent stream of frames with the same numbering, such as one counter of a pixel."""

    dtype: str = param("Type of the pixels.", Choice(DTYPES))
    bits: int | None = param("Significant bits; default: all of the dtype.", Integer(1, 64), None)
    threshold: float | None = param(
        "Photons of less energy are not counted; the scene `poisson` knows it.", THRESHOLD, None
    )


@dataclass(frozen=True, kw_only=True)
class Remu(DetectorConfig):
    """The RASHPA emulator: modules that push frames of a scene."""

    kind: ClassVar[str] = "remu"
    capabilities: ClassVar[Capabilities] = Capabilities(
        largest=(LARGEST, LARGEST),
        dtypes=DTYPES,
        can_wait=True,
        triggers=TRIGGERS,
        operations=OPERATIONS,
        shutter=True,
    )

    image: ImageSize = param("Size of the whole image.", Table(ImageSize))
    datasets: Mapping[str, Dataset] = param(
        "Streams of frames, numbered as written.", MapOf(Table(Dataset), minimum=1), {"data": Dataset(dtype="uint16")}
    )
    modules: Modules = param(
        "A grid row by row, or a list of rectangles; default: one module that covers the image.", MODULES, None
    )
    channels: int | None = param("Data channels of a module; default: unlimited.", Integer(1), None)
    gap_value: float = param("Stored in pixels that no module covers; `nan` in frames of floats.", NumberOrNan(), 0)
    faults: Faults | None = param("Faults to inject; default: none.", Table(Faults), None)
    scene: Scene = param("What the detector sees.", SCENE, Rings())
    scenes: Mapping[str, Scene] = param("Scenes of single datasets, instead of `scene`.", MapOf(SCENE), {})

    def describe(self, files: Files) -> DetectorInfo:
        """See `DetectorConfig`."""
        image = Rect(0, 0, self.image.width, self.image.height)
        for name in self.scenes:
            if name not in self.datasets:
                help = did_you_mean(name, self.datasets)
                raise NodeMisuse("unknown-dataset", f"there is no dataset {name}", ("scenes", name), help)
        modules = lay_out_modules(self.modules, image)
        datasets = tuple(self._describe(index, name, image, files) for index, name in enumerate(self.datasets))
        check_gap_value(self.gap_value, datasets)
        self._check_faults(len(modules))
        info = DetectorInfo(
            kind=self.kind,
            name=self.name or self.kind,
            width=image.width,
            height=image.height,
            modules=modules,
            datasets=datasets,
            channels=self.channels,
            gap_value=self.gap_value,
            can_wait=True,
            pixel_size=None if self.pixel_size is None else (self.pixel_size.x, self.pixel_size.y),
            saturation=self.saturation,
            versions={"lima2": __version__},
            can_fail=(self.faults is not None and self.faults.lose_frames)
            or any(self._scene(name)[0].lossy for name in self.datasets),
            skips=not (self.faults is not None and self.faults.lose_frames)
            and any(self._scene(name)[0].lossy for name in self.datasets),
        )
        for name in self.datasets:
            with self._of_scene(name) as scene:
                scene.seen_by(info)
        return info

    def _check_faults(self, modules: int) -> None:
        if self.faults is not None:
            try:
                self.faults.check(modules)
            except NodeMisuse as misfit:
                raise NodeMisuse(misfit.rule, misfit.message, ("faults", *misfit.key), misfit.help) from None

    def open(self, info: DetectorInfo, files: Files) -> EmulatedDetector:
        """See `DetectorConfig`."""

        def sources(routes: Sequence[PartKey]) -> dict[PartKey, PixelSource]:
            ready: dict[PartKey, PixelSource] = {}
            for dataset in info.datasets:
                modules = [module for index, module in dict.fromkeys(routes) if index == dataset.index]
                scene = self._scene(dataset.name)[0].seen_by(info)
                rects = [info.modules[module] for module in modules]
                made = scene.sources(dataset, info.image, rects, files) if modules else []
                ready |= {(dataset.index, module): source for module, source in zip(modules, made, strict=True)}
            return ready

        return EmulatedDetector(info, sources, self.faults)

    def scenes_for(self, info: DetectorInfo) -> Mapping[str, Scene]:
        """See `DetectorConfig`."""
        return {name: self._scene(name)[0] for name in self.datasets}

    def _scene(self, dataset: str) -> tuple[Scene, tuple[str, ...]]:
        """Return the scene of a dataset and where it is written."""
        if dataset in self.scenes:
            return self.scenes[dataset], ("scenes", dataset)
        return self.scene, ("scene",)

    def _describe(self, index: int, name: str, image: Rect, files: Files) -> DatasetInfo:
        dtype, bits = self.datasets[name].dtype, self.datasets[name].bits
        available = 8 * np.dtype(dtype).itemsize
        if bits is not None and bits > available:
            message = f"dataset {name} has {bits} significant bits, and {dtype} holds {available}"
            raise NodeMisuse("dataset-bits", message, ("datasets", name, "bits"))
        info = DatasetInfo(
            name, index, dtype, available if bits is None else bits, threshold_ev=self.datasets[name].threshold
        )
        with self._of_scene(name) as scene:
            return replace(info, frames=scene.check(info, image, files))

    @contextmanager
    def _of_scene(self, dataset: str) -> Iterator[Scene]:
        """Give the scene of a dataset; its mistakes are put where it is written."""
        scene, place = self._scene(dataset)
        try:
            yield scene
        except NodeMisuse as misfit:
            raise NodeMisuse(misfit.rule, misfit.message, (*place, scene.kind, *misfit.key), misfit.help) from None
