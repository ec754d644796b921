"""Replay of recorded frames: a file plays the detector that it was recorded with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lima2cli.declare import FileReference, Flag, Integer, NumberOrNan, param
from lima2cli.detectors.base import Capabilities, DetectorConfig
from lima2cli.detectors.emulated import EmulatedDetector, Route
from lima2cli.detectors.modules import MODULES, Modules, check_gap_value, lay_out_modules
from lima2cli.detectors.scenes import Frames, Scene
from lima2cli.detectors.sources import Part, Recording, Source
from lima2cli.geometry import Rect
from lima2cli.spec import DTYPES, DatasetInfo, DetectorInfo, Files


@dataclass(frozen=True, kw_only=True)
class Replay(DetectorConfig):
    """Frames from a file, as one dataset named `data`; shape, dtype and number of frames are the file's."""

    kind: ClassVar[str] = "replay"
    capabilities: ClassVar[Capabilities] = Capabilities(
        dtypes=DTYPES, datasets=1, can_wait=True, triggers=("internal", "software")
    )

    file: str = param("The stack of frames.", FileReference())
    modules: Modules = param(
        "A grid row by row, or a list of rectangles; default: one module that covers the image.", MODULES, None
    )
    channels: int | None = param("Data channels of a module; default: unlimited.", Integer(1), None)
    gap_value: float = param("Stored in pixels that no module covers; `nan` in frames of floats.", NumberOrNan(), 0)
    loop: bool = param("Begin again after the last frame.", Flag(), False)

    def describe(self, files: Files) -> DetectorInfo:
        """See `DetectorConfig`."""
        stack = files.stack(self.file)
        count, height, width = stack.shape
        bits = 8 * np.dtype(stack.dtype).itemsize
        data = DatasetInfo("data", 0, stack.dtype, bits, None if self.loop else count)
        check_gap_value(self.gap_value, (data,))
        return DetectorInfo(
            kind=self.kind,
            name=self.name or self.kind,
            width=width,
            height=height,
            modules=lay_out_modules(self.modules, Rect(0, 0, width, height)),
            datasets=(data,),
            channels=self.channels,
            gap_value=self.gap_value,
            can_wait=True,
            pixel_size=None if self.pixel_size is None else (self.pixel_size.x, self.pixel_size.y),
            saturation=self.saturation,
            shows=stack.view,
        )

    def scenes_for(self, info: DetectorInfo) -> Mapping[str, Scene]:
        """See `DetectorConfig`."""
        return {"data": Frames(file=self.file)}

    def open(self, info: DetectorInfo, files: Files) -> EmulatedDetector:
        """See `DetectorConfig`."""

        def sources(routes: Sequence[Route]) -> dict[Route, Source]:
            recording = Recording(files.frames(self.file), info.datasets[0].dtype, loop=self.loop)
            return {route: Part(recording, info.image, info.modules[route[1]]) for route in routes}

        return EmulatedDetector(info, sources)
