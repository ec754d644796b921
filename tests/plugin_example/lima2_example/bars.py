"""Detector `bars`: vertical bars that move one pixel to the left per frame, on two modules side by side.

pixel (x, y) of frame f = 1000 where (x + f) // bar is odd, else 0
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lima2cli import (
    Array,
    Capabilities,
    DatasetInfo,
    DetectorConfig,
    DetectorInfo,
    EmulatedDetector,
    Files,
    Integer,
    PartKey,
    PixelSource,
    Rect,
    param,
)

HIGH = 1000


@dataclass(frozen=True, kw_only=True)
class Bars(DetectorConfig):
    """Vertical bars that move."""

    kind: ClassVar[str] = "bars"
    capabilities: ClassVar[Capabilities] = Capabilities(
        largest=(4096, 4096), dtypes=("uint16",), datasets=1, modules=2, can_wait=True
    )

    size: int = param("Width and height of the image, in pixels.", Integer(2, 4096), 256)
    bar: int = param("Width of a bar, in pixels.", Integer(1), 16)

    def describe(self, files: Files) -> DetectorInfo:
        """Return the description that pipelines are compiled against."""
        half = self.size // 2
        return DetectorInfo(
            kind=self.kind,
            name=self.name or self.kind,
            width=self.size,
            height=self.size,
            modules=(Rect(0, 0, half, self.size), Rect(half, 0, self.size - half, self.size)),
            datasets=(DatasetInfo("data", 0, "uint16", 16),),
            can_wait=True,
            pixel_size=None if self.pixel_size is None else (self.pixel_size.x, self.pixel_size.y),
            saturation=self.saturation,
        )

    def open(self, info: DetectorInfo, files: Files) -> EmulatedDetector:
        """A detector with a clock, whose pixels `_Painter` makes."""

        def sources(routes: Sequence[PartKey]) -> dict[PartKey, PixelSource]:
            return {route: _Painter(self.bar, info.modules[route[1]]) for route in routes}

        return EmulatedDetector(info, sources)


class _Painter(PixelSource):
    """The frames of one module."""

    def __init__(self, bar: int, module: Rect) -> None:
        self._bar, self._height = bar, module.height
        self._x = np.arange(module.x, module.x + module.width)

    def get(self, numbers: Sequence[int]) -> Array:
        """(n, height, width) for all numbers, uint16."""
        x = self._x + np.asarray(numbers)[:, np.newaxis]
        rows = np.where(x // self._bar % 2, HIGH, 0).astype(np.uint16)
        return np.repeat(rows[:, np.newaxis], self._height, axis=1)
