"""Replay of recorded frames: a file plays the detector that it was recorded with."""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from lima2cli.dataclass import dataclass
from lima2cli.declare import FileReference, Flag, Integer, NumberOrNan, param
from lima2cli.detectors.base import Capabilities, DetectorConfig
from lima2cli.detectors.emulated import EmulatedDetector, PartKey
from lima2cli.detectors.modules import MODULES, Modules, check_gap_value, lay_out_modules
from lima2cli.detectors.scenes import INCOMPLETE, INCOMPLETE_DOC, Frames, Scene, recorded
from lima2cli.detectors.sources import PixelSource, Recording, RecordingPart
from lima2cli.frames import DTYPES, DatasetInfo, DetectorInfo, Files, FrameReader, StackInfo
from lima2cli.geometry import Rect


@dataclass(frozen=True, kw_only=True)
class Replay(DetectorConfig):
    """Frames from files, as one dataset named `data`; shape, dtype and number of frames are the file's, and the pixel
    mask, invalid values and saturation that it declares.
    """

    kind: ClassVar[str] = "replay"
    capabilities: ClassVar[Capabilities] = Capabilities(
        dtypes=DTYPES, datasets=1, can_wait=True, triggers=("internal", "software")
    )

    file: str = param("The stack of frames, or a series: `c_%05d.cbf`, `c_*.cbf`.", FileReference())
    incomplete: str = param(INCOMPLETE_DOC, INCOMPLETE, "error")
    modules: Modules = param(
        "A grid row by row, or a list of rectangles; default: one module that covers the image.", MODULES, None
    )
    channels: int | None = param("Data channels of a module; default: unlimited.", Integer(1), None)
    gap_value: float = param("Stored in pixels that no module covers; `nan` in frames of floats.", NumberOrNan(), 0)
    loop: bool = param("Begin again after the last frame.", Flag(), False)

    def describe(self, files: Files) -> DetectorInfo:
        """See `DetectorConfig`."""
        stack = recorded(files, self.file, skip=self._skips)
        count, height, width = stack.shape
        bits = 8 * np.dtype(stack.dtype).itemsize
        data = DatasetInfo("data", 0, stack.dtype, bits, None if self.loop else count, invalid=stack.invalid)
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
            saturation=stack.saturation if self.saturation is None else self.saturation,
            can_fail=self._skips,
            skips=self._skips,
            pixel_mask=stack.pixel_mask,
            taken=tuple(_taken(stack, self.saturation is None)),
            doubts=stack.doubts,
            shows=stack.view,
        )

    @property
    def _skips(self) -> bool:
        return self.incomplete == "skip"

    def scenes_for(self, info: DetectorInfo) -> Mapping[str, Scene]:
        """See `DetectorConfig`."""
        return {"data": Frames(file=self.file, incomplete=self.incomplete)}

    def open(self, info: DetectorInfo, files: Files) -> EmulatedDetector:
        """See `DetectorConfig`."""
        readers: list[FrameReader] = []

        def sources(routes: Sequence[PartKey]) -> dict[PartKey, PixelSource]:
            reader = files.frames(self.file, skip=self._skips)
            readers[:] = [reader]
            recording = Recording(reader, info.datasets[0].dtype, loop=self.loop, gap=info.gap_value)
            return {route: RecordingPart(recording, info.image, info.modules[route[1]]) for route in routes}

        return EmulatedDetector(info, sources, warnings=lambda: [text for it in readers for text in it.unread()])


def _taken(stack: StackInfo, saturation: bool) -> Iterator[str]:
    """Yield what the file declares and the pipeline does not, a line each."""
    count, height, width = stack.shape
    yield f"frames: {stack.taken}, {count} of {width} x {height} {stack.dtype}"
    if stack.lacking is not None:
        yield f"missing: it {stack.lacking}"
    if stack.pixel_mask is not None:
        yield f"pixel mask: {stack.pixel_mask}"
    invalid = [f"{value:g}" for value in stack.invalid.values]
    invalid += [f"below {stack.invalid.below:g}"] if stack.invalid.below is not None else []
    invalid += [f"above {stack.invalid.above:g}"] if stack.invalid.above is not None else []
    if invalid:
        yield f"invalid values: {', '.join(invalid)}"
    if saturation and stack.saturation is not None:
        yield f"saturation: {stack.saturation:g}"
